//! Sockets as they are bound, given other options, and taken over.

use super::*;
use crate::sys;
use rustix::net::sockopt;
use std::fs;
use std::os::unix::fs::MetadataExt;

fn options(socket: Socket) -> Options {
    Options { backlog: 16, at_close: AtClose::Reset, socket, access: SocketAccess::OWNER }
}

fn tcp(address: &str) -> BindAddr {
    BindAddr(Endpoint::Tcp(address.parse().unwrap()))
}

fn listening(address: &BindAddr, options: &Options, count: usize) -> Result<Vec<ListenSocket>, BindError> {
    let bound = bind_all(address, options, count, Neighbours::None)?;
    bound.iter().try_for_each(|socket| socket.listen(options.backlog))?;
    Ok(bound)
}

#[test]
fn workers_share_the_port_that_the_kernel_chose() {
    let sockets = listening(&tcp("127.0.0.1:0"), &options(Socket::default()), 3).unwrap();
    assert!(sockets.iter().all(|socket| socket.address == sockets[0].address));
    assert_ne!(sockets[0].address, tcp("127.0.0.1:0"));
}

#[test]
fn an_address_that_is_taken_is_never_shared() {
    let first = listening(&tcp("127.0.0.1:0"), &options(Socket::default()), 2).unwrap();
    let error = listening(&first[0].address, &options(Socket::default()), 2).unwrap_err();
    assert_eq!(error.refused.error, Errno::ADDRINUSE);
    assert!(error.to_string().contains(&first[0].address.to_string()), "{error}");
}

#[test]
fn a_socket_is_quiet_until_somebody_comes_or_it_breaks() {
    let socket = listening(&tcp("127.0.0.1:0"), &options(Socket::default()), 1).unwrap().remove(0);
    assert!(socket.is_quiet() && !socket.has_waiting());
    let BindAddr(Endpoint::Tcp(address)) = &socket.address else { panic!("not TCP") };
    let _client = std::net::TcpStream::connect(address).unwrap();
    assert!(!socket.is_quiet() && socket.has_waiting());
    socket.accept().unwrap();
    assert!(socket.is_quiet() && !socket.has_waiting());
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Read).unwrap();
    assert!(!socket.is_quiet() && !socket.has_waiting(), "accept has to say what is wrong");
    assert!(socket.accept().is_err());
}

#[test]
fn a_unix_socket_replaces_a_stale_file_but_no_living_one_and_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tide.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let address = BindAddr(Endpoint::Unix(path.as_path().into()));
    let living = listening(&address, &options(Socket::default()), 2).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert_eq!(listening(&address, &options(Socket::default()), 1).unwrap_err().refused.error, Errno::ADDRINUSE);
    drop(living);
    assert!(!path.exists());
}

#[test]
fn a_path_that_is_bound_anew_while_its_old_socket_goes_is_there_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let address = BindAddr(Endpoint::Unix(dir.path().join("a.sock").as_path().into()));
    let options = options(Socket::default());
    let mut sockets = listening(&address, &options, 1).unwrap();
    for _ in 0..2_000 {
        sockets.iter().for_each(ListenSocket::stop);
        let old = std::mem::take(&mut sockets);
        std::thread::scope(|scope| {
            scope.spawn(|| drop(old));
            sockets = listening(&address, &options, 1).unwrap();
        });
        assert!(address.is_path() && dir.path().join("a.sock").exists());
    }
}

#[test]
fn an_interface_or_owner_that_can_not_be_had_is_named() {
    let there = Socket { interface: Some("lo".into()), ..Socket::default() };
    assert!(listening(&tcp("127.0.0.1:0"), &options(there), 2).is_ok());
    let missing = Socket { interface: Some("no-such-one".into()), ..Socket::default() };
    assert_eq!(
        listening(&tcp("127.0.0.1:0"), &options(missing), 1).unwrap_err().to_string(),
        "can't listen on 127.0.0.1:0: socket.interface: No such device (os error 19); this host has no such \
         interface: choose one that `ip link` lists"
    );
}

