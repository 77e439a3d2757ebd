//! Gates that follow each other: what goes on through a new config, beside a model, and from many threads.

use super::*;
use arc_swap::ArcSwap;
use proptest::prelude::*;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};

const SECOND: Nanos = 1_000_000_000;

/// One config's gates, with the name of each one's listener.
struct House {
    shared: SharedLimits,
    gates: Vec<(String, Arc<Gate>)>,
}

/// A process whose config changes.
struct Street {
    process: Arc<Process>,
    metrics: Arc<Metrics>,
}

impl Street {
    fn new(max: usize) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        Self { process: Arc::new(Process::new(max, Pressure::default(), &metrics)), metrics }
    }

    /// What would hold with this config, whose listeners are names and lines; `more` stands before them.
    fn plan(&self, more: &str, listeners: &[(&str, &str)], previous: Option<&House>) -> House {
        let mut text = more.to_owned();
        for (port, (name, lines)) in listeners.iter().enumerate() {
            let bind = format!("127.0.0.1:{}", port + 1);
            writeln!(text, "\n[listeners.{name}]\nbind = \"{bind}\"\npool = \"p\"\n{lines}").unwrap();
        }
        text += "[pools.p]\nbackends = [\"127.0.0.1:9\"]\n";
        let config =
            Config::parse("lb.toml", text.as_bytes()).unwrap_or_else(|error| panic!("{error:?}\n{text}")).config;
        let shared = SharedLimits::new(&config, &self.metrics, previous.map(|house| &house.shared));
        let around = Around { process: &self.process, shared: &shared, metrics: &self.metrics, bounded_by_fds: false };
        let gate = |listener: &config::Listener| {
            let before = previous.and_then(|house| house.gate(listener.name.as_str()));
            let gate = Gate::new(&listener.name, &listener.admission, around, before.map(|gate| &**gate));
            (listener.name.to_string(), Arc::new(gate))
        };
        let gates = config.listeners.iter().map(gate).collect();
        House { shared, gates }
    }

    /// The same, and it holds.
    fn build(&self, more: &str, listeners: &[(&str, &str)], previous: Option<&House>, now: Nanos) -> House {
        let house = self.plan(more, listeners, previous);
        let gates: Vec<&Gate> = house.gates.iter().map(|(_, gate)| &**gate).collect();
        succeed(previous.into_iter().flat_map(|house| &house.gates).map(|(_, gate)| &**gate), &gates, now);
        house
    }

    fn samples(&self, house: &House, part: &str) -> Vec<String> {
        house.gates.iter().for_each(|(_, gate)| gate.publish());
        let text = self.metrics.encode().unwrap();
        text.lines().filter(|line| !line.starts_with('#') && line.contains(part)).map(str::to_owned).collect()
    }
}

impl House {
    fn gate(&self, name: &str) -> Option<&Arc<Gate>> {
        self.gates.iter().find(|(known, _)| known == name).map(|(_, gate)| gate)
    }

    fn admit_at(&self, name: &str, client: u32, now: Nanos) -> Result<Permit, Bound> {
        let gate = self.gate(name).unwrap();
        let early = gate.before_accept(now).map_err(|full| full.why.bound)?;
        let address = SocketAddr::new(Ipv4Addr::from(0x0a00_0000 + client).into(), 1);
        early.admit(ClientAddr::tcp(address), now).map_err(|refusal| refusal.bound)
    }

    fn admit(&self, name: &str) -> Result<Permit, Bound> {
        self.admit_at(name, 1, 1)
    }

    /// The connections of each limit of a listener.
    fn counts(&self, name: &str) -> Vec<usize> {
        self.gate(name).unwrap().limiters().iter().map(|limiter| limiter.connections()).collect()
    }
}

