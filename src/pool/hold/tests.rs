//! The hold against time that the tests make, and against a model.

use super::*;
use crate::config::Rate;
use crate::metrics::Metrics;
use crate::name::PoolName;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Wake;

fn hold_of(change: impl FnOnce(&mut config::Hold)) -> Arc<Hold> {
    let mut config = config::Hold {
        max_connections: 3,
        max_bytes: 100,
        max_bytes_each: 40,
        max_wait: Duration::from_secs(5),
        overflow: Overflow::Newest,
        release_rate: Rate { count: 100, per: Duration::from_secs(1) },
    };
    change(&mut config);
    let metrics = Arc::new(Metrics::new().unwrap());
    Arc::new(Hold::new(config, || metrics.hold(&PoolName::new("web")), None))
}

#[derive(Default)]
struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// A session that does what the one of a worker does: it asks, and sleeps until it is called or its time has come.
struct Sleeper {
    name: u64,
    held: Held,
    room: HeldBytes,
    bell: Arc<Bell>,
    until: Millis,
}

impl Sleeper {
    fn new(name: u64, held: Held, room: HeldBytes) -> Self {
        Self { name, held, room, bell: Arc::default(), until: 0 }
    }

    /// What it does now, unless it sleeps on.
    fn look(&mut self, open: bool, now: Millis) -> Option<Turn> {
        if !self.bell.0.swap(false, SeqCst) && now < self.until {
            return None;
        }
        loop {
            let turn = self.held.ask(open, now);
            let Turn::Wait { until } = turn else { return Some(turn) };
            assert!(until > now, "it would ask again at once");
            self.until = until;
            if self.held.poll_called(&Waker::from(Arc::clone(&self.bell))).is_pending() {
                return None;
            }
        }
    }
}

/// The pool that the sleepers wait for, and what became of them.
struct World {
    hold: Arc<Hold>,
    now: Millis,
    /// The pool says that it has a backend.
    open: bool,
    /// That backend lets itself be connected to.
    good: bool,
    /// A connect takes so long.
    connect: Millis,
    sleepers: Vec<Sleeper>,
    searching: Vec<(Millis, Sleeper)>,
    served: Vec<(Millis, u64)>,
    expired: Vec<(Millis, u64)>,
    displaced: Vec<u64>,
    next_name: u64,
    /// How many searches came to nothing.
    failed: usize,
}

impl World {
    fn new(hold: Arc<Hold>) -> Self {
        let (sleepers, searching) = (Vec::new(), Vec::new());
        let (served, expired, displaced) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            hold,
            now: 1_000,
            open: false,
            good: true,
            connect: 0,
            sleepers,
            searching,
            served,
            expired,
            displaced,
            next_name: 0,
            failed: 0,
        }
    }

    fn enter(&mut self, refused: bool) -> bool {
        let name = self.next_name;
        self.next_name += 1;
        let entered = self.hold.enter(refused, self.now);
        entered.map(|held| self.sleepers.push(Sleeper::new(name, held, self.hold.room()))).is_ok()
    }

    fn set_open(&mut self, open: bool) {
        self.open = open;
        if open {
            self.hold.release(self.now);
        }
    }

    /// Everybody does what is to be done now, and a millisecond passes. The sleepers act in any order.
    fn step(&mut self, order: usize) {
        let (done, going) = std::mem::take(&mut self.searching).into_iter().partition(|(at, _)| *at <= self.now);
        self.searching = going;
        for (_, sleeper) in done {
            if self.good {
                self.served.push((self.now, sleeper.name));
                sleeper.held.serve(Duration::ZERO);
            } else {
                self.failed += 1;
                sleeper.held.come_back(self.now);
                sleeper.bell.0.store(true, SeqCst);
                self.sleepers.push(sleeper);
            }
        }
        loop {
            let before = self.sleepers.len();
            let count = before.max(1);
            self.sleepers.rotate_left(order % count);
            for mut sleeper in std::mem::take(&mut self.sleepers) {
                match sleeper.look(self.open, self.now) {
                    None => self.sleepers.push(sleeper),
                    Some(Turn::Search) => self.searching.push((self.now + self.connect, sleeper)),
                    Some(Turn::Expired) => {
                        self.expired.push((self.now, sleeper.name));
                        sleeper.held.expire();
                    }
                    Some(Turn::Displaced) => self.displaced.push(sleeper.name),
                    Some(Turn::Wait { .. }) => unreachable!("it sleeps"),
                }
            }
            let is_quiet = !self.sleepers.iter().any(|sleeper| sleeper.bell.0.load(SeqCst));
            if self.sleepers.len() == before && is_quiet {
                break;
            }
        }
        self.now += 1;
    }

    fn run(&mut self, span: Millis) {
        for step in 0..span {
            self.step(step as usize);
        }
    }

    /// Who was served, in order; of those whose turn came in the same millisecond, none is before the other.
    fn names(&self) -> Vec<u64> {
        let mut served = self.served.clone();
        served.sort_unstable();
        served.into_iter().map(|(_, name)| name).collect()
    }

    fn outcomes(&self) -> [u64; 4] {
        HoldOutcome::ALL.map(|outcome| self.hold.count(outcome))
    }
}