#[test]
fn v6only_leaves_the_port_to_ipv4() {
    let v6only = options(Socket { v6only: true, ..Socket::default() });
    // The kernel chooses a port that is free in IPv6: in IPv4 it may be that of another test's connection, also of one
    // that has ended a while ago. Were it this socket that is in the way, it would be so at each.
    let sockets: Vec<ListenSocket> = (0..16).flat_map(|_| listening(&tcp("[::]:0"), &v6only, 1).unwrap()).collect();
    assert!(sockets.iter().all(|six| sockopt::ipv6_v6only(six).unwrap()));
    assert!(sockets.iter().any(|six| {
        let Endpoint::Tcp(address) = six.address.0 else { panic!("a TCP address") };
        listening(&tcp(&format!("0.0.0.0:{}", address.port())), &options(Socket::default()), 1).is_ok()
    }));
    let both = listening(&tcp("[::]:0"), &options(Socket::default()), 1).unwrap();
    assert!(!sockopt::ipv6_v6only(&both[0]).unwrap());
}

#[test]
fn a_socket_that_is_bound_again_has_the_same_options() {
    let wanted = options(Socket { fast_open: Some(7), defer_accept: Some(3), mptcp: true, ..Socket::default() });
    let first = listening(&tcp("127.0.0.1:0"), &wanted, 2).unwrap();
    let again = bind_again(&first[0].address, &wanted).unwrap();
    let shown = |socket: &ListenSocket| (sys::option::fast_open_queue(socket), sys::option::defers_accept(socket));
    assert_eq!(shown(&first[0]).0, Ok(7));
    assert!(shown(&first[0]).1.unwrap());
    assert_eq!(shown(&first[1]), shown(&first[0]));
    assert_eq!(shown(&again), shown(&first[0]));
    assert_eq!(again.address, first[0].address);
}
#[test]
fn what_is_bound_is_not_listened_on_before_it_is_asked_for() {
    let bound = bind_all(&tcp("127.0.0.1:0"), &options(Socket::default()), 2, Neighbours::None).unwrap();
    let BindAddr(Endpoint::Tcp(address)) = bound[0].address else { panic!("not TCP") };
    assert_eq!(std::net::TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    for socket in &bound {
        socket.listen(16).unwrap();
    }
    assert!(std::net::TcpStream::connect(address).is_ok());
    assert!(listening(&bound[0].address, &options(Socket::default()), 1).is_err());
    let beside = bind_all(&bound[0].address, &options(Socket::default()), 2, Neighbours::Own).unwrap();
    for socket in &beside {
        socket.listen(16).unwrap();
    }
    drop(bound);
    assert!(std::net::TcpStream::connect(address).is_ok());
}

#[test]
fn a_living_socket_takes_other_options_where_it_can() {
    let before = options(Socket::default());
    let wanted =
        Options { backlog: 99, ..options(Socket { fast_open: Some(7), defer_accept: Some(3), ..Socket::default() }) };
    let socket = listening(&tcp("127.0.0.1:0"), &before, 1).unwrap().remove(0);
    assert!(!before.needs_new_socket(&wanted, &socket.address));
    socket.adjust(&before, &wanted).unwrap();
    assert_eq!((sys::option::fast_open_queue(&socket), sys::option::defers_accept(&socket)), (Ok(7), Ok(true)));
    assert_eq!(sys::accept_queue(&socket).unwrap().limit, 99);
    socket.adjust(&wanted, &before).unwrap();
    assert_eq!((sys::option::fast_open_queue(&socket), sys::option::defers_accept(&socket)), (Ok(0), Ok(false)));
    let elsewhere = options(Socket { interface: Some("lo".into()), ..Socket::default() });
    assert!(before.needs_new_socket(&elsewhere, &socket.address));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tide.sock");
    let address = BindAddr(Endpoint::Unix(path.as_path().into()));
    assert!(!before.needs_new_socket(&elsewhere, &address));
    let socket = listening(&address, &before, 1).unwrap().remove(0);
    let open = Options { access: SocketAccess { mode: Some(0o666), ..SocketAccess::OWNER }, ..before.clone() };
    socket.adjust(&before, &open).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
}
