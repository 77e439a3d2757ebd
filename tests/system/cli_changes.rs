//! Changes from the shell: what they bring about, who may, and what a refusal is for a script.

use super::cli::{ask, told};
use super::reload;
use super::stop::refuses;
use crate::kit::{Backend, Config, Launch, Listening, Tidegate, daemon, eventually};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// As whoever has the config, and with it the token.
fn change(tidegate: &Tidegate, arguments: &[&str]) -> daemon::Exit {
    let config = tidegate.dir().join("lb.toml");
    ask(tidegate, &[arguments, &["-c", config.to_str().unwrap()]].concat())
}

/// What was said of a change that was made.
#[track_caller]
fn changed(tidegate: &Tidegate, arguments: &[&str]) -> String {
    let exit = change(tidegate, arguments);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    exit.stdout
}

#[test]
fn a_backend_is_weighed_taken_out_overruled_added_and_removed() {
    let (first, second) = (Backend::named("first"), Backend::named("second"));
    let tidegate = Tidegate::start(Config::over([&first.addr]));
    let one = format!("web/{}", first.addr);
    assert!(changed(&tidegate, &["weight", &one, "7"]).contains('7'));
    assert_eq!(tidegate.backend_status(&first)["weight"], 7);
    assert!(changed(&tidegate, &["weight", &one, "7"]).starts_with("nothing has changed"));
    changed(&tidegate, &["health", &one, "down"]);
    assert_eq!(tidegate.backend_status(&first)["health_override"], "down");
    changed(&tidegate, &["health", &one, "auto"]);

    let added = second.addr.to_string();
    changed(&tidegate, &["add", "web", &added, "--name", "guest", "--weight", "2"]);
    assert_eq!(tidegate.backend_status("guest")["weight"], 2);
    changed(&tidegate, &["drain", &one, "--deadline", "60s"]);
    assert_eq!(tidegate.backend_status(&first)["admin"], "draining");
    assert_eq!(tidegate.connect().line(), "second");
    changed(&tidegate, &["enable", &one]);
    changed(&tidegate, &["disable", "web/guest"]);
    assert_eq!(tidegate.connect().line(), "first");
    let json = change(&tidegate, &["remove", "web/guest", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["ok"], &json["changed"]), (&true.into(), &true.into()), "{json}");
    assert_eq!(tidegate.status()["pools"][0]["backends"].as_array().unwrap().len(), 1);
    changed(&tidegate, &["log", "debug"]);
    tidegate.logged(&["log level", "debug", "changed"]);
}

/// A script can tell that it is wrong, that it can't be, and that it may not.
#[test]
fn a_refusal_is_told_in_the_words_of_the_process() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let one = format!("web/{}", backend.addr);
    for (arguments, code, words) in [
        (&["weight", &one, "100000"][..], 65, "weight"),
        (&["weight", "web/nobody", "3"], 1, "nobody"),
        (&["enable", "nobody/a"], 1, "nobody"),
        (&["add", "web", "10.0.0.1"], 65, "address"),
        (&["remove", &one, "--deadline", "soon"], 65, "deadline"),
    ] {
        let exit = change(&tidegate, arguments);
        assert_eq!((exit.code, exit.stdout.as_str()), (Some(code), ""), "{arguments:?}: {exit:?}");
        assert!(exit.stderr.contains(words), "{arguments:?}: {}", exit.stderr);
    }
    let before = tidegate.status()["pools"].clone();
    // Without the config nobody knows the token.
    for arguments in [&["weight", &one, "3"][..], &["reload"], &["close", "0-1"], &["drain", "--process"]] {
        let exit = ask(&tidegate, arguments);
        assert_eq!((exit.code, exit.stdout.as_str()), (Some(77), ""), "{arguments:?}: {exit:?}");
        assert!(exit.stderr.contains("token"), "{}", exit.stderr);
    }
    let wrong = daemon::file(tidegate.dir(), "wrong", "another-token-than-that-one");
    let exit = ask(&tidegate, &["reload", "--token-file", wrong.to_str().unwrap()]);
    assert_eq!(exit.code, Some(77), "{exit:?}");
    let exit = ask(&tidegate, &["reload", "--token-file", "/nonexistent/token"]);
    assert_eq!(exit.code, Some(66), "{exit:?}");
    assert_eq!(tidegate.status()["pools"], before);
}

