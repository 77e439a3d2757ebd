//! The checker over a world whose answers the test decides, on a paused clock; and once over real sockets.

use super::agent::Statement;
use super::checker::{Checker, Inputs};
use super::probe::{Answer as Answered, ProbeError, Question, ask};
use super::{MAX_PROBES, run};
use crate::clock::Now;
use crate::config::{self, Address, Adjustment, Adjustments, AdminState, Balance, Config, Initial, Probe};
use crate::metrics::Metrics;
use crate::name::{BackendAddr, Endpoint, PoolName};
use crate::pool::Backend;
use crate::rng::Rng;
use crate::table::{Resolution, RoutingTable};
use arc_swap::ArcSwap;
use rustix::io::Errno;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

mod agents;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Yes,
    Refused,
    /// Nothing until the probe's time is over.
    Silence,
    /// We have no descriptor to ask with.
    NoFd,
    /// Refused at each second probe of the world.
    Flapping,
}

/// What the backends answer, what was asked, and the table that says whom to ask.
#[derive(Clone)]
struct World {
    inputs: Inputs,
    metrics: Arc<Metrics>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    answers: HashMap<String, Answer>,
    /// What agents say; those that aren't here refuse.
    lines: HashMap<String, &'static str>,
    /// When the certificates end, in Unix time, where there are some.
    certificates: Option<u64>,
    asked: Vec<(Instant, String)>,
    under_way: usize,
    peak: usize,
}

impl World {
    fn new(addresses: &[&str], health: config::Health) -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let table = table(addresses, health, &metrics, None);
        let inputs = Inputs {
            table: Arc::new(ArcSwap::from_pointee(table)),
            table_changed: Arc::new(Notify::new()),
            first_round: watch::Sender::new(false),
        };
        Self { inputs, metrics, seen: Arc::default() }
    }

    fn swap(&self, addresses: &[&str], health: config::Health) {
        let next = table(addresses, health, &self.metrics, Some(&self.inputs.table.load()));
        self.inputs.table.store(Arc::new(next));
        self.inputs.table_changed.notify_one();
    }

    /// Everybody answers `Yes` until told otherwise.
    fn answer(&self, address: &str, answer: Answer) {
        self.seen.lock().unwrap().answers.insert(address.into(), answer);
    }

    fn backend(&self, address: &str) -> Arc<Backend> {
        let view = self.inputs.table.load().pools[0].view();
        view.backends.iter().find(|backend| *backend.label == *address).unwrap().clone()
    }

    fn is_up(&self, address: &str) -> bool {
        self.backend(address).is_up()
    }

    fn times_asked(&self, address: &str) -> usize {
        self.seen.lock().unwrap().asked.iter().filter(|(_, asked)| asked == address).count()
    }

    /// Runs a checker for as long as `scenario` takes.
    async fn during<T>(&self, scenario: impl Future<Output = T>) -> T {
        let checker = Checker::new(self.inputs.clone(), Rng::from_seed(1));
        tokio::select! {
            () = checker.run(|question, way, limit| self.clone().ask(question, way.to, limit)) => panic!("a checker never ends"),
            value = scenario => value,
        }
    }

    async fn ask(self, question: Question, address: BackendAddr, limit: Duration) -> Result<Answered, ProbeError> {
        let address = address.to_string();
        let (answer, _under_way) = {
            let mut seen = self.seen.lock().unwrap();
            seen.asked.push((Instant::now(), address.clone()));
            seen.under_way += 1;
            seen.peak = seen.peak.max(seen.under_way);
            let answer = match seen.answers.get(&address) {
                Some(Answer::Flapping) if seen.asked.len().is_multiple_of(2) => Answer::Refused,
                Some(Answer::Flapping) | None => Answer::Yes,
                Some(answer) => *answer,
            };
            (answer, UnderWay(&self.seen))
        };
        if let Question::Agent(_) = question
            && answer == Answer::Yes
        {
            let line = self.seen.lock().unwrap().lines.get(&address).copied();
            let refused = ProbeError::Connect(Errno::CONNREFUSED.into());
            return line.map(|line| Answered::Agent(Statement::of(line.as_bytes()))).ok_or(refused);
        }
        let certificates = self.seen.lock().unwrap().certificates;
        match answer {
            Answer::Yes | Answer::Flapping => Ok(certificates.map_or(Answered::Good, Answered::GoodUntil)),
            Answer::Refused => Err(ProbeError::Connect(Errno::CONNREFUSED.into())),
            Answer::NoFd => Err(ProbeError::Connect(Errno::MFILE.into())),
            Answer::Silence => {
                sleep(limit).await;
                Err(ProbeError::TimedOut(limit))
            }
        }
    }
}

