//! One scenario from begin to end: clients come, backends are probed, things go wrong, and at last all is well again.
//!
//! Owns virtual time: a queue of events in ms. Sessions do what `session::connect` and `session::report` do.

use crate::Tally;
use crate::scenario::{Dice, Scenario};
use crate::twin::Twin;
use crate::watched::{Twins, Watched, release};
use crate::world::{Answer, Connect, Nature, befall, life};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use tidegate::clock::Millis;
use tidegate::metrics::{Metrics, TrafficFailure};
use tidegate::name::BackendId;
use tidegate::pool::health::{AgentAdmin, AgentReport};
use tidegate::pool::{Backend, Health, Slot, Tried};
use tidegate::rng::Rng;

/// As the keeper does it.
pub const REVIEW_EVERY: Millis = 250;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Review,
    Arrive,
    Befall,
    Agent,
    Rebuild,
    Probe(BackendId),
    /// A connect is over.
    Connected(usize, u64),
    /// A connect has taken its time.
    Hedge(usize, u64),
    Answer(usize),
    End(usize),
}

struct Attempt {
    id: u64,
    slot: Slot,
    /// With the wait for its turn.
    begun: Millis,
    how: Connect,
}

pub struct Session {
    pool: usize,
    tried: Tried,
    attempts_left: u8,
    deadline: Millis,
    connecting: Vec<Attempt>,
    connected: Option<Attempt>,
    answer: Option<Answer>,
}

pub struct Run<'a> {
    pub scenario: Scenario,
    dice: Dice,
    /// For the pools.
    pub rng: Rng,
    metrics: Arc<Metrics>,
    pub pools: Vec<Watched>,
    pub twins: Twins,
    pub natures: HashMap<BackendId, Nature>,
    /// Every one there ever was.
    pub backends: Vec<Arc<Backend>>,
    /// When connects began on each.
    pub begun: HashMap<BackendId, Vec<Millis>>,
    /// Hedges that connections have earned, and those that were begun; pools that follow each other share them.
    hedging: (f64, u64),
    pub events: BinaryHeap<Reverse<(Millis, u64, Event)>>,
    pub sessions: Vec<Option<Session>>,
    next_id: u64,
    pub now: Millis,
    pub calm: bool,
    pub tally: &'a mut Tally,
}

impl<'a> Run<'a> {
    pub fn new(seed: u64, tally: &'a mut Tally) -> Self {
        let mut dice = Dice::new(seed);
        let scenario = Scenario::new(&mut dice);
        let now = dice.between(1, 100_000);
        let rng = Rng::from_seed(dice.between(0, u64::MAX - 1));
        let mut run = Self {
            scenario,
            dice,
            rng,
            metrics: Arc::new(Metrics::new().expect("metrics")),
            pools: Vec::new(),
            twins: HashMap::new(),
            natures: HashMap::new(),
            backends: Vec::new(),
            begun: HashMap::new(),
            hedging: (0.0, 0),
            events: BinaryHeap::new(),
            sessions: Vec::new(),
            next_id: 0,
            now,
            calm: false,
            tally,
        };
        run.build();
        run
    }

    pub fn run(mut self) {
        let trouble_ends = self.now + self.scenario.length;
        for event in [Event::Review, Event::Arrive, Event::Befall, Event::Agent, Event::Rebuild] {
            let after = self.dice.between(0, 300);
            self.after(after, event);
        }
        self.run_until(trouble_ends);
        self.calm_down();
        self.tally.scenarios += 1;
    }

