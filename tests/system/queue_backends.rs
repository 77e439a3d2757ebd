//! The queue beside what else a pool does: policies, tiers, failover, hedges, verdicts, the hold and a stop.

use crate::kit::backend::echo;
use crate::kit::{Backend, Config, Conn, End, Listening, Refusing, Silent, Tidegate, eventually, eventually_eq};
use rustix::process::Signal;

const QUICK: &str = "interval = \"300ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 1";
const PATIENT: &str = "[pools.web.queue]\nmax_wait = \"60s\"";

fn waiting(tidegate: &Tidegate) -> u64 {
    tidegate.count("tidegate_pool_queue_waiting")
}

fn outcome(tidegate: &Tidegate, outcome: &str) -> u64 {
    tidegate.metrics().sum("tidegate_pool_queue_outcomes_total", &[("outcome", outcome)]) as u64
}

fn active(tidegate: &Tidegate, backend: impl std::fmt::Display) -> u64 {
    tidegate.backend_status(backend)["active"].as_u64().unwrap()
}

/// So many clients that wait, each after the one before.
fn line_up(tidegate: &Tidegate, count: u64) -> Vec<Conn> {
    let before = waiting(tidegate);
    (1..=count)
        .map(|number| {
            let client = tidegate.connect();
            eventually_eq("it waits", &(before + number), || waiting(tidegate));
            client
        })
        .collect()
}

/// Ends a session with an echo in order.
fn end(mut client: Conn) {
    client.finish();
    client.expect_end(End::Fin);
}

#[test]
fn f28_whatever_the_policy_each_backend_is_filled_and_the_rest_waits() {
    for policy in ["round_robin", "random", "least_connections", "power_of_two", "peak_ewma", "failover", "source_hash"]
    {
        let backends = [Backend::echo(), Backend::echo(), Backend::echo()];
        let rooms = [3, 2, 1];
        let (config, expected) = if policy == "failover" {
            let [a, b, c] = &backends;
            let target = format!("target = \"failover:(tcp://{a}|failover:(tcp://{b}|tcp://{c}))\"");
            (Config::with_pool(&target).pool("backend_max_connections = 2"), [2, 2, 2])
        } else {
            let entry =
                |(backend, room): (&Backend, u64)| format!("{{ address = \"{backend}\", max_connections = {room} }}");
            let list: Vec<String> = backends.iter().zip(rooms).map(entry).collect();
            (Config::with_pool(&format!("backends = [{}]\nbalance = \"{policy}\"", list.join(", "))), rooms)
        };
        let tidegate = Tidegate::start(config.more(PATIENT));
        let mut sessions: Vec<Conn> = (0..6).map(|_| tidegate.echoed()).collect();
        assert_eq!(backends.each_ref().map(|backend| active(&tidegate, backend)), expected, "{policy}");
        assert_eq!(waiting(&tidegate), 0, "{policy}");
        let mut waits = line_up(&tidegate, 1).remove(0);
        end(sessions.remove(2));
        waits.speak();
        assert_eq!(outcome(&tidegate, "served"), 1, "{policy}");
    }
}

#[test]
fn f28_before_anybody_waits_the_next_tier_is_filled() {
    let (main, backup) = (Backend::echo(), Backend::echo());
    let list = format!("backends = [\"{main}\", {{ address = \"{backup}\", backup = true }}]");
    let tidegate = Tidegate::start(Config::with_pool(&list).pool("backend_max_connections = 2").more(PATIENT));
    let mut sessions: Vec<Conn> = (0..4).map(|_| tidegate.echoed()).collect();
    assert_eq!((active(&tidegate, &main), active(&tidegate, &backup)), (2, 2));
    let mut waits = line_up(&tidegate, 1).remove(0);
    end(sessions.pop().unwrap());
    waits.speak();
    assert_eq!((active(&tidegate, &main), active(&tidegate, &backup)), (2, 2), "from whichever tier it came");
}

