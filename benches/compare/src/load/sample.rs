//! What one window brings: counted here, sent from the process of the clients to the run as JSON, and kept in the
//! run's own JSON as it is. Data.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Trouble;

/// What one window brought.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    pub seconds: f64,
    /// Complete short connections.
    pub connections: u64,
    /// Complete requests on lasting connections.
    pub requests: u64,
    /// Bytes downloaded.
    pub bytes: u64,
    /// Bytes of uploads that have arrived at the backends.
    pub bytes_up: u64,
    /// CPU seconds. `None` where there is no proxy.
    pub proxy_cpu: Option<f64>,
    pub load_cpu: f64,
    pub server_cpu: f64,
    /// Of the whole machine: all time that its cores were not idle. In ticks.
    pub machine_cpu: f64,
    /// What a hypervisor gave to others while this machine wanted it. In ticks.
    pub stolen_cpu: f64,
    /// Of short connections from the connect to the last byte, of requests from the send to the last byte.
    pub latency: Option<Latency>,
    pub idle: Option<Idle>,
    pub storm: Option<Storm>,
    /// System calls a connection, by name.
    pub calls: Option<BTreeMap<String, f64>>,
    pub trouble: Trouble,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Idle {
    pub connections: u64,
    pub resident_before: u64,
    pub resident_after: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Storm {
    /// That were asked for.
    pub connections: u64,
    /// That never got their answer.
    pub failed: u64,
    /// From the first connect until the last answer; `None` if not all got theirs.
    pub all_served_s: Option<f64>,
}

impl Latency {
    /// Of a histogram of nanoseconds; `None` of an empty one.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1_000.0;
        let quantile = |at| microseconds(histogram.value_at_quantile(at));
        (!histogram.is_empty()).then(|| Self {
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: microseconds(histogram.max()),
        })
    }
}