struct UnderWay<'a>(&'a Mutex<Seen>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().under_way -= 1;
    }
}

fn table(
    addresses: &[&str],
    health: config::Health,
    metrics: &Arc<Metrics>,
    previous: Option<&RoutingTable>,
) -> RoutingTable {
    let member =
        |address: &&str| config::Member::new(Address::Endpoint(Endpoint::Tcp(address.parse().unwrap())), String::new());
    let members = addresses.iter().map(member).collect();
    let pool = config::Pool { health, ..config::Pool::new(PoolName::new("web"), Balance::RoundRobin, members) };
    let config = Config {
        runtime: config::Runtime::default(),
        admin: config::Admin::default(),
        log: config::Log::default(),
        limits: Vec::new(),
        listeners: Vec::new(),
        pools: vec![pool],
    };
    RoutingTable::build(
        &config,
        &Resolution::default(),
        &Adjustments::default(),
        Vec::new(),
        metrics,
        previous,
        Now::read(),
    )
    .table
}

/// The lines that are logged on this thread while it lives.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn capture() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(move || writer.clone()).finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn with(&self, text: &str) -> Vec<String> {
        let all = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const A: &str = "192.0.2.1:80";
const B: &str = "192.0.2.2:80";

#[tokio::test(start_paused = true)]
async fn a_backend_comes_with_one_success_goes_with_three_failures_and_comes_back_with_two() {
    let world = World::new(&[A, B], config::Health::default());
    let (lines, _guard) = Lines::capture();
    world.answer(B, Answer::Refused);
    world
        .during(async {
            assert!(!world.is_up(A));
            sleep(SECOND / 10).await;
            assert!(world.is_up(A) && !world.is_up(B));
            sleep(10 * SECOND).await;

            world.answer(A, Answer::Refused);
            let asked = world.times_asked(A);
            sleep(4 * SECOND).await;
            assert!(!world.is_up(A), "one interval and two fast ones are over");
            assert!(world.times_asked(A) >= asked + 3);
            assert_eq!(world.backend(A).last_error().unwrap().text, "Connection refused (os error 111)");

            world.answer(A, Answer::Yes);
            sleep(4 * SECOND).await;
            assert!(world.is_up(A));
            sleep(3_600 * SECOND).await;
        })
        .await;
    assert_eq!(world.backend(A).metrics.state_changes.get(), 3);
    assert_eq!(lines.with(&format!("backend is up pool=web backend=\"{A}\"")).len(), 2);
    assert_eq!(lines.with(&format!("backend is down pool=web backend=\"{A}\"")).len(), 1);
    // One that was never up is told of once, too.
    assert_eq!(lines.with(&format!("backend is down pool=web backend=\"{B}\" reason=\"Connection refused")).len(), 1);
    let first_round = lines.with("every backend has been probed; some are down");
    assert!(first_round.len() == 1 && first_round[0].contains(&format!("web/{B}")), "{first_round:?}");
    assert_eq!(lines.with("").len(), 5, "nothing is said of what does not change");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_disabled_from_the_start_is_not_told_to_be_down() {
    let world = World::new(&[A, B], config::Health::default());
    let (lines, _guard) = Lines::capture();
    let disabled = Adjustment { state: Some(AdminState::Disabled), ..Adjustment::default() };
    let said = [(B.to_owned(), disabled)].into();
    world.inputs.table.load().pools[0].adjust(&said, &world.metrics, true, Now::read());
    world.during(sleep(10 * SECOND)).await;
    assert_eq!(world.times_asked(B), 0);
    assert_eq!(lines.with("every backend has been probed up=1").len(), 1);
    assert_eq!(lines.with("").len(), 2, "and of A that it is up");
}

#[tokio::test(start_paused = true)]
async fn probes_are_bounded_and_everybody_has_a_turn() {
    let addresses: Vec<String> = (0..1_000).map(|port| format!("192.0.2.1:{}", port + 1)).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let world = World::new(&addresses, config::Health::default());
    for address in &addresses {
        world.answer(address, Answer::Silence);
    }
    world.during(sleep(20 * SECOND)).await;
    let seen = world.seen.lock().unwrap();
    assert_eq!(seen.peak, MAX_PROBES);
    let mut turns: HashMap<&str, usize> = HashMap::new();
    seen.asked.iter().for_each(|(_, address)| *turns.entry(address).or_default() += 1);
    assert!(addresses.iter().all(|address| (4..=7).contains(&turns[address])), "{turns:?}");
}

#[tokio::test(start_paused = true)]
async fn f35_the_result_for_a_target_that_has_gone_is_dropped() {
    let health = config::Health { initial: Initial::Up, fall: 1, ..config::Health::default() };
    let world = World::new(&[A, B], health.clone());
    world.answer(A, Answer::Silence);
    let gone = world.backend(A);
    world
        .during(async {
            sleep(SECOND / 2).await;
            assert_eq!(world.times_asked(A), 1);
            world.swap(&[B], health);
            sleep(10 * SECOND).await;
        })
        .await;
    assert!(gone.is_up() && gone.last_error().is_none());
    assert_eq!(world.times_asked(A), 1);
    assert!(world.times_asked(B) >= 4);
    let weak = Arc::downgrade(&gone);
    drop(gone);
    assert!(weak.upgrade().is_none(), "nothing keeps what has gone");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_new_is_asked_at_once() {
    let world = World::new(&[A], config::Health::default());
    world
        .during(async {
            sleep(SECOND).await;
            world.swap(&[A, B], config::Health::default());
            sleep(SECOND / 10).await;
            assert!(world.is_up(B) && world.is_up(A));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn errors_of_ours_change_nothing_and_are_said_now_and_then() {
    let world = World::new(&[A, B], config::Health::default());
    let (lines, _guard) = Lines::capture();
    world
        .during(async {
            sleep(10 * SECOND).await;
            world.answer(A, Answer::NoFd);
            world.answer(B, Answer::NoFd);
            sleep(600 * SECOND).await;
        })
        .await;
    assert!(world.is_up(A) && world.is_up(B));
    assert_eq!(world.backend(A).last_error(), None);
    let said = lines.with("can't probe").len();
    assert!((55..=61).contains(&said), "{said} lines in 600 seconds");
    assert!(world.metrics.encode().unwrap().contains("result=\"frozen\""));
}

#[tokio::test(start_paused = true)]
async fn the_first_round_is_over_when_the_slowest_has_answered() {
    let world = World::new(&[A, B], config::Health::default());
    world.answer(B, Answer::Silence);
    let mut over = world.inputs.first_round.subscribe();
    let begun = Instant::now();
    world.during(async { over.wait_for(|over| *over).await.map(|_| ()) }).await.unwrap();
    assert!(begun.elapsed() >= SECOND && begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
    assert!(world.is_up(A) && !world.is_up(B));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_not_probed_is_up() {
    let unprobed = config::Health { probe: Probe::None, ..config::Health::default() };
    let world = World::new(&[A], unprobed.clone());
    assert!(world.is_up(A), "from the start");
    let mut over = world.inputs.first_round.subscribe();
    world.during(async { over.wait_for(|over| *over).await.map(|_| ()) }).await.unwrap();

    let world = World::new(&[A], config::Health::default());
    world.answer(A, Answer::Refused);
    world
        .during(async {
            sleep(10 * SECOND).await;
            assert!(!world.is_up(A));
            let asked = world.times_asked(A);
            world.swap(&[A], unprobed);
            sleep(10 * SECOND).await;
            assert!(world.is_up(A));
            assert_eq!(world.times_asked(A), asked);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_checker_that_is_run_again_goes_on_where_the_last_one_was() {
    let health = config::Health { initial: Initial::Up, ..config::Health::default() };
    let world = World::new(&[A], health);
    world.answer(A, Answer::Refused);
    for round in 1..=3 {
        assert!(world.is_up(A), "before round {round}");
        world.during(sleep(Duration::from_millis(1))).await;
    }
    assert_eq!(world.times_asked(A), 3);
    assert!(!world.is_up(A), "three failures in a row, each seen by another checker");
}

#[tokio::test(start_paused = true)]
async fn a_flapping_backend_does_not_flood_the_log() {
    let health = config::Health { rise: 1, fall: 1, ..config::Health::default() };
    let world = World::new(&[A], health.clone());
    let (lines, _guard) = Lines::capture();
    world.answer(A, Answer::Flapping);
    world
        .during(async {
            for _ in 0..10 {
                sleep(360 * SECOND).await;
                world.swap(&[A], health.clone());
            }
            assert!(world.backend(A).metrics.state_changes.get() > 1_500);
            let said = lines.with("backend is").len();
            assert!((120..=126).contains(&said), "{said} lines in an hour");
            world.answer(A, Answer::Yes);
            sleep(120 * SECOND).await;
        })
        .await;
    let said = lines.with("backend is");
    assert!(world.is_up(A) && said.last().unwrap().contains("backend is up"), "{:?}", said.last());
    let unsaid = |line: &String| line.rsplit_once("unsaid=").unwrap().1.parse::<u64>().unwrap();
    let told = said.iter().map(|line| unsaid(line) + 1).sum::<u64>();
    // Whether the last line is of a change of its own or only of those before it depends on when the flapping ends.
    let changes = world.backend(A).metrics.state_changes.get();
    assert!(told == changes || told == changes + 1, "{told} told of {changes} changes");
}

#[tokio::test]
async fn real_backends_are_asked_by_real_probes() {
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let somebody = here.local_addr().unwrap().to_string();
    let world = World::new(&[&somebody, &nobody], config::Health::default());
    let mut over = world.inputs.first_round.subscribe();
    tokio::select! {
        () = run(world.inputs.clone(), Rng::from_seed(1)) => panic!("a checker never ends"),
        over = over.wait_for(|over| *over) => drop(over.unwrap()),
    }
    assert!(world.is_up(&somebody) && !world.is_up(&nobody));
    let address = world.backend(&somebody).address.clone();
    assert_eq!(ask(Question::Tcp, address, SECOND).await, Ok(Answered::Good));
}

#[tokio::test(start_paused = true)]
async fn another_interval_counts_from_now_on_for_who_stays() {
    let slow = config::Health { interval: 3_600 * SECOND, ..config::Health::default() };
    let world = World::new(&[A], slow);
    world
        .during(async {
            sleep(10 * SECOND).await;
            let asked = world.times_asked(A);
            assert!(asked <= 2, "the first round, and one turn somewhere in the hour");
            let (backend, quick) = (world.backend(A), config::Health { interval: SECOND, ..config::Health::default() });
            world.swap(&[A], quick);
            sleep(20 * SECOND).await;
            let times = world.times_asked(A) - asked;
            assert!((15..=25).contains(&times), "{times}");
            assert!(world.is_up(A) && world.backend(A).id == backend.id);
        })
        .await;
}