#[test]
fn the_newest_is_refused_or_the_oldest_displaced() {
    let mut world = World::new(hold_of(|_| {}));
    assert_eq!([(); 5].map(|()| world.enter(false)), [true, true, true, false, false]);
    world.run(10);
    assert_eq!((world.hold.held(), world.outcomes()), (3, [0, 0, 2, 0]));

    let mut world = World::new(hold_of(|hold| hold.overflow = Overflow::Oldest));
    assert_eq!([(); 5].map(|()| world.enter(false)), [true; 5]);
    world.run(10);
    assert_eq!(world.displaced, [0, 1]);
    assert_eq!((world.hold.held(), world.outcomes()), (3, [0, 0, 2, 0]));
    world.set_open(true);
    world.run(100);
    assert_eq!((world.names(), world.hold.held()), (vec![2, 3, 4], 0));
}

#[test]
fn one_that_is_being_connected_has_its_place_and_is_not_displaced() {
    let hold = hold_of(|hold| (hold.overflow, hold.max_connections) = (Overflow::Oldest, 1));
    let first = hold.enter(false, 10).unwrap();
    assert_eq!(first.ask(true, 10), Turn::Search);
    assert!(matches!(hold.enter(false, 10), Err(Full)));
    first.come_back(11);
    let second = hold.enter(false, 12).unwrap();
    assert_eq!(first.ask(true, 12), Turn::Displaced);
    drop((first, second));
    assert_eq!(hold.held(), 0);
}

#[test]
fn they_go_in_order_and_at_the_rate() {
    let mut world = World::new(hold_of(|hold| hold.max_connections = 1_000));
    for _ in 0..20 {
        assert!(world.enter(false));
        world.run(7);
    }
    assert_eq!(world.served, []);
    world.set_open(true);
    let begun = world.now;
    world.run(300);
    assert_eq!(world.names(), (0..20).collect::<Vec<_>>());
    for (index, (at, _)) in world.served.iter().enumerate() {
        // A search takes one step; and what was late when it began may be caught up with.
        let (earliest, latest) = (10 * index as u64, 10 * index as u64 + 1);
        assert!((earliest..=latest + 10).contains(&(at - begun + 10)), "{index}: {}", at - begun);
    }
    assert_eq!((world.hold.held(), world.outcomes()), (0, [20, 0, 0, 0]));
}

#[test]
fn a_rate_beyond_the_grain_of_the_clock_is_reached() {
    let mut world = World::new(hold_of(|hold| {
        hold.max_connections = 1_000;
        hold.release_rate.count = 5_000;
    }));
    (0..1_000).for_each(|_| assert!(world.enter(false)));
    world.set_open(true);
    world.run(100);
    assert!((450..=560).contains(&world.served.len()), "{}", world.served.len());
}

