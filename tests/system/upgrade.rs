//! The upgrade: another process takes this one's place, and what becomes of it when that one is no good.

use crate::hold::{held as held_now, probed, until_held};
use crate::kit::conn::{Addr, Conn, End, uninterrupted};
use crate::kit::files;
use crate::kit::{
    Backend, Config, Launch, Listening, Tidegate, eventually, eventually_eq, eventually_some, throughout,
};
use rustix::process::Signal;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn started(config: Config) -> Tidegate {
    Launch::new(config).linked().start()
}

/// One that waits only three seconds for its successor: for a test whose successor never says that it is ready.
fn started_impatient(config: Config) -> Tidegate {
    Launch::new(config).linked().env("TIDEGATE_TEST_PATIENCE", "3000").start()
}

/// A program that does this, in the place of the binary.
fn script(tidegate: &Tidegate, lines: &str) -> PathBuf {
    let path = tidegate.dir().join("script");
    files::script(&path, lines);
    path
}

/// Makes this its config file.
fn write(tidegate: &Tidegate, config: &str) {
    let text = config.replace("$DIR", tidegate.dir().to_str().unwrap());
    fs::write(tidegate.dir().join("lb.toml"), text).unwrap();
}

/// It is asked for, and comes to nothing: the process serves on, and can be asked again.
fn refused(tidegate: &mut Tidegate, words: &[&str]) {
    let before = tidegate.count_logged(&["refused:", "command=\"upgrade\""]);
    tidegate.signal(Signal::USR2);
    eventually("the upgrade has failed", || tidegate.count_logged(&["refused:", "command=\"upgrade\""]) > before);
    for word in words {
        tidegate.logged(&["refused:", "command=\"upgrade\"", word]);
    }
    assert!(tidegate.lives());
    tidegate.echoed();
    assert_eq!(tidegate.get("/readyz").status, 200);
}

#[test]
fn a_successor_takes_over_and_sessions_stay_where_they_are() {
    let backend = Backend::echo();
    let config = Config::over([&backend]).binds(["127.0.0.1:0", "unix:$DIR/web.sock"]);
    let mut tidegate = started(config);
    let (tcp, unix) = (tidegate.addr_of("web", 0), tidegate.addr_of("web", 1));
    let mut sessions = [tidegate.echoed(), Conn::to(&unix)];
    sessions[1].speak();
    let (first, admin) = (tidegate.pid, tidegate.admin().clone());

    tidegate.signal(Signal::USR2);
    let mut predecessor = tidegate.follow();
    assert_ne!(tidegate.pid, first);
    assert_eq!((tidegate.addr_of("web", 0), tidegate.addr_of("web", 1)), (tcp.clone(), unix.clone()));
    assert_eq!(tidegate.admin(), &admin);
    assert_eq!(tidegate.get("/readyz").status, 200);
    for address in [&tcp, &unix] {
        Conn::to(address).speak();
    }
    // Those that stood before are the predecessor's, which waits for them.
    for session in &mut sessions {
        session.speak();
    }
    eventually("the successor counts its own alone", || tidegate.sessions() == 0);
    assert!(predecessor.try_wait().is_none());
    for mut session in sessions {
        session.finish();
        session.expect_end(End::Fin);
    }
    assert_eq!(predecessor.end().unwrap().code(), Some(0), "{}", tidegate.log());
    Conn::to(&unix).speak();
    tidegate.logged(&["changed", "command=\"upgrade\"", &format!("from={first}"), &format!("to={}", tidegate.pid)]);
    drop(tidegate);
    let Addr::Unix(path) = unix else { panic!("a path") };
    assert!(!path.exists(), "the path is the successor's to remove");
}

#[test]
fn the_binary_that_is_there_now_is_started_with_the_config_that_is_there_now() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let mut tidegate = started(Config::over([&one]));
    let (address, admin) = (tidegate.addr(), tidegate.admin().clone());
    let wrapper = script(
        &tidegate,
        &format!("echo \"through the script\" >&2\nexec \"{}\" \"$@\"", env!("CARGO_BIN_EXE_tidegate")),
    );
    tidegate.replace_binary(&wrapper);
    let text = Config::over([&two]).only_runtime("workers = 3").to_string();
    let more = format!("{text}[listeners.more]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n");
    write(&tidegate, &more);
    tidegate.signal(Signal::USR2);
    tidegate.follow_alone();
    assert_eq!(tidegate.addr(), address);
    for address in [address, tidegate.addr_of("more", 0)] {
        assert_eq!(Conn::to(&address).line(), "two");
    }
    tidegate.logged(&["through the script"]);
    assert_eq!(tidegate.status()["generation"], 2);

    // Fewer workers leave no queue without one.
    write(&tidegate, &Config::over([&two]).only_runtime("workers = 1").to_string());
    tidegate.signal(Signal::USR2);
    tidegate.follow_alone();
    for _ in 0..50 {
        assert_eq!(tidegate.connect().line(), "two");
    }
    // Nor does it move to where a listener was, whose port the kernel has chosen as well.
    assert_eq!(tidegate.admin(), &admin);
}