#[test]
fn f28_a_session_that_failed_on_one_backend_waits_for_the_other() {
    let (dead, good) = (Refusing::new(), Backend::echo());
    let config = Config::over([&dead.addr, &good.addr]).pool("backend_max_connections = 1").more(PATIENT).logged();
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = \"off\""));
    let first = tidegate.echoed();
    let mut waits = line_up(&tidegate, 2);
    end(first);
    let mut second = waits.remove(0);
    second.speak();
    end(second);
    waits[0].speak();
    end(waits.remove(0));
    let records = tidegate.records(3);
    let waited: Vec<_> = records.iter().filter(|record| record["wait"].as_f64().unwrap() > 0.0).collect();
    assert_eq!(waited.len(), 2, "{records:?}");
    for record in waited {
        assert!(record["attempts"].as_str().unwrap().contains("refused"), "{record}");
    }
    // Who came while another waited has stood in the queue for the dead one as well.
    assert!((2..=4).contains(&outcome(&tidegate, "served")));
}

#[test]
fn f28_a_hedge_never_waits_and_never_passes_those_that_do() {
    let (silent, good) = (Silent::new(), Backend::echo());
    let config = Config::over([&silent.addr, &good.addr])
        .pool("backend_max_connections = 1")
        .connect("timeout = \"60s\"\nbudget = \"60s\"\nhedge_after = \"100ms\"\nhedge_share = \"100%\"")
        .more(PATIENT);
    let tidegate = Tidegate::start(config);
    // By turns: the first gets one of them, and if that is silent its hedge goes to the other.
    let mut first = tidegate.connect();
    first.speak();
    eventually_eq("no attempt but the one that won", &1, || tidegate.slots());
    let hangs = tidegate.connect();
    eventually_eq("it has the place on the silent one", &2, || tidegate.slots());
    let hedges = tidegate.count("tidegate_pool_hedges_total");
    let mut waits = line_up(&tidegate, 1).remove(0);
    crate::kit::throughout("its hedge waits for nothing", std::time::Duration::from_millis(300), || {
        waiting(&tidegate) == 1 && tidegate.count("tidegate_pool_hedges_total") == hedges
    });
    end(first);
    waits.speak();
    hangs.reset();
}

#[test]
fn f28_who_waits_is_served_until_the_drain_deadline_and_then_reset() {
    let backend = Listening::new();
    let config = Config::over([&backend]).pool("backend_max_connections = 1").more(PATIENT).logged();
    let mut tidegate = Tidegate::start(config.runtime("drain_timeout = \"5s\""));
    let first = tidegate.connect();
    let served = backend.accept();
    let mut waits = line_up(&tidegate, 2);
    tidegate.signal(Signal::TERM);
    tidegate.logged(&["drain"]);
    first.reset();
    drop(served);
    // The stop has begun, and the next one still gets its place.
    let mut served = backend.accept();
    waits[0].send("late");
    served.expect("late");
    served.send("but served");
    waits[0].expect("but served");
    waits[1].expect_end(End::Rst);
    assert_eq!(tidegate.wait().code, Some(0));
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    let cut = |line: &&str| line.contains("\"reason\":\"drain_deadline\"") && line.contains("\"phase\":\"queue\"");
    assert_eq!(log.lines().filter(cut).count(), 1, "{log}");
}

#[test]
fn f28_no_place_that_the_drain_deadline_has_cut_is_given_on() {
    const PLACES: usize = 20;
    let backend = Backend::echo();
    let config = Config::over([&backend]).pool(&format!("backend_max_connections = {PLACES}")).more(PATIENT).logged();
    let mut tidegate = Tidegate::start(config.runtime("drain_timeout = \"1s\""));
    let served: Vec<Conn> = (0..PLACES).map(|_| tidegate.echoed()).collect();
    let waits: Vec<Conn> = (0..3 * PLACES).map(|_| tidegate.connect()).collect();
    eventually_eq("the others wait", &(waits.len() as u64), || waiting(&tidegate));
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
    let log = std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap();
    // Whichever worker is the first to cut its sessions, those that wait with the other one get nothing of it.
    let cut_in = |phase: &str| {
        let phase = format!("\"phase\":\"{phase}\"");
        log.lines().filter(|line| line.contains("\"reason\":\"drain_deadline\"") && line.contains(&phase)).count()
    };
    assert_eq!((cut_in("relay"), cut_in("queue")), (served.len(), waits.len()), "{log}");
    assert_eq!(log.lines().count(), served.len() + waits.len(), "{log}");
}

