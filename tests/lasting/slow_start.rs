//! Slow start and paced connects: who comes back gets its share little by little, whatever the policy, and never
//! refuses.

use crate::kit::backend::{echo, naming};
use crate::kit::ledger::{Ledger, backend, try_line};
use crate::kit::wait::pace;
use crate::kit::{Addr, Backend, Config, Conn, Refusing, Tidegate, eventually, eventually_eq};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const QUICK: &str = "interval = \"1s\"\nfast_interval = \"100ms\"\ntimeout = \"1s\"\nrise = 1\nfall = 1";

/// Lets `backend` die and come back, and returns it.
fn reborn(tidegate: &Tidegate, backend: Backend, name: &str) -> Backend {
    let label = backend.to_string();
    let address: Addr = backend.die();
    eventually_eq("it is down", &"down".to_owned(), || tidegate.state(&label));
    let backend = Backend::at(&address, naming(name));
    eventually_eq("it is back", &"up".to_owned(), || tidegate.state(&label));
    backend
}

/// How many of so many connections went to `name`.
fn count(tidegate: &Tidegate, name: &str, of: usize) -> usize {
    (0..of).filter(|_| tidegate.connect().rest().text().trim_end() == name).count()
}

#[test]
fn f17_a_backend_that_comes_back_begins_with_a_tenth_whatever_the_policy() {
    for policy in ["round_robin", "random", "least_connections", "power_of_two", "peak_ewma"] {
        let (a, b) = (Backend::named("a"), Backend::named("b"));
        let config = Config::over([&a, &b]).pool("slow_start = \"2h\"").pool(&format!("balance = \"{policy}\""));
        let tidegate = Tidegate::start(config.health(QUICK));
        eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
        assert!((tidegate.share(&a) - 1.0).abs() < 1e-9, "not at boot");
        let a = reborn(&tidegate, a, "a");
        let share = tidegate.share(&a);
        // An hour of ramp a twentieth of which a slow machine may have used.
        assert!((0.09..0.15).contains(&share), "{policy}: {share}");
        assert!((tidegate.share(&b) - 1.0).abs() < 1e-9);
        let seen = count(&tidegate, "a", 110);
        // A tenth of b's share is 10 of 110. By chance: the standard deviation is 3, and this is ten of them away.
        assert!(seen <= 40, "{policy}: {seen} of 110");
        if policy == "round_robin" {
            assert!((1..=25).contains(&seen), "{policy}: {seen} of 110");
        }
    }
}

#[test]
fn f17_that_it_has_nothing_to_do_gets_it_no_more_than_its_share() {
    for policy in ["round_robin", "random", "least_connections", "power_of_two", "peak_ewma"] {
        let backends = [Backend::echo(), Backend::echo()];
        let config = Config::over(&backends).pool("slow_start = \"2h\"").pool(&format!("balance = \"{policy}\""));
        let tidegate = Tidegate::start(config.health(QUICK));
        eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
        let [a, b] = backends;
        let name = a.to_string();
        let address = a.die();
        eventually_eq("it is down", &"down".to_owned(), || tidegate.state(&name));
        let held = |count: usize| -> Vec<Conn> { (0..count).map(|_| tidegate.echoed()).collect() };
        let _others = held(50);
        let _a = Backend::at(&address, echo);
        eventually_eq("it is back", &"up".to_owned(), || tidegate.state(&name));
        let _new = held(200);
        let active = tidegate.backend_status(&name)["active"].as_u64().unwrap();
        // A tenth of the other's share is 18 of 200. Where the better of two is taken it has two chances: 35, give or
        // take 5.
        assert!(active <= 58, "{policy}: {active} of 200");
        drop(b);
    }
}

#[test]
fn f17_its_share_grows_until_it_is_whole() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let tidegate = Tidegate::start(Config::over([&a, &b]).pool("slow_start = \"3s\"").health(QUICK));
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    let a = reborn(&tidegate, a, "a");
    let mut shares = vec![tidegate.share(&a)];
    eventually("it has all of it", || {
        shares.push(tidegate.share(&a));
        // Less by the smallest step would be passed on now and then.
        *shares.last().unwrap() > 0.9999
    });
    assert!(shares.is_sorted(), "{shares:?}");
    assert_eq!(count(&tidegate, "a", 20), 10, "in turn");
}

