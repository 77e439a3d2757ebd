//! Why a session ended: the closed list that the log, the metrics and the choice of FIN or RST derive from.
//!
//! Owns the words. [`CloseReason::Complete`] is the only end in order; every other one is a reset.

use crate::admission::Refusal;
use crate::metrics::{Bound, Scope};
use crate::name::Side;
use crate::net::relay::{Order, RelayEnd};

/// The end of a session. The order is that of the metric's series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides sent their FIN.
    Complete,
    ClientReset,
    BackendReset,
    /// The client answers nothing any more: neither keepalive probes nor data are acknowledged.
    ClientLost,
    BackendLost,
    /// No byte in either direction for `idle_timeout`.
    IdleTimeout,
    /// One direction had ended, and the other was quiet for `half_close_timeout`.
    HalfCloseTimeout,
    /// The client's FIN ended the session, as `half_close_timeout = "0s"` asks for.
    ClientHalfClose,
    BackendHalfClose,
    /// No backend was available for the first attempt.
    NoBackend,
    /// Every attempt failed, or none was left to try.
    ConnectFailed,
    /// The pool's `connect.budget` was used up.
    ConnectBudget,
    /// This host had no file descriptor, port, memory or route for the connection to a backend.
    NoResources,
    /// Refused: `max_connections` was reached.
    MaxConnections,
    /// Refused: the listener's `max_connections` was reached.
    ListenerMaxConnections,
    /// Refused: the `max_connections` of a shared limit was reached.
    SharedMaxConnections,
    /// Refused: the client has as many connections as one may.
    ClientMaxConnections,
    /// Refused: connections came faster than `accept_rate`.
    AcceptRate,
    /// Refused: this client's connections came faster than `accept_rate_per_client`.
    ClientAcceptRate,
    /// Refused: by the lists of networks.
    Denied,
    /// Refused: the process's memory is nearly used up.
    LowMemory,
    /// Its first bytes did not tell in time where it leads.
    PrereadTimeout,
    /// Its first bytes did not tell within `preread_bytes` where it leads.
    PrereadTooLong,
    /// Its first bytes are broken, so that they can't tell where it leads.
    PrereadMalformed,
    /// A route refuses such clients.
    RouteRefused,
    /// No route takes it, and the listener has no pool of its own.
    NoRoute,
    /// The PROXY header did not come in time.
    ProxyTimeout,
    /// It began without the PROXY header that the listener requires.
    ProxyMissing,
    /// Its PROXY header is broken or too long.
    ProxyInvalid,
    /// The listener requires PROXY headers, and takes none from this address.
    ProxyUntrusted,
    /// Refused: a latency of the pool is above its target.
    Shed,
    /// Every backend had as many connections as it may, and the pool has no queue.
    BackendsFull,
    /// As many clients waited in the queue as may.
    QueueFull,
    /// It would not have got its place in time, as places were coming free.
    QueueHopeless,
    /// It has waited in the queue for `max_wait`.
    QueueTimeout,
    /// The client shut down its side while it waited, and the queue says `client_fin = "leave"`.
    ClientLeft,
    /// As many clients were held as may.
    HoldFull,
    /// It was held for `max_wait`, and there was still no backend.
    HoldTimeout,
    /// The process stopped and the session was still there at the drain deadline.
    DrainDeadline,
    /// The backend went down, and the pool says `on_down = "reset"`.
    BackendDown,
    /// The pool's `max_lifetime` was over.
    Lifetime,
    /// The pool's `rebalance` chose it, so that its client connects to a backend with fewer sessions.
    Rebalanced,
    /// An operator has ended it.
    ClosedByOperator,
    /// Its backend or listener was drained, and the time for that was over.
    Drained,
    /// A bug of ours.
    Panic,
}

impl CloseReason {
    pub const ALL: [Self; 45] = [
        Self::Complete,
        Self::ClientReset,
        Self::BackendReset,
        Self::ClientLost,
        Self::BackendLost,
        Self::IdleTimeout,
        Self::HalfCloseTimeout,
        Self::ClientHalfClose,
        Self::BackendHalfClose,
        Self::NoBackend,
        Self::ConnectFailed,
        Self::ConnectBudget,
        Self::NoResources,
        Self::MaxConnections,
        Self::ListenerMaxConnections,
        Self::SharedMaxConnections,
        Self::ClientMaxConnections,
        Self::AcceptRate,
        Self::ClientAcceptRate,
        Self::Denied,
        Self::LowMemory,
        Self::PrereadTimeout,
        Self::PrereadTooLong,
        Self::PrereadMalformed,
        Self::RouteRefused,
        Self::NoRoute,
        Self::ProxyTimeout,
        Self::ProxyMissing,
        Self::ProxyInvalid,
        Self::ProxyUntrusted,
        Self::Shed,
        Self::BackendsFull,
        Self::QueueFull,
        Self::QueueHopeless,
        Self::QueueTimeout,
        Self::ClientLeft,
        Self::HoldFull,
        Self::HoldTimeout,
        Self::DrainDeadline,
        Self::BackendDown,
        Self::Lifetime,
        Self::Rebalanced,
        Self::ClosedByOperator,
        Self::Drained,
        Self::Panic,
    ];

