//! The table of clients beside a model without a bound, under floods, and from many threads.

use super::*;
use crate::config::Rate;
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::time::Duration;

const SECOND: Nanos = 1_000_000_000;

const WHOLE: ClientPrefix = ClientPrefix { ipv4: 32, ipv6: 64 };

fn per_second(count: u32, burst: u32) -> Gcra {
    Gcra::new(Rate { count, per: Duration::from_secs(1) }, Some(burst))
}

fn ip(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

#[track_caller]
fn counted(entered: Result<Entered, TooMany>) -> Slot {
    match entered {
        Ok(Entered::Counted { slot, .. }) => slot,
        other => panic!("not counted: {other:?}"),
    }
}

/// What the table itself must hold at any time.
fn check(clients: &Clients) {
    for shard in &clients.shards {
        let shard = lock(shard);
        assert!(shard.index.len() <= shard.capacity || shard.first == NONE, "only who has connections is too many");
        let (mut idle, mut at, mut before) = (0, shard.first, NONE);
        while at != NONE {
            let entry = &shard.entries[at as usize];
            assert_eq!((entry.connections, entry.previous), (0, before));
            (idle, before, at) = (idle + 1, at, entry.next);
        }
        assert_eq!(shard.last, before);
        let busy = shard.index.values().filter(|&&index| shard.entries[index as usize].connections > 0).count();
        assert_eq!(idle + busy, shard.index.len());
        assert!(shard.index.iter().all(|(key, &index)| shard.entries[index as usize].key == *key));
    }
}

#[test]
fn a_client_is_its_prefix_and_families_do_not_mix() {
    let prefix = ClientPrefix { ipv4: 24, ipv6: 64 };
    let key = |address: &str| Key::of(address.parse().unwrap(), prefix);
    assert_eq!(key("192.0.2.1"), key("192.0.2.255"));
    assert_ne!(key("192.0.2.1"), key("192.0.3.1"));
    assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:0:0:1"));
    assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    let all = ClientPrefix { ipv4: 0, ipv6: 0 };
    let key = |address: &str| Key::of(address.parse().unwrap(), all);
    assert_eq!(key("0.0.0.0"), key("255.255.255.255"));
    assert_eq!(key("::"), key("ffff::"));
    assert_ne!(key("::"), key("0.0.0.0"));
}

#[test]
fn connections_are_counted_for_each_client_and_come_back() {
    let clients = Clients::new(WHOLE, Rules { max_clients: 10, max_connections: Some(2), rate: None });
    let first = counted(clients.enter(ip(1), 0));
    let _second = counted(clients.enter(ip(1), 0));
    assert_eq!(clients.enter(ip(1), 0), Err(TooMany::Connections));
    let other = counted(clients.enter(ip(2), 0));
    assert_eq!(clients.remembered(), 2);
    clients.leave(&first);
    let again = counted(clients.enter(ip(1), 0));
    clients.leave(&again);
    clients.leave(&other);
    assert_eq!(clients.remembered(), 1, "one that has gone, and owes nothing, is not remembered");
    check(&clients);
}

#[test]
fn a_rate_outlives_the_connection_and_what_did_not_come_to_be_costs_nothing() {
    let clients = Clients::new(WHOLE, Rules { max_clients: 10, max_connections: None, rate: Some(per_second(1, 2)) });
    for _ in 0..2 {
        clients.leave(&counted(clients.enter(ip(1), SECOND)));
    }
    assert_eq!(clients.enter(ip(1), SECOND), Err(TooMany::Rate));
    clients.give_back(&counted(clients.enter(ip(2), SECOND)));
    clients.leave(&counted(clients.enter(ip(2), SECOND)));
    clients.leave(&counted(clients.enter(ip(2), SECOND)));
    assert_eq!(clients.enter(ip(2), SECOND), Err(TooMany::Rate));
    clients.leave(&counted(clients.enter(ip(1), 2 * SECOND)));
    check(&clients);
}

#[test]
fn who_goes_is_the_longest_unseen_without_a_debt_then_the_least_debt() {
    let clients = Clients::new(WHOLE, Rules { max_clients: 3, max_connections: None, rate: Some(per_second(1, 3)) });
    let visit = |number, times, now| {
        (0..times).for_each(|_| clients.leave(&counted(clients.enter(ip(number), now))));
    };
    visit(1, 3, SECOND);
    visit(2, 1, SECOND);
    visit(3, 2, SECOND);
    // At two seconds only the second one owes nothing; at once after, nobody is free of debt.
    let forgot = |number, now| match clients.enter(ip(number), now) {
        Ok(Entered::Counted { slot, forgot_a_debt }) => {
            clients.leave(&slot);
            forgot_a_debt
        }
        other => panic!("{other:?}"),
    };
    assert!(!forgot(4, 2 * SECOND));
    assert_eq!(clients.enter(ip(1), 2 * SECOND - 1), Err(TooMany::Rate), "the first one is still known");
    assert!(forgot(5, 2 * SECOND + 1), "all owe something");
    assert_eq!(clients.remembered(), 3);
    check(&clients);
}

#[test]
fn who_has_connections_is_never_forgotten_and_a_newcomer_is_let_in_unseen() {
    let clients = Clients::new(WHOLE, Rules { max_clients: 2, max_connections: Some(1), rate: Some(per_second(1, 1)) });
    let held = [1, 2].map(|number| counted(clients.enter(ip(number), 0)));
    assert_eq!(clients.enter(ip(3), 0), Ok(Entered::Untracked));
    assert_eq!(clients.enter(ip(1), 9 * SECOND), Err(TooMany::Connections));
    clients.leave(&held[0]);
    assert!(matches!(clients.enter(ip(3), 9 * SECOND), Ok(Entered::Counted { forgot_a_debt: false, .. })));
    assert_eq!(clients.enter(ip(2), 9 * SECOND), Err(TooMany::Connections));
    check(&clients);
}

#[test]
fn f37_a_flood_of_addresses_leaves_the_table_bounded_and_the_established_known() {
    const MAX: usize = 8_192;
    const FLOOD: u32 = 1_000_000;
    let clients =
        Clients::new(WHOLE, Rules { max_clients: MAX, max_connections: Some(2), rate: Some(per_second(10, 5)) });
    let known: Vec<Slot> = (0..1_000).map(|number| counted(clients.enter(ip(number), SECOND))).collect();
    let (mut untracked, mut debts) = (0, 0);
    for number in 0..FLOOD {
        // A hundred thousand a second: each owes for a tenth of a second, in which ten thousand come.
        let now = SECOND + u64::from(number) * 10_000;
        match clients.enter(ip(0x0a00_0000 + number), now).unwrap() {
            Entered::Counted { slot, forgot_a_debt } => {
                debts += usize::from(forgot_a_debt);
                clients.leave(&slot);
            }
            Entered::Untracked => untracked += 1,
        }
    }
    assert!(clients.remembered() <= MAX, "{}", clients.remembered());
    assert_eq!(untracked, 0);
    // The table remembers for less time than they owe, and says so.
    assert!(debts > FLOOD as usize * 9 / 10, "{debts}");
    let now = 20 * SECOND;
    for number in 0..1_000 {
        let second = counted(clients.enter(ip(number), now));
        assert_eq!(clients.enter(ip(number), now), Err(TooMany::Connections), "client {number} is still known");
        clients.leave(&second);
    }
    for slot in &known {
        clients.leave(slot);
    }
    check(&clients);
}

#[test]
fn a_client_that_asks_for_too_much_is_not_forgotten_for_a_flood_that_owes_nothing() {
    let clients =
        Clients::new(WHOLE, Rules { max_clients: 100, max_connections: None, rate: Some(per_second(100, 50)) });
    let now = |step: u64| SECOND + step * 1_000_000;
    // As fast as it may for a while: it owes half a second.
    while let Ok(Entered::Counted { slot, .. }) = clients.enter(ip(1), SECOND) {
        clients.leave(&slot);
    }
    for step in 0..400_u32 {
        // Each owes for ten milliseconds, in which ten come: those at the head of the table owe nothing any more.
        clients.leave(&counted(clients.enter(ip(1_000 + step), now(step.into()))));
    }
    let again = (0..100).filter(|_| clients.enter(ip(1), now(400)).is_ok()).count();
    assert_eq!(again, 40, "what it may again after 400 ms, and not a whole burst");
}

#[test]
fn many_threads_come_and_go_and_nothing_is_left() {
    let clients = Clients::new(WHOLE, Rules { max_clients: 8_192, max_connections: Some(3), rate: None });
    let most = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for seed in 0..4_u64 {
            let (clients, most) = (&clients, &most);
            scope.spawn(move || {
                let mut rng = crate::rng::Rng::from_seed(seed);
                let mut held = Vec::new();
                for _ in 0..5_000 {
                    let number = rng.below(20) as u32;
                    if let Ok(Entered::Counted { slot, .. }) = clients.enter(ip(number), 0) {
                        held.push(slot);
                    } else {
                        most.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                    if held.len() > 10 {
                        clients.leave(&held.swap_remove(rng.index(held.len())));
                    }
                }
                for slot in &held {
                    clients.leave(slot);
                }
            });
        }
    });
    assert!(most.into_inner() > 0, "some were refused");
    assert_eq!(clients.remembered(), 0);
    check(&clients);
}

