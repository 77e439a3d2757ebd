//! What becomes of the addresses that a process listens on when it gets another config.
//!
//! Owns the rule: a socket is kept if some listener of the new config has the same address, and the same of what can't
//! be set on a socket that listens. Ports that the kernel chooses are as many as they are.

use crate::config::{Config, Listener, Socket};
use crate::name::BindAddr;
use std::collections::HashMap;

/// By address, what each of its sockets needs.
pub struct Binds<'c> {
    to: HashMap<&'c BindAddr, Vec<Fixed<'c>>>,
    /// Of the old config; the index of a socket among those of its address.
    places: HashMap<(&'c str, &'c BindAddr), Vec<usize>>,
}

/// What a socket has from its making to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fixed<'c> {
    interface: Option<&'c str>,
    v6only: bool,
    transparent: bool,
    mptcp: bool,
}

impl<'c> Fixed<'c> {
    fn of(socket: &'c Socket) -> Self {
        let Socket { interface, v6only, transparent, mptcp, .. } = socket;
        Self { interface: interface.as_deref(), v6only: *v6only, transparent: *transparent, mptcp: *mptcp }
    }
}

impl<'c> Binds<'c> {
    pub fn of(from: &'c Config, to: &'c Config) -> Self {
        let mut binds = Self { to: HashMap::new(), places: HashMap::new() };
        for listener in &to.listeners {
            for bind in &listener.bind {
                binds.to.entry(bind).or_default().push(Fixed::of(&listener.socket));
            }
        }
        let mut counts: HashMap<&BindAddr, usize> = HashMap::new();
        for listener in &from.listeners {
            for bind in &listener.bind {
                let count = counts.entry(bind).or_default();
                binds.places.entry((listener.name.as_str(), bind)).or_default().push(*count);
                *count += 1;
            }
        }
        binds
    }

    /// What users of a listener of the old config will notice of its addresses.
    pub fn disruptive(&self, listener: &Listener) -> Option<String> {
        let mut gone = Vec::new();
        let mut anew = Vec::new();
        for bind in &listener.bind {
            let sockets = self.to.get(bind).map_or(&[][..], Vec::as_slice);
            let places = self.places.get(&(listener.name.as_str(), bind)).map_or(&[][..], Vec::as_slice);
            if places.iter().any(|&place| place >= sockets.len()) {
                gone.push(bind.to_string());
            } else if places.iter().any(|&place| sockets[place] != Fixed::of(&listener.socket)) {
                anew.push(bind.to_string());
            }
        }
        for addresses in [&mut gone, &mut anew] {
            addresses.dedup();
        }
        let gone = (!gone.is_empty()).then(|| format!("nobody can connect to {} any more", list(&gone)));
        let anew = (!anew.is_empty()).then(|| format!("{} is bound anew", list(&anew)));
        let parts: Vec<_> = gone.into_iter().chain(anew).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn list(addresses: &[String]) -> String {
    match addresses {
        [first, second, _, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second} and {} more", addresses.len() - 2)
        }
        all => all.join(", "),
    }
}
