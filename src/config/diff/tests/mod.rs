//! Differences of configs, each of them read from a text: what they hold, and that nothing is missing from them.

mod writer;

use super::{Changed, Diff, KeyChange, NEEDS_NEW_PROCESS, Thing};
use crate::config::{Config, Listener, Member, Pool, Route, SharedLimit, TABLES};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use writer::Writer;

/// Without what a difference doesn't hold: where a backend stands in the file.
fn read(text: &str) -> Config {
    let loaded = Config::parse("lb.toml", text.as_bytes()).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"));
    let mut config = loaded.config;
    config.pools.iter_mut().flat_map(|pool| &mut pool.members).for_each(|member| member.place.clear());
    config
}

fn changes(diff: &Diff) -> Vec<KeyChange> {
    let of_limits = diff.limits.changed.iter().flat_map(Changed::keys);
    let of_listeners = diff.listeners.changed.iter().flat_map(Changed::keys);
    let of_pools = diff.pools.changed.iter().flat_map(Changed::keys);
    let of_routes = diff.routes.values().flat_map(|things| &things.changed).flat_map(Changed::keys);
    let of_backends = diff.backends.values().flat_map(|things| &things.changed).flat_map(Changed::keys);
    let all = of_limits.chain(of_listeners).chain(of_pools).chain(of_routes).chain(of_backends);
    diff.process().iter().chain(all).cloned().collect()
}

fn numbers() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..900)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_applied_is_the_other_config(from in numbers(), to in numbers()) {
        let (from, to) = (read(&Writer::config(&from)), read(&Writer::config(&to)));
        prop_assert_eq!(&Diff::of(&from, &to).apply(&from), &to);
        prop_assert_eq!(&Diff::of(&to, &from).apply(&to), &from);
    }

    #[test]
    fn a_single_change_is_found_and_nothing_besides(numbers in numbers(), at in any::<prop::sample::Index>(), to: u8) {
        let mut other = numbers.clone();
        if let Some(number) = other.get_mut(at.index(numbers.len().max(1))) {
            *number = to;
        }
        let (from, to) = (read(&Writer::config(&numbers)), read(&Writer::config(&other)));
        let diff = Diff::of(&from, &to);
        prop_assert_eq!(diff.is_empty(), from == to);
        prop_assert_eq!(&diff.apply(&from), &to);
    }

    #[test]
    fn a_config_does_not_differ_from_itself(numbers in numbers()) {
        let text = Writer::config(&numbers);
        let config = read(&text);
        prop_assert!(Diff::of(&config, &config).is_empty());
        // What is only written otherwise is the same.
        let commented = read(&format!("# a comment\n\n{text}"));
        prop_assert!(Diff::of(&config, &commented).is_empty());
    }

    #[test]
    fn no_change_is_without_its_values_and_none_tells_a_secret(from in numbers(), to in numbers()) {
        let (from, to) = (read(&Writer::config(&from)), read(&Writer::config(&to)));
        let diff = Diff::of(&from, &to);
        for change in changes(&diff) {
            let hidden = [&change.from, &change.to].into_iter().flatten().any(|text| text == "(not shown)");
            prop_assert!(change.from != change.to || hidden, "{:?}", change);
            prop_assert!(!format!("{change:?}").contains("SECRET"), "{:?}", change);
        }
        for changed in &diff.pools.changed {
            prop_assert!(!changed.keys().is_empty(), "{} differs in nothing that is told", changed.to().name);
        }
    }
}

