//! Sessions with limited bandwidth, on a clock that the test turns: real sockets, but the engine's time passes only
//! when a session has used up what it was given.

use super::tests::{LARGE, Log, PATIENT, PIPES, Probe, Rig, SMALL, pair, pattern, read_end, reset};
use super::*;
use crate::config::Bandwidth;
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn limited(to_client: Option<u64>, to_backend: Option<u64>, burst: u64) -> Terms {
    Terms { timeouts: PATIENT, bandwidth: Bandwidth { to_client, to_backend, burst } }
}

fn of_way(direction: Direction, rate: u64, burst: u64) -> Terms {
    match direction {
        Direction::ToClient => limited(Some(rate), None, burst),
        Direction::ToBackend => limited(None, Some(rate), burst),
    }
}

/// An engine and the time that it is shown.
struct World {
    engine: Engine<Probe>,
    now: Instant,
}

impl World {
    fn new(mode: RelayMode) -> Self {
        let now = Instant::now();
        Self { engine: Engine::new(PIPES, mode, now).unwrap(), now }
    }

    fn turn(&mut self) -> Turn {
        self.engine.turn(self.now).unwrap()
    }

    /// Somebody waits for tokens, and nobody has got some already.
    fn waits(&self) -> bool {
        (self.engine.millis(self.now) + 1..Millis::MAX).contains(&self.engine.waiting.next())
    }

    /// The time of the first session that gets tokens.
    fn pass(&mut self) {
        self.now = self.engine.started + Duration::from_millis(self.engine.waiting.next());
    }

    /// The engine's time since `since`, in seconds.
    fn since(&self, since: Instant) -> f64 {
        self.now.duration_since(since).as_secs_f64()
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(begun.elapsed() < Duration::from_secs(30), "never happened: {what}");
            self.turn();
        }
    }

    fn join(&mut self, client: Stream, backend: Stream, terms: Terms) -> Rc<RefCell<Log>> {
        let log: Rc<RefCell<Log>> = Rc::default();
        self.engine.add(client, backend, terms, Probe(Rc::clone(&log)), self.now);
        log
    }

    fn tcp(&mut self, terms: Terms) -> (TcpStream, TcpStream, Rc<RefCell<Log>>) {
        let ((client, near), (backend, far)) = (pair(), pair());
        let [near, far] = [near, far].map(|socket| Stream::new(socket.into()).unwrap());
        let log = self.join(near, far, terms);
        (client, backend, log)
    }
}

/// More than any test sends.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| (0..32 << 20).map(pattern).collect());

/// Sends as much as there is room for and takes as much as there is, for so long; the bytes that went through.
fn carry(
    world: &mut World,
    source: &mut dyn Write,
    sink: &mut dyn Read,
    moved: &dyn Fn() -> usize,
    span: Duration,
) -> u64 {
    // Here, so that the time that a slow machine takes to make it is not that of a step.
    LazyLock::force(&PATTERN);
    let (end, mut sent, mut received) = (world.now + span, 0, 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        // On a slow machine what was sent may arrive late: the time stands still meanwhile.
        world.until("it waits for tokens", |world| {
            while let Ok(count) = source.write(&PATTERN[sent..PATTERN.len().min(sent + (64 << 10))]) {
                assert!(count > 0, "the pattern is too short");
                sent += count;
            }
            while let Ok(count) = sink.read(&mut buffer) {
                assert!(count > 0, "a false end");
                assert!(buffer[..count] == PATTERN[received..received + count], "after {received} bytes");
                received += count;
            }
            world.waits() && received == moved()
        });
        world.pass();
        if world.now > end {
            world.now = end;
            return received as u64;
        }
    }
}

/// Within what the bucket gives in this time, and at least 95 % of the rate.
fn assert_rate(bytes: u64, rate: u64, burst: u64, seconds: u64) {
    let (least, most) = (rate * seconds * 95 / 100, burst + rate * seconds);
    assert!((least..=most).contains(&bytes), "{bytes} bytes in {seconds} s at {rate} B/s, burst {burst}");
}

