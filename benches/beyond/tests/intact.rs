//! Each relay passes bytes both ways unharmed, with the FIN right behind them. What else they do is for `trials.py`.
//!
//! Sockmap is left out, aloud, where the rights for it are missing. Every receive is bounded.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(20);

struct Relay {
    child: Child,
    port: u16,
}

impl Drop for Relay {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Relay {
    /// `None` if it ends at once.
    fn start(arguments: &[&str], backend: u16) -> Option<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let child = Command::new(env!("CARGO_BIN_EXE_beyond"))
            .args(arguments)
            .args(["--listen", &format!("127.0.0.1:{port}"), "--backend", &format!("127.0.0.1:{backend}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut relay = Self { child, port };
        let begun = Instant::now();
        loop {
            if relay.child.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Some(relay);
            }
            assert!(begun.elapsed() < LONGEST, "{arguments:?} does not listen");
            thread::yield_now();
        }
    }
}

/// A backend that sends back what it gets.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let mut stream = stream?;
                let mut back = stream.try_clone()?;
                io::copy(&mut stream, &mut back)?;
                back.shutdown(Shutdown::Write)
            });
        }
    });
    port
}

fn passes_bytes(arguments: &[&str]) -> bool {
    let Some(relay) = Relay::start(arguments, echo()) else { return false };
    for length in [1, 1000, 70_000, 3_000_000, 5] {
        let sent: Vec<u8> = (0..=250).cycle().take(length).collect();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port)).unwrap();
        stream.set_read_timeout(Some(LONGEST)).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let copy = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&copy).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == sent, "{arguments:?}: {} bytes of {length} came back, or others", received.len());
    }
    true
}

#[test]
fn epoll_passes_bytes() {
    assert!(passes_bytes(&["epoll"]));
}

#[test]
fn uring_passes_bytes() {
    if !passes_bytes(&["uring"]) {
        eprintln!("left out: no io_uring here");
        return;
    }
    assert!(passes_bytes(&["uring", "--single-shot"]));
}

#[test]
fn sockmap_passes_bytes() {
    if !passes_bytes(&["sockmap"]) {
        eprintln!("left out: no rights for a map of sockets here");
    }
}
