//! A pool as the config describes it: its members, its policy, and what protects its users.
//!
//! Owns plain data and defaults; what the file may say is `file` and `pools`. The health checks are in the parent.

use super::{Hash, Health, Hold, Origin, Queue, SendProxy, Shed};
use crate::name::{Endpoint, PoolName};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// `[pools.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    pub name: PoolName,
    pub balance: Balance,
    /// May be empty, if the file says so explicitly.
    pub members: Vec<Member>,
    pub protection: Protection,
    pub connect: Connect,
    pub origin: Origin,
    pub ejection: Ejection,
    pub health: Health,
    /// Of each backend that has none of its own.
    pub backend_max_connections: Option<u32>,
    pub queue: Option<Queue>,
    pub shed: Option<Shed>,
    pub hold: Option<Hold>,
    /// What [`Balance::SourceHash`] goes by; of that policy alone.
    pub hash: Option<Hash>,
    /// The PROXY header that backends get; `None` sends none.
    pub send_proxy: Option<SendProxy>,
}

impl Pool {
    /// A pool with every other key as it is by default.
    #[must_use]
    pub fn new(name: PoolName, balance: Balance, members: Vec<Member>) -> Self {
        let (protection, connect) = (Protection::default(), Connect::default());
        let hash = (balance == Balance::SourceHash).then(Hash::default);
        Self {
            name,
            balance,
            members,
            protection,
            connect,
            origin: Origin::default(),
            ejection: Ejection::default(),
            health: Health::default(),
            backend_max_connections: None,
            queue: None,
            shed: None,
            hold: None,
            hash,
            send_proxy: None,
        }
    }
}

/// What keeps a pool's users from harm, in `[pools.NAME]` itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// With a smaller share of a tier's backends available, in each tier, all enabled ones are used; zero never does.
    pub panic_threshold: Percent,
    /// With fewer available backends in the tiers so far, the next tier joins.
    pub min_available: u16,
    /// How long the tiers before must have been enough until one that has joined leaves.
    pub tier_hold: Duration,
    /// The time over which a backend that has come back gets its full share; zero gives it at once.
    pub slow_start: Duration,
    /// The most bytes of a client that are kept until the first answer byte; `None` keeps none.
    pub replay: Option<u32>,
    pub on_down: OnDown,
    /// A session that has lasted for this long, less a random tenth, is reset; `None` never is.
    pub max_lifetime: Option<Duration>,
    /// The share of a pool's sessions that may be moved to other backends in a minute; `None` moves none.
    pub rebalance: Option<Percent>,
}

/// What happens to the sessions of a backend that went down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    #[default]
    Keep,
    Reset,
}

impl OnDown {
    pub(super) const WORDS: [(&str, Self); 2] = [("keep", Self::Keep), ("reset", Self::Reset)];
}

/// `[pools.NAME.ejection]`: when real traffic alone sets a backend aside, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row after which a backend is ejected; `None` never ejects.
    pub consecutive_failures: Option<u16>,
    /// Times the number of ejections in a row, up to `max_time`.
    pub base_time: Duration,
    pub max_time: Duration,
    /// The most of a pool's backends that may be ejected at once; one always may.
    pub max_ejected: Percent,
    /// A connect that takes longer counts as a failure; `None` takes any time.
    pub slow_connect: Option<Duration>,
}

/// A share, in hundredths of a per cent: 0 to 100 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

impl Percent {
    /// So many whole per cent, 100 at most.
    #[must_use]
    pub const fn whole(percent: u16) -> Self {
        Self::hundredths(percent.saturating_mul(100))
    }

    /// So many hundredths of a per cent, 10,000 at most.
    #[must_use]
    pub const fn hundredths(hundredths: u16) -> Self {
        Self(if hundredths > 10_000 { 10_000 } else { hundredths })
    }

    /// All of it, in hundredths of a per cent.
    pub const WHOLE: u64 = 10_000;

    #[must_use]
    pub fn in_hundredths(self) -> u16 {
        self.0
    }

    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// From 0 to 1.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }

