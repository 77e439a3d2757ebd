//! The modes: what the clients do in one kind of window, and which figures come out of it. Data, so that a new mode
//! is one entry of `MODES` and a new figure one variant of `Figure`.

use clap::ValueEnum;

use crate::load::{Sample, Traffic};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum ModeName {
    Conn,
    Rr,
    Bulk,
    Mixed,
    Idle,
}

pub struct Mode {
    pub name: ModeName,
    pub title: &'static str,
    pub workload: Workload,
    pub cores: Cores,
    pub figures: &'static [Figure],
}

#[derive(Clone, Copy)]
pub enum Workload {
    Traffic(Traffic),
    /// The number of connections is an option of the run.
    Idle,
}

/// Who may run where, on a machine with at least two cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// The proxy has one core, clients and backends have the others.
    Split,
    /// Everybody may run anywhere.
    Shared,
}

const NONE: Traffic = Traffic { short: 0, pings: 0, downloads: 0, bytes: 64 };

pub const MODES: &[Mode] = &[
    Mode {
        name: ModeName::Conn,
        title: "conn: connect, 64 bytes there and back, close; 64 clients",
        workload: Workload::Traffic(Traffic { short: 64, ..NONE }),
        cores: Cores::Split,
        figures: &[Figure::CpuPerConnection, Figure::Connections, Figure::P50, Figure::P99, Figure::P999],
    },
    Mode {
        name: ModeName::Rr,
        title: "rr: 64 bytes there and back, again and again, on 64 connections",
        workload: Workload::Traffic(Traffic { pings: 64, ..NONE }),
        cores: Cores::Split,
        figures: &[Figure::CpuPerRequest, Figure::Requests, Figure::P50, Figure::P99, Figure::P999],
    },
    Mode {
        name: ModeName::Bulk,
        title: "bulk: 4 downloads",
        workload: Workload::Traffic(Traffic { downloads: 4, ..NONE }),
        cores: Cores::Split,
        figures: &[Figure::CpuPerGigabyte, Figure::Gigabits],
    },
    Mode {
        name: ModeName::Mixed,
        title: "mixed: rr on 8 connections beside 8 downloads",
        workload: Workload::Traffic(Traffic { pings: 8, downloads: 8, ..NONE }),
        cores: Cores::Shared,
        figures: &[Figure::Requests, Figure::Gigabits, Figure::P50, Figure::P99, Figure::P999],
    },
    Mode {
        name: ModeName::Idle,
        title: "idle: resident memory for each idle connection, after one echo on each",
        workload: Workload::Idle,
        cores: Cores::Split,
        figures: &[Figure::IdleBytes],
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Figure {
    CpuPerConnection,
    CpuPerRequest,
    CpuPerGigabyte,
    Connections,
    Requests,
    Gigabits,
    P50,
    P99,
    P999,
    IdleBytes,
}

impl Figure {
    /// Its heading, unit included.
    pub fn heading(self) -> &'static str {
        match self {
            Self::CpuPerConnection => "CPU µs/conn",
            Self::CpuPerRequest => "CPU µs/req",
            Self::CpuPerGigabyte => "CPU s/GB",
            Self::Connections => "conn/s",
            Self::Requests => "req/s",
            Self::Gigabits => "Gbit/s",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::IdleBytes => "bytes/conn",
        }
    }

    /// Its name for scripts.
    pub fn key(self) -> &'static str {
        match self {
            Self::CpuPerConnection => "cpu_us_per_connection",
            Self::CpuPerRequest => "cpu_us_per_request",
            Self::CpuPerGigabyte => "cpu_s_per_gb",
            Self::Connections => "connections_per_s",
            Self::Requests => "requests_per_s",
            Self::Gigabits => "gbit_per_s",
            Self::P50 => "latency_p50_us",
            Self::P99 => "latency_p99_us",
            Self::P999 => "latency_p999_us",
            Self::IdleBytes => "bytes_per_idle_connection",
        }
    }

    /// A rate: a throughput that no proxy at all should clearly win.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Connections | Self::Requests | Self::Gigabits)
    }

    pub fn is_latency(self) -> bool {
        matches!(self, Self::P50 | Self::P99 | Self::P999)
    }

    /// The figure of a window; `None` where the window has none of what it is about.
    pub fn of(self, sample: &Sample) -> Option<f64> {
        let each = |total: f64, count: u64| (count > 0).then(|| total / count as f64);
        match self {
            Self::CpuPerConnection => each(sample.proxy_cpu? * 1e6, sample.connections),
            Self::CpuPerRequest => each(sample.proxy_cpu? * 1e6, sample.requests),
            Self::CpuPerGigabyte => each(sample.proxy_cpu? * 1e9, sample.bytes),
            Self::Connections => Some(sample.connections as f64 / sample.seconds),
            Self::Requests => Some(sample.requests as f64 / sample.seconds),
            Self::Gigabits => Some(sample.bytes as f64 * 8.0 / 1e9 / sample.seconds),
            Self::P50 => sample.latency.map(|latency| latency.p50),
            Self::P99 => sample.latency.map(|latency| latency.p99),
            Self::P999 => sample.latency.map(|latency| latency.p999),
            Self::IdleBytes => {
                let idle = sample.idle?;
                each(idle.resident_after as f64 - idle.resident_before as f64, idle.connections)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Idle;

    #[test]
    fn figures_are_per_thing_and_absent_without_the_thing() {
        let sample = Sample {
            seconds: 2.0,
            connections: 1_000,
            bytes: 4_000_000_000,
            proxy_cpu: Some(1.0),
            idle: Some(Idle { connections: 10, resident_before: 5_000, resident_after: 4_000 }),
            ..Sample::default()
        };
        assert_eq!(Figure::CpuPerConnection.of(&sample), Some(1_000.0));
        assert_eq!(Figure::CpuPerRequest.of(&sample), None);
        assert_eq!(Figure::CpuPerGigabyte.of(&sample), Some(0.25));
        assert_eq!(Figure::Connections.of(&sample), Some(500.0));
        assert_eq!(Figure::Gigabits.of(&sample), Some(16.0));
        assert_eq!(Figure::P99.of(&sample), None);
        assert_eq!(Figure::IdleBytes.of(&sample), Some(-100.0));
        assert_eq!(Figure::CpuPerConnection.of(&Sample { proxy_cpu: None, ..sample }), None);
    }
}
