//! What others than probes and traffic say of a backend: its agent, and an operator.
//!
//! Owns what both have said, and the word for all that is known. Neither undoes what the other has said: a backend
//! gets new sessions only if both let it. Of its health an operator's word is the stronger one: with it the verdicts of
//! probes and agent don't count, but go on, and count again when it is taken back.

use super::{Backend, Rest, WHOLE_SHARE, flag};
use crate::clock::{Millis, Now};
use crate::config::{AdminState, HealthOverride};
use crate::pool::health::{AgentAdmin, AgentReport, Health};
use std::time::Duration;

/// What an operator says of a backend; at first nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operator {
    pub state: AdminState,
    pub health: HealthOverride,
}

/// What an agent's word makes of the flags.
const AGENT: u32 = flag::AGENT_DRAINING | flag::MAINT;
/// What an operator's word makes of them, but for the health.
const OPERATOR: u32 = flag::DRAINING | flag::DISABLED;

impl Backend {
    /// The word for all of it in `/status`: what keeps it from service, most deliberate cause first.
    #[must_use]
    pub fn state(&self) -> &'static str {
        let flags = self.flags();
        let words = [
            (flag::DISABLED, "disabled"),
            (flag::DRAINING, "draining"),
            (flag::FORCED_DOWN, "forced_down"),
            (flag::MAINT, "maint"),
            (flag::AGENT_DRAINING, "agent_draining"),
            (flag::DOWN | flag::AGENT_DOWN, "down"),
            (flag::EJECTED, "ejected"),
            (flag::HALF_OPEN, "half_open"),
        ];
        let word = words.into_iter().find(|(bits, _)| flags & bits != 0).map(|(_, word)| word);
        word.unwrap_or_else(|| if self.operator().health == HealthOverride::Up { "forced_up" } else { "up" })
    }

    /// Since when it is in that [`state`](Self::state) (Unix time in ms).
    #[must_use]
    pub fn state_since(&self, now: Now) -> u64 {
        let (rest, (_, verdict)) = (self.rest(), self.health());
        let unix = |moment: Millis| if moment == 0 { 0 } else { (now.unix_ms + moment).saturating_sub(now.millis) };
        let (agent, ejection) = (unix(rest.agent_since), unix(rest.ejection.since()));
        let operator = unix(rest.operator_since);
        match self.flags() {
            flags if flags & (OPERATOR | flag::FORCED_DOWN) != 0 => operator,
            flags if flags & AGENT != 0 => agent,
            flags if flags & flag::DOWN != 0 => verdict.max(operator),
            flags if flags & flag::AGENT_DOWN != 0 => agent.max(operator),
            flags if flags & (flag::EJECTED | flag::HALF_OPEN) != 0 => ejection,
            _ => verdict.max(agent).max(ejection).max(operator),
        }
    }

    /// Takes in what its agent says; what that doesn't speak of stays. Whether anything has changed. A backend that the
    /// agent gives back starts slowly.
    pub fn set_agent(&self, report: &AgentReport, slow_start: Duration, now: Millis) -> bool {
        let mut rest = self.rest();
        let before = rest.agent;
        rest.agent = before.updated(report);
        if rest.agent == before {
            return false;
        }
        rest.agent_share = WHOLE_SHARE * u32::from(rest.agent.weight.unwrap_or(100)) / 100;
        let (was, is) = (obstacles(before), obstacles(rest.agent));
        if was != is {
            rest.agent_since = now;
        }
        let was_up = self.is_up();
        self.replace_flags(AGENT, is & AGENT);
        self.flag_verdict(&rest);
        match rest.ramp {
            // It may be over, or have come so near its end that no review has looked at it any more.
            Some(begun) => self.ramp(&mut rest, begun, slow_start, now),
            None => self.store_share(rest.agent_share),
        }
        let counts = rest.operator.health == HealthOverride::Auto;
        let out = flag::MAINT | if counts { flag::AGENT_DOWN } else { 0 };
        if was & out != 0 && is & (AGENT | out) == 0 {
            self.begin_ramp(&mut rest, slow_start, now);
        }
        if was_up != self.is_up() {
            self.metrics.state_changes.inc();
        }
        true
    }

    /// All that its agent has said so far; `None` if that takes nothing from it.
    #[must_use]
    pub fn agent(&self) -> Option<AgentReport> {
        Some(self.rest().agent).filter(|agent| *agent != AgentReport::of_nobody())
    }

    /// Takes in what an operator says. Whether anything has changed. A backend that comes back by that starts slowly.
    pub(in crate::pool) fn set_operator(&self, said: Operator, slow_start: Duration, now: Millis) -> bool {
        let mut rest = self.rest();
        if rest.operator == said {
            return false;
        }
        rest.operator = said;
        rest.operator_since = now;
        let (was_out, was_up) = (self.flags() & flag::OUT != 0, self.is_up());
        let bits = match said.state {
            AdminState::Enabled => 0,
            AdminState::Draining => flag::DRAINING,
            AdminState::Disabled => flag::DISABLED,
        };
        self.replace_flags(OPERATOR, bits);
        self.flag_verdict(&rest);
        let gets_sessions = self.flags() & flag::OUT == 0 && self.is_up();
        if (was_out || !was_up) && gets_sessions {
            self.begin_ramp(&mut rest, slow_start, now);
        }
        if was_up != self.is_up() {
            self.metrics.state_changes.inc();
        }
        true
    }

    /// What an operator has said of it.
    #[must_use]
    pub fn operator(&self) -> Operator {
        self.rest().operator
    }

    /// Whether nobody asks how it is.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        self.flags() & flag::DISABLED != 0
    }

    /// Makes of the verdicts of probes, agent and operator the flags that follow from them.
    pub(super) fn flag_verdict(&self, rest: &Rest) {
        let down = if self.health().0 == Health::Down { flag::DOWN } else { 0 };
        let told = down | obstacles(rest.agent) & flag::AGENT_DOWN;
        let bits = match rest.operator.health {
            HealthOverride::Auto => told,
            HealthOverride::Up => 0,
            HealthOverride::Down => told | flag::FORCED_DOWN,
        };
        self.replace_flags(flag::ANY_DOWN, bits);
        self.metrics.up.set(i64::from(self.is_up()));
    }
}

/// What an agent's word means in flags.
fn obstacles(agent: AgentReport) -> u32 {
    let admin = match agent.admin {
        Some(AgentAdmin::Drain) => flag::AGENT_DRAINING,
        Some(AgentAdmin::Maint) => flag::MAINT,
        Some(AgentAdmin::Ready) | None => 0,
    };
    // A share of nothing is a drain in other words.
    let nothing = if agent.weight == Some(0) { flag::AGENT_DRAINING } else { 0 };
    let down = if agent.state == Some(Health::Down) { flag::AGENT_DOWN } else { 0 };
    admin | nothing | down
}
