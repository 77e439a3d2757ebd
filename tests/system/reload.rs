//! Another config in a running process: what stays, what changes, and that no client can tell.

use crate::kit::daemon::run;
use crate::kit::port::free_port;
use crate::kit::{Addr, Backend, Config, Conn, End, Launch, Listening, Tidegate, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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

/// The text of `tidegate check` about the config as it is now: one line for each mistake, without the excerpts.
fn verdict(tidegate: &Tidegate) -> Vec<String> {
    let path = tidegate.dir().join("lb.toml").display().to_string();
    let exit = run(&["check", "--config", &path]);
    assert_eq!(exit.code, Some(78), "{}", exit.stderr);
    exit.stderr.lines().filter(|line| line.starts_with(&path)).map(str::to_owned).collect()
}

/// A config that can't be had is told of with the words of `check`, and another one can follow at once.
fn is_refused(tidegate: &Tidegate, what: &str) {
    let lines = verdict(tidegate);
    assert!(!lines.is_empty(), "{what}");
    tidegate.signal(Signal::HUP);
    for line in lines {
        // As the log writes it, whatever the file has put there.
        let words: Vec<&str> = line.split(['"', '\\']).collect();
        tidegate.logged(&[&["refused: "][..], &words].concat());
    }
    assert_eq!((generation(tidegate), tidegate.connect().rest().text()), (1, "old\n".to_owned()), "{what}");
}

#[test]
fn i06_f42_what_is_no_config_is_refused_with_the_words_of_check_and_the_old_one_runs_on() {
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let good = Config::over([&old]).to_string();
    let tidegate = Tidegate::start(&good);
    let path = tidegate.dir().join("lb.toml");
    let nested = format!("x = {}{}", "[".repeat(10_000), "]".repeat(10_000));
    let cases: [(&str, &[u8]); 7] = [
        ("garbage", b"\x7fELF\x02\x01\x01 \xff\xfe"),
        ("truncated", &good.as_bytes()[..good.len() / 2 - 3]),
        ("empty", b""),
        ("NUL", b"[admin]\0"),
        ("invalid UTF-8", b"[admin]\nlisten = \"\xc3\x28\""),
        ("nested", nested.as_bytes()),
        ("a pool that isn't there", b"[listeners.a]\nbind = \"127.0.0.1:1\"\npool = \"p\"\n"),
    ];
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        is_refused(&tidegate, what);
    }
    fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    is_refused(&tidegate, "100 MB");
    fs::remove_file(&path).unwrap();
    is_refused(&tidegate, "nothing");
    fs::create_dir(&path).unwrap();
    is_refused(&tidegate, "a directory");
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    is_refused(&tidegate, "a FIFO that nobody writes to");
    reload(&tidegate, Config::over([&new]));
    assert_eq!(tidegate.connect().rest().text(), "new\n");
}

#[test]
fn f44_a_port_that_is_busy_undoes_the_binds_before_it() {
    let (one, other) = (Backend::named("one"), Backend::named("other"));
    let tidegate = Tidegate::start(Config::over([&one]));
    let sockets = tidegate.sockets();
    let busy = Listening::new();
    let free = free_port();
    let first = table("first", &format!("127.0.0.1:{free}"), &other);
    let second = table("second", &busy.addr.to_string(), &other);
    write(&tidegate, Config::over([&other]).more(&(first + &second)));
    tidegate.signal(Signal::HUP);
    tidegate.logged(&["refused: listeners.second: can't listen on", &busy.addr.to_string()]);
    assert_eq!((generation(&tidegate), tidegate.connect().rest().text()), (1, "one\n".to_owned()));
    assert!(std::net::TcpListener::bind(("127.0.0.1", free)).is_ok(), "nobody has it");
    eventually("nothing is left of it", || tidegate.sockets() == sockets);
    drop(busy);
    tidegate.signal(Signal::HUP);
    eventually("now it can be had", || generation(&tidegate) == 2);
    assert_eq!(Conn::to(&Addr::parse(&format!("127.0.0.1:{free}"))).rest().text(), "other\n");
    reload(&tidegate, Config::over([&one]));
}

