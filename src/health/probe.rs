//! One question to one backend: does it take a connection?
//!
//! Owns the answer and whose fault a failure is; keeps no state and retries nothing. The connection is closed in
//! order as soon as it stands, so that the backend's log stays quiet.

use crate::metrics::{CheckResult, ConnectErrorReason};
use crate::name::BackendAddr;
use crate::net::connect::{ConnectError, connect};
use crate::pool::health::Outcome;
use std::time::Duration;
use tokio::time::Instant;

/// A time-out that comes this much too late says that we were not running, not that the backend didn't answer.
const STALL: Duration = Duration::from_millis(500);

/// Why a probe did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("{0}")]
    Connect(ConnectError),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    #[error("this process was not running for {}", humantime::format_duration(*.0))]
    Stalled(Duration),
}

impl ProbeError {
    #[must_use]
    pub fn check_result(&self) -> CheckResult {
        match self {
            Self::Connect(error) if error.is_ours() => CheckResult::Frozen,
            Self::Connect(error) if error.reason() == ConnectErrorReason::Timeout => CheckResult::Timeout,
            Self::Connect(_) => CheckResult::Failure,
            Self::TimedOut(_) => CheckResult::Timeout,
            Self::Stalled(_) => CheckResult::Frozen,
        }
    }

    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self.check_result() {
            CheckResult::Frozen => Outcome::Frozen,
            CheckResult::Success | CheckResult::Failure | CheckResult::Timeout => Outcome::Failure,
        }
    }
}

/// Connects within `limit`, and closes.
pub async fn probe(address: BackendAddr, limit: Duration) -> Result<(), ProbeError> {
    let started = Instant::now();
    match tokio::time::timeout(limit, connect(&address)).await {
        Ok(Ok(stream)) => {
            stream.close();
            Ok(())
        }
        Ok(Err(error)) => Err(ProbeError::Connect(error)),
        Err(_) => Err(timed_out(started.elapsed(), limit)),
    }
}

fn timed_out(took: Duration, limit: Duration) -> ProbeError {
    let late = took.saturating_sub(limit);
    if late > STALL { ProbeError::Stalled(late) } else { ProbeError::TimedOut(limit) }
}

#[cfg(test)]
mod tests {
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
            assert_eq!(probe(tcp(listener.local_addr().unwrap()), LIMIT).await, Ok(()));
            let (mut seen, _) = listener.accept().unwrap();
            assert_eq!(seen.read(&mut [0; 1]).unwrap(), 0, "an end of file, no reset");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn nobody_listening_is_the_backends_failure() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = probe(tcp(address), LIMIT).await.unwrap_err();
        assert_eq!(refused, ProbeError::Connect(Errno::CONNREFUSED.into()));
        assert_eq!((refused.outcome(), refused.check_result()), (Outcome::Failure, CheckResult::Failure));
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_unix_backend_is_asked_at_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.sock");
        let address = BackendAddr(Endpoint::Unix(path.as_path().into()));
        let missing = probe(address.clone(), LIMIT).await.unwrap_err();
        assert_eq!(missing.outcome(), Outcome::Failure, "{missing}");

        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        assert_eq!(probe(address.clone(), LIMIT).await, Ok(()));
        // That connection was never accepted: the queue is full now.
        assert_eq!(probe(address, LIMIT).await, Err(ProbeError::TimedOut(LIMIT)));
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
    fn a_time_out_that_comes_far_too_late_is_ours() {
        assert_eq!(timed_out(LIMIT + STALL / 2, LIMIT), ProbeError::TimedOut(LIMIT));
        let minute = Duration::from_secs(60);
        assert_eq!(timed_out(LIMIT + minute, LIMIT), ProbeError::Stalled(minute));
        assert_eq!(ProbeError::Stalled(minute).outcome(), Outcome::Frozen);
    }
}