#[test]
fn one_large_stream_keeps_to_its_rate_by_copy_and_by_splice_both_ways() {
    for mode in [RelayMode::Copy, RelayMode::Auto, RelayMode::Splice] {
        for direction in Direction::BOTH {
            // The time of the test runs ahead of TCP's own, which opens a window slowly for small pieces: few of these.
            for (rate, burst) in [(512 * KIB, 64 * KIB), (128 * KIB, 4 * KIB), (8 * MIB, 64 * KIB)] {
                let mut world = World::new(mode);
                let (client, backend, log) = world.tcp(of_way(direction, rate, burst));
                let (mut source, mut sink) = match direction {
                    Direction::ToBackend => (client, backend),
                    Direction::ToClient => (backend, client),
                };
                let moved = || log.borrow().moved[direction as usize];
                let bytes = carry(&mut world, &mut source, &mut sink, &moved, Duration::from_secs(2));
                assert_rate(bytes, rate, burst, 2);
                let piped = world.engine.pipe_use().open > 0;
                // Pieces of 4 KiB aren't worth a pipe.
                assert_eq!(piped, mode != RelayMode::Copy && burst > 4 * KIB, "{mode:?} at {rate}");
            }
        }
    }
}

#[test]
fn unix_sockets_keep_to_it_too() {
    for mode in [RelayMode::Copy, RelayMode::Splice] {
        let mut world = World::new(mode);
        let ((mut client, near), (mut backend, far)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        for socket in [&client, &near, &backend, &far] {
            socket.set_nonblocking(true).unwrap();
        }
        let terms = limited(Some(MIB), None, 64 * KIB);
        let log = world.join(Stream::unix(near.into()), Stream::unix(far.into()), terms);
        let moved = || log.borrow().moved[Direction::ToClient as usize];
        let bytes = carry(&mut world, &mut backend, &mut client, &moved, Duration::from_secs(3));
        assert_rate(bytes, MIB, 64 * KIB, 3);
    }
}

#[test]
fn each_of_many_sessions_gets_its_own_rate() {
    const SESSIONS: usize = 200;
    let mut world = World::new(RelayMode::Auto);
    let begun = world.now;
    let mut peers: Vec<_> = (0..SESSIONS)
        .map(|number| {
            let rate = 16 * KIB * (1 + number as u64 % 4);
            (rate, world.tcp(limited(Some(rate), None, 8 * KIB)))
        })
        .collect();
    let (block, mut buffer) = (vec![7; 64 << 10], vec![0; 64 << 10]);
    while world.since(begun) < 4.0 {
        world.until("all of them wait for tokens", |world| {
            for (_, (client, backend, _)) in &mut peers {
                let _ = backend.write(&block);
                while client.read(&mut buffer).is_ok() {}
            }
            let now = world.engine.millis(world.now);
            let sleeps = |entry: &Entry<Probe>| entry.rates.as_ref().unwrap().sleeps_until() > Some(now);
            world.engine.entries.iter().all(|(_, entry)| sleeps(entry))
        });
        world.pass();
    }
    for (rate, (.., log)) in peers {
        let moved = log.borrow().moved[Direction::ToClient as usize] as u64;
        let (least, most) = (rate * 4 * 93 / 100, 8 * KIB + (rate as f64 * world.since(begun)) as u64);
        assert!((least..=most).contains(&moved), "{moved} at {rate}");
    }
}

/// Up to the first pause: `sent` bytes wait at the backend's end, and a burst of them has been read.
fn starved(terms: Terms, sent: usize) -> (World, TcpStream, TcpStream, Rc<RefCell<Log>>) {
    let mut world = World::new(RelayMode::Auto);
    let (client, mut backend, log) = world.tcp(terms);
    let block: Vec<u8> = (0..sent).map(pattern).collect();
    assert_eq!(backend.write(&block).unwrap(), sent);
    world.until("it waits for tokens", |world| world.waits());
    (world, client, backend, log)
}

/// Everything up to the end, the clock going on whenever nothing else can happen.
fn rest(world: &mut World, client: &mut TcpStream) -> (usize, Result<(), ErrorKind>) {
    let (mut received, mut end, mut buffer) = (0, None, vec![0; 64 << 10]);
    world.until("the end", |world| {
        match client.read(&mut buffer) {
            Ok(0) => end = Some(Ok(())),
            Ok(count) => received += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => end = Some(Err(error.kind())),
        }
        if let Some(next) = world.engine.next_look()
            && end.is_none()
        {
            world.now = world.now.max(next);
        }
        end.is_some()
    });
    (received, end.unwrap())
}

#[test]
fn who_waits_for_tokens_costs_no_turns_and_moves_nothing() {
    let (mut world, _client, mut backend, log) = starved(limited(Some(KIB), None, KIB), 30_000);
    let moved = log.borrow().moved;
    for _ in 0..50 {
        backend.write_all(b"more").unwrap();
        let begun = Instant::now();
        // Bytes that arrive are no reason to look again.
        while begun.elapsed() < Duration::from_millis(2) {
            assert_eq!(world.turn(), Turn::Idle);
        }
    }
    assert_eq!(log.borrow().moved, moved);
    let next = world.engine.next_look().unwrap();
    assert!(next > world.now + Duration::from_millis(50), "{:?}", next - world.now);
}

#[test]
fn the_other_direction_goes_on_meanwhile() {
    let (mut world, mut client, mut backend, log) = starved(limited(Some(KIB), None, KIB), 30_000);
    let (block, mut buffer) = (vec![1; 64 << 10], vec![0; 64 << 10]);
    world.until("an upload", |_| {
        let _ = client.write(&block);
        let _ = backend.read(&mut buffer);
        log.borrow().moved[Direction::ToBackend as usize] > LARGE
    });
    assert_eq!(log.borrow().moved[Direction::ToClient as usize] as u64, KIB);
}

#[test]
fn what_waits_for_tokens_is_not_idle_and_is_once_it_has_gone() {
    let terms = Terms { timeouts: Timeouts { idle: 40, ..PATIENT }, ..limited(Some(KIB), None, KIB) };
    let (mut world, mut client, _backend, log) = starved(terms, 5 * SMALL);
    let begun = world.now;
    let (received, end) = rest(&mut world, &mut client);
    assert_eq!((received, end), (5 * SMALL, Err(ErrorKind::ConnectionReset)));
    assert!(world.since(begun) > 3.0, "{} s of the engine's time", world.since(begun));
    assert_eq!(log.borrow().ends, [RelayEnd::IdleTimeout]);
}

#[test]
fn a_fin_comes_after_all_that_waited() {
    let (mut world, mut client, backend, log) = starved(limited(Some(10 * KIB), None, KIB), 50_000);
    let begun = world.now;
    backend.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut world, &mut client), (50_000, Ok(())));
    assert!(world.since(begun) > 4.0, "{} s of the engine's time", world.since(begun));
    client.shutdown(Shutdown::Write).unwrap();
    world.until("the end", |_| !log.borrow().ends.is_empty());
    assert_eq!(log.borrow().ends, [RelayEnd::Complete]);
}

