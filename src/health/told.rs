//! What the log is told of one backend, and how often.
//!
//! Owns the lines and their limits: a change is one line, and a backend that keeps changing doesn't flood the log. The
//! last of a series of changes is told in the end. Decides nothing. Next: `limit`.

use super::agent::Statement;
use super::limit::Limit;
use super::probe::{ProbeError, date};
use crate::pool::health::AgentAdmin;
use crate::pool::{Backend, Health, Pool, flag};
use std::time::Duration;
use tokio::time::Instant;

/// Changes of one backend that are logged at once, and then one in each period.
const CHANGE_LINES: (u32, Duration) = (5, Duration::from_secs(30));
/// The same for a certificate that ends soon.
const CERTIFICATE_LINES: (u32, Duration) = (1, Duration::from_secs(24 * 3_600));
/// Backends named in the line about the first round; the rest is only counted.
const NAMED_DOWN: usize = 10;

/// Whether the agent wants its backend to be used. Its weight may change at every word, and its reason too.
#[derive(Default, PartialEq, Eq)]
struct Gist {
    down: bool,
    admin: Option<AgentAdmin>,
    weightless: bool,
}

impl Gist {
    fn of(statement: &Statement) -> Self {
        let report = &statement.report;
        Self {
            down: report.state == Some(Health::Down),
            admin: report.admin.filter(|admin| *admin != AgentAdmin::Ready),
            weightless: report.weight == Some(0),
        }
    }
}

/// What has been told of one backend.
pub struct Told {
    changes: Limit,
    certificate: Limit,
    agent: Limit,
    /// What the agent said last, as far as a change of it is worth a line.
    said: Gist,
    /// Whether the last try to ask it failed.
    silent: bool,
}

impl Default for Told {
    fn default() -> Self {
        let limit = |(burst, period)| Limit::new(burst, period);
        let (changes, agent) = (limit(CHANGE_LINES), limit(CHANGE_LINES));
        Self { changes, certificate: limit(CERTIFICATE_LINES), agent, said: Gist::default(), silent: false }
    }
}

impl Told {
    /// A probe has ended, and perhaps `changed` the verdict: the one line about that, or about the last of those
    /// changes that came too fast to tell each.
    pub fn change(&mut self, pool: &Pool, backend: &Backend, changed: bool, now: Instant) {
        let said = if changed { self.changes.event(now) } else { self.changes.overdue(now) };
        let Some(unsaid) = said else { return };
        let (name, label) = (&pool.name, &*backend.label);
        match backend.health().0 {
            Health::Up => tracing::info!(pool = %name, backend = label, unsaid, "backend is up"),
            Health::Down => is_down(pool, backend, unsaid),
        }
    }

    /// A certificate is good until `end`; worth a line a day if that is `within` a short time. In seconds of Unix time.
    pub fn certificate(&mut self, pool: &Pool, backend: &Backend, end: u64, within: Duration, unix: u64, now: Instant) {
        if end.saturating_sub(unix) >= within.as_secs() || self.certificate.event(now).is_none() {
            return;
        }
        let (pool, backend, end) = (&pool.name, &*backend.label, date(end));
        tracing::warn!(%pool, backend, end, "the backend's certificate ends soon");
    }

    /// The agent has spoken, or failed to. Whether that is news; worth a warning where it takes a backend down.
    pub fn agent(
        &mut self,
        pool: &Pool,
        backend: &Backend,
        result: Result<&Statement, &ProbeError>,
        now: Instant,
    ) -> bool {
        let news = match result {
            Ok(statement) => {
                let before = std::mem::replace(&mut self.said, Gist::of(statement));
                self.silent || self.said != before
            }
            Err(_) => !self.silent,
        };
        self.silent = result.is_err();
        let said = if news { self.agent.event(now) } else { self.agent.overdue(now) };
        if let Some(unsaid) = said {
            let (pool, backend) = (&pool.name, &*backend.label);
            match result {
                Ok(Statement { report, reason, .. }) if self.said.down => {
                    tracing::warn!(%pool, backend, %report, reason, unsaid, "the agent says something new");
                }
                Ok(Statement { report, reason, .. }) => {
                    tracing::info!(%pool, backend, %report, reason, unsaid, "the agent says something new");
                }
                Err(reason) => tracing::warn!(
                    %pool, backend, %reason, unsaid, "the agent can't be asked; what it said last stays"
                ),
            }
        }
        news
    }
}

fn is_down(pool: &Pool, backend: &Backend, unsaid: u64) {
    let reason = backend.last_error().map_or_else(String::new, |error| error.text);
    tracing::warn!(pool = %pool.name, backend = &*backend.label, reason, unsaid, "backend is down");
}

/// Every backend has been probed once. Who is down from the start never goes down, so this is the line about it.
pub fn first_round<'t>(probed: impl Iterator<Item = (&'t Pool, &'t Backend)>) {
    let (mut up, mut down) = (0, Vec::new());
    // Of one that an operator has disabled, nobody has asked.
    for (pool, backend) in probed.filter(|(_, backend)| backend.flags() & flag::DISABLED == 0) {
        if backend.is_up() {
            up += 1;
        } else {
            if down.len() < NAMED_DOWN && backend.health().0 == Health::Down {
                is_down(pool, backend, 0);
            }
            down.push(format!("{}/{}", pool.name, backend.label));
        }
    }
    if down.is_empty() {
        if up > 0 {
            tracing::info!(up, "every backend has been probed");
        }
        return;
    }
    let count = down.len();
    down.sort_unstable();
    down.truncate(NAMED_DOWN);
    tracing::warn!(up, down = count, names = down.join(" "), "every backend has been probed; some are down");
}
