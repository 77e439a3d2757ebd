//! The keys of `[runtime]` that say what the process may do once it has bound its sockets.
//!
//! Owns the plain data, the keys' words, and what is wrong with them by themselves. Whether this host knows such a
//! user, and the dropping itself, are the daemon's.

use super::findings::{At, Findings, Given, Placed};
use super::section::Section;
use super::{Owner, socket, words};

/// What the process may still do while it serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Whom it becomes; `None` stays who it is, and drops nothing.
    pub user: Option<Owner>,
    /// `None` is the user's own group.
    pub group: Option<Owner>,
    /// What it keeps of root's powers, each once; all others are dropped for good.
    pub keep_capabilities: Vec<Capability>,
    pub landlock: Landlock,
}

/// What of root's powers a balancer may need while it serves. Source: capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Ports below 1024.
    NetBindService,
    /// Other hosts' addresses; since Linux 5.17, marks.
    NetRaw,
    /// Other hosts' addresses, and marks.
    NetAdmin,
}

impl Capability {
    const WORDS: [(&str, Self); 3] =
        [("net_bind_service", Self::NetBindService), ("net_raw", Self::NetRaw), ("net_admin", Self::NetAdmin)];

    /// The word of the file.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::WORDS.into_iter().find_map(|(word, capability)| (capability == self).then_some(word)).unwrap_or_default()
    }
}

/// Whether landlock(7) keeps the process to the files that it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landlock {
    #[default]
    Off,
    /// As far as the kernel can.
    On,
    /// As far as the kernel can, and a kernel that can't at all ends the start.
    Required,
}

impl Landlock {
    pub(super) const WORDS: [(&str, Self); 3] = [("off", Self::Off), ("on", Self::On), ("required", Self::Required)];
}

/// The keys of the table.
pub(super) struct GivenPrivileges {
    user: Given<Option<Owner>>,
    group: Given<Option<Owner>>,
    keep_capabilities: Given<Vec<Placed<String>>>,
    landlock: Given<Landlock>,
}

impl GivenPrivileges {
    pub fn read(runtime: &Section) -> Self {
        Self {
            user: runtime.parsed_or_off("user", |text| socket::owner(text, "a user")),
            group: runtime.parsed_or_off("group", |text| socket::owner(text, "a group")),
            keep_capabilities: runtime.texts("keep_capabilities"),
            landlock: runtime.choice("landlock", &Landlock::WORDS),
        }
    }

    pub fn judged(self, findings: &Findings) -> Privileges {
        let keeps_identity = match &self.user {
            Given::Absent => true,
            Given::Good(placed) => placed.value.is_none(),
            Given::Bad => false,
        };
        if keeps_identity {
            // Whoever writes it expects to be protected by it.
            if let Some(Placed { at, value: Some(_) }) = self.group.good() {
                findings.mistake(at, "a group alone changes nothing", "name a user too, or remove it");
            }
            if let Some(kept) = self.keep_capabilities.good().filter(|kept| !kept.value.is_empty()) {
                let message = "this has no effect: without a user, nothing is dropped";
                findings.warning(&kept.at, message, "name a user, or remove it");
            }
        }
        Privileges {
            keep_capabilities: capabilities(findings, &self.keep_capabilities),
            user: self.user.value_or(None),
            group: self.group.value_or(None),
            landlock: self.landlock.value_or(Landlock::default()),
        }
    }
}

fn capabilities(findings: &Findings, given: &Given<Vec<Placed<String>>>) -> Vec<Capability> {
    let mut kept = Vec::new();
    for Placed { at, value: text } in given.good().map(|placed| placed.value.as_slice()).unwrap_or_default() {
        match Capability::WORDS.into_iter().find(|(word, _)| word == text) {
            Some((_, capability)) if kept.contains(&capability) => {
                findings.warning(at, "the same capability is named twice", "remove one");
            }
            Some((_, capability)) => kept.push(capability),
            None => unknown(findings, at, text),
        }
    }
    kept
}

fn unknown(findings: &Findings, at: &At, text: &str) {
    let known = Capability::WORDS.map(|(word, _)| words::quoted(word));
    // As capabilities(7) writes it.
    let bare = text.to_ascii_lowercase();
    let bare = bare.strip_prefix("cap_").unwrap_or(&bare);
    let hint = match words::nearest(bare, Capability::WORDS.into_iter().map(|(word, _)| word)) {
        Some(meant) => format!("did you mean {}?", words::quoted(meant)),
        None => format!("use {}", words::any_of(&known)),
    };
    findings.mistake(at, format!("{} is not a capability that can be kept", words::quoted(text)), hint);
}
