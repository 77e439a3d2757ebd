//! The backends as they really are, which the pool can only guess: how a probe ends, and how a connection does.

use crate::scenario::{Dice, Trouble};
use tidegate::clock::Millis;
use tidegate::metrics::TrafficFailure;
use tidegate::pool::health::Outcome;

/// The state of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    Good,
    /// Refuses everything.
    Dead,
    /// Nothing answers at all, not even the kernel.
    Gone,
    /// Its kernel accepts, the process says nothing: no failure that anybody could see.
    Stopped,
    /// Passes its probes and fails its clients.
    Lies,
    /// Slow, and answers so many of a hundred.
    Brown(u64),
    Slow,
    /// Good and dead in turns of so many ms.
    Flaps(Millis),
}

/// How a connect ends, and after how long.
#[derive(Clone, Copy, Debug)]
pub enum Connect {
    Ok(Millis),
    Failed(Millis),
    /// A shortage of this host.
    Ours,
}

/// What follows on a connection, and after how long.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Answered(Millis),
    Failed(Millis, TrafficFailure),
    /// The client goes before there is an answer.
    Undecided(Millis),
    /// The client has said all, and wants none.
    Done(Millis),
}

impl Nature {
    fn now(self, now: Millis) -> Self {
        match self {
            Self::Flaps(period) if (now / period).is_multiple_of(2) => Self::Good,
            Self::Flaps(_) => Self::Dead,
            other => other,
        }
    }

    pub fn probe(self, now: Millis, dice: &mut Dice) -> Outcome {
        if dice.chance(1) {
            return Outcome::Frozen;
        }
        match self.now(now) {
            Self::Dead | Self::Gone => Outcome::Failure,
            Self::Brown(good) if !dice.chance(good) => Outcome::Failure,
            _ => Outcome::Success,
        }
    }

    pub fn connect(self, now: Millis, timeout: Millis, dice: &mut Dice) -> Connect {
        if dice.chance(1) {
            return Connect::Ours;
        }
        let took = match self.now(now) {
            Self::Dead => return Connect::Failed(dice.between(0, 2)),
            Self::Gone => timeout,
            Self::Brown(_) | Self::Slow => dice.between(20, 900),
            _ => dice.between(0, 3),
        };
        if took < timeout { Connect::Ok(took) } else { Connect::Failed(timeout) }
    }

    pub fn answer(self, now: Millis, dice: &mut Dice) -> Answer {
        match dice.between(0, 99) {
            0..=2 => return Answer::Undecided(dice.between(1, 50)),
            3 => return Answer::Done(dice.between(1, 50)),
            _ => {}
        }
        let failure = dice.one_of(&[TrafficFailure::Reset, TrafficFailure::Closed]);
        match self.now(now) {
            Self::Stopped | Self::Gone => Answer::Undecided(dice.between(1_000, 15_000)),
            Self::Lies | Self::Dead => Answer::Failed(dice.between(0, 30), failure),
            Self::Brown(good) if !dice.chance(good) => Answer::Failed(dice.between(10, 2_000), failure),
            Self::Brown(_) | Self::Slow => Answer::Answered(dice.between(100, 2_000)),
            _ => Answer::Answered(dice.between(1, 20)),
        }
    }
}

/// How long a session lasts after its answer.
pub fn life(dice: &mut Dice) -> Millis {
    match dice.between(0, 99) {
        0..=74 => dice.between(0, 300),
        75..=94 => dice.between(500, 5_000),
        _ => dice.between(10_000, 60_000),
    }
}

/// What befalls the backends, all of which are `natures`.
pub fn befall(natures: &mut [Nature], trouble: Trouble, dice: &mut Dice) {
    if natures.is_empty() {
        return;
    }
    let troubles = [Trouble::Flaps, Trouble::BrownOuts, Trouble::MassDeath, Trouble::Liars, Trouble::Slow];
    let trouble = if trouble == Trouble::Everything { dice.one_of(&troubles) } else { trouble };
    let one = dice.0.index(natures.len());
    match trouble {
        // Half of what happens is that somebody is well again.
        _ if dice.chance(40) => natures[one] = Nature::Good,
        Trouble::Flaps => natures[one] = Nature::Flaps(dice.between(300, 12_000)),
        Trouble::BrownOuts => natures[one] = Nature::Brown(dice.between(5, 95)),
        Trouble::Liars => natures[one] = Nature::Lies,
        Trouble::Slow => natures[one] = dice.one_of(&[Nature::Slow, Nature::Stopped]),
        Trouble::MassDeath | Trouble::Everything => {
            let nature = dice.one_of(&[Nature::Dead, Nature::Gone, Nature::Good, Nature::Good]);
            let all = dice.chance(60);
            for each in natures {
                if all || dice.chance(70) {
                    *each = nature;
                }
            }
        }
    }
}