#[test]
fn f28_who_would_not_make_it_is_refused_at_once() {
    let backend = Listening::new();
    let config = Config::over([&backend]).pool("backend_max_connections = 1").logged();
    let tidegate = Tidegate::start(config.more("[pools.web.queue]\nmax_wait = \"8s\""));
    let first = (tidegate.connect(), backend.accept());
    let waits = line_up(&tidegate, 3);
    // While somebody waits, and no place comes free, it becomes clear that none will in time.
    eventually("one more is refused", || {
        let mut client = tidegate.connect();
        client.read_timeout(std::time::Duration::from_millis(50));
        let refused = client.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        client.reset();
        refused || tidegate.closed("queue_timeout") > 0
    });
    eventually("that was the reason", || tidegate.closed("queue_hopeless") >= 1);
    eventually("each is counted twice", || outcome(&tidegate, "hopeless") == tidegate.closed("queue_hopeless"));
    waits.into_iter().for_each(Conn::reset);
    first.0.reset();
}

/// Two that wait before one backend, which dies with all that it has.
fn all_are_lost(more: &str) -> (Tidegate, Vec<Conn>, Conn, crate::kit::Addr) {
    let backend = Backend::echo();
    let config = Config::over([&backend]).pool("backend_max_connections = 1\npanic_threshold = \"0%\"").health(QUICK);
    let tidegate = Tidegate::start(config.more(&format!("{PATIENT}\n{more}")).logged());
    eventually_eq("it is up", &1, || tidegate.count("tidegate_backend_up"));
    let first = tidegate.echoed();
    let waits = line_up(&tidegate, 2);
    let address = backend.die();
    eventually_eq("it is down", &0, || tidegate.count("tidegate_backend_up"));
    (tidegate, waits, first, address)
}

#[test]
fn f28_nobody_waits_in_vain_when_all_backends_go_down() {
    let (tidegate, waits, first, _) = all_are_lost("");
    for mut client in waits {
        client.expect_end(End::Rst);
    }
    let ended = || (tidegate.closed("no_backend"), outcome(&tidegate, "no_backend"));
    eventually_eq("both for that reason", &(2, 2), ended);
    assert_eq!(waiting(&tidegate), 0);
    first.reset();
}

#[test]
fn f28_who_waited_when_all_backends_went_down_is_held_and_served_when_they_come_back() {
    let (tidegate, mut waits, first, address) = all_are_lost("[pools.web.hold]\nmax_wait = \"60s\"");
    eventually_eq("both are held", &2, || tidegate.count("tidegate_pool_held"));
    assert_eq!(waiting(&tidegate), 0);
    for client in &mut waits {
        client.send("ping");
    }
    let _backend = Backend::at(&address, echo);
    // The session that stands still has the only place.
    eventually_eq("both wait again", &2, || waiting(&tidegate));
    first.reset();
    // Held clients go one after the other, and whoever gets the place first.
    let mut left = waits;
    while !left.is_empty() {
        let next = crate::kit::eventually_some("somebody is served", || {
            left.iter_mut().position(|client| {
                client.read_timeout(std::time::Duration::from_millis(10));
                client.try_receive(4).is_some_and(|bytes| bytes == b"ping")
            })
        });
        let client = left.remove(next);
        client.read_timeout(crate::kit::PATIENCE);
        end(client);
    }
    eventually_eq("both ended in order", &2, || tidegate.closed("complete"));
}

#[test]
fn f28_a_backend_that_comes_back_takes_those_that_wait_for_another() {
    let backends = [Backend::echo(), Backend::echo()];
    let config = Config::over(&backends).pool("backend_max_connections = 1\nslow_start = \"0s\"").health(QUICK);
    let tidegate = Tidegate::start(config.more(PATIENT));
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    let [a, b] = backends;
    let address = a.die();
    eventually_eq("one is down", &1, || tidegate.count("tidegate_backend_up"));
    let _first = tidegate.echoed();
    let mut waits = line_up(&tidegate, 1).remove(0);
    let _a = Backend::at(&address, echo);
    waits.speak();
    assert_eq!((active(&tidegate, &b), waiting(&tidegate)), (1, 0));
}
