//! The figures: what is computed from a window, how it is headed, and what scripts call it. Pure.
//!
//! Invariant: a figure of a window that has nothing of what the figure is about is absent, never zero or infinite.

use crate::load::Sample;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Figure {
    /// Of the proxy's processes.
    Cpu(Per),
    /// Of the whole machine: clients, backends, the kernel and strangers included.
    SystemCpu(Per),
    Connections,
    Requests,
    /// Both directions together.
    Gigabits,
    GigabitsDown,
    GigabitsUp,
    P50,
    P99,
    P999,
    IdleBytes,
    IdleCount,
    /// Of a storm: from the first connect until the last connection has its answer.
    AllServed,
    /// Of a storm.
    Failed,
    /// System calls a connection.
    Calls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    Connection,
    Request,
    Gigabyte,
}

impl Per {
    /// CPU seconds for each of these, in the unit of the heading.
    fn of(self, sample: &Sample, cpu: f64) -> Option<f64> {
        match self {
            Self::Connection => quotient(cpu * 1e6, sample.connections as f64),
            Self::Request => quotient(cpu * 1e6, sample.requests as f64),
            Self::Gigabyte => quotient(cpu * 1e9, (sample.bytes + sample.bytes_up) as f64),
        }
    }
}

impl Figure {
    /// Its heading, unit included.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Cpu(Per::Connection) => "CPU µs/conn",
            Self::Cpu(Per::Request) => "CPU µs/req",
            Self::Cpu(Per::Gigabyte) => "CPU s/GB",
            Self::SystemCpu(Per::Connection) => "system µs/conn",
            Self::SystemCpu(Per::Request) => "system µs/req",
            Self::SystemCpu(Per::Gigabyte) => "system s/GB",
            Self::Connections => "conn/s",
            Self::Requests => "req/s",
            Self::Gigabits => "Gbit/s",
            Self::GigabitsDown => "down",
            Self::GigabitsUp => "up",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::IdleBytes => "bytes/conn",
            Self::IdleCount => "connections",
            Self::AllServed => "all served ms",
            Self::Failed => "failed",
            Self::Calls => "calls/conn",
        }
    }

    /// Its name for scripts.
    pub fn key(self) -> &'static str {
        match self {
            Self::Cpu(Per::Connection) => "cpu_us_per_connection",
            Self::Cpu(Per::Request) => "cpu_us_per_request",
            Self::Cpu(Per::Gigabyte) => "cpu_s_per_gb",
            Self::SystemCpu(Per::Connection) => "system_cpu_us_per_connection",
            Self::SystemCpu(Per::Request) => "system_cpu_us_per_request",
            Self::SystemCpu(Per::Gigabyte) => "system_cpu_s_per_gb",
            Self::Connections => "connections_per_s",
            Self::Requests => "requests_per_s",
            Self::Gigabits => "gbit_per_s",
            Self::GigabitsDown => "gbit_per_s_down",
            Self::GigabitsUp => "gbit_per_s_up",
            Self::P50 => "latency_p50_us",
            Self::P99 => "latency_p99_us",
            Self::P999 => "latency_p999_us",
            Self::IdleBytes => "bytes_per_idle_connection",
            Self::IdleCount => "idle_connections",
            Self::AllServed => "all_served_ms",
            Self::Failed => "failed_connections",
            Self::Calls => "system_calls_per_connection",
        }
    }

    /// A throughput that no proxy at all should clearly win. More is better.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Connections | Self::Requests | Self::Gigabits)
    }

    /// Has a ratio with quartiles in columns of its own; the others put theirs behind the value.
    pub fn is_central(self) -> bool {
        matches!(
            self,
            Self::Cpu(_)
                | Self::Connections
                | Self::Requests
                | Self::Gigabits
                | Self::IdleBytes
                | Self::AllServed
                | Self::Calls
        )
    }

    /// What a mode asks for, so that a ratio of it says nothing.
    pub fn is_plain(self) -> bool {
        matches!(self, Self::IdleCount | Self::Failed)
    }

    /// The figure of a window; `None` where the window has none of what it is about.
    pub fn of(self, sample: &Sample) -> Option<f64> {
        let rate = |count: u64| quotient(count as f64, sample.seconds);
        let gigabits = |bytes: u64| quotient(bytes as f64 * 8.0 / 1e9, sample.seconds);
        match self {
            Self::Cpu(per) => per.of(sample, sample.proxy_cpu?),
            Self::SystemCpu(per) => per.of(sample, sample.machine_cpu),
            Self::Connections => rate(sample.connections),
            Self::Requests => rate(sample.requests),
            Self::Gigabits => gigabits(sample.bytes + sample.bytes_up),
            Self::GigabitsDown => gigabits(sample.bytes),
            Self::GigabitsUp => gigabits(sample.bytes_up),
            Self::P50 => sample.latency.map(|latency| latency.p50),
            Self::P99 => sample.latency.map(|latency| latency.p99),
            Self::P999 => sample.latency.map(|latency| latency.p999),
            Self::IdleBytes => {
                let idle = sample.idle?;
                quotient(idle.resident_after as f64 - idle.resident_before as f64, idle.connections as f64)
            }
            Self::IdleCount => Some(sample.idle?.connections as f64),
            Self::AllServed => Some(sample.storm?.all_served_s? * 1e3),
            Self::Failed => Some(sample.storm?.failed as f64),
            Self::Calls => Some(sample.calls.as_ref()?.values().sum()),
        }
    }
}

