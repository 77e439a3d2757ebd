//! The state file on the real binary: what was changed is there after a restart; and whatever is in its place, or in
//! its way, keeps nobody from starting, and no change from being made.

use crate::control::Control;
use crate::kit::daemon::run;
use crate::kit::{Backend, Config, Launch, Tidegate, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;

/// Two backends, and a place for the file that outlives each process.
struct World {
    a: Backend,
    b: Backend,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("tidegate-state-").tempdir().unwrap();
        Self { a: Backend::named("a"), b: Backend::named("b"), dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("state.json")
    }

    fn config(&self) -> Config {
        let backends = format!(
            "backends = [{{ name = \"a\", address = \"{}\" }}, {{ name = \"b\", address = \"{}\" }}]\n",
            self.a, self.b
        );
        Config::with_pool(&backends)
            .pool("slow_start = \"0s\"")
            .runtime(&format!("state_file = \"{}\"", self.path().display()))
    }

    fn start(&self) -> Tidegate {
        Tidegate::start(self.config())
    }

    /// A process makes these changes and stops; what it leaves.
    fn left(&self) -> String {
        let tidegate = self.start();
        tidegate.set("a", "{\"state\": \"draining\", \"weight\": 4}");
        stop(tidegate);
        fs::read_to_string(self.path()).unwrap()
    }

    fn bad(&self) -> PathBuf {
        self.dir.path().join("state.json.bad")
    }
}

fn stop(mut tidegate: Tidegate) {
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
}

fn errors(tidegate: &Tidegate) -> u64 {
    tidegate.metrics().one("tidegate_state_file_errors_total", &[]) as u64
}

#[test]
fn what_was_changed_is_there_after_a_restart() {
    let (world, more) = (World::new(), Backend::named("c"));
    let first = world.start();
    let answer = first.post("/pools/web/backends/a", "{\"state\": \"draining\"}").json();
    assert_eq!(answer["details"]["survives_restart"], json!(true), "{answer}");
    first.set("b", "{\"weight\": 3}");
    first.change("/pools/web/backends", &format!("{{\"address\": \"{more}\", \"name\": \"c\"}}"));
    first.change("/log", "{\"level\": \"debug\"}");
    let adjustments = first.status()["adjustments"].clone();
    eventually("it is on the disk before anybody stops", || {
        fs::read_to_string(world.path()).is_ok_and(|text| text.contains("\"debug\""))
    });
    // Not even told to go.
    first.signal(Signal::KILL);
    let mut first = first;
    first.wait();
    drop(first);
    assert_eq!(fs::metadata(world.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let second = world.start();
    assert_eq!(second.status()["adjustments"], adjustments);
    assert_eq!(second.backend_status("a")["state"], json!("draining"));
    let answers = second.answers(8);
    assert_eq!((answers.get("b"), answers.get("c"), answers.get("a")), (Some(&6), Some(&2), None));
    second.set("a", "{\"state\": \"enabled\"}");
    second.set("b", "{\"weight\": 1}");
    second.change("/pools/web/backends/c/remove", "");
    second.change("/log", "{\"level\": \"info\"}");
    stop(second);
    assert_eq!(world.start().status()["adjustments"], json!({}), "what was taken back stays taken back");
}

#[test]
fn without_a_state_file_a_restart_forgets_and_the_answer_says_so() {
    let world = World::new();
    let config = world.config().to_string().replace("state_file", "#");
    let tidegate = Tidegate::start(&config);
    let answer = tidegate.post("/pools/web/backends/a", "{\"weight\": 2}").json();
    assert_eq!(answer["details"]["survives_restart"], json!(false), "{answer}");
    // A service manager's directory is one.
    let given = Launch::new(&config).env("STATE_DIRECTORY", world.dir.path().to_str().unwrap()).start();
    given.set("a", "{\"weight\": 2}");
    eventually("it is kept there", || world.path().exists());
}

#[test]
fn f56_a_file_that_is_not_whole_is_set_aside_and_the_process_serves() {
    let world = World::new();
    let good = world.left();
    let mut flipped = good.clone().into_bytes();
    let at = good.find("\"draining\"").unwrap() + 3;
    flipped[at] ^= 1;
    let version = |number: u64| {
        let mut whole: Value = serde_json::from_str(&good).unwrap();
        whole["version"] = json!(number);
        whole.to_string()
    };
    for (what, bytes, said) in [
        ("truncated", good.as_bytes()[..good.len() / 2].to_vec(), "it is damaged"),
        ("empty", Vec::new(), "it is damaged"),
        ("flipped", flipped, "it is damaged (the checksum is another)"),
        ("older", version(0).into(), "it has version 0"),
        ("newer", version(2).into(), "of a newer tidegate"),
        ("binary", vec![0xff; 5_000], "it is damaged"),
    ] {
        fs::write(world.path(), &bytes).unwrap();
        let tidegate = world.start();
        let line = tidegate.logged(&["WARN", "state.json is not used", said]);
        assert!(line.contains("it is set aside as") && line.contains("state.json.bad"), "{what}: {line}");
        assert_eq!(fs::read(world.bad()).unwrap(), bytes, "{what}: as it was");
        assert_eq!((tidegate.status()["adjustments"].clone(), errors(&tidegate)), (json!({}), 1), "{what}");
        assert_eq!(tidegate.answers(4).len(), 2, "{what}: both backends serve");
        tidegate.set("b", "{\"weight\": 2}");
        stop(tidegate);
        assert!(fs::read_to_string(world.path()).unwrap().contains("\"weight\": 2"), "{what}: kept anew");
    }
}

#[test]
fn f56_a_directory_or_a_fifo_in_its_place_keeps_nobody_from_starting() {
    let world = World::new();
    fs::create_dir(world.path()).unwrap();
    let tidegate = world.start();
    tidegate.logged(&["WARN", "runtime.state_file", "is a directory; name a file in it"]);
    tidegate.logged(&["WARN", "is not used", "it stays where it is"]);
    assert!(tidegate.set("a", "{\"state\": \"draining\"}"));
    assert_eq!(tidegate.answers(3).keys().collect::<Vec<_>>(), ["b"], "the change is made");
    tidegate.logged(&["WARN", "can't be written", "it is tried again"]);
    assert!(errors(&tidegate) >= 2);
    // As soon as it is out of the way.
    fs::remove_dir(world.path()).unwrap();
    eventually("it is written", || world.path().is_file());
    tidegate.logged(&["the state file is written again"]);
    stop(tidegate);
    fs::remove_file(world.path()).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, world.path(), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let tidegate = world.start();
    tidegate.logged(&["WARN", "it is no regular file", "it is set aside"]);
    assert!(fs::symlink_metadata(world.bad()).unwrap().file_type().is_fifo());
}

/// As on a full disk: no byte can be written to any file.
#[test]
fn f56_on_a_full_disk_changes_are_made_and_the_old_file_stays_whole() {
    let world = World::new();
    let before = world.left();
    let tidegate = Launch::new(world.config()).wrapped(["prlimit", "--fsize=0:0"]).start();
    assert_eq!(tidegate.backend_status("a")["state"], json!("draining"));
    assert!(tidegate.set("a", "{\"state\": \"enabled\"}"));
    assert!(tidegate.set("b", "{\"state\": \"draining\"}"));
    assert_eq!(tidegate.answers(3).keys().collect::<Vec<_>>(), ["a"]);
    tidegate.logged(&["WARN", "can't be written", "a restart forgets it"]);
    eventually("it is tried again", || errors(&tidegate) >= 2);
    stop(tidegate);
    assert_eq!(fs::read_to_string(world.path()).unwrap(), before, "the old one is whole");
    let names: Vec<_> = fs::read_dir(world.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["state.json"], "nothing is left beside it");
}

#[test]
fn check_says_whether_the_directory_can_be_written() {
    let world = World::new();
    let file = world.dir.path().join("lb.toml");
    for (place, said) in [
        (world.path(), None),
        (world.dir.path().join("none/state.json"), Some("there is no directory")),
        (world.dir.path().to_owned(), Some("is a directory; name a file in it")),
    ] {
        let config = format!(
            "[runtime]\nstate_file = {place:?}\n[listeners.web]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n[pools.web]\n\
             backends = [\"127.0.0.1:1\"]\n"
        );
        fs::write(&file, config).unwrap();
        let exit = run(&["check", "--config", file.to_str().unwrap()]);
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        assert_eq!(exit.stderr.contains("runtime.state_file: "), said.is_some(), "{}", exit.stderr);
        assert!(exit.stderr.contains(said.unwrap_or_default()), "{}", exit.stderr);
    }
}
