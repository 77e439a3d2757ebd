//! The keys of demand control: what they mean, and what is said about those that are wrong or do nothing.

use super::{Case, assert_said, good, with_listener, with_pool};
use std::time::Duration;
use tidegate::config::{Bandwidth, ClientFin, ClientPrefix, Order, Overflow, Overload, Rate, Shed};

const LISTENER: &str = "bind = \"127.0.0.1:0\"\npool = \"web\"\n";

fn with_keys(keys: &str) -> String {
    with_listener(&format!("{LISTENER}{keys}"))
}

fn with_backend(keys: &str) -> String {
    with_pool(&format!("backends = [\"10.0.0.1:80\"]\n{keys}"))
}

#[test]
fn limits_and_lists_mean_what_they_say() {
    let config = good(&with_keys(
        "max_connections = 10\nmax_connections_per_client = 2\naccept_rate = \"30/m\"\nburst = 3\n\
         accept_rate_per_client = \"5/s\"\nburst_per_client = 4\nclient_prefix_ipv4 = 24\nmax_clients = 100\n\
         limits = \"all\"\nreserved_connections = 7\nallow = [\"10.0.0.0/8\", \"::1\"]\ndeny = \"10.9.0.0/16\"\n\
         overload = \"wait\"\ndry_run = true\nrate_to_client = \"1MiB/s\"\nrate_burst = \"8KiB\"\n\
         [limits.all]\naccept_rate = \"10/h\"",
    ));
    let listener = &config.listeners[0];
    let limits = &listener.admission.limits;
    assert_eq!((limits.max_connections, limits.max_connections_per_client), (Some(10), Some(2)));
    assert_eq!(limits.accept_rate, Some(Rate { count: 30, per: Duration::from_secs(60) }));
    assert_eq!(limits.accept_rate_per_client, Some(Rate::per_second(5)));
    assert_eq!((limits.burst, limits.burst_per_client, limits.max_clients), (Some(3), Some(4), 100));
    assert_eq!(limits.client_prefix, ClientPrefix { ipv4: 24, ipv6: 64 });
    let admission = &listener.admission;
    assert_eq!((admission.shared[0].as_str(), admission.reserved_connections), ("all", 7));
    let shown = |list: &[tidegate::config::Cidr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        (shown(&admission.allow), shown(&admission.deny)),
        (vec!["10.0.0.0/8".to_owned(), "::1/128".to_owned()], vec!["10.9.0.0/16".to_owned()])
    );
    assert_eq!((admission.overload, admission.dry_run), (Some(Overload::Wait), true));
    assert_eq!(listener.bandwidth, Bandwidth { to_client: Some(1 << 20), to_backend: None, burst: 8 << 10 });
    let shared = config.limits[0].limits.accept_rate.unwrap();
    assert_eq!(
        (shared.to_string(), shared.interval_nanos(), shared.default_burst()),
        ("10/h".into(), 360_000_000_000, 1)
    );
}

#[test]
fn queue_shedding_and_hold_are_off_until_their_tables_are_there() {
    let pool = &good(&with_backend("")).pools[0];
    assert!(pool.queue.is_none() && pool.shed.is_none() && pool.hold.is_none());
    let pool = &good(&with_backend("backend_max_connections = 9\nqueue = {}\nhold = {}\n[pools.web.shed]")).pools[0];
    let (queue, hold) = (pool.queue.unwrap(), pool.hold.unwrap());
    assert_eq!((pool.backend_max_connections, pool.shed), (Some(9), None));
    assert_eq!((queue.max_wait, queue.max_waiting), (Duration::from_secs(5), 1_000));
    assert_eq!((queue.order, queue.client_fin), (Order::Fifo, ClientFin::Wait));
    assert_eq!((hold.max_connections, hold.max_bytes, hold.max_bytes_each), (1_000, 10 << 20, 16 << 10));
    assert_eq!((hold.max_wait, hold.overflow), (Duration::from_secs(5), Overflow::Newest));
    assert_eq!(hold.release_rate, Rate::per_second(500));
    let pool = &good(&with_pool(
        "backends = [{ address = \"10.0.0.1:80\", max_connections = 3 }]\n\
         queue = { order = \"adaptive\", client_fin = \"leave\" }\nshed.queue_time = \"100ms\"\n\
         hold = { max_bytes = \"1KiB\", overflow = \"oldest\" }",
    ))
    .pools[0];
    assert_eq!(pool.members[0].max_connections, Some(3));
    assert_eq!(pool.queue.map(|queue| (queue.order, queue.client_fin)), Some((Order::Adaptive, ClientFin::Leave)));
    let queue_time = Some(Duration::from_millis(100));
    let window = Shed::DEFAULT_WINDOW;
    assert_eq!(pool.shed, Some(Shed { connect_time: None, first_byte: None, queue_time, window, dry_run: false }));
    let hold = pool.hold.map(|hold| (hold.max_bytes, hold.max_bytes_each, hold.overflow));
    assert_eq!(hold, Some((1_024, 1_024, Overflow::Oldest)), "the default of each shrinks to what there is");
}

