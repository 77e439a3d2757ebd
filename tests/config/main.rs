//! What a config file may say and what a person reads about one that is wrong.
//!
//! Only the public face of `config` is used here; its parts have their own tests beside them. Here: what good configs
//! mean. Next: `mistakes`, `pools` and `syntax` for the tables of wrong ones, `files` for what isn't even text, `bytes`
//! for anything at all, `example` for `lb.toml.example`.

mod admin;
mod bytes;
mod demand;
mod example;
mod files;
mod hash;
mod health;
mod mistakes;
mod pools;
mod privileges;
mod proxy;
mod routes;
mod socket;
mod syntax;

use std::time::Duration;
use tidegate::config::{
    Access, Address, Balance, Config, Format, Group, Initial, Level, Mistake, Mistakes, Probe, RelayMode,
};

const EXAMPLE: &str = include_str!("../../lb.toml.example");

/// What is wrong, and what is said about it.
type Case<'c> = (&'c str, &'c [&'c str]);

/// The first line of everything that is said about a config.
fn said(text: &str) -> Vec<String> {
    match Config::parse("lb.toml", text.as_bytes()) {
        Ok(loaded) => loaded.warnings.iter().map(Mistake::first_line).collect(),
        Err(mistakes) => mistakes.iter().map(Mistake::first_line).collect(),
    }
}

/// Checks that exactly this is said, each line without the name of the file.
fn assert_said(text: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|line| format!("lb.toml:{line}")).collect();
    assert_eq!(said(text), expected, "about\n{text}");
}

fn good(text: &str) -> Config {
    match Config::parse("lb.toml", text.as_bytes()) {
        Ok(loaded) if loaded.warnings.is_empty() => loaded.config,
        Ok(loaded) => panic!("{}\n{text}", loaded.warnings[0]),
        Err(mistakes) => panic!("{mistakes}\n{text}"),
    }
}

/// `top` begins at line 6.
fn with_top(top: &str) -> String {
    let rest =
        "listeners.web.bind = \"127.0.0.1:0\"\nlisteners.web.pool = \"web\"\npools.web.backends = [\"10.0.0.1:80\"]";
    format!("{rest}\n\n\n{top}")
}

/// The listener's keys begin at line 4.
fn with_listener(keys: &str) -> String {
    format!("[pools.web]\nbackends = [\"10.0.0.1:80\"]\n[listeners.web]\n{keys}")
}

/// The pool's keys begin at line 5.
fn with_pool(keys: &str) -> String {
    format!("[listeners.web]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n[pools.web]\n{keys}")
}

#[test]
fn the_smallest_config_has_every_default() {
    let config = good(&with_top(""));
    assert_eq!(config.runtime.workers, None);
    assert_eq!(config.runtime.max_connections, None);
    assert_eq!(config.runtime.drain_timeout, Duration::from_secs(60));
    assert_eq!((config.runtime.lame_duck, config.runtime.relay), (Duration::ZERO, RelayMode::Auto));
    assert_eq!(config.admin.listen[0].to_string(), "127.0.0.1:9900");
    assert_eq!((config.log.level, config.log.format, config.log.access), (Level::Info, Format::Text, Access::Off));
    let listener = &config.listeners[0];
    assert_eq!(
        (listener.name.as_str(), listener.pool.as_ref().unwrap().as_str(), listener.backlog),
        ("web", "web", 4_096)
    );
    assert_eq!(listener.idle_timeout, Duration::from_secs(600));
    assert_eq!(listener.half_close_timeout, Duration::from_secs(30));
    assert_eq!(listener.keepalive, Some(Duration::from_secs(60)));
    let pool = &config.pools[0];
    assert_eq!((pool.name.as_str(), &pool.balance, pool.members.len()), ("web", &Balance::RoundRobin, 1));
    assert_eq!((pool.members[0].weight, &pool.members[0].name), (1, &None));
    assert_eq!((pool.connect.timeout, pool.connect.attempts), (Duration::from_secs(5), 3));
    assert_eq!(pool.connect.budget, Duration::from_secs(10));
    assert_eq!((&pool.health.probe, pool.health.initial), (&Probe::Tcp, Initial::Down));
    assert_eq!((pool.health.interval, pool.health.timeout), (Duration::from_secs(2), Duration::from_secs(1)));
    assert_eq!((pool.health.fast_interval, pool.health.rise, pool.health.fall), (Duration::from_millis(500), 2, 3));
}

