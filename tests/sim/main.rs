//! A simulation of pools on virtual time: `cargo test --test sim`.
//!
//! Hundreds of scenarios, each from a seed: a pool with a random policy, members and config, backends that flap, brown
//! out, die together, lie, are slow or silent, and clients that come and fail over meanwhile. At each step the pool
//! must agree with a twin that works out the documented rules in the plainest way (`twin`), and each claim must be one
//! that these rules allow (`watched`). At the end all is well again, and must be seen to be.
//!
//! `TIDEGATE_SIM_SEED=N` runs the one scenario of that seed, as a failure names it; `TIDEGATE_SIM_SCENARIOS=N` that
//! many.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod calm;
mod directed;
mod run;
mod scenario;
mod twin;
mod watched;
mod world;

use run::Run;

/// Unless the environment says otherwise.
const SCENARIOS: u64 = 200;

/// What has happened, so that one sees that everything has.
#[derive(Debug, Default)]
struct Tally {
    scenarios: u64,
    steps: u64,
    claims: u64,
    unserved: u64,
    failovers: u64,
    failures: u64,
    ejections: u64,
    forgiven: u64,
    longest_row: u32,
    trials: u64,
    returns: u64,
    verdicts: u64,
    agents: u64,
    panics: u64,
    panic_claims: u64,
    tier_changes: u64,
    backup_claims: u64,
    slow_claims: u64,
    waits: u64,
    hedges: u64,
    rebuilds: u64,
    well: u64,
    exact_rounds: u64,
}

/// Says how to run a scenario again if it has failed.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nseed {0} has failed; again: TIDEGATE_SIM_SEED={0} cargo test --test sim\n", self.0);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, and is {text:?}")))
}

#[test]
fn pools_keep_their_promises_whatever_happens() {
    let (seed, scenarios) = (number("TIDEGATE_SIM_SEED"), number("TIDEGATE_SIM_SCENARIOS"));
    let seeds = seed.map_or(0..scenarios.unwrap_or(SCENARIOS), |seed| seed..seed + 1);
    let mut tally = Tally::default();
    for seed in seeds {
        let _replay = Replay(seed);
        Run::new(seed, &mut tally).run();
    }
    println!("{tally:#?}");
    if seed.is_some() || scenarios.is_some_and(|scenarios| scenarios < SCENARIOS) {
        return;
    }
    for (what, times) in [
        ("claims", tally.claims),
        ("unserved", tally.unserved),
        ("failovers", tally.failovers),
        ("failures", tally.failures),
        ("ejections", tally.ejections),
        ("forgiven", tally.forgiven),
        ("trials", tally.trials),
        ("returns", tally.returns),
        ("verdicts", tally.verdicts),
        ("agents", tally.agents),
        ("panics", tally.panics),
        ("panic claims", tally.panic_claims),
        ("tier changes", tally.tier_changes),
        ("backup claims", tally.backup_claims),
        ("slow claims", tally.slow_claims),
        ("waits", tally.waits),
        ("hedges", tally.hedges),
        ("rebuilds", tally.rebuilds),
        ("all well at the end", tally.well),
        ("exact rounds", tally.exact_rounds),
    ] {
        assert!(times > 0, "nothing of this happened: {what}");
    }
    assert!(tally.longest_row > 2, "no backend was ejected again and again: {}", tally.longest_row);
}
