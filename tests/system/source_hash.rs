//! Source hash: clients that stay on their backends, by their own address, whatever becomes of others.

use crate::kit::backend::naming;
use crate::kit::{Backend, Config, Conn, Tidegate, eventually, eventually_eq};
use std::net::Ipv4Addr;

const HASH: &str = "balance = \"source_hash\"";
const QUICK: &str = "interval = \"300ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 2\nfall = 2";

/// So many clients, each with an address of its own.
const CLIENTS: u32 = 120;

fn address(client: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 2, 0, 1).to_bits() + client * 7)
}

/// The name of the backend that serves the client.
fn home(tidegate: &Tidegate, client: u32) -> String {
    Conn::from(address(client), &tidegate.addr()).rest().text().trim_end().to_owned()
}

fn homes(tidegate: &Tidegate) -> Vec<String> {
    (0..CLIENTS).map(|client| home(tidegate, client)).collect()
}

/// Listed by these names.
fn config(backends: &[&Backend]) -> Config {
    Config::over(backends).pool(HASH).pool("slow_start = \"0s\"").pool("panic_threshold = \"0%\"")
}

fn five() -> Vec<Backend> {
    ["a", "b", "c", "d", "e"].map(Backend::named).into()
}

#[test]
fn f27_only_the_clients_of_a_backend_that_goes_down_move_and_they_come_back() {
    let mut backends = five();
    let tidegate = Tidegate::start(config(&backends.iter().collect::<Vec<_>>()).health(QUICK));
    let up = || tidegate.metrics().sum("tidegate_backend_up", &[]) as u64;
    eventually_eq("all are up", &5, up);
    let before = homes(&tidegate);
    assert_eq!(homes(&tidegate), before);
    let own = before.iter().filter(|home| *home == "c").count();
    assert!((4..=60).contains(&own), "{own} of {CLIENTS}, ideally 24");

    for _ in 0..2 {
        let at = backends.remove(2).die();
        eventually_eq("one is down", &4, up);
        let away = homes(&tidegate);
        for (client, (was, is)) in before.iter().zip(&away).enumerate() {
            assert!(if was == "c" { is != "c" } else { is == was }, "client {client}: {was}, now {is}");
        }
        backends.insert(2, Backend::at(&at, naming("c")));
        eventually_eq("it is back", &5, up);
        assert_eq!(homes(&tidegate), before);
    }
}

#[test]
fn a_client_keeps_its_backend_over_a_restart_and_over_two_processes_with_the_members_in_another_order() {
    let backends = five();
    let first = Tidegate::start(config(&backends.iter().collect::<Vec<_>>()));
    let before = homes(&first);
    let reversed: Vec<&Backend> = backends.iter().rev().collect();
    let second = Tidegate::start(config(&reversed).only_runtime("workers = 1"));
    assert_eq!(homes(&second), before, "another process beside it");
    drop(first);
    let again = Tidegate::start(config(&backends.iter().collect::<Vec<_>>()));
    assert_eq!(homes(&again), before, "a process after it");
}

#[test]
fn clients_are_told_apart_by_the_prefix_alone() {
    let backends = five();
    let config = config(&backends.iter().collect::<Vec<_>>()).more("[pools.web.hash]\nprefix_ipv4 = 24");
    let tidegate = Tidegate::start(config);
    for third in 0..8 {
        let home = |fourth| Conn::from(Ipv4Addr::new(127, 3, third, fourth), &tidegate.addr()).rest().text();
        let first = home(1);
        assert!((2..250).step_by(31).all(|fourth| home(fourth) == first), "127.3.{third}.0/24");
    }
}

/// How many sessions each backend has.
fn active(tidegate: &Tidegate, backends: &[Backend]) -> Vec<u64> {
    backends.iter().map(|backend| tidegate.backend_status(backend)["active"].as_u64().unwrap()).collect()
}

fn held(tidegate: &Tidegate, client: u32, count: usize) -> Vec<Conn> {
    let one = |_| {
        let mut conn = Conn::from(address(client), &tidegate.addr());
        conn.send("ping");
        conn.expect("ping");
        conn
    };
    (0..count).map(one).collect()
}

#[test]
fn one_client_with_very_many_connections_overflows_to_others_by_max_load() {
    let backends: Vec<Backend> = (0..5).map(|_| Backend::echo()).collect();
    let all: Vec<&Backend> = backends.iter().collect();
    let tidegate = Tidegate::start(config(&all));
    let connections = held(&tidegate, 1, 100);
    let mut now = active(&tidegate, &backends);
    now.sort_unstable();
    assert_eq!(now, [0, 25, 25, 25, 25], "at most 1.25 times a fifth of 100");
    drop(connections);
    tidegate.until_idle();
    drop(tidegate);

    let tidegate = Tidegate::start(config(&all).more("[pools.web.hash]\nmax_load = \"off\""));
    let _connections = held(&tidegate, 1, 100);
    let mut now = active(&tidegate, &backends);
    now.sort_unstable();
    assert_eq!(now, [0, 0, 0, 0, 100]);
    assert_eq!(tidegate.pool_status()["balance"], "source_hash");
}

