//! What the metrics say of that which a reload has taken out of the config: what it counts, as long as it has sessions,
//! and nothing of how it is.

use crate::kit::metrics::Metrics;
use crate::kit::{Addr, Backend, Config, Conn, PATIENCE, Tidegate, eventually, eventually_eq, free_port};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// Makes this its config file.
fn write(tidegate: &Tidegate, config: impl std::fmt::Display) {
    let text = config.to_string().replace("$DIR", tidegate.dir().to_str().unwrap());
    std::fs::write(tidegate.dir().join("lb.toml"), text).unwrap();
}

fn reload(tidegate: &Tidegate, config: impl std::fmt::Display) {
    let wanted = tidegate.generation() + 1;
    write(tidegate, config);
    tidegate.signal(Signal::HUP);
    eventually_eq("the reload is done", &wanted, || tidegate.generation());
}

/// The samples that tell how something is, of these labels.
fn standing(metrics: &Metrics, label: &str, value: &str) -> Vec<&'static str> {
    let names = [
        "tidegate_listener_up",
        "tidegate_pool_available",
        "tidegate_pool_ejected",
        "tidegate_pool_panic",
        "tidegate_pool_tier",
        "tidegate_backend_up",
        "tidegate_backend_max_connections",
    ];
    names.into_iter().filter(|name| metrics.has(name, &[(label, value)])).collect()
}

/// What the last clients of a listener go by is kept for ten seconds, and as long as they have for their first bytes.
fn until_forgotten(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + 4 * PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "something is left of what has gone");
        crate::kit::wait::pace(Duration::from_millis(100));
    }
}

/// A second listener with a pool of its own, beside the one that every config has.
fn with_leaver(first: &Backend, other: &Backend) -> String {
    format!(
        "{}\n[listeners.leaver]\nbind = \"127.0.0.1:0\"\npool = \"leaver\"\npreread_timeout = \"100ms\"\n[pools.leaver]\n\
         backends = [{{ address = \"{other}\", max_connections = 9 }}]\n",
        Config::over([first])
    )
}

#[test]
fn f49_what_left_the_config_is_not_told_to_be_well_while_its_sessions_last() {
    let (first, other) = (Backend::echo(), Backend::echo());
    let tidegate = Tidegate::start(with_leaver(&first, &other));
    let label = other.to_string();
    let mut client = Conn::to(&tidegate.addr_of("leaver", 0));
    client.speak();
    let metrics = tidegate.metrics();
    assert_eq!(standing(&metrics, "listener", "leaver"), ["tidegate_listener_up"]);
    assert_eq!(standing(&metrics, "pool", "leaver").len(), 6, "those of the pool and of its backend");

    reload(&tidegate, Config::over([&first]));
    let metrics = tidegate.metrics();
    assert_eq!(standing(&metrics, "listener", "leaver"), [""; 0]);
    assert_eq!(standing(&metrics, "pool", "leaver"), [""; 0]);
    let own = [("pool", "leaver"), ("backend", &*label)];
    assert_eq!(metrics.one("tidegate_backend_connections_active", &own) as u64, 1, "its session is still told of");
    assert_eq!(metrics.one("tidegate_listener_connections_active", &[("listener", "leaver")]) as u64, 1);
    client.speak();

    // It returns while it still has the session.
    reload(&tidegate, with_leaver(&first, &other));
    eventually("it is told of again", || tidegate.metrics().has("tidegate_backend_up", &own));
    let metrics = tidegate.metrics();
    assert_eq!(metrics.one("tidegate_backend_up", &own) as u64, 1);
    assert_eq!(metrics.one("tidegate_backend_max_connections", &own) as u64, 9);
    assert_eq!(metrics.one("tidegate_pool_available", &[("pool", "leaver")]) as u64, 1);
    assert_eq!(metrics.one("tidegate_listener_up", &[("listener", "leaver")]) as u64, 1);
    assert_eq!(metrics.one("tidegate_backend_connections_active", &own) as u64, 1);

    reload(&tidegate, Config::over([&first]));
    drop(client);
    until_forgotten(|| {
        let text = tidegate.metrics().to_string();
        !text.contains("leaver") && !text.contains(&label)
    });
}

/// A member that goes while the pool stays; and another one under its name.
#[test]
fn f49_a_backend_that_left_its_pool_is_not_told_to_be_up_and_its_name_is_free() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let named = |backend: &Backend| {
        let backends = format!("backends = [{{ name = \"a\", address = \"{backend}\" }}]\n");
        Config::with_pool(&backends)
    };
    let tidegate = Tidegate::start(named(&one));
    let mut client = tidegate.echoed();
    let up = |name: &str| tidegate.metrics().values("tidegate_backend_up", "backend").contains(&name.to_owned());
    reload(&tidegate, named(&two));
    assert!(up("a"), "of the one that has the name now");
    reload(&tidegate, Config::over([&two]));
    assert!(!up("a") && up(&two.to_string()));
    client.speak();
    assert_eq!(tidegate.metrics().sum("tidegate_backend_connections_active", &[("backend", "a")]) as u64, 1);
}

/// Each reload has other names; sessions of some of them last.
#[test]
fn names_that_were_there_once_leave_nothing_behind_over_300_reloads() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let address = format!("127.0.0.1:{}", free_port());
    let config = |number: usize| {
        format!(
            "{}\n[listeners.l{number}]\nbind = \"{address}\"\npool = \"p{number}\"\npreread_timeout = \"100ms\"\n\
             max_connections = 9\n[limits.s{number}]\nmax_connections = 9\n[pools.p{number}]\n\
             backends = [{{ name = \"b{number}\", address = \"{backend}\", max_connections = 9 }}]\n\
             queue.max_waiting = 5\n",
            Config::over([&backend])
        )
    };
    let mut before = 0;
    let mut clients = Vec::new();
    for number in 1..=300 {
        write(&tidegate, config(number));
        let answer = tidegate.post("/reload", "");
        assert_eq!(answer.status, 200, "{answer:?}");
        if number % 100 == 50 {
            let mut client = Conn::to(&Addr::parse(&address));
            client.speak();
            clients.push(client);
        }
        if number == 10 {
            before = tidegate.metrics().to_string().lines().count();
        }
    }
    clients.iter_mut().for_each(Conn::speak);
    clients.clear();
    reload(&tidegate, Config::over([&backend]));
    let left = || {
        let metrics = tidegate.metrics();
        let mut names = [metrics.values("tidegate_backend_up", "backend"), Vec::new()].concat();
        names.extend(metrics.values("tidegate_listener_connections_total", "listener"));
        names
    };
    until_forgotten(|| left() == [backend.to_string(), "web".to_owned()]);
    until_forgotten(|| tidegate.metrics().to_string().lines().count() < before);
}