/// What a difference calls a key otherwise than the file, or never names. A new key of the file is not among them.
fn named_otherwise(table: &str, key: &str) -> bool {
    match table {
        // The tables themselves, and the lists of things.
        "" | "listeners.NAME.routes[].pools[]" => true,
        "listeners.NAME" => ["socket", "routes"].contains(&key),
        // Who is believed, and whether a header is required, are told with the table.
        "listeners.NAME.accept_proxy_protocol" => key == "required",
        // What tells one from another, and where it leads.
        "listeners.NAME.routes[]" => ["name", "pool", "pools", "refuse"].contains(&key),
        "pools.NAME" => ["backends", "connect", "ejection", "health", "hash", "proxy_protocol"].contains(&key),
        "pools.NAME.backends[]" => ["address", "name", "backup"].contains(&key),
        "pools.NAME.health" => ["http", "tls", "exchange"].contains(&key),
        "pools.NAME.health.exchange" => ["send_hex", "expect_prefix", "expect_prefix_hex"].contains(&key),
        _ => false,
    }
}

/// Of each table of the file, what a difference calls the keys that were ever seen in it.
#[test]
fn every_key_of_the_file_is_known_to_differences() {
    let mut seen = BTreeSet::new();
    let rich = |number: u8| read(&Writer::config(&vec![number; 2_000]));
    let mut texts = |prefix: &str, all: Vec<super::Text>| {
        seen.extend(all.into_iter().map(|text| format!("{prefix}{}", text.key)));
    };
    let mut look = |config: &Config| {
        texts("", super::keys::PROCESS.iter().flat_map(|key| (key.texts)(config)).collect());
        config.limits.iter().for_each(|limit| texts("limits.NAME.", all_texts::<SharedLimit>(limit)));
        for listener in &config.listeners {
            texts("listeners.NAME.", all_texts::<Listener>(listener));
            listener.routes.iter().for_each(|route| texts("listeners.NAME.routes[].", all_texts::<Route>(route)));
        }
        for pool in &config.pools {
            texts("pools.NAME.", all_texts::<Pool>(pool));
            pool.members.iter().for_each(|member| texts("pools.NAME.backends[].", all_texts::<Member>(member)));
        }
    };
    for number in 0..=u8::MAX {
        look(&rich(number));
    }
    for (table, keys) in TABLES {
        for key in keys.iter().filter(|key| !named_otherwise(table, key)) {
            let name = format!("{table}.{key}");
            assert!(seen.contains(&name), "src/config/diff/keys.rs doesn't have {name}");
        }
    }
    assert!(NEEDS_NEW_PROCESS.iter().all(|key| seen.contains(*key)), "{NEEDS_NEW_PROCESS:?}");
}

fn all_texts<T: Thing>(thing: &T) -> Vec<super::Text> {
    T::keys().iter().flat_map(|key| (key.texts)(thing)).collect()
}

fn with(rest: &str) -> Config {
    read(&format!("listeners.web = {{ bind = \"127.0.0.1:80\", pool = \"web\" }}\n{rest}"))
}

fn lines(from: &Config, to: &Config) -> Vec<String> {
    let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let line = |KeyChange { key, from, to }| format!("{key}: {} -> {}", shown(from), shown(to));
    changes(&Diff::of(from, to)).into_iter().map(line).collect()
}

#[test]
fn changes_are_told_as_a_config_would_have_them() {
    let from = with("pools.web = { backends = [\"10.0.0.1:80\"] }");
    let to = with(
        "[runtime]\nworkers = 3\nmax_connections = 7_000\nlame_duck = \"2s\"\n\
         [pools.web]\nbackends = [{ address = \"10.0.0.1:80\", weight = 5 }]\nbalance = \"source_hash\"\n\
         backend_max_connections = 9\nreplay = \"16KiB\"\nrebalance = \"2.5%\"\n\
         [pools.web.queue]\nmax_wait = \"1m 30s\"\n[pools.web.connect]\nbudget = \"20s\"\n\
         [pools.web.health]\nprobe = \"http\"\n[pools.web.health.http]\npath = \"/a?b\"\nheaders = { x-token = \"s3cret\" }",
    );
    let there = [
        "runtime.workers: default -> 3",
        "runtime.max_connections: default -> 7000",
        "runtime.lame_duck: 0s -> 2s",
        "balance: round_robin -> source_hash",
        "replay: off -> 16KiB",
        "rebalance: off -> 2.5%",
        "backend_max_connections: off -> 9",
        "connect.budget: 10s -> 20s",
        "queue: off -> on",
        "queue.max_wait: - -> 1m 30s",
        "queue.max_waiting: - -> 1000",
        "queue.order: - -> fifo",
        "queue.client_fin: - -> wait",
        "hash.key: off -> source",
        "hash.header: - -> none",
        "hash.prefix_ipv4: - -> 32",
        "hash.prefix_ipv6: - -> 64",
        "hash.table_size: - -> 65537",
        "hash.max_load: - -> 1.25",
        "health.probe: tcp -> http",
        "health.http.method: - -> GET",
        "health.http.path: - -> /a?b",
        "health.http.host: - -> default",
        "health.http.headers: - -> (not shown)",
        "health.http.status: - -> [200-399]",
        "health.http.body: - -> any",
        "health.http.max_bytes: - -> 64KiB",
        "weight: 1 -> 5",
    ];
    assert_eq!(lines(&from, &to), there);
    assert_eq!(Diff::of(&from, &to).needs_new_process(), ["runtime.workers"]);
}

