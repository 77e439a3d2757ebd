//! What an operator changes while clients are served: backends that are drained, weighed, added and removed, a health
//! that is overruled, the level of the log; and that nobody else notices.

use crate::kit::http::Answer;
use crate::kit::{Backend, Config, Conn, End, Refusing, Tidegate, eventually, eventually_eq, throughout};
use crate::reload::{reload, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

/// Two backends that name themselves, called `a` and `b`.
struct World {
    a: Backend,
    b: Backend,
}

impl World {
    fn new() -> Self {
        Self { a: Backend::named("a"), b: Backend::named("b") }
    }

    fn config(&self) -> Config {
        let backends = format!(
            "backends = [{{ name = \"a\", address = \"{}\" }}, {{ name = \"b\", address = \"{}\" }}]\n",
            self.a, self.b
        );
        Config::with_pool(&backends).pool("slow_start = \"0s\"")
    }
}

pub trait Control {
    /// It is done; whether that changed anything.
    fn change(&self, path: &str, body: &str) -> bool;
    fn set(&self, backend: &str, body: &str) -> bool;
    /// It is not done, with this status; the text.
    fn refuses(&self, path: &str, body: &str, status: u16) -> String;
    fn answers(&self, count: usize) -> BTreeMap<String, usize>;
}

impl Control for Tidegate {
    fn change(&self, path: &str, body: &str) -> bool {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["ok"], json!(true), "{answer}");
        answer["changed"].as_bool().unwrap()
    }

    fn set(&self, backend: &str, body: &str) -> bool {
        self.change(&format!("/pools/web/backends/{backend}"), body)
    }

    fn refuses(&self, path: &str, body: &str, status: u16) -> String {
        let answer: Answer = self.post(path, body);
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        let answer = answer.json();
        assert_eq!(answer["ok"], json!(false));
        answer["error"].as_str().unwrap().to_owned()
    }

    /// How often each backend has answered so many clients.
    fn answers(&self, count: usize) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..count {
            *answers.entry(self.connect().rest().text().trim().to_owned()).or_default() += 1;
        }
        answers
    }
}

