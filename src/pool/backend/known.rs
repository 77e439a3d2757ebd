//! What is known of a backend, as a process tells it to the one that takes its place.
//!
//! Owns the words and both directions. Moments are those of the first process's clock, which the next one goes on with
//! (`clock::go_on`). How many sessions a backend has isn't told: they stay where they are.

use super::{Backend, LastError, flag};
use crate::clock::{Millis, Now};
use crate::pool::ejection::{Ejection, Standing};
use crate::pool::health::{AgentReport, Damper};
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// All that probes, agent and traffic have shown of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    probes: Damper,
    /// Since when that is its verdict, as Unix time in ms.
    since_unix_ms: u64,
    traffic: Ejection,
    failures: u32,
    /// When a slow start began that isn't over.
    slow_start: Option<Millis>,
    agent: AgentReport,
    last_error: Option<LastError>,
}

impl Backend {
    /// What there is to tell; `None` if it has not been probed yet.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        let (_, since_unix_ms) = self.health();
        let rest = self.rest();
        self.is_known().then(|| Known {
            probes: rest.damper.clone(),
            since_unix_ms,
            traffic: rest.ejection.clone(),
            failures: self.failures.load(Relaxed),
            slow_start: rest.ramp,
            agent: rest.agent,
            last_error: rest.last_error.clone(),
        })
    }

    /// Takes what another process knew of it for its own knowledge; what an agent said only if it still `has_agent`.
    /// For a backend that nobody has used yet.
    pub fn believe(&self, known: &Known, slow_start: Duration, has_agent: bool, now: Now) {
        if has_agent {
            self.set_agent(&known.agent, Duration::ZERO, now.millis);
        }
        let mut rest = self.rest();
        rest.damper = known.probes.clone();
        rest.ejection = known.traffic.clone();
        rest.last_error.clone_from(&known.last_error);
        self.failures.store(known.failures, Relaxed);
        let bits = match rest.ejection.standing() {
            Standing::InService => 0,
            Standing::Ejected { .. } => flag::EJECTED,
            Standing::HalfOpen => flag::HALF_OPEN,
        };
        self.replace_flags(flag::EJECTED | flag::HALF_OPEN, bits);
        if let Some(begun) = known.slow_start {
            self.ramp(&mut rest, begun, slow_start, now.millis);
        }
        let verdict = rest.damper.verdict();
        self.store_health(&rest, verdict, known.since_unix_ms);
        drop(rest);
        self.set_known();
        self.believed.store(true, Relaxed);
    }

    /// Whether what is known of it came from another process.
    #[must_use]
    pub fn is_believed(&self) -> bool {
        self.believed.load(Relaxed)
    }

    /// Whether a probe has been made of it, by this process or by one before it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known.load(Relaxed)
    }

    /// From now on what is known of it is worth telling.
    pub fn set_known(&self) {
        self.known.store(true, Relaxed);
    }
}