#[test]
fn the_half_close_time_does_not_run_while_bytes_wait() {
    let terms = Terms { timeouts: Timeouts { half_close: 40, ..PATIENT }, ..limited(Some(KIB), None, KIB) };
    let (mut world, mut client, _backend, log) = starved(terms, 3 * SMALL);
    client.shutdown(Shutdown::Write).unwrap();
    world.until("the FIN passed on", |_| !log.borrow().ended_one_way.is_empty());
    assert_eq!(rest(&mut world, &mut client), (3 * SMALL, Err(ErrorKind::ConnectionReset)));
    assert_eq!(log.borrow().ends, [RelayEnd::HalfCloseTimeout]);
}

#[test]
fn a_reset_is_passed_on_from_both_sides() {
    let (mut world, client, mut backend, log) = starved(limited(Some(KIB), None, KIB), 30_000);
    let begun = world.now;
    reset(client);
    let mut seen = None;
    world.until("the reset", |world| {
        world.now += Duration::from_millis(1);
        seen = seen.or_else(|| read_end(&mut backend));
        seen.is_some() && !log.borrow().ends.is_empty()
    });
    assert_eq!(
        (seen, &log.borrow().ends[..]),
        (Some(Err(ErrorKind::ConnectionReset)), &[RelayEnd::Reset(Side::Client)][..])
    );
    assert!(world.engine.entries.is_empty() && world.since(begun) < 10.0);

    // What the backend had sent before its reset still comes, at its pace, and no false end after it.
    let (mut world, mut client, backend, log) = starved(limited(Some(10 * KIB), None, KIB), 30_000);
    reset(backend);
    let (received, end) = rest(&mut world, &mut client);
    assert_eq!((end, &log.borrow().ends[..]), (Err(ErrorKind::ConnectionReset), &[RelayEnd::Reset(Side::Backend)][..]));
    assert_eq!(received, 30_000);
}

