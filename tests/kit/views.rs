//! What `/status`, `/metrics` and the access log say of a pool and its backends, in the words of a test.

use super::daemon::Tidegate;
use super::metrics::Metrics;
use super::wait::{eventually, eventually_some};
use serde_json::Value;
use std::fmt::Display;
use std::fs;

impl Tidegate {
    pub fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics");
        assert_eq!(answer.status, 200);
        Metrics::parse(&answer.body)
    }

    /// `/status`.
    pub fn status(&self) -> Value {
        let answer = self.get("/status");
        assert_eq!(answer.status, 200);
        answer.json()
    }

    /// The one backend of this address or name in `/status`.
    pub fn backend_status(&self, backend: impl Display) -> Value {
        let (status, wanted) = (self.status(), backend.to_string());
        let pools = status["pools"].as_array().unwrap();
        pools
            .iter()
            .flat_map(|pool| pool["backends"].as_array().unwrap())
            .find(|backend| backend["address"] == wanted.as_str() || backend["name"] == wanted.as_str())
            .unwrap_or_else(|| panic!("no backend {wanted} in {status:#}"))
            .clone()
    }

    /// The number of the config in use.
    pub fn generation(&self) -> u64 {
        self.metrics().one("tidegate_config_generation", &[]) as u64
    }

    /// Sessions of all listeners, as the gauge has them.
    pub fn sessions(&self) -> u64 {
        self.metrics().sum("tidegate_listener_connections_active", &[]) as u64
    }

    /// Slots of all backends, as the gauge has them.
    pub fn slots(&self) -> u64 {
        self.metrics().sum("tidegate_backend_connections_active", &[]) as u64
    }

    /// How many sessions ended for this reason.
    pub fn closed(&self, reason: &str) -> u64 {
        self.metrics().sum("tidegate_connections_closed_total", &[("reason", reason)]) as u64
    }

    /// The first `count` lines of `$DIR/access.log`, which must be JSON; waits for them.
    pub fn records(&self, count: usize) -> Vec<Value> {
        let lines = self.access_lines(count);
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"))).collect()
    }

    /// The first `count` lines of `$DIR/access.log`; waits for them, and asserts that there are no more when nothing is
    /// going on.
    pub fn access_lines(&self, count: usize) -> Vec<String> {
        let path = self.dir().join("access.log");
        self.until_idle();
        let lines = eventually_some("the access log has its lines", || {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
            (lines.len() >= count && lines.iter().all(|line| line.ends_with('\n'))).then_some(lines)
        });
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }

    /// The pool `web` in `/status`.
    pub fn pool_status(&self) -> Value {
        let status = self.status();
        let pools = status["pools"].as_array().unwrap();
        pools.iter().find(|pool| pool["name"] == "web").unwrap_or_else(|| panic!("no pool web in {status:#}")).clone()
    }

    /// A backend's `state` in `/status`.
    pub fn state(&self, backend: impl Display) -> String {
        let status = self.backend_status(backend);
        status["state"].as_str().unwrap_or_else(|| panic!("no state in {status:#}")).to_owned()
    }

    /// A backend's `share` in `/status`: what slow start and its agent leave it of its weight.
    pub fn share(&self, backend: impl Display) -> f64 {
        let status = self.backend_status(backend);
        status["share"].as_f64().unwrap_or_else(|| panic!("no share in {status:#}"))
    }

    /// The sum of a metric over all labels, which must be whole.
    pub fn count(&self, metric: &str) -> u64 {
        self.metrics().sum(metric, &[]) as u64
    }

    /// The sum of a metric of one backend.
    pub fn count_of(&self, metric: &str, backend: impl Display) -> u64 {
        self.metrics().sum(metric, &[("backend", &backend.to_string())]) as u64
    }
}

/// The attempts of an access-log record: backend and outcome.
pub fn attempts(record: &Value) -> Vec<(String, String)> {
    let text = record["attempts"].as_str().unwrap_or_else(|| panic!("no attempts in {record}"));
    let pair = |one: &str| {
        let mut words = one.split(' ').map(str::to_owned);
        Some((words.next()?, words.next()?))
    };
    text.split(", ").filter(|one| !one.is_empty()).map(|one| pair(one).unwrap()).collect()
}

/// The same as `BACKEND OUTCOME`, in their order.
pub fn outcomes(record: &Value) -> Vec<String> {
    attempts(record).into_iter().map(|(backend, outcome)| format!("{backend} {outcome}")).collect()
}
