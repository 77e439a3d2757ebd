//! What another config would change, told before it is taken; and which configs a process has had.

use super::control::Control;
use super::reload::{generation, reload, write};
use crate::kit::daemon::{Exit, file, run};
use crate::kit::{Backend, Config, Launch, Tidegate, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;

/// Of two files, without a process.
fn offline(from: &Path, to: &Path, more: &[&str]) -> Exit {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    run(&[&["plan", "--config", to, "--against", from], more].concat())
}

/// The text of a config that no process has.
fn fixed(config: Config) -> String {
    config.bind("127.0.0.1:21500").to_string().replace("$DIR", "/etc/tidegate")
}

#[test]
fn f51_a_plan_of_two_files_says_what_differs_and_how_severe_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| file(dir.path(), name, text);
    let old = write("old.toml", &fixed(Config::over(["10.0.0.1:80", "10.0.0.2:80"])));
    let same =
        file(dir.path(), "same.toml", format!("# the same\n{}", fixed(Config::over(["10.0.0.1:80", "10.0.0.2:80"]))));
    let exit = offline(&old, &same, &[]);
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(0), "nothing would change\n"), "{exit:?}");

    let new = write("new.toml", &fixed(Config::over(["10.0.0.2:80", "10.0.0.3:80"]).pool("balance = \"random\"")));
    let exit = offline(&old, &new, &[]);
    let shown = "\
~ pool web                    balance round_robin -> random
+ backend 10.0.0.3:80 of web
- backend 10.0.0.1:80 of web
1 added, 1 removed, 1 changed
";
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(2), shown), "{exit:?}");

    let moved =
        fixed(Config::over(["10.0.0.1:80", "10.0.0.2:80"]).runtime("relay = \"copy\"")).replace("21500", "21501");
    let moved = write("moved.toml", &moved);
    let exit = offline(&old, &moved, &[]);
    let shown = "\
! runtime.relay  auto -> copy; it needs a new process: tidegate upgrade
~ listener web   bind [127.0.0.1:21500] -> [127.0.0.1:21501]; nobody can connect to 127.0.0.1:21500 any more
1 changed, 1 needs a new process: disruptive
";
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(3), shown), "{exit:?}");

    let exit = offline(&old, &moved, &["--json"]);
    let plan: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!((exit.code, &plan["severity"]), (Some(3), &json!("disruptive")));
    assert_eq!(plan["restarted"][0]["keys"], json!([{ "key": "runtime.relay", "from": "auto", "to": "copy" }]));
    assert_eq!((&plan["changed"][0]["kind"], &plan["changed"][0]["name"]), (&json!("listener"), &json!("web")));
}

/// A script that asks whether something would change must not take its own mistake for a yes.
#[test]
fn a_wrong_command_line_is_no_verdict() {
    for (arguments, code) in [
        (&["plan", "--againts", "old.toml"][..], 64),
        (&["plan", "--against"], 64),
        (&["plan", "--help"], 0),
        (&["reload", "--typo"], 2),
        (&["plam"], 2),
    ] {
        let exit = run(arguments);
        assert_eq!(exit.code, Some(code), "{exit:?}");
        assert_eq!(exit.stdout.is_empty(), code != 0, "{exit:?}");
    }
}

#[test]
fn f48_check_plan_and_reload_say_the_same_of_a_bad_file() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let old = file(tidegate.dir(), "old.toml", fixed(Config::over([&backend])));
    write(&tidegate, Config::over([&backend]).pool("balanse = \"random\"").runtime("workerz = 2"));
    let path = tidegate.dir().join("lb.toml");
    let (checked, planned) = (run(&["check", "--config", path.to_str().unwrap()]), offline(&old, &path, &[]));
    assert_eq!((checked.code, planned.code), (Some(78), Some(78)), "{planned:?}");
    assert_eq!(checked.stderr, planned.stderr, "to the letter");
    assert_eq!(planned.stdout, "");

    tidegate.signal(Signal::HUP);
    eventually("the refusal is told", || !tidegate.status()["config"]["last_refused"].is_null());
    let refused = tidegate.status()["config"]["last_refused"].clone();
    let text = refused["text"].as_str().unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        assert!(checked.stderr.lines().any(|told| told == line), "{line:?} is not told by check:\n{}", checked.stderr);
        tidegate.logged(&["refused", line]);
    }
    assert_eq!(refused["by"], "SIGHUP");
}

