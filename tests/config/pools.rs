//! What is said about pools, their backends and targets, in tables: a wrong config, the exact lines.

use super::{Case, assert_said, with_pool};

#[test]
fn mistakes_of_pools() {
    let cases: &[Case] = &[
        (
            "",
            &[
                "4:1: pools.web: the pool has neither backends nor a target; write backends = [\"10.0.0.1:80\"] or target = \
               \"failover:(tcp://a:1|tcp://b:2)\"",
            ],
        ),
        (
            "backends = []",
            &[
                "5:12: pools.web.backends: warning: the list is empty, so that every connection to this pool is refused; \
               add a backend",
            ],
        ),
        (
            "backends = [\"a:1\"]\ntarget = \"tcp://a:1\"",
            &["6:10: pools.web.target: a pool has either backends or a target; remove one of the two"],
        ),
        (
            "balance = \"random\"\ntarget = \"tcp://a:1\"",
            &["5:11: pools.web.balance: a target says itself how to choose; remove balance"],
        ),
        (
            "balance = \"rr\"\nbackends = [\"a:1\"]",
            &["5:11: pools.web.balance: \"rr\" is not known here; use \"round_robin\", \"random\", \
               \"least_connections\", \"power_of_two\", \"peak_ewma\" or \"source_hash\""],
        ),
        (
            "balance = \"failover\"\nbackends = [\"a:1\"]",
            &["5:11: pools.web.balance: \"failover\" is not known here; write target = \
               \"failover:(tcp://a:1|tcp://b:2)\" instead of balance and backends"],
        ),
        (
            "backends = \"a:1\"",
            &["5:12: pools.web.backends: \"a:1\" is a string, but a list is wanted; write [\"a:1\"]"],
        ),
        (
            "backends = [80]",
            &["5:13: pools.web.backends[0]: 80 is an integer, but a backend is wanted; write \"10.0.0.1:80\" or \
               { address = \"10.0.0.1:80\", weight = 2 }"],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_pool(keys), expected);
    }
}

#[test]
fn mistakes_of_backends() {
    let cases: &[Case] = &[
        (
            "backends = [\n  \"a:1\",\n  \"b:2\",\n\t\"10.0.0.3:0\",\n]",
            &["8:2: pools.web.backends[2]: port 0 is not a port; use 1 to 65535"],
        ),
        (
            "backends = [\"a:65536\", { address = \"b\" }]",
            &[
                "5:13: pools.web.backends[0]: port 65536 is not a port; use 1 to 65535",
                "5:36: pools.web.backends[1].address: \"b\" has no port; write \"b:80\"",
            ],
        ),
        (
            "backends = [{ address = \"a:1\", weight = 0 }, { address = \"b:1\", weight = 257 }]",
            &[
                "5:41: pools.web.backends[0].weight: 0 is out of range; use 1 to 256",
                "5:74: pools.web.backends[1].weight: 257 is out of range; use 1 to 256",
            ],
        ),
        (
            "backends = [{ weight = 2 }, { addr = \"a:1\", address = 5 }]",
            &[
                "5:13: pools.web.backends[0]: address is missing; write address = \"10.0.0.1:80\"",
                "5:31: pools.web.backends[1].addr: unknown key; did you mean \"address\"?",
                "5:55: pools.web.backends[1].address: 5 is an integer, but a string is wanted; write \"5\"",
            ],
        ),
        (
            "[[pools.web.backends]]\naddress = \"a:1\"\n[[pools.web.backends]]\nadress = \"b:1\"",
            &[
                "7:1: pools.web.backends[1]: address is missing; write address = \"10.0.0.1:80\"",
                "8:1: pools.web.backends[1].adress: unknown key; did you mean \"address\"?",
            ],
        ),
        (
            "backends = [\n\"10.0.0.1:80\",\n\"[::ffff:10.0.0.1]:80\",\n\"A:1\",\n\"a:1\",\n\"unix:/r/a\",\n\"unix:///r//a\"]",
            &[
                "7:1: pools.web.backends[1]: 10.0.0.1:80 is in this pool already, on line 6; remove one; a larger share \
                 is a matter of weight",
                "9:1: pools.web.backends[3]: a:1 is in this pool already, on line 8; remove one; a larger share is a \
                 matter of weight",
                "11:1: pools.web.backends[5]: unix:/r//a is in this pool already, on line 10; remove one; a larger share \
                 is a matter of weight",
            ],
        ),
        (
            "backends = [\n{ address = \"a:1\", name = \"x\" },\n{ address = \"b:1\", name = \"x\" },\n\"c:1\",\n\
             { address = \"d:1\", name = \"c:1\" }]",
            &[
                "7:27: pools.web.backends[1].name: the backend on line 6 is called \"x\" already; use another name",
                "9:27: pools.web.backends[3].name: the backend on line 8 is called \"c:1\" already; use another name",
            ],
        ),
        (
            "backends = [{ address = \"a:1\", name = \"\" }, { address = \"b:1\", name = \"x\\u001b[1m\\n\" }]",
            &[
                "5:39: pools.web.backends[0].name: the name is empty; use up to 128 bytes of printable text",
                "5:71: pools.web.backends[1].name: \"x\\u{1b}[1m\\n\" holds characters that can't be seen; use up to 128 \
                 bytes of printable text",
            ],
        ),
        (
            "backends = [{ address = \"a:1\", name = \"..\" }, { address = \"b:1\", name = \".\" }]",
            &[
                "5:39: pools.web.backends[0].name: \"..\" is not a name; use up to 128 bytes of printable text",
                "5:73: pools.web.backends[1].name: \".\" is not a name; use up to 128 bytes of printable text",
            ],
        ),
        (
            "backend = [\"a:1\"]",
            &[
                "4:1: pools.web: the pool has neither backends nor a target; write backends = [\"10.0.0.1:80\"] or target \
                 = \"failover:(tcp://a:1|tcp://b:2)\"",
                "5:1: pools.web.backend: unknown key; did you mean \"backends\"?",
            ],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_pool(keys), expected);
    }
}

