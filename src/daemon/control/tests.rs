//! Commands to a config that runs, though without workers: what they change, what they answer, and what they refuse.

use super::super::fds;
use super::super::inherit::Inherited;
use super::super::live::{Base, prepare};
use super::super::start::Shared;
use super::*;
use crate::admin;
use crate::admission::{Pressure, Process};
use crate::config::Config;
use crate::every::Every;
use crate::metrics::Metrics;
use crate::name::BackendAddr;
use arc_swap::ArcSwap;
use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::Instant;
use tokio::sync::Notify;

const CONFIG: &str = "
[admin]
listen = \"off\"
[listeners.web]
bind = \"127.0.0.1:0\"
pool = \"web\"
[pools.web]
backends = [
    { name = \"a\", address = \"192.0.2.1:80\", weight = 2 },
    { name = \"b\", address = \"192.0.2.2:80\" },
    { name = \"spare\", address = \"192.0.2.3:80\", backup = true },
]
[pools.web.health]
initial = \"up\"
[pools.tree]
target = \"failover:(tcp://192.0.2.1:80|tcp://192.0.2.2:80)\"
";

fn live(more: &str) -> Live {
    let loaded = Config::parse("lb.toml", format!("{CONFIG}{more}").as_bytes()).unwrap();
    let base = Base::of_start(1, fds::raise_limit(), None, HashSet::new());
    let candidate = prepare(&base, loaded, &mut Inherited::default()).unwrap();
    let metrics = Arc::new(Metrics::new().unwrap());
    let shared = Shared {
        config: Arc::new(ArcSwap::new(Arc::clone(&candidate.config))),
        adjustments: Arc::default(),
        config_status: Arc::default(),
        table: Arc::new(ArcSwap::from_pointee(RoutingTable::empty())),
        table_changed: Arc::new(Notify::new()),
        process: Arc::new(Process::new(100, Pressure::default(), &metrics)),
        metrics,
        access: None,
        shortage: Arc::new(Every::new(Duration::from_secs(1), Instant::now())),
        workers: 1,
        seats: Arc::new(OnceLock::new()),
        who: Arc::new(admin::Who::new(admin::Access::default())),
    };
    Live::first(candidate, None, base, shared, None).unwrap()
}

fn ask(live: &mut Live, command: Command) -> Reply {
    carry_out(command, &Asker::Uid(1_000), live)
}

fn change(pool: &str, backend: &str, change: Adjustment, deadline: Option<Duration>) -> Command {
    Command::Backend { pool: PoolName::new(pool), backend: backend.into(), change, deadline }
}

fn set(backend: &str, state: AdminState) -> Command {
    change("web", backend, Adjustment { state: Some(state), ..Adjustment::default() }, None)
}

fn weigh(backend: &str, weight: u16) -> Command {
    change("web", backend, Adjustment { weight: Some(weight), ..Adjustment::default() }, None)
}

fn add(address: &str, name: Option<&str>, weight: u16, tier: u8) -> Command {
    let endpoint = crate::name::Endpoint::Tcp(address.parse().unwrap());
    let (pool, name) = (PoolName::new("web"), name.map(str::to_owned));
    Command::AddBackend { pool, address: BackendAddr(endpoint), name, weight, tier }
}

fn remove(backend: &str) -> Command {
    Command::RemoveBackend { pool: PoolName::new("web"), backend: backend.into(), deadline: None }
}

/// It is done, and changed something; what was said of it.
#[allow(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn changed(live: &mut Live, command: Command) -> String {
    let done = ask(live, command.clone()).unwrap();
    assert!(done.changed, "{command:?}: {}", done.summary);
    assert_eq!(**live.shared.adjustments.load(), live.adjustments, "whoever looks sees the same");
    done.summary
}

/// It is so already.
#[allow(clippy::needless_pass_by_value, reason = "it reads better where it is called")]
fn unchanged(live: &mut Live, command: Command) -> String {
    let before = live.adjustments.clone();
    let done = ask(live, command.clone()).unwrap();
    assert!(!done.changed && done.summary.starts_with("nothing has changed"), "{command:?}: {}", done.summary);
    assert_eq!(live.adjustments, before);
    done.summary
}

fn refused(live: &mut Live, command: Command) -> (Why, String) {
    let before = live.adjustments.clone();
    let Refused { why, text } = ask(live, command).unwrap_err();
    assert_eq!(live.adjustments, before, "a refusal has changed nothing");
    (why, text)
}

/// Each backend of the pool with weight, tier and state.
fn web(live: &Live) -> Vec<String> {
    let table = live.shared.table.load();
    let view = table.pool(&PoolName::new("web")).unwrap().view();
    let one = |index: usize| {
        let backend = &view.backends[index];
        format!("{} {} {} {}", backend.label, view.weights[index], view.tiers[index], backend.state())
    };
    (0..view.backends.len()).map(one).collect()
}

fn backend(live: &Live, label: &str) -> Arc<Backend> {
    let view = live.shared.table.load().pool(&PoolName::new("web")).unwrap().view();
    view.backends.iter().find(|backend| *backend.label == *label).map(Arc::clone).unwrap()
}

#[test]
fn what_is_asked_for_twice_changes_something_once_and_is_taken_back_without_a_trace() {
    let mut live = live("");
    for command in [
        set("a", AdminState::Draining),
        weigh("a", 7),
        set("a", AdminState::Disabled),
        add("192.0.2.9:80", Some("new"), 3, 0),
        weigh("new", 4),
        remove("b"),
        Command::LogLevel(Level::Debug),
    ] {
        changed(&mut live, command.clone());
        if command == add("192.0.2.9:80", Some("new"), 3, 0) {
            unchanged(&mut live, add("192.0.2.9:80", None, 3, 0));
        } else {
            unchanged(&mut live, command);
        }
    }
    assert_eq!(web(&live), ["a 7 0 disabled", "spare 1 1 up", "new 4 0 up"]);
    for command in [
        set("a", AdminState::Enabled),
        weigh("a", 2),
        remove("new"),
        add("192.0.2.2:80", None, 1, 0),
        Command::LogLevel(Level::Info),
    ] {
        changed(&mut live, command);
    }
    assert_eq!(web(&live), ["a 2 0 up", "b 1 0 up", "spare 1 1 up"]);
    assert_eq!(live.adjustments, Adjustments::default(), "as the file has it");
}

#[test]
fn answers_say_what_was_and_what_is_and_that_nobody_is_left() {
    let mut live = live("");
    let both = Adjustment { state: Some(AdminState::Draining), weight: Some(9), health: Some(HealthOverride::Up) };
    let said = changed(&mut live, change("web", "a", both, None));
    assert_eq!(said, "backend a of pool web: draining, weight 9, forced up (before: enabled, weight 2)");
    changed(&mut live, set("spare", AdminState::Disabled));
    let done = ask(&mut live, set("b", AdminState::Draining)).unwrap();
    assert!(done.summary.ends_with("; no backend of the pool gets new sessions now"), "{}", done.summary);
    let details = &done.details;
    assert_eq!(
        (&details["last"], &details["state"], &details["sessions"]),
        (&json!(true), &json!("draining"), &json!(0))
    );
    assert_eq!((&details["weight"], &details["weight_configured"]), (&json!(1), &json!(1)));
    assert_eq!(details["survives_restart"], json!(false));
    for label in ["a", "b"] {
        changed(&mut live, remove(label));
    }
    let said = changed(&mut live, remove("spare"));
    assert_eq!(said, "backend spare is removed from pool web; no backend of the pool gets new sessions now");
    assert!(web(&live).is_empty());
    changed(&mut live, add("192.0.2.7:80", None, 1, 0));
    assert_eq!(web(&live), ["192.0.2.7:80 1 0 up"], "an empty pool can be filled again");
}

#[test]
fn refusals_name_what_there_is_and_the_way_out() {
    let mut live = live("");
    for (command, why, text) in [
        (
            set("c", AdminState::Draining),
            Why::NotFound,
            "there is no backend \"c\" in pool \"web\"; it has a, b, spare",
        ),
        (
            set("spre", AdminState::Draining),
            Why::NotFound,
            "there is no backend \"spre\" in pool \"web\"; it has a, b, spare; did you mean \"spare\"?",
        ),
        (
            change("wb", "a", Adjustment::default(), None),
            Why::NotFound,
            "there is no pool \"wb\" in the config; it has web, tree; did you mean \"web\"?",
        ),
        (
            weigh("a", 0),
            Why::Invalid,
            "weight 0 takes nothing away from a backend; use 1 to 256, or state = \"draining\"",
        ),
        (weigh("a", 257), Why::Invalid, "weight 257 is too high; use 1 to 256"),
        (
            change("tree", "192.0.2.1:80", Adjustment { weight: Some(2), ..Adjustment::default() }, None),
            Why::Invalid,
            "a pool with a target has no weights; drain the backend, or write a list of backends",
        ),
        (
            change("web", "a", Adjustment::default(), None),
            Why::Invalid,
            "nothing is asked for; give a state, a weight or a health",
        ),
        (
            change("web", "a", Adjustment { weight: Some(3), ..Adjustment::default() }, Some(Duration::ZERO)),
            Why::Invalid,
            "a deadline is for a backend that is taken out; use it with state = \"draining\" or \"disabled\"",
        ),
        (remove("x"), Why::NotFound, "there is no backend \"x\" in pool \"web\"; it has a, b, spare"),
        (
            add("192.0.2.1:80", None, 1, 0),
            Why::Conflict,
            "192.0.2.1:80 is in pool \"web\" already, as \"a\" with weight 2 in tier 0; change that one, or remove it first",
        ),
        (add("192.0.2.8:80", Some("a"), 1, 0), Why::Conflict, "there is another backend called \"a\" in the pool"),
        (add("192.0.2.8:80", Some(""), 1, 0), Why::Invalid, "the name is empty; use up to 128 bytes of printable text"),
        (add("192.0.2.8:80", None, 1, 16), Why::Invalid, "tier 16 is too high; use 0 to 15"),
        (
            add("0.0.0.0:80", None, 1, 0),
            Why::Invalid,
            "0.0.0.0 means every address of this machine; name one to connect to, such as 127.0.0.1",
        ),
    ] {
        assert_eq!(refused(&mut live, command.clone()), (why, text.to_owned()), "{command:?}");
    }
    assert_eq!(live.adjustments, Adjustments::default());
}

#[test]
fn a_deadline_can_come_nearer_but_asking_again_never_puts_it_off() {
    let mut live = live("");
    let drain = |seconds: u64| {
        let state = Adjustment { state: Some(AdminState::Draining), ..Adjustment::default() };
        change("web", "a", state, Some(Duration::from_secs(seconds)))
    };
    changed(&mut live, drain(100));
    let first = backend(&live, "a").drain_deadline().unwrap();
    unchanged(&mut live, drain(200));
    unchanged(&mut live, set("a", AdminState::Draining));
    assert_eq!(backend(&live, "a").drain_deadline(), Some(first));
    let said = changed(&mut live, drain(10));
    assert!(said.ends_with("as before, with another deadline"), "{said}");
    let nearer = backend(&live, "a").drain_deadline().unwrap();
    assert!(nearer < first);
    let only = change("web", "a", Adjustment::default(), Some(Duration::from_secs(1)));
    changed(&mut live, only);
    assert!(backend(&live, "a").drain_deadline().unwrap() < nearer);
    changed(&mut live, set("a", AdminState::Enabled));
    assert_eq!(backend(&live, "a").drain_deadline(), None);
    let gone = backend(&live, "b");
    let (pool, deadline) = (PoolName::new("web"), Some(Duration::from_secs(5)));
    changed(&mut live, Command::RemoveBackend { pool, backend: "b".into(), deadline });
    assert!(gone.drain_deadline().is_some(), "its sessions end in time, though it is gone");
}

#[test]
fn what_the_file_has_and_an_operator_removed_comes_back_as_the_files() {
    let mut live = live("");
    changed(&mut live, remove("spare"));
    let (why, text) = refused(&mut live, add("192.0.2.3:80", None, 1, 0));
    assert_eq!(
        (why, &*text),
        (Why::Conflict, "the config has 192.0.2.3:80 in tier 1; give that tier, or another name")
    );
    changed(&mut live, add("192.0.2.3:80", Some("other"), 1, 0));
    assert_eq!(web(&live)[2], "other 1 0 up");
    changed(&mut live, remove("other"));
    changed(&mut live, add("192.0.2.3:80", None, 5, 1));
    assert_eq!(web(&live)[2], "spare 5 1 up");
    let own = live.adjustments.pool(&PoolName::new("web"));
    assert_eq!((own.added.len(), own.removed.len(), own.backends["spare"].weight), (0, 0, Some(5)));
}

#[test]
fn whoever_is_not_meant_is_not_touched() {
    let mut live = live("");
    let generation = live.generation();
    let before = live.shared.table.load_full();
    let ids: Vec<_> = ["a", "b", "spare"].map(|label| backend(&live, label).id).into();
    changed(&mut live, weigh("a", 9));
    changed(&mut live, add("192.0.2.9:80", None, 1, 0));
    changed(&mut live, remove("192.0.2.9:80"));
    changed(&mut live, set("b", AdminState::Draining));
    assert_eq!(["a", "b", "spare"].map(|label| backend(&live, label).id).to_vec(), ids);
    assert!(Arc::ptr_eq(&before, &live.shared.table.load_full()), "no other table");
    assert_eq!(live.generation(), generation);
}

#[test]
fn what_was_changed_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let more = format!("[runtime]\nstate_file = {path:?}\n");
    let mut first = live(&more);
    first.keeper.iter_mut().for_each(crate::daemon::state_file::Keeper::start);
    changed(&mut first, set("a", AdminState::Draining));
    changed(&mut first, weigh("b", 6));
    changed(&mut first, add("192.0.2.9:80", Some("new"), 2, 1));
    changed(&mut first, remove("spare"));
    let done = ask(&mut first, Command::LogLevel(Level::Warn)).unwrap();
    assert_eq!(done.details["survives_restart"], json!(true));
    let expected = (web(&first), first.adjustments.clone());
    drop(first);
    let second = live(&more);
    assert_eq!((web(&second), second.adjustments.clone()), expected);
    assert_eq!(expected.0, ["a 2 0 draining", "b 6 0 up", "new 2 1 up"]);
    assert_eq!(second.log_level(), Level::Warn);
}

/// The names in service, with the last part of the address of each.
fn served(live: &Live) -> Vec<String> {
    let table = live.shared.table.load();
    let view = table.pool(&PoolName::new("web")).unwrap().view();
    view.backends.iter().map(|backend| format!("{} {}", backend.label, backend.address)).collect()
}

/// One that was added as `b` before the file had another `b`, and was left out since.
fn with_a_namesake() -> Live {
    let mut live = live("");
    let added = AddedBackend { address: "192.0.2.9:80".to_owned(), name: Some("b".to_owned()), weight: 1, tier: 0 };
    let mut adjustments = Adjustments::default();
    adjustments.pools.entry("web".to_owned()).or_default().added.push(added);
    live.change(adjustments);
    live
}

#[test]
fn whoever_is_removed_is_the_one_that_serves_under_that_name() {
    let mut live = with_a_namesake();
    assert_eq!(served(&live), ["a 192.0.2.1:80", "b 192.0.2.2:80", "spare 192.0.2.3:80"]);
    changed(&mut live, remove("b"));
    assert_eq!(served(&live), ["a 192.0.2.1:80", "spare 192.0.2.3:80"], "the one that is gone, and no namesake for it");
    unchanged(&mut live, remove("b"));
    changed(&mut live, add("192.0.2.2:80", None, 1, 0));
    assert!(live.adjustments.is_empty(), "{:?}", live.adjustments);
}

#[test]
fn one_that_was_left_out_by_its_name_can_be_added_under_another() {
    let mut live = with_a_namesake();
    changed(&mut live, add("192.0.2.9:80", Some("nine"), 1, 0));
    assert_eq!(served(&live)[3], "nine 192.0.2.9:80");
    assert_eq!(live.adjustments.pools["web"].added.len(), 1);
    changed(&mut live, remove("nine"));
    assert!(live.adjustments.is_empty(), "{:?}", live.adjustments);
}

#[test]
fn nobody_is_put_out_by_one_that_comes_back() {
    let mut live = live("");
    changed(&mut live, remove("a"));
    changed(&mut live, add("192.0.2.9:80", Some("a"), 1, 0));
    let (why, text) = refused(&mut live, add("192.0.2.1:80", None, 2, 0));
    assert_eq!(why, Why::Conflict);
    let told = "the config calls 192.0.2.1:80 \"a\", and another backend of the pool is called so; remove that one \
                first, or give this one another name";
    assert_eq!(text, told);
    assert_eq!(served(&live).last().map(String::as_str), Some("a 192.0.2.9:80"));
    changed(&mut live, add("192.0.2.1:80", Some("old a"), 2, 0));
    changed(&mut live, remove("a"));
    assert_eq!(served(&live), ["b 192.0.2.2:80", "spare 192.0.2.3:80", "old a 192.0.2.1:80"]);
}

#[test]
fn what_was_said_of_one_that_is_gone_can_be_forgotten() {
    let mut live = live("");
    let mut adjustments = Adjustments::default();
    let own = adjustments.pools.entry("web".to_owned()).or_default();
    let draining = Adjustment { state: Some(AdminState::Draining), ..Adjustment::default() };
    own.backends.insert("gone".to_owned(), draining);
    live.change(adjustments);
    assert_eq!(changed(&mut live, remove("gone")), "gone isn't in pool web, and what was said of it is forgotten");
    assert!(live.adjustments.is_empty(), "{:?}", live.adjustments);
    assert_eq!(refused(&mut live, remove("gone")).0, Why::NotFound);
}
