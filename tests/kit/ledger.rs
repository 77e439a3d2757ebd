//! Backends that count their connections themselves.

use super::backend::Backend;
use super::conn::{Addr, Conn};
use super::wait::pace;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The connections that a backend has, by its own reckoning: from the accept on, until it has been reset or ends them
/// itself.
#[derive(Default)]
pub struct Ledger {
    open: Mutex<HashMap<u64, Conn>>,
    next: AtomicU64,
    most: AtomicUsize,
}

impl Ledger {
    /// One more. What was reset before it came counts no more, whether its thread knows of that or not.
    fn enter(&self, conn: &Conn) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().unwrap();
        open.retain(|_, conn| !conn.is_over());
        if !conn.is_over() {
            open.insert(number, conn.twin());
        }
        self.most.fetch_max(open.len(), Ordering::Relaxed);
        number
    }

    /// It is about to end.
    fn leave(&self, number: u64) {
        self.open.lock().unwrap().remove(&number);
    }

    /// The most that it ever had at once.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// All that ever came.
    pub fn came(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Those that it has now.
    pub fn open(&self) -> usize {
        let mut open = self.open.lock().unwrap();
        open.retain(|_, conn| !conn.is_over());
        open.len()
    }

    /// Resets all that it has.
    pub fn condemn(&self) {
        self.open.lock().unwrap().values().for_each(Conn::condemn);
    }
}

/// Answers a line with the same line, after a few milliseconds that depend on it, and ends the connection after its
/// client.
pub fn backend(address: Option<&Addr>, ledger: &Arc<Ledger>) -> Backend {
    let ledger = Arc::clone(ledger);
    let serve = move |mut conn: Conn| {
        let number = ledger.enter(&conn);
        if let Some(line) = try_line(&mut conn) {
            pace(Duration::from_millis(1 + line.bytes().map(u64::from).sum::<u64>() % 8));
            let _ = conn.try_send(line);
        }
        while conn.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        ledger.leave(number);
    };
    match address {
        Some(address) => Backend::at(address, serve),
        None => Backend::new(serve),
    }
}

/// With its line feed; `None` if the connection ends before.
pub fn try_line(conn: &mut Conn) -> Option<String> {
    let mut line = String::new();
    while !line.ends_with('\n') {
        line.push(char::from(conn.try_receive(1)?[0]));
    }
    Some(line)
}
