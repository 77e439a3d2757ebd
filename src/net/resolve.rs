//! Host names to addresses, once, at start, through the system's resolver.
//!
//! Owns the bound: however many names there are and however long the resolver hangs, the caller has an answer or
//! an error for each name when the time is up. Keeping names fresh is not done here.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Look-ups under way at once.
const AT_ONCE: usize = 16;

/// What became of one name: its addresses, never none, or a sentence.
pub type Answer = Result<Vec<IpAddr>, String>;

/// Looks all names up, within `bound` together.
#[must_use]
pub fn resolve(hosts: &[Arc<str>], bound: Duration) -> HashMap<Arc<str>, Answer> {
    let deadline = Instant::now() + bound;
    let queue = Arc::new(Mutex::new(hosts.iter().cloned().collect::<VecDeque<_>>()));
    let (sender, answers) = channel();
    for _ in 0..hosts.len().min(AT_ONCE) {
        let (queue, sender) = (Arc::clone(&queue), sender.clone());
        // The resolver can't be interrupted; a thread that hangs in it is left behind.
        let spawned = std::thread::Builder::new().name("resolve".into()).spawn(move || work(&queue, &sender));
        if spawned.is_err() {
            break;
        }
    }
    drop(sender);
    let mut found = HashMap::new();
    while found.len() < hosts.len() {
        let Ok((host, answer)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            break;
        };
        found.insert(host, answer);
    }
    for host in hosts {
        found.entry(Arc::clone(host)).or_insert_with(|| Err(format!("no answer within {bound:?}")));
    }
    found
}

fn work(queue: &Mutex<VecDeque<Arc<str>>>, answers: &Sender<(Arc<str>, Answer)>) {
    loop {
        let Some(host) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
        let answer = look_up(&host);
        if answers.send((host, answer)).is_err() {
            return;
        }
    }
}

/// IPv4 addresses if there are any, else IPv6 ones: a name with both mostly means one server, and two backends for
/// it would count it twice.
fn look_up(host: &str) -> Answer {
    let addresses = (host, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for ip in addresses.map(|address| address.ip()) {
        let family = if ip.is_ipv4() { &mut v4 } else { &mut v6 };
        if !family.contains(&ip) {
            family.push(ip);
        }
    }
    let found = if v4.is_empty() { v6 } else { v4 };
    if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_an_answer_or_a_sentence() {
        let hosts: [Arc<str>; 2] = ["localhost".into(), "no-such-name.invalid".into()];
        let answers = resolve(&hosts, Duration::from_secs(30));
        assert!(answers["localhost"].as_ref().unwrap().iter().all(IpAddr::is_loopback));
        assert!(answers["no-such-name.invalid"].is_err());
    }

    #[test]
    fn a_resolver_that_hangs_is_not_waited_for() {
        let hosts: [Arc<str>; 1] = ["localhost".into()];
        assert!(resolve(&hosts, Duration::ZERO).contains_key("localhost"));
    }
}
