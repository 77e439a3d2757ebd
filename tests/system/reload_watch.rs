//! The look at the config file, what a reload tells the service manager, and what needs more than a reload.

use crate::kit::conn::uninterrupted;
use crate::kit::wait::trickle;
use crate::kit::{Backend, Config, Conn, Launch, Tidegate, eventually, throughout};
use crate::reload::{generation, reload, write};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

const WATCH: &str = "watch = \"100ms\"";

#[test]
fn a_file_whose_content_changes_is_taken_by_itself_and_a_bad_one_tried_once() {
    let [one, two] = ["one", "two"].map(Backend::named);
    let config = |backend: &Backend| Config::over([backend]).runtime(WATCH);
    let tidegate = Tidegate::start(config(&one));
    write(&tidegate, config(&two));
    tidegate.logged(&["changed", "by=watch", "to=2"]);
    assert_eq!(tidegate.connect().rest().text(), "two\n");
    write(&tidegate, "nonsense");
    tidegate.logged(&["refused", "by=watch"]);
    throughout("it isn't tried again", Duration::from_millis(500), || tidegate.count_logged(&["refused"]) == 1);
    fs::remove_file(tidegate.dir().join("lb.toml")).unwrap();
    throughout("a file that is missing is no change", Duration::from_millis(300), || {
        tidegate.count_logged(&["by=watch"]) == 2
    });
    // The content that runs.
    write(&tidegate, config(&two));
    tidegate.logged(&["nothing has changed", "by=watch", "generation=2"]);
    // Without the key, nobody looks.
    write(&tidegate, Config::over([&two]));
    eventually("it is taken", || generation(&tidegate) == 3);
    write(&tidegate, Config::over([&one]));
    throughout("it isn't taken", Duration::from_millis(500), || generation(&tidegate) == 3);
    tidegate.signal(Signal::HUP);
    eventually("but when it is asked for", || generation(&tidegate) == 4);
}

/// As a volume of a `ConfigMap` is: the name leads through a link to the folder of one version.
#[test]
fn a_volume_that_is_swapped_by_a_link_is_seen() {
    let [one, two] = ["one", "two"].map(Backend::named);
    let launch = Launch::new(Config::over([&one]).runtime(WATCH));
    let dir = launch.dir().to_owned();
    for (version, backend) in [("v1", &one), ("v2", &two)] {
        fs::create_dir(dir.join(version)).unwrap();
        let text = Config::over([backend]).runtime(WATCH).to_string().replace("$DIR", dir.to_str().unwrap());
        fs::write(dir.join(version).join("lb.toml"), text).unwrap();
    }
    fs::remove_file(dir.join("lb.toml")).unwrap();
    symlink("v1", dir.join("data")).unwrap();
    symlink("data/lb.toml", dir.join("lb.toml")).unwrap();
    let tidegate = launch.start();
    assert_eq!(tidegate.connect().rest().text(), "one\n");
    symlink("v2", dir.join("data.new")).unwrap();
    fs::rename(dir.join("data.new"), dir.join("data")).unwrap();
    eventually("the other version runs", || generation(&tidegate) == 2);
    assert_eq!(tidegate.connect().rest().text(), "two\n");
}

#[test]
fn what_an_operator_has_rolled_back_from_stays_away_until_the_file_is_another_one() {
    let (old, new, newest) = (Backend::named("old"), Backend::named("new"), Backend::named("newest"));
    let config = |backend: &Backend| Config::over([backend]).runtime("watch = \"500ms\"");
    let tidegate = Tidegate::start(config(&old));
    // Both between two looks, unless the machine is slow.
    reload(&tidegate, config(&new));
    let answer = tidegate.post("/rollback", "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(answer.body.contains("has another config"), "{}", answer.body);
    throughout("it isn't taken again", Duration::from_millis(1_200), || generation(&tidegate) == 3);
    write(&tidegate, config(&newest));
    eventually("another one is", || generation(&tidegate) == 4);
    // Another one and back, before anybody has looked.
    reload(&tidegate, config(&new));
    write(&tidegate, config(&newest));
    eventually("what the file says is taken", || generation(&tidegate) == 6);
    assert_eq!(tidegate.connect().rest().text(), "newest\n");
}

/// The process, and what the service manager hears of it but for what is told now and then.
fn with_manager(config: Config) -> (Tidegate, impl Fn() -> String) {
    let launch = Launch::new(config);
    let path = launch.dir().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(crate::kit::PATIENCE)).unwrap();
    let heard = move || loop {
        let mut buffer = [0; 4_096];
        let length = uninterrupted(|| manager.recv(&mut buffer)).unwrap();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if !text.starts_with("STATUS=") {
            return text;
        }
    };
    (launch.env("NOTIFY_SOCKET", path.to_str().unwrap()).start(), heard)
}

