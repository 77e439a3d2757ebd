//! Listening sockets that the service manager holds: those of a socket unit, and those in its store of descriptors.

use crate::kit::conn::{Addr, Conn, End};
use crate::kit::port::free_port;
use crate::kit::{Backend, Config, Launch, Tidegate, eventually, eventually_some};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketType, bind, listen, recvmsg, socket,
    sockopt,
};
use rustix::process::Signal;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// What a service manager makes and holds.
fn held() -> (TcpListener, Addr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Addr::Tcp(socket.local_addr().unwrap());
    (socket, address)
}

fn copy(socket: &TcpListener) -> OwnedFd {
    socket.try_clone().unwrap().into()
}

/// Clients that come while no process is there, and have sent something.
fn early(address: &Addr) -> Vec<Conn> {
    let client = |number: u8| {
        let mut client = Conn::to(address);
        client.send([number; 100]);
        client
    };
    (0..20).map(client).collect()
}

fn all_served(clients: Vec<Conn>) {
    for (number, mut client) in (0..).zip(clients) {
        client.expect([number; 100]);
        client.finish();
        client.expect_end(End::Fin);
    }
}

#[test]
fn f54_after_kill_9_the_next_process_serves_those_who_wait() {
    let (socket, address) = held();
    let backend = Backend::echo();
    let launch = || Launch::new(Config::over([&backend]).bind(&address)).given("web", copy(&socket));
    let first = early(&address);
    let mut tidegate = launch().start();
    assert_eq!(tidegate.addr(), address);
    all_served(first);
    let mut cut = tidegate.echoed();

    tidegate.leaks_not_asked();
    tidegate.signal(Signal::KILL);
    cut.expect_end(End::Rst);
    assert_eq!(tidegate.wait().signal, Some(Signal::KILL.as_raw()));
    let second = early(&address);
    let mut tidegate = launch().start();
    all_served(second);

    // An orderly stop leaves them to the next one as well.
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
    let third = early(&address);
    let tidegate = launch().start();
    all_served(third);
    assert_eq!(tidegate.count_logged(&["WARN"]), 0, "{}", tidegate.log());
}

#[test]
fn a_socket_that_is_called_like_a_listener_is_its_own_wherever_it_is_bound() {
    let (socket, address) = held();
    let backend = Backend::echo();
    let tidegate = Launch::new(Config::over([&backend])).given("web", copy(&socket)).start();
    assert_eq!(tidegate.addr(), address);
    tidegate.echoed();
}

#[test]
fn a_socket_that_no_listener_wants_is_closed_with_a_warning() {
    let (socket, address) = held();
    let backend = Backend::echo();
    let tidegate = Launch::new(Config::over([&backend])).given("shop", copy(&socket)).start();
    tidegate.logged(&["WARN", "no listener wants this socket", "name=\"shop\"", &address.to_string()]);
    drop(socket);
    // A process that another test is about to start may have it until then.
    eventually("nobody has it any more", || Conn::try_to(&address).is_err());
    assert_ne!(tidegate.addr(), address);
    tidegate.echoed();
}

#[test]
fn what_does_not_listen_is_refused_with_a_word() {
    let backend = Backend::echo();
    let no_socket = std::fs::File::open("/dev/null").unwrap();
    let tidegate = Launch::new(Config::over([&backend])).given("web", no_socket.into()).start();
    tidegate.logged(&["WARN", "is of no use: it is no stream socket", "name=\"web\""]);
    tidegate.echoed();
}

/// A service manager that keeps descriptors.
struct Manager(UnixDatagram);

