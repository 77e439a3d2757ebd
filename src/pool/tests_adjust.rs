//! What an operator says of a living pool: who is chosen, what is kept, and what nobody's word undoes.

use super::health::{AgentAdmin, AgentReport, Outcome};
use super::tests::{member, pool_of};
use super::*;
use crate::config::{Adjustment, AdminState, Balance, Group, HealthOverride, Percent};
use crate::name::BackendId;
use crate::rng::Rng;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SLOW_START: Duration = Duration::from_secs(10);

fn at(millis: Millis) -> Now {
    Now { millis, unix_ms: 1_000_000 + millis }
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new().unwrap())
}

fn state(state: AdminState) -> Adjustment {
    Adjustment { state: Some(state), ..Adjustment::default() }
}

fn health(health: HealthOverride) -> Adjustment {
    Adjustment { health: Some(health), ..Adjustment::default() }
}

fn weight(weight: u16) -> Adjustment {
    Adjustment { weight: Some(weight), ..Adjustment::default() }
}

/// Says this of `b0`, and nothing of the others.
fn say(pool: &Pool, said: Adjustment, now: Millis) -> &'static str {
    pool.adjust(&BTreeMap::from([("b0".to_owned(), said)]), &metrics(), false, at(now));
    pool.view().backends[0].state()
}

fn chosen(pool: &Pool, now: Millis) -> BTreeSet<String> {
    let rng = &mut Rng::from_seed(1);
    let slots = (0..200).filter_map(|_| pool.claim(&Tried::default(), now, rng));
    slots.map(|slot| slot.label.to_string()).collect()
}

