//! Other addresses of the admin endpoint in a running process.

use super::reload::write;
use crate::kit::http::{get, post};
use crate::kit::{Addr, Backend, Config, Conn, Launch, Tidegate, eventually, eventually_eq, free_port};
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn here(port: u16) -> Addr {
    Addr::parse(&format!("127.0.0.1:{port}"))
}

fn listens(config: &Config, addresses: &[&Addr]) -> String {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let text = config.to_string();
    let moved = text.replace("listen = \"127.0.0.1:0\"", &format!("listen = {}", json!(list)));
    assert_ne!(text, moved);
    moved
}

fn gone(address: &Addr) {
    eventually("nobody answers there any more", || Conn::try_to(address).map(Conn::reset).is_err());
}

#[test]
fn addresses_come_and_go_and_whoever_asks_by_one_that_goes_has_his_answer() {
    let echo = Backend::echo();
    let mut tidegate = Tidegate::start(Config::over([&echo]));
    let (first, second) = (tidegate.admin().clone(), here(free_port()));
    let socket = Addr::Unix(tidegate.dir().join("admin.sock"));
    let path = tidegate.dir().join("admin.sock");
    let mut client = tidegate.echoed();

    // The first keeps its port, which the config leaves to the kernel.
    write(&tidegate, listens(&Config::over([&echo]), &[&Addr::parse("127.0.0.1:0"), &second, &socket]));
    let plan = post(&first, "/plan", "").json();
    assert_eq!(plan["details"]["restarted"], json!([]), "{plan}");
    assert_eq!(post(&first, "/reload", "").json()["details"]["needs_upgrade"], json!([]));
    for address in [&first, &second, &socket] {
        assert_eq!(get(address, "/status").json()["generation"], 2, "{address}");
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    write(&tidegate, listens(&Config::over([&echo]), &[&socket]));
    assert_eq!(post(&second, "/reload", "").json()["summary"], "generation 3 runs");
    gone(&first);
    gone(&second);
    assert_eq!(get(&socket, "/status").json()["generation"], 3);

    // One and the same path goes and comes at once.
    write(&tidegate, listens(&Config::over([&echo]), &[&second]));
    assert_eq!(post(&socket, "/reload", "").status, 200);
    write(&tidegate, listens(&Config::over([&echo]), &[&second, &socket]));
    let again = post(&second, "/reload", "");
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(get(&socket, "/status").json()["generation"], 5);

    write(&tidegate, listens(&Config::over([&echo]), &[&second]));
    assert_eq!(post(&socket, "/reload", "").status, 200);
    eventually("its file is gone", || !path.exists());
    client.speak();
    tidegate.move_admin(&second);
}

#[test]
fn an_address_for_all_takes_the_place_of_one_on_the_same_port() {
    let echo = Backend::echo();
    let port = free_port();
    let tidegate = Tidegate::start(listens(&Config::over([&echo]), &[&here(port)]));
    for wanted in ["0.0.0.0", "127.0.0.1"] {
        let wanted = Addr::parse(&format!("{wanted}:{port}"));
        write(&tidegate, listens(&Config::over([&echo]), &[&wanted]));
        // The old address waits for the end of this one, and has no part in those that come meanwhile.
        let mut slow = Conn::to(&here(port));
        slow.send("GET /livez HTTP/1.1\r\n");
        let answer = post(&here(port), "/reload", "");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(get(&here(port), "/livez").status, 200);
    }
    assert_eq!(get(&here(port), "/status").json()["generation"], 3);
}

#[test]
fn f44_an_address_that_somebody_else_has_refuses_the_reload_and_binds_nothing() {
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let tidegate = Tidegate::start(Config::over([&old]));
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (busy, free) = (here(other.local_addr().unwrap().port()), here(free_port()));
    write(&tidegate, listens(&Config::over([&new]), &[&free, &busy]));
    let answer = tidegate.post("/reload", "");
    assert_eq!(answer.status, 422, "{answer:?}");
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with(&format!("admin.listen: can't listen on {busy}: ")), "{error}");
    assert!(error.ends_with("(or turn it off: listen = \"off\")"), "{error}");
    assert!(Conn::try_to(&free).is_err());
    assert_eq!((tidegate.connect().rest().text().as_str(), &tidegate.status()["generation"]), ("old\n", &json!(1)));
}

#[test]
fn several_addresses_may_leave_their_port_to_the_kernel() {
    let echo = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&echo]));
    let any = Addr::parse("127.0.0.1:0");
    let (before, mut added) = (tidegate.sockets(), Vec::new());
    for count in [2, 3, 2, 1] {
        write(&tidegate, listens(&Config::over([&echo]), &vec![&any; count]));
        assert_eq!(tidegate.post("/reload", "").status, 200, "the first one stays");
        // Each has one to serve and one to pass on.
        eventually_eq("there are so many", &(before + 2 * (count - 1)), || tidegate.sockets());
        added.push(tidegate.status()["generation"].clone());
    }
    assert_eq!(added, [2, 3, 4, 5].map(|generation| json!(generation)));
}

#[test]
fn it_can_be_turned_off_and_on_again_and_a_successor_has_it_where_it_is() {
    let echo = Backend::echo();
    let mut tidegate = Launch::new(Config::over([&echo])).linked().start();
    let (first, second) = (tidegate.admin().clone(), here(free_port()));
    write(&tidegate, Config::over([&echo]).to_string().replace("listen = \"127.0.0.1:0\"", "listen = \"off\""));
    assert_eq!(post(&first, "/reload", "").json()["summary"], "generation 2 runs");
    gone(&first);
    let mut client = tidegate.echoed();
    write(&tidegate, listens(&Config::over([&echo]), &[&second]));
    tidegate.signal(Signal::HUP);
    eventually("it answers again", || Conn::try_to(&second).map(Conn::reset).is_ok());
    assert_eq!(get(&second, "/status").json()["generation"], 3);

    assert_eq!(post(&second, "/upgrade", "").status, 200);
    let mut before = tidegate.follow();
    assert_eq!(tidegate.admin(), &second);
    assert_eq!(tidegate.status()["generation"], 3);
    client.speak();
    drop(client);
    assert_eq!(before.end().map(|status| status.code()), Some(Some(0)), "{}", tidegate.log());
}