impl Manager {
    fn new(directory: &Path) -> Self {
        let socket = UnixDatagram::bind(directory.join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// The next message, with its descriptors.
    fn next(&self) -> Option<(String, Vec<OwnedFd>)> {
        let (mut bytes, mut space) = ([0; 4_096], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let length = recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
        let received = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = received.flatten().collect();
        Some((String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptors))
    }

    fn until(&self, word: &str) -> (String, Vec<OwnedFd>) {
        eventually_some(&format!("the manager hears {word}"), || {
            std::iter::from_fn(|| self.next()).find(|(text, _)| text.lines().any(|line| line == word))
        })
    }
}

#[test]
fn f54_a_restart_keeps_those_who_wait_where_the_manager_stores_sockets() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    let notify = directory.path().join("notify");
    let launch = |config: Config| {
        let launch = Launch::new(config.only_runtime("workers = 1"));
        launch.env("NOTIFY_SOCKET", notify.to_str().unwrap()).env("FDSTORE", "8")
    };
    let mut tidegate = launch(Config::over([&backend])).start();
    let address = tidegate.addr();
    let (text, mut stored) = manager.until("FDSTORE=1");
    assert!(text.lines().any(|line| line == "FDNAME=web"), "{text}");
    assert_eq!(stored.len(), 1);
    manager.until("READY=1");

    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
    let waiting = early(&address);
    let stored = stored.pop().unwrap();
    let again = Config::over([&backend]).bind(&address);
    let mut tidegate = launch(again).given("web", stored.try_clone().unwrap()).start();
    all_served(waiting);
    let mut messages = std::iter::from_fn(|| manager.next());
    assert!(!messages.any(|(text, _)| text.contains("FDSTORE=1")), "it is in the store already");
    tidegate.signal(Signal::TERM);
    tidegate.wait();

    // Nobody wants it any more: it leaves the store.
    let tidegate = launch(Config::over([&backend])).given("gone", stored).start();
    let (text, _) = manager.until("FDSTOREREMOVE=1");
    assert!(text.lines().any(|line| line == "FDNAME=gone"), "{text}");
    drop(tidegate);
}

/// One with a store, over these listeners beside `web`.
fn with_store(backend: &Backend, manager: &Path, more: &str) -> Tidegate {
    let launch = Launch::new(Config::over([backend]).only_runtime("workers = 1").more(more)).linked();
    launch.env("NOTIFY_SOCKET", manager.join("notify").to_str().unwrap()).env("FDSTORE", "8").start()
}

fn listener(name: &str, address: &Addr) -> String {
    format!("[listeners.{name}]\nbind = \"{address}\"\npool = \"web\"\n")
}

/// Makes this its config file.
fn write(tidegate: &Tidegate, backend: &Backend, more: &str) {
    let config = Config::over([backend]).only_runtime("workers = 1").more(more).to_string();
    let text = config.replace("$DIR", tidegate.dir().to_str().unwrap());
    std::fs::write(tidegate.dir().join("lb.toml"), text).unwrap();
}

#[test]
fn what_a_successor_has_no_listener_for_leaves_the_store_once_it_serves() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    let address = Addr::Tcp(([127, 0, 0, 1], free_port()).into());
    let mut tidegate = with_store(&backend, directory.path(), &listener("more", &address));
    let (_, mut stored) = manager.until("FDNAME=more");
    manager.until("READY=1");
    write(&tidegate, &backend, "[listeners.more]\nbind = 7\n");
    let refused = tidegate.post("/upgrade", "");
    assert_eq!(refused.status, 422, "{}", refused.body);
    write(&tidegate, &backend, "");
    tidegate.signal(Signal::USR2);
    tidegate.follow_alone();
    let mut heard = Vec::new();
    eventually("the manager is told", || {
        heard.extend(std::iter::from_fn(|| manager.next()).map(|(text, _)| text));
        heard.iter().any(|text| text.contains("FDSTOREREMOVE=1"))
    });
    // The manager listens to the main process alone.
    let place = |word: &str| heard.iter().position(|text| text.lines().any(|line| line == word)).unwrap();
    assert!(place(&format!("MAINPID={}", tidegate.pid)) < place("FDNAME=more"), "{heard:?}");
    stored.clear();
    eventually("nobody has it any more", || Conn::try_to(&address).is_err());
    tidegate.echoed();
}

#[test]
fn what_is_called_otherwise_or_listens_again_is_stored_anew() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    let address = Addr::Tcp(([127, 0, 0, 1], free_port()).into());
    let mut tidegate = with_store(&backend, directory.path(), &listener("more", &address));
    manager.until("FDNAME=more");
    let next = |first: &str, name: &str| {
        let (text, descriptors) = manager.until(&format!("FDNAME={name}"));
        assert!(text.starts_with(&format!("{first}=1")), "{text}");
        descriptors.len()
    };
    write(&tidegate, &backend, &listener("other", &address));
    tidegate.signal(Signal::HUP);
    assert_eq!((next("FDSTOREREMOVE", "more"), next("FDSTORE", "other")), (0, 1));
    write(&tidegate, &backend, &listener("third", &address));
    tidegate.signal(Signal::USR2);
    tidegate.follow_alone();
    assert_eq!((next("FDSTOREREMOVE", "other"), next("FDSTORE", "third")), (0, 1));

