//! The routes of a listener, prepared: which rule a session takes, by what is known of it.
//!
//! Owns the decision. A condition holds, doesn't, or needs more of what the client sends; the first rule that isn't
//! ruled out decides, and only if that one needs more is more read. `index` finds the rules that a session may take
//! without asking the others, `condition` judges, `share` gives each client its place among many, `explain` tells what
//! each rule has to say. Pure: no clock, no dice, no I/O, and nothing is allocated.
//!
//! Invariants: the decision is that of asking every rule in the order of the file; of the same client, listener and
//! rule, `share` and `pools` say the same in every process.

mod build;
mod condition;
mod explain;
mod index;
mod share;
#[cfg(test)]
mod tests;

pub use condition::Answer;
pub(super) use condition::known;
pub use explain::{ConditionSeen, Leads, RuleSeen};

use crate::config::OTHER_RULES;
use crate::metrics::{Counter, Series};
use crate::name::{ClientAddr, ListenerName};
use crate::net::first_bytes::FirstBytes;
use crate::pool::Pool;
use condition::Condition;
use index::Index;
use std::net::SocketAddr;
use std::sync::Arc;

/// What is known of a session before it is routed.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub listener: &'a ListenerName,
    pub client: ClientAddr,
    /// Where the client has connected to; `None` on a unix socket, and where nobody asks for it (see
    /// [`RoutingTable::wants_local`](super::RoutingTable::wants_local)).
    pub local: Option<SocketAddr>,
    pub first: &'a FirstBytes,
    /// Stands in for the address of a client that has none. The same for all questions about one session.
    pub chance: u64,
    /// From the last verdict about this session: what was ruled out then isn't asked again.
    pub passed: Passed,
}

impl<'a> Facts<'a> {
    /// Nothing but who comes, and what it has sent.
    #[must_use]
    pub fn new(listener: &'a ListenerName, client: ClientAddr, first: &'a FirstBytes) -> Self {
        Self { listener, client, local: None, first, chance: 0, passed: Passed::default() }
    }
}

/// How many rules are ruled out, in the table of which generation: what is known only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub(super) generation: u64,
    rules: u32,
}

/// Where a session goes.
#[derive(Clone, Copy)]
pub enum Verdict<'t> {
    /// That can't be said before the client has sent more.
    NeedsMore(Passed),
    To {
        rule: &'t Arc<Rule>,
        pool: &'t Arc<Pool>,
        /// For whoever must know more before a backend is chosen, and asks again then.
        passed: Passed,
    },
    Refuse {
        rule: &'t Arc<Rule>,
    },
    /// No rule takes it, and the listener has no pool of its own; or there is no such listener any more.
    NoRoute,
}

/// A way that sessions of a listener take: one of its routes, or one of the pools that it names itself.
pub struct Rule {
    /// In log and metrics.
    pub name: Arc<str>,
    /// Sessions; `None` for a listener that has no routes, where there is only one way.
    pub sessions: Option<Series<Counter>>,
}

/// All ways of a listener.
pub struct Routes {
    pub(super) listener: ListenerName,
    rules: Box<[Entry]>,
    index: Index,
    /// The listener's own pool.
    otherwise: Option<(Arc<Rule>, Arc<Pool>)>,
    /// For a client that has sent nothing in time.
    on_silence: Option<(Arc<Rule>, Arc<Pool>)>,
    /// A condition asks where the client has connected to.
    pub(super) wants_local: bool,
}

/// One route.
struct Entry {
    rule: Arc<Rule>,
    conditions: Box<[Condition]>,
    to: To,
}

enum To {
    Pool(Arc<Pool>),
    Pools(share::Split<Arc<Pool>>),
    Refuse,
}

impl Entry {
    /// Whether all conditions hold. One that doesn't decides, whatever the others need.
    fn judge(&self, facts: &Facts<'_>) -> Answer {
        let mut answer = Answer::Yes;
        for condition in &self.conditions {
            match condition.judge(facts) {
                Answer::No => return Answer::No,
                Answer::NeedsMore => answer = Answer::NeedsMore,
                Answer::Yes => {}
            }
        }
        answer
    }

    fn verdict(&self, facts: &Facts<'_>, passed: Passed) -> Verdict<'_> {
        let rule = &self.rule;
        match &self.to {
            To::Pool(pool) => Verdict::To { rule, pool, passed },
            To::Pools(split) => Verdict::To { rule, pool: split.choose(facts), passed },
            To::Refuse => Verdict::Refuse { rule },
        }
    }
}

impl Routes {
    pub(super) fn decide(&self, facts: &Facts<'_>, generation: u64) -> Verdict<'_> {
        let before = if facts.passed.generation == generation { facts.passed.rules } else { 0 };
        let passed = |rules| Passed { generation, rules };
        match self.index.first(facts, before, |rule| self.rules[rule as usize].judge(facts)) {
            Some((rule, Answer::NeedsMore)) => Verdict::NeedsMore(passed(rule)),
            Some((rule, _)) => self.rules[rule as usize].verdict(facts, passed(rule)),
            None => match &self.otherwise {
                Some((rule, pool)) => Verdict::To { rule, pool, passed: passed(self.rules.len() as u32) },
                None => Verdict::NoRoute,
            },
        }
    }

    pub(super) fn on_silence(&self) -> Option<(&Arc<Rule>, &Arc<Pool>)> {
        self.on_silence.as_ref().map(|(rule, pool)| (rule, pool))
    }

    /// The ways of a listener that has routes, in the order in which they are asked and with what has taken them; those
    /// that have no count of their own as one.
    pub fn counted(&self) -> impl Iterator<Item = Counted<'_>> {
        let routes = self.rules.iter().take(build::MAX_COUNTED + 1).enumerate().map(|(position, entry)| {
            let of_its_own = position < build::MAX_COUNTED;
            let name = if of_its_own { &*entry.rule.name } else { OTHER_RULES };
            Counted { name, rule: &entry.rule, leads: of_its_own.then(|| entry.leads()) }
        });
        let own = self.otherwise.iter().chain(&self.on_silence);
        let own = own.map(|(rule, pool)| Counted { name: &rule.name, rule, leads: Some(Leads::to(pool)) });
        routes.chain(own).filter(|counted| counted.rule.sessions.is_some())
    }
}

/// A way of a listener, or several that are counted together.
pub struct Counted<'t> {
    pub name: &'t str,
    rule: &'t Rule,
    /// `None` of several.
    pub leads: Option<Leads<'t>>,
}

impl Counted<'_> {
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.rule.sessions.as_ref().map_or(0, |sessions| sessions.get())
    }
}
