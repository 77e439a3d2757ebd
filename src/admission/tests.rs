//! Gates built from small configs: who is let in, what is counted, and that every count comes back.

use super::*;
use std::net::SocketAddr;

const SECOND: Nanos = 1_000_000_000;

/// The gates of the listeners `a` and `b`, with these lines in their tables and with what comes before those.
struct House {
    process: Arc<Process>,
    gates: [Arc<Gate>; 2],
    metrics: Arc<Metrics>,
}

impl House {
    fn new(more: &str, listeners: [&str; 2]) -> Self {
        Self::with_max(1_000, more, listeners)
    }

    fn with_max(max: usize, more: &str, [a, b]: [&str; 2]) -> Self {
        let text = format!(
            "{more}\n[listeners.a]\nbind = \"127.0.0.1:1\"\npool = \"p\"\n{a}\n[listeners.b]\nbind = \"127.0.0.1:2\"\n\
             pool = \"p\"\n{b}\n[pools.p]\nbackends = [\"127.0.0.1:3\"]\n"
        );
        let config = Config::parse("lb.toml", text.as_bytes()).unwrap_or_else(|error| panic!("{error:?}")).config;
        let metrics = Arc::new(Metrics::new().unwrap());
        let process = Arc::new(Process::new(max, Pressure::default(), &metrics));
        let shared = SharedLimits::new(&config, &metrics, None);
        let around = Around { process: &process, shared: &shared, metrics: &metrics, bounded_by_fds: false };
        let gate = |at: usize| {
            let listener = &config.listeners[at];
            Arc::new(Gate::new(&listener.name, &listener.admission, around, None))
        };
        Self { gates: [gate(0), gate(1)], process, metrics }
    }

    /// As the acceptor asks; for listener `a` or `b`.
    fn admit(&self, listener: char, address: &str, now: Nanos) -> Result<Permit, Refusal> {
        let gate = &self.gates[usize::from(listener == 'b')];
        let early = gate.before_accept(now).map_err(|full| full.why)?;
        early.admit(client(address), now)
    }

    fn samples(&self, part: &str) -> Vec<String> {
        self.gates.iter().for_each(|gate| gate.publish());
        let text = self.metrics.encode().unwrap();
        text.lines().filter(|line| !line.starts_with('#') && line.contains(part)).map(str::to_owned).collect()
    }
}

fn client(address: &str) -> ClientAddr {
    let ip: IpAddr = address.parse().unwrap();
    ClientAddr::tcp(SocketAddr::new(ip, 1))
}

#[track_caller]
fn refused(answer: Result<Permit, Refusal>, scope: Scope, bound: Bound) {
    assert_eq!(answer.err(), Some(Refusal { scope, bound }));
}

