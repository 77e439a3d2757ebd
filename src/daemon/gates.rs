//! What the process tells others about itself: where it is bound, and systemd how far it is.
//!
//! Owns the format of the announcement line (one JSON object), which tests and scripts parse.

use crate::name::BindAddr;
use crate::table::Listener;
use sd_notify::NotifyState;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where everything is bound, ports of 0 replaced by the kernel's choice.
#[derive(Serialize)]
pub struct Announcement {
    ready: bool,
    pid: u32,
    /// The first of the admin endpoint's addresses, and all of them.
    admin: Option<String>,
    admins: Vec<String>,
    listeners: BTreeMap<String, Vec<String>>,
}

impl Announcement {
    pub fn new<'a>(admins: impl Iterator<Item = &'a BindAddr>, listeners: &[Arc<Listener>]) -> Self {
        let admins: Vec<String> = admins.map(ToString::to_string).collect();
        Self {
            ready: true,
            pid: std::process::id(),
            admin: admins.first().cloned(),
            admins,
            listeners: listeners.iter().map(|listener| (listener.name.to_string(), listener.shown())).collect(),
        }
    }

    pub fn log(&self) {
        for (listener, addresses) in &self.listeners {
            tracing::info!(listener, addresses = addresses.join(" "), "listening");
        }
        let admin = if self.admins.is_empty() { "off".to_owned() } else { self.admins.join(" ") };
        tracing::info!(admin, "ready");
    }

    /// Whoever asked for the line and doesn't read it has lost it; that is no reason to stop.
    pub fn print(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        }
    }
}

/// Tells systemd that a config is being taken.
pub fn notify_reloading() {
    let mut states = vec![NotifyState::Reloading];
    // Without the time, only a unit of `Type=notify-reload` would miss it.
    states.extend(NotifyState::monotonic_usec_now());
    notify(&states);
}

/// Tells systemd that this is over, and how things are.
pub fn notify_reloaded(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Another process speaks with the service manager in this one's place.
static SILENT: AtomicBool = AtomicBool::new(false);

/// Whether the service manager listens to this process.
pub fn may_speak() -> bool {
    !SILENT.load(Ordering::Relaxed)
}

/// From now on the service manager hears of this process no more.
pub fn fall_silent() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Tells systemd, where there is one.
pub fn notify(states: &[NotifyState<'_>]) {
    if may_speak()
        && let Err(error) = sd_notify::notify(states)
    {
        tracing::warn!(%error, "can't notify the service manager");
    }
}