#[test]
fn mistakes_of_limits() {
    let cases: &[Case] = &[
        ("accept_rate = 100", &["6:15: listeners.web.accept_rate: 100 has no span; write \"100/s\""]),
        ("accept_rate = \"100\"", &["6:15: listeners.web.accept_rate: \"100\" has no span; write \"100/s\""]),
        (
            "accept_rate = \"100/d\"",
            &["6:15: listeners.web.accept_rate: \"100/d\" is not a rate; write a number and a span, such as \
                   \"100/s\", \"30/m\" or \"10/h\""],
        ),
        (
            "accept_rate = \"0/s\"",
            &["6:15: listeners.web.accept_rate: \"0/s\" is out of range; use 1 to 1000000 in a span"],
        ),
        (
            "burst = 5",
            &["6:9: listeners.web.burst: warning: this has no effect without accept_rate; add it, or remove this"],
        ),
        (
            "burst_per_client = 5",
            &["6:20: listeners.web.burst_per_client: warning: this has no effect without accept_rate_per_client; \
                   add it, or remove this"],
        ),
        ("client_prefix_ipv4 = 33", &["6:22: listeners.web.client_prefix_ipv4: 33 is out of range; use 1 to 32"]),
        (
            "client_prefix_ipv6 = 56",
            &["6:22: listeners.web.client_prefix_ipv6: warning: this has no effect without a limit per client; \
                   add one, or remove this"],
        ),
        ("max_connections = 0", &["6:19: listeners.web.max_connections: 0 is out of range; use 1 to 100000000"]),
        (
            "max_connections = 5\nreserved_connections = 6",
            &["7:24: listeners.web.reserved_connections: 6 is more than the listener's max_connections of 5; \
                   reserve less"],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_keys(keys), expected);
    }
}

#[test]
fn mistakes_of_whom_a_listener_serves_and_how_fast() {
    let cases: &[Case] = &[
        (
            "limits = \"custommers\"\n[limits.customers]\nmax_connections = 5",
            &[
                "6:10: listeners.web.limits: there is no limit \"custommers\"; did you mean \"customers\"?",
                "7:9: limits.customers: warning: no listener names this limit; remove it, or name it in a \
                   listener's limits",
            ],
        ),
        (
            "limits = [\"a\", \"a\"]\n[limits.a]",
            &[
                "6:16: listeners.web.limits[1]: warning: the same limit is named twice; remove one",
                "7:9: limits.a: warning: this limit bounds nothing; add max_connections, accept_rate, or one of \
                   them per client",
            ],
        ),
        (
            "allow = []",
            &["6:9: listeners.web.allow: the list is empty; name the networks that are served, or remove the key"],
        ),
        (
            "allow = \"10.0.0.1/8\"",
            &["6:9: listeners.web.allow: \"10.0.0.1/8\" says something behind its prefix; write \"10.0.0.0/8\", \
                   or \"10.0.0.1\" for that address alone"],
        ),
        (
            "deny = [\"10.0.0.0/8\", \"nobody\"]",
            &["6:23: listeners.web.deny[1]: \"nobody\" is not a network; write one such as \"10.0.0.0/8\" or \
                   \"2001:db8::/32\""],
        ),
        (
            "allow = \"10.0.0.0/8\"\ndeny = \"10.0.0.0/8\"",
            &["7:8: listeners.web.deny: warning: 10.0.0.0/8 is allowed as well, and denied it is; remove one"],
        ),
        (
            "overload = \"drop\"",
            &["6:12: listeners.web.overload: \"drop\" is not known here; use \"reset\", \"wait\" or \"close\""],
        ),
        (
            "dry_run = true\nreserved_connections = 5",
            &["6:11: listeners.web.dry_run: warning: this has no effect on a listener without a limit or list of its \
                   own; add one, or remove this"],
        ),
        ("dry_run = true\ndeny = \"10.0.0.0/8\"", &[]),
        (
            "rate_burst = \"8KiB\"",
            &["6:14: listeners.web.rate_burst: warning: this has no effect without rate_to_client or \
                   rate_to_backend; add one, or remove this"],
        ),
        (
            "rate_to_client = \"1MiB\"",
            &["6:18: listeners.web.rate_to_client: \"1MiB\" is no number of bytes a second; write \"1MiB/s\""],
        ),
        (
            "rate_to_client = 1000",
            &["6:18: listeners.web.rate_to_client: \"1000\" is no number of bytes a second; write \"1000B/s\""],
        ),
        (
            "rate_to_client = \"fast\"",
            &["6:18: listeners.web.rate_to_client: \"fast\" is no number of bytes a second; write one such as \
                   \"1MiB/s\""],
        ),
        (
            "rate_to_client = \"1B/s\"",
            &["6:18: listeners.web.rate_to_client: \"1B/s\" is out of range; use 1KiB/s to 1TiB/s"],
        ),
        ("rate_to_client = \"5/s\"", &["6:18: listeners.web.rate_to_client: \"5/s\" has no unit; write \"5B/s\""]),
        (
            "reserved_connections = 60\n[listeners.b]\nbind = \"127.0.0.1:0\"\npool = \"web\"\nreserved_connections \
               = 41\n[runtime]\nmax_connections = 100\nmemory_high = 80",
            &[
                "10:24: listeners.b.reserved_connections: 101 connections are reserved so far, but \
                   runtime.max_connections is 100; reserve less, or raise runtime.max_connections",
                "13:15: runtime.memory_high: 80 has no sign; write \"80%\"",
            ],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_keys(keys), expected);
    }
}

