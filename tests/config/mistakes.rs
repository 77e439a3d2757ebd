//! What is said about the process's keys, listeners and their addresses, in tables: a wrong config, the exact lines.

use super::{Case, assert_said, said, with_listener, with_top};

#[test]
fn mistakes_of_the_process() {
    let cases: &[Case] = &[
        ("runtime.workers = 0", &["6:19: runtime.workers: 0 is out of range; use 1 to 1024"]),
        ("runtime.workers = 1025", &["6:19: runtime.workers: 1025 is out of range; use 1 to 1024"]),
        ("runtime.workers = -1", &["6:19: runtime.workers: -1 is out of range; use 1 to 1024"]),
        ("runtime.workers = 1.5", &["6:19: runtime.workers: 1.5 is a float, but an integer is wanted; use 1 to 1024"]),
        (
            "runtime.workers = \"4\"",
            &["6:19: runtime.workers: \"4\" is a string, but an integer is wanted; leave out the quotes"],
        ),
        (
            "runtime.max_connections = 99999999999999999999999999999999999999999999",
            &["6:27: runtime.max_connections: 99999999999999999999999999999999999999999999 is out of range; use 1 to \
               100000000"],
        ),
        ("runtime.drain_timeout = 60", &["6:25: runtime.drain_timeout: 60 has no unit; write \"60s\""]),
        ("runtime.drain_timeout = \"60\"", &["6:25: runtime.drain_timeout: \"60\" has no unit; write \"60s\""]),
        ("runtime.lame_duck = true", &["6:21: runtime.lame_duck: true is a boolean, but a duration is wanted"]),
        ("runtime.lame_duck = \"2y\"", &["6:21: runtime.lame_duck: \"2y\" is out of range; use 0s to 366d"]),
        (
            "runtime.lame_duck = \"a while\"",
            &["6:21: runtime.lame_duck: \"a while\" is not a duration; write a number and a unit, such as \"250ms\", \
               \"5s\", \"10m\" or \"1h\""],
        ),
        (
            "runtime.relay = \"slice\"",
            &["6:17: runtime.relay: \"slice\" is not known here; use \"auto\", \"copy\" or \"splice\""],
        ),
        (
            "runtime.relay = true",
            &["6:17: runtime.relay: true is a boolean, but a string is wanted; use \"auto\", \"copy\" or \"splice\""],
        ),
        ("runtime = 1", &["6:11: runtime: 1 is an integer, but a table is wanted"]),
        (
            "runtime.state_file = \"state.json\"",
            &["6:22: runtime.state_file: \"state.json\" is no place for state; use \"off\" or the absolute path of a \
               file, such as \"/var/lib/tidegate/state.json\""],
        ),
        ("[[runtime]]", &["6:1: runtime: this is a list, but a table is wanted"]),
        ("runtime.lame_duck = 2026-01-01", &["6:21: runtime.lame_duck: this is a date, but a duration is wanted"]),
        ("runtime.worker = 4", &["6:9: runtime.worker: unknown key; did you mean \"workers\"?"]),
        (
            "runtime.tuning = 4",
            &["6:9: runtime.tuning: unknown key; the keys here are workers, max_connections, drain_timeout, \
               drain_spread, lame_duck, relay, memory_high, retired_timeout, state_file, watch, user, group, keep_capabilities, landlock"],
        ),
        ("listener.a.bind = 1", &["6:1: listener: unknown key; did you mean \"listeners\"?"]),
        ("sinks = 1", &["6:1: sinks: unknown key; the keys here are runtime, admin, log, limits, listeners, pools"]),
        (
            "\"\\u001b[2J\" = 1",
            &["6:1: \"\\u{1b}[2J\": unknown key; the keys here are runtime, admin, log, limits, listeners, pools"],
        ),
        (
            "admin.listen = \"0.0.0.0:9900\"",
            &[
                "6:16: admin.listen: 0.0.0.0:9900 can be reached from other machines; add a token_file, or use a loopback \
               address such as 127.0.0.1:9900, or unix:/run/tidegate/admin.sock",
            ],
        ),
        ("admin.listen = \"of\"", &["6:16: admin.listen: \"of\" has no port; write \"of:80\""]),
        ("admin.listen = false", &["6:16: admin.listen: false is a boolean, but a string is wanted"]),
        (
            "log.level = \"loud\"",
            &["6:13: log.level: \"loud\" is not known here; use \"error\", \"warn\", \"info\", \"debug\" or \"trace\""],
        ),
        ("log.format = \"xml\"", &["6:14: log.format: \"xml\" is not known here; use \"text\" or \"json\""]),
        (
            "log.access = \"access.log\"",
            &["6:14: log.access: \"access.log\" is no place for a log; use \"off\", \"stdout\", \"stderr\" or the \
               absolute path of a file"],
        ),
    ];
    for (top, expected) in cases {
        assert_said(&with_top(top), expected);
    }
}

