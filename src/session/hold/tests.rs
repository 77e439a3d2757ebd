//! What is kept of a client, with real sockets.

use super::*;
use crate::config;
use crate::metrics::Metrics;
use crate::net::stream::Stream;
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};

fn hold(max_bytes: u64, max_bytes_each: u64) -> Arc<Hold> {
    let config = config::Hold { max_bytes, max_bytes_each, ..config::Hold::default() };
    let metrics = Arc::new(Metrics::new().unwrap());
    Arc::new(Hold::new(config, || metrics.hold(&PoolName::new("web")), None))
}

/// Our end of a client's connection, and the client's.
fn client() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let near = listener.accept().unwrap().0;
    near.set_nonblocking(true).unwrap();
    (Stream::new(near.into()).unwrap(), far)
}

/// Reads until there is nothing more to come or no room for it.
fn fetch_all(kept: &mut Kept, client: &Stream) {
    while kept.takes_more() {
        match kept.fetch(client) {
            Ok(()) | Err(Errno::AGAIN) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn bytes_and_fin_are_kept_as_they_came() {
    let hold = hold(1 << 20, 1 << 20);
    let (near, mut far) = client();
    let mut kept = Kept::new(hold.room());
    let sent: Vec<u8> = (0..100_000_u32).map(|index| index as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            far.write_all(&sent).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
        });
        fetch_all(&mut kept, &near);
    });
    assert_eq!(hold.bytes(), 100_000, "as many as there are");
    assert!(kept.bytes.capacity() < kept.bytes.len() + STEP);
    let (handover, room) = kept.into_handover();
    assert_eq!((&*handover.pending, handover.client_fin), (&*sent, Fin::Read));
    assert_eq!(hold.bytes(), 100_000, "until a backend has them");
    drop(room);
    assert_eq!(hold.bytes(), 0);
}

#[test]
fn what_is_beyond_the_bounds_stays_in_the_kernel() {
    for (all, each, kept_of_each) in [(1 << 20, 5_000, [5_000, 5_000]), (7_000, 5_000, [5_000, 2_000])] {
        let hold = hold(all, each);
        let (mut clients, mut both) = (Vec::new(), Vec::new());
        for expected in kept_of_each {
            let (near, mut far) = client();
            far.write_all(&vec![7; 20_000]).unwrap();
            let mut kept = Kept::new(hold.room());
            fetch_all(&mut kept, &near);
            assert_eq!((kept.bytes.len(), kept.fin), (expected, Fin::Awaited));
            clients.push((near, far));
            both.push(kept);
        }
        assert_eq!(hold.bytes(), kept_of_each.iter().sum::<usize>() as u64);
        drop(both);
        assert_eq!(hold.bytes(), 0);
    }
}

#[test]
fn a_client_that_sends_byte_by_byte_takes_no_more_memory() {
    let hold = hold(1 << 20, 1 << 20);
    let (near, mut far) = client();
    far.set_nodelay(true).unwrap();
    let mut kept = Kept::new(hold.room());
    for count in 1..3_000 {
        far.write_all(b"x").unwrap();
        while kept.bytes.len() < count {
            let _ = kept.fetch(&near);
        }
        assert!(kept.bytes.capacity() < count + STEP);
    }
}