    /// The value of the metric's `reason` label and of the access log, at the index of the reason.
    pub const LABELS: [&'static str; Self::ALL.len()] = {
        let mut labels = [""; Self::ALL.len()];
        let mut index = 0;
        while index < labels.len() {
            labels[index] = Self::ALL[index].label();
            index += 1;
        }
        labels
    };

    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::ClientLost => "client_lost",
            Self::BackendLost => "backend_lost",
            Self::IdleTimeout => "idle_timeout",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::ClientHalfClose => "client_half_close",
            Self::BackendHalfClose => "backend_half_close",
            Self::NoBackend => "no_backend",
            Self::ConnectFailed => "connect_failed",
            Self::ConnectBudget => "connect_budget",
            Self::NoResources => "no_resources",
            Self::MaxConnections => "max_connections",
            Self::ListenerMaxConnections => "listener_max_connections",
            Self::SharedMaxConnections => "shared_max_connections",
            Self::ClientMaxConnections => "client_max_connections",
            Self::AcceptRate => "accept_rate",
            Self::ClientAcceptRate => "client_accept_rate",
            Self::Denied => "denied",
            Self::LowMemory => "low_memory",
            Self::PrereadTimeout => "preread_timeout",
            Self::PrereadTooLong => "preread_too_long",
            Self::PrereadMalformed => "preread_malformed",
            Self::RouteRefused => "route_refused",
            Self::NoRoute => "no_route",
            Self::ProxyTimeout => "proxy_timeout",
            Self::ProxyMissing => "proxy_missing",
            Self::ProxyInvalid => "proxy_invalid",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::Shed => "shed",
            Self::BackendsFull => "backends_full",
            Self::QueueFull => "queue_full",
            Self::QueueHopeless => "queue_hopeless",
            Self::QueueTimeout => "queue_timeout",
            Self::ClientLeft => "client_left",
            Self::HoldFull => "hold_full",
            Self::HoldTimeout => "hold_timeout",
            Self::DrainDeadline => "drain_deadline",
            Self::BackendDown => "backend_down",
            Self::Lifetime => "lifetime",
            Self::Rebalanced => "rebalanced",
            Self::ClosedByOperator => "closed_by_operator",
            Self::Drained => "drained",
            Self::Panic => "panic",
        }
    }

    /// Who ended the session: `both` sides in order, one side, or the `balancer`.
    #[must_use]
    pub const fn ended_by(self) -> &'static str {
        match self {
            Self::Complete => "both",
            Self::ClientReset | Self::ClientLost | Self::ClientHalfClose | Self::ClientLeft => "client",
            Self::BackendReset | Self::BackendLost | Self::BackendHalfClose | Self::ConnectFailed => "backend",
            Self::IdleTimeout
            | Self::HalfCloseTimeout
            | Self::NoBackend
            | Self::ConnectBudget
            | Self::NoResources
            | Self::MaxConnections
            | Self::ListenerMaxConnections
            | Self::SharedMaxConnections
            | Self::ClientMaxConnections
            | Self::AcceptRate
            | Self::ClientAcceptRate
            | Self::Denied
            | Self::LowMemory
            | Self::PrereadTimeout
            | Self::PrereadTooLong
            | Self::PrereadMalformed
            | Self::RouteRefused
            | Self::NoRoute
            | Self::ProxyTimeout
            | Self::ProxyMissing
            | Self::ProxyInvalid
            | Self::ProxyUntrusted
            | Self::Shed
            | Self::BackendsFull
            | Self::QueueFull
            | Self::QueueHopeless
            | Self::QueueTimeout
            | Self::HoldFull
            | Self::HoldTimeout
            | Self::DrainDeadline
            | Self::BackendDown
            | Self::Lifetime
            | Self::Rebalanced
            | Self::ClosedByOperator
            | Self::Drained
            | Self::Panic => "balancer",
        }
    }

    #[must_use]
    pub fn of_refusal(Refusal { scope, bound }: Refusal) -> Self {
        match (bound, scope) {
            (Bound::Connections, Scope::Process) => Self::MaxConnections,
            (Bound::Connections, Scope::Listener) => Self::ListenerMaxConnections,
            (Bound::Connections, Scope::Shared) => Self::SharedMaxConnections,
            (Bound::ConnectionsPerClient, _) => Self::ClientMaxConnections,
            (Bound::Rate, _) => Self::AcceptRate,
            (Bound::RatePerClient, _) => Self::ClientAcceptRate,
            (Bound::Access, _) => Self::Denied,
            (Bound::Memory, _) => Self::LowMemory,
        }
    }

    #[must_use]
    pub fn of_relay(end: RelayEnd) -> Self {
        match end {
            RelayEnd::Complete => Self::Complete,
            RelayEnd::Reset(Side::Client) => Self::ClientReset,
            RelayEnd::Reset(Side::Backend) => Self::BackendReset,
            RelayEnd::Lost(Side::Client, _) => Self::ClientLost,
            RelayEnd::Lost(Side::Backend, _) => Self::BackendLost,
            RelayEnd::IdleTimeout => Self::IdleTimeout,
            RelayEnd::HalfCloseTimeout => Self::HalfCloseTimeout,
            RelayEnd::HalfClosed(Side::Client) => Self::ClientHalfClose,
            RelayEnd::HalfClosed(Side::Backend) => Self::BackendHalfClose,
            RelayEnd::NoResources => Self::NoResources,
            RelayEnd::Aborted | RelayEnd::Ordered(Order::DrainDeadline) => Self::DrainDeadline,
            RelayEnd::Ordered(Order::BackendDown) => Self::BackendDown,
            RelayEnd::Lifetime => Self::Lifetime,
            RelayEnd::Ordered(Order::Rebalance) => Self::Rebalanced,
            RelayEnd::Ordered(Order::Operator) => Self::ClosedByOperator,
            RelayEnd::Ordered(Order::Drained) => Self::Drained,
            RelayEnd::Panicked => Self::Panic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_stands_at_its_own_index() {
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason:?}");
            assert_eq!(CloseReason::LABELS[index], reason.label());
        }
    }
}