#[test]
fn mistakes_of_targets() {
    let cases: &[Case] = &[
        ("\"a:1\"", &["5:11: pools.web.target: \"a:1\" is not a target; write tcp://a:1"]),
        (
            "\"failover:(tcp://a:0|http://b|tcp://c:1)\"",
            &[
                "5:21: pools.web.target: port 0 is not a port; use 1 to 65535",
                "5:31: pools.web.target: \"http://b\" is not a target; write it as in tcp://10.0.0.1:80 or \
                 unix:/run/app.sock",
            ],
        ),
        (
            "\"failover:(tcp://a:1|failover:(tcp://b:1|tcp://A:1))\"",
            &[
                "5:51: pools.web.target: a:1 is in this pool already, on line 5; remove one; a larger share is a matter of \
               weight",
            ],
        ),
        ("\"failover:(tcp://a:1\"", &["5:20: pools.web.target: this parenthesis is not closed; put the missing \")\""]),
        (
            "'failover:(tcp://a:1|)'",
            &[
                "5:31: pools.web.target: a target is missing here; write it as in tcp://10.0.0.1:80 or unix:/run/app.sock",
            ],
        ),
        // Where the text isn't in the file as it is, the whole value is the place.
        ("\"\\u0074cp://a:0\"", &["5:10: pools.web.target: port 0 is not a port; use 1 to 65535"]),
        ("7", &["5:10: pools.web.target: 7 is an integer, but a string is wanted; write \"7\""]),
    ];
    for (target, expected) in cases {
        assert_said(&with_pool(&format!("target = {target}")), expected);
    }
}

#[test]
fn mistakes_of_what_protects() {
    let cases: &[Case] = &[
        (
            "panic_threshold = 50\nmin_available = 0\nslow_start = \"off\"",
            &[
                "6:19: pools.web.panic_threshold: 50 has no sign; write \"50%\"",
                "7:17: pools.web.min_available: 0 is out of range; use 1 to 65535",
                "8:14: pools.web.slow_start: \"off\" is not a duration; write a number and a unit, such as \"250ms\", \
                 \"5s\", \"10m\" or \"1h\"",
            ],
        ),
        (
            "replay = \"2MiB\"\non_down = \"kill\"\nrebalance = \"5\"",
            &[
                "6:10: pools.web.replay: \"2MiB\" is out of range; use 1B to 1MiB",
                "7:11: pools.web.on_down: \"kill\" is not known here; use \"keep\" or \"reset\"",
                "8:13: pools.web.rebalance: \"5\" is not a share; write \"5%\"",
            ],
        ),
        (
            "connect.hedge_after = \"5s\"",
            &[
                "6:23: pools.web.connect.hedge_after: 5s is not shorter than the time-out of an attempt; make it shorter, \
                 or timeout longer",
            ],
        ),
        (
            "ejection = { base_time = \"10m\", consecutive_failures = 0 }",
            &[
                "6:26: pools.web.ejection.base_time: 10m is longer than the default max_time of 5m; make it shorter, or \
                 max_time longer",
                "6:56: pools.web.ejection.consecutive_failures: 0 is out of range; use 1 to 1000",
            ],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_pool(&format!("backends = [\"a:1\"]\n{keys}")), expected);
    }
    let backends =
        "backends = [\"a:1\", { address = \"b:1\", backup = true, tier = 2 }, { address = \"c:1\", backup = 1 }]";
    assert_said(
        &with_pool(backends),
        &[
            "5:48: pools.web.backends[1].backup: the backend is in tier 2 already; remove one of the two",
            "5:94: pools.web.backends[2].backup: 1 is an integer, but a boolean is wanted; write true or false",
        ],
    );
}

