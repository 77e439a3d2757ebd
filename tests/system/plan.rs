//! What another config would change, told before it is taken; and which configs a process has had.

use super::reload::{generation, reload, write};
use crate::kit::daemon::{Exit, file, run};
use crate::kit::{Backend, Config, Tidegate, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::Path;

/// Of two files, without a process.
fn offline(from: &Path, to: &Path, more: &[&str]) -> Exit {
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    run(&[&["plan", "--config", to, "--against", from], more].concat())
}

fn fixed(config: Config) -> Config {
    config.bind("127.0.0.1:21500")
}

#[test]
fn f51_a_plan_of_two_files_says_what_differs_and_how_severe_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, config: &Config| file(dir.path(), name, config.to_string());
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

    let moved = Config::over(["10.0.0.1:80", "10.0.0.2:80"]).bind("127.0.0.1:21501").runtime("relay = \"copy\"");
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

#[test]
fn f48_check_plan_and_reload_say_the_same_of_a_bad_file() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let old = file(tidegate.dir(), "old.toml", fixed(Config::over([&backend])).to_string());
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