#[test]
fn f17_slow_start_never_refuses_anybody() {
    for policy in ["round_robin", "random", "least_connections", "power_of_two", "peak_ewma", "source_hash"] {
        let only = Backend::named("only");
        let config = Config::over([&only]).pool("slow_start = \"1h\"").pool(&format!("balance = \"{policy}\""));
        let tidegate = Tidegate::start(config.health(QUICK));
        eventually_eq("it is up", &1, || tidegate.count("tidegate_backend_up"));
        let _only = reborn(&tidegate, only, "only");
        assert_eq!(count(&tidegate, "only", 20), 20, "{policy}");
    }
}

#[test]
fn f17_zero_gives_the_whole_share_at_once() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let tidegate = Tidegate::start(Config::over([&a, &b]).pool("slow_start = \"0s\"").health(QUICK));
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    let _a = reborn(&tidegate, a, "a");
    assert_eq!(count(&tidegate, "a", 20), 10);
}

#[test]
fn f17_an_ejected_backend_starts_slowly_as_well() {
    let (dead, good) = (Refusing::new(), Backend::named("good"));
    let address = dead.addr.clone();
    let config = Config::over([&dead.addr, &good.addr]).pool("slow_start = \"2h\"");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 1\nbase_time = \"200ms\""));
    eventually("it is set aside", || {
        tidegate.connect().rest();
        tidegate.count("tidegate_backend_ejections_total") == 1
    });
    drop(dead);
    let back = Backend::at(&address, naming("back"));
    eventually("its trial has succeeded", || {
        tidegate.connect().rest();
        tidegate.state(&back) == "up"
    });
    let share = tidegate.share(&back);
    assert!((0.09..0.15).contains(&share), "{share}");
}

#[test]
fn f17_a_storm_of_connects_to_one_backend_is_paced() {
    const STORM: usize = 40;
    let backend = Backend::named("x");
    let tidegate = Tidegate::start(Config::over([&backend]).connect("max_rate = 20"));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..STORM).map(|_| scope.spawn(|| tidegate.connect().rest().text())).collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), "x\n", "everybody is served in the end");
        }
    });
    // A second's worth may come at once, however it is counted; the others wait their turn.
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    assert_eq!(backend.accepted(), STORM);
}

#[test]
fn f17_what_exceeds_one_backends_rate_goes_to_others() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let list = format!("backends = [{{ address = \"{a}\", weight = 100 }}, \"{b}\"]");
    let tidegate = Tidegate::start(Config::with_pool(&list).connect("max_rate = 5"));
    let begun = Instant::now();
    let seen = count(&tidegate, "b", 10);
    if begun.elapsed() < Duration::from_secs(1) {
        assert!(seen >= 1, "by weight all ten would have gone to a, and no faster than five a second");
    }
}

#[test]
fn f17_a_storm_beyond_the_budget_is_served_from_the_queue() {
    const STORM: usize = 60;
    let backend = Backend::named("x");
    let config = Config::over([&backend]).connect("max_rate = 20\nbudget = \"500ms\"");
    let tidegate = Tidegate::start(config.more("[pools.web.queue]\nmax_wait = \"60s\""));
    let begun = Instant::now();
    let mut clients: Vec<_> = (0..STORM).map(|_| tidegate.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.rest().text(), "x\n");
    }
    // A second's worth may come at once, however it is counted.
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
    assert_eq!(backend.accepted(), STORM);
}

