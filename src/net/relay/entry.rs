//! One session in the engine: two ends, two flows, and the way it ends.
//!
//! Owns the table of `docs/ends.md`: which event on one end becomes a FIN, a reset, or a bounded wait on the
//! other. Invariants: a FIN is sent only for a FIN; a reset leaves only after what was read has been delivered, or
//! a named bound has passed. Knows no epoll; the engine (`mod.rs`) brings events, time and the shared buffer.

use super::flow::{End, Flow, Link, Shared, Stop};
use super::rate::Rates;
use super::{Fin, Handover, Millis, Order, Owner, RelayEnd, Terms, Timeouts};
use crate::name::{Direction, Side};
use crate::net::keepalive;
use crate::net::stream::Stream;
use crate::sys;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::time::Duration;

/// How long a backend may take to accept what a client that has reset the connection had sent before.
const AFTER_CLIENT_RESET: Millis = 50;
/// The shortest and longest pause between two looks at a send queue that must become empty.
const SETTLE_POLL: (Millis, Millis) = (2, 250);

/// One session, from the connected backend to its end.
pub struct Entry<O> {
    ends: [End; 2],
    flows: [Flow; 2],
    timeouts: Timeouts,
    /// Where the bandwidth is limited.
    pub rates: Option<Box<Rates>>,
    began: Millis,
    last_moved: Millis,
    /// When the peers were last asked whether they still answer.
    last_asked: Millis,
    closing: Option<Box<Closing>>,
    /// The kernel asks the peers for signs of life, or is never to.
    watched_over: bool,
    /// On the engine's list of sessions that have work left.
    pub queued: bool,
    /// On the engine's list of closing sessions.
    pub listed: bool,
    owner: O,
}

/// The session's end is decided; what was read is still being delivered.
struct Closing {
    end: RelayEnd,
    since: Millis,
    deadline: Millis,
    look_again: Millis,
    /// Bytes not yet acknowledged when last looked at, over both ends.
    unsent: u32,
}

/// What the engine has to do with a session after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for events.
    Wait,
    /// It has work left that needs no event.
    Again,
    /// It is over.
    End(RelayEnd),
}

impl<O: Owner> Entry<O> {
    pub fn new(client: Stream, backend: Stream, terms: Terms, owner: O, now: Millis) -> Self {
        let Terms { timeouts, bandwidth } = terms;
        Self {
            ends: [End::new(client), End::new(backend)],
            flows: [Flow::new(), Flow::new()],
            timeouts,
            rates: Rates::new(&bandwidth, now),
            began: now,
            last_moved: now,
            last_asked: now,
            closing: None,
            watched_over: timeouts.keepalive == 0,
            queued: false,
            listed: false,
            owner,
        }
    }

    /// Goes on with what the session's owner has begun; quiet since `last_moved`.
    pub fn resume(&mut self, handover: Handover, last_moved: Millis, now: Millis) {
        let Handover { pending, client_fin, client_error, backend_error, .. } = handover;
        self.last_moved = last_moved;
        if let Some(rates) = &mut self.rates {
            rates.take(Direction::ToBackend, pending.len());
        }
        self.flows[Direction::ToBackend as usize] = Flow::resumed(pending, client_fin);
        self.ends[Side::Backend as usize].fin_sent = client_fin == Fin::PassedOn;
        if client_fin == Fin::PassedOn {
            self.owner.ended_one_way(Direction::ToBackend);
        }
        if let Some(error) = client_error {
            self.source_failed(Side::Client, error, now);
        }
        if let Some(error) = backend_error {
            self.sink_failed(Direction::ToBackend, error, now);
        }
    }

    /// How long it has been in the engine, and whose it is.
    pub fn age_and_owner(&self, now: Millis) -> (Millis, &O) {
        (now - self.began, &self.owner)
    }

    /// When the last byte was moved, and whose it is.
    pub fn last_moved_and_owner(&self) -> (Millis, &O) {
        (self.last_moved, &self.owner)
    }

    /// Notes what epoll says of one end.
    pub fn notice(&mut self, side: Side, events: EventFlags, now: Millis) {
        let end = &mut self.ends[side as usize];
        end.readable |= events.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        end.writable |= events.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
        end.hung_up |= events.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        end.urgent |= events.contains(EventFlags::PRI);
        if events.contains(EventFlags::ERR) && !end.failed {
            self.fails(side, RelayEnd::Reset(side), now);
        }
    }

    /// Whether one of its directions is in the middle of a large transfer, for which its peers wait anyway.
    pub fn is_bulk(&self) -> bool {
        self.flows.iter().any(Flow::is_bulk)
    }

