//! Hedging: a second connect when the first one hangs; who wins, who is closed, and how often it may happen.

use crate::kit::{
    Backend, Config, End, Silent, Tidegate, attempts, eventually, eventually_eq, kernel, outcomes, throughout,
};
use std::time::Duration;

const PATIENT: &str = "timeout = \"60s\"\nbudget = \"60s\"\nhedge_after = \"100ms\"\nhedge_share = \"100%\"";
const SYN_SENT: &[&str] = &["02"];

fn connecting(silent: &Silent) -> usize {
    kernel::sockets_to(silent.addr.tcp().port(), SYN_SENT)
}

fn hedges(tidegate: &Tidegate) -> (u64, u64) {
    (tidegate.count("tidegate_pool_hedges_total"), tidegate.count("tidegate_pool_hedges_won_total"))
}

#[test]
fn f19_a_connect_that_hangs_is_overtaken_by_a_second_one() {
    let (silent, alive) = (Silent::new(), Backend::named("alive"));
    let tidegate = Tidegate::start(Config::over([&silent.addr, &alive.addr]).connect(PATIENT).logged());
    assert_eq!(tidegate.connect().rest().text(), "alive\n");
    let record = tidegate.records(1).remove(0);
    let mut seen = outcomes(&record);
    seen.sort();
    let mut expected = [format!("{silent} slower"), format!("{alive} connected")];
    expected.sort();
    assert_eq!(seen, expected);
    assert_eq!(record["backend"], alive.to_string());
    assert!(record["connect"].as_f64().unwrap() >= 0.1, "{record}");
    assert_eq!(hedges(&tidegate), (1, 1));
    assert_eq!(tidegate.count("tidegate_pool_failovers_total"), 0, "nobody has failed");
    eventually_eq("the other one is closed", &0, || connecting(&silent));
}

#[test]
fn f19_the_first_one_wins_if_it_answers_first() {
    let silent = [Silent::new(), Silent::new()];
    let tidegate = Tidegate::start(Config::over(&silent).connect(PATIENT).logged());
    let mut client = tidegate.connect();
    client.send("hello");
    eventually("both are under way", || silent.iter().all(|silent| connecting(silent) == 1));
    assert_eq!(tidegate.slots(), 2, "each of them is seen as load");
    let [first, second] = silent;
    let mut backend = first.wake().accept();
    backend.expect("hello");
    backend.send("hi");
    client.expect("hi");
    eventually_eq("the second is closed", &0, || connecting(&second));
    eventually_eq("and its slot is free", &1, || tidegate.slots());
    drop((client, backend));
    let record = tidegate.records(1).remove(0);
    assert_eq!(attempts(&record).len(), 2);
    assert!(outcomes(&record).contains(&format!("{second} slower")), "{record}");
    assert_eq!(hedges(&tidegate), (1, 0));
}

#[test]
fn f19_no_more_than_two_connects_are_under_way_for_one_client() {
    let silent = [Silent::new(), Silent::new(), Silent::new(), Silent::new()];
    let tidegate = Tidegate::start(Config::over(&silent).connect(PATIENT));
    let under_way = || silent.iter().map(connecting).sum::<usize>();
    let client = tidegate.connect();
    eventually_eq("two are under way", &2, under_way);
    throughout("and never three", Duration::from_millis(600), || under_way() <= 2);
    client.reset();
    eventually_eq("the client's reset gives up both", &0, under_way);
    eventually_eq("and their slots", &0, || tidegate.slots());
}

#[test]
fn f19_the_bound_holds_with_a_hedge_too() {
    let silent = [Silent::new(), Silent::new(), Silent::new(), Silent::new()];
    let connect =
        "timeout = \"2s\"\nattempts = 4\nbudget = \"3500ms\"\nhedge_after = \"100ms\"\nhedge_share = \"100%\"";
    let tidegate = Tidegate::start(Config::over(&silent).connect(connect).logged());
    tidegate.connect().expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["reason"], "connect_budget");
    let wait = record["connect"].as_f64().unwrap();
    assert!(wait >= 3.5, "{wait}");
    // One after the other, the four would take 8 s; the rest is what a busy machine may add.
    assert!(wait < 7.5, "{wait}");
    assert!(attempts(&record).len() >= 3, "{record}");
    eventually_eq("nothing is left behind", &0, || silent.iter().map(connecting).sum::<usize>());
}

#[test]
fn f19_only_so_many_connections_are_hedged() {
    const CLIENTS: usize = 60;
    let (silent, alive) = (Silent::new(), Backend::named("alive"));
    let connect = "timeout = \"1s\"\nhedge_after = \"50ms\"\nhedge_share = \"10%\"";
    let config = Config::over([&silent.addr, &alive.addr]).connect(connect).logged();
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = \"off\""));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| tidegate.connect().rest().text())).collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), "alive\n");
        }
    });
    let records = tidegate.records(CLIENTS);
    let hedged = records.iter().filter(|record| record["attempts"].as_str().unwrap().contains(" slower ")).count();
    let timed_out = records.iter().filter(|record| record["attempts"].as_str().unwrap().contains(" timeout ")).count();
    // A tenth of 60 is 6, and the first one is for nothing; half of all meet the silent one.
    assert!((1..=7).contains(&hedged), "{hedged} hedged");
    assert!(timed_out >= 10, "{timed_out} waited");
}

#[test]
fn f19_without_the_key_nothing_is_hedged() {
    let (silent, alive) = (Silent::new(), Backend::named("alive"));
    let tidegate = Tidegate::start(Config::over([&silent.addr, &alive.addr]).connect("timeout = \"500ms\"").logged());
    assert_eq!(tidegate.connect().rest().text(), "alive\n");
    assert_eq!(outcomes(&tidegate.records(1)[0]), [format!("{silent} timeout"), format!("{alive} connected")]);
    assert_eq!(hedges(&tidegate), (0, 0));
}

#[test]
fn f19_the_only_backend_is_not_raced_against_itself() {
    let silent = Silent::new();
    let tidegate = Tidegate::start(Config::over([&silent]).connect(PATIENT));
    let mut client = tidegate.connect();
    client.send("hello");
    eventually_eq("its connect is under way", &1, || connecting(&silent));
    throughout("there is no second", Duration::from_millis(400), || connecting(&silent) <= 1);
    silent.wake().accept().expect("hello");
    assert_eq!(hedges(&tidegate), (0, 0));
}