/// The file holds the new token before the process has read it: whoever may by being who he is gets through.
#[test]
fn a_token_is_exchanged_from_the_shell() {
    let backend = Backend::echo();
    let config = Config::over([&backend.addr]).to_string();
    let listen = "listen = [\"127.0.0.1:0\", \"unix:$DIR/admin.sock\"]";
    let tidegate = Tidegate::start(config.replace("listen = \"127.0.0.1:0\"", listen));
    let path = tidegate.dir().join("token");
    let socket = format!("unix:{}/admin.sock", tidegate.dir().display());
    let config = tidegate.dir().join("lb.toml");
    let over_unix =
        |line: &[&str]| daemon::run(&[line, &["-c", config.to_str().unwrap(), "--admin", &socket]].concat());
    fs::write(&path, "canary-second-0123456789abcdef").unwrap();
    assert_eq!(change(&tidegate, &["log", "info"]).code, Some(77), "over TCP it must be the one of before");
    let exit = over_unix(&["reload"]);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""));
    assert_eq!(exit.stdout, "generation 1 runs on, and the token or the users who may are others\n");
    tidegate.logged(&["changed: the admin endpoint's token", "by=\"uid "]);
    assert_eq!(change(&tidegate, &["log", "info"]).code, Some(0));
    assert!(over_unix(&["reload"]).stdout.starts_with("nothing has changed"));
    // A file that was named is the one that counts.
    let wrong = daemon::file(tidegate.dir(), "wrong", "wrong-wrong-wrong-wrong");
    assert_eq!(over_unix(&["reload", "--token-file", wrong.to_str().unwrap()]).code, Some(77));
}

/// What is no token is told before anybody is asked, and nothing that never ends is read.
#[test]
fn a_file_without_a_token_is_told_of_and_holds_nobody_up() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let file = |name: &str, text: &str| daemon::file(tidegate.dir(), name, text);
    let two_lines = file("two", "canary-0123456789\ncanary-0123456789");
    for (path, words) in [
        (two_lines.as_path(), "it holds what no header may"),
        (&file("none", "\n"), "it is empty"),
        (Path::new("/dev/zero"), "it has more than 4096 bytes"),
        (Path::new("/nonexistent"), "No such file"),
    ] {
        let exit = ask(&tidegate, &["log", "info", "--token-file", path.to_str().unwrap()]);
        assert_eq!((exit.code, exit.stdout.as_str()), (Some(66), ""), "{path:?}");
        assert!(exit.stderr.contains(words) && !exit.stderr.contains("canary"), "{}", exit.stderr);
    }
    // One that only the config names is left out: nobody writes into this pipe.
    let pipe = tidegate.dir().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let config = file("pipe.toml", &format!("[admin]\ntoken_file = {pipe:?}\n"));
    assert_eq!(ask(&tidegate, &["status", "-c", config.to_str().unwrap()]).code, Some(0));
}

#[test]
fn a_config_that_is_refused_is_told_as_in_the_log_and_the_one_before_serves_on() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let path = tidegate.dir().join("lb.toml");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("pool = \"web\"", "pool = \"elsewhere\"")).unwrap();
    let exit = change(&tidegate, &["reload"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(65), ""), "{exit:?}");
    assert!(exit.stderr.contains("elsewhere"), "{}", exit.stderr);
    for line in exit.stderr.lines() {
        tidegate.logged(&["reload", "refused", line.get(..40).unwrap_or(line)]);
    }
    let json = change(&tidegate, &["reload", "--json"]);
    let answer: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["error"].as_str().map(str::trim_end), Some(exit.stderr.trim_end()));
    fs::write(&path, good).unwrap();
    assert!(changed(&tidegate, &["reload"]).contains("generation 1"));
    drop(tidegate.echoed());
}

/// What was read for a backend that reads nothing is kept for it for a while: until then the session is there, and to
/// close it again changes nothing.
#[test]
fn a_session_that_is_closing_is_told_as_such() {
    let backend = Listening::new();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let mut client = tidegate.connect();
    let stalled = backend.accept();
    client.stuff(0, 64 << 20, Duration::from_millis(300));
    let only = || tidegate.get("/connections").json()["connections"][0].clone();
    let id = only()["id"].as_str().unwrap().to_owned();
    assert_eq!(changed(&tidegate, &["close", &id]), format!("connection {id} is closed\n"));
    let row = only();
    assert_eq!((&row["id"], &row["phase"]), (&id.as_str().into(), &"closing".into()), "{row}");
    let again: Value = serde_json::from_str(&changed(&tidegate, &["close", &id, "--json"])).unwrap();
    assert_eq!((&again["ok"], &again["changed"]), (&true.into(), &false.into()), "{again}");
    tidegate.logged(&["command=\"close\"", "changed"]);
    assert_eq!(tidegate.count_logged(&["command=\"close\""]), 1);
    drop((client, stalled));
}

#[test]
fn the_process_can_be_drained_from_the_shell() {
    let backend = Backend::echo();
    let mut tidegate = Tidegate::start(Config::over([&backend.addr]));
    let said = changed(&tidegate, &["drain", "--process"]);
    assert!(said.starts_with("draining: "), "{said}");
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn whether_traffic_may_come_is_an_exit_code_with_its_reasons() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    assert_eq!(told(&tidegate, &["ready"]), "ready\n");
    changed(&tidegate, &["drain", &format!("web/{}", backend.addr)]);
    changed(&tidegate, &["drain", "web"]);
    let exit = ask(&tidegate, &["ready"]);
    let reasons = "pool web has no available backend\nlistener web is draining\n";
    assert_eq!((exit.code, exit.stdout.as_str(), exit.stderr.as_str()), (Some(1), "", reasons));
}