    /// This share of `count`, rounded down.
    #[must_use]
    pub fn of(self, count: usize) -> usize {
        count * usize::from(self.0) / 10_000
    }

    /// Whether `part` is less than this share of `whole`. Of nothing, nothing is less than any share.
    #[must_use]
    pub fn exceeds(self, part: usize, whole: usize) -> bool {
        part * 10_000 < whole * usize::from(self.0)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 100.0)?;
        f.write_str("%")
    }
}

/// How a pool chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    Random,
    LeastConnections,
    PowerOfTwo,
    PeakEwma,
    SourceHash,
    /// From `target = "failover:(…)"`.
    Failover(Group),
}

impl Balance {
    /// The words of the file; a failover group has none, since it comes from `target`.
    pub(super) const WORDS: [(&str, Self); 6] = [
        ("round_robin", Self::RoundRobin),
        ("random", Self::Random),
        ("least_connections", Self::LeastConnections),
        ("power_of_two", Self::PowerOfTwo),
        ("peak_ewma", Self::PeakEwma),
        ("source_hash", Self::SourceHash),
    ];

    /// The name that the config, `/status` and the metrics use.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastConnections => "least_connections",
            Self::PowerOfTwo => "power_of_two",
            Self::PeakEwma => "peak_ewma",
            Self::SourceHash => "source_hash",
            Self::Failover(_) => "failover",
        }
    }
}

/// A failover group: the first choice is random, the others follow in sequence. Groups nest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Group {
    /// An index into [`Pool::members`].
    Member(usize),
    /// Never empty; `Member` indices ascend from left to right through the whole tree.
    Any(Vec<Group>),
}

/// One entry of `backends`, or one target of a failover group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub address: Address,
    /// 1 to [`limits::MAX_WEIGHT`](super::limits::MAX_WEIGHT).
    pub weight: u16,
    /// 0 is used first; 0 to [`limits::MAX_TIER`](super::limits::MAX_TIER).
    pub tier: u8,
    /// Connections at once; `None` is the pool's `backend_max_connections`.
    pub max_connections: Option<u32>,
    /// What logs, metrics and `/status` call it, instead of its address.
    pub name: Option<String>,
    /// `lb.toml:14:9: pools.web.backends[2]`, for mistakes that show only when the name is resolved.
    pub place: String,
}

impl Member {
    /// A member with every other key as it is by default.
    #[must_use]
    pub fn new(address: Address, place: String) -> Self {
        Self { address, weight: 1, tier: 0, max_connections: None, name: None, place }
    }
}

/// Where a member is: an endpoint, or a host name still to be resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Endpoint(Endpoint),
    Host { host: Arc<str>, port: u16 },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => endpoint.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// `[pools.NAME.connect]`: the bound on finding a backend for one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect {
    /// For one attempt.
    pub timeout: Duration,
    /// Each on a backend not yet tried; 1 to [`limits::MAX_ATTEMPTS`](super::limits::MAX_ATTEMPTS).
    pub attempts: u8,
    /// For all attempts together; each gets the smaller of `timeout` and what remains of this.
    pub budget: Duration,
    /// When an attempt has not answered for this long, a second one starts beside it; `None` never does.
    pub hedge_after: Option<Duration>,
    /// The most of the pool's connections that may have a second attempt beside the first.
    pub hedge_share: Percent,
    /// Connects a second to one backend; what is more waits for its turn. `None` is without a limit.
    pub max_rate: Option<u32>,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            attempts: 3,
            budget: Duration::from_secs(10),
            hedge_after: None,
            hedge_share: Percent::whole(10),
            max_rate: None,
        }
    }
}

impl Default for Protection {
    fn default() -> Self {
        Self {
            panic_threshold: Percent::whole(50),
            min_available: 1,
            tier_hold: Duration::from_secs(10),
            slow_start: Duration::from_secs(30),
            replay: None,
            on_down: OnDown::default(),
            max_lifetime: None,
            rebalance: None,
        }
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: Some(5),
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(300),
            max_ejected: Percent::whole(10),
            slow_connect: None,
        }
    }
}
