//! What a backend's counts, verdicts and agent come to.

use super::*;
use crate::metrics::Metrics;
use crate::name::{Endpoint, PoolName};
use crate::pool::health::AgentAdmin;

fn at(unix_ms: u64) -> Now {
    Now { millis: unix_ms, unix_ms }
}

fn backend(health: Health) -> Backend {
    let address = BackendAddr(Endpoint::Tcp("192.0.2.1:80".parse().unwrap()));
    let metrics = Arc::new(Metrics::new().unwrap()).backend(&PoolName::new("web"), "a");
    Backend::new(&address, &"a".into(), metrics, Default::default(), health, at(5))
}

#[test]
fn a_slot_counts_while_it_lives() {
    let backend = Arc::new(backend(Health::Up));
    let slots = [backend.claim().unwrap(), backend.claim().unwrap()];
    assert_eq!((backend.active(), backend.metrics.active.get()), (2, 2));
    drop(slots);
    assert_eq!((backend.active(), backend.metrics.active.get()), (0, 0));
    assert_eq!(backend.metrics.connections_total.get(), 0, "none was established");
}

#[test]
fn slots_never_exceed_the_maximum() {
    let backend = Arc::new(backend(Health::Up));
    backend.set_max_active(Some(3));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let slot = backend.claim();
                    assert!(backend.active() <= 3);
                    drop(slot);
                }
            });
        }
    });
    let slots: Vec<Slot> = (0..3).map(|_| backend.claim().unwrap()).collect();
    assert_eq!(backend.claim().err(), Some(Full));
    assert!(backend.is_full() && backend.available(), "busy, and well");
    drop(slots);
    assert!(!backend.is_full() && backend.active() == 0);
}

#[test]
fn a_verdict_is_seen_with_its_time() {
    let backend = backend(Health::Down);
    let config = config::Health::default();
    assert_eq!((backend.health(), backend.metrics.up.get()), ((Health::Down, 5), Some(0)));
    assert_eq!(backend.observe(Outcome::Success, &config, Duration::ZERO, at(6)), Some(Health::Up));
    assert_eq!((backend.health(), backend.metrics.up.get()), ((Health::Up, 6), Some(1)));
    assert_eq!(backend.observe(Outcome::Success, &config, Duration::ZERO, at(7)), None);
    assert_eq!(backend.metrics.state_changes.get(), 1);
    assert_eq!(backend.health(), (Health::Up, 6), "since when it stands, not when it was last confirmed");
}

#[test]
fn an_agent_takes_out_gives_back_and_weighs_and_says_only_what_it_says() {
    let (backend, slow_start) = (backend(Health::Up), Duration::from_secs(10));
    let hear = |line: (Option<Health>, Option<AgentAdmin>, Option<u8>)| {
        let report = AgentReport { state: line.0, admin: line.1, weight: line.2 };
        backend.set_agent(&report, slow_start, 1_000);
        (backend.state(), backend.share(), backend.metrics.up.get().unwrap())
    };
    assert_eq!(hear((None, None, Some(50))), ("up", WHOLE_SHARE / 2, 1));
    assert_eq!(hear((None, Some(AgentAdmin::Drain), None)), ("agent_draining", WHOLE_SHARE / 2, 1));
    assert_eq!(hear((None, None, Some(0))).0, "agent_draining");
    assert_eq!(
        hear((None, None, Some(100))),
        ("agent_draining", WHOLE_SHARE, 1),
        "the weight is back, the drain stays"
    );
    assert_eq!(hear((None, Some(AgentAdmin::Ready), None)), ("up", WHOLE_SHARE, 1));
    assert_eq!(hear((Some(Health::Down), None, None)), ("down", WHOLE_SHARE, 0));
    assert_eq!(backend.health().0, Health::Up, "the probes' verdict is another matter");
    assert_eq!(hear((None, Some(AgentAdmin::Maint), None)), ("maint", WHOLE_SHARE, 0));
    assert_eq!(hear((None, Some(AgentAdmin::Ready), None)), ("down", WHOLE_SHARE, 0));
    assert_eq!(hear((Some(Health::Up), None, None)), ("up", 102, 1), "it comes back slowly");
    assert_eq!(backend.metrics.state_changes.get(), 2);
    let again = AgentReport { state: Some(Health::Up), ..AgentReport::default() };
    assert!(!backend.set_agent(&again, slow_start, 2_000), "nothing new");
}

#[test]
fn an_agent_is_heard_after_a_slow_start_that_ended_by_rounding() {
    let (backend, slow_start, config) = (backend(Health::Up), Duration::from_secs(30), config::Health::default());
    for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Success] {
        backend.observe(outcome, &config, slow_start, at(1_000));
    }
    backend.tick(&config::Ejection::default(), slow_start, 30_990);
    assert_eq!((backend.share(), backend.flags()), (WHOLE_SHARE, 0), "whole, 10 ms before its time");
    let half = AgentReport { weight: Some(50), ..AgentReport::default() };
    backend.set_agent(&half, slow_start, 90_000);
    assert_eq!(backend.share(), WHOLE_SHARE / 2);
}

#[test]
fn an_error_of_ours_is_not_the_backends() {
    let backend = backend(Health::Up);
    backend.connect_failed(ConnectErrorReason::NoPort, "no local port", 6);
    assert_eq!(backend.last_error(), None);
    backend.connect_failed(ConnectErrorReason::Refused, "refused", 7);
    assert_eq!(backend.last_error(), Some(LastError { text: "refused".into(), at_unix_ms: 7 }));
}
