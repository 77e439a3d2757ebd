//! What is kept, and what the kernel's words about a backend mean, with real sockets.

use super::*;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// Our end of a connection, and the backend's.
fn tcp() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    near.set_nonblocking(true).unwrap();
    (Stream::new(near.into()).unwrap(), listener.accept().unwrap().0)
}

fn unix() -> (Stream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    (Stream::unix(near.into()), far)
}

fn reset(peer: TcpStream) {
    drop(Stream::new(peer.into()).unwrap());
}

const RESET: Errno = Errno::CONNRESET;

#[test]
fn a_look_takes_nothing_and_knows_each_end() {
    let (near, mut far) = tcp();
    assert_eq!(look(&near), None);
    far.write_all(b"ab").unwrap();
    for _ in 0..2 {
        assert_eq!(look(&near), Some(Stop::Relay));
    }
    let (near, far) = tcp();
    far.shutdown(Shutdown::Write).unwrap();
    assert_eq!(look(&near), Some(Stop::Died(Death::Finished)));
    let (near, far) = tcp();
    reset(far);
    assert_eq!(look(&near), Some(Stop::Died(Death::Failed(RESET))));
    let (near, far) = unix();
    drop(far);
    assert_eq!(look(&near), Some(Stop::Died(Death::Finished)));
    let (near, far) = unix();
    send(&near, b"unread", SendFlags::NOSIGNAL).unwrap();
    drop(far);
    assert_eq!(look(&near), Some(Stop::Died(Death::Failed(RESET))));
}

/// The kernel tells of a reset once, and says "end of file" from then on: that must not be taken for a FIN.
#[test]
fn a_write_that_was_told_of_the_reset_makes_no_false_end() {
    let write = |near: &Stream| send(near, b"more", SendFlags::NOSIGNAL).unwrap_err();
    let (near, far) = tcp();
    reset(far);
    assert_eq!(write(&near), RESET);
    assert_eq!(after_failed_write(&near, RESET), Stop::Died(Death::Failed(RESET)));
    // What came before the reset is an answer, and its reader must know that the error is taken.
    let (near, mut far) = tcp();
    far.write_all(b"an ans").unwrap();
    reset(far);
    assert_eq!(write(&near), RESET);
    assert_eq!(after_failed_write(&near, RESET), Stop::FailedAnswering(RESET));

    let (near, far) = unix();
    drop(far);
    assert_eq!(write(&near), Errno::PIPE);
    assert_eq!(after_failed_write(&near, Errno::PIPE), Stop::Died(Death::Finished));
    // It reads no more, and may answer all the same.
    let (near, far) = unix();
    far.shutdown(Shutdown::Read).unwrap();
    assert_eq!(write(&near), Errno::PIPE);
    assert_eq!(after_failed_write(&near, Errno::PIPE), Stop::FailedAnswering(Errno::PIPE));
}

/// Reads until there is nothing more.
fn fetch_all(kept: &mut Kept, client: &Stream) -> Result<usize, Errno> {
    while !kept.is_too_much() {
        if kept.fetch(client)? == 0 {
            return Ok(0);
        }
    }
    Ok(kept.bytes.len())
}

#[test]
fn what_is_kept_is_bounded_and_one_byte_more_is_noticed() {
    for limit in [1, READ.0 - 1, READ.0, READ.0 + 1, 5 * READ.1, 1 << 20] {
        let (client, mut peer) = tcp();
        let mut kept = Kept::new(limit);
        std::thread::scope(|scope| {
            scope.spawn(|| peer.write_all(&vec![7; limit]).unwrap());
            while kept.bytes.len() < limit {
                assert!(matches!(fetch_all(&mut kept, &client), Err(Errno::AGAIN)));
            }
        });
        assert!(!kept.is_too_much(), "exactly {limit} bytes may be sent again");
        peer.write_all(&[8; 16_000]).unwrap();
        while !kept.is_too_much() {
            let _ = fetch_all(&mut kept, &client);
        }
        // One read more at most, and no memory for more than that.
        assert!(kept.bytes.len() <= limit + READ.1 && kept.bytes.capacity() <= limit + 2 * READ.1, "{limit}");
        assert_eq!([kept.bytes[limit - 1], kept.bytes[limit]], [7, 8]);
    }
}

#[test]
fn the_next_backend_is_owed_all_of_it_and_the_fin() {
    let (client, mut peer) = tcp();
    let mut kept = Kept::new(100);
    peer.write_all(b"question").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    while kept.fin == Fin::Awaited {
        let _ = fetch_all(&mut kept, &client);
    }
    assert_eq!(kept.owed(), b"question");
    kept.taken = 5;
    assert_eq!(kept.owed(), b"ion");
    kept.begin_anew();
    assert_eq!((kept.owed(), kept.fin), (&b"question"[..], Fin::Read));
    (kept.taken, kept.fin) = (8, Fin::PassedOn);
    kept.begin_anew();
    assert_eq!((kept.owed(), kept.fin), (&b"question"[..], Fin::Read));
    kept.taken = 2;
    assert_eq!(&*kept.into_owed(), b"estion");
}
