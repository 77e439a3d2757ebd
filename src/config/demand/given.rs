//! The keys of demand control, and of what type and range each value is.

use super::{ClientFin, Order, Overflow, Overload, Rate, cidr};
use crate::config::findings::{At, Complaint, Given, Placed};
use crate::config::section::Section;
use crate::config::{limits, unit};
use std::time::Duration;

/// Of a shared limit, and of a listener.
pub const LIMIT: &[&str] = &[
    "max_connections",
    "max_connections_per_client",
    "accept_rate",
    "burst",
    "accept_rate_per_client",
    "burst_per_client",
    "client_prefix_ipv4",
    "client_prefix_ipv6",
    "max_clients",
];
/// What a listener has besides.
pub const LISTENER: &[&str] = &[
    "limits",
    "reserved_connections",
    "allow",
    "deny",
    "overload",
    "dry_run",
    "rate_to_client",
    "rate_to_backend",
    "rate_burst",
];
pub const QUEUE: &[&str] = &["max_wait", "max_waiting", "order", "client_fin"];
pub const SHED: &[&str] = &["connect_time", "first_byte", "queue_time", "window", "dry_run"];
pub const HOLD: &[&str] = &["max_connections", "max_bytes", "max_bytes_each", "max_wait", "overflow", "release_rate"];

/// The keys of a limit, be it a shared one or a listener's own.
pub struct Limits {
    pub max_connections: Given<Option<usize>>,
    pub max_connections_per_client: Given<Option<u32>>,
    pub accept_rate: Given<Option<Rate>>,
    pub burst: Given<u32>,
    pub accept_rate_per_client: Given<Option<Rate>>,
    pub burst_per_client: Given<u32>,
    pub client_prefix_ipv4: Given<u8>,
    pub client_prefix_ipv6: Given<u8>,
    pub max_clients: Given<usize>,
}

/// The keys of a listener that say whom it serves.
pub struct Admission {
    pub limits: Limits,
    pub shared: Given<Vec<Placed<String>>>,
    pub reserved_connections: Given<usize>,
    pub allow: Given<Vec<Placed<String>>>,
    pub deny: Given<Vec<Placed<String>>>,
    pub overload: Given<Overload>,
    pub dry_run: Given<bool>,
}

/// The keys of a listener that say how fast.
pub struct Bandwidth {
    pub to_client: Given<Option<u64>>,
    pub to_backend: Given<Option<u64>>,
    pub burst: Given<u64>,
}

pub struct Queue {
    /// The table itself.
    pub at: At,
    pub max_wait: Given<Duration>,
    pub max_waiting: Given<usize>,
    pub order: Given<Order>,
    pub client_fin: Given<ClientFin>,
}

pub struct Shed {
    pub connect_time: Given<Option<Duration>>,
    pub first_byte: Given<Option<Duration>>,
    pub queue_time: Given<Option<Duration>>,
    pub window: Given<Duration>,
    pub dry_run: Given<bool>,
}

pub struct Hold {
    pub max_connections: Given<usize>,
    pub max_bytes: Given<u64>,
    pub max_bytes_each: Given<u64>,
    pub max_wait: Given<Duration>,
    pub overflow: Given<Overflow>,
    pub release_rate: Given<Rate>,
}

impl Limits {
    pub fn read(section: &Section) -> Self {
        Self {
            max_connections: section.integer_or_off("max_connections", &(1..=limits::MAX_CONNECTIONS)),
            max_connections_per_client: section.integer_or_off("max_connections_per_client", &(1..=u32::MAX)),
            accept_rate: section.rate_or_off("accept_rate"),
            burst: section.integer("burst", &(1..=limits::MAX_RATE)),
            accept_rate_per_client: section.rate_or_off("accept_rate_per_client"),
            burst_per_client: section.integer("burst_per_client", &(1..=limits::MAX_RATE)),
            client_prefix_ipv4: section.integer("client_prefix_ipv4", &(1..=32)),
            client_prefix_ipv6: section.integer("client_prefix_ipv6", &(1..=128)),
            max_clients: section.integer("max_clients", &(limits::MIN_CLIENTS..=limits::MAX_CLIENTS)),
        }
    }
}

impl Admission {
    pub fn read(section: &Section) -> Self {
        Self {
            limits: Limits::read(section),
            shared: section.texts("limits"),
            reserved_connections: section.integer("reserved_connections", &(0..=limits::MAX_CONNECTIONS)),
            allow: section.texts("allow"),
            deny: section.texts("deny"),
            overload: section.choice("overload", &Overload::WORDS),
            dry_run: section.boolean("dry_run"),
        }
    }
}

impl Bandwidth {
    pub fn read(section: &Section) -> Self {
        Self {
            to_client: section.parsed_or_off("rate_to_client", unit::byte_rate),
            to_backend: section.parsed_or_off("rate_to_backend", unit::byte_rate),
            burst: section.parsed("rate_burst", |text| unit::bytes(text, &limits::RATE_BURST)),
        }
    }
}

impl Queue {
    /// `None` if the table isn't there.
    pub fn read(pool: &Section) -> Option<Self> {
        let section = pool.section("queue", QUEUE).given()?;
        Some(Self {
            at: section.at.clone(),
            max_wait: section.duration("max_wait", &(limits::MIN_DURATION..=limits::MAX_DURATION)),
            max_waiting: section.integer("max_waiting", &(1..=limits::MAX_CONNECTIONS)),
            order: section.choice("order", &Order::WORDS),
            client_fin: section.choice("client_fin", &ClientFin::WORDS),
        })
    }
}

impl Shed {
    pub fn read(pool: &Section) -> Self {
        let section = pool.section("shed", SHED);
        let above_zero = limits::MIN_DURATION..=limits::MAX_DURATION;
        Self {
            connect_time: section.duration_or_off("connect_time", &above_zero),
            first_byte: section.duration_or_off("first_byte", &above_zero),
            queue_time: section.duration_or_off("queue_time", &above_zero),
            window: section.duration("window", &limits::SHED_WINDOW),
            dry_run: section.boolean("dry_run"),
        }
    }
}

impl Hold {
    /// `None` if the table isn't there.
    pub fn read(pool: &Section) -> Option<Self> {
        let section = pool.section("hold", HOLD).given()?;
        Some(Self {
            max_connections: section.integer("max_connections", &(1..=limits::MAX_CONNECTIONS)),
            max_bytes: section.parsed("max_bytes", |text| unit::bytes(text, &(1..=limits::MAX_HELD))),
            max_bytes_each: section.parsed("max_bytes_each", |text| unit::bytes(text, &(1..=limits::MAX_HELD_EACH))),
            max_wait: section.duration("max_wait", &(limits::MIN_DURATION..=limits::MAX_DURATION)),
            overflow: section.choice("overflow", &Overflow::WORDS),
            release_rate: section.rate("release_rate"),
        })
    }
}

/// The networks of a list, and where each stands; `judge` reports those that are none.
pub fn networks(
    list: &Given<Vec<Placed<String>>>,
    mut complain: impl FnMut(&Placed<String>, Complaint),
) -> Vec<Placed<super::Cidr>> {
    let texts = list.good().map(|placed| placed.value.as_slice()).unwrap_or_default();
    let read = |text: &Placed<String>| match cidr::parse(&text.value) {
        Ok(value) => Some(Placed { at: text.at.clone(), value }),
        Err(complaint) => {
            complain(text, complaint);
            None
        }
    };
    texts.iter().filter_map(read).collect()
}