/// Each reload sees the one file or the other.
#[test]
fn f45_a_file_that_is_replaced_while_it_is_read_is_never_a_mixture() {
    const BACKENDS: usize = 2_000;
    let config = |kind: &str| {
        let backend = |index: usize| {
            let (high, low) = (index / 250, index % 250);
            format!("{{ address = \"127.1.{high}.{low}:9\", name = \"{kind}{index}\" }}")
        };
        let list: Vec<String> = (0..BACKENDS).map(backend).collect();
        Config::with_pool(&format!("backends = [{}]", list.join(",\n"))).to_string()
    };
    let configs = [config("a"), config("b")];
    let tidegate = Tidegate::start(&configs[0]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for config in configs.iter().cycle() {
                write(&tidegate, config);
                if stop.load(Relaxed) {
                    return;
                }
            }
        });
        for _ in 0..10 {
            let before = tidegate.count_logged(&["SIGHUP"]);
            tidegate.signal(Signal::HUP);
            eventually("it has been read", || tidegate.count_logged(&["SIGHUP"]) > before);
            let status = tidegate.pool_status();
            let backends = status["backends"].as_array().unwrap();
            let kind = |backend: &serde_json::Value| backend["name"].as_str().unwrap().as_bytes()[0];
            assert_eq!(backends.len(), BACKENDS);
            assert!(backends.iter().all(|backend| kind(backend) == kind(&backends[0])));
        }
        stop.store(true, Relaxed);
        writing.join().unwrap();
    });
    assert_eq!(tidegate.count_logged(&["refused"]), 0);
}

#[test]
fn f46_reloads_come_one_after_the_other_and_none_during_a_stop() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let config = |backend| Config::over([backend]).runtime("lame_duck = \"60s\"");
    let mut tidegate = Tidegate::start(config(&one));
    write(&tidegate, config(&two));
    for _ in 0..20 {
        tidegate.signal(Signal::HUP);
    }
    eventually("the last one has been read", || generation(&tidegate) == 2);
    tidegate.signal(Signal::TERM);
    tidegate.logged(&["stopping"]);
    write(&tidegate, config(&one));
    tidegate.signal(Signal::HUP);
    tidegate.logged(&["refused: the process is stopping"]);
    assert_eq!((generation(&tidegate), tidegate.connect().rest().text()), (2, "two\n".to_owned()));
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn f47_an_address_that_changes_and_changes_back_leaves_nobody_waiting() {
    let backend = Backend::named("x");
    let [here, there] = [free_port(), free_port()].map(|port| Addr::parse(&format!("127.0.0.1:{port}")));
    let tidegate = Tidegate::start(Config::over([&backend]).bind(&here));
    for (from, to) in [(&here, &there), (&there, &here), (&here, &there), (&there, &here)] {
        // They are in the accept queue of the old sockets when these are retired.
        tidegate.signal(Signal::STOP);
        let mut waiting: Vec<Conn> = (0..40).map(|_| Conn::to(from)).collect();
        let before = generation_in_log(&tidegate);
        write(&tidegate, Config::over([&backend]).bind(to));
        tidegate.signal(Signal::HUP);
        tidegate.signal(Signal::CONT);
        for client in &mut waiting {
            assert_eq!(client.rest().text(), "x\n");
        }
        eventually("the other address is served", || generation_in_log(&tidegate) > before);
        assert_eq!(Conn::to(to).rest().text(), "x\n");
        eventually("the old one is not", || Conn::try_to(from).map(Conn::reset).is_err());
    }
}

/// How many changes the log tells of.
fn generation_in_log(tidegate: &Tidegate) -> usize {
    tidegate.count_logged(&["changed", "reload", "to="])
}

#[test]
fn an_option_that_needs_another_socket_gets_one_beside_the_old() {
    let backend = Backend::named("x");
    let address = Addr::parse(&format!("127.0.0.1:{}", free_port()));
    let plain = || Config::over([&backend]).bind(&address);
    let tidegate = Tidegate::start(plain());
    let sockets = tidegate.sockets();
    for keys in ["interface = \"lo\"", "fast_open = 16\ndefer_accept = \"5s\"", ""] {
        reload(&tidegate, plain().listener(&format!("backlog = 77\n[listeners.web.socket]\n{keys}")));
        assert_eq!(Conn::to(&address).rest().text(), "x\n", "{keys}");
        eventually("there are as many sockets as before", || tidegate.sockets() == sockets);
    }
    let limit = tidegate.metrics().one("tidegate_listener_accept_queue_limit", &[("listener", "web")]) as u64;
    assert_eq!(limit, 2 * 77, "of both workers");
}

#[test]
fn a_unix_socket_stays_and_its_mode_changes_and_it_can_come_back() {
    let backend = Backend::named("x");
    let config = |bind: &str, mode: &str| {
        Config::over([&backend])
            .binds(["127.0.0.1:0", bind])
            .listener(&format!("[listeners.web.socket]\nmode = \"{mode}\""))
    };
    let (here, there) = ("unix:$DIR/here.sock", "unix:$DIR/there.sock");
    let tidegate = Tidegate::start(config(here, "0600"));
    let path = tidegate.dir().join("here.sock");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let inode = fs::metadata(&path).unwrap().ino();
    reload(&tidegate, config(here, "0666"));
    assert_eq!((mode(), fs::metadata(&path).unwrap().ino()), (0o666, inode));
    for bind in [there, here, there, here] {
        reload(&tidegate, config(bind, "0600"));
        let at = Addr::parse(&bind.replace("$DIR", tidegate.dir().to_str().unwrap()));
        assert_eq!(Conn::to(&at).rest().text(), "x\n");
    }
    eventually("the other file has gone", || !tidegate.dir().join("there.sock").exists());
}