#[test]
fn who_waits_too_long_leaves_and_the_others_move_up() {
    let mut world = World::new(hold_of(|_| {}));
    world.enter(false);
    world.run(1_000);
    world.enter(false);
    world.run(4_500);
    assert_eq!(world.expired, [(6_000, 0)]);
    world.set_open(true);
    world.run(10);
    assert_eq!((world.names(), world.outcomes()), (vec![1], [1, 1, 0, 0]));
}

#[test]
fn a_release_that_fails_goes_back_to_its_place_and_pauses_the_others() {
    let mut world = World::new(hold_of(|hold| hold.max_connections = 1_000));
    (0..10).for_each(|_| assert!(world.enter(false)));
    // The verdict says up, and nobody listens.
    (world.good, world.connect) = (false, 5);
    world.set_open(true);
    world.run(1_000);
    assert!(world.served.is_empty());
    assert!((4..=8).contains(&world.failed), "{} in four pauses", world.failed);
    world.good = true;
    world.run(2_000);
    assert_eq!(world.names(), (0..10).collect::<Vec<_>>(), "in their order");
    assert_eq!(world.outcomes(), [10, 0, 0, 0]);
}

#[test]
fn what_began_before_a_pause_does_not_make_it_longer() {
    let hold = hold_of(|hold| hold.max_connections = 10);
    let all: Vec<_> = (0..4).map(|_| hold.enter(false, 1_000).unwrap()).collect();
    assert_eq!(all[0].ask(true, 1_000), Turn::Search);
    assert_eq!(all[1].ask(true, 1_010), Turn::Search);
    all[0].come_back(1_100);
    assert_eq!(all[0].ask(true, 1_100), Turn::Wait { until: 1_350 });
    all[1].come_back(1_300);
    assert_eq!(all[0].ask(true, 1_300), Turn::Wait { until: 1_350 });
    assert_eq!(all[0].ask(true, 1_350), Turn::Search);
    all[0].come_back(1_360);
    assert_eq!(all[0].ask(true, 1_360), Turn::Wait { until: 1_610 });
}

#[test]
fn the_first_whom_all_have_refused_waits_a_moment_and_those_after_it_do_not_prolong_that() {
    let hold = hold_of(|_| {});
    let first = hold.enter(true, 1_000).unwrap();
    assert_eq!(first.ask(true, 1_000), Turn::Wait { until: 1_250 });
    let second = hold.enter(true, 1_200).unwrap();
    assert_eq!(second.ask(true, 1_200), Turn::Wait { until: 6_200 });
    assert_eq!(first.ask(true, 1_250), Turn::Search);
}

#[test]
fn a_first_in_line_that_sleeps_for_ever_holds_nobody_up() {
    let hold = hold_of(|_| {});
    let (stuck, other) = (hold.enter(false, 1_000).unwrap(), hold.enter(false, 1_000).unwrap());
    hold.release(1_000);
    hold.release(1_250);
    assert_eq!(other.ask(true, 1_250), Turn::Search);
    drop(stuck);
}

#[test]
fn bytes_are_bounded_for_each_and_in_all() {
    let hold = hold_of(|_| {});
    let [mut one, mut two, mut three] = std::array::from_fn(|_| hold.room());
    assert_eq!((one.grow(30), one.grow(30), one.grow(1)), (30, 10, 0));
    assert_eq!((two.grow(40), three.grow(40)), (40, 20));
    assert_eq!((hold.bytes(), hold.metrics.bytes.get()), (100, 100));
    two.shrink(15);
    assert_eq!(three.grow(40), 15);
    one.shrink(100);
    assert!(one.is_empty());
    assert_eq!(hold.bytes(), 60);
    drop((one, two, three));
    assert_eq!((hold.bytes(), hold.metrics.bytes.get()), (0, 0));
}

