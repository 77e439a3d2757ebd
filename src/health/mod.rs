//! Active health checks: asks each backend now and then, and lets its pool's damper judge.
//!
//! Owns one task, the checker, which follows the routing table and probes what stands in it. `probe` is one question
//! to one backend, without state or retries, and `agent` what a backend says of itself; `schedule` says when each one's
//! turn is; `limit` keeps a flapping backend from flooding the log; the verdict and its streaks live in the backend
//! (`pool::health`), so a checker that is started again goes on where the last one was.
//!
//! Invariants: never more than [`MAX_PROBES`] at once, agents' included; a probe that failed for a reason of our own
//! changes nothing; the result of a probe whose target has gone meanwhile is dropped; time lost by the whole process
//! counts as one probe at most. Next: `checker`.

mod agent;
mod checker;
mod keeper;
mod limit;
mod probe;
mod schedule;
#[cfg(test)]
mod tests;
mod told;

pub use checker::{Inputs, run};
pub use keeper::keep;

/// The most probes under way at once, and so the most descriptors that health checks take.
pub const MAX_PROBES: usize = 256;
