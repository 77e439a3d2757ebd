//! The answer: which rule, which pool, which backend, and why no other.
//!
//! Owns the names of the JSON's fields and the sentences in it. Reads the table, the pool's state and the gate's lists
//! as they stand.

use super::question::{Complaint, Question, quoted};
use crate::admin::Moment;
use crate::clock::Now;
use crate::config::{Hash, HashKey, PrereadFailed};
use crate::name::{ClientAddr, PoolName};
use crate::net::first_bytes::{FirstBytes, Known};
use crate::pool::{Backend, How, Obstacle, Outlook, Pool, Shed, Standing, Tried, WHOLE_SHARE, Wish};
use crate::table::{self, Answer, ConditionSeen, Facts, Leads, Listener, RoutingTable, RuleSeen, Verdict};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// A word or sentence of ours; owned where it comes from another process.
pub type Word = Cow<'static, str>;

/// From where it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standpoint {
    /// The running process, as it stands.
    Live,
    /// A config alone: every backend is taken to be up and idle.
    Config,
}

/// Where a client would go.
#[derive(Serialize, Deserialize)]
pub struct Explanation {
    pub state: Standpoint,
    pub listener: String,
    pub client: String,
    /// Where it connects to.
    pub to: Option<String>,
    /// What it has sent.
    pub sent: String,
    pub admission: Admission,
    /// In the order in which they are asked; the listener's own pool, `default`, is the last.
    pub rules: Vec<RuleView>,
    pub verdict: Outcome,
    /// The rule that decides.
    pub rule: Option<String>,
    /// Of what the client must send more before anything can be decided.
    pub needs: Vec<Word>,
    pub pool: Option<PoolView>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pool,
    /// By a rule with `refuse`.
    Refused,
    /// No rule takes it, and the listener has no pool of its own.
    NoRoute,
    NeedsMore,
}

#[derive(Serialize, Deserialize)]
pub struct Admission {
    /// What `allow` and `deny` say; limits are asked for each connection anew.
    pub allowed: bool,
    /// Only a dry run says no.
    pub dry_run: bool,
    pub because: Word,
}

#[derive(Serialize, Deserialize)]
pub struct RuleView {
    pub rule: String,
    /// `yes`, `no`, `needs_more`, or `not_asked` after the one that decides.
    pub answer: Word,
    pub conditions: Vec<ConditionView>,
    /// Empty for one that refuses.
    pub pools: Vec<WeightedPool>,
    pub refuse: bool,
}

