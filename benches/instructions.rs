//! Instructions for one claim and its release, by policy and size of the pool: `cargo bench --bench instructions`.
//!
//! Times vary from run to run and from machine to machine; the number of instructions hardly does, so that a change
//! for the worse shows however loaded the machine is. This program runs itself under valgrind's callgrind, once for
//! each row, with the counter on only while [`measured_claims`] runs. Without valgrind it says so and fails.

mod pools;

use pools::{POLICIES, SIZES, pool};
use std::env;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use tidegate::pool::{Pool, Tried};
use tidegate::rng::Rng;

/// Claims in one run: enough for each backend of the largest pool to have its turns.
const CLAIMS: u64 = 20_000;

/// Tells the program under valgrind what to do: the policy and the size.
const CHILD: &str = "TIDEGATE_BENCH_CLAIM";

fn main() -> ExitCode {
    if let Ok(work) = env::var(CHILD) {
        claim(&work);
        return ExitCode::SUCCESS;
    }
    println!("A claim and its release, all backends up:\n\n{:<18}{:>10}{:>14}", "policy", "backends", "instructions");
    for (policy, _) in POLICIES {
        for size in SIZES {
            match instructions(policy, size) {
                Ok(count) => println!("{policy:<18}{size:>10}{:>14.1}", count as f64 / CLAIMS as f64),
                Err(why) => {
                    eprintln!("not measured: {why}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

/// What callgrind counts.
fn instructions(policy: &str, size: usize) -> Result<u64, String> {
    let program = env::current_exe().map_err(|error| format!("this program doesn't find itself: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*measured_claims*"])
        .arg("--callgrind-out-file=/dev/null")
        .arg(program)
        .env(CHILD, format!("{policy} {size}"))
        .output()
        .map_err(|error| format!("valgrind can't be run ({error}); install it (Debian: apt-get install valgrind)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match counted {
        // The loop alone has more than that.
        Some(count) if output.status.success() && count > CLAIMS => Ok(count),
        _ => Err(format!("valgrind counted nothing ({}):\n{said}", output.status)),
    }
}

fn claim(work: &str) {
    let (policy, size) = work.split_once(' ').expect("a policy and a size");
    let size = size.parse().expect("a size");
    let (_, balance) = POLICIES.iter().find(|(name, _)| *name == policy).expect("a policy of the list");
    let pool = pool(balance(size), size);
    let mut rng = Rng::from_seed(1);
    // What happens once in a thread is none of a claim's cost.
    drop(pool.claim(&Tried::default(), 1, &mut rng));
    measured_claims(&pool, &mut rng);
}

#[inline(never)]
fn measured_claims(pool: &Pool, rng: &mut Rng) {
    let tried = Tried::default();
    for _ in 0..CLAIMS {
        drop(black_box(pool.claim(&tried, 1, rng)));
    }
}
