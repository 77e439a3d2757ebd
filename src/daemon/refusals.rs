//! Says in the log that clients are refused, or wait for a limit before they are accepted, and why; and that it is
//! over.
//!
//! Owns the rule (pure, [`Watch`]) and the task that looks once a second at what each listener has counted. Invariant:
//! however many are concerned, a listener has at most two lines of each kind in [`LINE_EVERY`]. Each client has its
//! own line in the access log, where there is one. May panic and be run again: it then begins with what has been
//! counted since the start, which is told at once.

use crate::name::ListenerName;
use crate::session::close::CloseReason;
use crate::table::{Listener, RoutingTable};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval};

/// How late a refusal may be told of.
const LOOK: Duration = Duration::from_secs(1);
/// Between two lines about one listener; and for how long it must refuse nobody, or let nobody wait, until that is
/// told.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// The ends that mean "too many": by a limit, before a backend, or while there is none.
const REFUSALS: [CloseReason; 14] = [
    CloseReason::MaxConnections,
    CloseReason::ListenerMaxConnections,
    CloseReason::SharedMaxConnections,
    CloseReason::ClientMaxConnections,
    CloseReason::AcceptRate,
    CloseReason::ClientAcceptRate,
    CloseReason::Denied,
    CloseReason::LowMemory,
    CloseReason::Shed,
    CloseReason::BackendsFull,
    CloseReason::QueueFull,
    CloseReason::QueueHopeless,
    CloseReason::QueueTimeout,
    CloseReason::HoldFull,
];

/// How often each of [`REFUSALS`] was the end.
type Counts = [u64; REFUSALS.len()];

/// What has been said of a listener, of one kind.
#[derive(Debug, Default)]
struct Watch {
    /// As the last line told.
    counts: Counts,
    /// When it was told that it is so; `None` once it was told that it is over.
    told: Option<Instant>,
}

/// What there is to say.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// So many since the last line.
    More(Counts),
    Over,
}

impl Watch {
    fn look(&mut self, counts: Counts, now: Instant) -> Option<Line> {
        if self.told.is_some_and(|told| now.duration_since(told) < LINE_EVERY) {
            return None;
        }
        if counts == self.counts {
            return self.told.take().map(|_| Line::Over);
        }
        let before = std::mem::replace(&mut self.counts, counts);
        self.told = Some(now);
        Some(Line::More(std::array::from_fn(|index| counts[index].saturating_sub(before[index]))))
    }
}

impl Line {
    fn write_refusals(&self, listener: &ListenerName) {
        let Self::More(counts) = self else {
            return tracing::info!(%listener, "no client is refused any more");
        };
        let refused: u64 = counts.iter().sum();
        let reasons = reasons(counts);
        if is_by_demand(counts) {
            tracing::warn!(%listener, refused, %reasons, "clients are refused: docs/demand.md says what to do");
        } else {
            tracing::info!(%listener, refused, %reasons, "single clients are refused");
        }
    }

    fn write_delays(&self, listener: &ListenerName) {
        let Self::More(counts) = self else {
            return tracing::info!(%listener, "no client waits to be accepted any more");
        };
        let limits = names(counts);
        tracing::warn!(%listener, %limits, "clients wait to be accepted: docs/demand.md says what to do");
    }
}

/// `queue_full=3 shed=17`.
fn reasons(counts: &Counts) -> String {
    let some = REFUSALS.iter().zip(counts).filter(|(_, count)| **count > 0);
    some.map(|(reason, count)| format!("{}={count}", reason.label())).collect::<Vec<_>>().join(" ")
}

/// `max_connections accept_rate`.
fn names(counts: &Counts) -> String {
    let some = REFUSALS.iter().zip(counts).filter(|(_, count)| **count > 0);
    some.map(|(reason, _)| reason.label()).collect::<Vec<_>>().join(" ")
}