#[derive(Serialize, Deserialize)]
pub struct ConditionView {
    pub key: Word,
    pub answer: Word,
    pub wanted: String,
    pub seen: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct WeightedPool {
    pub pool: String,
    pub weight: u64,
}

#[derive(Serialize, Deserialize)]
pub struct PoolView {
    pub name: String,
    pub balance: Word,
    pub panic: bool,
    /// The last tier in use.
    pub tier: u8,
    /// What it goes by, if it goes by a hash.
    pub hash: Option<HashView>,
    /// Whether the choice is certain as long as nothing changes.
    pub certain: bool,
    /// How it is made, in words.
    pub choice: String,
    /// What becomes of a client for whom there is no backend, or others wait.
    pub waits: bool,
    /// The share of new connections that is refused because a latency is too high, 0 to 1.
    pub shed: Option<f64>,
    /// The likely ones first.
    pub backends: Vec<BackendView>,
}

#[derive(Serialize, Deserialize)]
pub struct HashView {
    /// What the config says.
    pub key: String,
    /// What is hashed for this client, in words.
    pub of: String,
    /// 16 hex digits; `None` where it is by chance.
    pub value: Option<String>,
    /// The backend that the client belongs to.
    pub home: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub struct BackendView {
    pub name: String,
    pub address: String,
    pub state: Word,
    pub weight: u16,
    pub tier: u8,
    pub active: u32,
    /// 0 to 1.
    pub probability: f64,
    /// Why it isn't, if it can't be.
    pub because: Option<String>,
}

impl Explanation {
    /// What would become of the client. Fails if there is no such listener.
    pub fn of(table: &RoutingTable, question: &Question, state: Standpoint, now: Now) -> Result<Self, Complaint> {
        let listener = find(table, &question.listener)?;
        let (client, local) = (question.client, question.local);
        let facts = Facts { local, ..Facts::new(&listener.name, client, &question.first) };
        let seen = table.explain_routes(&facts);
        let verdict = table.route(&facts);
        let decides = seen.iter().position(|rule| rule.answer != Answer::No);
        let mut notes = Vec::new();
        if local.is_none() && table.wants_local(&listener.name) {
            notes.push("a rule asks where the client connects to, and nothing was said of that (to)".to_owned());
        }
        let mut explanation = Self {
            state,
            listener: listener.name.to_string(),
            client: client_text(client),
            to: local.map(|local| local.to_string()),
            sent: question.sent.clone(),
            admission: Admission::of(&listener, client),
            verdict: Outcome::NoRoute,
            rule: decides.map(|rule| seen[rule].rule.name.to_string()),
            needs: Vec::new(),
            pool: None,
            rules: Vec::new(),
            notes,
        };
        let mut by_chance = None;
        match verdict {
            Verdict::NeedsMore(_) => {
                explanation.verdict = Outcome::NeedsMore;
                let open = decides.map_or(&[][..], |rule| seen[rule].conditions.as_slice());
                let open = open.iter().filter(|condition| condition.answer == Answer::NeedsMore);
                explanation.needs = open.map(|condition| condition.key.into()).collect();
            }
            Verdict::To { pool, .. } => {
                explanation.verdict = Outcome::Pool;
                if let Some(Leads::To(pools)) = decides.map(|rule| &seen[rule].leads)
                    && pools.len() > 1
                    && client == ClientAddr::Unix
                {
                    by_chance =
                        Some(format!("a client without an address gets {} by chance among its pools", pool.name));
                }
                explanation.pool = PoolView::of(pool, &facts, now);
                if explanation.pool.is_none() {
                    explanation.verdict = Outcome::NeedsMore;
                    explanation.needs.extend(pool.hash.as_ref().map(|hash| hash.key.word().into()));
                }
            }
            Verdict::Refuse { .. } => explanation.verdict = Outcome::Refused,
            Verdict::NoRoute => explanation.rule = None,
        }
        explanation.notes.extend(by_chance);
        if explanation.verdict == Outcome::NeedsMore {
            explanation.notes.push(still_open(table, &listener, &question.first));
        }
        let after = |position: usize| decides.is_some_and(|decides| position > decides);
        explanation.rules = seen.into_iter().enumerate().map(|(at, rule)| RuleView::of(rule, after(at))).collect();
        Ok(explanation)
    }
}

fn find(table: &RoutingTable, name: &str) -> Result<Arc<Listener>, Complaint> {
    let found = table.listeners.iter().find(|listener| listener.name.as_str() == name);
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = table.listeners.iter().map(|listener| listener.name.as_str()).collect();
        Complaint::new(
            "listener",
            format!("there is no listener {}", quoted(name)),
            format!("use {}", names.join(", ")),
        )
    })
}

/// What becomes of a client that stays like this.
fn still_open(table: &RoutingTable, listener: &Listener, first: &FirstBytes) -> String {
    let preread = &listener.config.preread;
    let unjudgeable = match preread.failed {
        PrereadFailed::Reset => "it is reset",
        PrereadFailed::Pool => "it goes on as if nothing were known of what it has sent",
    };
    let timeout = humantime::format_duration(preread.timeout);
    match (first.malformed(), table.on_silence(&listener.name)) {
        (Some(why), _) => format!("what it has sent is malformed ({why}): {unjudgeable} (preread_failed)"),
        _ if first.bytes().len() >= preread.bytes => {
            format!("it has sent too much for that: {unjudgeable} (preread_failed)")
        }
        (None, Some((_, pool))) if first.bytes().is_empty() => {
            format!("if it sends nothing for {timeout}, it goes to {} (preread_timeout_pool)", pool.name)
        }
        _ => format!("after {timeout} it is reset (preread_timeout)"),
    }
}

/// Without the port, on which nothing depends.
fn client_text(client: ClientAddr) -> String {
    match client {
        ClientAddr::Tcp(address) => address.ip().to_string(),
        ClientAddr::Unix => "unix".to_owned(),
    }
}