#[test]
fn a_limit_with_another_number_counts_on() {
    let street = Street::new(100);
    let build = |max: usize, all: usize, previous: Option<&House>| {
        let (more, lines) = (format!("[limits.all]\nmax_connections = {all}"), format!("max_connections = {max}"));
        street.build(&more, &[("a", &format!("{lines}\nlimits = [\"all\"]"))], previous, 1)
    };
    let few = build(2, 9, None);
    let mut held = vec![few.admit("a").unwrap(), few.admit("a").unwrap()];
    assert_eq!(few.admit("a").unwrap_err(), Bound::Connections);
    let more = build(4, 9, Some(&few));
    held.extend([more.admit("a").unwrap(), more.admit("a").unwrap()]);
    assert_eq!((more.counts("a"), more.admit("a").unwrap_err()), (vec![4, 4], Bound::Connections));
    // Below what is there: nobody is cut, and nobody new comes in until it fits.
    let fewer = build(9, 2, Some(&more));
    for left in [4, 3, 2] {
        assert_eq!((fewer.counts("a"), fewer.admit("a").unwrap_err()), (vec![left, left], Bound::Connections));
        held.remove(0);
    }
    let again = fewer.admit("a").unwrap();
    assert_eq!(
        street.samples(&fewer, "tidegate_limit_max_connections{scope=\"shared\""),
        [r#"tidegate_limit_max_connections{scope="shared",name="all"} 2"#]
    );
    drop((held, again));
    assert_eq!((fewer.counts("a"), street.process.active()), (vec![0, 0], 0));
}

#[test]
fn a_config_that_is_dropped_has_changed_nothing() {
    let street = Street::new(10);
    let lines = "reserved_connections = 2\nmax_connections = 3\naccept_rate_per_client = \"1/s\"\nburst_per_client = 3";
    let house = street.build("", &[("a", lines), ("b", "")], None, 1);
    let held = [house.admit("a").unwrap(), house.admit("a").unwrap()];
    let other = "reserved_connections = 1\nmax_connections = 1\naccept_rate_per_client = \"1/h\"\nmax_clients = 16";
    drop(street.plan("", &[("a", other)], Some(&house)));
    assert!(house.admit("a").is_ok(), "three at once, and a burst of three");
    assert_eq!(house.admit("a").unwrap_err(), Bound::RatePerClient);
    assert_eq!((house.counts("a"), (0..10).filter_map(|_| house.admit("b").ok()).count()), (vec![2], 10));
    let max = r#"tidegate_limit_max_connections{scope="listener",name="a"} 3"#;
    assert_eq!(street.samples(&house, "limit_max_connections{scope=\"listener\""), [max]);
    drop(held);
    assert_eq!(street.process.active(), 0);
}

#[test]
fn a_limit_that_is_new_counts_those_who_are_there_already() {
    let street = Street::new(100);
    let plain = street.build("", &[("a", ""), ("b", "")], None, 1);
    let mut held: Vec<_> = (0..3).map(|_| plain.admit("a").unwrap()).collect();
    let _other = plain.admit("b").unwrap();
    let limits = "[limits.all]\nmax_connections = 9";
    let limited = "max_connections = 4\nlimits = [\"all\"]";
    let both = street.build(limits, &[("a", limited), ("b", "")], Some(&plain), 1);
    assert_eq!(both.counts("a"), [3, 3]);
    let fourth = both.admit("a").unwrap();
    assert_eq!(both.admit("a").unwrap_err(), Bound::Connections);
    // The same once more changes nothing; and without it for a while, they are counted again.
    let same = street.build(limits, &[("a", limited), ("b", "limits = [\"all\"]")], Some(&both), 1);
    assert_eq!((same.counts("a"), same.counts("b")), (vec![4, 5], vec![1, 5]));
    held.pop();
    assert_eq!(same.counts("a"), [3, 4]);
    let without = street.build(limits, &[("a", ""), ("b", "limits = [\"all\"]")], Some(&same), 1);
    let late = without.admit("a").unwrap();
    assert_eq!(without.counts("b")[1], 4, "who was counted is, until it goes");
    let again = street.build(limits, &[("a", limited), ("b", "limits = [\"all\"]")], Some(&without), 1);
    assert_eq!(again.counts("a"), [4, 5]);
    drop((held, fourth, late));
    assert_eq!(again.counts("a"), [0, 1]);
}

#[test]
fn with_the_end_of_a_dry_run_those_count_that_it_has_let_in() {
    let street = Street::new(100);
    let lines = |dry: bool| format!("max_connections = 2\ndry_run = {dry}");
    let dry = street.build("", &[("a", &lines(true))], None, 1);
    let mut held: Vec<_> = (0..5).map(|_| dry.admit("a").unwrap()).collect();
    assert_eq!(dry.counts("a"), [2]);
    let still = street.build("", &[("a", &lines(true))], Some(&dry), 1);
    assert_eq!(still.counts("a"), [2]);
    let real = street.build("", &[("a", &lines(false))], Some(&still), 1);
    assert_eq!(real.counts("a"), [5]);
    for _ in 0..3 {
        assert_eq!(real.admit("a").unwrap_err(), Bound::Connections);
        held.pop();
    }
    assert_eq!(real.counts("a"), [2]);
    held.clear();
    assert_eq!((real.counts("a"), street.process.active()), (vec![0], 0));
}

#[test]
fn a_listener_that_goes_keeps_no_reserve_and_shows_no_limit() {
    let street = Street::new(4);
    let house = street.build("", &[("a", "reserved_connections = 3\nmax_connections = 3"), ("b", "")], None, 1);
    let held = house.admit("a").unwrap();
    let alone = street.build("", &[("b", "")], Some(&house), 1);
    assert_eq!((0..9).map_while(|_| alone.admit("b").ok()).collect::<Vec<_>>().len(), 3);
    assert!(street.samples(&alone, "scope=\"listener\"").is_empty());
    assert_eq!(house.counts("a"), [1]);
    drop(held);
    assert_eq!((house.counts("a"), street.process.active()), (vec![0], 0));
}

#[test]
fn what_clients_have_and_owe_goes_on_and_another_prefix_begins_anew() {
    let street = Street::new(100);
    let build = |lines: &str, previous: Option<&House>| street.build("", &[("a", lines)], previous, SECOND);
    let admit = |house: &House| house.admit_at("a", 1, SECOND);
    let few = build("max_connections_per_client = 1\naccept_rate = \"1/h\"\nburst = 3", None);
    let mut held = vec![admit(&few).unwrap()];
    assert_eq!(admit(&few).unwrap_err(), Bound::ConnectionsPerClient);
    let more = build("max_connections_per_client = 3\naccept_rate = \"1/s\"\nburst = 3", Some(&few));
    held.extend([admit(&more).unwrap(), admit(&more).unwrap()]);
    assert_eq!(admit(&more).unwrap_err(), Bound::ConnectionsPerClient);
    held.pop();
    assert_eq!(admit(&more).unwrap_err(), Bound::Rate, "the burst is used up, and an hour is a second now");
    assert!(more.admit_at("a", 1, 2 * SECOND).is_ok());
    let prefix = build("max_connections_per_client = 1\nclient_prefix_ipv4 = 24", Some(&more));
    assert_eq!(prefix.counts("a"), [2]);
    held.push(admit(&prefix).unwrap());
    assert_eq!(admit(&prefix).unwrap_err(), Bound::ConnectionsPerClient);
    held.clear();
    assert_eq!(prefix.counts("a"), [0]);
    assert_eq!(prefix.gate("a").unwrap().limiters()[0].clients().unwrap().0, 0);
}

#[test]
fn refusals_and_delays_are_counted_on() {
    let street = Street::new(100);
    let build = |max: usize, previous: Option<&House>| {
        street.build("", &[("a", &format!("max_connections = {max}"))], previous, 1)
    };
    let first = build(1, None);
    let held = first.admit("a").unwrap();
    let _ = first.admit("a").unwrap_err();
    first.gate("a").unwrap().delay(PROCESS_FULL);
    let second = build(2, Some(&first));
    let third = build(1, Some(&second));
    drop((first, second, held));
    let held = third.admit("a").unwrap();
    let _ = third.admit("a").unwrap_err();
    let refused =
        r#"tidegate_limit_refusals_total{scope="listener",name="a",dry_run="false",reason="max_connections"} 2"#;
    assert_eq!(street.samples(&third, "refusals"), [refused]);
    assert_eq!(third.gate("a").unwrap().delays().next(), Some((PROCESS_FULL, 1)));
    let open = street.build("", &[("a", "deny = [\"10.9.0.0/16\"]")], Some(&third), 1);
    assert!(street.samples(&open, "limit_max_connections{scope=\"listener\"").is_empty(), "there is none any more");
    drop(held);
}

/// The numbers of one listener's config.
#[derive(Clone, Debug, Default)]
struct Numbers {
    max: Option<usize>,
    per_client: Option<usize>,
    reserved: usize,
    shared: bool,
}

impl Numbers {
    fn lines(&self) -> String {
        let mut lines = String::new();
        for (key, value) in [("max_connections", self.max), ("max_connections_per_client", self.per_client)] {
            lines += &value.map_or_else(String::new, |value| format!("{key} = {value}\n"));
        }
        writeln!(lines, "reserved_connections = {}", self.reserved()).unwrap();
        lines + if self.shared { "limits = [\"all\"]\n" } else { "" }
    }

    fn reserved(&self) -> usize {
        self.max.map_or(self.reserved, |max| self.reserved.min(max))
    }

    fn has_limits(&self) -> bool {
        self.max.is_some() || self.per_client.is_some() || self.shared
    }
}

/// One config: the maximum of all, that of the process, and the listeners; the second may be missing.
#[derive(Clone, Debug)]
struct Plan {
    all: usize,
    most: usize,
    a: Numbers,
    b: Option<Numbers>,
}

impl Plan {
    fn build(&self, street: &Street, previous: Option<&House>) -> House {
        let mut listeners = vec![("a", self.a.lines())];
        listeners.extend(self.b.as_ref().map(|b| ("b", b.lines())));
        let listeners: Vec<_> = listeners.iter().map(|(name, lines)| (*name, lines.as_str())).collect();
        let more = format!("[limits.all]\nmax_connections = {}", self.all);
        street.process.set_max(self.most);
        street.build(&more, &listeners, previous, 1)
    }

    fn numbers(&self, at: usize) -> Option<&Numbers> {
        if at == 0 { Some(&self.a) } else { self.b.as_ref() }
    }
}

fn numbers() -> impl Strategy<Value = Numbers> {
    (prop::option::of(1_usize..6), prop::option::of(1_usize..3), 0_usize..3, any::<bool>())
        .prop_map(|(max, per_client, reserved, shared)| Numbers { max, per_client, reserved, shared })
}

fn plan() -> impl Strategy<Value = Plan> {
    (1_usize..9, 4_usize..16, numbers(), prop::option::weighted(0.8, numbers())).prop_map(|(all, most, a, b)| Plan {
        all,
        most,
        a,
        b,
    })
}

#[derive(Clone, Debug)]
enum Step {
    Enter(usize, u32),
    Leave(usize),
    Reload(Plan),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..2, 0_u32..3).prop_map(|(at, client)| Step::Enter(at, client)),
        3 => any::<usize>().prop_map(Step::Leave),
        1 => plan().prop_map(Step::Reload),
    ]
}

