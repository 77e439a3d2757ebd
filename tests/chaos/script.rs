//! What happens to whom, second by second: a seeded plan, without clock or process.
//!
//! Owns the promise that the verdict rests on. **From each moment on there is a backend that has been good for
//! [`SETTLE`] already and stays good for the [`BUDGET`] to come**, so that a session which begins then has, for as long
//! as it may take, somewhere to go that the balancer can know to be good. *Guards* keep it: a guard is good, left alone
//! until its time is over, and its successor is made good `SETTLE + BUDGET` before that. Invariant: of the faults that
//! a balancer can only notice by waiting, at most [`MOST_WAITS`] begin within [`WAIT_WINDOW`] seconds. A session tries
//! no backend twice, so this bounds how often it can be so unlucky.

use std::fmt::{self, Display};
use std::time::Duration;

pub const BACKENDS: usize = 10;

/// What a client may wait for its first byte, in seconds: the pool's `connect.budget`.
pub const BUDGET: u64 = 5;
/// Seconds after which a backend that recovers must be in use again: two probes that succeed and an ejection (at most 2
/// s, and its trial) take some three of them on a machine that has nothing else to do.
const SETTLE: u64 = 5;
const MOST_WAITS: usize = 3;
const WAIT_WINDOW: u64 = BUDGET + 1;

/// What can be wrong with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Kill,
    Stop,
    Slow(Duration),
    Reset,
    Close,
    Deaf,
}

impl Fault {
    /// Whether only time tells: the others answer with a refusal, a reset or an end.
    fn is_a_wait(self) -> bool {
        matches!(self, Self::Stop | Self::Slow(_) | Self::Deaf)
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("killed"),
            Self::Stop => f.write_str("stopped"),
            Self::Slow(delay) => write!(f, "slow by {} ms", delay.as_millis()),
            Self::Reset => f.write_str("resetting"),
            Self::Close => f.write_str("closing"),
            Self::Deaf => f.write_str("deaf"),
        }
    }
}

/// What is done to one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Fault(usize, Fault),
    Recover(usize, Fault),
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(backend, fault) => write!(f, "b{backend} {fault}"),
            Self::Recover(backend, fault) => write!(f, "b{backend} no longer {fault}"),
        }
    }
}

pub struct Script {
    rng: fastrand::Rng,
    now: u64,
    wrong: [Option<Fault>; BACKENDS],
    /// The second until which each is left alone.
    guarded: [u64; BACKENDS],
    /// The guard whose time is over last, of those that keep the promise.
    last_guard: usize,
    /// The seconds in which waits began.
    waits: Vec<u64>,
    storm_until: u64,
}

impl Script {
    pub fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let last_guard = rng.usize(..BACKENDS);
        let mut guarded = [0; BACKENDS];
        guarded[last_guard] = SETTLE + BUDGET + rng.u64(2..=6);
        Self { rng, now: 0, wrong: [None; BACKENDS], guarded, last_guard, waits: Vec::new(), storm_until: 0 }
    }

    /// The next second: what is done in it, each with its time since the second began.
    pub fn second(&mut self) -> Vec<(Duration, Step)> {
        let mut steps = Vec::new();
        self.change_guard(&mut steps);
        if self.now >= self.storm_until + 10 && self.rng.u8(..8) == 0 {
            self.storm_until = self.now + self.rng.u64(4..=10);
        }
        // In a storm nearly all that may fall do; in between some four of ten are out of order.
        let (falls, rises) = if self.now < self.storm_until { (70, 8) } else { (25, 30) };
        let free: Vec<usize> = (0..BACKENDS).filter(|&backend| self.guarded[backend] <= self.now).collect();
        for &backend in &free {
            let chance = if self.wrong[backend].is_some() { rises } else { falls };
            if self.rng.u8(..100) < chance {
                self.turn(backend, &mut steps);
            }
        }
        if steps.is_empty()
            && let Some(&backend) = self.rng.choice(&free)
        {
            self.turn(backend, &mut steps);
        }
        self.now += 1;
        let mut timed: Vec<_> =
            steps.into_iter().map(|step| (Duration::from_millis(self.rng.u64(..900)), step)).collect();
        timed.sort_by_key(|(at, _)| *at);
        timed
    }

    /// Everything good again.
    pub fn end(&mut self) -> Vec<Step> {
        (0..BACKENDS).filter_map(|backend| Some(Step::Recover(backend, self.wrong[backend].take()?))).collect()
    }

    /// Who is good, to be printed beside an error.
    pub fn states(&self) -> String {
        let state = |(backend, wrong): (usize, &Option<Fault>)| match wrong {
            Some(fault) => format!("b{backend} {fault}"),
            None => format!("b{backend} good"),
        };
        self.wrong.iter().enumerate().map(state).collect::<Vec<_>>().join(", ")
    }

    fn change_guard(&mut self, steps: &mut Vec<Step>) {
        let over = self.guarded[self.last_guard];
        if self.now + SETTLE + BUDGET < over {
            return;
        }
        let others: Vec<usize> = (0..BACKENDS).filter(|&backend| backend != self.last_guard).collect();
        let next = *self.rng.choice(&others).unwrap();
        if let Some(fault) = self.wrong[next].take() {
            steps.push(Step::Recover(next, fault));
        }
        self.guarded[next] = over + self.rng.u64(4..=10);
        self.last_guard = next;
    }

    /// From good to wrong or back.
    fn turn(&mut self, backend: usize, steps: &mut Vec<Step>) {
        if let Some(fault) = self.wrong[backend].take() {
            steps.push(Step::Recover(backend, fault));
            return;
        }
        let now = self.now;
        self.waits.retain(|since| since + WAIT_WINDOW > now);
        let fault = match self.rng.u8(..12) {
            0..=2 => Fault::Stop,
            3..=4 => Fault::Slow(Duration::from_millis(self.rng.u64(50..=800))),
            5 => Fault::Deaf,
            6..=8 => Fault::Kill,
            9..=10 => Fault::Reset,
            _ => Fault::Close,
        };
        if fault.is_a_wait() {
            if self.waits.len() == MOST_WAITS {
                return;
            }
            self.waits.push(now);
        }
        self.wrong[backend] = Some(fault);
        steps.push(Step::Fault(backend, fault));
    }
}

/// Runs a script without anybody to suffer it, and checks what this module promises.
pub fn keeps_its_promise(seed: u64, seconds: u64) {
    let mut script = Script::new(seed);
    // For each backend the seconds, from and to, in which nothing was wrong with it.
    let mut good: [Vec<(u64, u64)>; BACKENDS] = std::array::from_fn(|_| vec![(0, u64::MAX)]);
    let mut waits = Vec::new();
    for now in 0..seconds {
        for (_, step) in script.second() {
            match step {
                Step::Fault(backend, fault) => {
                    good[backend].last_mut().unwrap().1 = now;
                    waits.extend(fault.is_a_wait().then_some(now));
                }
                Step::Recover(backend, _) => good[backend].push((now + 1, u64::MAX)),
            }
        }
        let recent = waits.iter().filter(|since| **since + WAIT_WINDOW > now).count();
        assert!(recent <= MOST_WAITS, "seed {seed}: {recent} waits before second {now}");
    }
    for now in 0..seconds - BUDGET {
        // Before the first second, all were good.
        let from = now.saturating_sub(SETTLE - 1);
        let whole = |(begin, end): &(u64, u64)| *begin <= from && *end >= now + BUDGET;
        assert!(good.iter().flatten().any(whole), "seed {seed}: in second {now} nobody is good for long enough");
    }
}
