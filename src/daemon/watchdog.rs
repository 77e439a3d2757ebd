//! Tells the service manager that the process lives, for as long as all of it does.
//!
//! Owns the rule: twice in each of the manager's spans, and only while no worker is stuck, for a worker that stands
//! still holds up its sessions for ever, which nothing but a restart mends. The other workers go on meanwhile, and
//! accept in its place. The control thread needs no proof of its own: if that stands still, nothing is told either.
//! Without a manager, or without a watchdog in the unit, there is nothing to do.

use super::gates::notify;
use crate::session::balance::{BEAT, Seats};
use sd_notify::NotifyState;
use std::future::pending;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::time::sleep;

/// Tells for ever. Before there are workers, none of them is stuck.
pub async fn feed(seats: Arc<OnceLock<Arc<Seats>>>) {
    let span = sd_notify::watchdog_enabled().filter(|span| !span.is_zero());
    let Some(span) = span else { return pending().await };
    let mut withheld = false;
    loop {
        let stuck = seats.get().and_then(|seats| seats.stuck(Instant::now()));
        if let Some(worker) = stuck {
            if !withheld {
                tracing::error!(worker, ?span, "a worker is stuck: the service manager's watchdog is not fed");
            }
        } else {
            notify(&[NotifyState::Watchdog]);
            if withheld {
                tracing::warn!("no worker is stuck any more: the service manager's watchdog is fed again");
            }
        }
        withheld = stuck.is_some();
        // One that is back is told of as soon as it is seen.
        sleep(if withheld { BEAT.min(span / 2) } else { span / 2 }).await;
    }
}