#[test]
fn without_limits_only_the_process_counts() {
    let house = House::with_max(2, "", ["", ""]);
    let held = [house.admit('a', "10.0.0.1", 1).unwrap(), house.admit('b', "10.0.0.1", 1).unwrap()];
    refused(house.admit('a', "10.0.0.1", 1), Scope::Process, Bound::Connections);
    assert!(house.gates[0].limiters().is_empty());
    let limit = r#"tidegate_limit_refusals_total{scope="process",name="",dry_run="false",reason="max_connections"} 1"#;
    assert_eq!(house.samples("refusals"), [limit]);
    assert_eq!(
        house.samples("tidegate_limit_connections"),
        [r#"tidegate_limit_connections{scope="process",name=""} 2"#]
    );
    drop(held);
    assert_eq!(house.process.active(), 0);
}

#[test]
fn each_limit_refuses_for_its_own_reason_and_comes_back() {
    let house = House::new(
        "[limits.all]\nmax_connections = 4\nmax_connections_per_client = 3",
        ["max_connections = 2\nlimits = [\"all\"]\ndeny = [\"10.9.0.0/16\"]", "limits = [\"all\"]"],
    );
    refused(house.admit('a', "10.9.1.1", 1), Scope::Listener, Bound::Access);
    assert!(house.admit('b', "10.9.1.1", 1).is_ok(), "the list is of one listener");
    let first = house.admit('a', "10.0.0.1", 1).unwrap();
    let _second = house.admit('a', "10.0.0.1", 1).unwrap();
    refused(house.admit('a', "10.0.0.2", 1), Scope::Listener, Bound::Connections);
    let _third = house.admit('b', "10.0.0.1", 1).unwrap();
    refused(house.admit('b', "10.0.0.1", 1), Scope::Shared, Bound::ConnectionsPerClient);
    let _fourth = house.admit('b', "10.0.0.2", 1).unwrap();
    refused(house.admit('b', "10.0.0.3", 1), Scope::Shared, Bound::Connections);
    drop(first);
    assert!(house.admit('a', "10.0.0.1", 1).is_ok());
    assert_eq!(house.process.active(), 3);
}

#[test]
fn what_one_limit_refuses_another_one_does_not_count() {
    let house = House::new(
        "[limits.all]\naccept_rate = \"10/s\"\nburst = 2\naccept_rate_per_client = \"1/s\"\nburst_per_client = 2",
        ["max_connections = 1\nlimits = [\"all\"]", "limits = [\"all\"]"],
    );
    let held = house.admit('a', "10.0.0.1", SECOND).unwrap();
    for _ in 0..100 {
        refused(house.admit('a', "10.0.0.1", SECOND), Scope::Listener, Bound::Connections);
    }
    // The client may come once more, and one more may come in all.
    assert!(house.admit('b', "10.0.0.1", SECOND).is_ok());
    refused(house.admit('b', "10.0.0.2", SECOND), Scope::Shared, Bound::Rate);
    refused(house.admit('b', "10.0.0.1", SECOND), Scope::Shared, Bound::RatePerClient);
    drop(held);
    assert!(
        house.admit('b', "10.0.0.2", SECOND + SECOND / 10).is_ok(),
        "refused before, and nothing was held against it"
    );
}

#[test]
fn a_dry_run_lets_everybody_in_and_counts_as_if_it_had_not() {
    let house = House::new("", ["max_connections = 2\nallow = [\"10.0.0.0/8\"]\ndry_run = true", ""]);
    let held: Vec<Permit> = (0..5).map(|_| house.admit('a', "10.0.0.1", 1).unwrap()).collect();
    let _foreign = house.admit('a', "192.0.2.1", 1).unwrap();
    assert_eq!(house.gates[0].limiters()[0].connections(), 2, "those that it would have let in");
    assert_eq!(house.process.active(), 6);
    let counted = |reason, count| {
        let labels = format!(r#"scope="listener",name="a",dry_run="true",reason="{reason}""#);
        format!("tidegate_limit_refusals_total{{{labels}}} {count}")
    };
    assert_eq!(house.samples("refusals"), [counted("denied", 1), counted("max_connections", 3)]);
    drop(held);
    assert_eq!(house.gates[0].limiters()[0].connections(), 0);
}

#[test]
fn the_process_keeps_its_word_also_in_a_dry_run() {
    let house = House::with_max(1, "", ["max_connections = 5\ndry_run = true", ""]);
    let _held = house.admit('a', "10.0.0.1", 1).unwrap();
    refused(house.admit('a', "10.0.0.1", 1), Scope::Process, Bound::Connections);
    assert_eq!(house.gates[0].limiters()[0].connections(), 1, "it gave back what it had taken");
}

#[test]
fn who_waits_is_asked_before_and_holds_nothing_if_nobody_comes() {
    let house = House::new("", ["max_connections = 1\naccept_rate = \"1/s\"\nburst = 1\noverload = \"wait\"", ""]);
    let gate = &house.gates[0];
    for _ in 0..3 {
        drop(gate.before_accept(SECOND).unwrap());
    }
    let early = gate.before_accept(SECOND).unwrap();
    assert_eq!(gate.before_accept(SECOND).unwrap_err().why.bound, Bound::Connections);
    let permit = early.admit(client("10.0.0.1"), SECOND).unwrap();
    drop(permit);
    let full = gate.before_accept(SECOND).unwrap_err();
    assert_eq!((full.why.bound, full.retry_in), (Bound::Rate, Some(SECOND)));
    assert!(house.samples("refusals").is_empty(), "whoever waits is not refused");
    assert_eq!((house.process.active(), gate.limiters()[0].connections()), (0, 0));
}

#[test]
fn what_needs_the_address_refuses_also_where_others_wait() {
    let house = House::new("", ["max_connections = 3\nmax_connections_per_client = 1\noverload = \"wait\"", ""]);
    let _held = house.admit('a', "10.0.0.1", 1).unwrap();
    refused(house.admit('a', "10.0.0.1", 1), Scope::Listener, Bound::ConnectionsPerClient);
    assert_eq!(house.gates[0].limiters()[0].connections(), 1, "it gave back what it had taken");
    assert_eq!(house.process.active(), 1);
}

#[test]
fn short_memory_keeps_everybody_out_and_makes_those_wait_that_may() {
    let house = House::new("", ["", "overload = \"wait\""]);
    house.process.pressure.set(true);
    refused(house.admit('a', "10.0.0.1", 1), Scope::Process, Bound::Memory);
    assert_eq!(house.gates[1].before_accept(1).unwrap_err().why, LOW_MEMORY);
    house.process.pressure.set(false);
    assert!(house.admit('a', "10.0.0.1", 1).is_ok());
    assert_eq!(house.samples("low_memory").len(), 1, "only the one that was refused");
}

#[test]
fn one_listener_cannot_take_what_another_one_has_reserved() {
    let house = House::with_max(4, "", ["reserved_connections = 2", ""]);
    let others: Vec<_> = (0..4).filter_map(|_| house.admit('b', "10.0.0.1", 1).ok()).collect();
    assert_eq!(others.len(), 2);
    let own: Vec<_> = (0..4).filter_map(|_| house.admit('a', "10.0.0.1", 1).ok()).collect();
    assert_eq!(own.len(), 2);
    drop((own, others));
    assert_eq!(house.process.active(), 0);
}

#[test]
fn a_client_of_a_unix_socket_has_no_address_to_be_judged_by() {
    let house = House::new("", ["allow = [\"10.0.0.0/8\"]\nmax_connections_per_client = 1\nmax_connections = 2", ""]);
    let admit = || house.gates[0].before_accept(1).unwrap().admit(ClientAddr::Unix, 1);
    let _held = [admit().unwrap(), admit().unwrap()];
    refused(admit(), Scope::Listener, Bound::Connections);
}

impl House {
    /// As for a client that comes through a proxy, whose address its first bytes tell.
    fn admit_later(&self, listener: char, address: &str, now: Nanos) -> Result<Permit, Refusal> {
        let gate = &self.gates[usize::from(listener == 'b')];
        let mut permit = gate.before_accept(now).map_err(|full| full.why)?.admit_unknown(now)?;
        permit.identify(client(address), now)?;
        Ok(permit)
    }
}

#[test]
fn who_is_known_only_later_meets_the_same_limits() {
    let house = House::new(
        "[limits.all]\nmax_connections = 4\nmax_connections_per_client = 3",
        [
            "max_connections = 3\nmax_connections_per_client = 2\ndeny = [\"10.9.0.0/16\"]\nlimits = \"all\"",
            "limits = \"all\"",
        ],
    );
    for _ in 0..2 {
        let held: Vec<_> = [1, 1].map(|_| house.admit_later('a', "10.0.0.1", 1).unwrap()).into();
        // What one limit refuses counts towards none.
        for _ in 0..5 {
            refused(house.admit_later('a', "10.0.0.1", 1), Scope::Listener, Bound::ConnectionsPerClient);
            refused(house.admit_later('a', "10.9.0.1", 1), Scope::Listener, Bound::Access);
        }
        let third = house.admit_later('a', "10.0.0.2", 1).unwrap();
        refused(house.admit_later('a', "10.0.0.3", 1), Scope::Listener, Bound::Connections);
        // Of the shared limit, this client has two, and may have one more.
        let other = house.admit_later('b', "10.0.0.1", 1).unwrap();
        drop(other);
        drop((held, third));
        assert_eq!(house.gates[0].limiters().iter().map(|limiter| limiter.connections()).sum::<usize>(), 0);
        assert_eq!(house.process.active(), 0);
        assert_eq!(
            house.gates[0]
                .limiters()
                .iter()
                .filter_map(|limiter| limiter.clients())
                .map(|(known, _)| known)
                .sum::<usize>(),
            0
        );
    }
}

#[test]
fn who_is_refused_later_gives_back_what_a_rate_has_taken() {
    let house = House::new("", ["accept_rate = \"2/h\"\nburst = 2\ndeny = [\"10.9.0.0/16\"]", ""]);
    for _ in 0..10 {
        refused(house.admit_later('a', "10.9.0.1", SECOND), Scope::Listener, Bound::Access);
    }
    drop(house.admit_later('a', "10.0.0.1", SECOND).unwrap());
    drop(house.admit_later('a', "10.0.0.1", SECOND).unwrap());
    refused(house.admit_later('a', "10.0.0.1", SECOND), Scope::Listener, Bound::Rate);
}

#[test]
fn in_a_dry_run_who_would_be_refused_later_is_served_and_counts_nowhere() {
    let house = House::new("", ["max_connections = 1\ndeny = [\"10.9.0.0/16\"]\ndry_run = true", ""]);
    let denied = house.admit_later('a', "10.9.0.1", 1).unwrap();
    assert_eq!(house.gates[0].limiters()[0].connections(), 0);
    let held = house.admit_later('a', "10.0.0.1", 1).unwrap();
    // One that a total has refused already is not asked again.
    let beyond = house.admit_later('a', "10.9.0.1", 1).unwrap();
    assert_eq!(house.gates[0].limiters()[0].connections(), 1);
    let refusals = |reason| {
        let line = format!(
            "tidegate_limit_refusals_total{{scope=\"listener\",name=\"a\",dry_run=\"true\",reason=\"{reason}\"}} 1"
        );
        assert!(house.samples("refusals").contains(&line), "{line}");
    };
    refusals("denied");
    refusals("max_connections");
    assert_eq!(house.process.active(), 3);
    drop((denied, held, beyond));
    assert_eq!((house.process.active(), house.gates[0].limiters()[0].connections()), (0, 0));
}

#[test]
fn a_client_without_an_address_is_asked_for_none() {
    let house = House::new("", ["allow = [\"10.0.0.0/8\"]", ""]);
    let early = house.gates[0].before_accept(1).unwrap();
    let mut permit = early.admit_unknown(1).unwrap();
    assert_eq!(permit.identify(ClientAddr::Unix, 1), Ok(()));
}
