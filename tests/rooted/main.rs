//! Tests of the real binary that need root, over a cable on which packets vanish and as a user without
//! privileges: `cargo test --test rooted`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod half_open;
#[path = "../kit/mod.rs"]
mod kit;
mod memory;
mod net;
mod origin;
mod pipes;
mod privileges;
mod sockets;

use kit::conn::transfer;
use kit::{Addr, Backend, Config, Conn, End, Listening, Tidegate, eventually, eventually_eq, kernel};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// A connection is given up some seconds after the last sign of life with this; the kit's patience ends long before the
/// idle time-out does.
const KEEPALIVE: &str = "keepalive = \"1s\"";

fn logged(config: Config) -> Config {
    config.log("access = \"$DIR/access.log\"\nformat = \"json\"")
}

/// The one record's reason.
fn reason(tidegate: &Tidegate) -> String {
    tidegate.records(1)[0]["reason"].as_str().unwrap().to_owned()
}

/// A client beyond the cable that has exchanged a few bytes, handed over to be used from here.
fn far_client(cable: &net::Cable, tidegate: &Tidegate) -> Conn {
    let address = tidegate.addr();
    let mut client = cable.beyond(move || Conn::to(&address)).join().unwrap();
    client.send("hello");
    client
}

#[test]
fn f12_a_client_that_falls_silent_is_given_up_by_keepalive() {
    let Some(cable) = net::cable() else { return };
    let listening = Listening::new();
    let tidegate = Tidegate::start(logged(Config::over([&listening]).bind("198.18.0.1:0").listener(KEEPALIVE)));
    let _client = far_client(&cable, &tidegate);
    let mut backend = listening.accept();
    backend.expect("hello");
    cable.lose_far("meta l4proto tcp");
    // Nothing is on its way in either direction: only probes can find out.
    backend.expect_end(End::Rst);
    assert_eq!(reason(&tidegate), "client_lost");
}

#[test]
fn f12_a_client_that_falls_silent_amid_a_download_is_given_up_in_the_same_time() {
    let Some(cable) = net::cable() else { return };
    let listening = Listening::new();
    let tidegate = Tidegate::start(logged(Config::over([&listening]).bind("198.18.0.1:0").listener(KEEPALIVE)));
    let mut client = far_client(&cable, &tidegate);
    let mut backend = listening.accept();
    backend.expect("hello");
    transfer(&mut backend, &mut client, 0, 1_000_000);
    cable.lose_far("meta l4proto tcp");
    backend.send_pattern(1_000_000, 10_000);
    backend.expect_end(End::Rst);
    assert_eq!(reason(&tidegate), "client_lost");
}

#[test]
fn f12_a_backend_that_falls_silent_is_given_up_and_the_client_reset() {
    let Some(cable) = net::cable() else { return };
    let listening = cable.beyond(|| Listening::at(&Addr::parse("198.18.0.2:0"))).join().unwrap();
    for upload in [0, 10_000] {
        let tidegate = Tidegate::start(logged(Config::over([&listening]).listener(KEEPALIVE)));
        let (mut client, mut backend) = (tidegate.connect(), listening.accept());
        transfer(&mut client, &mut backend, 0, 100);
        cable.lose_far("meta l4proto tcp");
        client.send_pattern(100, upload);
        client.expect_end(End::Rst);
        assert_eq!(reason(&tidegate), "backend_lost");
        cable.mend();
    }
}

#[test]
fn f12_a_reader_with_a_closed_window_that_still_answers_is_not_given_up() {
    let Some(cable) = net::cable() else { return };
    let listening = Listening::new();
    // A dead peer would be given up after two seconds; this one pauses for longer.
    let tidegate = Tidegate::start(Config::over([&listening]).bind("198.18.0.1:0").listener("keepalive = \"1s\""));
    let address = tidegate.addr();
    let mut client = cable.beyond(move || Conn::with_small_window(&address)).join().unwrap();
    let mut backend = listening.accept();
    let sent = backend.stuff(0, 64 << 20, std::time::Duration::from_secs(5));
    client.expect_pattern(0, sent);
}

#[test]
fn f19_syns_that_vanish_lead_to_the_next_backend_within_the_bound() {
    let Some(cable) = net::cable() else { return };
    let (ready, far) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    let thread = cable.beyond(move || {
        let backend = Backend::at(&Addr::parse("198.18.0.2:0"), kit::backend::naming("far"));
        ready.send(backend.addr.clone()).unwrap();
        let _ = stopped.recv();
    });
    let far = far.recv().unwrap();
    let near = Backend::named("near");
    let config = Config::over([&far, &near.addr]).connect("timeout = \"400ms\"");
    let tidegate = Tidegate::start(logged(config));
    cable.lose_far(&format!("tcp dport {}", far.tcp().port()));
    let begun = Instant::now();
    assert_eq!(tidegate.connect().rest().text(), "near\n");
    assert!(begun.elapsed() < kit::PATIENCE);
    let record = tidegate.records(1).remove(0);
    let attempts = record["attempts"].as_str().unwrap();
    assert!(attempts.starts_with(&format!("{far} timeout ")), "{attempts}");
    assert!(attempts.contains(&format!(", {} connected ", near.addr)), "{attempts}");
    cable.mend();
    // Round-robin goes on: both are used again.
    let mut seen: Vec<String> = (0..4).map(|_| tidegate.connect().rest().text()).collect();
    seen.sort();
    assert_eq!(seen, ["far\n", "far\n", "near\n", "near\n"]);
    drop((stop, tidegate));
    thread.join().unwrap();
}