fn of(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn a_drained_backend_gets_no_new_client_keeps_those_it_has_and_comes_back() {
    let (echo, other) = (Backend::echo(), Backend::named("other"));
    let pool =
        format!("backends = [{{ name = \"a\", address = \"{echo}\" }}, {{ name = \"b\", address = \"{other}\" }}]\n");
    let tidegate = Tidegate::start(Config::with_pool(&pool).pool("slow_start = \"0s\""));
    let mut client = tidegate.echoed();
    for (state, changed) in [("draining", true), ("draining", false), ("disabled", true), ("disabled", false)] {
        assert_eq!(tidegate.set("a", &format!("{{\"state\": \"{state}\"}}")), changed, "{state}");
        let status = tidegate.backend_status("a");
        assert_eq!((&status["state"], &status["admin"]), (&json!(state), &json!(state)));
        assert_eq!(tidegate.answers(6), of(&[("other", 6)]));
        client.speak();
    }
    tidegate.logged(&[
        "changed",
        "command=\"backend\"",
        "token from 127.0.0.1",
        "from=\"enabled, weight 1\"",
        "to=\"draining, weight 1\"",
    ]);
    // The last one may go as well, and the answer says so.
    let answer = tidegate.post("/pools/web/backends/b", "{\"state\": \"draining\"}").json();
    assert!(answer["summary"].as_str().unwrap().ends_with("no backend of the pool gets new sessions now"), "{answer}");
    assert_eq!(tidegate.get("/readyz").status, 503);
    let refused = tidegate.connect();
    refused.expect_cut();
    client.speak();
    assert!(tidegate.set("a", "{\"state\": \"enabled\"}"));
    assert!(tidegate.set("b", "{\"state\": \"enabled\"}"));
    eventually("it is chosen again", || tidegate.get("/readyz").status == 200);
    tidegate.echoed();
    assert_eq!(tidegate.status()["adjustments"], json!({}));
}

#[test]
fn a_reload_tells_of_whom_it_leaves_out_of_those_that_were_added() {
    let (world, own, files) = (World::new(), Backend::named("c"), Backend::named("c"));
    let tidegate = Tidegate::start(world.config());
    assert!(tidegate.change("/pools/web/backends", &json!({"address": own.to_string(), "name": "c"}).to_string()));
    let more = world.config().to_string().replace("}]", &format!("}}, {{ name = \"c\", address = \"{files}\" }}]"));
    write(&tidegate, more);
    let answer = tidegate.post("/reload", "").json();
    let told = format!(
        "pools.web: the backend {own}, which was added at run time, is left out: there is another backend called \"c\" \
         in the pool"
    );
    assert_eq!(answer["details"]["warnings"], json!([told]), "{answer}");
    tidegate.logged(&["WARN", &told]);
    assert_eq!(tidegate.count_logged(&[&told]), 1);
    // The one that serves is the one that is removed, and its namesake doesn't take its place.
    assert!(tidegate.change("/pools/web/backends/c/remove", ""));
    assert_eq!(tidegate.answers(4), of(&[("a", 2), ("b", 2)]));
}

/// Removed while the file had it, added while it hadn't: whoever has it again is the file.
#[test]
fn a_backend_that_was_removed_and_added_is_the_files_once_that_has_it_again() {
    let (world, own) = (World::new(), Backend::named("c"));
    let with = |more: &str| world.config().to_string().replace("}]", &format!("}}, {{ address = \"{own}\"{more} }}]"));
    let tidegate = Tidegate::start(with(""));
    assert!(tidegate.change(&format!("/pools/web/backends/{own}/remove"), ""));
    reload(&tidegate, world.config());
    assert!(tidegate.change("/pools/web/backends", &json!({"address": own.to_string()}).to_string()));
    assert_eq!(tidegate.answers(3), of(&[("a", 1), ("b", 1), ("c", 1)]));
    write(&tidegate, with(", weight = 2"));
    let plan = tidegate.post("/plan", "").json();
    assert_eq!(plan["details"]["adjustments"][0]["becomes"], "taken_over", "{plan}");
    reload(&tidegate, with(", weight = 2"));
    assert_eq!(tidegate.answers(4), of(&[("a", 1), ("b", 1), ("c", 2)]));
    assert_eq!(tidegate.status()["adjustments"], json!({}));
}

#[test]
fn sessions_of_a_drained_backend_end_by_the_deadline_and_say_why() {
    let (echo, other) = (Backend::echo(), Backend::echo());
    let pool =
        format!("backends = [{{ name = \"a\", address = \"{echo}\" }}, {{ name = \"b\", address = \"{other}\" }}]\n");
    let tidegate = Tidegate::start(Config::with_pool(&pool).logged());
    let mut left: Vec<Conn> = (0..4).map(|_| tidegate.echoed()).collect();
    assert!(tidegate.set("a", "{\"state\": \"draining\", \"deadline\": \"300ms\"}"));
    eventually("half of them are ended", || {
        left.retain(|client| !client.is_cut());
        left.len() == 2
    });
    left.iter_mut().for_each(Conn::speak);
    drop(left);
    let records = tidegate.records(4);
    let reasons = |name: &str| {
        let own = records.iter().filter(|record| record["backend"] == name);
        own.map(|record| record["reason"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(reasons("a"), ["drained"; 2]);
    assert!(!reasons("b").contains(&"drained"), "{:?}", reasons("b"));
}

#[test]
fn a_weight_is_in_force_at_once_and_its_first_value_is_remembered() {
    let world = World::new();
    let tidegate = Tidegate::start(world.config());
    assert_eq!(tidegate.answers(8), of(&[("a", 4), ("b", 4)]));
    assert!(tidegate.set("a", "{\"weight\": 3}"));
    assert!(!tidegate.set("a", "{\"weight\": 3}"));
    assert_eq!(tidegate.answers(8), of(&[("a", 6), ("b", 2)]));
    let status = tidegate.backend_status("a");
    assert_eq!((&status["weight"], &status["weight_configured"]), (&json!(3), &json!(1)));
    assert_eq!(tidegate.status()["adjustments"]["pools"]["web"]["backends"]["a"], json!({"weight": 3}));
    assert_eq!(tidegate.generation(), 1, "no other table");
    assert!(tidegate.set("a", "{\"weight\": 1}"));
    assert_eq!(tidegate.status()["adjustments"], json!({}));
}

#[test]
fn backends_come_and_go_and_the_others_keep_their_clients() {
    let (world, more) = (World::new(), Backend::named("more"));
    let tidegate = Tidegate::start(world.config());
    let add = format!("{{\"address\": \"{more}\", \"name\": \"c\", \"weight\": 2}}");
    assert!(tidegate.change("/pools/web/backends", &add));
    assert!(!tidegate.change("/pools/web/backends", &add));
    assert_eq!(tidegate.answers(8), of(&[("a", 2), ("b", 2), ("more", 4)]));
    assert!(tidegate.change("/pools/web/backends/b/remove", ""));
    assert!(!tidegate.change("/pools/web/backends/b/remove", ""));
    assert_eq!(tidegate.answers(6), of(&[("a", 2), ("more", 4)]));
    let names = |status: &Value| {
        let backends = status["pools"][0]["backends"].as_array().unwrap();
        backends.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&tidegate.status()), ["a", "c"]);
    eventually("the metrics of who is gone are gone", || {
        tidegate.metrics().values("tidegate_backend_up", "backend") == ["a", "c"]
    });
    assert!(tidegate.change("/pools/web/backends/c/remove", ""));
    assert_eq!(tidegate.answers(4), of(&[("a", 4)]));
    let text = tidegate.refuses("/pools/web/backends/c", "{\"state\": \"draining\"}", 404);
    assert_eq!(text, "there is no backend \"c\" in pool \"web\"; it has a");
    tidegate.logged(&["refused", "there is no backend"]);
    assert!(tidegate.refuses("/pools/wep/backends/a", "{\"weight\": 2}", 404).contains("did you mean \"web\"?"));
    let taken = format!("{{\"address\": \"{}\", \"name\": \"x\"}}", world.a);
    assert!(tidegate.refuses("/pools/web/backends", &taken, 409).contains("as \"a\" with weight 1"));
}

#[test]
fn changes_outlive_reloads_and_the_file_takes_over_what_it_comes_to_have() {
    let (world, more) = (World::new(), Backend::named("more"));
    let tidegate = Tidegate::start(world.config());
    tidegate.set("a", "{\"state\": \"draining\"}");
    tidegate.set("b", "{\"weight\": 5}");
    tidegate.change("/pools/web/backends", &format!("{{\"address\": \"{more}\"}}"));
    tidegate.set(&more.to_string(), "{\"weight\": 2}");
    reload(&tidegate, world.config().runtime("drain_timeout = \"9s\""));
    assert_eq!(tidegate.answers(7), of(&[("b", 5), ("more", 2)]));
    // Now the file has it, by a name.
    let all = format!(
        "backends = [{{ name = \"a\", address = \"{}\" }}, {{ name = \"c\", address = \"{more}\", weight = 9 }}]\n",
        world.a
    );
    reload(&tidegate, Config::with_pool(&all).pool("slow_start = \"0s\""));
    assert_eq!(tidegate.answers(3), of(&[("more", 3)]));
    let adjustments = tidegate.status()["adjustments"]["pools"]["web"].clone();
    assert_eq!(
        adjustments["backends"],
        json!({"a": {"state": "draining"}, "b": {"weight": 5}, "c": {"weight": 2}}),
        "what was said of b counts again when it is back"
    );
    assert_eq!(adjustments["added"], Value::Null);
    reload(&tidegate, world.config());
    assert_eq!(tidegate.answers(4), of(&[("b", 4)]));
    assert_eq!(tidegate.backend_status("b")["weight"], json!(5));
}

#[test]
fn a_health_that_an_operator_overrules_is_his_until_he_gives_it_back() {
    let (a, nobody) = (Backend::named("a"), Refusing::new());
    let pool =
        format!("backends = [{{ name = \"a\", address = \"{a}\" }}, {{ name = \"b\", address = \"{nobody}\" }}]\n");
    let quick = "interval = \"50ms\"\nfast_interval = \"50ms\"\ndown_interval = \"50ms\"\ntimeout = \"50ms\"\n";
    let tidegate = Tidegate::start(Config::with_pool(&pool).pool("slow_start = \"0s\"").health(quick));
    let state = |name: &str| tidegate.backend_status(name)["state"].as_str().unwrap().to_owned();
    eventually_eq("it is found down", &"down".to_owned(), || state("b"));
    tidegate.set("b", "{\"health\": \"up\"}");
    throughout("its probes don't count", Duration::from_millis(300), || state("b") == "forced_up");
    tidegate.set("b", "{\"health\": \"auto\"}");
    assert_eq!(state("b"), "down", "what they said meanwhile counts at once");
    let probes = |result: &str| {
        tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("backend", "a"), ("result", result)])
    };
    tidegate.set("a", "{\"health\": \"down\"}");
    assert_eq!(state("a"), "forced_down");
    let before = probes("success");
    eventually("it is probed all the same", || probes("success") > before + 2.0);
    tidegate.set("a", "{\"health\": \"auto\", \"state\": \"disabled\"}");
    // One may be under way.
    let accepted = || a.accepted();
    eventually("the last probe is over", || {
        let count = accepted();
        thread::park_timeout(Duration::from_millis(200));
        accepted() == count
    });
    let count = accepted();
    throughout("whoever is disabled isn't probed", Duration::from_millis(400), || accepted() == count);
    tidegate.set("a", "{\"state\": \"enabled\"}");
    eventually("it is probed again", || accepted() > count);
    assert_eq!(tidegate.connect().rest().text(), "a\n");
}

#[test]
fn the_log_says_as_much_as_it_is_told_to() {
    let world = World::new();
    let tidegate = Tidegate::start(world.config());
    assert!(tidegate.change("/log", "{\"level\": \"error\"}"));
    tidegate.logged(&["changed", "log level", "from=\"info\"", "to=\"error\""]);
    tidegate.set("a", "{\"weight\": 9}");
    assert!(!tidegate.change("/log", "{\"level\": \"error\"}"));
    assert!(tidegate.change("/log", "{\"level\": \"info\"}"));
    tidegate.logged(&["from=\"error\"", "to=\"info\""]);
    assert_eq!(tidegate.count_logged(&["command=\"backend\""]), 0, "{}", tidegate.log());
    tidegate.set("a", "{\"weight\": 8}");
    tidegate.logged(&["command=\"backend\"", "weight 8"]);
    assert_eq!(tidegate.status()["adjustments"]["log_level"], Value::Null);
}

/// Each of these is one more view, at once, while clients come as fast as they can.
#[test]
fn no_client_notices_what_is_changed_while_it_comes() {
    let backends: Vec<Backend> = ["a", "b", "c", "d"].map(Backend::named).into();
    let list: Vec<String> = backends
        .iter()
        .zip(["a", "b", "c", "d"])
        .map(|(at, name)| format!("{{ name = \"{name}\", address = \"{at}\" }}"))
        .collect();
    let pool = format!("backends = [{}]\n", list.join(", "));
    let tidegate = Tidegate::start(Config::with_pool(&pool).pool("slow_start = \"0s\""));
    let (over, served) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    let rest = tidegate.connect().rest();
                    assert_eq!((rest.end, rest.text().len()), (End::Fin, 2), "{rest:?}");
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        // Whoever is taken out for a moment, three others are there.
        for (round, name) in ["b", "c", "d"].iter().cycle().take(60).enumerate() {
            let address = &backends[1 + round % 3];
            match round / 3 % 4 {
                0 => {
                    tidegate.set(name, "{\"state\": \"draining\"}");
                    tidegate.set(name, "{\"state\": \"enabled\"}");
                }
                1 => {
                    tidegate.set(name, &format!("{{\"weight\": {}}}", 2 + round));
                    tidegate.set(name, "{\"weight\": 1}");
                }
                2 => {
                    tidegate.change(&format!("/pools/web/backends/{name}/remove"), "");
                    tidegate.change(
                        "/pools/web/backends",
                        &format!("{{\"address\": \"{address}\", \"name\": \"{name}\"}}"),
                    );
                }
                _ => {
                    tidegate.set(name, "{\"health\": \"down\"}");
                    tidegate.set(name, "{\"health\": \"auto\"}");
                }
            }
        }
        // However few had their turn on a slow machine while all that was changed.
        eventually("many have come", || served.load(Relaxed) > 100);
        over.store(true, Relaxed);
    });
    assert_eq!(tidegate.status()["adjustments"], json!({}));
    tidegate.until_idle();
}
