//! On what terms a session is relayed: its limits in time and in bytes a second.
//!
//! Owns the two types and nothing else; `entry` keeps to the times, `rate` to the bandwidth.

use super::Millis;
use crate::config::Bandwidth;

/// The limits of a relayed session.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub timeouts: Timeouts,
    /// For each direction; what has come before the engine's time isn't counted, what it was given to deliver is.
    pub bandwidth: Bandwidth,
}

/// Its limits in time.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Without a byte in either direction.
    pub idle: Millis,
    /// Without a byte after one direction has ended; 0 ends the session with its first FIN.
    pub half_close: Millis,
    /// Without progress in delivering what was read before a reset is passed on.
    pub linger: Millis,
    /// Without a sign of life from a peer, after which the kernel asks for one; 0 never asks.
    pub keepalive: Millis,
    /// Without an answer from a peer that owes one; 0 waits for ever.
    pub unanswered: Millis,
    /// In the engine, whatever moves; 0 sets no limit.
    pub lifetime: Millis,
}

impl From<Timeouts> for Terms {
    /// Without a limit on bandwidth.
    fn from(timeouts: Timeouts) -> Self {
        Self { timeouts, bandwidth: Bandwidth::default() }
    }
}