    /// Moves what can be moved in both directions, `budget` bytes in each.
    pub fn step(&mut self, shared: &mut Shared, budget: usize, now: Millis) -> Step {
        let mut again = false;
        for direction in Direction::BOTH {
            let stop = self.pump(direction, shared, budget, now);
            // After a failed write the other direction has to look at the same end once more.
            again |= matches!(stop, Stop::Budget | Stop::SinkFailed(_));
        }
        if self.closing.is_none() {
            if self.flows.iter().all(Flow::is_done) {
                return Step::End(RelayEnd::Complete);
            }
            if self.timeouts.half_close == 0
                && let Some(ended) = Direction::BOTH.into_iter().find(|&way| self.flows[way as usize].is_done())
            {
                self.close_down(RelayEnd::HalfClosed(ended.source()), self.timeouts.linger, now);
            }
        }
        match self.settle(now) {
            Step::Wait if again => Step::Again,
            step => step,
        }
    }

    /// Its end is decided; it wants to be looked at again soon, events or not.
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// When this session wants to be looked at although nothing happened to it.
    pub fn deadline(&self) -> Millis {
        if let Some(closing) = &self.closing {
            return closing.look_again.min(closing.deadline);
        }
        let quiet = self.quiet_since() + self.quiet_limit().0;
        quiet.min(self.expiry()).min(self.next_question()).min(self.next_keepalive())
    }

    /// What becomes of a session that isn't closing, once its deadline has passed.
    pub fn expired(&mut self, now: Millis) -> Step {
        let (limit, end) = self.quiet_limit();
        if now >= self.quiet_since() + limit {
            return Step::End(end);
        }
        if now >= self.expiry() {
            self.close_down(RelayEnd::Lifetime, self.timeouts.linger, now);
            return Step::Again;
        }
        if now >= self.next_keepalive() {
            self.watch_over();
        }
        if now < self.next_question() {
            return Step::Wait;
        }
        self.last_asked = now;
        let silent = |side: &Side| {
            let stream = self.ends[*side as usize].stream.as_ref();
            let unanswered = stream.and_then(sys::unanswered_for);
            unanswered.is_some_and(|span| Millis::from(span) >= self.timeouts.unanswered)
        };
        let lost = |side| Step::End(RelayEnd::Lost(side, Errno::TIMEDOUT));
        Side::BOTH.into_iter().find(silent).map_or(Step::Wait, lost)
    }

    /// The next step reads from the backend, whatever was told of it so far.
    pub fn look_for_last_words(&mut self) {
        self.ends[Side::Backend as usize].readable = true;
    }

    /// Ends it because its owner wants so, once what was read is delivered.
    pub fn obey(&mut self, order: Order, now: Millis) {
        self.close_down(RelayEnd::Ordered(order), self.timeouts.linger, now);
        if order == Order::BackendDown {
            // What it has not taken by now is not waited for.
            self.flows[Direction::ToBackend as usize].abandon();
            self.ends[Side::Backend as usize].failed = true;
        }
    }

    /// Closes both ends, by FINs that are already sent or by resets, and gives the guards back.
    pub fn finish(mut self, end: RelayEnd) {
        for slot in &mut self.ends {
            match slot.stream.take() {
                Some(stream) if end == RelayEnd::Complete => stream.close(),
                stream => drop(stream),
            }
        }
        self.owner.ended(end);
    }

    fn pump(&mut self, direction: Direction, shared: &mut Shared, budget: usize, now: Millis) -> Stop {
        let [client, backend] = &mut self.ends;
        let (source, sink) = match direction {
            Direction::ToBackend => (client, backend),
            Direction::ToClient => (backend, client),
        };
        let is_last = self.closing.is_none() && self.flows[direction.other() as usize].is_done();
        let allowed = self.rates.as_mut().map_or(usize::MAX, |rates| rates.allowance(direction, now));
        let mut link = Link { source, sink, shared, is_last, budget, allowance: allowed, moved: 0 };
        let flow = &mut self.flows[direction as usize];
        let stop = flow.pump(&mut link);
        let moved = link.moved;
        if let Some(rates) = &mut self.rates {
            rates.take(direction, allowed - link.allowance);
            if stop == Stop::Starved {
                rates.sleep(direction, now);
            }
        }
        if moved > 0 {
            link.shared.moved += moved;
            self.last_moved = now;
            self.owner.moved(direction, moved);
        }
        match stop {
            Stop::Blocked | Stop::Budget | Stop::Starved => {}
            Stop::Ended => self.owner.ended_one_way(direction),
            Stop::SourceFailed(error) => self.source_failed(direction.source(), error, now),
            Stop::SinkFailed(error) => self.sink_failed(direction, error, now),
        }
        stop
    }

    /// A read has returned the socket's error: nothing more will ever come from this side.
    fn source_failed(&mut self, side: Side, error: Errno, now: Millis) {
        let end = RelayEnd::of_error(side, error);
        self.fails(side, end, now);
        if let Some(closing) = &mut self.closing
            && closing.end == RelayEnd::Reset(side)
        {
            // The event alone did not tell a reset from a time-out.
            closing.end = end;
        }
        self.flows[side.outgoing() as usize].cut();
        self.shut(side);
    }

