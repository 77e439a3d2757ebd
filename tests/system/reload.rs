//! Another config in a running process: what stays, what changes, and that no client can tell.

use crate::kit::{Addr, Backend, Config, Conn, Tidegate, eventually};
use rustix::process::Signal;
use std::fs;

/// Writes `config` in the place of the one that runs and has it read; waits until it does run.
pub fn reload(tidegate: &Tidegate, config: impl std::fmt::Display) {
    let generation = generation(tidegate) + 1;
    write(tidegate, config);
    tidegate.signal(Signal::HUP);
    eventually("the next generation runs", || self::generation(tidegate) == generation);
}

/// Writes it beside the one that is there and renames it into place, as one should.
pub fn write(tidegate: &Tidegate, config: impl std::fmt::Display) {
    let text = config.to_string().replace("$DIR", tidegate.dir().to_str().unwrap());
    let new = tidegate.dir().join("lb.toml.new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, tidegate.dir().join("lb.toml")).unwrap();
}

pub fn generation(tidegate: &Tidegate) -> u64 {
    tidegate.status()["generation"].as_u64().unwrap()
}

/// A listener `name` over the pool `name`, which is one backend.
fn table(name: &str, bind: &str, backend: &Backend) -> String {
    format!(
        "[listeners.{name}]\nbind = \"{bind}\"\npool = \"{name}\"\n[pools.{name}]\nbackends = [\"{backend}\"]\n\
         health.probe = \"none\"\n"
    )
}

#[test]
fn a_session_stays_where_it_is_and_the_next_one_goes_where_the_new_config_says() {
    let (old, new) = (Backend::echo(), Backend::named("new"));
    let tidegate = Tidegate::start(Config::over([&old]));
    let mut client = tidegate.echoed();
    reload(&tidegate, Config::over([&new]));
    assert_eq!(tidegate.connect().rest().text(), "new\n", "at the same port, though that is 0 in the config");
    client.speak();
    tidegate.logged(&["changed", "SIGHUP", "reload", "from=1", "to=2"]);
    assert_eq!(tidegate.metrics().one("tidegate_config_generation", &[]) as u64, 2);
    drop(client);
    tidegate.signal(Signal::HUP);
    tidegate.logged(&["nothing has changed", "generation=2"]);
    assert_eq!(generation(&tidegate), 2);
}

#[test]
fn listeners_come_and_go_and_change_their_names() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let tidegate = Tidegate::start(Config::over([&one]).more(&table("other", "127.0.0.1:21000", &two)));
    let (web, other) = (tidegate.addr(), Addr::parse("127.0.0.1:21000"));
    let sockets = tidegate.sockets();
    // The same address under another name, and one more.
    let third = Addr::parse("127.0.0.1:21001");
    let renamed = table("renamed", "127.0.0.1:21000", &one) + &table("third", "127.0.0.1:21001", &two);
    reload(&tidegate, Config::over([&two]).more(&renamed));
    for (address, expected) in [(&web, "two\n"), (&other, "one\n"), (&third, "two\n")] {
        assert_eq!(Conn::to(address).rest().text(), expected, "{address}");
    }
    let bind = |at: usize| tidegate.status()["listeners"][at]["bind"][0].as_str().map(str::to_owned);
    assert_eq!([bind(0), bind(1), bind(2)], [&web, &other, &third].map(|address| Some(address.to_string())));
    reload(&tidegate, Config::over([&two]));
    for address in [&other, &third] {
        eventually("nobody listens there any more", || Conn::try_to(address).map(Conn::reset).is_err());
    }
    assert_eq!(tidegate.connect().rest().text(), "two\n");
    eventually("their sockets have gone", || tidegate.sockets() <= sockets - 2);
    let shown = tidegate.metrics().values("tidegate_listener_up", "listener");
    assert_eq!(shown, ["web"]);
}

#[test]
fn a_config_that_is_refused_changes_nothing_and_says_why_in_every_line() {
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let tidegate = Tidegate::start(Config::over([&old]));
    write(&tidegate, Config::over([&new]).pool("balanse = \"random\"").runtime("workerz = 2"));
    tidegate.signal(Signal::HUP);
    for words in [["refused", "balanse"], ["refused", "workerz"]] {
        tidegate.logged(&words);
    }
    assert_eq!((tidegate.connect().rest().text(), generation(&tidegate)), ("old\n".to_owned(), 1));
    reload(&tidegate, Config::over([&new]));
    assert_eq!(tidegate.connect().rest().text(), "new\n");
}
