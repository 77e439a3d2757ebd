//! What a plan says of two configs, and how severe it finds it.

use super::{Plan, Sessions, Severity};
use crate::config::Config;

const FROM: &str = r#"
[listeners.web]
bind = "127.0.0.1:8000"
pool = "web"
[listeners.api]
bind = ["127.0.0.1:8001", "127.0.0.1:0", "127.0.0.1:0"]
pool = "api"
routes = [{ name = "canary", share = "5%", pool = "web" }]
[pools.web]
backends = ["10.0.0.1:80", "10.0.0.2:80", { address = "10.0.0.3:80", name = "big", weight = 5 }]
[pools.api]
backends = ["10.0.1.1:80"]
"#;

fn config(text: &str) -> Config {
    Config::parse("lb.toml", text.as_bytes()).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}")).config
}

/// Of [`FROM`] and itself with the first of each pair replaced by the second.
fn plan(changes: &[(&str, &str)], sessions: Option<&Sessions>) -> Plan {
    let mut to = FROM.to_owned();
    for (old, new) in changes {
        assert!(to.contains(old), "{old}");
        to = to.replacen(old, new, 1);
    }
    Plan::of(&config(FROM), &config(&to), sessions)
}

fn severity(changes: &[(&str, &str)]) -> Severity {
    plan(changes, None).severity
}

fn sessions() -> Sessions {
    let named = |list: &[(&str, u64)]| list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    Sessions {
        listeners: named(&[("web", 117), ("api", 1)]),
        pools: named(&[("web", 118)]),
        backends: [("web".to_owned(), named(&[("10.0.0.2:80", 12), ("big (10.0.0.3:80)", 1)]))].into(),
    }
}

#[test]
fn what_only_looks_otherwise_is_nothing() {
    let plan = plan(&[("\n[pools.web]", "\n# a comment\n[pools.web]\nbalance = \"round_robin\"")], Some(&sessions()));
    assert_eq!(plan, Plan::default());
    assert_eq!(plan.severity.exit_code(), 0);
    assert_eq!(plan.to_string(), "nothing would change\n");
}

#[test]
fn a_change_says_who_keeps_what() {
    let changes = [
        ("[pools.web]", "[pools.web]\nbalance = \"random\""),
        ("\"10.0.0.2:80\", ", "\"10.0.0.4:80\", "),
        ("weight = 5", "weight = 7"),
        ("pool = \"api\"", "pool = \"api\"\nidle_timeout = \"5s\"\nbacklog = 9"),
        ("\"5%\"", "\"10%\""),
        ("[pools.api]", "[limits.all]\nmax_connections = 7\n[runtime]\nlame_duck = \"1s\"\n[pools.api]"),
    ];
    let plan = plan(&changes, Some(&sessions()));
    let shown = "\
~ runtime.lame_duck                 0s -> 1s
+ limit all
~ listener api                      backlog 4096 -> 9 (1 session keeps the old ones)
~ listener api                      idle_timeout 10m -> 5s
~ listener api                      half_close_timeout 30s -> 5s
~ route canary of api               share 5% -> 10%
~ pool web                          balance round_robin -> random (118 sessions keep the old one)
+ backend 10.0.0.4:80 of web
~ backend big (10.0.0.3:80) of web  weight 5 -> 7 (1 session keeps the old one)
- backend 10.0.0.2:80 of web        (12 sessions go on to their end)
2 added, 1 removed, 5 changed
";
    assert_eq!(plan.to_string(), shown);
    assert_eq!((plan.severity, plan.severity.exit_code()), (Severity::Changes, 2));
}

#[test]
fn what_is_disruptive_says_why() {
    let changes = [
        ("127.0.0.1:8000", "127.0.0.1:8002"),
        ("[pools.api]\nbackends = [\"10.0.1.1:80\"]", "[pools.api]\nbackends = [\"10.0.1.2:80\"]"),
        ("\n[pools.web]", "\n[runtime]\nworkers = 3\n[pools.web]"),
    ];
    let plan = plan(&changes, Some(&sessions()));
    let shown = "\
! runtime.workers             default -> 3; it needs a new process: tidegate upgrade
~ listener web                bind [127.0.0.1:8000] -> [127.0.0.1:8002] (117 sessions keep the old one); nobody can \
         connect to 127.0.0.1:8000 any more
+ backend 10.0.1.2:80 of api
- backend 10.0.1.1:80 of api  the pool loses all the backends that it had
1 added, 1 removed, 1 changed, 1 needs a new process: disruptive
";
    assert_eq!(plan.to_string(), shown);
    assert_eq!((plan.severity, plan.severity.exit_code()), (Severity::Disruptive, 3));
}

#[test]
fn a_key_that_is_again_as_the_process_was_started_needs_no_new_one() {
    let (keys, back) = ("relay = \"copy\"\nlame_duck = \"1s\"", "lame_duck = \"2s\"");
    let of = |keys: &str| config(&format!("[runtime]\n{keys}\n{FROM}"));
    let (started, runs, to) = (config(FROM), of(keys), of(back));
    let mut plan = Plan::of(&runs, &to, None);
    assert_eq!((plan.severity, plan.restarted.len()), (Severity::Disruptive, 1));
    plan.starts_from(&runs, &to);
    assert_eq!(plan.severity, Severity::Disruptive, "it was started with that");
    plan.starts_from(&started, &to);
    let shown = "~ runtime.relay      copy -> auto\n~ runtime.lame_duck  1s -> 2s\n2 changed\n";
    assert_eq!((plan.severity, plan.to_string().as_str()), (Severity::Changes, shown));
}

