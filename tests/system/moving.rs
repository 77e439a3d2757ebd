//! What moves sessions that stand: the end of their backend, their age, and backends that have more than their share.

use crate::kit::backend::echo;
use crate::kit::{
    Backend, Config, Conn, End, PATIENCE, Poison, Tidegate, Toxic, Way, eventually, eventually_eq, throughout,
};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const QUICK: &str = "interval = \"1s\"\nfast_interval = \"100ms\"\ntimeout = \"1s\"\nrise = 1\nfall = 2";

fn down(tidegate: &Tidegate, backend: &str) {
    eventually_eq("it is down", &"down".to_owned(), || tidegate.state(backend));
}

/// A backend whose listener can go while its connections stand.
fn probed(on_down: &str) -> (Backend, Backend, Tidegate) {
    let (a, b) = (Backend::echo(), Backend::echo());
    let config = Config::over([&a, &b]).pool(&format!("on_down = \"{on_down}\"")).health(QUICK).logged();
    let tidegate = Tidegate::start(config);
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    (a, b, tidegate)
}

#[test]
fn f20_reset_ends_the_sessions_of_a_backend_that_went_down_and_no_others() {
    let (a, b, tidegate) = probed("reset");
    let mut clients: Vec<Conn> = (0..10).map(|_| tidegate.echoed()).collect();
    let name = a.to_string();
    assert_eq!(tidegate.backend_status(&name)["active"], 5);
    a.die();
    down(&tidegate, &name);
    eventually_eq("five of them are ended", &5, || tidegate.sessions());
    // In turn, as they came.
    for (number, client) in clients.iter_mut().enumerate() {
        if number % 2 == 0 {
            client.expect_end(End::Rst);
        } else {
            client.speak();
        }
    }
    eventually_eq("each is counted", &5, || tidegate.closed("backend_down"));
    drop(clients);
    for record in tidegate.records(10).iter().filter(|record| record["backend"] == name) {
        assert_eq!((&record["reason"], &record["ended_by"]), (&"backend_down".into(), &"balancer".into()));
    }
    drop(b);
}

/// The engine, which is told once, gets it too late.
#[test]
fn f20_reset_ends_a_session_that_waits_for_its_replay_and_finds_nobody() {
    let (says, heard) = mpsc::channel();
    let backend = Backend::new(move |mut conn| {
        while conn.read(&mut [0; 64]).is_ok_and(|count| count > 0) {
            let _ = says.send(());
        }
    });
    let config = Config::over([&backend]).pool("on_down = \"reset\"\nreplay = \"1KiB\"").health(QUICK);
    let tidegate = Tidegate::start(config);
    eventually_eq("it is up", &1, || tidegate.count("tidegate_backend_up"));
    let mut client = tidegate.connect();
    client.send("ping");
    heard.recv_timeout(PATIENCE).unwrap();
    let name = backend.to_string();
    let _address = backend.die();
    down(&tidegate, &name);
    client.expect_end(End::Rst);
    eventually_eq("for that reason", &1, || tidegate.closed("backend_down"));
}

#[test]
fn f20_keep_leaves_them_alone() {
    let (a, _b, tidegate) = probed("keep");
    let mut clients: Vec<Conn> = (0..4).map(|_| tidegate.echoed()).collect();
    let name = a.to_string();
    a.die();
    down(&tidegate, &name);
    for _ in 0..3 {
        clients.iter_mut().for_each(Conn::speak);
    }
    throughout("nobody is ended", Duration::from_millis(600), || tidegate.sessions() == 4);
}

#[test]
fn a_backend_that_comes_back_gets_nobodys_sessions() {
    let (a, _b, tidegate) = probed("keep");
    let name = a.to_string();
    let address = a.die();
    down(&tidegate, &name);
    let mut clients: Vec<Conn> = (0..4).map(|_| tidegate.echoed()).collect();
    let a = Backend::at(&address, echo);
    eventually_eq("it is up", &"up".to_owned(), || tidegate.state(&a));
    throughout("they stay where they are", Duration::from_millis(600), || {
        clients.iter_mut().for_each(Conn::speak);
        tidegate.backend_status(&a)["active"] == 0
    });
}