#[test]
fn the_service_manager_hears_of_a_reload_and_why_it_was_refused() {
    let backend = Backend::named("x");
    let (tidegate, heard) = with_manager(Config::over([&backend]));
    assert_eq!(heard(), "READY=1\nSTATUS=serving 0 sessions, generation 1\n");
    let good = Config::over([&backend]).listener("backlog = 99").to_string();
    let bad = Config::over([&backend]).listener("backlog = 0\nidle_timeout = \"soon\"").to_string();
    for (config, status) in [(&good, 200), (&bad, 422), (&good, 200)] {
        write(&tidegate, config);
        let answer = tidegate.post("/reload", "");
        assert_eq!(answer.status, status, "{}", answer.body);
        let reloading = heard();
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{reloading}"));
        assert!(usec.trim_end().parse::<u64>().unwrap() > 0, "{reloading}");
        // The same words in the answer, in the log and here.
        let mut refused = String::new();
        if status == 422 {
            let error = answer.json()["error"].as_str().unwrap().to_owned();
            let lines: Vec<&str> = error.lines().collect();
            assert_eq!(lines.len(), 2, "{error}");
            for line in &lines {
                tidegate.logged(&["refused: ", line]);
            }
            refused = "; the last reload was refused: ".to_owned() + &lines.join("; ");
        }
        assert_eq!(heard(), format!("READY=1\nSTATUS=serving 0 sessions, generation 2{refused}\n"));
    }
}

#[test]
fn the_service_manager_hears_of_a_stop_and_for_whom_it_waits() {
    let backend = Backend::echo();
    let (mut tidegate, heard) = with_manager(Config::over([&backend]));
    assert_eq!(heard(), "READY=1\nSTATUS=serving 0 sessions, generation 1\n");
    let session = tidegate.echoed();
    tidegate.signal(Signal::TERM);
    assert_eq!(heard(), "STOPPING=1\nSTATUS=draining, 1 session left\n");
    drop(session);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn a_config_that_the_file_descriptors_do_not_carry_is_refused_with_both_numbers() {
    let backend = Backend::named("x");
    let tidegate = Launch::new(Config::over([&backend])).nofile(1_000).start();
    write(&tidegate, Config::over([&backend]).runtime("max_connections = 5_000"));
    tidegate.signal(Signal::HUP);
    tidegate.logged(&["refused: runtime.max_connections = 5000 needs", "but the limit is 1000"]);
    assert_eq!(generation(&tidegate), 1);
    reload(&tidegate, Config::over([&backend]).runtime("max_connections = 50"));
    assert_eq!(tidegate.metrics().one("tidegate_max_connections", &[]) as u64, 50);
}

#[test]
fn signals_that_come_faster_than_reloads_end_leave_room_for_others() {
    let backend = Backend::echo();
    let leaving = "[listeners.leaving]\nbind = \"unix:$DIR/leaving.sock\"\npool = \"web\"\nmax_connections = 1\n\
                   overload = \"wait\"\n";
    let tidegate = Tidegate::start(Config::over([&backend]).more(leaving));
    let address = tidegate.addr_of("leaving", 0);
    let mut first = Conn::to(&address);
    first.speak();
    let mut second = Conn::to(&address);
    // Its path is free once the second one was let in, and each reload waits for a while for that.
    reload(&tidegate, Config::over([&backend]));
    trickle(Duration::from_millis(5), Duration::from_millis(500), || tidegate.signal(Signal::HUP));
    // A change that waits for them all.
    let answer = tidegate.post("/log", "{\"level\": \"info\"}");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(tidegate.count_logged(&["nothing has changed", "SIGHUP"]) < 50, "{}", tidegate.log());
    drop(first);
    second.speak();
}