/// Whether there is more demand than can be met, and not only single clients that ask for too much or aren't welcome:
/// what one client does is no reason to alarm anybody.
fn is_by_demand(counts: &Counts) -> bool {
    let by_client = [CloseReason::ClientMaxConnections, CloseReason::ClientAcceptRate, CloseReason::Denied];
    REFUSALS.iter().zip(counts).any(|(reason, count)| *count > 0 && !by_client.contains(reason))
}

fn counts(listener: &Listener) -> Counts {
    REFUSALS.map(|reason| listener.metrics.closed[reason as usize].get())
}

/// How often clients were found waiting for what would refuse them elsewhere.
fn delays(listener: &Listener) -> Counts {
    let mut counts = Counts::default();
    for (why, delays) in listener.gate.delays() {
        let reason = CloseReason::of_refusal(why);
        if let Some(at) = REFUSALS.iter().position(|known| *known == reason) {
            counts[at] += delays;
        }
    }
    counts
}

/// Looks for ever.
pub async fn tell(table: Arc<ArcSwap<RoutingTable>>) {
    let mut watches: HashMap<ListenerName, [Watch; 2]> = HashMap::new();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = tick.tick().await.into_std();
        let table = table.load_full();
        watches.retain(|name, _| table.listeners.iter().any(|listener| listener.name == *name));
        for listener in &table.listeners {
            let [refused, delayed] = watches.entry(listener.name.clone()).or_default();
            if let Some(line) = refused.look(counts(listener), now) {
                line.write_refusals(&listener.name);
            }
            if let Some(line) = delayed.look(delays(listener), now) {
                line.write_delays(&listener.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shed(count: u64) -> Counts {
        REFUSALS.map(|reason| if reason == CloseReason::Shed { count } else { 0 })
    }

    #[test]
    fn the_first_refusal_is_told_at_once_and_the_rest_now_and_then() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        let mut look = |second: u64, count| watch.look(shed(count), begun + Duration::from_secs(second));
        assert_eq!(look(0, 0), None);
        assert_eq!(look(1, 3), Some(Line::More(shed(3))));
        assert_eq!((look(2, 50), look(30, 900)), (None, None));
        assert_eq!(look(31, 1_000), Some(Line::More(shed(997))));
        assert_eq!(look(60, 1_000), None);
        assert_eq!(look(61, 1_000), Some(Line::Over));
        assert_eq!((look(62, 1_000), look(3_600, 1_000)), (None, None));
        assert_eq!(look(3_601, 1_001), Some(Line::More(shed(1))));
    }

    #[test]
    fn a_flood_is_no_flood_of_lines() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        let lines = (0..3_600).filter_map(|second| {
            // At times there is a minute without any.
            let count = if second % 120 < 60 { second } else { second / 120 * 120 + 60 };
            watch.look(shed(count), begun + Duration::from_secs(second))
        });
        let lines = lines.count();
        assert!((60..=2 * 120).contains(&lines), "{lines} lines in an hour");
    }

    #[test]
    fn reasons_have_their_numbers_and_single_clients_are_no_alarm() {
        let mut both = shed(17);
        both[3] = 4;
        assert_eq!(reasons(&both), "client_max_connections=4 shed=17");
        assert!(is_by_demand(&both));
        both[8] = 0;
        assert_eq!(reasons(&both), "client_max_connections=4");
        assert!(!is_by_demand(&both));
    }

    #[test]
    fn every_refusal_of_admission_is_among_them() {
        use crate::admission::Refusal;
        use crate::metrics::{Bound, Scope};
        for scope in [Scope::Process, Scope::Listener, Scope::Shared] {
            for bound in [
                Bound::Access,
                Bound::Connections,
                Bound::ConnectionsPerClient,
                Bound::Rate,
                Bound::RatePerClient,
                Bound::Memory,
            ] {
                assert!(REFUSALS.contains(&CloseReason::of_refusal(Refusal { scope, bound })), "{scope:?} {bound:?}");
            }
        }
    }
}