#[test]
fn f19_when_all_syns_vanish_the_budget_bounds_the_wait() {
    let Some(cable) = net::cable() else { return };
    let config = Config::over(["198.18.0.2:7", "198.18.0.2:8", "198.18.0.2:9"])
        .connect("timeout = \"400ms\"\nattempts = 3\nbudget = \"600ms\"");
    cable.lose_far("meta l4proto tcp");
    let tidegate = Tidegate::start(logged(config));
    tidegate.connect().expect_end(End::Rst);
    assert_eq!(reason(&tidegate), "connect_budget");
}

#[test]
fn f19_a_second_connect_overtakes_the_one_whose_syns_vanish() {
    let Some(cable) = net::cable() else { return };
    let near = Backend::named("near");
    let lost = Addr::parse("198.18.0.2:7");
    let config = Config::over([&lost, &near.addr])
        .connect("timeout = \"60s\"\nbudget = \"60s\"\nhedge_after = \"100ms\"\nhedge_share = \"100%\"");
    cable.lose_far("meta l4proto tcp");
    let tidegate = Tidegate::start(config.logged());
    assert_eq!(tidegate.connect().rest().text(), "near\n");
    let record = tidegate.records(1).remove(0);
    let mut seen = kit::outcomes(&record);
    seen.sort();
    assert_eq!(seen, [format!("{} connected", near.addr), format!("{lost} slower")]);
    eventually_eq("the other one is closed", &0, || kernel::sockets_to(7, &["02"]));
}

#[test]
fn f19_the_budget_bounds_hedged_attempts_too() {
    let Some(cable) = net::cable() else { return };
    let config = Config::over(["198.18.0.2:7", "198.18.0.2:8", "198.18.0.2:9", "198.18.0.2:10"])
        .connect("timeout = \"400ms\"\nattempts = 4\nbudget = \"600ms\"\nhedge_after = \"100ms\"");
    cable.lose_far("meta l4proto tcp");
    let tidegate = Tidegate::start(config.logged());
    tidegate.connect().expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["reason"], "connect_budget");
    assert!(kit::attempts(&record).len() >= 2, "{record}");
}

#[test]
fn f19_f33_syns_that_vanish_set_the_backend_aside() {
    let Some(cable) = net::cable() else { return };
    let near = Backend::named("near");
    let lost = Addr::parse("198.18.0.2:7");
    let config = Config::over([&lost, &near.addr]).connect("timeout = \"200ms\"");
    cable.lose_far("meta l4proto tcp");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = 3\nbase_time = \"300s\"").logged());
    for _ in 0..12 {
        assert_eq!(tidegate.connect().rest().text(), "near\n");
    }
    assert_eq!(tidegate.state(&lost), "ejected");
    assert_eq!(tidegate.count_of("tidegate_backend_connect_errors_total", &lost), 3);
}

#[test]
fn f19_probes_whose_syns_vanish_take_the_backend_down_and_up_again() {
    let Some(cable) = net::cable() else { return };
    let listening = cable.beyond(|| Listening::at(&Addr::parse("198.18.0.2:0"))).join().unwrap();
    let health = "interval = \"200ms\"\nfast_interval = \"100ms\"\ntimeout = \"200ms\"\nrise = 2\nfall = 2";
    let tidegate = Tidegate::start(Config::over([&listening]).health(health));
    let up = || tidegate.metrics().one("tidegate_backend_up", &[]) as u64;
    eventually_eq("it is up", &1, up);
    cable.lose_far("meta l4proto tcp");
    eventually_eq("it is down", &0, up);
    let timeouts = tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "timeout")]);
    assert!(timeouts >= 2.0);
    cable.mend();
    eventually("it is up again", || up() == 1);
}

#[test]
fn f31_ten_thousand_targets_cost_an_even_rate() {
    const BACKENDS: usize = 10_000;
    const INTERVAL: Duration = Duration::from_secs(10);
    // In a net of its own: what it leaves in TIME_WAIT would stand in the way of others who look at the kernel's table.
    let Some(_cable) = net::cable() else { return };
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let log = times.clone();
    let backend = Backend::at(&Addr::parse("0.0.0.0:0"), move |_| log.lock().unwrap().push(Instant::now()));
    let port = backend.addr.tcp().port();
    let address = |index: usize| format!("127.5.{}.{}:{port}", index / 250, index % 250 + 1);
    let health = "interval = \"10s\"\nfast_interval = \"10s\"\ninitial = \"up\"";
    let tidegate = Tidegate::start(Config::over((0..BACKENDS).map(address)).health(health));
    let resident = kernel::resident(tidegate.pid);
    let seen = || times.lock().unwrap().len();
    eventually("each was asked once", || seen() >= BACKENDS);
    let first = Instant::now();
    // A thousand a second from here on, which half of the kit's patience is enough for.
    eventually("most of them again", || seen() >= BACKENDS + BACKENDS * 8 / 10);
    let mut times = times.lock().unwrap().clone();
    times.retain(|time| *time > first + INTERVAL / 5);
    times.sort();
    // Whoever was kept from running for a while has as much to make up for.
    let in_a_second = times.iter().map(|begin| {
        let end = *begin + Duration::from_secs(1);
        times.partition_point(|time| *time < end) - times.partition_point(|time| time < begin)
    });
    let most = in_a_second.max().unwrap();
    assert!(most <= 4_000, "{most} in a second, where a thousand is even");
    let grown = kernel::resident(tidegate.pid).saturating_sub(resident);
    assert!(grown < 16 << 20, "{grown} bytes");
}