#[test]
fn with_other_numbers_what_is_counted_and_owed_goes_on() {
    let rules = |max_clients, max, rate| Rules { max_clients, max_connections: Some(max), rate };
    let clients = Clients::new(WHOLE, rules(8, 2, Some(per_second(1, 4))));
    let mut held: Vec<Slot> = (0..2).map(|_| counted(clients.enter(ip(1), SECOND))).collect();
    (2..8).for_each(|number| clients.leave(&counted(clients.enter(ip(number), SECOND))));
    assert_eq!(clients.enter(ip(1), SECOND), Err(TooMany::Connections));
    // More at once, and two of a burst of four are gone still.
    clients.renew(rules(8, 5, Some(per_second(10, 4))), SECOND);
    held.extend((0..2).map(|_| counted(clients.enter(ip(1), SECOND))));
    assert_eq!(clients.enter(ip(1), SECOND), Err(TooMany::Rate));
    check(&clients);
    // Fewer than there are: nobody is cut, and nobody new comes until it fits.
    clients.renew(rules(3, 3, None), SECOND);
    for _ in 0..2 {
        assert_eq!(clients.enter(ip(1), SECOND), Err(TooMany::Connections));
        clients.leave(&held.pop().unwrap());
    }
    held.push(counted(clients.enter(ip(1), SECOND)));
    assert_eq!(clients.remembered(), 1, "without a rate nobody is remembered for what he owes");
    check(&clients);
    for slot in &held {
        clients.leave(slot);
    }
    assert_eq!(clients.remembered(), 0);
    check(&clients);
}