#[test]
fn a_listener_is_drained_and_enabled_again() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let mut session = tidegate.echoed();
    changed(&tidegate, &["drain", "web"]);
    eventually("nobody listens", || refuses(&tidegate.addr()));
    assert_eq!(tidegate.status()["listeners"][0]["state"], "draining");
    session.speak();
    changed(&tidegate, &["enable", "web"]);
    tidegate.echoed();
    assert_eq!(tidegate.status()["listeners"][0]["state"], "up");
    assert!(changed(&tidegate, &["enable", "web"]).starts_with("nothing has changed"));
    let exit = change(&tidegate, &["drain", "nobody"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(1), ""), "{exit:?}");
    assert!(exit.stderr.contains("nobody"), "{}", exit.stderr);
}

#[test]
fn a_rollback_takes_the_config_before_or_the_one_that_is_named() {
    let names = ["first", "second", "third"];
    let backends = names.map(Backend::named);
    let tidegate = Tidegate::start(Config::over([&backends[0].addr]));
    for backend in &backends[1..] {
        reload::write(&tidegate, Config::over([&backend.addr]));
        changed(&tidegate, &["reload"]);
    }
    assert_eq!(tidegate.connect().line(), "third");
    for (arguments, words, name) in [
        (&["rollback"][..], "generation 4 runs, which is generation 2 again", "second"),
        (&["rollback", "1"], "generation 5 runs, which is generation 1 again", "first"),
    ] {
        let exit = change(&tidegate, arguments);
        assert_eq!(exit.code, Some(0), "{exit:?}");
        assert!(exit.stdout.contains(words), "{}", exit.stdout);
        assert!(exit.stderr.contains("lb.toml has another config, which the next reload takes"), "{}", exit.stderr);
        assert_eq!(tidegate.connect().line(), name);
    }
    let exit = change(&tidegate, &["rollback", "99"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(1), ""), "{exit:?}");
    assert!(exit.stderr.contains("generation 99 isn't kept"), "{}", exit.stderr);
    assert_eq!(tidegate.connect().line(), "first");
}

#[test]
fn an_upgrade_from_the_shell_names_who_serves_and_a_bad_successor_is_told_of() {
    let backend = Backend::echo();
    let mut tidegate = Launch::new(Config::over([&backend.addr])).linked().start();
    let address = tidegate.addr();
    let first = tidegate.pid;
    let mut session = tidegate.echoed();
    let said = changed(&tidegate, &["upgrade"]);
    let mut predecessor = tidegate.follow();
    assert_ne!(tidegate.pid, first);
    assert!(said.contains(&format!("process {} serves", tidegate.pid)), "{said}");
    assert_eq!(tidegate.addr(), address);
    session.speak();
    drop(session);
    assert_eq!(predecessor.end().unwrap().code(), Some(0));
    tidegate.echoed();

    let gone = tidegate.dir().join("nowhere");
    tidegate.replace_binary(&gone);
    let exit = change(&tidegate, &["upgrade"]);
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(65), ""), "{exit:?}");
    assert!(exit.stderr.contains("can't start"), "{}", exit.stderr);
    tidegate.echoed();
}

/// Whoever names a file means that one.
#[test]
fn a_file_that_is_not_the_process_s_own_is_not_reloaded_in_its_name() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let (admin, own) = (tidegate.admin().to_string(), tidegate.dir().join("lb.toml"));
    let other = daemon::file(tidegate.dir(), "an other.toml", format!("[admin]\nlisten = \"{admin}\"\n"));
    let token = tidegate.dir().join("token");
    let reload = |command: &str, file: &std::path::Path| {
        daemon::run(&[
            command,
            "-c",
            file.to_str().unwrap(),
            "--admin",
            &admin,
            "--token-file",
            token.to_str().unwrap(),
        ])
    };
    for command in ["reload", "upgrade"] {
        for file in [&other, &tidegate.dir().join("nowhere.toml")] {
            let exit = reload(command, file);
            assert_eq!((exit.code, exit.stdout.as_str()), (Some(2), ""), "{exit:?}");
            let said = format!("nothing is done: the process reads {}, not {}\n", own.display(), file.display());
            assert!(exit.stderr.starts_with(&said), "{}", exit.stderr);
        }
        let stderr = reload(command, &other).stderr;
        let pasted = format!(
            "ask again with -c {}; what it would change: tidegate plan -c '{}'; ",
            own.display(),
            other.display()
        );
        assert!(stderr.contains(&pasted), "{stderr}");
    }
    let link = tidegate.dir().join("link.toml");
    std::os::unix::fs::symlink("lb.toml", &link).unwrap();
    for file in [&own, &link] {
        let exit = reload("reload", file);
        assert_eq!(exit.stdout, "nothing has changed: generation 1 runs on\n", "{exit:?}");
    }
    assert_eq!(tidegate.count_logged(&["command=\"upgrade\""]), 0);
}
