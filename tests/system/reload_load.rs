//! Reloads while clients come and go, and while others stay: none of them may notice; and what a scrape shows
//! meanwhile.

use crate::kit::{Addr, Backend, Config, Conn, Tidegate, eventually};
use crate::reload::{generation, reload, write};
use rustix::process::Signal;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Of the clients that come and go.
const THREADS: usize = 3;
const STAYING: usize = 20;
const RELOADS: u64 = 50;

/// What is different each time: backends, weights, the policy, limits, options of sockets, another listener and a pool.
fn variant(number: u64, backends: &[Backend]) -> String {
    let list: Vec<String> = backends
        .iter()
        .enumerate()
        .filter(|(index, _)| *index as u64 != number % 4)
        .map(|(index, backend)| format!("{{ address = \"{backend}\", weight = {} }}", 1 + (number + index as u64) % 5))
        .collect();
    let balance = ["round_robin", "random", "least_connections", "source_hash"][number as usize % 4];
    let pool = format!("balance = \"{balance}\"\nbackends = [{}]", list.join(", "));
    let mut config = Config::with_pool(&pool)
        .listener(&format!("backlog = {}\nidle_timeout = \"{}s\"", 256 + number, 60 + number))
        .listener(&format!("max_connections = {}\naccept_rate = \"{}/s\"", 1_000 + number, 100_000 + number));
    if number.is_multiple_of(3) {
        let (pool, backend) = (number % 2, &backends[0]);
        config = config.more(&format!(
            "[listeners.more]\nbind = \"127.0.0.1:0\"\npool = \"more{pool}\"\n[pools.more{pool}]\n\
             backends = [\"{backend}\"]\nhealth.probe = \"none\"\n"
        ));
    }
    config.listener(&format!("[listeners.web.socket]\nfast_open = {}", 8 + number % 5)).to_string()
}

fn comes_and_goes(address: &Addr) {
    let mut client = Conn::to(address);
    client.send("question");
    client.expect("question");
    client.finish();
    assert_eq!(client.rest().text(), "");
}

#[test]
fn f41_nobody_notices_fifty_reloads_in_which_all_changes() {
    let backends: Vec<Backend> = (0..4).map(|_| Backend::echo()).collect();
    let tidegate = Tidegate::start(variant(0, &backends));
    let address = tidegate.addr();
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut staying: Vec<Conn> = (0..STAYING).map(|_| tidegate.echoed()).collect();
    let fds = tidegate.fds().len();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        comes_and_goes(&address);
                        served.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        for number in 1..=RELOADS {
            let before = served.load(Relaxed);
            reload(&tidegate, variant(number, &backends));
            for client in &mut staying {
                client.speak();
            }
            eventually("others come and go", || {
                served.load(Relaxed) > before + 3 || clients.iter().any(std::thread::ScopedJoinHandle::is_finished)
            });
        }
        stop.store(true, Relaxed);
        for client in clients {
            client.join().unwrap();
        }
    });
    assert_eq!((tidegate.count_logged(&["refused"]), generation(&tidegate)), (0, RELOADS + 1));
    println!("{} came and went", served.load(Relaxed));
    eventually("its fds are as many as before", || tidegate.fds().len() <= fds);
}

#[test]
fn f83_a_scrape_during_reloads_of_many_backends_is_whole_and_has_each_series_once() {
    const BACKENDS: usize = 300;
    let config = |number: usize| {
        let backend = |index: usize| {
            let name = number * BACKENDS / 3 + index;
            format!("{{ address = \"127.1.{}.{}:9\", name = \"b{name}\" }}", index / 250, index % 250)
        };
        let list: Vec<String> = (0..BACKENDS).map(backend).collect();
        Config::with_pool(&format!("backends = [{}]", list.join(","))).to_string()
    };
    let tidegate = Tidegate::start(config(0));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scraping = scope.spawn(|| {
            let mut scrapes = 0;
            while !stop.load(Relaxed) {
                let answer = tidegate.get("/metrics");
                assert_eq!(answer.status, 200);
                let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
                let series: Vec<&str> = lines.map(|line| line.rsplit_once(' ').unwrap().0).collect();
                let different: HashSet<&&str> = series.iter().collect();
                assert_eq!(different.len(), series.len(), "each series once");
                let up = series.iter().filter(|series| series.starts_with("tidegate_backend_up")).count();
                assert!((BACKENDS..=3 * BACKENDS).contains(&up), "{up} backends");
                scrapes += 1;
            }
            scrapes
        });
        for number in 1..=20 {
            reload(&tidegate, config(number));
        }
        stop.store(true, Relaxed);
        println!("{} scrapes", scraping.join().unwrap());
    });
    let names = || tidegate.metrics().values("tidegate_backend_up", "backend").len();
    eventually("of those that went nothing is left", || names() == BACKENDS);
    write(&tidegate, config(20));
    tidegate.signal(Signal::HUP);
    tidegate.logged(&["nothing has changed"]);
}

/// Under a storm of clients at this address, there are so many reloads of a config by its number; none of them notices.
fn nobody_notices(address: &str, reloads: u64, config: impl Fn(usize) -> Config) {
    let tidegate = Tidegate::start(config(0));
    let (address, stop) = (Addr::parse(address), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let client = || {
            while !stop.load(Relaxed) {
                comes_and_goes(&address);
            }
        };
        let clients: Vec<_> = (0..THREADS).map(|_| scope.spawn(client)).collect();
        for number in 1..=reloads {
            reload(&tidegate, config(number as usize));
        }
        stop.store(true, Relaxed);
        for client in clients {
            client.join().unwrap();
        }
    });
    assert_eq!((tidegate.count_logged(&["refused"]), generation(&tidegate)), (0, reloads + 1));
}

/// Between an address and all of them, and back: whoever comes meanwhile finds one or the other.
#[test]
fn nobody_notices_that_an_address_is_bound_more_widely_or_narrowly() {
    let backend = Backend::echo();
    let binds = ["127.0.0.1:21100", "0.0.0.0:21100", "[::]:21100"];
    nobody_notices("127.0.0.1:21100", 60, |number| Config::over([&backend]).bind(binds[number % binds.len()]));
}

/// The very same address, but for what only a new socket can have. Where there is no MPTCP, the new ones are of TCP.
#[test]
fn nobody_notices_that_an_address_is_bound_anew_for_another_protocol() {
    let backend = Backend::echo();
    let config = |number: usize| {
        let keys = format!("socket.mptcp = {}", !number.is_multiple_of(2));
        Config::over([&backend]).bind("127.0.0.1:21101").listener(&keys)
    };
    nobody_notices("127.0.0.1:21101", 60, config);
}

/// With `defer_accept`, a client is being connected until it sends something. When that is too late, another one tries.
#[test]
fn who_is_being_connected_to_an_address_that_is_bound_anew_is_served() {
    let backend = Backend::echo();
    let config = |mptcp: bool| {
        Config::over([&backend]).listener(&format!("[listeners.web.socket]\ndefer_accept = \"60s\"\nmptcp = {mptcp}"))
    };
    let (tidegate, mut mptcp) = (Tidegate::start(config(false)), false);
    eventually("a client is served that was being connected", || {
        let mut client = tidegate.connect();
        mptcp = !mptcp;
        reload(&tidegate, config(mptcp));
        comes_and_goes(&tidegate.addr());
        client.try_send("question").is_ok() && client.try_receive(8).as_deref() == Some(b"question")
    });
}