#[test]
fn f49_a_backend_that_goes_keeps_its_sessions_and_its_metrics_go_with_the_last() {
    let (gone, stays) = (Backend::echo(), Backend::echo());
    let tidegate = Tidegate::start(Config::over([&gone, &stays]));
    let mut clients = [tidegate.echoed(), tidegate.echoed()];
    let name = gone.addr.to_string();
    let labels = [("backend", name.as_str())];
    reload(&tidegate, Config::over([&stays]));
    let active = || tidegate.metrics().sum("tidegate_backend_connections_active", &labels) as u64;
    assert_eq!(active(), 1);
    assert_eq!(tidegate.pool_status()["backends"].as_array().unwrap().len(), 1);
    for client in &mut clients {
        client.speak();
    }
    for _ in 0..4 {
        tidegate.echoed();
    }
    assert_eq!(gone.accepted(), 1, "nobody new");
    drop(clients);
    eventually("nothing is told of it any more", || {
        let metrics = tidegate.metrics();
        !metrics.has("tidegate_backend_connections_active", &labels) && !metrics.has("tidegate_backend_up", &labels)
    });
    assert!(tidegate.metrics().has("tidegate_backend_up", &[("backend", &stays.addr.to_string())]));
}

#[test]
fn a_session_keeps_the_timeouts_that_it_began_with() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let mut before = tidegate.echoed();
    reload(&tidegate, Config::over([&backend]).listener("idle_timeout = \"300ms\""));
    let mut after = tidegate.echoed();
    after.expect_end(End::Rst);
    before.speak();
}

/// A client that has said nothing yet, and whose listener has gone meanwhile.
#[test]
fn a_client_that_is_asked_for_its_first_bytes_keeps_the_ways_of_its_listener() {
    let (web, api) = (Backend::named("web"), Backend::named("api"));
    let routes = "[[listeners.api.routes]]\nprefix = \"hello\"\npool = \"api\"\n";
    let more = table("api", "127.0.0.1:21010", &api) + routes;
    let tidegate = Tidegate::start(Config::over([&web]).more(&more));
    let address = Addr::parse("127.0.0.1:21010");
    let mut client = Conn::to(&address);
    eventually("it has been accepted", || tidegate.sessions() == 1);
    reload(&tidegate, Config::over([&web]));
    eventually("nobody listens there any more", || Conn::try_to(&address).map(Conn::reset).is_err());
    client.send("hello");
    assert_eq!(client.line(), "api");
}

/// While it still waits for the first verdict of a probe, and so has read the file but serves nobody.
#[test]
fn a_reload_that_is_asked_for_before_the_start_is_over_is_done_after_it_and_an_upgrade_is_refused() {
    // The wait for the verdict is bounded: on a machine that is too busy the signals may come after it.
    let heard = (0..5).any(|_| asked_while_starting());
    assert!(heard, "never heard before it was ready");
}

/// Whether both signals came before it was ready.
fn asked_while_starting() -> bool {
    let (probed, new) = (Listening::new(), Backend::named("new"));
    let health = "probe = \"http\"\ninterval = \"1h\"\ntimeout = \"10s\"";
    let launch = Launch::new(Config::over([&probed]).health(health));
    let [pid, log] = ["pid", "log"].map(|name| launch.dir().join(name));
    let (config, dir) = (launch.dir().join("lb.toml"), launch.dir().display().to_string());
    let script = "echo $$ >\"$0\"; exec \"$@\"";
    let launch = launch.wrapped(["sh", "-c", script, pid.to_str().unwrap()]);
    let launch = launch.stderr_to(fs::File::create(&log).unwrap());
    let says = |words: &str| fs::read_to_string(&log).unwrap().contains(words);
    let (kept, refused) =
        ("the config is read again once the process is ready", "refused: the process isn't ready yet");
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| launch.start());
        let mut probe = probed.accept();
        fs::write(&config, Config::over([&new]).to_string().replace("$DIR", &dir)).unwrap();
        let pid = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        for signal in [Signal::USR2, Signal::HUP, Signal::HUP] {
            kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        }
        eventually("it has heard them", || (says(kept) && says(refused)) || says(" ready admin="));
        let is_early = says(kept) && says(refused);
        if is_early {
            probe.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
        let mut tidegate = starting.join().unwrap();
        if !is_early {
            // An upgrade may have begun, which is no part of this.
            tidegate.leaks_not_asked();
            tidegate.signal(Signal::KILL);
            tidegate.wait();
            return false;
        }
        eventually("the file is read again", || generation(&tidegate) == 2);
        assert_eq!(tidegate.connect().line(), "new");
        assert!(!says("starting a successor"));
        true
    })
}
