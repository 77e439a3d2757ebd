//! Does a proxy pass bytes on intact? Asked once for each start, before anything is measured.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::server::{DOWNLOAD_REQUEST, PATTERN};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Enough to go through a splice as well as through a copy.
const DOWNLOAD_BYTES: usize = 4 << 20;

/// An echo and the beginning of a download through this address, each byte compared.
pub fn check(address: SocketAddrV4) -> Result<()> {
    let message: Vec<u8> = (0..1_000_u32).map(|index| b'e' ^ (index % 19) as u8).collect();
    let mut stream = connect(address)?;
    stream.write_all(&message).context("sending an echo")?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).context("receiving an echo")?;
    ensure!(answer == message, "an echo came back changed");

    let mut stream = connect(address)?;
    stream.write_all(&DOWNLOAD_REQUEST).context("asking for a download")?;
    let mut download = vec![0; DOWNLOAD_BYTES];
    stream.read_exact(&mut download).context("receiving a download")?;
    let changed = download.iter().enumerate().find(|(index, byte)| **byte != (index % PATTERN) as u8);
    ensure!(changed.is_none(), "a download came changed, first at {changed:?}");
    Ok(())
}

fn connect(address: SocketAddrV4) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&address.into(), TIMEOUT).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}