#[test]
fn a_lifetime_ends_who_waits_after_what_was_read() {
    let terms = Terms { timeouts: Timeouts { lifetime: 1_000, ..PATIENT }, ..limited(Some(KIB), None, KIB) };
    let (mut world, mut client, mut backend, log) = starved(terms, 30_000);
    let (received, end) = rest(&mut world, &mut client);
    assert_eq!((end, &log.borrow().ends[..]), (Err(ErrorKind::ConnectionReset), &[RelayEnd::Lifetime][..]));
    assert_eq!(received, log.borrow().moved[Direction::ToClient as usize]);
    assert!(received as u64 <= 2 * KIB + KIB / 5, "{received}");
    assert_eq!(read_end(&mut backend), Some(Err(ErrorKind::ConnectionReset)));
}

/// What was kept from before the engine's time is delivered at once, and paid for.
#[test]
fn what_it_was_given_to_deliver_counts() {
    let mut world = World::new(RelayMode::Auto);
    let ((mut client, near), (mut backend, far)) = (pair(), pair());
    let [near, far] = [near, far].map(|socket| Stream::new(socket.into()).unwrap());
    let (log, begun): (Rc<RefCell<Log>>, _) = (Rc::default(), world.now);
    let handover = Handover { pending: vec![1; 5_000].into(), ..Handover::default() };
    let terms = limited(None, Some(KIB), KIB);
    world.engine.resume(near, far, handover, terms, Probe(Rc::clone(&log)), world.now);
    client.write_all(b"tide").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    world.until("it waits for tokens", |world| world.waits());
    assert_eq!(log.borrow().moved[Direction::ToBackend as usize], 5_000);
    assert_eq!(rest(&mut world, &mut backend), (5_004, Ok(())));
    assert!(world.since(begun) >= (5_000.0 - 1_024.0) / 1_024.0, "{} s", world.since(begun));
}

#[test]
fn a_key_that_has_a_new_owner_wakes_nobody_and_the_list_empties() {
    let (mut world, ..) = starved(limited(Some(KIB), None, KIB), 30_000);
    assert_eq!(world.engine.abort_all(), 1);
    let (_client, mut backend, log) = world.tcp(limited(Some(KIB), None, 2 * KIB));
    backend.write_all(&vec![1; 30_000]).unwrap();
    world.until("the second one waits", |_| log.borrow().moved[Direction::ToClient as usize] as u64 == 2 * KIB);
    for _ in 0..20 {
        assert!(world.engine.waiting.len() <= 2);
        world.pass();
        world.turn();
    }
    assert_eq!(world.engine.waiting.len(), 1, "the stale place has gone");
}

#[test]
fn a_limit_costs_an_entry_one_pointer() {
    assert_eq!(size_of::<Option<Box<rate::Rates>>>(), size_of::<usize>());
    let mut rig = Rig::new(PATIENT);
    rig.carry(Side::Client, SMALL);
    assert!(rig.engine.entries.iter().all(|(_, entry)| entry.rates.is_none()));
    assert_eq!(rig.engine.waiting.next(), Millis::MAX);
}

/// By the wall clock: the driver's timer alone wakes who waits. Bounded from above by the tokens.
#[tokio::test(flavor = "local")]
async fn the_driver_wakes_who_waits() {
    const RATE: u64 = 200 * KIB;
    let begun = Instant::now();
    let mut world = World::new(RelayMode::Auto);
    let (mut client, mut backend, _) = world.tcp(limited(Some(RATE), None, 10 * KIB));
    backend.write_all(&vec![1; 100_000]).unwrap();
    let engine = Rc::new(RefCell::new(world.engine));
    let driver = crate::drain::spawn_local(drive(Rc::clone(&engine)).unwrap());
    let (mut received, mut buffer) = (0, vec![0; 64 << 10]);
    while received < 100_000 {
        received += client.read(&mut buffer).unwrap_or(0) as u64;
        let most = 10 * KIB + RATE * begun.elapsed().as_millis() as u64 / 1_000 + RATE / 1_000;
        assert!(received <= most, "{received} of {most}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{received} bytes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    driver.abort();
}