/// `None` where there is nothing to divide by.
fn quotient(total: f64, count: f64) -> Option<f64> {
    (count > 0.0).then(|| total / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Idle, Storm};

    #[test]
    fn figures_are_per_thing_and_absent_without_the_thing() {
        let sample = Sample {
            seconds: 2.0,
            connections: 1_000,
            bytes: 3_000_000_000,
            bytes_up: 1_000_000_000,
            proxy_cpu: Some(1.0),
            machine_cpu: 3.0,
            idle: Some(Idle { connections: 10, resident_before: 5_000, resident_after: 4_000 }),
            ..Sample::default()
        };
        assert_eq!(Figure::Cpu(Per::Connection).of(&sample), Some(1_000.0));
        assert_eq!(Figure::SystemCpu(Per::Connection).of(&sample), Some(3_000.0));
        assert_eq!(Figure::Cpu(Per::Request).of(&sample), None);
        assert_eq!(Figure::Cpu(Per::Gigabyte).of(&sample), Some(0.25));
        assert_eq!(Figure::Connections.of(&sample), Some(500.0));
        assert_eq!(Figure::Gigabits.of(&sample), Some(16.0));
        assert_eq!(Figure::GigabitsUp.of(&sample), Some(4.0));
        assert_eq!(Figure::P99.of(&sample), None);
        assert_eq!(Figure::IdleBytes.of(&sample), Some(-100.0));
        assert_eq!(Figure::Calls.of(&sample), None);
        assert_eq!(Figure::Cpu(Per::Connection).of(&Sample { proxy_cpu: None, ..sample }), None);
    }

    #[test]
    fn a_window_of_no_length_has_no_rate() {
        let sample = Sample { requests: 1, ..Sample::default() };
        assert_eq!(Figure::Requests.of(&sample), None);
        assert_eq!(Figure::Gigabits.of(&sample), None);
    }

    #[test]
    fn a_storm_that_lost_somebody_has_no_time_until_all_were_served() {
        let storm = Storm { connections: 3, failed: 1, all_served_s: None };
        let lost = Sample { storm: Some(storm), ..Sample::default() };
        assert_eq!((Figure::AllServed.of(&lost), Figure::Failed.of(&lost)), (None, Some(1.0)));
        let all = Storm { failed: 0, all_served_s: Some(0.5), ..storm };
        assert_eq!(Figure::AllServed.of(&Sample { storm: Some(all), ..lost }), Some(500.0));
    }

    #[test]
    fn calls_are_summed_over_their_names() {
        let calls = [("read".to_owned(), 2.0), ("write".to_owned(), 1.5)];
        let sample = Sample { calls: Some(calls.into()), ..Sample::default() };
        assert_eq!(Figure::Calls.of(&sample), Some(3.5));
    }
}
