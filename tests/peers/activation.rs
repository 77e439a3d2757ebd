//! Socket activation by systemd's own program.

use crate::free_port;
use crate::kit::{Addr, Backend, Config, Conn, Launch, eventually_some};
use std::net::SocketAddr;

#[test]
fn f54_systemd_starts_it_at_the_first_connection() {
    let backend = Backend::echo();
    let free = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("web.sock");
    let config = Config::over([&backend]).bind(Addr::Unix(path.clone()));
    let launch = Launch::new(config.more(&format!("[listeners.api]\nbind = \"{free}\"\npool = \"web\"\n")));
    let addresses = [Addr::Unix(path.clone()), Addr::Tcp(free)];
    let words = ["--listen".to_owned(), path.display().to_string(), "--listen".to_owned(), free.to_string()];
    let clients = std::thread::spawn(move || {
        addresses.map(|address| {
            let mut client = eventually_some("systemd listens", || Conn::try_to(&address).ok());
            client.speak();
            client
        })
    });
    let words = std::iter::once("systemd-socket-activate".to_owned()).chain(words);
    let tidegate = launch.wrapped(words.chain(["--fdname=one:two".to_owned()])).start();
    for mut client in clients.join().unwrap() {
        client.speak();
    }
    assert_eq!(tidegate.count_logged(&["WARN"]), 0, "{}", tidegate.log());
    drop(tidegate);
    assert!(path.exists(), "the path is systemd's");
}
