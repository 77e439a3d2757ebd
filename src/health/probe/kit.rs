//! Peers of the probes' tests: a listener whose one connection plays a script on a thread.

use super::{Answer, ProbeError, Question};
use crate::name::{BackendAddr, Endpoint};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longer than any machine takes; only failures wait it out.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Peer {
    pub address: SocketAddr,
    script: JoinHandle<bool>,
}

pub struct Conn(pub TcpStream);

impl Peer {
    /// Serves one connection; what the script returns is the peer's [`outcome`](Self::outcome).
    pub fn new(script: impl FnOnce(Conn) -> bool + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            script(Conn(stream))
        });
        Self { address, script }
    }

    pub fn backend(&self) -> BackendAddr {
        BackendAddr(Endpoint::Tcp(self.address))
    }

    pub fn outcome(self) -> bool {
        self.script.join().unwrap()
    }

    /// A script that says no more and waits for the end.
    pub fn until_the_end(mut conn: Conn) -> bool {
        // A read with a time-out is interrupted whenever this process was stopped and goes on: that is no end.
        while match conn.0.read(&mut [0; 4 << 10]) {
            Ok(count) => count > 0,
            Err(error) => error.kind() == ErrorKind::Interrupted,
        } {}
        true
    }
}

/// What becomes of a question to a peer that plays `script` and doesn't answer in time. Where this process did not run
/// when the time was over, that says nothing of the peer, and another one is asked.
pub async fn given_up(question: &Question, limit: Duration, script: fn(Conn) -> bool) -> ProbeError {
    loop {
        let peer = Peer::new(script);
        let error = ask(question, &peer, limit).await.unwrap_err();
        peer.outcome();
        if !matches!(error, ProbeError::Stalled(_)) {
            return error;
        }
    }
}

pub async fn ask(question: &Question, peer: &Peer, limit: Duration) -> Result<Answer, ProbeError> {
    super::ask(question.clone(), peer.backend(), limit).await
}

/// Whether the other side ends by a FIN.
pub fn ends_in_order(mut conn: Conn) -> bool {
    let _ = conn.0.shutdown(Shutdown::Write);
    let mut rest = Vec::new();
    conn.0.read_to_end(&mut rest).is_ok()
}

impl Conn {
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn expect(&mut self, bytes: &[u8]) {
        let mut seen = vec![0; bytes.len()];
        self.0.read_exact(&mut seen).unwrap();
        assert_eq!(seen.escape_ascii().to_string(), bytes.escape_ascii().to_string());
    }

    /// A request's head, to its empty line.
    pub fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    pub fn finish(&mut self) {
        self.0.shutdown(Shutdown::Write).unwrap();
    }

    /// Sends up to 1 GB, and says how much of it went.
    pub fn flood(&mut self, pattern: &[u8]) -> usize {
        let piece = pattern.repeat((64 << 10) / pattern.len());
        let mut sent = 0;
        while sent < 1 << 30 && self.0.write_all(&piece).is_ok() {
            sent += piece.len();
        }
        sent
    }
}