#[test]
fn f55_a_successor_that_ends_at_once_changes_nothing_and_its_words_are_told() {
    let backend = Backend::echo();
    let mut tidegate = started(Config::over([&backend]));
    let mut session = tidegate.echoed();
    let fds = tidegate.fds().len();
    let dead = script(&tidegate, "echo first line >&2; echo no such library >&2; exit 3");
    tidegate.replace_binary(&dead);
    refused(&mut tidegate, &["it ended (exit status: 3)", "no such library"]);
    let gone = tidegate.dir().join("nowhere");
    tidegate.replace_binary(&gone);
    refused(&mut tidegate, &["can't start", "No such file"]);
    session.speak();
    eventually("its fds are as many as before", || tidegate.fds().len() <= fds + 2);
    let good = env!("CARGO_BIN_EXE_tidegate").into();
    tidegate.replace_binary(&PathBuf::from(&good as &String));
    tidegate.signal(Signal::USR2);
    let mut predecessor = tidegate.follow();
    drop(session);
    assert_eq!(predecessor.end().unwrap().code(), Some(0));
}

#[test]
fn f55_a_successor_with_a_bad_config_is_refused_with_its_own_words() {
    let backend = Backend::echo();
    let mut tidegate = started(Config::over([&backend]));
    write(&tidegate, "[listeners.web]\nbind = 7\n");
    refused(&mut tidegate, &["lb.toml:2:8"]);
}

#[test]
fn f55_a_successor_that_never_says_that_it_is_ready_is_killed() {
    let backend = Backend::echo();
    let mut tidegate = started_impatient(Config::over([&backend]));
    let silent = script(&tidegate, "echo $$ >\"$(dirname \"$0\")/pid\"; exec sleep 600");
    tidegate.replace_binary(&silent);
    let begun = Instant::now();
    refused(&mut tidegate, &["it has not been ready within 3s"]);
    assert!(begun.elapsed() >= Duration::from_secs(3));
    let pid = eventually_some("it has said who it is", || fs::read_to_string(tidegate.dir().join("pid")).ok());
    assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists(), "it was killed and reaped");
}

