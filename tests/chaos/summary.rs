//! The printed summary: what the clients saw, what the balancer says it did, and how long they waited.

use crate::kit::Tidegate;
use crate::kit::metrics::Metrics;
use crate::load::Seen;
use crate::stalls::Stalls;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// The upper ends of the distribution's classes, in milliseconds.
const CLASSES: [u64; 10] = [1, 3, 10, 30, 100, 300, 1_000, 2_000, 3_000, 5_000];

pub fn of(tidegate: &Tidegate, seen: &Seen, stalls: &Stalls) -> String {
    let metrics = tidegate.metrics();
    let mut text = String::new();
    let Seen { short, half_closing, long, cut, later_requests, first, failures } = seen;
    writeln!(
        text,
        "\nclients: {} connections: {short} short ({half_closing} with a half-close), {long} long with {later_requests} more \
         requests ({cut} cut after their first answer); {} first answers, {} errors",
        short + long,
        first.len(),
        failures.len()
    )
    .unwrap();
    let total = |name: &str| metrics.sum(&format!("tidegate_{name}_total"), &[]) as u64;
    writeln!(
        text,
        "balancer: {} connections, {} failovers, {} hedges ({} won), {} replays, {} ejections, {} changes of state",
        total("listener_connections"),
        total("pool_failovers"),
        total("pool_hedges"),
        total("pool_hedges_won"),
        total("pool_replays"),
        total("backend_ejections"),
        total("backend_state_changes"),
    )
    .unwrap();
    for (what, name, label) in [
        ("ends", "tidegate_connections_closed_total", "reason"),
        ("failed connects", "tidegate_backend_connect_errors_total", "reason"),
        ("failures of traffic", "tidegate_backend_traffic_failures_total", "reason"),
        ("queue", "tidegate_pool_queue_outcomes_total", "outcome"),
        ("hold", "tidegate_pool_hold_outcomes_total", "outcome"),
        ("probes", "tidegate_backend_health_checks_total", "result"),
    ] {
        writeln!(text, "{what}: {}", by_label(&metrics, name, label)).unwrap();
    }
    writeln!(text, "attempts: {}", words(&attempts(tidegate))).unwrap();
    writeln!(text, "{}", stalls.summary()).unwrap();
    let took = first.iter().map(|exchange| stalls.took(*exchange)).collect();
    text.push_str(&distribution(took));
    text
}

fn by_label(metrics: &Metrics, name: &str, label: &str) -> String {
    let mut counts = BTreeMap::new();
    for value in metrics.values(name, label) {
        let count = metrics.sum(name, &[(label, &value)]) as u64;
        counts.insert(value, count);
    }
    words(&counts)
}

fn words(counts: &BTreeMap<String, u64>) -> String {
    let some = counts.iter().filter(|(_, count)| **count > 0);
    some.map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

/// What the attempts of all sessions came to, from the access log.
fn attempts(tidegate: &Tidegate) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in sessions(tidegate).lines() {
        let record: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        for attempt in record["attempts"].as_str().unwrap().split(", ").filter(|attempt| !attempt.is_empty()) {
            let outcome = attempt.split(' ').nth(1).unwrap();
            *counts.entry(outcome.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// The access log.
pub fn sessions(tidegate: &Tidegate) -> String {
    std::fs::read_to_string(tidegate.dir().join("sessions.log")).unwrap()
}

fn distribution(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let Some(longest) = took.last() else { return "no answers".to_owned() };
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let mut text = format!(
        "time to the answer: median {:.1?}, 99 % {:.1?}, 99.9 % {:.1?}, longest {longest:.1?}\n",
        at(0.5),
        at(0.99),
        at(0.999)
    );
    let mut below = 0;
    for class in CLASSES {
        let end = took.partition_point(|time| *time < Duration::from_millis(class));
        writeln!(text, "  below {class:5} ms: {}", end - below).unwrap();
        below = end;
    }
    writeln!(text, "  or more:        {}", took.len() - below).unwrap();
    text
}
