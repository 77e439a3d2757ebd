//! Every metric family once: its name, its help, its labels, and for histograms its buckets.
//!
//! Owns the vocabulary and nothing else; what holds the numbers is `mod`. Base units only (seconds, bytes), and
//! never a client's address as a label: the number of series must follow the config, not the traffic.

/// What a family is called and says. A label whose values are constants of the code, such as a reason, stands last.
#[derive(Debug)]
pub struct Name {
    pub name: &'static str,
    pub help: &'static str,
    pub labels: &'static [&'static str],
    /// Upper bounds; empty for everything but a histogram.
    pub buckets: &'static [f64],
}

macro_rules! names {
    ($($const:ident = $name:literal [$($label:literal),*] $(in $buckets:ident)? : $help:literal;)*) => {
        $(pub const $const: Name = Name {
            name: $name,
            help: $help,
            labels: &[$($label),*],
            buckets: names!(@buckets $($buckets)?),
        };)*

        /// All of the above, so that a test can judge them together.
        #[cfg(test)]
        pub const ALL: &[&Name] = &[$(&$const),*];
    };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

names! {
    BUILD_INFO = "tidegate_build_info" ["version"]:
        "Always 1; the label says which build this is.";
    CONFIG_GENERATION = "tidegate_config_generation" []:
        "The number of the routing table in force; it grows by one with each successful reload.";
    CONFIG_INFO = "tidegate_config_info" ["hash"]:
        "Always 1; the label says which config is in force, by the xxh3 hash of its text.";
    CONFIG_LAST_RELOAD_SUCCESS = "tidegate_config_last_reload_success" []:
        "1 if the config that was asked for last is in force, 0 if it was refused.";
    CONFIG_LAST_RELOAD_TIMESTAMP = "tidegate_config_last_reload_timestamp_seconds" []:
        "When a config was taken last, or found to be in force already, in Unix time; at first the start.";
    CONFIG_RELOADS = "tidegate_config_reloads_total" ["result"]:
        "Configs asked for since the start, by reload or rollback, by what came of it.";
    MAX_CONNECTIONS = "tidegate_max_connections" []:
        "Client connections served at once at most.";
    PANICS = "tidegate_panics_total" []:
        "Panics caught; each cost one session or restarted one task.";
    TASK_RESTARTS = "tidegate_task_restarts_total" ["task"]:
        "Tasks started again after they had ended unexpectedly.";
    LOG_DROPPED = "tidegate_log_dropped_total" ["log"]:
        "Log lines given up because their queue was full or their target couldn't be written.";
    STATE_FILE_ERRORS = "tidegate_state_file_errors_total" []:
        "Times that the state file could not be read or written.";
    PIPES_HELD = "tidegate_pipes_held" []:
        "Pipes that exist for splicing, in use or pooled.";
    PIPE_BYTES_HELD = "tidegate_pipe_bytes_held" []:
        "Bytes that the pipes which exist could hold: what the kernel counts against the user.";
    MAX_PIPES = "tidegate_max_pipes" []:
        "Pipes that may exist at most.";
    MAX_PIPE_BYTES = "tidegate_max_pipe_bytes" []:
        "Bytes that all pipes together may be able to hold at most.";
    PIPE_FALLBACKS = "tidegate_pipe_fallbacks_total" []:
        "Times that a session went on by copying because there was no pipe to be had.";
    ADMIN_REFUSED = "tidegate_admin_connections_refused_total" []:
        "Connections to the admin endpoint closed because there were too many.";
    ADMIN_DENIED = "tidegate_admin_requests_denied_total" ["reason"]:
        "Requests to the admin endpoint refused because of who sent them, or for changes that make no sense.";

    LIMIT_CONNECTIONS = "tidegate_limit_connections" ["scope", "name"]:
        "Client connections that count towards the limit now.";
    LIMIT_MAX_CONNECTIONS = "tidegate_limit_max_connections" ["scope", "name"]:
        "Client connections at most, where the limit says so.";
    LIMIT_CLIENTS = "tidegate_limit_clients" ["scope", "name"]:
        "Clients that the limit remembers now.";
    LIMIT_MAX_CLIENTS = "tidegate_limit_max_clients" ["scope", "name"]:
        "Clients that the limit can remember at most.";
    LIMIT_REFUSALS = "tidegate_limit_refusals_total" ["scope", "name", "dry_run", "reason"]:
        "Client connections that the limit refused, or in a dry run would have refused, by the bound that was reached.";
    LIMIT_EVICTIONS = "tidegate_limit_evictions_total" ["scope", "name"]:
        "Clients forgotten to make room for others although their rate limit still held something against them.";
    LIMIT_UNTRACKED = "tidegate_limit_untracked_total" ["scope", "name"]:
        "Client connections let in without being counted for their client, because all that are remembered have some.";

    CGROUP_MEMORY_USED = "tidegate_cgroup_memory_used_bytes" []:
        "Memory that the cgroup with the least room has used, without file cache that can go; absent without a limit.";
    CGROUP_MEMORY_LIMIT = "tidegate_cgroup_memory_limit_bytes" []:
        "Memory that this cgroup may use.";

    WORKER_SESSIONS = "tidegate_worker_sessions" ["worker"]:
        "Sessions that the worker serves.";
    WORKER_HANDED_OVER = "tidegate_worker_handed_over_total" ["worker"]:
        "Connections that the worker accepted and handed over to another one, which had fewer sessions.";
    WORKER_STUCK = "tidegate_worker_stuck" ["worker"]:
        "1 while the worker shows no sign of life and another one accepts in its place, else 0.";

    LISTENER_UP = "tidegate_listener_up" ["listener"]:
        "1 while all sockets of the listener work, else 0.";
    LISTENER_CONNECTIONS = "tidegate_listener_connections_total" ["listener"]:
        "Client connections accepted.";
    LISTENER_ACTIVE = "tidegate_listener_connections_active" ["listener"]:
        "Client connections being served now.";
    LISTENER_ACCEPT_ERRORS = "tidegate_listener_accept_errors_total" ["listener", "errno"]:
        "Errors of accept(2), by their symbolic name.";
    LISTENER_ACCEPT_QUEUE_LENGTH = "tidegate_listener_accept_queue_length" ["listener"]:
        "Connections that the kernel has completed and nobody has accepted yet, over all TCP sockets of the listener.";
    LISTENER_ACCEPT_QUEUE_LIMIT = "tidegate_listener_accept_queue_limit" ["listener"]:
        "Connections that the accept queues of the listener's TCP sockets hold together.";
    PROXY_HEADERS = "tidegate_proxy_headers_total" ["listener", "version", "result"]:
        "Connections to a listener that takes PROXY headers, by what was found of one.";
    CONNECTIONS_CLOSED = "tidegate_connections_closed_total" ["listener", "reason"]:
        "Client connections that ended, by the reason of their end.";
    CONNECTION_DURATION = "tidegate_connection_duration_seconds" ["listener"] in DURATION_BUCKETS:
        "Time from accepting a client connection to its end.";

    ROUTE_SESSIONS = "tidegate_route_sessions_total" ["listener", "rule"]:
        "Sessions that took a rule of a listener with routes; those after the first 1,000 are counted as others.";
    PREREAD = "tidegate_preread_seconds" ["listener"] in PREREAD_BUCKETS:
        "Time from accepting a client until its first bytes told where it goes, or it was given up.";

    POOL_FAILOVERS = "tidegate_pool_failovers_total" ["pool"]:
        "Connect attempts made because an earlier attempt of the same session had failed.";
    POOL_NO_BACKEND = "tidegate_pool_no_backend_total" ["pool"]:
        "Sessions that ended because no backend was available for their first attempt.";
    POOL_CONNECT_WAIT = "tidegate_pool_connect_wait_seconds" ["pool"] in CONNECT_WAIT_BUCKETS:
        "Time from choosing the pool to a connected backend, failed attempts included.";

    POOL_AVAILABLE = "tidegate_pool_available" ["pool"]:
        "Backends that are well: enabled, up, not ejected; those that are full included.";
    POOL_EJECTED = "tidegate_pool_ejected" ["pool"]:
        "Backends that real traffic has set aside, those on their last trial included.";
    POOL_PANIC = "tidegate_pool_panic" ["pool"]:
        "1 while too few backends are available and all enabled ones are used, else 0.";
    POOL_TIER = "tidegate_pool_tier" ["pool"]:
        "The last tier in use; 0 while the first is enough.";
    POOL_HEDGES = "tidegate_pool_hedges_total" ["pool"]:
        "Second connect attempts begun beside a first one that had not been answered.";
    POOL_HEDGES_WON = "tidegate_pool_hedges_won_total" ["pool"]:
        "Hedges that connected before the attempt beside which they were begun.";
    POOL_REPLAYS = "tidegate_pool_replays_total" ["pool"]:
        "Times that another backend was given what a client had sent to one that died before it answered.";
    POOL_REBALANCED = "tidegate_pool_rebalanced_total" ["pool"]:
        "Sessions reset so that their clients find a backend with less load.";

    POOL_QUEUE_WAITING = "tidegate_pool_queue_waiting" ["pool"]:
        "Clients that wait for a place on a backend.";
    POOL_QUEUE_MAX_WAITING = "tidegate_pool_queue_max_waiting" ["pool"]:
        "Clients that may wait at once.";
    POOL_QUEUE_WAIT = "tidegate_pool_queue_wait_seconds" ["pool"] in QUEUE_WAIT_BUCKETS:
        "Time that clients which were served had waited in the queue.";
    POOL_QUEUE_OUTCOMES = "tidegate_pool_queue_outcomes_total" ["pool", "outcome"]:
        "Clients that came to the queue, by what became of them.";
    POOL_SHED_PROBABILITY = "tidegate_pool_shed_probability" ["pool"]:
        "The share of new connections that is refused because a latency is above its target, 0 to 1.";
    POOL_SHED = "tidegate_pool_shed_total" ["pool", "dry_run"]:
        "Connections refused because a latency was above its target; in a dry run, those that would have been.";

    POOL_HELD = "tidegate_pool_held" ["pool"]:
        "Clients held because no backend was up, those being connected to one just now included.";
    POOL_HELD_BYTES = "tidegate_pool_held_bytes" ["pool"]:
        "Bytes kept of what held clients have sent.";
    POOL_HOLD_MAX_CONNECTIONS = "tidegate_pool_hold_max_connections" ["pool"]:
        "Clients held at once at most.";
    POOL_HOLD_MAX_BYTES = "tidegate_pool_hold_max_bytes" ["pool"]:
        "Bytes kept of what held clients have sent at most.";
    POOL_HOLD_WAIT = "tidegate_pool_hold_wait_seconds" ["pool"] in HOLD_WAIT_BUCKETS:
        "Time for which clients that were served in the end had been held.";
    POOL_HOLD_OUTCOMES = "tidegate_pool_hold_outcomes_total" ["pool", "outcome"]:
        "Clients that were held, or were to be, by what became of them.";

    BACKEND_UP = "tidegate_backend_up" ["pool", "backend"]:
        "1 while the backend's health verdict is up, else 0.";
    BACKEND_MAX_CONNECTIONS = "tidegate_backend_max_connections" ["pool", "backend"]:
        "Connections that the backend may have at once; only where there is a maximum.";
    BACKEND_STATE_CHANGES = "tidegate_backend_state_changes_total" ["pool", "backend"]:
        "Times that the backend's health verdict went from up to down or back.";
    BACKEND_CONNECTIONS = "tidegate_backend_connections_total" ["pool", "backend"]:
        "Connections established to the backend.";
    BACKEND_ACTIVE = "tidegate_backend_connections_active" ["pool", "backend"]:
        "Connections to the backend now, those still being established included.";
    BACKEND_BYTES = "tidegate_backend_bytes_total" ["pool", "backend", "direction"]:
        "Payload relayed to the backend (to_backend) and from it (to_client).";
    BACKEND_CONNECT_ERRORS = "tidegate_backend_connect_errors_total" ["pool", "backend", "reason"]:
        "Connect attempts that failed; no_fd, no_port, no_memory and no_route are this host's own fault.";
    BACKEND_HEALTH_CHECKS = "tidegate_backend_health_checks_total" ["pool", "backend", "result"]:
        "Probes by what they came to; frozen is a probe that tidegate itself could not make.";

    BACKEND_EJECTIONS = "tidegate_backend_ejections_total" ["pool", "backend"]:
        "Times that real traffic set the backend aside.";
    BACKEND_TRAFFIC_FAILURES = "tidegate_backend_traffic_failures_total" ["pool", "backend", "reason"]:
        "Failures of real traffic that count towards an ejection.";

    KERNEL_LISTEN_OVERFLOWS = "tidegate_kernel_listen_overflows_total" []:
        "Connections that the kernel gave up because an accept queue was full, in this whole network namespace.";
    KERNEL_LISTEN_DROPS = "tidegate_kernel_listen_drops_total" []:
        "Connection requests to listening sockets that the kernel dropped for any reason, in this whole network namespace.";
}

/// A decade each where a session is one exchange; above a minute, the time-outs that people set: ten minutes (the
/// default idle time-out), an hour, a day. Quantiles of long-lived sessions come from the access log.
pub const DURATION_BUCKETS: &[f64] = &[0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0];

/// From a loopback connect to the largest usual budget (10 s). The kernel repeats a lost SYN after 1 s and again
/// 2 s later, so 1 and 3 s part "none lost" from "one lost" from "two lost".
pub const CONNECT_WAIT_BUCKETS: &[f64] =
    &[0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0];

/// From first bytes that come with the connection, over round trips to far clients, to the usual time-outs. The kernel
/// repeats a lost segment after 200 ms or more.
pub const PREREAD_BUCKETS: &[f64] = &[0.000_1, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Of a queue, from a place that comes free at once to the longest waits that anybody bears.
pub const QUEUE_WAIT_BUCKETS: &[f64] = &[0.001, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Around what a restart, a failover of the backends' own, or a time-out of impatient clients takes.
pub const HOLD_WAIT_BUCKETS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = BTreeSet::new();
        for name in ALL {
            assert!(seen.insert(name.name), "{} twice", name.name);
            assert!(name.name.starts_with("tidegate_"), "{}", name.name);
            assert!(name.help.ends_with('.'), "{}: the help is a sentence", name.name);
            assert!(!name.help.contains(['\\', '\n']), "{}: the help is written as it is", name.name);
            assert!(name.buckets.is_sorted(), "{}: buckets ascend", name.name);
            // A moment is no time that something took.
            assert_eq!(
                name.name.ends_with("_seconds") && !name.name.ends_with("_timestamp_seconds"),
                !name.buckets.is_empty(),
                "{}: histograms, and only they, are in seconds",
                name.name
            );
            for label in name.labels {
                assert!(!["client", "le", "quantile"].contains(label), "{}: label {label}", name.name);
            }
        }
    }
}