    pub fn run_until(&mut self, end: Millis) {
        while let Some(&Reverse((at, _, event))) = self.events.peek()
            && at <= end
        {
            self.events.pop();
            self.now = at;
            self.tally.steps += 1;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        let current = self.pools.len() - 1;
        match event {
            Event::Review => {
                self.pools[current].review(&mut self.twins, self.now, self.tally);
                self.after(REVIEW_EVERY, event);
            }
            Event::Arrive => {
                self.arrive();
                let often = if self.calm { 4 } else { 1 };
                let pause = self.dice.between(0, 2 * often * self.scenario.pause);
                self.after(pause, event);
            }
            Event::Befall if !self.calm => {
                let ids: Vec<_> = self.pools[current].view.backends.iter().map(|backend| backend.id).collect();
                let mut natures: Vec<_> = ids.iter().map(|id| self.natures[id]).collect();
                befall(&mut natures, self.scenario.trouble, &mut self.dice);
                self.natures.extend(ids.into_iter().zip(natures));
                let pause = self.dice.between(200, 10_000);
                self.after(pause, event);
            }
            Event::Agent if !self.calm && self.scenario.agents => {
                self.hear();
                let pause = self.dice.between(100, 5_000);
                self.after(pause, event);
            }
            Event::Rebuild if !self.calm && self.scenario.rebuilds => {
                self.scenario.rebuild(&mut self.dice);
                self.build();
                let pause = self.dice.between(2_000, 20_000);
                self.after(pause, event);
            }
            Event::Befall | Event::Agent | Event::Rebuild => {}
            Event::Probe(id) => self.probe(id),
            Event::Connected(session, attempt) => self.connected(session, attempt),
            Event::Hedge(session, attempt) => self.hedge(session, attempt),
            Event::Answer(session) => self.answer(session),
            Event::End(session) => self.close(session),
        }
    }

    /// The pool of the current scenario, from the one before.
    fn build(&mut self) {
        if let Some(previous) = self.pools.last_mut() {
            previous.is_current = false;
        }
        let (previous, now) = (self.pools.last(), self.now);
        let known = &self.twins.len();
        let mut twins: HashMap<BackendId, Twin> = self.twins.clone();
        let watched = Watched::new(&self.scenario, &self.metrics, previous, &mut twins, now, self.tally);
        self.tally.rebuilds += u64::from(*known > 0);
        self.twins = twins;
        for backend in &watched.view.backends {
            if self.natures.contains_key(&backend.id) {
                continue;
            }
            let nature = if self.dice.chance(80) { Nature::Good } else { Nature::Dead };
            self.natures.insert(backend.id, nature);
            self.backends.push(Arc::clone(backend));
            let first = self.now + self.dice.between(0, 500);
            self.events.push(Reverse((first, self.next_id, Event::Probe(backend.id))));
            self.next_id += 1;
        }
        self.pools.push(watched);
    }

    fn probe(&mut self, id: BackendId) {
        let current = self.pools.len() - 1;
        // Nobody asks one that has gone.
        let Some(index) = self.pools[current].index_of(id) else { return };
        let outcome = self.natures[&id].probe(self.now, &mut self.dice);
        self.pools[current].observe(index, outcome, &mut self.twins, self.now, self.tally);
        let backend = &self.pools[current].view.backends[index];
        let delay = backend.probe_delay(&self.scenario.config.health, &mut self.rng);
        self.after(delay.as_millis() as u64, Event::Probe(id));
    }

    fn hear(&mut self) {
        let current = self.pools.len() - 1;
        let size = self.pools[current].view.backends.len();
        let report = AgentReport {
            state: self.dice.one_of(&[None, Some(Health::Up), Some(Health::Up), Some(Health::Down)]),
            admin: self.dice.one_of(&[
                None,
                Some(AgentAdmin::Ready),
                Some(AgentAdmin::Ready),
                Some(AgentAdmin::Drain),
                Some(AgentAdmin::Maint),
            ]),
            weight: self.dice.one_of(&[None, None, Some(100), Some(50), Some(1), Some(0)]),
        };
        let index = self.dice.0.index(size);
        self.pools[current].hear(index, report, &mut self.twins, self.now, self.tally);
    }

    fn arrive(&mut self) {
        let pool = self.pools.len() - 1;
        let connect = &self.scenario.config.connect;
        if connect.hedge_after.is_some() {
            self.pools[pool].pool.count_for_hedging();
            self.hedging.0 += connect.hedge_share.ratio();
        }
        let session = Session {
            pool,
            tried: Tried::default(),
            attempts_left: connect.attempts,
            deadline: self.now + connect.budget.as_millis() as u64,
            connecting: Vec::new(),
            connected: None,
            answer: None,
        };
        self.sessions.push(Some(session));
        self.attempt(self.sessions.len() - 1);
    }

    /// The next attempt, or the end.
    fn attempt(&mut self, number: usize) {
        let Some(session) = &self.sessions[number] else { return };
        let left = session.deadline.saturating_sub(self.now);
        let claimed = if session.attempts_left > 0 && left > 0 { self.claim(number) } else { None };
        match claimed {
            Some((slot, id)) if slot.wait() < left => self.connect(number, id, slot),
            Some((slot, id)) => {
                release(slot, id, &mut self.twins, self.now);
                self.close(number);
            }
            None => self.close(number),
        }
    }

    fn claim(&mut self, number: usize) -> Option<(Slot, u64)> {
        let id = self.id();
        let session = self.sessions[number].as_mut()?;
        let watched = &mut self.pools[session.pool];
        let slot = watched.claim(&session.tried, id, &mut self.twins, &mut self.rng, self.now, self.tally)?;
        self.begun.entry(slot.id).or_default().push(self.now + slot.wait());
        session.tried.push(slot.id);
        session.attempts_left -= 1;
        Some((slot, id))
    }

    fn connect(&mut self, number: usize, id: u64, slot: Slot) {
        let begun = self.now + slot.wait();
        let timeout = self.scenario.config.connect.timeout.as_millis() as u64;
        let how = self.natures[&slot.id].connect(begun, timeout, &mut self.dice);
        let took = match how {
            Connect::Ok(took) | Connect::Failed(took) => took,
            Connect::Ours => 0,
        };
        self.at(begun + took, Event::Connected(number, id));
        if let Some(patience) = self.scenario.config.connect.hedge_after {
            self.at(begun + patience.as_millis() as u64, Event::Hedge(number, id));
        }
        if let Some(session) = self.sessions[number].as_mut() {
            session.connecting.push(Attempt { id, slot, begun, how });
        }
    }

    fn hedge(&mut self, number: usize, id: u64) {
        let Some(session) = &self.sessions[number] else { return };
        let alone = session.connecting.len() == 1 && session.connecting[0].id == id;
        if !alone || session.attempts_left == 0 || !self.pools[session.pool].pool.may_hedge() {
            return;
        }
        let (earned, hedges) = &mut self.hedging;
        *hedges += 1;
        assert!(*hedges as f64 <= *earned + 1.0 + 1e-6, "{}: {hedges} hedges, and {earned} earned", self.now);
        let Some((slot, id)) = self.claim(number) else { return };
        if slot.wait() > 0 {
            release(slot, id, &mut self.twins, self.now);
        } else {
            self.tally.hedges += 1;
            self.connect(number, id, slot);
        }
    }

    fn connected(&mut self, number: usize, id: u64) {
        let Some(session) = self.sessions[number].as_mut() else { return };
        let Some(place) = session.connecting.iter().position(|attempt| attempt.id == id) else { return };
        let attempt = session.connecting.remove(place);
        let (watched, now) = (&mut self.pools[session.pool], self.now);
        let on_trial = attempt.slot.is_on_trial();
        let took = match attempt.how {
            Connect::Ok(took) => took,
            Connect::Failed(_) | Connect::Ours => {
                if matches!(attempt.how, Connect::Failed(_)) {
                    let failure = TrafficFailure::Connect;
                    watched.failed(&attempt.slot, on_trial, failure, &mut self.twins, now, self.tally);
                }
                release(attempt.slot, id, &mut self.twins, now);
                if self.sessions[number].as_ref().is_some_and(|session| session.connecting.is_empty()) {
                    self.attempt(number);
                }
                return;
            }
        };
        for slower in session.connecting.drain(..) {
            slower.slot.connect_time.observe((now - slower.begun) as f32, now);
            release(slower.slot, slower.id, &mut self.twins, now);
        }
        attempt.slot.connect_succeeded();
        attempt.slot.connect_time.observe(took as f32, now);
        if self.scenario.config.ejection.slow_connect.is_some_and(|bound| u128::from(took) > bound.as_millis()) {
            watched.failed(&attempt.slot, on_trial, TrafficFailure::SlowConnect, &mut self.twins, now, self.tally);
        }
        let answer = self.natures[&attempt.slot.id].answer(now, &mut self.dice);
        let (Answer::Answered(after) | Answer::Failed(after, _) | Answer::Undecided(after) | Answer::Done(after)) =
            answer;
        (session.connected, session.answer) = (Some(attempt), Some(answer));
        self.after(after, Event::Answer(number));
    }

    fn answer(&mut self, number: usize) {
        let Some(session) = self.sessions[number].as_mut() else { return };
        let (Some(attempt), Some(answer)) = (&session.connected, session.answer) else { return };
        let (watched, now, slot) = (&mut self.pools[session.pool], self.now, &attempt.slot);
        let on_trial = slot.is_on_trial();
        match answer {
            Answer::Answered(took) => {
                slot.answer_time.observe(took as f32, now);
                watched.served(slot, on_trial, &mut self.twins, now, self.tally);
                let life = life(&mut self.dice);
                self.after(life, Event::End(number));
            }
            Answer::Failed(_, failure) => {
                watched.failed(slot, on_trial, failure, &mut self.twins, now, self.tally);
                self.close(number);
            }
            Answer::Undecided(_) => self.close(number),
            Answer::Done(_) => {
                watched.served(slot, on_trial, &mut self.twins, now, self.tally);
                self.close(number);
            }
        }
    }

    pub fn close(&mut self, number: usize) {
        let Some(session) = self.sessions[number].take() else { return };
        for attempt in session.connecting.into_iter().chain(session.connected) {
            release(attempt.slot, attempt.id, &mut self.twins, self.now);
        }
    }

    fn after(&mut self, delay: Millis, event: Event) {
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Millis, event: Event) {
        let id = self.id();
        self.events.push(Reverse((at, id, event)));
    }

    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