#[test]
fn f17_who_waits_longer_than_the_budget_is_reset() {
    let backend = Backend::named("x");
    let config = Config::over([&backend]).connect("max_rate = 1\nbudget = \"1200ms\"");
    let tidegate = Tidegate::start(config);
    let served = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(|| tidegate.connect().rest().text())).collect();
        clients.into_iter().map(|client| client.join().unwrap()).filter(|text| text == "x\n").count()
    });
    // One at once and one each second from then on, and the last of them began within the budget of 1.2 s.
    assert!((1..=19).contains(&served), "{served} of 20");
    // Who can't have a turn within the budget is told at once.
    let refused = || tidegate.closed("connect_budget") + tidegate.closed("no_backend");
    eventually_eq("all others are counted", &(20 - served), || refused() as usize);
}

/// Comes again and again, at once after each end; says how often it was served and how often reset.
fn storm(tidegate: &Tidegate, over: &AtomicBool, served: &AtomicUsize, reset: &AtomicUsize) {
    while !over.load(Ordering::Relaxed) {
        let mut client = tidegate.connect();
        let answered = client.try_send("again\n").is_ok() && try_line(&mut client).is_some();
        let _ = client.try_finish();
        client.rest();
        if answered { served } else { reset }.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn f17_after_a_storm_of_reconnects_pace_maxima_and_slow_start_all_hold() {
    const ROOM: usize = 8;
    const RATE: f64 = 60.0;
    let ledgers: [Arc<Ledger>; 2] = Default::default();
    let [a, b] = ledgers.each_ref().map(|ledger| backend(None, ledger));
    let config = Config::over([&a, &b])
        .pool(&format!("backend_max_connections = {ROOM}\nslow_start = \"2h\""))
        .connect(&format!("max_rate = {RATE}"))
        .ejection("consecutive_failures = 1\nbase_time = \"200ms\"\nmax_time = \"200ms\"")
        .more("[pools.web.queue]\nmax_wait = \"60s\"");
    let begun = Instant::now();
    let tidegate = Tidegate::start(config);
    let (over, served, reset) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let (name, waiting) = (a.to_string(), || tidegate.count("tidegate_pool_queue_waiting"));
    let _a = std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| storm(&tidegate, &over, &served, &reset));
        }
        eventually("both are full", || tidegate.slots() == 2 * ROOM as u64 && waiting() > 0);
        let address = a.die();
        ledgers[0].condemn();
        eventually_eq("it is set aside", &"ejected".to_owned(), || tidegate.state(&name));
        let before = (Instant::now(), ledgers[0].came());
        let a = backend(Some(&address), &ledgers[0]);
        eventually_eq("it is back", &"up".to_owned(), || tidegate.state(&name));
        let share = tidegate.share(&name);
        assert!((0.09..0.15).contains(&share), "{share}");
        // All those that the other one has no place for may come, but not at once.
        eventually("it has more to do again", || {
            let (since, came) = (before.0.elapsed().as_secs_f64(), ledgers[0].came() - before.1);
            // A second's worth may come together, and beside it each trial.
            let most = RATE * (since + 1.0) + since / 0.2 + 2.0;
            assert!((came as f64) <= most, "{came} in {since} s");
            came > RATE as u64 * 2
        });
        over.store(true, Ordering::Relaxed);
        a
    });
    let most = RATE * (begun.elapsed().as_secs_f64() + 1.0);
    assert!((ledgers[1].came() as f64) <= most, "{} in {:?}", ledgers[1].came(), begun.elapsed());
    for ledger in &ledgers {
        assert!(ledger.most() <= ROOM, "{} at once", ledger.most());
    }
    let (served, reset) = (served.into_inner(), reset.into_inner());
    assert!(reset <= ROOM, "{reset} were reset, and no more than {ROOM} had the backend that died; {served} served");
    // With room on both the one that came back has its small share.
    tidegate.until_idle();
    let before = ledgers.each_ref().map(|ledger| ledger.came());
    for _ in 0..55 {
        // More slowly than the rate, or what exceeds that would go to the one that starts slowly.
        pace(Duration::from_millis(30));
        let mut client = tidegate.connect();
        client.send("once\n");
        client.expect("once\n");
        client.finish();
        client.rest();
    }
    let came = ledgers[0].came() - before[0];
    assert!(came <= 25, "{came} of 55 went to the one that starts slowly");
}
