//! The seats of several workers with real counts and real sockets, but without workers.

use super::share::share;
use super::*;
use crate::admission::{Gate, Process};
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::name::{BindAddr, ClientAddr, Endpoint};
use crate::net::listen::{AtClose, Neighbours, Options, SocketAccess, bind_all};
use crate::table::Listener;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a connection needs to be handed over.
pub struct Bench {
    seats: Seats,
    listener: Arc<Listener>,
    socket: TcpListener,
    since: Instant,
}

const CONFIG: &str =
    "[listeners.web]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n[pools.web]\nbackends = [\"127.0.0.1:1\"]\n";

impl Bench {
    /// With so many workers, all of them alive.
    pub fn new(workers: usize) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let config = Config::parse("lb.toml", CONFIG.as_bytes()).unwrap().config.listeners.remove(0);
        let handles = metrics.listener(&config.name, &[]);
        let since = Instant::now();
        let gate = Gate::open(&config.name, usize::MAX, &metrics);
        let bench = Self {
            seats: Seats::new((0..workers).map(|_| Vec::new()).collect(), &metrics, since),
            listener: Arc::new(Listener::new(config, handles, Vec::new(), gate, None)),
            socket: TcpListener::bind("127.0.0.1:0").unwrap(),
            since,
        };
        bench.beat(0..workers, 1);
        bench
    }

    pub fn process(&self) -> &Process {
        self.listener.gate.process()
    }

    fn beat(&self, workers: impl IntoIterator<Item = usize>, millis: u64) {
        for worker in workers {
            self.seats.beat(self.seats.of(worker), self.since + Duration::from_millis(millis));
        }
    }

    /// A connection that was accepted and admitted, and its client.
    pub fn arrival(&self) -> (Arrival, TcpStream) {
        let client = TcpStream::connect(self.socket.local_addr().unwrap()).unwrap();
        let (socket, address) = self.socket.accept().unwrap();
        let address = crate::name::ClientAddr::tcp(address);
        let arrival = Arrival {
            client: crate::net::stream::Stream::new(socket.into()).unwrap(),
            address,
            listener: Arc::clone(&self.listener),
            permit: self.listener.gate.before_accept(1).unwrap().admit(address, 1).unwrap(),
            place: None,
            accepted: Instant::now(),
        };
        (arrival, client)
    }

    /// A connection that this worker has accepted; given back if it is to serve it.
    fn accepted_by(&self, worker: usize) -> Option<Arrival> {
        let arrival = self.arrival().0;
        settle(&self.seats, self.seats.of(worker), arrival)
    }

    /// Two beats later.
    fn forget(&self) {
        for millis in [251, 501] {
            self.beat(0..self.seats.len(), millis);
        }
    }

    fn counts(&self) -> Vec<usize> {
        self.seats.iter().map(|seat| seat.sessions()).collect()
    }
}

#[test]
fn what_one_worker_accepts_is_shared_by_all_and_every_count_returns_to_zero() {
    let bench = Bench::new(4);
    let kept: Vec<Arrival> = (0..64).filter_map(|_| bench.accepted_by(2)).collect();
    assert_eq!(bench.counts().iter().sum::<usize>(), 64);
    assert!(bench.counts().iter().all(|&count| count <= share(64, 4)), "{:?}", bench.counts());
    assert_eq!(kept.len(), bench.counts()[2]);
    let metrics = &bench.seats.of(2).metrics;
    assert_eq!(metrics.handed_over.get() as usize, 64 - kept.len());
    for seat in bench.seats.iter() {
        let waiting = seat.inbox.take();
        assert_eq!(waiting.len(), if seat.index == 2 { 0 } else { seat.sessions() });
    }
    drop(kept);
    bench.forget();
    assert_eq!((bench.counts(), bench.process().active()), (vec![0; 4], 0));
}

#[test]
fn a_few_stay_where_they_came_in() {
    let bench = Bench::new(2);
    let kept: Vec<Arrival> = (0..2).filter_map(|_| bench.accepted_by(0)).collect();
    assert_eq!((kept.len(), bench.counts()), (2, vec![2, 0]));
}

#[test]
fn what_has_just_ended_counts_for_two_more_beats_so_that_short_ones_stay() {
    let bench = Bench::new(2);
    // A hundred short ones at either worker, one after the other.
    for _ in 0..100 {
        for worker in 0..2 {
            drop(bench.accepted_by(worker).expect("nobody has more than the other"));
        }
    }
    assert_eq!(bench.counts(), [100, 100]);
    // Many at once on one worker are few beside those.
    let burst: Vec<Arrival> = (0..20).map(|_| bench.accepted_by(0).expect("it stays")).collect();
    bench.beat(0..2, 251);
    assert_eq!(bench.counts(), [120, 100]);
    bench.beat(0..2, 501);
    assert_eq!(bench.counts(), [20, 0]);
    assert!(bench.accepted_by(0).is_none(), "now they would be many");
    drop(burst);
}