#[test]
fn while_an_upgrade_runs_others_are_refused_and_a_stop_ends_it() {
    let backend = Backend::echo();
    let mut tidegate = started(Config::over([&backend]));
    let silent = script(&tidegate, "echo $$ >\"$(dirname \"$0\")/pid\"; exec sleep 600");
    tidegate.replace_binary(&silent);
    tidegate.signal(Signal::USR2);
    let pid = eventually_some("the successor has begun", || {
        fs::read_to_string(tidegate.dir().join("pid")).ok().filter(|text| text.ends_with('\n'))
    });
    for (signal, command) in [(Signal::USR2, "upgrade"), (Signal::HUP, "reload")] {
        tidegate.signal(signal);
        tidegate.logged(&["refused: an upgrade is under way", &format!("command=\"{command}\"")]);
    }
    tidegate.echoed();
    let mut session = tidegate.echoed();
    tidegate.signal(Signal::TERM);
    eventually("the successor is gone", || !PathBuf::from(format!("/proc/{}", pid.trim())).exists());
    session.speak();
    session.finish();
    session.expect_end(End::Fin);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn what_is_known_of_backends_goes_over() {
    let (good, bad) = (Backend::echo(), Listening::new());
    let health = "probe = \"tcp\"\ninterval = \"1h\"\nfast_interval = \"50ms\"\ndown_interval = \"1h\"\nfall = 1\n";
    let (good_address, bad_address) = (good.to_string(), bad.to_string());
    let config = Config::over([&good_address, &bad_address]).health(health).only_runtime("workers = 1");
    drop(bad);
    let mut tidegate = started(config);
    assert_eq!(tidegate.backend_status(&bad_address)["state"], "down");
    let since = tidegate.backend_status(&bad_address)["since_unix_ms"].clone();
    // One success is enough, and the next probe is an hour away.
    eventually_eq("its first probe has been taken", &1, || good.accepted());
    tidegate.signal(Signal::USR2);
    tidegate.follow_alone();
    let known = tidegate.backend_status(&bad_address);
    assert_eq!((&known["state"], &known["since_unix_ms"]), (&"down".into(), &since), "{known:#}");
    assert!(known["last_error"].is_object() || known["last_error"].is_string(), "{known:#}");
    assert_eq!(tidegate.backend_status(&good_address)["state"], "up");
    tidegate.echoed();
    assert_eq!(good.accepted(), 2, "nobody was asked again, and one client has come");
}

#[test]
fn f57_the_service_manager_hears_who_is_the_main_process_and_is_fed_by_it() {
    let backend = Backend::echo();
    let launch = Launch::new(Config::over([&backend])).linked();
    let path = launch.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    // At once, as a service manager does: few messages fit into the socket, and who can't send more waits.
    let (says, told) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 1_024];
        while let Ok(length) = uninterrupted(|| socket.recv(&mut buffer))
            && says.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).is_ok()
        {}
    });
    let heard = || told.try_iter().collect::<String>();
    let launch = launch.env("NOTIFY_SOCKET", path.to_str().unwrap()).env("WATCHDOG_USEC", "500000");
    // It is the first process that the manager wants to be fed by, until it hears of another one.
    let launch = launch.wrapped(["sh", "-c", "export WATCHDOG_PID=$$; exec \"$@\"", "sh"]);
    let mut tidegate = launch.start();
    let mut text = String::new();
    eventually("it feeds the watchdog", || {
        text.push_str(&heard());
        text.contains("READY=1") && text.contains("WATCHDOG=1")
    });
    let session = tidegate.echoed();
    tidegate.signal(Signal::USR2);
    let mut predecessor = tidegate.follow();
    let mut text = String::new();
    eventually("the successor feeds the watchdog", || {
        text.push_str(&heard());
        text.contains("READY=1") && text.split("READY=1").nth(1).unwrap().contains("WATCHDOG=1")
    });
    let main = format!("MAINPID={}", tidegate.pid);
    let (announced, ready) = (text.find(&main), text.find("READY=1"));
    assert!(announced.is_some() && announced < ready, "first who it is, then that it is ready: {text}");
    drop(session);
    assert_eq!(predecessor.end().unwrap().code(), Some(0));
    assert!(!(text + &heard()).contains("STOPPING=1"), "the service goes on");
}

#[test]
fn a_process_that_has_handed_over_stops_within_its_time_when_it_is_told_to() {
    let listening = Listening::new();
    let mut tidegate = started(Config::over([&listening]).runtime("drain_timeout = \"300ms\""));
    let (mut client, _backend) = (tidegate.connect(), listening.accept());
    tidegate.signal(Signal::USR2);
    let mut predecessor = tidegate.follow();
    throughout("it waits for its session", Duration::from_millis(600), || predecessor.try_wait().is_none());
    predecessor.signal(Signal::TERM);
    client.expect_end(End::Rst);
    assert_eq!(predecessor.end().unwrap().code(), Some(0));
}

#[test]
fn with_a_timeout_a_process_that_has_handed_over_ends_by_itself() {
    let listening = Listening::new();
    let mut tidegate = started(Config::over([&listening]).runtime("retired_timeout = \"300ms\""));
    let (mut client, _backend) = (tidegate.connect(), listening.accept());
    tidegate.signal(Signal::USR2);
    let mut predecessor = tidegate.follow();
    client.expect_end(End::Rst);
    assert_eq!(predecessor.end().unwrap().code(), Some(0));
    tidegate.logged(&["runtime.retired_timeout has passed"]);
}

