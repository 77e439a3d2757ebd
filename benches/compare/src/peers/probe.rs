//! Does a proxy pass bytes on intact? Asked once for each start, before anything is measured.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::load::proxy_header;
use crate::server::{CHECK_REQUEST, CHECKED_BYTES, DOWNLOAD_REQUEST, INTACT, PATTERN};

const TIMEOUT: Duration = Duration::from_secs(5);

/// An echo, the beginning of a download and an upload through this address, each byte compared.
pub fn check(address: SocketAddrV4) -> Result<()> {
    check_behind(address, &[])
}

/// As it comes, or else behind a PROXY header, which some that were given with `--extra` insist on.
pub fn check_either_way(address: SocketAddrV4) -> Result<()> {
    check(address).or_else(|error| check_behind(address, &proxy_header()).map_err(|_| error))
}

/// With `header` at the beginning of each connection.
fn check_behind(address: SocketAddrV4, header: &[u8]) -> Result<()> {
    let message: Vec<u8> = (0..1_000_u32).map(|index| b'e' ^ (index % 19) as u8).collect();
    let mut stream = connect(address, header)?;
    stream.write_all(&message).context("sending an echo")?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).context("receiving an echo")?;
    ensure!(answer == message, "an echo came back changed");

    let mut stream = connect(address, header)?;
    stream.write_all(&DOWNLOAD_REQUEST).context("asking for a download")?;
    let mut download = vec![0; CHECKED_BYTES];
    stream.read_exact(&mut download).context("receiving a download")?;
    let changed = download.iter().enumerate().find(|(index, byte)| **byte != (index % PATTERN) as u8);
    ensure!(changed.is_none(), "a download came changed, first at {changed:?}");

    let mut stream = connect(address, header)?;
    let pattern = (0..CHECKED_BYTES).map(|index| (index % PATTERN) as u8);
    let upload: Vec<u8> = CHECK_REQUEST.into_iter().chain(pattern).collect();
    stream.write_all(&upload).context("sending an upload")?;
    let mut answer = [0];
    stream.read_exact(&mut answer).context("waiting for the word that an upload came intact")?;
    ensure!(answer == [INTACT], "an upload has a wrong answer");
    Ok(())
}

fn connect(address: SocketAddrV4, header: &[u8]) -> Result<TcpStream> {
    let mut stream =
        TcpStream::connect_timeout(&address.into(), TIMEOUT).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(header).context("sending a PROXY header")?;
    Ok(stream)
}