#[test]
fn mistakes_of_listeners() {
    let name = "use up to 128 letters, digits, _ . and -";
    let long = "n".repeat(129);
    let cases: &[Case] = &[
        ("pool = \"web\"", &["3:1: listeners.web: bind is missing; write bind = \"0.0.0.0:8080\""]),
        ("bind = \"[::]:80\"", &["3:1: listeners.web: pool is missing; write pool = \"web\""]),
        (
            "bind = []\npool = \"web\"",
            &["4:8: listeners.web.bind: the list is empty; name at least one address, such as \"0.0.0.0:8080\""],
        ),
        (
            "bind = 80\npool = \"web\"",
            &["4:8: listeners.web.bind: 80 is an integer, but a string is wanted; write \"80\""],
        ),
        (
            "bind = [\"[::]:80\", 81]\npool = \"web\"",
            &["4:20: listeners.web.bind[1]: 81 is an integer, but a string is wanted; write \"81\""],
        ),
        (
            "bind = [81]\npool = \"web\"",
            &["4:9: listeners.web.bind[0]: 81 is an integer, but a string is wanted; write \"81\""],
        ),
        (
            "bind = [81, \"[::]:80\", \"[::]:80\"]\npool = \"web\"",
            &[
                "4:9: listeners.web.bind[0]: 81 is an integer, but a string is wanted; write \"81\"",
                "4:24: listeners.web.bind[2]: [::]:80 overlaps [::]:80, which is listeners.web.bind[1] on line 4; use \
                 another port or address",
            ],
        ),
        (
            "bind = \"80\"\npool = \"web\"",
            &[
                "4:8: listeners.web.bind: \"80\" has no address; write \"[::]:80\" for every address or \"0.0.0.0:80\" for \
               those of IPv4",
            ],
        ),
        (
            "bind = \"[::]:65536\"\npool = \"web\"",
            &["4:8: listeners.web.bind: port 65536 is not a port; use 1 to 65535, or 0 to let the kernel choose"],
        ),
        (
            "bind = \"[::]:80\"\npool = \"wbe\"",
            &[
                "1:8: pools.web: warning: no listener leads to this pool; remove it, or name it in a listener",
                "5:8: listeners.web.pool: there is no pool \"wbe\"; did you mean \"web\"?",
            ],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\nbacklog = 0",
            &["6:11: listeners.web.backlog: 0 is out of range; use 1 to 1048576"],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\nidle_timeout = \"0s\"\nkeepalive = \"on\"",
            &[
                "6:16: listeners.web.idle_timeout: \"0s\" is out of range; use 1ms to 366d",
                "7:13: listeners.web.keepalive: \"on\" is not a duration; write a number and a unit, such as \"250ms\", \
                 \"5s\", \"10m\" or \"1h\"",
            ],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\nkeepalive = \"10ms\"",
            &["6:13: listeners.web.keepalive: \"10ms\" is out of range; use 1s to 9h 6m 7s"],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\nidle_timeout = \"5s\"\nhalf_close_timeout = \"10s\"",
            &[
                "7:22: listeners.web.half_close_timeout: warning: 10s has no effect beside the idle_timeout of 5s; make it \
               shorter",
            ],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\nidle_timout = \"1s\"",
            &["6:1: listeners.web.idle_timout: unknown key; did you mean \"idle_timeout\"?"],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\n[listeners.web.tls]",
            &["6:16: listeners.web.tls: unknown key; the keys here are bind, pool, backlog, idle_timeout, \
               half_close_timeout, keepalive, max_connections, max_connections_per_client, accept_rate, burst, \
               accept_rate_per_client, burst_per_client, client_prefix_ipv4, client_prefix_ipv6, max_clients, limits, \
               reserved_connections, allow, deny, overload, dry_run, rate_to_client, rate_to_backend, rate_burst, socket, \
               accept_proxy_protocol, preread_timeout, preread_bytes, preread_timeout_pool, preread_failed, routes; a name \
               with a dot needs quotes"],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\n[listeners.\"a b\"]\nbind = \"[::]:81\"\npool = \"web\"",
            &[&format!("6:12: listeners.\"a b\": \"a b\" is not a name; {name}")],
        ),
        (
            "bind = \"[::]:80\"\npool = \"web\"\n[listeners.\"\"]\nbind = \"[::]:81\"\npool = \"web\"",
            &[&format!("6:12: listeners.\"\": the name is empty; {name}")],
        ),
        (
            &format!("bind = \"[::]:80\"\npool = \"web\"\n[listeners.{long}]\nbind = \"[::]:81\"\npool = \"web\""),
            &[&format!("6:12: listeners.{}…: the name has 129 bytes; {name}", &long[..100])],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_listener(keys), expected);
    }
}

#[test]
fn addresses_that_get_into_each_others_way() {
    let first = "which is listeners.web.bind[0] on line 2";
    let another = "use another port or address";
    let wildcard = "a wildcard takes connections to every address; use another port";
    let both = "[::] takes IPv4 connections too; use another port";
    let circle = |at| {
        let message = format!("2:9: listeners.web.bind[0]: the listener's own pool web leads back to it at {at}");
        format!("{message}; connections would go round; use another address")
    };
    let second = |column, message: &str| format!("2:{column}: listeners.web.bind[1]: {message}");
    let cases: &[(&str, &[String])] = &[
        (r#""127.0.0.1:80", "127.0.0.2:80", "[::1]:80", "127.0.0.1:0", "127.0.0.1:0""#, &[]),
        (
            r#""127.0.0.1:80", "127.0.0.1:80""#,
            &[second(25, &format!("127.0.0.1:80 overlaps 127.0.0.1:80, {first}; {another}"))],
        ),
        (
            r#""127.0.0.1:80", "0.0.0.0:80""#,
            &[second(25, &format!("0.0.0.0:80 overlaps 127.0.0.1:80, {first}; {wildcard}"))],
        ),
        (r#""[::]:80", "[::1]:80""#, &[second(20, &format!("[::1]:80 overlaps [::]:80, {first}; {wildcard}"))]),
        (r#""[::1]:80", "[::]:80""#, &[second(21, &format!("[::]:80 overlaps [::1]:80, {first}; {wildcard}"))]),
        (r#""[::]:80", "127.0.0.1:80""#, &[second(20, &format!("127.0.0.1:80 overlaps [::]:80, {first}; {both}"))]),
        (r#""127.0.0.1:80", "[::]:80""#, &[second(25, &format!("[::]:80 overlaps 127.0.0.1:80, {first}; {both}"))]),
        (
            r#""0.0.0.0:80", "[::]:80""#,
            &[second(
                23,
                &format!(
                    "[::]:80 overlaps 0.0.0.0:80, {first}; [::] takes IPv4 connections too, so keep only that one"
                ),
            )],
        ),
        (r#""0.0.0.0:80", "[::1]:80""#, &[]),
        (
            r#""unix:/run/a", "unix:/run//a""#,
            &[second(24, &format!("unix:/run//a overlaps unix:/run//a, {first}; {another}"))],
        ),
        (
            r#""0.0.0.0:9900""#,
            &[format!(
                "2:9: listeners.web.bind[0]: 0.0.0.0:9900 overlaps 127.0.0.1:9900, which is the default of \
                 admin.listen; {wildcard}"
            )],
        ),
        (r#""10.9.9.9:1""#, &[circle("10.9.9.9:1")]),
        (r#""0.0.0.0:2""#, &[circle("127.0.0.1:2")]),
        (r#""[::]:3""#, &[circle("[::1]:3")]),
        (r#""0.0.0.0:3""#, &[]),
        (r#""unix:/own""#, &[circle("unix:/own")]),
    ];
    for (binds, expected) in cases {
        let pool = "[pools.web]\nbackends = [\"10.9.9.9:1\", \"127.0.0.1:2\", \"[::1]:3\", \"unix:/own\"]";
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        assert_said(&format!("[listeners.web]\nbind = [{binds}]\npool = \"web\"\n{pool}"), &expected);
    }
}

#[test]
fn listeners_and_admin_get_into_each_others_way() {
    assert_said(
        "[listeners.a]\nbind = \"[::1]:80\"\npool = \"p\"\n[admin]\nlisten = \"[::1]:81\"\n[listeners.b]\n\
         bind = [\"[::1]:81\", \"[::1]:80\"]\npool = \"p\"\n[pools.p]\nbackends = [\"a:1\"]",
        &[
            "7:9: listeners.b.bind[0]: [::1]:81 overlaps [::1]:81, which is admin.listen on line 5; use another port or \
             address",
            "7:21: listeners.b.bind[1]: [::1]:80 overlaps [::1]:80, which is listeners.a.bind on line 2; use another port \
             or address",
        ],
    );
    assert_said(&with_listener("bind = \"127.0.0.1:9900\"\npool = \"web\"\n[admin]\nlisten = \"off\""), &[]);
}

#[test]
fn there_must_be_a_listener_and_its_pool() {
    let hint = "add [listeners.NAME] with bind and pool";
    assert_said("", &[&format!("1:1: listeners: the file is empty; {hint}")]);
    assert_said(" \n\n", &[&format!("1:1: listeners: the file is empty; {hint}")]);
    assert_said("# nothing\n", &[&format!("1:1: listeners: there is no listener; {hint}")]);
    assert_said("[runtime]\n[listeners]\n", &[&format!("2:1: listeners: there is no listener; {hint}")]);
    assert_said("listeners = []", &["1:13: listeners: this is a list, but a table is wanted"]);
    assert_said("[listeners]\na = 1\n", &["2:5: listeners.a: 1 is an integer, but a table is wanted"]);
    assert_said(
        "[listeners.a]\nbind = \"[::]:1\"\npool = \"web\"",
        &["3:8: listeners.a.pool: there is no pool \"web\"; add [pools.web]"],
    );
    assert_said(
        "pools = 1\n[listeners.a]\nbind = \"[::]:1\"\npool = \"web\"",
        &["1:9: pools: 1 is an integer, but a table is wanted"],
    );
}

#[test]
fn everything_is_said_at_once_and_in_order() {
    let lines = said(
        r#"[runtime]
workers = 0
drain_timout = "60s"
[listeners.web]
bind = ["0.0.0.0:8080", "[::]:8080"]
pool = "wbe"
idle_timeout = 10
[listeners.db]
bind = "0.0.0.0:8080"
pool = "db"
[pools.web]
backends = ["10.0.0.1:80", { address = "10.0.0.2:65536", weight = 0 }, "10.0.0.1:80", "10.0.0.3:0"]
health.timeout = "1m"
[pools.db]
"#,
    );
    let places = lines.iter().map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(": "));
    let expected = [
        "lb.toml:2:11: runtime.workers",
        "lb.toml:3:1: runtime.drain_timout",
        "lb.toml:5:25: listeners.web.bind[1]",
        "lb.toml:6:8: listeners.web.pool",
        "lb.toml:7:16: listeners.web.idle_timeout",
        "lb.toml:9:8: listeners.db.bind",
        "lb.toml:11:8: pools.web",
        "lb.toml:12:40: pools.web.backends[1].address",
        "lb.toml:12:67: pools.web.backends[1].weight",
        "lb.toml:12:72: pools.web.backends[2]",
        "lb.toml:12:87: pools.web.backends[3]",
        "lb.toml:13:18: pools.web.health.timeout",
        "lb.toml:14:1: pools.db",
    ];
    assert_eq!(places.collect::<Vec<_>>(), expected);
}