#[test]
fn a_silent_a_closed_and_a_full_inbox_are_given_nothing() {
    let bench = Bench::new(3);
    bench.beat([0, 2], 5_000);
    let mut kept: Vec<Arrival> = (0..20).filter_map(|_| bench.accepted_by(0)).collect();
    assert_eq!(bench.counts()[1], 0, "worker 1 is silent: {:?}", bench.counts());
    assert!(bench.counts()[2] > 0, "{:?}", bench.counts());

    drop(bench.seats.of(2).inbox.close());
    let before = bench.counts()[0];
    kept.extend((0..20).filter_map(|_| bench.accepted_by(0)));
    assert_eq!(bench.counts()[0], before + 20);
    assert!(bench.seats.of(2).inbox.take().is_empty());
    assert_eq!(kept.len(), before + 20);
}

#[test]
fn a_worker_that_has_not_begun_is_given_nothing_and_is_not_stuck() {
    let bench = Bench::new(2);
    let (begun, fresh) = (bench.seats.of(0), Bench::new(0));
    assert!(begun.seen(1).takes && !begun.is_stuck(1_001));
    assert!(!begun.seen(1_002).takes && begun.is_stuck(1_002));
    bench.seats.retire(begun);
    assert!(!begun.is_stuck(1_002), "who no longer accepts needs nobody");
    assert!(fresh.seats.is_empty());
    let unborn = Seats::new(vec![Vec::new()], &Metrics::new().unwrap(), Instant::now());
    assert!(!unborn.of(0).seen(0).takes && !unborn.of(0).is_stuck(u64::MAX));
}

#[test]
fn one_sibling_keeps_a_stuck_worker_until_it_gives_the_keys_back() {
    let bench = Bench::new(3);
    let seat = bench.seats.of(0);
    assert!(seat.hand_keys(None, Some(1)));
    assert!(!seat.hand_keys(None, Some(2)), "worker 1 has them");
    assert!(seat.hand_keys(Some(1), Some(2)), "from a keeper that got stuck itself");
    assert!(!seat.hand_keys(Some(1), None), "which notices when it is back");
    assert!(seat.hand_keys(Some(2), None));
    assert_eq!(seat.keeper(), None);
}

#[tokio::test(flavor = "current_thread")]
async fn a_seat_retires_once_whoever_says_so() {
    let bench = Bench::new(2);
    bench.seats.retire(bench.seats.of(0));
    bench.seats.retire(bench.seats.of(0));
    let early = tokio::time::timeout(Duration::from_millis(1), bench.seats.all_retired()).await;
    assert!(early.is_err(), "worker 1 still accepts");
    bench.seats.retire(bench.seats.of(1));
    bench.seats.all_retired().await;
}

/// Threads that all accept at once, and one of them most of all.
#[test]
fn concurrent_workers_stay_within_their_share() {
    const EACH: usize = 2_000;
    let bench = Bench::new(8);
    let held: Vec<Place> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let seats = &bench.seats;
                let own = if thread < 4 { 0 } else { thread };
                scope.spawn(move || {
                    let place = |_| {
                        let Choice { worker, sessions } = choice(seats, seats.of(own));
                        seats.of(worker).claim(sessions)
                    };
                    // A claim that fails shows that somebody else's has succeeded.
                    (0..).filter_map(place).take(EACH).collect::<Vec<Place>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let most = bench.counts().into_iter().max().unwrap();
    assert!(most <= share(held.len(), 8), "{:?}", bench.counts());
    drop(held);
    bench.forget();
    assert_eq!(bench.counts(), [0; 8]);
}

#[test]
fn who_comes_once_a_stop_has_begun_is_refused_and_who_came_before_is_in_the_queue() {
    let options = Options {
        backlog: 16,
        at_close: AtClose::Reset,
        socket: config::Socket::default(),
        access: SocketAccess::OWNER,
    };
    let wanted = BindAddr(Endpoint::Tcp("127.0.0.1:0".parse().unwrap()));
    let socket = Arc::new(bind_all(&wanted, &options, 1, Neighbours::None).unwrap().remove(0));
    socket.listen(options.backlog).unwrap();
    let Endpoint::Tcp(address) = socket.address.0 else { panic!("{}", socket.address) };
    let shared = SharedSocket::new(Arc::clone(&socket), options, Arc::clone(&Bench::new(1).listener));
    let seats = Seats::new(vec![vec![Arc::new(shared)]], &Metrics::new().unwrap(), Instant::now());
    let before = TcpStream::connect(address).unwrap();
    seats.advance(Stage::Draining);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let (_, client) = socket.accept().unwrap();
    assert_eq!(client, ClientAddr::tcp(before.local_addr().unwrap()));
}

#[test]
fn a_socket_that_goes_is_hidden_unless_others_of_its_address_share_its_clients() {
    let bench = Bench::new(1);
    for (heir, is_hidden, lingers) in
        [(Heir::Nobody, true, false), (Heir::Other, true, true), (Heir::Same, false, false)]
    {
        let (at_close, access) = (AtClose::Reset, SocketAccess::default());
        let options = Options { backlog: 16, at_close, socket: config::Socket::default(), access };
        let wanted = BindAddr(Endpoint::Tcp("127.0.0.1:0".parse().unwrap()));
        let socket = bind_all(&wanted, &options, 1, Neighbours::None).unwrap().remove(0);
        socket.listen(16).unwrap();
        let Endpoint::Tcp(address) = socket.address.0 else { panic!("a TCP address") };
        let shared = SharedSocket::new(Arc::new(socket), options, Arc::clone(&bench.listener));
        shared.retire(heir);
        assert_eq!((TcpStream::connect(address).is_err(), shared.lingers()), (is_hidden, lingers), "{heir:?}");
    }
}