#[test]
fn mistakes_of_connect_and_health() {
    let no_effect = "warning: this has no effect with probe = \"none\"; remove it";
    let cases: &[Case] = &[
        (
            "connect.timeout = \"11s\"",
            &[
                "6:19: pools.web.connect.timeout: 11s is longer than the default budget of 10s; make it shorter, or budget \
               longer",
            ],
        ),
        (
            "connect.timeout = \"3s\"\nconnect.budget = \"2s\"",
            &["6:19: pools.web.connect.timeout: 3s is longer than the budget of 2s; make it shorter, or budget longer"],
        ),
        (
            "connect.timeout = \"11s\"\nconnect.budget = 2",
            &["7:18: pools.web.connect.budget: 2 has no unit; write \"2s\""],
        ),
        ("connect.timeout = \"0s\"", &["6:19: pools.web.connect.timeout: \"0s\" is out of range; use 1ms to 366d"]),
        ("connect.attempts = 17", &["6:20: pools.web.connect.attempts: 17 is out of range; use 1 to 16"]),
        (
            "connect.retries = 1",
            &[
                "6:9: pools.web.connect.retries: unknown key; the keys here are timeout, attempts, budget, hedge_after, \
                 hedge_share, max_rate, source_address, interface, mark, transparent, fast_open, mptcp",
            ],
        ),
        (
            "health.timeout = \"3s\"",
            &[
                "6:18: pools.web.health.timeout: 3s is longer than the default interval of 2s; make it shorter, or interval \
               longer",
            ],
        ),
        (
            "health = { interval = \"1s\", timeout = \"2s\", fast_interval = \"1m\" }",
            &[
                "6:39: pools.web.health.timeout: 2s is longer than the interval of 1s; make it shorter, or interval longer",
                "6:61: pools.web.health.fast_interval: 1m is longer than the interval of 1s; make it shorter, or interval \
                 longer",
            ],
        ),
        ("health.interval = \"0s\"", &["6:19: pools.web.health.interval: \"0s\" is out of range; use 1ms to 366d"]),
        ("health.rise = 0", &["6:15: pools.web.health.rise: 0 is out of range; use 1 to 1000"]),
        ("health.fall = 1001", &["6:15: pools.web.health.fall: 1001 is out of range; use 1 to 1000"]),
        (
            "health.probe = \"ping\"",
            &[
                "6:16: pools.web.health.probe: \"ping\" is not known here; use \"tcp\", \"http\", \"tls\", \"exchange\" or \
               \"none\"",
            ],
        ),
        (
            "health.initial = \"on\"",
            &["6:18: pools.web.health.initial: \"on\" is not known here; use \"down\" or \"up\""],
        ),
        (
            "health.probe = \"none\"\nhealth.rise = 3\nhealth.timeout = \"9s\"",
            &[
                &format!("7:15: pools.web.health.rise: {no_effect}"),
                "8:18: pools.web.health.timeout: 9s is longer than the default interval of 2s; make it shorter, or \
                 interval longer",
                &format!("8:18: pools.web.health.timeout: {no_effect}"),
            ],
        ),
        ("connect = \"5s\"", &["6:11: pools.web.connect: \"5s\" is a string, but a table is wanted"]),
    ];
    for (keys, expected) in cases {
        assert_said(&with_pool(&format!("backends = [\"10.0.0.1:80\"]\n{keys}")), expected);
    }
}