#[test]
fn a_full_config_says_what_it_means() {
    let config = good(
        r#"
        [runtime]
        workers = 4
        max_connections = 10_000
        drain_timeout = "0s"
        lame_duck = "1m 30s"
        relay = "copy"
        [admin]
        listen = "unix:/run/admin.sock"
        [log]
        level = "debug"
        format = "json"
        access = "/var/log/access.log"
        [pools.late]
        backends = ["DB.example:5432", { address = "[::1]:1", weight = 256, name = "grün" }, "unix:/run/a.sock"]
        balance = "random"
        connect = { timeout = "250ms", attempts = 16, budget = "1s" }
        [pools.late.health]
        probe = "none"
        [listeners.z]
        bind = ["0.0.0.0:80", "[::]:81", "unix:/run/z.sock"]
        pool = "late"
        backlog = 0x10
        idle_timeout = "1h"
        half_close_timeout = "0s"
        keepalive = "off"
        [listeners."a.b"]
        bind = "127.0.0.1:0"
        pool = "early"
        [pools.early]
        target = "failover:(tcp://a:1|failover:(tcp://b:2|unix:/c))"
        "#,
    );
    assert_eq!((config.runtime.workers, config.runtime.max_connections), (Some(4), Some(10_000)));
    assert_eq!((config.runtime.drain_timeout, config.runtime.lame_duck), (Duration::ZERO, Duration::from_secs(90)));
    assert_eq!(config.runtime.relay, RelayMode::Copy);
    assert_eq!(config.admin.listen[0].to_string(), "unix:/run/admin.sock");
    assert_eq!((config.log.level, config.log.format), (Level::Debug, Format::Json));
    assert_eq!(config.log.access, Access::File("/var/log/access.log".into()));
    let [late, early] = &config.pools[..] else { panic!("{:?}", config.pools) };
    assert_eq!((late.name.as_str(), early.name.as_str()), ("late", "early"), "in the order of the file");
    assert_eq!(late.balance, Balance::Random);
    let shown: Vec<_> = late.members.iter().map(|member| member.address.to_string()).collect();
    assert_eq!(shown, ["db.example:5432", "[::1]:1", "unix:/run/a.sock"]);
    assert!(matches!(late.members[0].address, Address::Host { port: 5_432, .. }));
    assert_eq!((late.members[1].weight, late.members[1].name.as_deref()), (256, Some("grün")));
    assert_eq!((late.connect.timeout, late.connect.attempts), (Duration::from_millis(250), 16));
    assert_eq!(late.health.probe, Probe::None);
    let nested = Group::Any(vec![Group::Member(1), Group::Member(2)]);
    assert_eq!(early.balance, Balance::Failover(Group::Any(vec![Group::Member(0), nested])));
    let [z, dotted] = &config.listeners[..] else { panic!("{:?}", config.listeners) };
    let shown: Vec<_> = z.bind.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["0.0.0.0:80", "[::]:81", "unix:/run/z.sock"]);
    assert_eq!((z.backlog, z.half_close_timeout, z.keepalive), (16, Duration::ZERO, None));
    assert_eq!(dotted.name.as_str(), "a.b");
}

#[test]
fn a_member_knows_its_place() {
    let config = good(&with_pool("backends = [\"a:1\",\n  { address = \"b:2\" }]"));
    let places: Vec<_> = config.pools[0].members.iter().map(|member| member.place.as_str()).collect();
    assert_eq!(places, ["lb.toml:5:13: pools.web.backends[0]", "lb.toml:6:3: pools.web.backends[1]"]);
    let config = good(&with_pool("target = \"failover:(tcp://a:1|tcp://b:2)\""));
    let places: Vec<_> = config.pools[0].members.iter().map(|member| member.place.as_str()).collect();
    assert_eq!(places, ["lb.toml:5:21: pools.web.target", "lb.toml:5:31: pools.web.target"]);

    let mistake = Mistake::of_member(&config.pools[0].members[1], "b is not known\x1b", "ask your DNS");
    assert_eq!(mistake.to_string(), "lb.toml:5:31: pools.web.target: b is not known\u{fffd}; ask your DNS");
    let earlier = Mistake::of_member(&config.pools[0].members[0], "a is not known", "");
    let mistakes: Mistakes = [mistake, earlier].into_iter().collect();
    assert_eq!(mistakes.iter().next().unwrap().message, "a is not known", "in the order of the file");
}

#[test]
fn a_time_that_is_not_given_fits_those_that_are() {
    let config = good(&with_pool(
        "backends = [\"a:1\"]\nconnect.budget = \"2s\"\nhealth.interval = \"300ms\"\n[listeners.short]\n\
         bind = \"127.0.0.1:0\"\npool = \"web\"\nidle_timeout = \"1s\"",
    ));
    let pool = &config.pools[0];
    assert_eq!(pool.connect.timeout, Duration::from_secs(2));
    assert_eq!(pool.health.timeout, Duration::from_millis(300));
    assert_eq!(pool.health.fast_interval, Duration::from_millis(300));
    assert_eq!(config.listeners[1].half_close_timeout, Duration::from_secs(1));
}