impl Admission {
    fn of(listener: &Listener, client: ClientAddr) -> Self {
        let dry_run = listener.config.admission.dry_run;
        match (listener.gate.allows(client), client) {
            (None, _) => {
                Self { allowed: true, dry_run: false, because: "the listener has no allow and no deny".into() }
            }
            (Some(_), ClientAddr::Unix) => Self {
                allowed: true,
                dry_run: false,
                because: "allow and deny say nothing of clients without an address".into(),
            },
            (Some(true), _) => Self { allowed: true, dry_run: false, because: "allow and deny let it in".into() },
            (Some(false), _) if dry_run => Self {
                allowed: true,
                dry_run,
                because: "allow and deny would keep it out, but only try (dry_run)".into(),
            },
            (Some(false), _) => Self { allowed: false, dry_run, because: "allow and deny keep it out".into() },
        }
    }
}

fn word(answer: Answer) -> &'static str {
    match answer {
        Answer::Yes => "yes",
        Answer::No => "no",
        Answer::NeedsMore => "needs_more",
    }
}

impl RuleView {
    fn of(seen: RuleSeen<'_>, comes_after: bool) -> Self {
        let (pools, refuse) = match seen.leads {
            Leads::To(pools) => {
                let weighted = |(pool, weight): (&PoolName, u64)| WeightedPool { pool: pool.to_string(), weight };
                (pools.into_iter().map(weighted).collect(), false)
            }
            Leads::Refuse => (Vec::new(), true),
        };
        let condition = |ConditionSeen { key, answer, wanted, seen }| ConditionView {
            key: key.into(),
            answer: word(answer).into(),
            wanted,
            seen,
        };
        Self {
            rule: seen.rule.name.to_string(),
            answer: if comes_after { "not_asked" } else { word(seen.answer) }.into(),
            conditions: if comes_after { Vec::new() } else { seen.conditions.into_iter().map(condition).collect() },
            pools,
            refuse,
        }
    }
}

impl PoolView {
    /// `None` if what it goes by isn't known yet.
    fn of(pool: &Pool, facts: &Facts<'_>, now: Now) -> Option<Self> {
        let key = match &pool.hash {
            Some(hash) => table::hash_key(hash, facts).yes()?,
            None => 0,
        };
        let tried = Tried::default();
        let outlook = pool.outlook(&Wish { tried: &tried, key, patience: 0, now: now.millis });
        let view = &outlook.view;
        let name = |index: usize| view.backends[index].label.to_string();
        let hash = pool.hash.as_ref().map(|hash| HashView {
            key: hash.key.describe(),
            of: hashed(hash, facts),
            value: (facts.client != ClientAddr::Unix || hash.key != HashKey::Source).then(|| format!("{key:016x}")),
            home: outlook.home.map(name),
        });
        let mut likely = vec![0.0; view.backends.len()];
        for &(index, odds) in &outlook.odds {
            likely[index] = odds;
        }
        let mut backends: Vec<BackendView> = likely
            .into_iter()
            .enumerate()
            .map(|(index, likely)| BackendView::of(&outlook, index, likely, now))
            .collect();
        backends.sort_by(|a, b| b.probability.total_cmp(&a.probability));
        let has_address = facts.client != ClientAddr::Unix || hash.as_ref().is_some_and(|hash| hash.value.is_some());
        let certain = outlook.odds.len() == 1 && (outlook.how != How::Hash || has_address);
        Some(Self {
            name: pool.name.to_string(),
            balance: view.balance.into(),
            panic: outlook.mode.panic,
            tier: outlook.mode.tier,
            certain,
            choice: choice(&outlook, certain),
            hash,
            waits: outlook.waits,
            shed: pool.shed().map(Shed::share),
            backends,
        })
    }
}

/// What is hashed for this client.
fn hashed(hash: &Hash, facts: &Facts<'_>) -> String {
    match (table::hashed(hash, facts), table::hashed_address(hash, facts.client)) {
        (Known::Yes(text), _) => quoted(text),
        (_, Some(network)) => format!("the address {network}"),
        (_, None) => "nothing: a client without an address is spread by chance".to_owned(),
    }
}

