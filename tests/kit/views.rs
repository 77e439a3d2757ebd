//! What `/status`, `/metrics` and the access log say of a pool and its backends, in the words of a test.

use super::daemon::Tidegate;
use serde_json::Value;
use std::fmt::Display;

impl Tidegate {
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