#[test]
fn a_secret_that_is_another_one_is_a_change_that_tells_neither() {
    let web = |token: &str, path: &str| {
        with(&format!(
            "[pools.web]\nbackends = [\"10.0.0.1:80\"]\n[pools.web.health]\nprobe = \"http\"\n\
             [pools.web.health.http]\npath = \"{path}\"\nheaders = {{ authorization = \"{token}\" }}"
        ))
    };
    let hidden = "health.http.headers: (not shown) -> (not shown)";
    assert_eq!(lines(&web("s3cret", "/"), &web("s3cret", "/")), [] as [&str; 0]);
    assert_eq!(lines(&web("s3cret", "/"), &web("secr3t", "/")), [hidden]);
    assert_eq!(lines(&web("s3cret", "/"), &web("secr3t", "/b")), ["health.http.path: / -> /b", hidden]);
}

#[test]
fn long_lists_differ_also_where_they_are_not_listed() {
    let with_denied = |last: usize| {
        let networks: Vec<_> = (0..30).chain([last]).map(|number| format!("\"10.0.{number}.0/24\"")).collect();
        let deny = format!("listeners.web.deny = [{}]", networks.join(", "));
        read(&format!(
            "listeners.web.bind = \"127.0.0.1:80\"\nlisteners.web.pool = \"web\"\n{deny}\npools.web.backends = [\"10.0.0.1:80\"]"
        ))
    };
    let lines = lines(&with_denied(40), &with_denied(41));
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let (from, to) = line.split_once(" -> ").unwrap();
    assert!(from.starts_with("deny: [10.0.0.0/24, ") && from.contains("10.0.15.0/24, and 15 more (content "), "{line}");
    assert_ne!(from.trim_start_matches("deny: "), to);
}

#[test]
fn backends_and_rules_are_told_apart_by_what_they_are_called() {
    let from =
        with("pools.web.backends = [\"10.0.0.1:80\", { address = \"10.0.0.2:80\", name = \"b\" }, \"10.0.0.3:80\"]");
    let to =
        with("pools.web.backends = [\"10.0.0.3:80\", \"10.0.0.1:80\", { address = \"10.0.0.2:80\", name = \"c\" }]");
    let diff = Diff::of(&from, &to);
    let backends = &diff.backends["web"];
    assert!(backends.is_reordered);
    let ids = |members: &[&Member]| members.iter().map(|member| member.id().into_owned()).collect::<Vec<_>>();
    assert_eq!(ids(&backends.removed), ["b (10.0.0.2:80)"]);
    assert_eq!(ids(&backends.added), ["c (10.0.0.2:80)"]);
    assert_eq!(backends.order.as_deref().unwrap(), ["10.0.0.3:80", "10.0.0.1:80", "c (10.0.0.2:80)"]);
    assert!(diff.pools.is_empty() && diff.listeners.is_empty() && changes(&diff).is_empty());
}