#[test]
fn of_a_table_that_gets_smaller_those_with_connections_stay_known() {
    let rate = Some(per_second(1, 4));
    let rules = |max_clients| Rules { max_clients, max_connections: Some(1), rate };
    let clients = Clients::new(WHOLE, rules(10));
    let held: Vec<Slot> = (0..6).map(|number| counted(clients.enter(ip(number), SECOND))).collect();
    (6..10).for_each(|number| clients.leave(&counted(clients.enter(ip(number), SECOND))));
    clients.renew(rules(4), SECOND);
    assert_eq!(clients.remembered(), 6);
    assert_eq!(clients.enter(ip(20), SECOND), Ok(Entered::Untracked));
    held.iter().take(3).for_each(|slot| clients.leave(slot));
    assert_eq!(clients.remembered(), 4, "as far as there is room for them");
    assert_eq!(clients.enter(ip(5), SECOND), Err(TooMany::Connections));
    assert!(matches!(clients.enter(ip(20), 60 * SECOND), Ok(Entered::Counted { .. })));
    check(&clients);
    clients.renew(rules(100), 60 * SECOND);
    (30..60).for_each(|number| clients.leave(&counted(clients.enter(ip(number), 60 * SECOND))));
    check(&clients);
}

/// What a client does, or how time goes on.
#[derive(Clone, Debug)]
enum Step {
    Enter(u32),
    Leave(usize),
    GiveBack(usize),
    Wait(Nanos),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u32..12).prop_map(Step::Enter),
        2 => any::<usize>().prop_map(Step::Leave),
        1 => any::<usize>().prop_map(Step::GiveBack),
        1 => (0..SECOND).prop_map(Step::Wait),
    ]
}