#[test]
fn the_next_table_holds_the_same_clients_by_its_own_rules() {
    let before = hold_of(|_| {});
    let first = before.enter(false, 1).unwrap();
    let config = config::Hold { max_connections: 1, ..before.config };
    let after = Arc::new(Hold::new(config, || unreachable!("they are there"), Some(&before)));
    assert!(after.enter(false, 2).is_err());
    after.release(3);
    assert_eq!(first.ask(false, 3), Turn::Search);
}

/// What happens to a hold, at random.
#[derive(Clone, Debug)]
enum Event {
    Enter { refused: bool },
    HangUp(usize),
    SetOpen(bool),
    SetGood(bool),
    Connect(Millis),
    Grow(usize, usize),
    Pass(Millis),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => any::<bool>().prop_map(|refused| Event::Enter { refused }),
        1 => any::<usize>().prop_map(Event::HangUp),
        1 => any::<bool>().prop_map(Event::SetOpen),
        1 => any::<bool>().prop_map(Event::SetGood),
        1 => (0..400_u64).prop_map(Event::Connect),
        1 => (any::<usize>(), 0..60_usize).prop_map(|(who, count)| Event::Grow(who, count)),
        4 => (1..300_u64).prop_map(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_bounds_hold_and_everybody_leaves_in_the_end(
        events in vec(event(), 1..60),
        most in 1..8_usize,
        oldest in any::<bool>(),
    ) {
        let hold = hold_of(|hold| {
            hold.max_connections = most;
            hold.overflow = if oldest { Overflow::Oldest } else { Overflow::Newest };
        });
        let mut world = World::new(Arc::clone(&hold));
        let (mut gone, mut refused) = (0, 0);
        for event in events {
            match event {
                Event::Enter { refused: by_backends } => refused += u64::from(!world.enter(by_backends)),
                Event::HangUp(who) if !world.sleepers.is_empty() => {
                    let who = who % world.sleepers.len();
                    // One that was displaced a moment ago is that.
                    world.step(0);
                    if who < world.sleepers.len() {
                        drop(world.sleepers.remove(who));
                        gone += 1;
                    }
                }
                Event::Grow(who, count) if !world.sleepers.is_empty() => {
                    let who = who % world.sleepers.len();
                    let _ = world.sleepers[who].room.grow(count);
                }
                Event::SetOpen(open) => world.set_open(open),
                Event::SetGood(good) => world.good = good,
                Event::Connect(span) => world.connect = span,
                Event::Pass(span) => world.run(span),
                Event::HangUp(_) | Event::Grow(..) => {}
            }
            prop_assert!(hold.held() <= most);
            prop_assert!(hold.bytes() <= 100);
        }
        // Nobody sleeps on while there is a good backend, whatever came before.
        (world.good, world.connect) = (true, 0);
        world.set_open(true);
        world.run(1_000);
        prop_assert_eq!(world.sleepers.len() + world.searching.len(), 0);
        prop_assert_eq!((hold.held(), hold.bytes()), (0, 0));
        let (served, expired) = (world.served.len() as u64, world.expired.len() as u64);
        let overflow = world.displaced.len() as u64 + refused;
        prop_assert_eq!(world.outcomes(), [served, expired, overflow, gone]);
        let names: HashSet<u64> = world.names().into_iter().collect();
        prop_assert_eq!(names.len(), world.served.len(), "each once");
    }
}

/// Between the calls of both there may be time enough for a place to come free.
#[test]
fn who_was_released_as_well_does_not_overtake_one_who_is_back() {
    let hold = hold_of(|config| config.release_rate = Rate { count: 1_000, per: Duration::from_secs(1) });
    let [first, second] = [(); 2].map(|()| hold.enter(false, 1_000).unwrap());
    hold.release(1_100);
    assert_eq!(first.ask(true, 1_100), Turn::Search);
    first.come_back(1_100);
    assert_eq!(second.ask(true, 1_101), Turn::Wait { until: 6_000 });
    assert_eq!(first.ask(true, 1_100 + PAUSE), Turn::Search);
    first.serve(Duration::ZERO);
    assert_eq!(second.ask(true, 1_100 + PAUSE + 1), Turn::Search);
}