#[test]
fn a_listener_that_was_taken_out_stays_so_and_keeps_its_address() {
    let backend = Backend::echo();
    let mut tidegate = started(Config::over([&backend]));
    let address = tidegate.addr();
    let answer = tidegate.post("/listeners/web", "{\"state\": \"disabled\"}");
    assert_eq!(answer.status, 200, "{}", answer.body);
    eventually("nobody listens", || Conn::try_to(&address).is_err());
    let answer = tidegate.post("/upgrade", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    tidegate.follow_alone();
    assert_eq!(answer.json()["details"]["pid"], tidegate.pid);
    assert!(Conn::try_to(&address).is_err(), "nobody listens after the upgrade either");
    let answer = tidegate.post("/listeners/web", "{\"state\": \"enabled\"}");
    assert_eq!(answer.status, 200, "{}", answer.body);
    for _ in 0..20 {
        Conn::to(&address).speak();
    }
}

#[test]
fn the_log_goes_on_when_the_predecessor_has_gone() {
    let backend = Backend::echo();
    let mut tidegate = started(Config::over([&backend]));
    for upgrades in [1, 2] {
        tidegate.signal(Signal::USR2);
        tidegate.follow_alone();
        tidegate.signal(Signal::HUP);
        eventually("the successor tells of its reload", || tidegate.count_logged(&["nothing has changed"]) == upgrades);
    }
}

/// One that answers `one`, and a successor on a long probation, over an echo; with the successor's number, and a client
/// that it has.
fn on_probation(one: &Backend, echo: &Backend) -> (Tidegate, u32, Conn) {
    let launch = Launch::new(Config::over([one]).runtime("state_file = \"$DIR/state.json\"")).linked();
    let tidegate = launch.env("TIDEGATE_TEST_PROBATION", "600000").start();
    let lines = format!("echo $$ >\"$(dirname \"$0\")/pid\"; exec \"{}\" \"$@\"", env!("CARGO_BIN_EXE_tidegate"));
    let wrapper = script(&tidegate, &lines);
    tidegate.replace_binary(&wrapper);
    let weighed = tidegate.post(&format!("/pools/web/backends/{one}"), "{\"weight\": 7}");
    assert_eq!(weighed.status, 200, "{}", weighed.body);
    eventually("it is kept", || kept(&tidegate).contains("\"weight\": 7"));
    write(&tidegate, &Config::over([echo]).runtime("state_file = \"$DIR/state.json\"").to_string());
    tidegate.signal(Signal::USR2);
    let client = eventually_some("the successor accepts, too", || {
        let mut client = tidegate.connect();
        client.send("two\n");
        (client.line() == "two").then_some(client)
    });
    tidegate.logged(&["the successor accepts, too"]);
    let pid = fs::read_to_string(tidegate.dir().join("pid")).unwrap().trim().parse().unwrap();
    (tidegate, pid, client)
}

fn kept(tidegate: &Tidegate) -> String {
    fs::read_to_string(tidegate.dir().join("state.json")).unwrap_or_default()
}

fn kill(pid: u32) {
    send(pid, Signal::KILL);
}

fn send(pid: u32, signal: Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// The last client of a successor goes on until it is done, and then neither process is left.
fn both_end(tidegate: &mut Tidegate, successor: u32, mut client: Conn) {
    client.speak();
    client.finish();
    client.expect_end(End::Fin);
    assert_eq!(tidegate.wait().code, Some(0));
    eventually("the successor has ended", || !PathBuf::from(format!("/proc/{successor}/exe")).exists());
}

#[test]
fn f55_a_successor_that_dies_of_its_first_clients_has_taken_nothing_away() {
    let (one, echo) = (Backend::named("one"), Backend::echo());
    let (tidegate, successor, mut client) = on_probation(&one, &echo);
    kill(successor);
    client.expect_end(End::Rst);
    tidegate.logged(&["refused:", "command=\"upgrade\"", "it accepted clients, and ended (signal: 9"]);
    for _ in 0..20 {
        assert_eq!(tidegate.connect().line(), "one");
    }
    assert!(kept(&tidegate).contains("\"weight\": 7"), "what operators changed is the predecessor's to keep");
    assert_eq!(tidegate.get("/readyz").status, 200);
}

/// It may hear of that late; by then its predecessor has gone.
#[test]
fn a_successor_that_a_stop_finds_on_probation_serves_nobody_new_and_leaves_the_addresses() {
    let (one, echo) = (Backend::named("one"), Backend::echo());
    let (mut tidegate, successor, client) = on_probation(&one, &echo);
    let (address, admin) = (tidegate.addr(), tidegate.admin().clone());
    send(successor, Signal::STOP);
    tidegate.signal(Signal::TERM);
    eventually("the predecessor has ended", || !tidegate.lives());
    send(successor, Signal::CONT);
    for address in [address, admin] {
        eventually("nobody listens there", || Conn::try_to(&address).map(Conn::reset).is_err());
    }
    both_end(&mut tidegate, successor, client);
}

#[test]
fn a_successor_that_is_told_to_stop_on_probation_goes_at_once_and_the_predecessor_serves_on() {
    let (one, echo) = (Backend::named("one"), Backend::echo());
    let (tidegate, successor, mut client) = on_probation(&one, &echo);
    send(successor, Signal::TERM);
    tidegate.logged(&["refused:", "command=\"upgrade\"", "the successor was told to stop (SIGTERM)"]);
    tidegate.logged(&["told to stop before it has taken over", "SIGTERM"]);
    client.speak();
    client.finish();
    client.expect_end(End::Fin);
    eventually("the successor has ended", || !PathBuf::from(format!("/proc/{successor}/exe")).exists());
    for _ in 0..20 {
        assert_eq!(tidegate.connect().line(), "one");
    }
    assert_eq!(tidegate.count_logged(&["ERROR"]), 0, "{}", tidegate.log());
    assert_eq!(tidegate.get("/readyz").status, 200);
    // Nothing of it stands in another one's way.
    assert_eq!(tidegate.post("/reload", "").status, 200);
    tidegate.echoed();
}

/// Its predecessor has ended the listening by then.
#[test]
fn a_successor_that_hears_late_of_a_stop_takes_no_socket_for_broken() {
    let (one, echo) = (Backend::named("one"), Backend::echo());
    let (mut tidegate, successor, client) = on_probation(&one, &echo);
    // As long as this one lasts, its predecessor passes on what the successor says.
    let lasting = eventually_some("the predecessor has a client", || {
        let mut client = tidegate.connect();
        client.send("two\n");
        (client.line() == "one").then_some(client)
    });
    send(successor, Signal::STOP);
    tidegate.signal(Signal::TERM);
    eventually("nobody listens there", || Conn::try_to(&tidegate.addr()).map(Conn::reset).is_err());
    send(successor, Signal::CONT);
    tidegate.logged(&["the predecessor stops, and this process with it"]);
    lasting.finish();
    both_end(&mut tidegate, successor, client);
    assert_eq!(tidegate.count_logged(&["listener broke"]), 0, "{}", tidegate.log());
}

#[test]
fn a_stop_during_an_upgrade_lets_the_successors_sessions_finish_as_well() {
    let (one, echo) = (Backend::named("one"), Backend::echo());
    let (mut tidegate, successor, client) = on_probation(&one, &echo);
    tidegate.signal(Signal::TERM);
    tidegate.logged(&["the predecessor stops, and this process with it"]);
    both_end(&mut tidegate, successor, client);
}

#[test]
fn a_successor_whose_predecessor_is_killed_goes_on_and_can_be_heard() {
    let (one, echo) = (Backend::named("one"), Backend::echo());
    let (mut tidegate, _, mut client) = on_probation(&one, &echo);
    kill(tidegate.pid);
    let mut predecessor = tidegate.follow();
    assert!(predecessor.end().unwrap().code().is_none());
    tidegate.logged(&["WARN", "the predecessor has gone without a word"]);
    client.speak();
    tidegate.echoed();
    tidegate.signal(Signal::HUP);
    tidegate.logged(&["nothing has changed", "command=\"reload\""]);
    drop(client);
}

/// They are the predecessor's to the end: it goes on asking for its backends, and keeps its places.
#[test]
fn clients_that_are_held_or_queue_have_their_turn_after_the_upgrade() {
    let lost = Backend::echo().die();
    let busy = Backend::echo();
    let queued = format!(
        "[listeners.queued]\nbind = \"127.0.0.1:0\"\npool = \"busy\"\n[pools.busy]\nbackends = [\"{busy}\"]\n\
         health.probe = \"none\"\nbackend_max_connections = 1\nqueue = {{ max_wait = \"1m\" }}\n"
    );
    let config = probed([&lost], "max_wait = \"1m\"").more(&queued);
    let mut tidegate = started(config);
    let mut held = tidegate.connect();
    held.send("from before");
    until_held(&tidegate, 1);
    let at = tidegate.addr_of("queued", 0);
    let mut first = Conn::to(&at);
    first.speak();
    let mut second = Conn::to(&at);
    second.send("after the first");
    let waiting = |tidegate: &Tidegate| tidegate.metrics().sum("tidegate_pool_queue_waiting", &[]) as u64;
    eventually_eq("it queues", &1, || waiting(&tidegate));

    tidegate.signal(Signal::USR2);
    let mut predecessor = tidegate.follow();
    assert_eq!((held_now(&tidegate), waiting(&tidegate)), (0, 0), "they aren't the successor's");
    let _back = Backend::at(&lost, crate::kit::backend::echo);
    held.expect("from before");
    first.finish();
    first.expect_end(End::Fin);
    second.expect("after the first");
    assert!(predecessor.try_wait().is_none());
    for mut client in [held, second] {
        client.finish();
        client.expect_end(End::Fin);
    }
    assert_eq!(predecessor.end().unwrap().code(), Some(0), "{}", tidegate.log());
}