#[test]
fn an_address_is_disrupted_only_if_nobody_takes_it_over() {
    let web = "[listeners.web]\nbind = \"127.0.0.1:8000\"";
    // By another name.
    assert_eq!(severity(&[(web, "[listeners.www]\nbind = \"127.0.0.1:8000\"")]), Severity::Changes);
    // With one more.
    assert_eq!(severity(&[(web, "[listeners.web]\nbind = [\"127.0.0.1:9\", \"127.0.0.1:8000\"]")]), Severity::Changes);
    // Of the kernel's ports one less, and one more.
    assert_eq!(severity(&[("\"127.0.0.1:0\", ", "")]), Severity::Disruptive);
    assert_eq!(severity(&[("\"127.0.0.1:0\", ", "\"127.0.0.1:0\", \"127.0.0.1:0\", ")]), Severity::Changes);
    // With what can be set on a socket that listens, and with what can't.
    assert_eq!(severity(&[(web, &format!("{web}\nsocket.defer_accept = \"1s\""))]), Severity::Changes);
    let anew = plan(&[(web, &format!("{web}\nsocket.interface = \"lo\""))], None);
    assert_eq!(anew.severity, Severity::Disruptive);
    assert_eq!(anew.changed[0].disruptive.as_deref(), Some("127.0.0.1:8000 is bound anew"));
    // With another listener gone, whose address went with it.
    let gone = plan(&[(&format!("{web}\npool = \"web\"\n"), "")], Some(&sessions()));
    assert_eq!(gone.removed[0].disruptive.as_deref(), Some("nobody can connect to 127.0.0.1:8000 any more"));
    assert_eq!(gone.removed[0].sessions, Some(117));
}

#[test]
fn a_pool_may_go_if_nobody_is_led_to_it() {
    let unused = ("[pools.api]", "[pools.old]\nbackends = [\"10.0.2.1:80\"]\n[pools.api]");
    let with_unused = config(&FROM.replacen(unused.0, unused.1, 1));
    assert_eq!(Plan::of(&with_unused, &config(FROM), None).severity, Severity::Changes);
    let other = [("[pools.api]", "[pools.api2]"), ("pool = \"api\"", "pool = \"api2\"")];
    assert_eq!(severity(&other), Severity::Disruptive);
}

#[test]
fn the_order_of_routes_and_backends_is_a_change_and_that_of_the_rest_is_none() {
    let backends = plan(&[("\"10.0.0.1:80\", \"10.0.0.2:80\"", "\"10.0.0.2:80\", \"10.0.0.1:80\"")], None);
    assert_eq!(backends.to_string(), "~ pool web  order of backends is another one\n1 changed\n");
    let pools = FROM.split("[pools.").collect::<Vec<_>>();
    let [head, web, api] = pools.as_slice() else { panic!("{pools:?}") };
    let swapped = format!("{head}[pools.{api}[pools.{web}");
    assert_eq!(Plan::of(&config(FROM), &config(&swapped), None).severity, Severity::Nothing);
}

#[test]
fn a_name_that_stands_for_other_addresses_is_a_change_of_its_backend() {
    let resolves = |plan: &mut Plan| {
        plan.resolves("web", "big (10.0.0.3:80)", "[192.0.2.1:80]".into(), "[192.0.2.2:80]".into(), Some(1));
    };
    let mut alone = plan(&[], Some(&sessions()));
    resolves(&mut alone);
    assert_eq!(alone.severity, Severity::Changes, "the texts are the same, and yet something changes");
    let told = "\
~ backend big (10.0.0.3:80) of web  addresses [192.0.2.1:80] -> [192.0.2.2:80] (1 session keeps the old one)
1 changed
";
    assert_eq!(alone.to_string(), told);
    // Beside what the text itself changes of it, and not as another entry.
    let mut both = plan(&[("weight = 5", "weight = 7")], Some(&sessions()));
    resolves(&mut both);
    let keys: Vec<&str> = both.changed[0].keys.iter().map(|change| change.key.as_str()).collect();
    assert_eq!((both.changed.len(), keys), (1, vec!["weight", "addresses"]));
    // One of the same name in another pool is another one.
    both.resolves("api", "big (10.0.0.3:80)", "[]".into(), "[192.0.2.2:80]".into(), None);
    assert_eq!(both.changed.len(), 2);
    let mut gone = plan(&[("127.0.0.1:8000", "127.0.0.1:8002")], Some(&sessions()));
    resolves(&mut gone);
    assert_eq!(gone.severity, Severity::Disruptive, "it stays what it is");
}

#[test]
fn programs_read_what_was_written() {
    let plan = plan(&[("127.0.0.1:8000", "127.0.0.1:8002"), ("weight = 5", "weight = 7")], Some(&sessions()));
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["severity"], "disruptive");
    assert_eq!(json["changed"][0]["kind"], "listener");
    assert_eq!(json["changed"][0]["sessions"], 117);
    assert_eq!(json["changed"][1]["keys"][0], serde_json::json!({ "key": "weight", "from": "5", "to": "7" }));
    assert_eq!(serde_json::from_value::<Plan>(json).unwrap(), plan);
}