fn labels(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn members(list: &[(&str, u16)]) -> Members {
    let list = list.iter().map(|(label, weight)| member(label, label, *weight)).collect();
    Members { list, balance: Balance::RoundRobin }
}

#[test]
fn a_backend_that_is_taken_out_gets_nothing_new_and_keeps_what_it_has() {
    for (said, word) in [
        (state(AdminState::Draining), "draining"),
        (state(AdminState::Disabled), "disabled"),
        (health(HealthOverride::Down), "forced_down"),
    ] {
        let pool = pool_of(Balance::RoundRobin, &[0; 3], |_| {});
        let slot = pool.claim(&Tried::default(), 1, &mut Rng::from_seed(1)).unwrap();
        assert_eq!(&*slot.label, "b0");
        assert_eq!(say(&pool, said, 50), word);
        assert_eq!(chosen(&pool, 50), labels(&["b1", "b2"]), "{word}");
        let backend = &pool.view().backends[0];
        assert_eq!((slot.active(), backend.state_since(at(60)), pool.available()), (1, 1_000_050, 2));
        assert_eq!(backend.is_up(), word != "forced_down");
        say(&pool, said, 70);
        assert_eq!(backend.state_since(at(80)), 1_000_050, "saying it again changes nothing");
        assert_eq!(say(&pool, Adjustment::default(), 90), "up");
        assert_eq!(chosen(&pool, 90), labels(&["b0", "b1", "b2"]));
    }
}

#[test]
fn not_even_panic_uses_what_an_operator_has_taken_out() {
    let pool = pool_of(Balance::RoundRobin, &[0; 3], |config| config.protection.panic_threshold = Percent::whole(100));
    for backend in &pool.view().backends {
        backend.set_health(Health::Down, 5);
    }
    for said in [state(AdminState::Draining), state(AdminState::Disabled), health(HealthOverride::Down)] {
        say(&pool, said, 9);
        assert!(pool.mode().panic);
        assert_eq!(chosen(&pool, 9), labels(&["b1", "b2"]), "{said:?}");
    }
    let all = ["b0", "b1", "b2"].map(|label| (label.to_owned(), state(AdminState::Draining)));
    pool.adjust(&BTreeMap::from(all), &metrics(), false, at(10));
    assert!(pool.is_out() && !pool.mode().panic);
    assert_eq!(chosen(&pool, 10), labels(&[]));
}

#[test]
fn neither_operator_nor_agent_undoes_the_other() {
    let pool = pool_of(Balance::RoundRobin, &[0; 2], |_| {});
    let backend = Arc::clone(&pool.view().backends[0]);
    let agent = |admin, state| {
        pool.set_agent(&backend, &AgentReport { state, admin: Some(admin), weight: None }, at(20));
        backend.state()
    };
    assert_eq!(say(&pool, state(AdminState::Draining), 10), "draining");
    assert_eq!(agent(AgentAdmin::Ready, Some(Health::Up)), "draining");
    assert_eq!(agent(AgentAdmin::Maint, None), "draining", "the operator's word comes first");
    assert_eq!(say(&pool, state(AdminState::Enabled), 30), "maint", "the agent's still stands");
    assert_eq!(chosen(&pool, 30), labels(&["b1"]));
    assert_eq!(agent(AgentAdmin::Drain, None), "agent_draining");
    assert_eq!(say(&pool, state(AdminState::Disabled), 40), "disabled");
    assert_eq!(agent(AgentAdmin::Ready, None), "disabled");
    assert_eq!(say(&pool, state(AdminState::Enabled), 50), "up");
    assert_eq!(agent(AgentAdmin::Ready, Some(Health::Down)), "down");
    assert_eq!(say(&pool, health(HealthOverride::Up), 60), "forced_up");
    assert_eq!(agent(AgentAdmin::Ready, Some(Health::Up)), "forced_up");
    assert_eq!(agent(AgentAdmin::Ready, Some(Health::Down)), "forced_up");
    assert_eq!(chosen(&pool, 60), labels(&["b0", "b1"]));
    assert_eq!(say(&pool, health(HealthOverride::Auto), 70), "down", "what the agent said last counts again");
}

#[test]
fn a_verdict_that_does_not_count_is_remembered() {
    let pool = pool_of(Balance::RoundRobin, &[0; 2], |config| (config.health.rise, config.health.fall) = (1, 1));
    let backend = Arc::clone(&pool.view().backends[0]);
    let (falls, probe) = (pool.falls(), |outcome| pool.observe(&backend, outcome, at(20)));
    assert_eq!(say(&pool, health(HealthOverride::Up), 10), "forced_up");
    assert_eq!(probe(Outcome::Failure), Some(Health::Down));
    assert_eq!((backend.state(), backend.is_up(), backend.health().0), ("forced_up", true, Health::Down));
    assert_eq!(backend.metrics.up.get(), Some(1));
    assert_eq!(say(&pool, health(HealthOverride::Auto), 30), "down");
    assert_eq!((pool.falls() > falls, backend.metrics.up.get()), (true, Some(0)), "sessions may have to move");
    assert_eq!(say(&pool, health(HealthOverride::Down), 40), "forced_down");
    assert_eq!(probe(Outcome::Success), Some(Health::Up));
    assert_eq!((backend.state(), backend.is_up()), ("forced_down", false));
    assert_eq!(say(&pool, health(HealthOverride::Auto), 50), "up");
}

#[test]
fn whoever_comes_back_by_an_operators_word_starts_slowly() {
    for out in [state(AdminState::Draining), state(AdminState::Disabled), health(HealthOverride::Down)] {
        let pool = pool_of(Balance::RoundRobin, &[0; 2], |config| config.protection.slow_start = SLOW_START);
        let backend = Arc::clone(&pool.view().backends[0]);
        say(&pool, out, 1_000);
        assert_eq!(backend.share(), WHOLE_SHARE);
        say(&pool, Adjustment::default(), 2_000);
        assert_eq!(backend.share(), 102, "{out:?}");
        pool.review(2_000 + SLOW_START.as_millis() as Millis / 2);
        assert_eq!(backend.share(), 563);
        say(&pool, weight(3), 7_000);
        assert_eq!(backend.share(), 563, "another weight is no return");
    }
    let pool = pool_of(Balance::RoundRobin, &[0; 2], |config| {
        config.protection.slow_start = SLOW_START;
        (config.health.rise, config.health.fall) = (1, 1);
    });
    let backend = Arc::clone(&pool.view().backends[0]);
    say(&pool, health(HealthOverride::Up), 1_000);
    pool.observe(&backend, Outcome::Failure, at(2_000));
    pool.observe(&backend, Outcome::Success, at(3_000));
    assert_eq!(backend.share(), WHOLE_SHARE, "it was never away");
    let all = BTreeMap::from([("b1".to_owned(), health(HealthOverride::Up))]);
    pool.view().backends[1].set_health(Health::Down, 5);
    pool.adjust(&all, &metrics(), true, at(4_000));
    assert_eq!(pool.view().backends[1].share(), WHOLE_SHARE, "at the start of the process nobody comes back");
}

#[test]
fn an_ejection_goes_on_while_an_operator_has_a_backend_out() {
    let pool = pool_of(Balance::RoundRobin, &[0; 2], |_| {});
    let backend = Arc::clone(&pool.view().backends[0]);
    for _ in 0..5 {
        pool.failed(&backend, false, TrafficFailure::Connect, 10);
    }
    assert_eq!(backend.state(), "ejected");
    assert_eq!(say(&pool, state(AdminState::Disabled), 20), "disabled");
    assert_eq!(say(&pool, state(AdminState::Enabled), 30), "ejected", "his word is none on what traffic found");
    say(&pool, state(AdminState::Disabled), 40);
    pool.review(40_000);
    assert_eq!(chosen(&pool, 40_000), labels(&["b1"]), "no trial on who is out");
    assert_eq!(say(&pool, state(AdminState::Enabled), 50_000), "half_open");
    assert_eq!(chosen(&pool, 50_000), labels(&["b0", "b1"]));
}

#[test]
fn a_weight_and_members_change_around_everybody_else() {
    let pool = pool_of(Balance::RoundRobin, &[0; 3], |config| config.protection.slow_start = Duration::ZERO);
    let slot = pool.claim(&Tried::default(), 1, &mut Rng::from_seed(1)).unwrap();
    let before = pool.view();
    let next = |pool: &Pool| pool.claim(&Tried::default(), 1, &mut Rng::from_seed(1)).unwrap().label.to_string();
    say(&pool, weight(3), 5);
    let after = pool.view();
    assert_eq!((&*after.weights, after.members.list[0].weight), (&[3, 1, 1][..], 1), "in force, and configured");
    assert!(before.backends.iter().zip(&after.backends).all(|(a, b)| a.id == b.id));
    let shares: Vec<String> = (0..50).map(|_| next(&pool)).collect();
    assert_eq!(shares.iter().filter(|label| *label == "b0").count(), 30);
    say(&pool, state(AdminState::Draining), 6);
    assert_eq!(*pool.view().weights, [1, 1, 1], "nothing is said of its weight any more");

    say(&pool, Adjustment::default(), 7);
    assert_eq!(next(&pool), "b0", "the 52nd turn: whose it is has outlived two views");
    pool.set_members(members(&[("b1", 1), ("b2", 1), ("b9", 1)]), &BTreeMap::new(), &metrics(), at(8));
    assert_eq!(chosen(&pool, 8), labels(&["b1", "b2", "b9"]));
    assert_eq!(pool.view().backends[0].id, before.backends[1].id);
    assert_eq!(slot.active(), 1, "a session on who is gone goes on");
    drop(slot);
    assert_eq!(before.backends[0].active(), 0);
    pool.set_members(members(&[]), &BTreeMap::new(), &metrics(), at(9));
    assert_eq!((chosen(&pool, 9), pool.is_out()), (labels(&[]), true));
}

#[test]
fn a_new_member_is_never_seen_without_what_is_said_of_it() {
    let pool = pool_of(Balance::RoundRobin, &[0; 1], |_| {});
    let said = BTreeMap::from([("b1".to_owned(), state(AdminState::Disabled))]);
    pool.set_members(members(&[("b0", 1), ("b1", 1)]), &said, &metrics(), at(5));
    assert_eq!(pool.view().backends[1].state(), "disabled");
    assert_eq!(chosen(&pool, 5), labels(&["b0"]));
}

#[test]
fn whoever_waits_for_a_place_gets_that_of_a_backend_that_is_added() {
    let pool = pool_of(Balance::RoundRobin, &[0; 1], |config| {
        config.queue = Some(config::Queue::default());
    });
    let mut list = members(&[("b0", 1), ("b1", 1)]);
    list.list[0].max_connections = Some(1);
    pool.set_members(Members { list: vec![list.list[0].clone()], ..list.clone() }, &BTreeMap::new(), &metrics(), at(4));
    let _held = pool.claim(&Tried::default(), 5, &mut Rng::from_seed(1)).unwrap();
    assert!(pool.claim(&Tried::default(), 5, &mut Rng::from_seed(1)).is_none());
    assert!(pool.is_worth_waiting(&Tried::default(), 0, 5));
    pool.set_members(list, &BTreeMap::new(), &metrics(), at(6));
    assert_eq!(chosen(&pool, 6), labels(&["b1"]));
}

/// What is done to a pool of up to six backends, each named by a number.
#[derive(Clone, Debug)]
enum Act {
    Say(u8, Option<AdminState>, Option<u16>, Option<HealthOverride>),
    Probe(u8, bool),
    Agent(u8, Option<Health>, Option<AgentAdmin>),
    Members(u8),
    /// Another table, with a pool of the same members and of what is said of them.
    Rebuild,
}

fn acts() -> impl Strategy<Value = Act> {
    let states = prop_oneof![
        Just(None),
        Just(Some(AdminState::Enabled)),
        Just(Some(AdminState::Draining)),
        Just(Some(AdminState::Disabled))
    ];
    let healths = prop_oneof![
        Just(None),
        Just(Some(HealthOverride::Auto)),
        Just(Some(HealthOverride::Up)),
        Just(Some(HealthOverride::Down))
    ];
    let admins = prop_oneof![Just(AgentAdmin::Ready), Just(AgentAdmin::Drain), Just(AgentAdmin::Maint)];
    let verdict = any::<bool>().prop_map(|up| if up { Health::Up } else { Health::Down });
    prop_oneof![
        4 => (0..6_u8, states, proptest::option::of(1..5_u16), healths)
            .prop_map(|(index, state, weight, health)| Act::Say(index, state, weight, health)),
        3 => (0..6_u8, any::<bool>()).prop_map(|(index, up)| Act::Probe(index, up)),
        2 => (0..6_u8, proptest::option::of(verdict), proptest::option::of(admins))
            .prop_map(|(index, state, admin)| Act::Agent(index, state, admin)),
        2 => (0..64_u8).prop_map(Act::Members),
        1 => Just(Act::Rebuild),
    ]
}

/// One backend by the rules, from nothing but what happened since it came.
#[derive(Clone)]
struct Model {
    id: BackendId,
    probe_up: bool,
    agent: AgentReport,
}

impl Model {
    fn expected(&self, said: Adjustment) -> (&'static str, bool) {
        let agent_out = self.agent.admin != Some(AgentAdmin::Ready);
        let is_up = match said.health.unwrap_or_default() {
            HealthOverride::Auto => self.probe_up && self.agent.state == Some(Health::Up),
            HealthOverride::Up => true,
            HealthOverride::Down => false,
        };
        let word = match (said.state.unwrap_or_default(), said.health.unwrap_or_default()) {
            (AdminState::Disabled, _) => "disabled",
            (AdminState::Draining, _) => "draining",
            (_, HealthOverride::Down) => "forced_down",
            _ if self.agent.admin == Some(AgentAdmin::Maint) => "maint",
            _ if agent_out => "agent_draining",
            _ if !is_up => "down",
            (_, HealthOverride::Up) => "forced_up",
            _ => "up",
        };
        (word, is_up && !agent_out && said.state.unwrap_or_default() == AdminState::Enabled)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_in_whatever_order_a_pool_is_as_the_rules_say(acts in vec(acts(), 1..40), hash in any::<bool>()) {
        let balance = if hash { Balance::SourceHash } else { Balance::RoundRobin };
        let mut config = config::Pool::new(PoolName::new("web"), balance.clone(), Vec::new());
        config.health.initial = config::Initial::Up;
        (config.health.rise, config.health.fall) = (1, 1);
        config.protection.panic_threshold = Percent::whole(0);
        config.protection.slow_start = Duration::ZERO;
        let metrics = metrics();
        let of = |bits: u8| {
            let list = (0..6_u8).filter(|index| bits >> index & 1 == 1);
            let list = list.map(|index| member(&format!("b{index}"), &format!("b{index}"), 2)).collect();
            Members { list, balance: balance.clone() }
        };
        let mut pool = Pool::new(&config, &of(7), &metrics, None, at(1));
        let mut said: Adjusted = BTreeMap::new();
        let fresh = |id| Model { id, probe_up: true, agent: AgentReport::of_nobody() };
        let mut models: BTreeMap<String, Model> =
            pool.view().backends.iter().map(|backend| (backend.label.to_string(), fresh(backend.id))).collect();
        for (now, act) in (2..).zip(acts) {
            let found = |index: u8| {
                let label = format!("b{index}");
                pool.view().backends.iter().find(|backend| *backend.label == *label).map(Arc::clone)
            };
            match act {
                Act::Say(index, state, weight, health) => {
                    said.insert(format!("b{index}"), Adjustment { state, weight, health });
                    pool.adjust(&said, &metrics, false, at(now));
                }
                Act::Probe(index, up) => if let Some(backend) = found(index) {
                    let outcome = if up { Outcome::Success } else { Outcome::Failure };
                    pool.observe(&backend, outcome, at(now));
                    if let Some(model) = models.get_mut(&*backend.label) {
                        model.probe_up = up;
                    }
                }
                Act::Agent(index, state, admin) => if let Some(backend) = found(index) {
                    let report = AgentReport { state, admin, weight: None };
                    pool.set_agent(&backend, &report, at(now));
                    if let Some(model) = models.get_mut(&*backend.label) {
                        model.agent = model.agent.updated(&report);
                    }
                }
                Act::Members(bits) => pool.set_members(of(bits), &said, &metrics, at(now)),
                Act::Rebuild => {
                    let members = pool.view().members.clone();
                    pool = Pool::new(&config, &members, &metrics, Some(&pool), at(now));
                    pool.adjust(&said, &metrics, false, at(now));
                }
            }
            let view = pool.view();
            models.retain(|label, model| view.backends.iter().any(|one| *one.label == **label && one.id == model.id));
            let mut may = BTreeSet::new();
            for (backend, &weight) in view.backends.iter().zip(&view.weights) {
                let model = models.entry(backend.label.to_string()).or_insert_with(|| fresh(backend.id));
                let own = said.get(&*backend.label).copied().unwrap_or_default();
                let (word, available) = model.expected(own);
                prop_assert_eq!(backend.id, model.id, "nobody is made anew who stays");
                prop_assert_eq!((backend.state(), backend.available()), (word, available));
                prop_assert_eq!(weight, own.weight.unwrap_or(2));
                if available {
                    may.insert(backend.label.to_string());
                }
            }
            prop_assert_eq!(pool.available(), may.len());
            let got = chosen(&pool, now);
            prop_assert!(got.is_subset(&may) && got.is_empty() == may.is_empty(), "{:?} of {:?}", got, may);
            prop_assert!(hash || got == may, "each has its turn: {:?} of {:?}", got, may);
        }
    }
}

/// A failover group keeps its order around a backend that comes beside it.
#[test]
fn a_target_with_one_more_goes_through_all() {
    let group = Group::Any(vec![Group::Any(vec![Group::Member(0), Group::Member(1)]), Group::Member(2)]);
    let list = members(&[("b0", 1), ("b1", 1), ("b9", 1)]).list;
    let pool = pool_of(Balance::Failover(Group::Any(vec![Group::Member(0)])), &[0], |_| {});
    pool.set_members(Members { list, balance: Balance::Failover(group) }, &BTreeMap::new(), &metrics(), at(2));
    let (mut tried, rng) = (Tried::default(), &mut Rng::from_seed(3));
    let mut seen = BTreeSet::new();
    while let Some(slot) = pool.claim(&tried, 2, rng) {
        tried.push(slot.id);
        seen.insert(slot.label.to_string());
    }
    assert_eq!(seen, labels(&["b0", "b1", "b9"]));
}