#[test]
fn mistakes_of_queue_shedding_and_hold() {
    let cases: &[Case] = &[
        (
            "queue = {}",
            &["6:9: pools.web.queue: warning: no backend has a maximum, so that nobody ever waits in the queue; \
                   add backend_max_connections, or max_connections to a backend"],
        ),
        (
            "queue = true",
            &[
                "6:9: pools.web.queue: true is a boolean, but a table is wanted; write { max_wait = ... }; the keys here \
               are max_wait, max_waiting, order, client_fin",
            ],
        ),
        (
            "queue = { order = \"random\", wait = \"5s\" }",
            &[
                "6:9: pools.web.queue: warning: no backend has a maximum, so that nobody ever waits in the queue; \
                   add backend_max_connections, or max_connections to a backend",
                "6:19: pools.web.queue.order: \"random\" is not known here; use \"fifo\", \"lifo\" or \"adaptive\"",
                "6:29: pools.web.queue.wait: unknown key; did you mean \"max_wait\"?",
            ],
        ),
        (
            "shed = { queue_time = \"1s\" }",
            &["6:23: pools.web.shed.queue_time: the pool has no queue; add the table queue, or use connect_time \
                   or first_byte"],
        ),
        (
            "backend_max_connections = 1\nqueue.max_wait = \"1s\"\nshed.queue_time = \"1s\"",
            &[
                "8:19: pools.web.shed.queue_time: warning: nobody waits for longer than queue.max_wait, so that this has \
                   no effect; choose a target well below it",
            ],
        ),
        (
            "max_connections = 20",
            &["6:1: pools.web.max_connections: unknown key; did you mean \"backend_max_connections\"?"],
        ),
        ("hold = { max_bytes = 10 }", &["6:22: pools.web.hold.max_bytes: \"10\" has no unit; write \"10B\""]),
        (
            "shed = { window = \"1s\", dry_run = true }",
            &[
                "6:19: pools.web.shed.window: warning: this has no effect without a target; add connect_time, \
                   first_byte or queue_time",
                "6:35: pools.web.shed.dry_run: warning: this has no effect without a target; add connect_time, \
                   first_byte or queue_time",
            ],
        ),
        (
            "shed = { first_byte = \"1s\", window = \"10ms\" }",
            &["6:38: pools.web.shed.window: \"10ms\" is out of range; use 50ms to 1m"],
        ),
        (
            "hold = { max_bytes = \"1KiB\", max_bytes_each = \"2KiB\" }",
            &["6:47: pools.web.hold.max_bytes_each: 2KiB is more than the 1KiB of all together; make it smaller, \
                   or max_bytes larger"],
        ),
        (
            "hold = { max_bytes_each = \"11MiB\" }",
            &["6:27: pools.web.hold.max_bytes_each: 11MiB is more than the 10MiB of all together; make it \
                   smaller, or max_bytes larger"],
        ),
        (
            "hold = { max_connections = 100, release_rate = \"10/s\" }",
            &["6:48: pools.web.hold.release_rate: warning: 100 clients released at 10/s take as long as max_wait at \
                   least: the last ones never make it; make release_rate or max_wait larger, or max_connections \
                   smaller"],
        ),
        (
            "hold = { max_wait = \"1s\" }",
            &["6:21: pools.web.hold.max_wait: warning: 1000 clients released at 500/s take as long as max_wait at \
                   least: the last ones never make it; make release_rate or max_wait larger, or max_connections \
                   smaller"],
        ),
        (
            "hold = { release_rate = \"fast\" }",
            &["6:25: pools.web.hold.release_rate: \"fast\" is not a rate; write a number and a span, such as \
                   \"100/s\", \"30/m\" or \"10/h\""],
        ),
        (
            "backend_max_connections = 0",
            &["6:27: pools.web.backend_max_connections: 0 is out of range; use 1 to 4294967295"],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_backend(keys), expected);
    }
}