    /// A write has failed. What the peer had sent before is still there to be read, and read it must be, for only
    /// that tells whether the other side gets a FIN.
    fn sink_failed(&mut self, direction: Direction, error: Errno, now: Millis) {
        let side = direction.sink();
        self.flows[direction as usize].abandon();
        let end = &mut self.ends[side as usize];
        end.readable = true;
        end.hung_up = true;
        self.fails(side, RelayEnd::of_error(side, error), now);
    }

    /// From here on the session only delivers what `side` had sent, within a bound, and then resets the other.
    fn fails(&mut self, side: Side, end: RelayEnd, now: Millis) {
        self.ends[side as usize].failed = true;
        self.flows[side.other().outgoing() as usize].abandon();
        let patience = match side {
            Side::Client => AFTER_CLIENT_RESET.min(self.timeouts.linger),
            Side::Backend => self.timeouts.linger,
        };
        self.start_closing(end, patience, now);
    }

    /// Reads no more from either side; delivers what was read, then resets both.
    fn close_down(&mut self, end: RelayEnd, patience: Millis, now: Millis) {
        for flow in &mut self.flows {
            flow.cut();
        }
        self.start_closing(end, patience, now);
    }

    fn start_closing(&mut self, end: RelayEnd, patience: Millis, now: Millis) {
        if self.closing.is_none() {
            let look_again = now + SETTLE_POLL.0;
            let closing = Closing { end, since: now, deadline: now + patience, look_again, unsent: u32::MAX };
            self.closing = Some(Box::new(closing));
        }
    }

    /// While closing: closes each end that has nothing left to do; over when both are closed or the bound passed.
    fn settle(&mut self, now: Millis) -> Step {
        if self.closing.is_none() {
            return Step::Wait;
        }
        let mut unsent = 0;
        for side in Side::BOTH {
            let incoming = &self.flows[side.other().outgoing() as usize];
            let outgoing = &self.flows[side.outgoing() as usize];
            let Some(stream) = self.ends[side as usize].stream.as_ref() else { continue };
            if self.ends[side as usize].failed {
                // A dead end stays open only as long as something can be read from it.
                if outgoing.is_settled() {
                    self.shut(side);
                }
            } else {
                let queued = sys::send_queue(stream).unwrap_or(0);
                if incoming.is_settled() && queued == 0 {
                    self.shut(side);
                }
                unsent += queued;
            }
        }
        let Some(closing) = &mut self.closing else { return Step::Wait };
        if self.ends.iter().all(|end| end.stream.is_none()) || now >= closing.deadline {
            return Step::End(closing.end);
        }
        if (unsent != closing.unsent || self.last_moved == now) && closing.end.waits_for_progress() {
            closing.deadline = now + self.timeouts.linger;
        }
        closing.unsent = unsent;
        let pause = ((now - closing.since) / 4).clamp(SETTLE_POLL.0, SETTLE_POLL.1);
        closing.look_again = now + pause;
        Step::Wait
    }

    fn shut(&mut self, side: Side) {
        if let Some(stream) = self.ends[side as usize].stream.take() {
            drop(stream);
            self.owner.closed(side);
        }
    }

    /// When the session has lived for as long as it may.
    fn expiry(&self) -> Millis {
        match self.timeouts.lifetime {
            0 => Millis::MAX,
            lifetime => self.began + lifetime,
        }
    }

    /// When the session has been quiet for long enough to be worth the kernel's keepalive.
    fn next_keepalive(&self) -> Millis {
        if self.watched_over { Millis::MAX } else { self.last_moved + self.timeouts.keepalive / 4 }
    }

    fn watch_over(&mut self) {
        let idle = Duration::from_millis(self.timeouts.keepalive);
        let give_up = Duration::from_millis(self.timeouts.unanswered);
        for stream in self.ends.iter().filter_map(|end| end.stream.as_ref()) {
            // It fails only on a connection that is over, and of that the engine hears by an event.
            let _ = keepalive::watch_over(stream, idle, give_up);
        }
        self.watched_over = true;
    }

    /// When a quiet session's peers are asked again whether they still answer.
    fn next_question(&self) -> Millis {
        match self.timeouts.unanswered {
            0 => Millis::MAX,
            span => (self.last_moved + span).max(self.last_asked + span / 4),
        }
    }

    /// Since when nothing was to be moved: what waits for tokens isn't quiet.
    fn quiet_since(&self) -> Millis {
        self.rates.as_ref().and_then(|rates| rates.sleeps_until()).map_or(self.last_moved, |at| at.max(self.last_moved))
    }

    /// How long the session may stay quiet, and what it ends with then.
    fn quiet_limit(&self) -> (Millis, RelayEnd) {
        if self.flows.iter().any(Flow::is_done) && self.timeouts.half_close < self.timeouts.idle {
            (self.timeouts.half_close, RelayEnd::HalfCloseTimeout)
        } else {
            (self.timeouts.idle, RelayEnd::IdleTimeout)
        }
    }
}