#[test]
fn status_and_metrics_tell_which_configs_there_were_and_what_needs_a_new_process() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let tidegate = Tidegate::start(Config::over([&one]));
    let status = tidegate.status();
    let (first, path) = (status["config"].clone(), tidegate.dir().join("lb.toml"));
    assert_eq!((&first["by"], &first["file"]), (&json!("start"), &json!(path.to_str().unwrap())));
    assert_eq!(first["hash"].as_str().unwrap().len(), 16);
    assert_eq!(status["needs_upgrade"], json!([]));

    reload(&tidegate, Config::over([&one, &two]).runtime("relay = \"copy\""));
    tidegate.logged(&["runtime.relay", "tidegate upgrade"]);
    let status = tidegate.status();
    let config = &status["config"];
    assert_eq!(status["needs_upgrade"], json!(["runtime.relay"]));
    assert_eq!((&config["by"], &config["last_refused"]), (&json!("SIGHUP"), &Value::Null));
    let (newest, oldest) = (&config["generations"][0], &config["generations"][1]);
    assert_eq!((&newest["generation"], &newest["hash"]), (&json!(2), &config["hash"]));
    assert_eq!((&oldest["generation"], &oldest["hash"]), (&json!(1), &first["hash"]));
    assert_ne!(config["hash"], first["hash"]);

    let metrics = tidegate.metrics();
    let hash = config["hash"].as_str().unwrap();
    assert_eq!(metrics.one("tidegate_config_info", &[("hash", hash)]) as u64, 1);
    assert_eq!(metrics.values("tidegate_config_info", "hash"), [hash], "of the one in force alone");
    assert_eq!(metrics.one("tidegate_config_last_reload_success", &[]) as u64, 1);
    let taken = metrics.one("tidegate_config_last_reload_timestamp_seconds", &[]);

    write(&tidegate, "nonsense");
    tidegate.signal(Signal::HUP);
    eventually("the refusal is told", || !tidegate.status()["config"]["last_refused"].is_null());
    reload(&tidegate, Config::over([&one]));
    assert_eq!(tidegate.status()["needs_upgrade"], json!([]), "it is as it was at the start");
    tidegate.signal(Signal::HUP);
    let reloads = |result: &str| tidegate.metrics().one("tidegate_config_reloads_total", &[("result", result)]) as u64;
    eventually("the last one is counted", || reloads("unchanged") == 1);
    assert_eq!((reloads("changed"), reloads("refused"), generation(&tidegate)), (2, 1, 3));
    assert!(tidegate.metrics().one("tidegate_config_last_reload_timestamp_seconds", &[]) >= taken);
}

/// The plan of a config, as the running process answers it.
fn planned(tidegate: &Tidegate, config: &str) -> Value {
    let answer = tidegate.post("/plan", &json!({ "config": config }).to_string());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["details"].clone()
}

/// What the process would read from its file.
fn text(tidegate: &Tidegate, config: &Config) -> String {
    config.to_string().replace("$DIR", tidegate.dir().to_str().unwrap())
}

#[test]
fn f51_the_running_process_says_how_many_sessions_a_plan_touches_and_a_reload_does_what_it_says() {
    let (stays, goes, comes) = (Backend::echo(), Backend::echo(), Backend::echo());
    let tidegate = Tidegate::start(Config::over([&stays, &goes]));
    let mut clients = [tidegate.echoed(), tidegate.echoed(), tidegate.echoed(), tidegate.echoed()];
    let to = Config::over([&stays, &comes]).pool("balance = \"random\"");
    let path = file(tidegate.dir(), "new.toml", text(&tidegate, &to));
    let exit = super::cli::ask(&tidegate, &["plan", "-c", path.to_str().unwrap()]);
    let width = format!("backend {goes} of web").len().max(format!("backend {comes} of web").len());
    let row = |sign: char, subject: String, rest: &str| {
        format!("{sign} {subject:width$}  {rest}").trim_end().to_owned() + "\n"
    };
    let shown = row('~', "pool web".to_owned(), "balance round_robin -> random (4 sessions keep the old one)")
        + &row('+', format!("backend {comes} of web"), "")
        + &row('-', format!("backend {goes} of web"), "(2 sessions go on to their end)")
        + "1 added, 1 removed, 1 changed\n";
    assert_eq!((exit.code, exit.stdout.as_str()), (Some(2), shown.as_str()), "{exit:?}");
    assert_eq!(generation(&tidegate), 1, "to ask changes nothing");

    reload(&tidegate, &to);
    let details = planned(&tidegate, &text(&tidegate, &to));
    assert_eq!((&details["severity"], &details["changed"]), (&json!("nothing"), &json!([])));
    assert_eq!(details["from_hash"], details["to_hash"]);
    clients.iter_mut().for_each(super::kit::conn::Conn::speak);
}

