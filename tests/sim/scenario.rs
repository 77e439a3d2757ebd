//! What a scenario is made of: a pool with a random policy, members and config, and a kind of trouble.
//!
//! Owns the dice by which all of it is thrown; the same seed gives the same scenario.

use std::time::Duration;
use tidegate::clock::Millis;
use tidegate::config::{self, Balance, Group, Initial, Percent};
use tidegate::name::{BackendAddr, Endpoint, PoolName};
use tidegate::pool::{Members, ResolvedMember};
use tidegate::rng::Rng;

/// Whole numbers by chance.
pub struct Dice(pub Rng);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Rng::from_seed(seed))
    }

    /// Both ends included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.0.below(most - least + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.0.below(100) < percent
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.index(choices.len())]
    }
}

/// What goes wrong in a scenario, for the most part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Flaps,
    BrownOuts,
    MassDeath,
    Liars,
    Slow,
    Everything,
}

pub struct Scenario {
    pub config: config::Pool,
    pub members: Members,
    /// In hundredths of a per cent, as the config has it.
    pub panic_threshold: u16,
    pub max_ejected: u16,
    pub trouble: Trouble,
    /// The mean time from one client to the next.
    pub pause: Millis,
    /// How long the trouble lasts.
    pub length: Millis,
    /// It is built anew now and then.
    pub rebuilds: bool,
    pub agents: bool,
    next_label: usize,
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Scenario {
    pub fn new(dice: &mut Dice) -> Self {
        let size = match dice.between(0, 9) {
            0 => dice.between(1, 2),
            1..=6 => dice.between(3, 12),
            _ => dice.between(13, 40),
        } as usize;
        let mut next_label = 0;
        let (weights, tiers) = (dice.one_of(&[1, 1, 3, 10, 256]), dice.one_of(&[1, 1, 2, 3, 16]));
        let list = (0..size).map(|_| member(&mut next_label, weights, tiers, dice)).collect();
        let balance = balance(size, dice);
        let mut config = config::Pool::new(PoolName::new("sim"), balance.clone(), Vec::new());
        let panic_threshold = dice.one_of(&[0, 0, 1_000, 3_333, 5_000, 5_000, 7_500, 10_000]);
        let max_ejected = dice.one_of(&[0, 1_000, 1_000, 2_500, 5_000, 10_000]);
        let protection = &mut config.protection;
        protection.panic_threshold = Percent::hundredths(panic_threshold);
        protection.min_available = dice.one_of(&[1, 1, 2, 3, 5]);
        protection.tier_hold = ms(dice.one_of(&[0, 1_000, 5_000, 10_000, 20_000]));
        protection.slow_start = ms(dice.one_of(&[0, 1_000, 7_777, 30_000]));
        let base_time = dice.one_of(&[500, 2_000, 5_000, 10_000]);
        config.ejection = config::Ejection {
            consecutive_failures: dice.one_of(&[Some(1), Some(2), Some(3), Some(5), None]),
            base_time: ms(base_time),
            max_time: ms(base_time * dice.one_of(&[1, 2, 4])),
            max_ejected: Percent::hundredths(max_ejected),
            slow_connect: dice.one_of(&[None, Some(ms(200))]),
        };
        let interval = dice.one_of(&[1_000, 2_000, 5_000]);
        config.health = config::Health {
            interval: ms(interval),
            fast_interval: ms(interval / 4),
            down_interval: ms(dice.one_of(&[1_000, 2_000, 4_000])),
            jitter: Percent::whole(dice.one_of(&[0, 10, 50])),
            rise: dice.between(1, 4) as u16,
            fall: dice.between(1, 4) as u16,
            initial: dice.one_of(&[Initial::Up, Initial::Down]),
            ..config::Health::default()
        };
        let connect = &mut config.connect;
        connect.timeout = ms(dice.one_of(&[500, 2_000]));
        connect.budget = ms(dice.one_of(&[1_000, 3_000]));
        connect.attempts = dice.one_of(&[1, 2, 3, 5, 16]);
        connect.hedge_after = dice.one_of(&[None, Some(ms(50))]);
        connect.hedge_share = Percent::whole(dice.one_of(&[0, 10, 50, 100]));
        connect.max_rate = dice.one_of(&[None, None, None, Some(7), Some(30), Some(300)]);
        let troubles = [
            Trouble::Flaps,
            Trouble::BrownOuts,
            Trouble::MassDeath,
            Trouble::Liars,
            Trouble::Slow,
            Trouble::Everything,
            Trouble::Everything,
        ];
        Self {
            config,
            members: Members { list, balance },
            panic_threshold,
            max_ejected,
            trouble: dice.one_of(&troubles),
            pause: dice.one_of(&[40, 80, 160]),
            length: dice.between(20_000, 60_000),
            rebuilds: dice.chance(40),
            agents: dice.chance(40),
            next_label,
        }
    }

    /// Adds, removes and reweights some, and changes what a reload may change.
    pub fn rebuild(&mut self, dice: &mut Dice) {
        let list = &mut self.members.list;
        for member in list.iter_mut() {
            if dice.chance(10) {
                member.weight = dice.between(1, 10) as u16;
            }
            if dice.chance(5) {
                member.tier = dice.between(0, 2) as u8;
            }
        }
        if dice.chance(50) && list.len() > 1 {
            let gone = dice.0.index(list.len());
            list.remove(gone);
        }
        if dice.chance(50) && list.len() < 40 {
            let at = dice.0.index(list.len() + 1);
            list.insert(at, member(&mut self.next_label, 10, 2, dice));
        }
        let size = list.len();
        if let Balance::Failover(_) = self.members.balance {
            self.members.balance = Balance::Failover(group(size, dice));
        } else if dice.chance(20) {
            self.members.balance = dice.one_of(&PLAIN).clone();
        }
        self.config.balance = self.members.balance.clone();
        self.config.hash = (self.config.balance == Balance::SourceHash).then(config::Hash::default);
        self.panic_threshold = dice.one_of(&[0, 3_333, 5_000, 10_000]);
        self.config.protection.panic_threshold = Percent::hundredths(self.panic_threshold);
        self.config.protection.min_available = dice.one_of(&[1, 2, 3]);
    }
}

const PLAIN: [&Balance; 6] = [
    &Balance::RoundRobin,
    &Balance::Random,
    &Balance::LeastConnections,
    &Balance::PowerOfTwo,
    &Balance::PeakEwma,
    &Balance::SourceHash,
];

fn balance(size: usize, dice: &mut Dice) -> Balance {
    match dice.0.index(PLAIN.len() + 1) {
        kind if kind < PLAIN.len() => PLAIN[kind].clone(),
        _ => Balance::Failover(group(size, dice)),
    }
}

/// A group of groups.
fn group(size: usize, dice: &mut Dice) -> Group {
    let mut groups = Vec::new();
    let mut next = 0;
    while next < size {
        let end = size.min(next + dice.between(1, 5) as usize);
        let mut members: Vec<Group> = (next..end).map(Group::Member).collect();
        groups.push(if members.len() == 1 { members.remove(0) } else { Group::Any(members) });
        next = end;
    }
    Group::Any(groups)
}

fn member(next_label: &mut usize, most_weight: u64, tiers: u64, dice: &mut Dice) -> ResolvedMember {
    let label = format!("b{next_label}");
    *next_label += 1;
    // Most are in the first tier.
    let tier = if dice.chance(60) { 0 } else { dice.between(0, tiers - 1) };
    member_of(&label, dice.between(1, most_weight) as u16, tier as u8)
}

pub fn member_of(label: &str, weight: u16, tier: u8) -> ResolvedMember {
    let address = BackendAddr(Endpoint::Unix(std::path::Path::new(label).into()));
    ResolvedMember { address, weight, tier, max_connections: None, label: label.into() }
}
