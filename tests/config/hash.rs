//! Stickiness: what the keys of `[pools.NAME.hash]` mean, and what is said about those that are wrong or do nothing.

use super::{Case, assert_said, good, with_pool};
use tidegate::config::{Balance, ClientPrefix, Hash, HashKey};

const POOL: &str = "backends = [\"10.0.0.1:80\"]\nbalance = \"source_hash\"\n";

/// The table's keys begin at line 8.
fn with_hash(keys: &str) -> String {
    with_pool(&format!("{POOL}[pools.web.hash]\n{keys}"))
}

fn hash(text: &str) -> Hash {
    good(text).pools[0].hash.clone().expect("it goes by a hash")
}

#[test]
fn a_pool_goes_by_a_hash_if_its_policy_says_so() {
    let config = good(&with_pool(POOL));
    assert_eq!((&config.pools[0].balance, config.pools[0].balance.as_str()), (&Balance::SourceHash, "source_hash"));
    let prefix = ClientPrefix { ipv4: 32, ipv6: 64 };
    let default = Hash { key: HashKey::Source, prefix, table_size: 65_537, max_load: Some(1.25) };
    assert_eq!(hash(&with_pool(POOL)), default);
    assert_eq!(hash(&with_hash("")), default);
    assert_eq!(good(&with_pool("backends = [\"10.0.0.1:80\"]")).pools[0].hash, None);
}

#[test]
fn its_keys_mean_what_they_say() {
    let given = hash(&with_hash(
        "key = \"http_header\"\nheader = \"X-Tenant\"\nprefix_ipv4 = 24\nprefix_ipv6 = 48\ntable_size = 251\nmax_load = 2",
    ));
    let prefix = ClientPrefix { ipv4: 24, ipv6: 48 };
    let key = HashKey::HttpHeader("X-Tenant".into());
    assert_eq!(given, Hash { key, prefix, table_size: 251, max_load: Some(2.0) });
    for (word, key) in [
        ("source", HashKey::Source),
        ("sni", HashKey::Sni),
        ("http_host", HashKey::HttpHost),
        ("http_path", HashKey::HttpPath),
    ] {
        assert_eq!(hash(&with_hash(&format!("key = \"{word}\""))).key, key);
    }
    for (text, load) in [("\"off\"", None), ("1.001", Some(1.001)), ("10", Some(10.0)), ("1_0.0", Some(10.0))] {
        assert_eq!(hash(&with_hash(&format!("max_load = {text}"))).max_load, load, "{text}");
    }
}

#[test]
fn mistakes_of_hashes() {
    let max_load = "use more than 1, up to 10, or \"off\"";
    let range = |load: &str| format!("8:12: pools.web.hash.max_load: {load} is out of range; {max_load}");
    for load in ["1.0", "1", "0.5", "-2.5", "10.01", "11", "inf", "nan"] {
        assert_said(&with_hash(&format!("max_load = {load}")), &[&range(load)]);
    }
    let cases: &[Case] = &[
        (
            "max_load = \"1.25\"",
            &[
                "8:12: pools.web.hash.max_load: \"1.25\" is a string, but a number is wanted; use more than 1, up to 10, \
               or \"off\"",
            ],
        ),
        (
            "key = \"host\"",
            &["8:7: pools.web.hash.key: \"host\" is not known here; use \"source\", \"sni\", \"http_host\", \
               \"http_path\" or \"http_header\""],
        ),
        ("key = \"http_header\"", &["8:7: pools.web.hash.key: nothing says which header; write header = \"X-Tenant\""]),
        (
            "key = \"http_header\"\nheader = \"X Tenant:\"",
            &["9:10: pools.web.hash.header: \"X Tenant:\" is no name of a header; use letters, digits and -, as in \
               \"X-Tenant\""],
        ),
        (
            "key = \"sni\"\nheader = \"X-Tenant\"",
            &[
                "9:10: pools.web.hash.header: warning: this has no effect without key = \"http_header\"; write that, or \
               remove this",
            ],
        ),
        ("table_size = 65536", &["8:14: pools.web.hash.table_size: 65536 is no prime; use 65521 or 65537"]),
        ("table_size = 252", &["8:14: pools.web.hash.table_size: 252 is no prime; use 251 or 257"]),
        ("table_size = 5000000", &["8:14: pools.web.hash.table_size: 5000000 is no prime; use 4999999 or 5000011"]),
        ("table_size = 250", &["8:14: pools.web.hash.table_size: 250 is out of range; use 251 to 5000011"]),
        (
            "prefix_ipv4 = 33\nprefix_ipv6 = 0",
            &[
                "8:15: pools.web.hash.prefix_ipv4: 33 is out of range; use 1 to 32",
                "9:15: pools.web.hash.prefix_ipv6: 0 is out of range; use 1 to 128",
            ],
        ),
        ("size = 1009", &["8:1: pools.web.hash.size: unknown key; did you mean \"table_size\"?"]),
    ];
    for (keys, expected) in cases {
        assert_said(&with_hash(keys), expected);
    }
}

#[test]
fn what_has_no_effect_is_said() {
    let cases: &[Case] = &[
        (
            "backends = [\"a:1\"]\nhash.max_load = \"off\"",
            &["6:1: pools.web.hash: warning: this has no effect with balance = \"round_robin\"; write balance = \
               \"source_hash\", or remove this"],
        ),
        (
            "target = \"failover:(tcp://a:1|tcp://b:1)\"\nhash = {}",
            &["6:8: pools.web.hash: warning: this has no effect with a target; write balance = \"source_hash\", or \
               remove this"],
        ),
        (
            "backends = [\"a:1\"]\nbalance = \"sourcehash\"\nhash = {}",
            &["6:11: pools.web.balance: \"sourcehash\" is not known here; use \"round_robin\", \"random\", \
               \"least_connections\", \"power_of_two\", \"peak_ewma\" or \"source_hash\""],
        ),
        (
            "backends = [\"a:1\"]\nbalance = \"source_hash\"\nrebalance = \"10%\"",
            &[
                "7:13: pools.web.rebalance: warning: clients that are ended come back to the same backend with balance = \
               \"source_hash\"; remove this; hash.max_load keeps a backend from having too many",
            ],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_pool(keys), expected);
    }
}

#[test]
fn too_few_places_are_said() {
    let list: Vec<String> = (1..=50).map(|index| format!("\"a{index}:1\"")).collect();
    let pool = |keys: &str| with_pool(&format!("backends = [{}]\nbalance = \"source_hash\"\n{keys}", list.join(", ")));
    assert_said(
        &pool("hash.table_size = 251"),
        &[
            "7:19: pools.web.hash.table_size: warning: 251 places give a backend of weight 1 only 5.0, so that its share \
           is rough; use a table_size of 503 or more",
        ],
    );
    assert_said(&pool("hash.table_size = 503"), &[]);
    let list: Vec<String> = (1..=100).map(|index| format!("{{ address = \"a{index}:1\", weight = 256 }}")).collect();
    let light = format!("balance = \"source_hash\"\nbackends = [\"b:1\", {}]", list.join(", "));
    assert_said(
        &with_pool(&light),
        &[
            "4:1: pools.web.hash: warning: 65537 places give a backend of weight 1 only 2.6, so that its share is rough; \
           use a table_size of 256019 or more",
        ],
    );
}