/// What the plan says becomes of that which operators have changed, and after the reload the table does just so.
#[test]
fn a_plan_says_what_becomes_of_what_was_changed_at_run_time() {
    let (a, b, c, d) = (Backend::named("a"), Backend::named("b"), Backend::named("c"), Backend::named("d"));
    let named =
        |name: &str, backend: &Backend, more: &str| format!("{{ name = \"{name}\", address = \"{backend}\"{more} }}");
    let config = |members: &[String]| {
        Config::with_pool(&format!("backends = [{}]", members.join(", "))).pool("slow_start = \"0s\"")
    };
    let tidegate = Tidegate::start(config(&[named("a", &a, ""), named("b", &b, "")]));
    tidegate.set("a", "{\"weight\": 5}");
    tidegate.set("b", "{\"state\": \"draining\"}");
    tidegate.change("/pools/web/backends", &format!("{{\"address\": \"{c}\", \"name\": \"c\", \"weight\": 4}}"));
    tidegate.change("/pools/web/backends", &format!("{{\"address\": \"{d}\", \"name\": \"x\"}}"));
    tidegate.change("/log", "{\"level\": \"debug\"}");
    let becomes = |to: &Config| {
        let plan = planned(&tidegate, &text(&tidegate, to));
        let all = plan["adjustments"].as_array().unwrap().clone();
        let short = |told: &Value| format!("{} {}", told["name"].as_str().unwrap(), told["becomes"].as_str().unwrap());
        all.iter().map(short).collect::<Vec<_>>()
    };
    let same = config(&[named("a", &a, ""), named("b", &b, "")]);
    assert_eq!(becomes(&same), [""; 0]);

    let other = Backend::named("the new x");
    let to = config(&[named("a", &a, ", weight = 3"), named("now-c", &c, ", weight = 2"), named("x", &other, "")])
        .log("level = \"warn\"");
    assert_eq!(becomes(&to), ["log.level stays", "c taken_over", "x left_out", "a stays", "b rests"]);
    let path = file(tidegate.dir(), "new.toml", text(&tidegate, &to));
    let exit = super::cli::ask(&tidegate, &["plan", "-c", path.to_str().unwrap()]);
    assert_eq!(exit.code, Some(2), "{exit:?}");
    for line in [
        "= log.level ",
        "debug was set at run time and stays, whatever the config says\n",
        "was added at run time with weight 4: the config has it, as now-c with weight 2\n",
        "was added at run time, and is left out: there is another backend called \"x\" in the pool\n",
        "weight 5 was set at run time and stays, whatever the config says\n",
        "draining is kept for when the pool has it again\n",
        "; 5 changes made at run time are concerned\n",
    ] {
        assert!(exit.stdout.contains(line), "{line} in\n{}", exit.stdout);
    }
    let json = super::cli::ask(&tidegate, &["plan", "--json", "-c", path.to_str().unwrap()]);
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["adjustments"], planned(&tidegate, &text(&tidegate, &to))["adjustments"]);

    reload(&tidegate, &to);
    let answers = tidegate.answers(16);
    let expected = [("a", 10), ("c", 4), ("the new x", 2)];
    assert_eq!(answers.iter().map(|(name, count)| (name.as_str(), *count)).collect::<Vec<_>>(), expected);
    tidegate.logged(&["WARN", "which was added at run time, is left out"]);
    assert_eq!(becomes(&to), [""; 0], "it is so now");
    assert_eq!(becomes(&same), ["log.level stays", "x applies", "a stays", "b applies"]);
    reload(&tidegate, &same);
    assert_eq!(tidegate.backend_status("b")["state"], "draining");
    assert_eq!(tidegate.answers(6).keys().collect::<Vec<_>>(), ["a", "d"]);
}