#[test]
fn f23_what_an_ejection_does_is_no_verdict_on_sessions_that_stand() {
    let echo = Backend::echo();
    let toxic = Toxic::before(&echo.addr);
    let other = Backend::echo();
    let config = Config::over([toxic.addr(), &other.addr]).pool("on_down = \"reset\"");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 1\nbase_time = \"300s\""));
    let mut standing = tidegate.echoed();
    let mut elsewhere = tidegate.echoed();
    toxic.poison(Way::Back, Poison::Stall);
    let mut client = tidegate.connect();
    client.send("ping");
    eventually("it waits", || tidegate.sessions() == 3);
    toxic.poison(Way::There, Poison::ResetAfter(0));
    // Whoever comes now is reset, and the backend ejected for it.
    eventually("it is set aside", || {
        let mut client = tidegate.connect();
        // One that goes before it has an answer would be the cause itself.
        let _ = client.try_send("ping").map(|()| client.try_receive(4));
        tidegate.state(toxic.addr()) == "ejected"
    });
    toxic.cure();
    elsewhere.speak();
    standing.speak();
}

#[test]
fn a_session_that_has_lasted_long_enough_is_reset() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).pool("max_lifetime = \"2s\"").logged());
    let begun = Instant::now();
    let clients: Vec<Conn> = (0..20).map(|_| tidegate.echoed()).collect();
    for mut client in clients {
        client.expect_end(End::Rst);
    }
    // A tenth sooner at most.
    assert!(begun.elapsed() >= Duration::from_millis(1_800), "{:?}", begun.elapsed());
    eventually_eq("each is counted", &20, || tidegate.closed("lifetime"));
    let records = tidegate.records(20);
    for record in &records {
        let duration = record["duration"].as_f64().unwrap();
        assert!(duration >= 1.8, "{record}");
        assert_eq!((&record["reason"], &record["ended_by"]), (&"lifetime".into(), &"balancer".into()));
    }
}

#[test]
fn bytes_do_not_lengthen_a_life() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).pool("max_lifetime = \"1s\""));
    let mut client = tidegate.connect();
    eventually("it is reset amid its bytes", || client.try_send("x").is_err() || client.try_receive(1).is_none());
    eventually_eq("it was its age", &1, || tidegate.closed("lifetime"));
}

#[test]
fn rebalance_moves_the_oldest_from_where_there_are_more_than_their_share() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let (a_name, b_address) = (a.to_string(), b.addr.clone());
    let config = Config::over([&a, &b]).pool("rebalance = \"100%\"\nslow_start = \"0s\"").health(QUICK).logged();
    // Each worker moves the oldest of its own.
    let tidegate = Tidegate::start(config.only_runtime("workers = 1"));
    let b_name = b.die().to_string();
    down(&tidegate, &b_name);
    let mut clients: Vec<Conn> = (0..40).map(|_| tidegate.echoed()).collect();
    throughout("with a single backend nobody has more than its share", Duration::from_secs(2), || {
        tidegate.count("tidegate_pool_rebalanced_total") == 0
    });
    let _b = Backend::at(&b_address, echo);
    eventually_eq("it is up", &"up".to_owned(), || tidegate.state(&b_name));
    // Forty a minute.
    eventually("some were asked to come again", || tidegate.count("tidegate_pool_rebalanced_total") >= 3);
    clients[..3].iter().for_each(Conn::expect_cut);
    let moved_now = tidegate.count("tidegate_pool_rebalanced_total") as usize;
    assert!(moved_now <= 20, "{moved_now}: no more than what is beyond its share");
    clients.last_mut().unwrap().speak();
    eventually("with this reason", || tidegate.closed("rebalanced") >= 3);
    assert!(tidegate.backend_status(&a_name)["active"].as_u64().unwrap() >= 20);
}

#[test]
fn without_the_keys_sessions_stay() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let b_address = b.addr.clone();
    let tidegate = Tidegate::start(Config::over([&a, &b]).pool("slow_start = \"0s\"").health(QUICK));
    let b_name = b.die().to_string();
    down(&tidegate, &b_name);
    let mut clients: Vec<Conn> = (0..10).map(|_| tidegate.echoed()).collect();
    let _b = Backend::at(&b_address, echo);
    eventually_eq("it is up", &"up".to_owned(), || tidegate.state(&b_name));
    throughout("they stay", Duration::from_secs(2), || tidegate.sessions() == 10);
    clients.iter_mut().for_each(Conn::speak);
}