proptest! {
    /// With room for all, the table says what a table without any bound says; with less, it never says no to more than
    /// that one does, but for debts given back late, and never exceeds its bound.
    #[test]
    fn it_agrees_with_a_table_without_a_bound(
        steps in prop::collection::vec(step(), 1..300),
        rated: bool,
        max_clients in 1_usize..16,
    ) {
        let rate = rated.then(|| per_second(3, 4));
        let clients = Clients::new(WHOLE, Rules { max_clients, max_connections: Some(3), rate });
        let mut model: HashMap<u32, (u32, Nanos)> = HashMap::new();
        let (mut held, mut now): (Vec<(u32, Slot)>, Nanos) = (Vec::new(), SECOND);
        let roomy = max_clients >= 12;
        for step in steps {
            match step {
                Step::Enter(number) => {
                    let (connections, due) = model.entry(number).or_default();
                    let expected = match rate.map(|rate| rate.take(*due, now)) {
                        _ if *connections >= 3 => Err(TooMany::Connections),
                        Some(Err(_)) => Err(TooMany::Rate),
                        Some(Ok(next)) => Ok(Some(next)),
                        None => Ok(None),
                    };
                    match clients.enter(ip(number), now) {
                        Ok(Entered::Counted { slot, .. }) => {
                            prop_assert!(expected.is_ok() || !roomy);
                            *connections += 1;
                            *due = match rate {
                                Some(_) => expected.ok().flatten().unwrap_or(*due),
                                None => 0,
                            };
                            held.push((number, slot));
                        }
                        Ok(Entered::Untracked) => prop_assert!(!roomy && held.len() >= max_clients),
                        Err(why) => prop_assert!(expected == Err(why) || !roomy),
                    }
                }
                Step::Leave(at) if !held.is_empty() => {
                    let (number, slot) = held.swap_remove(at % held.len());
                    clients.leave(&slot);
                    model.entry(number).or_default().0 -= 1;
                }
                Step::GiveBack(at) if !held.is_empty() => {
                    let (number, slot) = held.swap_remove(at % held.len());
                    clients.give_back(&slot);
                    let (connections, due) = model.entry(number).or_default();
                    *connections -= 1;
                    *due = rate.map_or(0, |rate| rate.give_back(*due));
                }
                Step::Leave(_) | Step::GiveBack(_) => {}
                Step::Wait(span) => now += span,
            }
            check(&clients);
            prop_assert!(clients.remembered() <= max_clients);
        }
        // Each connection in the table is known as one, whatever was forgotten meanwhile.
        for (_, slot) in held {
            clients.leave(&slot);
        }
        check(&clients);
        let left: u32 = clients.shards.iter().map(|shard| lock(shard).entries.iter().map(|e| e.connections).sum::<u32>()).sum();
        prop_assert_eq!(left, 0);
    }
}