/// One connection of the model.
struct Known {
    at: usize,
    client: u32,
    /// Which share it is part of: another one each time that the listener comes back.
    share: usize,
    by_own: bool,
    by_all: bool,
    /// Known to the listener's table of clients.
    by_client: bool,
    permit: Permit,
}

proptest! {
    /// A model that counts the connections themselves says who is let in, and what each limit counts.
    #[test]
    fn through_all_changes_a_gate_lets_in_whom_the_model_lets_in(
        first in plan(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let street = Street::new(first.most);
        let mut plan = first;
        let mut house = plan.build(&street, None);
        let (mut there, mut shares): (Vec<Known>, [usize; 2]) = (Vec::new(), [0, 0]);
        for step in steps {
            match step {
                Step::Enter(at, client) => {
                    let Some(numbers) = plan.numbers(at) else { continue };
                    let count = |of: &dyn Fn(&Known) -> bool| there.iter().filter(|known| of(known)).count();
                    let own = count(&|known| known.at == at && known.by_own);
                    let clients = count(&|known| known.at == at && known.client == client && known.by_client);
                    let active = |at: usize, share: usize| count(&|known| known.at == at && known.share == share);
                    let reserved = |at: usize| plan.numbers(at).map_or(0, Numbers::reserved);
                    let current: usize = (0..2).map(|at| active(at, shares[at]).max(reserved(at))).sum();
                    let old = count(&|known| known.share != shares[known.at]);
                    let room = if active(at, shares[at]) < reserved(at) {
                        there.len() < plan.most
                    } else {
                        current + old < plan.most
                    };
                    let expected = match numbers {
                        _ if numbers.per_client.is_some_and(|max| clients >= max) => Err(Bound::ConnectionsPerClient),
                        _ if numbers.max.is_some_and(|max| own >= max) => Err(Bound::Connections),
                        _ if numbers.shared && count(&|known| known.by_all) >= plan.all => Err(Bound::Connections),
                        _ if !room => Err(Bound::Connections),
                        _ => Ok(()),
                    };
                    let answer = house.admit_at(["a", "b"][at], client, 1);
                    prop_assert_eq!(answer.as_ref().map(|_| ()).map_err(|bound| *bound), expected);
                    let (by_own, by_client) = (numbers.has_limits(), numbers.per_client.is_some());
                    let (by_all, share) = (numbers.shared, shares[at]);
                    there.extend(answer.map(|permit| Known { at, client, share, by_own, by_all, by_client, permit }));
                }
                Step::Leave(at) if !there.is_empty() => {
                    let at = at % there.len();
                    drop(there.swap_remove(at).permit);
                }
                Step::Leave(_) => {}
                Step::Reload(next) => {
                    house = next.build(&street, Some(&house));
                    for (at, share) in shares.iter_mut().enumerate() {
                        let before = plan.numbers(at).filter(|before| before.has_limits());
                        let after = next.numbers(at);
                        *share += usize::from(plan.numbers(at).is_none() && after.is_some());
                        let own = there.iter_mut().filter(|known| known.at == at);
                        for known in own {
                            // Only of a listener that was there before and is now, it is one and the same limit.
                            known.by_own = after.is_some_and(Numbers::has_limits) && known.share == *share;
                            let both = before.is_some_and(|before| before.per_client.is_some())
                                && after.is_some_and(|after| after.per_client.is_some());
                            known.by_client &= both;
                            known.by_all |= after.is_some_and(|after| after.shared) && known.share == *share;
                        }
                    }
                    plan = next;
                }
            }
            for at in 0..2 {
                let (Some(numbers), Some(gate)) = (plan.numbers(at), house.gate(["a", "b"][at])) else { continue };
                if numbers.has_limits() {
                    let own = there.iter().filter(|known| known.at == at && known.by_own).count();
                    prop_assert_eq!(gate.limiters()[0].connections(), own);
                }
                if numbers.shared {
                    let all = there.iter().filter(|known| known.by_all).count();
                    prop_assert_eq!(gate.limiters()[1].connections(), all);
                }
            }
            prop_assert_eq!(street.process.active(), there.len());
        }
        there.clear();
        prop_assert_eq!(street.process.active(), 0);
        for (_, gate) in &house.gates {
            prop_assert!(gate.limiters().iter().all(|limiter| limiter.connections() == 0));
        }
    }
}

#[test]
fn many_threads_come_and_go_through_many_configs_and_nothing_is_left() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let plans: Vec<Plan> = (0..200).map(|_| plan().new_tree(&mut runner).unwrap().current()).collect();
    let street = Street::new(16);
    let house = ArcSwap::from_pointee(plans[0].build(&street, None));
    let done = std::sync::atomic::AtomicBool::new(false);
    let let_in: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|seed| {
                let (house, street, done) = (&house, &street, &done);
                scope.spawn(move || {
                    let (mut rng, mut held, mut let_in) = (crate::rng::Rng::from_seed(seed), Vec::new(), 0);
                    while !done.load(Ordering::Relaxed) {
                        let name = ["a", "b"][rng.index(2)];
                        let house = house.load_full();
                        if rng.below(2) == 0 && house.gate(name).is_some() {
                            held.extend(house.admit_at(name, rng.below(3) as u32, 1));
                            let_in += 1;
                        } else if !held.is_empty() {
                            held.swap_remove(rng.index(held.len()));
                        }
                        assert!(street.process.active() < 16, "no plan allows more");
                    }
                    let_in
                })
            })
            .collect();
        for plan in &plans[1..] {
            let next = plan.build(&street, Some(&house.load()));
            house.store(Arc::new(next));
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        clients.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(let_in > 0);
    assert_eq!(street.process.active(), 0);
    let open = Plan { all: 3, most: 15, a: Numbers { shared: true, ..Numbers::default() }, b: None };
    let last = open.build(&street, Some(&house.load()));
    assert_eq!(last.counts("a"), [0, 0]);
    let held: Vec<_> = (0..9).map_while(|_| last.admit("a").ok()).collect();
    assert_eq!(held.len(), 3);
}