    // A manager drops by itself what doesn't listen.
    let set = |state: &str| {
        let answer = tidegate.post("/listeners/third", &format!("{{\"state\": \"{state}\"}}"));
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    set("disabled");
    assert_eq!(next("FDSTOREREMOVE", "third"), 0);
    set("enabled");
    assert_eq!(next("FDSTORE", "third"), 1);
    Conn::to(&address).speak();
}

#[test]
fn a_socket_that_a_config_has_no_more_takes_nobody_though_the_manager_has_it_still() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    let [narrow, wide] = ["127.0.0.1:21110", "0.0.0.0:21110"].map(Addr::parse);
    let tidegate = with_store(&backend, directory.path(), &listener("more", &narrow));
    let (_, stored) = manager.until("FDNAME=more");
    assert_eq!(stored.len(), 1);
    write(&tidegate, &backend, &listener("more", &wide));
    tidegate.signal(Signal::HUP);
    manager.until("FDSTOREREMOVE=1");
    Conn::to(&narrow).speak();
    drop(stored);
}

#[test]
fn after_an_upgrade_too_a_socket_that_a_config_has_no_more_takes_nobody_and_its_path_goes() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    let (tcp, path) = (Addr::Tcp(([127, 0, 0, 1], free_port()).into()), directory.path().join("more.sock"));
    let more = format!("[listeners.more]\nbind = [\"{tcp}\", \"unix:{}\"]\npool = \"web\"\n", path.display());
    let mut tidegate = with_store(&backend, directory.path(), &more);
    let (_, stored) = manager.until("FDNAME=more");
    assert_eq!(stored.len(), 2);
    for _ in 0..2 {
        tidegate.signal(Signal::USR2);
        tidegate.follow_alone();
    }
    for address in [&tcp, &Addr::Unix(path.clone())] {
        Conn::to(address).speak();
    }
    write(&tidegate, &backend, "");
    tidegate.signal(Signal::HUP);
    manager.until("FDSTOREREMOVE=1");
    eventually("nobody is let in", || Conn::try_to(&tcp).map(Conn::reset).is_err());
    eventually("the path is gone", || !path.exists());
    drop(stored);
}

#[test]
fn a_restart_with_another_address_leaves_the_one_that_is_stored() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    let notify = directory.path().join("notify");
    let launch = |address: &Addr| {
        let config = Config::over([&backend]).bind(address).only_runtime("workers = 1");
        Launch::new(config).env("NOTIFY_SOCKET", notify.to_str().unwrap()).env("FDSTORE", "8")
    };
    let [before, after] = [(); 2].map(|()| Addr::Tcp(([127, 0, 0, 1], free_port()).into()));
    let mut tidegate = launch(&before).start();
    let (_, mut stored) = manager.until("FDNAME=web");
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
    let tidegate = launch(&after).given("web", stored.pop().unwrap()).start();
    assert_eq!(tidegate.addr(), after);
    manager.until("FDSTOREREMOVE=1");
    tidegate.echoed();
    eventually("nobody is let in where it was", || Conn::try_to(&before).map(Conn::reset).is_err());
}

#[test]
fn a_stored_socket_that_does_not_suit_any_more_is_bound_anew() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    // As a process before this one has made it.
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseport(&socket, true).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&socket, 16).unwrap();
    let address = Addr::Tcp(TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap());
    let config = Config::over([&backend]).bind(&address).listener("socket.interface = \"lo\"");
    let notify = directory.path().join("notify");
    let launch = Launch::new(config).env("NOTIFY_SOCKET", notify.to_str().unwrap()).env("FDSTORE", "8");
    let tidegate = launch.given("web", socket).start();
    let (text, _) = manager.until("FDNAME=web");
    assert!(text.starts_with("FDSTOREREMOVE=1"), "{text}");
    let (text, stored) = manager.until("FDNAME=web");
    assert!(text.starts_with("FDSTORE=1") && !stored.is_empty(), "{text}");
    assert_eq!(tidegate.addr(), address);
    tidegate.echoed();
    assert_eq!(tidegate.count_logged(&["WARN"]), 0, "{}", tidegate.log());
}

#[test]
fn f57_without_a_store_nothing_is_stored() {
    let backend = Backend::echo();
    let directory = tempfile::tempdir().unwrap();
    let manager = Manager::new(directory.path());
    let notify = directory.path().join("notify");
    let launch = Launch::new(Config::over([&backend])).env("NOTIFY_SOCKET", notify.to_str().unwrap());
    let tidegate = launch.start();
    let mut heard = String::new();
    eventually("it says that it is ready", || {
        heard.extend(std::iter::from_fn(|| manager.next()).map(|(text, _)| text));
        heard.contains("READY=1")
    });
    assert!(!heard.contains("FDSTORE"), "{heard}");
    tidegate.echoed();
}