fn choice(outlook: &Outlook, certain: bool) -> String {
    let name = |index: usize| outlook.view.backends[index].label.to_string();
    match (outlook.odds.as_slice(), outlook.how) {
        ([], _) if outlook.waits => "nobody has a place: it would wait in the queue".to_owned(),
        ([], _) => "nobody".to_owned(),
        ([(one, _)], How::Hash) if certain => match outlook.home.filter(|home| home != one) {
            Some(home) => format!("{}: by its hash, after {}, its own, which is passed over", name(*one), name(home)),
            None => format!("{}: its own by its hash", name(*one)),
        },
        ([(one, _)], How::Turn) => format!("{}: its turn is next", name(*one)),
        ([(one, _)], How::FewestConnections) => format!("{}: it has the fewest connections for its weight", name(*one)),
        ([(one, _)], How::ByChance) => format!("{}: there is nobody else", name(*one)),
        (_, How::Turn) => "whose turn is next: one that starts slowly may pass it on".to_owned(),
        (_, How::FewestConnections) => "by chance among those with the fewest connections for their weight".to_owned(),
        (_, How::Hash | How::ByChance) => "by chance".to_owned(),
    }
}

impl BackendView {
    /// Of one that is as likely as that.
    fn of(outlook: &Outlook, index: usize, probability: f64, now: Now) -> Self {
        let view = &outlook.view;
        let backend = &view.backends[index];
        let because = (probability == 0.0).then(|| match outlook.obstacles[index] {
            Some(obstacle) => because(obstacle, backend, now),
            None => passed_over(outlook),
        });
        Self {
            name: backend.label.to_string(),
            address: backend.address.to_string(),
            state: backend.state().into(),
            weight: view.weights[index],
            tier: view.tiers[index],
            active: backend.active(),
            probability,
            because,
        }
    }
}

/// Of one that might be had, but isn't.
fn passed_over(outlook: &Outlook) -> String {
    let why = match outlook.how {
        How::Hash => "the table leads this client to another one",
        How::Turn => "its turn comes later",
        How::FewestConnections => "it has more connections for its weight",
        How::ByChance => "another one is always better",
    };
    why.to_owned()
}

fn because(obstacle: Obstacle, backend: &Backend, now: Now) -> String {
    let since = || Moment::of_unix_ms(backend.state_since(now)).to_string();
    let error = || backend.last_error().map_or_else(String::new, |error| format!(", last error: {}", error.text));
    match obstacle {
        Obstacle::Maint => format!("its agent has said maint since {}", since()),
        Obstacle::AgentDraining => format!("its agent has it drained since {}", since()),
        Obstacle::Disabled => format!("an operator has disabled it, since {}", since()),
        Obstacle::Draining => format!("an operator has it drained since {}", since()),
        Obstacle::ForcedDown => format!("an operator has called it down, since {}", since()),
        Obstacle::Down => match backend.state_since(now) {
            0 => format!("down until its first probe{}", error()),
            _ => format!("down since {}{}", since(), error()),
        },
        Obstacle::AgentDown => format!("its agent has said that it is down since {}", since()),
        Obstacle::Ejected => {
            let (times, standing) = backend.ejection();
            let until = match standing {
                Standing::Ejected { until } => {
                    let until = (now.unix_ms + until).saturating_sub(now.millis);
                    format!(" until {}", Moment::of_unix_ms(until))
                }
                _ => String::new(),
            };
            let times = if times > 1 { format!(", {times} times in a row") } else { String::new() };
            format!("ejected{until}{times}{}", error())
        }
        Obstacle::OnTrial => "half open, and another client is its trial".to_owned(),
        Obstacle::Tier { own, last } => format!("in tier {own}, and the tiers up to {last} are in use"),
        Obstacle::Full { max } => format!("full: {} of {max} connections", backend.active()),
        Obstacle::Paced { wait } => format!("its next connect would have to wait for {wait} ms (connect.max_rate)"),
        Obstacle::TooLoaded { most } => {
            format!("above hash.max_load: {} connections, of which its share allows {most}", backend.active())
        }
        Obstacle::StartsSlowly { share } => {
            let percent = (100.0 * f64::from(share) / f64::from(WHOLE_SHARE)).round();
            format!("it has {percent} % of its clients so far, and this isn't one of them")
        }
    }
}
