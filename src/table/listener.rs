//! A listener as sessions, admin and daemon see it: its config, where it is bound, how many sockets are broken.
//!
//! Owns no socket: acceptors hold those.

use crate::admission::Gate;
use crate::clock::Millis;
use crate::config::{self, AdminState};
use crate::every::Every;
use crate::metrics::ListenerMetrics;
use crate::name::{BindAddr, Endpoint, ListenerName};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often at most the log says that a PROXY header was broken.
const BROKEN_HEADERS: Duration = Duration::from_secs(10);

/// So many ports in a row are shown as a range.
const RANGE: usize = 3;

/// A configured listener that is bound.
pub struct Listener {
    pub name: ListenerName,
    pub config: config::Listener,
    pub metrics: ListenerMetrics,
    /// The actual addresses, with the ports that the kernel picked.
    pub bound: Vec<BindAddr>,
    /// Who may come in.
    pub gate: Arc<Gate>,
    /// Of this one and of those before it. A lock and not atomics, so that the metric always agrees with it.
    condition: Arc<Mutex<Condition>>,
    /// Limits what is said about PROXY headers that are broken.
    pub broken_headers: Every,
}

#[derive(Clone, Copy, Debug, Default)]
struct Condition {
    broken: usize,
    /// What an operator has said of it.
    admin: AdminState,
}

impl Condition {
    fn is_up(self) -> bool {
        self.broken == 0 && self.admin == AdminState::Enabled
    }
}

impl Listener {
    /// What is broken of the one in whose place it comes, the `previous` one of its name, stays so.
    #[must_use]
    pub fn new(
        config: config::Listener,
        metrics: ListenerMetrics,
        bound: Vec<BindAddr>,
        gate: Gate,
        previous: Option<&Self>,
    ) -> Self {
        if previous.is_none() {
            metrics.up.set(1);
        }
        let condition = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.condition));
        let broken_headers = Every::new(BROKEN_HEADERS, Instant::now());
        let (name, gate) = (config.name.clone(), Arc::new(gate));
        Self { name, config, metrics, bound, gate, condition, broken_headers }
    }

    /// The actual addresses for people to read: of a range, the first and the last port.
    #[must_use]
    pub fn shown(&self) -> Vec<String> {
        // Ports that the kernel has picked are no range, even if they happen to follow each other.
        let picked =
            |index: usize| matches!(self.config.bind.get(index), Some(BindAddr(Endpoint::Tcp(at))) if at.port() == 0);
        let follows = |index: usize| match (&self.bound[index - 1].0, &self.bound[index].0) {
            (Endpoint::Tcp(one), Endpoint::Tcp(next)) if !picked(index - 1) && !picked(index) => {
                one.ip() == next.ip() && one.port().checked_add(1) == Some(next.port())
            }
            _ => false,
        };
        let mut shown = Vec::new();
        let mut first = 0;
        while first < self.bound.len() {
            let mut last = first;
            while last + 1 < self.bound.len() && follows(last + 1) {
                last += 1;
            }
            match &self.bound[last].0 {
                Endpoint::Tcp(address) if last - first + 1 >= RANGE => {
                    shown.push(format!("{}-{}", self.bound[first], address.port()));
                }
                _ => shown.extend(self.bound[first..=last].iter().map(ToString::to_string)),
            }
            first = last + 1;
        }
        shown
    }

    /// Until when its sessions may stay, also those that it let in by an earlier config: then those that are left are
    /// reset. Taken back by `None`.
    pub fn set_drain_deadline(&self, at: Option<Millis>) {
        self.gate.deadline.set(at);
    }

    #[must_use]
    pub fn drain_deadline(&self) -> Option<Millis> {
        self.gate.deadline.get()
    }

    /// Sockets that can't accept just now; they are being bound again.
    #[must_use]
    pub fn broken(&self) -> usize {
        self.lock().broken
    }

    /// What an operator has said of it.
    #[must_use]
    pub fn admin(&self) -> AdminState {
        self.lock().admin
    }

    pub fn set_admin(&self, state: AdminState) {
        let mut condition = self.lock();
        condition.admin = state;
        self.metrics.up.set(condition.is_up().into());
    }

    /// Counts a socket as broken for as long as the guard lives.
    pub fn mark_broken(self: &Arc<Self>) -> BrokenSocket {
        let mut condition = self.lock();
        condition.broken += 1;
        self.metrics.up.set(condition.is_up().into());
        BrokenSocket { listener: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One socket of a listener that can't accept.
#[must_use = "the socket counts as broken only while this lives"]
pub struct BrokenSocket {
    listener: Arc<Listener>,
}

impl Drop for BrokenSocket {
    fn drop(&mut self) {
        let mut condition = self.listener.lock();
        condition.broken -= 1;
        self.listener.metrics.up.set(condition.is_up().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Around, Pressure, Process, SharedLimits};
    use crate::config::Config;
    use crate::metrics::Metrics;

    /// With this `bind`, bound there.
    fn listener(metrics: &Arc<Metrics>, bind: &str, bound: &[&str], previous: Option<&Listener>) -> Arc<Listener> {
        let text = format!("[listeners.a]\nbind = {bind}\npool = \"p\"\n[pools.p]\nbackends = []\n");
        let config = Config::parse("lb.toml", text.as_bytes()).unwrap().config;
        let process = Arc::new(Process::new(1, Pressure::default(), metrics));
        let shared = SharedLimits::new(&config, metrics, None);
        let around = Around { process: &process, shared: &shared, metrics, bounded_by_fds: false };
        let wanted = config.listeners[0].clone();
        let gate = Gate::new(&wanted.name, &wanted.admission, around, None);
        let handles = metrics.listener(&wanted.name, &["x"]);
        let bound = match bound {
            [] => wanted.bind.clone(),
            bound => bound.iter().map(|text| BindAddr(Endpoint::Tcp(text.parse().unwrap()))).collect(),
        };
        Arc::new(Listener::new(wanted, handles, bound, gate, previous))
    }

    fn shown(bind: &str, bound: &[&str]) -> Vec<String> {
        listener(&Arc::new(Metrics::new().unwrap()), bind, bound, None).shown()
    }

    #[test]
    fn what_is_broken_stays_so_with_another_config() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let old = listener(&metrics, "\"127.0.0.1:1\"", &[], None);
        let broken = old.mark_broken();
        let new = listener(&metrics, "\"127.0.0.1:1\"", &[], Some(&old));
        new.set_admin(AdminState::Enabled);
        assert_eq!((new.broken(), new.metrics.up.get()), (1, Some(0)));
        drop((old, broken));
        assert_eq!((new.broken(), new.metrics.up.get()), (0, Some(1)));
    }

    #[test]
    fn ranges_are_shown_as_ranges_and_picked_ports_never() {
        assert_eq!(
            shown("[\"127.0.0.1:8000-8099\", \"[::1]:8000-8001\"]", &[]),
            ["127.0.0.1:8000-8099", "[::1]:8000", "[::1]:8001"]
        );
        assert_eq!(
            shown("[\"unix:/run/a.sock\", \"127.0.0.1:65533-65535\"]", &[]),
            ["unix:/run/a.sock", "127.0.0.1:65533-65535"]
        );
        let picked = ["127.0.0.1:5001", "127.0.0.1:5002", "127.0.0.1:5003"];
        assert_eq!(shown("[\"127.0.0.1:0\", \"127.0.0.1:0\", \"127.0.0.1:0\"]", &picked), picked);
    }
}
