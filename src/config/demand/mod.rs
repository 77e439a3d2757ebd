//! Demand control as the config describes it: limits of admission, bandwidth, queue, shedding and hold.
//!
//! Owns plain data and defaults; which keys there are is `given`, what is wrong with them `judge`.

mod cidr;
pub(super) mod given;
pub(super) mod judge;

pub use cidr::Cidr;

use crate::name::LimitName;
use std::fmt;
use std::time::Duration;

/// So many events in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// 1 to [`limits::MAX_RATE`](super::limits::MAX_RATE).
    pub count: u32,
    /// A second, a minute or an hour.
    pub per: Duration,
}

impl Rate {
    /// The units of the file.
    pub(super) const UNITS: [(&str, Duration); 3] =
        [("s", Duration::from_secs(1)), ("m", Duration::from_secs(60)), ("h", Duration::from_secs(3_600))];

    #[must_use]
    pub const fn per_second(count: u32) -> Self {
        Self { count, per: Duration::from_secs(1) }
    }

    /// The time from one event to the next, in ns, rounded up so that the rate is never exceeded.
    #[must_use]
    pub fn interval_nanos(self) -> u64 {
        (self.per.as_nanos() as u64).div_ceil(self.count.max(1).into())
    }

    /// A tenth of a second's worth, at least 1: what may come at once where the file says nothing else.
    #[must_use]
    pub fn default_burst(self) -> u32 {
        (100_000_000 / self.interval_nanos()).max(1) as u32
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = Self::UNITS.iter().find(|(_, span)| *span == self.per).map_or("s", |(unit, _)| unit);
        write!(f, "{}/{unit}", self.count)
    }
}

/// `[limits.NAME]`, and the same keys of a listener: bounds on connections and on the rate of new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: Option<usize>,
    pub max_connections_per_client: Option<u32>,
    pub accept_rate: Option<Rate>,
    /// Connections that may come at once; `None` is [`Rate::default_burst`].
    pub burst: Option<u32>,
    pub accept_rate_per_client: Option<Rate>,
    /// As `burst`, of one client.
    pub burst_per_client: Option<u32>,
    pub client_prefix: ClientPrefix,
    /// Clients remembered at once.
    pub max_clients: usize,
}

impl Limits {
    /// Whether there is nothing to ask.
    #[must_use]
    pub fn bounds_nothing(&self) -> bool {
        self.max_connections.is_none() && self.accept_rate.is_none() && !self.knows_clients()
    }

    /// Whether any of them needs to know who the client is.
    #[must_use]
    pub fn knows_clients(&self) -> bool {
        self.max_connections_per_client.is_some() || self.accept_rate_per_client.is_some()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            max_connections_per_client: None,
            accept_rate: None,
            burst: None,
            accept_rate_per_client: None,
            burst_per_client: None,
            client_prefix: ClientPrefix::default(),
            max_clients: 65_536,
        }
    }
}

/// How much of an address tells one client from another, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientPrefix {
    /// 1 to 32.
    pub ipv4: u8,
    /// 1 to 128.
    pub ipv6: u8,
}

impl Default for ClientPrefix {
    /// A subscriber's network has a /64 at least: RFC 6177, RFC 7421.
    fn default() -> Self {
        Self { ipv4: 32, ipv6: 64 }
    }
}

/// `[limits.NAME]`: counted together over all listeners that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedLimit {
    pub name: LimitName,
    pub limits: Limits,
}

/// What may be served at all on a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// Of this listener alone.
    pub limits: Limits,
    /// Those of [`Config::limits`](super::Config::limits) that it counts towards as well.
    pub shared: Vec<LimitName>,
    /// Of the process's connections, kept for this listener.
    pub reserved_connections: usize,
    /// If there are any, whoever is in none of them is refused. Of all that an address is in, allowed or denied, the
    /// longest prefix wins.
    pub allow: Vec<Cidr>,
    pub deny: Vec<Cidr>,
    /// `None` resets; but where the process is bounded by its file descriptors only, clients wait for these.
    pub overload: Option<Overload>,
    /// Refuses nobody, but counts whom it would have refused.
    pub dry_run: bool,
}

