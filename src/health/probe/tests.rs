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
    assert_eq!(timed_out(STALL / 2, LIMIT, None), ProbeError::TimedOut(LIMIT));
    let minute = Duration::from_secs(60);
    assert_eq!(timed_out(minute, LIMIT, Some("half".into())), ProbeError::Stalled(minute));
    assert_eq!(ProbeError::Stalled(minute).outcome(), Outcome::Frozen);
}

/// Stops the thread, as if the whole process were stopped.
#[expect(clippy::disallowed_methods, reason = "to stand still is what the test is about")]
fn stand_still(time: Duration) {
    std::thread::sleep(time);
}

/// A conversation that is silent until the thread stands still for longer than its limit, and is over just then.
async fn meanwhile(limit: Duration, still: Duration, answer: Result<(), ()>) -> Option<Result<(), ()>> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let asking = async { told.await.unwrap() };
    let standing = async {
        tokio::time::sleep(limit / 2).await;
        stand_still(still);
        // The time-out is seen first, as where epoll_wait was interrupted.
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        tell.send(answer).unwrap();
    };
    tokio::join!(within(limit, Instant::now(), asking), standing).0
}

#[tokio::test(flavor = "current_thread")]
async fn an_answer_that_came_while_we_stood_still_counts() {
    let (limit, still) = (Duration::from_millis(50), Duration::from_secs(1));
    assert_eq!(meanwhile(limit, still, Ok(())).await, Some(Ok(())));
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_backend_does_while_we_stand_still_is_not_held_against_it() {
    let (limit, still) = (Duration::from_millis(300), 2 * STALL);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let exchange = config::Exchange { send: vec![], expect: config::Expect::Text(b"ok".into()), max_bytes: 10 };
    let asking = ask(Question::Exchange(Arc::new(exchange)), tcp(listener.local_addr().unwrap()), limit);
    let standing = async {
        tokio::time::sleep(limit / 2).await;
        // It gives up a client that says nothing.
        drop(listener.accept().unwrap());
        stand_still(limit + still);
    };
    let error = tokio::join!(asking, standing).0.unwrap_err();
    assert!(matches!(error, ProbeError::Stalled(late) if late >= still), "{error:?}");
}