#[test]
fn a_client_whose_backend_is_full_waits_for_none_while_another_is_free() {
    let backends: Vec<Backend> = (0..2).map(|_| Backend::echo()).collect();
    let all: Vec<&Backend> = backends.iter().collect();
    let config = config(&all).pool("backend_max_connections = 3").more("[pools.web.queue]\nmax_wait = \"60s\"");
    let tidegate = Tidegate::start(config);
    let mut connections = held(&tidegate, 1, 3);
    let own = active(&tidegate, &backends).iter().position(|&active| active == 3).expect("all on its own");
    connections.extend(held(&tidegate, 1, 3));
    assert_eq!(active(&tidegate, &backends), [3, 3]);
    // Both are full: the next one waits, and gets the first place that comes free, be it the other's.
    let mut waiting = Conn::from(address(1), &tidegate.addr());
    waiting.send("ping");
    let queued = || tidegate.metrics().sum("tidegate_pool_queue_waiting", &[]) as u64;
    eventually_eq("it waits", &1, queued);
    drop(connections.pop());
    waiting.expect("ping");
    assert_eq!(active(&tidegate, &backends), [3, 3]);
    drop(connections);
    drop(waiting);
    tidegate.until_idle();
    let _back = held(&tidegate, 1, 1);
    eventually("it is on its own again", || active(&tidegate, &backends)[own] == 1);
}

/// Clients without an address have no home; they are spread.
#[test]
fn clients_of_a_unix_socket_are_spread() {
    let backends = five();
    let config = config(&backends.iter().collect::<Vec<_>>()).bind("unix:$DIR/front.sock");
    let tidegate = Tidegate::start(config);
    let mut names: Vec<String> = (0..100).map(|_| tidegate.connect().rest().text()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 5);
}

/// What it says of itself before it echoes.
fn announcing(name: &str) -> Backend {
    let name = name.to_owned();
    Backend::new(move |mut conn| {
        if conn.try_send(format!("{name}\n")).is_ok() {
            crate::kit::backend::echo(conn);
        }
    })
}

/// Who serves a client that begins with these bytes, which arrive as they were sent.
fn server_of(tidegate: &Tidegate, client: u32, first: &[u8]) -> String {
    let mut conn = Conn::from(address(client), &tidegate.addr());
    conn.send(first);
    let name = conn.line();
    conn.expect(first);
    name
}

fn announcing_five() -> Vec<Backend> {
    ["a", "b", "c", "d", "e"].map(announcing).into()
}

#[test]
fn a_tenant_has_its_backend_wherever_its_clients_come_from() {
    let backends = announcing_five();
    let hash = "[pools.web.hash]\nkey = \"http_header\"\nheader = \"X-Tenant\"";
    let tidegate = Tidegate::start(config(&backends.iter().collect::<Vec<_>>()).more(hash));
    let mut used = Vec::new();
    for tenant in 0..20 {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nx-tenant: t{tenant}\r\n\r\n");
        let home = server_of(&tidegate, tenant, request.as_bytes());
        for client in 1..4 {
            assert_eq!(server_of(&tidegate, 100 * client + tenant, request.as_bytes()), home, "tenant {tenant}");
        }
        used.push(home);
    }
    used.sort_unstable();
    used.dedup();
    assert!(used.len() >= 3, "{used:?}");
    // Who has none is known by its address.
    for client in 0..10 {
        let without = |bytes: &[u8]| server_of(&tidegate, client, bytes);
        let home = without(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(without(b"GET /other HTTP/1.1\r\nHost: b\r\n\r\n"), home);
        assert_eq!(without(b"SSH-2.0-client\r\n"), home);
    }
}

#[test]
fn clients_of_one_server_name_share_a_backend() {
    let backends = announcing_five();
    let tidegate =
        Tidegate::start(config(&backends.iter().collect::<Vec<_>>()).more("[pools.web.hash]\nkey = \"sni\""));
    for name in 0..10 {
        let hello = tidegate::net::client_hello::write(Some(&format!("s{name}.example.com")), &["h2"]);
        let home = server_of(&tidegate, 1, &hello);
        assert!((2..6).all(|client| server_of(&tidegate, client, &hello) == home), "s{name}.example.com");
    }
}

/// A client that never says its tenant doesn't wait for ever.
#[test]
fn a_client_that_does_not_say_what_it_is_known_by_is_cut_in_time() {
    let backends = announcing_five();
    let hash = "[pools.web.hash]\nkey = \"http_host\"";
    let config = config(&backends.iter().collect::<Vec<_>>()).listener("preread_timeout = \"300ms\"").more(hash);
    let tidegate = Tidegate::start(config);
    let mut slow = Conn::from(address(1), &tidegate.addr());
    slow.send("GET / HT");
    slow.expect_cut();
    eventually_eq("for that reason", &1, || tidegate.closed("preread_timeout"));
}
