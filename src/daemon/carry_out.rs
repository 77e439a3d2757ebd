//! Which part of the daemon carries out which command.
//!
//! Owns the refusal of what can't be done during a stop. Next: each arm.

use super::{Daemon, Stop};
use crate::admin::command::{Call, Refused, Why};

impl Daemon<'_> {
    /// Carries out one command and answers it; who asked may have gone.
    pub(super) fn carry_out(&self, call: Call, stop: Stop) {
        let refused = |text: &str| Err(Refused { why: Why::Conflict, text: text.to_owned() });
        let reply = match stop {
            Stop::No => refused(&format!("generation {} can't be changed", self.config.listeners.len())),
            _ => refused("the process is stopping"),
        };
        let Call { command, by, reply: answer } = call;
        tracing::warn!(%by, ?command, "refused");
        let _ = answer.send(reply);
    }
}
