//! File descriptors: raising the limit, and what the config needs of it.
//!
//! Owns the arithmetic of the start check (pure) and the two system calls around it.

use crate::config::{Config, RelayMode};
use crate::health::MAX_PROBES;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the process has open at rest: standard streams, epolls, signal pipes, log files.
const BASE: u64 = 24;
/// For each worker: its runtime's and its engine's epolls, and their wake-ups.
const PER_WORKER: u64 = 6;
/// Kept for the admin endpoint: what a scrape opens, a token's file, and its connections.
const ADMIN: u64 = crate::admin::MAX_CONNECTIONS as u64 + 2;
/// For each of its sockets: the socket, and its spare.
const PER_ADMIN_SOCKET: u64 = 2;
/// A session's two sockets.
const PER_SESSION: u64 = 2;
/// A pipe's two ends.
const PER_PIPE: u64 = 2;
/// Pipes of all workers together, at most: as many sessions can splice data to a slow reader at once.
const MAX_PIPES: u64 = 1_024;
/// Of so many descriptors that are left after the reserve, one pipe may be made: so an eighth of them goes to pipes.
const PIPE_SHARE: u64 = 16;

/// How the descriptors are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub max_sessions: usize,
    pub max_pipes: usize,
}

/// Raises the soft limit as far as it goes; what it is then.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Where that isn't allowed, the plan is made for the limit that is.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Shares out `limit` descriptors; a sentence if the configured number of sessions doesn't fit.
pub fn plan(config: &Config, workers: usize, limit: u64) -> Result<Plan, String> {
    let binds = config.listeners.iter().map(|listener| listener.bind.len() as u64).sum::<u64>();
    let backends = config.pools.iter().map(|pool| pool.members.len() as u64).sum::<u64>();
    let sockets = binds * workers as u64;
    let most_pipes = if config.runtime.relay == RelayMode::Copy { 0 } else { MAX_PIPES };
    let admin = ADMIN + PER_ADMIN_SOCKET * config.admin.listen.len() as u64;
    let reserve = BASE + PER_WORKER * workers as u64 + sockets + admin + backends.min(MAX_PROBES as u64);
    if let Some(max_sessions) = config.runtime.max_connections {
        let need = reserve + PER_SESSION * max_sessions as u64;
        if need > limit {
            let fits = limit.saturating_sub(reserve) / PER_SESSION;
            return Err(format!(
                "runtime.max_connections = {max_sessions} needs {need} file descriptors ({PER_SESSION} for each \
                 connection and {reserve} besides), but the limit is {limit}; raise the limit (LimitNOFILE= in the \
                 unit, `ulimit -Hn`) or lower max_connections to {fits}"
            ));
        }
        return Ok(Plan { max_sessions, max_pipes: ((limit - need) / PER_PIPE).min(most_pipes) as usize });
    }
    // With a very small limit the reserve is a hope: half goes to sessions whatever it says.
    let left = limit.saturating_sub(reserve.min(limit / 2));
    let max_pipes = (left / PIPE_SHARE).min(most_pipes);
    let max_sessions = ((left - PER_PIPE * max_pipes) / PER_SESSION).max(1) as usize;
    // With `max_connections` the config itself says whether they fit.
    let reserved = config.listeners.iter().map(|listener| listener.admission.reserved_connections);
    let reserved = reserved.fold(0, usize::saturating_add);
    if reserved > max_sessions {
        return Err(format!(
            "the listeners' reserved_connections are {reserved} together, but the limit of {limit} file descriptors \
             carries {max_sessions} connections; raise the limit (LimitNOFILE= in the unit, `ulimit -Hn`) or reserve less"
        ));
    }
    Ok(Plan { max_sessions, max_pipes: max_pipes as usize })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Admin, Log, Runtime};

    fn config(max_connections: Option<usize>) -> Config {
        Config {
            runtime: Runtime { max_connections, ..Runtime::default() },
            admin: Admin::default(),
            log: Log::default(),
            limits: Vec::new(),
            listeners: Vec::new(),
            pools: Vec::new(),
        }
    }

    #[test]
    fn a_config_that_does_not_fit_is_told_both_numbers_and_the_way_out() {
        let error = plan(&config(Some(50_000)), 2, 20_000).unwrap_err();
        let reserve = BASE + 2 * PER_WORKER + ADMIN;
        assert!(error.contains(&format!("needs {} file descriptors", 100_000 + reserve)), "{error}");
        assert!(error.contains("the limit is 20000"), "{error}");
        let fits = (20_000 - reserve) / 2;
        assert!(error.contains(&format!("lower max_connections to {fits}")), "{error}");
        assert!(plan(&config(Some(fits as usize)), 2, 20_000).is_ok());
    }

    #[test]
    fn whatever_the_limit_sessions_and_pipes_stay_below_it() {
        for limit in [10, 64, 256, 1_024, 20_000, 1_048_576] {
            let plan = plan(&config(None), 2, limit).unwrap();
            assert!(plan.max_sessions >= 1);
            assert!((plan.max_sessions * 2 + plan.max_pipes * 2) as u64 <= limit, "{limit}: {plan:?}");
        }
    }

    #[test]
    fn listening_sockets_are_part_of_the_need_and_pipes_get_what_sessions_leave() {
        let mut config = config(Some(1_000));
        let bare = (0..20_000).find(|&limit| plan(&config, 2, limit).is_ok()).unwrap();
        assert_eq!(plan(&config, 2, bare).unwrap().max_pipes, 0, "sessions go first");
        assert_eq!(plan(&config, 2, bare + 20).unwrap().max_pipes, 10, "two descriptors each");
        let text = "[listeners.a]\nbind = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\npool = \"p\"\n[pools.p]\nbackends = []\n";
        config.listeners = Config::parse("lb.toml", text.as_bytes()).unwrap().config.listeners;
        assert!(plan(&config, 2, bare + 3).is_err(), "two addresses are four sockets for two workers");
        assert!(plan(&config, 2, bare + 4).is_ok());
    }

    #[test]
    fn reserves_that_the_descriptors_do_not_carry_are_refused() {
        let mut config = config(None);
        let fits = plan(&config, 2, 20_000).unwrap().max_sessions;
        let text = "[listeners.a]\nbind = \"127.0.0.1:1\"\npool = \"p\"\n[pools.p]\nbackends = []\n";
        config.listeners = Config::parse("lb.toml", text.as_bytes()).unwrap().config.listeners;
        config.listeners[0].admission.reserved_connections = fits + 1;
        let error = plan(&config, 2, 20_000).unwrap_err();
        assert!(error.contains(&(fits + 1).to_string()) && error.contains("20000"), "{error}");
        config.listeners[0].admission.reserved_connections = fits / 2;
        assert!(plan(&config, 2, 20_000).is_ok());
    }

    #[test]
    fn who_only_copies_needs_no_pipes() {
        for max_connections in [None, Some(100)] {
            let mut config = config(max_connections);
            config.runtime.relay = RelayMode::Copy;
            assert_eq!(plan(&config, 2, 20_000).unwrap().max_pipes, 0);
            config.runtime.relay = RelayMode::Splice;
            assert!(plan(&config, 2, 20_000).unwrap().max_pipes > 0);
        }
    }
}