#[test]
fn f48_a_plan_over_http_refuses_a_bad_config_with_the_text_of_a_reload() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let bad = text(&tidegate, &Config::over([&backend]).pool("balanse = \"random\"").runtime("workerz = 2"));
    let planned = tidegate.post("/plan", &json!({ "config": bad }).to_string());
    write(&tidegate, &bad);
    let (read, reloaded) = (tidegate.post("/plan", ""), tidegate.post("/reload", ""));
    assert_eq!([planned.status, read.status, reloaded.status], [422, 422, 422], "{planned:?}");
    assert_eq!(planned.json()["error"], reloaded.json()["error"]);
    assert_eq!(read.json()["error"], reloaded.json()["error"]);
    let path = tidegate.dir().join("lb.toml");
    let exit = super::cli::ask(&tidegate, &["plan", "-c", path.to_str().unwrap()]);
    let checked = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!((exit.code, exit.stderr), (Some(78), checked.stderr), "the shell says what check says");
    let refused = tidegate.metrics().one("tidegate_config_reloads_total", &[("result", "refused")]);
    assert_eq!(refused as u64, 1, "a plan is no reload");
}

#[test]
fn rollback_goes_back_and_says_that_the_file_has_not() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let tidegate = Tidegate::start(Config::over([&one]));
    let alone = tidegate.post("/rollback", "");
    assert_eq!((alone.status, &alone.json()["error"]), (409, &json!("there is no generation before the one in force")));
    reload(&tidegate, Config::over([&two]));
    assert_eq!(tidegate.connect().rest().text(), "two\n");

    let file = std::fs::read_to_string(tidegate.dir().join("lb.toml")).unwrap();
    let answer = tidegate.post("/rollback", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(
        (&answer["changed"], &answer["summary"]),
        (&json!(true), &json!("generation 3 runs, which is generation 1 again"))
    );
    let warning = answer["details"]["warnings"][0].as_str().unwrap().to_owned();
    assert!(warning.contains("lb.toml has another config, which the next reload takes"), "{warning}");
    tidegate.logged(&[&warning]);
    tidegate.logged(&["changed", "rollback", "from=2", "to=3", "rollback_to=1"]);
    assert_eq!(tidegate.connect().rest().text(), "one\n");
    assert_eq!(std::fs::read_to_string(tidegate.dir().join("lb.toml")).unwrap(), file, "the file is left alone");
    let config = tidegate.status()["config"].clone();
    assert_eq!(config["hash"], config["generations"][2]["hash"]);
    assert_eq!(config["generations"][0]["rollback_to"], 1);

    // A second one undoes it.
    let path = tidegate.dir().join("lb.toml");
    let exit = super::cli::ask(&tidegate, &["rollback", "-c", path.to_str().unwrap()]);
    assert_eq!(
        (exit.code, exit.stdout.as_str()),
        (Some(0), "generation 4 runs, which is generation 2 again\n"),
        "{exit:?}"
    );
    assert_eq!((tidegate.connect().rest().text(), exit.stderr.as_str()), ("two\n".to_owned(), ""));
    let none = tidegate.post("/rollback", "{\"generation\": 9}");
    assert_eq!(none.status, 404, "{none:?}");
    assert!(none.json()["error"].as_str().unwrap().contains("name one of 1, 2, 3, 4"), "{none:?}");
    let same = tidegate.post("/rollback", "{\"generation\": 2}").json();
    assert_eq!(same["changed"], false, "{same}");
}

/// How many workers there are is decided by the start; all else of a reload is in force.
#[test]
fn a_key_that_is_read_at_the_start_is_told_to_need_a_new_process_which_has_it() {
    let (one, two) = (Backend::echo(), Backend::named("two"));
    let mut tidegate = Launch::new(Config::over([&one])).linked().start();
    write(&tidegate, Config::over([&two]).only_runtime("workers = 3"));
    let plan = tidegate.post("/plan", "").json();
    let keys = json!([{ "key": "runtime.workers", "from": "2", "to": "3" }]);
    assert_eq!(plan["details"]["restarted"][0]["keys"], keys, "{plan}");

    let answer = tidegate.post("/reload", "").json();
    assert_eq!(answer["details"]["needs_upgrade"], json!(["runtime.workers"]), "{answer}");
    tidegate.logged(&["WARN", "runtime.workers is as the process was started with it", "tidegate upgrade"]);
    assert_eq!(tidegate.status()["needs_upgrade"], json!(["runtime.workers"]));
    assert_eq!(tidegate.connect().line(), "two");
    assert_eq!(tidegate.status()["workers"], 2, "nothing has been started yet");

    assert_eq!(tidegate.post("/upgrade", "").status, 200);
    tidegate.follow_alone();
    assert_eq!(tidegate.status()["workers"], 3);
    assert_eq!(tidegate.status()["needs_upgrade"], json!([]));
}
