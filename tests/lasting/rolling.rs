//! A rolling change of all backends under load: one after the other gives way to a new one, and its server ends.
//!
//! Owns the servers, each of which can end alone, and the order of the change; by whose hand it is made (an operator's
//! POSTs, or the config file) is each test's. A server ends the moment that tidegate says that its backend has no
//! sessions, with whatever it still has: so a wrong word of it cuts a client.

use crate::kit::{Config, Tidegate, eventually, eventually_eq, kernel};
use crate::load::{Echoes, Load, Report};
use rustix::process::Signal;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const BACKENDS: usize = 6;
/// Of short connections a second, and of streams at a time.
const RATE: u32 = 1_100;
const STREAMS: usize = 500;
/// The longest that a stream lasts: no server ends before those that it has.
const LIFE: Duration = Duration::from_secs(4);

/// One backend gives way to another one.
struct Turn<'a> {
    tidegate: &'a Tidegate,
    leaving: SocketAddr,
    coming: SocketAddr,
    /// All backends after it.
    members: &'a [SocketAddr],
}

impl Turn<'_> {
    /// The new one is added, and takes clients.
    fn add(&self) {
        self.post("", &format!("{{\"address\": \"{}\"}}", self.coming));
        self.until_up();
    }

    fn until_up(&self) {
        eventually_eq("the new backend is up", &"up".to_owned(), || self.tidegate.state(self.coming));
    }

    fn drain(&self) {
        self.post(&format!("/{}", self.leaving), "{\"state\": \"draining\"}");
    }

    fn until_empty(&self) {
        eventually_eq("the old backend has no sessions", &Value::from(0), || {
            self.tidegate.backend_status(self.leaving)["active"].clone()
        });
    }

    fn remove(&self) {
        self.post(&format!("/{}/remove", self.leaving), "");
    }

    fn post(&self, path: &str, body: &str) {
        let answer = self.tidegate.post(&format!("/pools/web/backends{path}"), body);
        assert_eq!((answer.status, &answer.json()["changed"]), (200, &Value::from(true)), "{}", answer.body);
    }

    /// The file has the new one in the place of the old one.
    fn reload(&self) {
        let config = config(self.members).replace("$DIR", self.tidegate.dir().to_str().unwrap());
        std::fs::write(self.tidegate.dir().join("lb.toml"), config).unwrap();
        let wanted = self.tidegate.generation() + 1;
        self.tidegate.signal(Signal::HUP);
        eventually_eq("the reload is done", &wanted, || self.tidegate.generation());
    }

    /// The same of a backend that the config doesn't have any more.
    fn until_unlisted(&self) {
        let path = format!("/connections?backend={}", self.leaving);
        eventually("the old backend has no sessions", || {
            let page = self.tidegate.get(&path).json();
            let is_empty = |list: &str| page[list] == Value::Array(Vec::new());
            // A worker may be late, and a page may have none but those that have just ended: then it isn't the last.
            is_empty("silent_workers") && is_empty("connections") && page["next"].is_null()
        });
    }
}

fn config(members: &[SocketAddr]) -> String {
    Config::over(members)
        .health("interval = \"300ms\"")
        .more("[listeners.streams]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n")
        .to_string()
}

/// Changes all backends under load, each by `change`, and tells what clients have seen.
fn roll(change: impl Fn(&Turn)) -> Report {
    let servers = || -> Vec<Echoes> { (0..BACKENDS).map(|_| Echoes::new(1)).collect() };
    let addresses = |servers: &[Echoes]| -> Vec<SocketAddr> { servers.iter().map(|one| one.addresses[0]).collect() };
    let (old, new) = (servers(), servers());
    let (mut members, coming) = (addresses(&old), addresses(&new));
    let tidegate = Tidegate::start(config(&members));
    eventually("all are up", || members.iter().all(|member| tidegate.state(member) == "up"));
    let (web, streams) = (tidegate.addr().tcp(), tidegate.addr_of("streams", 0).tcp());
    let load = Load::with_lives(vec![web], RATE, &[streams], STREAMS, LIFE);
    eventually("the load has begun", || load.served() > u64::from(RATE));
    let (begun, mut sizes) = (Instant::now(), Vec::new());
    for (index, server) in old.into_iter().enumerate() {
        let leaving = std::mem::replace(&mut members[index], coming[index]);
        change(&Turn { tidegate: &tidegate, leaving, coming: coming[index], members: &members });
        drop(server);
        sizes.push((kernel::resident(tidegate.pid) >> 20, tidegate.fds().len()));
    }
    let span = begun.elapsed();
    let status = tidegate.status();
    let listed = |backend: &Value| backend["address"].as_str().unwrap().parse::<SocketAddr>().unwrap();
    let mut left: Vec<SocketAddr> = status["pools"][0]["backends"].as_array().unwrap().iter().map(listed).collect();
    left.sort_unstable();
    members.sort_unstable();
    assert_eq!(left, members, "others than the new ones");
    for member in &members {
        eventually("each new one serves", || tidegate.count_of("tidegate_backend_connections_total", member) > 0);
    }
    let report = load.finish();
    println!("{BACKENDS} backends in {span:?}; MiB and fds after each: {sizes:?}; {report:?}");
    assert!(sizes[BACKENDS - 1].0 <= sizes[1].0 + 16, "{sizes:?}");
    report
}

fn assert_unnoticed(report: &Report) {
    assert!(report.wrong.is_empty(), "{report:?}");
    assert!(report.ended > STREAMS as u64, "most streams have had a successor: {report:?}");
}

#[test]
fn a_rolling_change_of_all_backends_costs_nobody_a_connection() {
    let report = roll(|turn| {
        turn.add();
        turn.drain();
        turn.until_empty();
        turn.remove();
    });
    assert_unnoticed(&report);
}

#[test]
fn a_rolling_change_of_all_backends_in_the_file_costs_nobody_a_connection() {
    let report = roll(|turn| {
        turn.reload();
        turn.until_up();
        turn.until_unlisted();
    });
    assert_unnoticed(&report);
}

/// Or the tests above could not fail.
#[test]
fn a_backend_that_ends_before_its_sessions_is_noticed() {
    let report = roll(|turn| {
        turn.add();
        turn.remove();
    });
    let cut = report.wrong.iter().filter(|(kind, _)| kind.contains("of a stream")).map(|(_, count)| count).sum::<u64>();
    assert!(cut > 0, "{report:?}");
}