/// What a client finds that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// A reset, as soon as it is accepted.
    Reset,
    /// Nothing: it stays in the kernel's accept queue. Where the refusal depends on its address, a reset.
    Wait,
    /// A FIN.
    Close,
}

impl Overload {
    pub(in crate::config) const WORDS: [(&str, Self); 3] =
        [("reset", Self::Reset), ("wait", Self::Wait), ("close", Self::Close)];
}

/// What one session may move in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bandwidth {
    /// In bytes.
    pub to_client: Option<u64>,
    /// In bytes.
    pub to_backend: Option<u64>,
    /// What may go at once, in bytes, in each direction that has a limit.
    pub burst: u64,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self { to_client: None, to_backend: None, burst: 64 << 10 }
    }
}

/// `[pools.NAME.queue]`: clients wait for a place where all backends have as many connections as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub max_wait: Duration,
    pub max_waiting: usize,
    pub order: Order,
    pub client_fin: ClientFin,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            max_wait: Duration::from_secs(5),
            max_waiting: 1_000,
            order: Order::default(),
            client_fin: ClientFin::default(),
        }
    }
}

/// Who is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Who has waited longest.
    #[default]
    Fifo,
    /// Who came last.
    Lifo,
    /// Who has waited longest; but who came last, while the first has waited for more than half of `max_wait`.
    Adaptive,
}

impl Order {
    pub(in crate::config) const WORDS: [(&str, Self); 3] =
        [("fifo", Self::Fifo), ("lifo", Self::Lifo), ("adaptive", Self::Adaptive)];
}

/// What it means that a waiting client shuts down its side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientFin {
    /// It has said all that it has to say, and waits for its answer.
    #[default]
    Wait,
    /// It has gone.
    Leave,
}

impl ClientFin {
    pub(in crate::config) const WORDS: [(&str, Self); 2] = [("wait", Self::Wait), ("leave", Self::Leave)];
}

/// `[pools.NAME.shed]`: a rising share of new connections is refused while a latency stays above its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shed {
    /// Of a connect to a backend.
    pub connect_time: Option<Duration>,
    /// From a client's first byte to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// That one who joins the queue now would wait.
    pub queue_time: Option<Duration>,
    /// The lowest value of so long a time counts.
    pub window: Duration,
    /// Refuses nobody, but counts whom it would have refused.
    pub dry_run: bool,
}

impl Shed {
    /// The default of `window`. The interval of `CoDel` itself is 100 ms (RFC 8289, section 3.2), for packets; a
    /// connection is a slower thing, of which that many may see none.
    pub const DEFAULT_WINDOW: Duration = Duration::from_millis(500);
}

/// `[pools.NAME.hold]`: clients are kept, with what they send, while no backend is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    pub max_connections: usize,
    /// Of all of them together.
    pub max_bytes: u64,
    /// Of one of them.
    pub max_bytes_each: u64,
    pub max_wait: Duration,
    pub overflow: Overflow,
    /// Of those that are held, once there is a backend again.
    pub release_rate: Rate,
}

impl Default for Hold {
    /// As many as may be held go within two seconds, which leaves three of the five for the outage.
    fn default() -> Self {
        Self {
            max_connections: 1_000,
            max_bytes: 10 << 20,
            max_bytes_each: 16 << 10,
            max_wait: Duration::from_secs(5),
            overflow: Overflow::default(),
            release_rate: Rate::per_second(500),
        }
    }
}

/// Who is reset when there is one more than may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Who comes.
    #[default]
    Newest,
    /// Who has waited longest.
    Oldest,
}

impl Overflow {
    pub(in crate::config) const WORDS: [(&str, Self); 2] = [("newest", Self::Newest), ("oldest", Self::Oldest)];
}
