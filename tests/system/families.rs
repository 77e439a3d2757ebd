//! Address families: IPv6 as such, IPv4 behind a dual-stack socket, unix sockets on either side.

use crate::kit::{Addr, Backend, Config, Conn, Listening, Tidegate};
use std::net::SocketAddr;

fn logged(config: Config) -> Config {
    config.log("access = \"$DIR/access.log\"\nformat = \"json\"")
}

fn on_loopback(family: [&str; 1], port: u16) -> Addr {
    Addr::Tcp(SocketAddr::new(family[0].parse().unwrap(), port))
}

#[test]
fn ipv6_clients_reach_ipv6_backends_and_are_shown_as_such() {
    let listening = Listening::at(&Addr::parse("[::1]:0"));
    let tidegate = Tidegate::start(logged(Config::over([&listening]).bind("[::1]:0")));
    let mut client = tidegate.connect();
    let own = client.local();
    client.send("six");
    let mut backend = listening.accept();
    backend.expect("six");
    drop((client, backend));
    let record = tidegate.records(1).remove(0);
    assert_eq!(record["client"], own.to_string());
    assert_eq!(record["backend"], listening.to_string());
}

#[test]
fn a_mapped_ipv4_client_is_shown_as_ipv4() {
    let backend = Backend::named("x");
    let tidegate = Tidegate::start(logged(Config::over([&backend]).bind("[::]:0")));
    let port = tidegate.addr().tcp().port();
    let mut own = Vec::new();
    for family in [["127.0.0.1"], ["::1"]] {
        let mut client = Conn::to(&on_loopback(family, port));
        own.push(client.local().to_string());
        assert_eq!(client.rest().text(), "x\n");
        drop(client);
        tidegate.until_idle();
    }
    // Each worker hands over its own lines, so those of two workers may stand in either order.
    let mut shown: Vec<String> =
        tidegate.records(2).iter().map(|record| record["client"].as_str().unwrap().to_owned()).collect();
    shown.sort();
    assert_eq!(shown, own);
    assert!(shown[0].starts_with("127.0.0.1:") && shown[1].starts_with("[::1]:"), "{shown:?}");
}

#[test]
fn several_binds_of_one_listener_share_its_counts() {
    let backend = Backend::named("x");
    let config = Config::over([&backend]).binds(["127.0.0.1:0", "[::1]:0", "127.0.0.2:0"]);
    let tidegate = Tidegate::start(config);
    for index in 0..3 {
        assert_eq!(Conn::to(&tidegate.addr_of("web", index)).rest().text(), "x\n");
    }
    let labels = [("listener", "web")];
    assert_eq!(tidegate.metrics().one("tidegate_listener_connections_total", &labels) as u64, 3);
}

#[test]
fn a_unix_listener_replaces_a_stale_socket_and_leaves_nothing_behind() {
    let backend = Backend::named("x");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    drop(Listening::at(&Addr::Unix(path.clone())));
    assert!(path.exists(), "a process that died leaves its socket");
    let mut tidegate = Tidegate::start(logged(Config::over([&backend]).bind(Addr::Unix(path.clone()))));
    assert_eq!(Conn::to(&Addr::Unix(path.clone())).rest().text(), "x\n");
    assert_eq!(tidegate.records(1)[0]["client"], "unix");
    tidegate.signal(rustix::process::Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
    assert!(!path.exists());
}

#[test]
fn a_unix_backend_that_is_gone_counts_as_refused() {
    let alive = Backend::named("alive");
    let dir = tempfile::tempdir().unwrap();
    let gone = Addr::Unix(dir.path().join("gone.sock"));
    let tidegate = Tidegate::start(Config::over([gone.to_string(), alive.to_string()]));
    assert_eq!(tidegate.connect().rest().text(), "alive\n");
    let labels = [("backend", &*gone.to_string()), ("reason", "refused")];
    assert_eq!(tidegate.metrics().one("tidegate_backend_connect_errors_total", &labels) as u64, 1);
}

#[test]
fn the_admin_endpoint_can_be_a_private_unix_socket_or_off() {
    use std::os::unix::fs::PermissionsExt;
    let backend = Backend::named("x");
    let plain = Config::over([&backend]).to_string();
    let unix = plain.replace("listen = \"127.0.0.1:0\"", "listen = \"unix:$DIR/admin.sock\"");
    let tidegate = Tidegate::start(unix);
    assert_eq!(tidegate.get("/livez").status, 200);
    let path = tidegate.dir().join("admin.sock");
    assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);

    let off = plain.replace("listen = \"127.0.0.1:0\"", "listen = \"off\"");
    let tidegate = Tidegate::start(off);
    assert_eq!(tidegate.admin, None);
    assert_eq!(tidegate.connect().rest().text(), "x\n");
}
