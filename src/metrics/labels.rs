//! The values of labels that are closed lists, as enums.

use std::fmt;

/// An enum of label values: `ALL` in the order of the discriminants, `as_str` the label.
macro_rules! labels {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The label's value, which is also the word for logs and `/status`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

labels! {
    /// Why a request to the admin endpoint was refused.
    AdminDenial {
        /// Without the token, or with another one.
        Token = "token",
        /// The same, and too many of them came in that second.
        TooMany = "too_many",
        /// A user, or a place, that may not.
        User = "user",
        /// Another site's page had it sent.
        Origin = "origin",
        /// It was for a name that isn't ours.
        Host = "host",
        /// It was to change something, but its form was wrong, or it was for what isn't there.
        Form = "form",
    }
}

labels! {
    /// Why a connect attempt failed.
    ConnectErrorReason {
        /// The peer said no: ECONNREFUSED, or a unix socket that isn't there.
        Refused = "refused",
        Timeout = "timeout",
        /// The host does not answer (EHOSTUNREACH, EHOSTDOWN).
        Unreachable = "unreachable",
        /// Established or nearly so, then reset.
        Reset = "reset",
        Other = "other",
        /// Our own shortage of file descriptors (EMFILE, ENFILE).
        NoFd = "no_fd",
        /// Our own shortage of local ports (EADDRNOTAVAIL).
        NoPort = "no_port",
        /// Our own shortage of kernel memory (ENOBUFS, ENOMEM).
        NoMemory = "no_memory",
        /// Our own host has no way there or forbids it (ENETUNREACH, ENETDOWN, EPERM, EACCES).
        NoRoute = "no_route",
    }
}

labels! {
    /// What came of a reload, or of a rollback.
    ReloadResult {
        Changed = "changed",
        /// It was in force already.
        Unchanged = "unchanged",
        Refused = "refused",
    }
}

impl ConnectErrorReason {
    /// Whether the fault is ours, and so says nothing about the backend.
    #[must_use]
    pub fn is_ours(self) -> bool {
        match self {
            Self::NoFd | Self::NoPort | Self::NoMemory | Self::NoRoute => true,
            Self::Refused | Self::Timeout | Self::Unreachable | Self::Reset | Self::Other => false,
        }
    }
}

labels! {
    /// How real traffic failed on a backend.
    TrafficFailure {
        /// The connection could not be established.
        Connect = "connect",
        /// It took longer than `slow_connect`.
        SlowConnect = "slow_connect",
        /// Reset, or lost, before the first answer byte.
        Reset = "reset",
        /// Ended in order before the first answer byte, and not by the client.
        Closed = "closed",
    }
}

labels! {
    /// What a probe came to.
    CheckResult {
        Success = "success",
        Failure = "failure",
        Timeout = "timeout",
        /// The probe could not be made for a reason of our own; the verdict stays what it was.
        Frozen = "frozen",
    }
}

labels! {
    /// The version of a PROXY header.
    ProxyVersion {
        V1 = "v1",
        V2 = "v2",
        /// There was none, or not enough of it to tell.
        None = "none",
    }
}

labels! {
    /// What a listener that takes PROXY headers has found of one.
    ProxyResult {
        /// The address of a client.
        Client = "client",
        /// The connection is the proxy's own.
        Local = "local",
        /// A client of which the proxy says nothing.
        Unknown = "unknown",
        /// No header, where none is needed.
        Absent = "absent",
        /// No header, where one is required.
        Missing = "missing",
        Invalid = "invalid",
        /// Where one is required, from an address that isn't believed.
        Untrusted = "untrusted",
        Timeout = "timeout",
    }
}

labels! {
    /// Which log.
    LogKind {
        Access = "access",
        /// The operational log.
        Ops = "ops",
    }
}

impl LogKind {
    pub(super) const BOTH: [Self; 2] = [Self::Access, Self::Ops];
}

labels! {
    /// What became of a client that came to the queue.
    QueueOutcome {
        Served = "served",
        /// As many waited as may.
        Full = "full",
        /// It would not have been served in time.
        Hopeless = "hopeless",
        /// It has waited for as long as one may.
        Timeout = "timeout",
        /// Its connection was reset, or the process stopped.
        Gone = "gone",
        /// It shut down its side.
        Left = "left",
        /// There was no backend any more that could have been waited for.
        NoBackend = "no_backend",
    }
}
