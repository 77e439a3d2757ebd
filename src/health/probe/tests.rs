//! The plain connect, and whose fault a failure is.

use super::*;
use crate::name::Endpoint;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};

const LIMIT: Duration = Duration::from_secs(1);

fn tcp(address: SocketAddr) -> BackendAddr {
    BackendAddr(Endpoint::Tcp(address))
}

#[tokio::test(flavor = "current_thread")]
async fn a_listening_backend_sees_a_connection_that_ends_in_order() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(host).unwrap();
        assert_eq!(ask(Question::Tcp, tcp(listener.local_addr().unwrap()), LIMIT).await, Ok(Answer::Good));
        let (mut seen, _) = listener.accept().unwrap();
        assert_eq!(seen.read(&mut [0; 1]).unwrap(), 0, "an end of file, no reset");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn nobody_listening_is_the_backends_failure() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = ask(Question::Tcp, tcp(address), LIMIT).await.unwrap_err();
    assert_eq!(refused, ProbeError::Connect(Errno::CONNREFUSED.into()));
    assert_eq!((refused.outcome(), refused.check_result()), (Outcome::Failure, CheckResult::Failure));
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_unix_backend_is_asked_at_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let address = BackendAddr(Endpoint::Unix(path.as_path().into()));
    let missing = ask(Question::Tcp, address.clone(), LIMIT).await.unwrap_err();
    assert_eq!(missing.outcome(), Outcome::Failure, "{missing}");

    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    listener.listen(0).unwrap();
    assert_eq!(ask(Question::Tcp, address.clone(), LIMIT).await, Ok(Answer::Good));
    // That connection was never accepted: the queue is full now.
    assert_eq!(ask(Question::Tcp, address, LIMIT).await, Err(ProbeError::TimedOut(LIMIT)));
}

#[test]
fn errors_of_ours_freeze_and_others_count() {
    for (errno, outcome) in [
        (Errno::MFILE, Outcome::Frozen),
        (Errno::NFILE, Outcome::Frozen),
        (Errno::NOBUFS, Outcome::Frozen),
        (Errno::NOMEM, Outcome::Frozen),
        (Errno::ADDRNOTAVAIL, Outcome::Frozen),
        (Errno::NETUNREACH, Outcome::Frozen),
        (Errno::PERM, Outcome::Frozen),
        (Errno::ACCESS, Outcome::Frozen),
        (Errno::CONNREFUSED, Outcome::Failure),
        (Errno::CONNRESET, Outcome::Failure),
        (Errno::HOSTUNREACH, Outcome::Failure),
        (Errno::TIMEDOUT, Outcome::Failure),
    ] {
        assert_eq!(ProbeError::Connect(errno.into()).outcome(), outcome, "{errno:?}");
    }
}

#[test]
fn a_shortage_in_mid_conversation_is_ours_and_other_errors_are_not() {
    #[derive(Debug, thiserror::Error)]
    #[error("within")]
    struct Outer(#[source] io::Error);
    let of = |errno: Errno| shortage(&io::Error::from_raw_os_error(errno.raw_os_error()));
    assert_eq!(of(Errno::NOBUFS).unwrap().outcome(), Outcome::Frozen);
    assert_eq!(of(Errno::CONNRESET), None);
    assert_eq!(shortage(&io::Error::other("no number")), None);
    let within = Outer(io::Error::from_raw_os_error(Errno::NOMEM.raw_os_error()));
    assert_eq!(shortage(&within), Some(ProbeError::Shortage(Errno::NOMEM.into())));
}

#[test]
fn a_time_out_that_comes_far_too_late_is_ours() {
    assert_eq!(timed_out(LIMIT + STALL / 2, LIMIT, None), ProbeError::TimedOut(LIMIT));
    let minute = Duration::from_secs(60);
    assert_eq!(timed_out(LIMIT + minute, LIMIT, Some("half".into())), ProbeError::Stalled(minute));
    assert_eq!(ProbeError::Stalled(minute).outcome(), Outcome::Frozen);
}
