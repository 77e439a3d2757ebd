//! Bulkheads: two listeners with a pool each in one tidegate, whose connections are bounded. The users of B are few;
//! what do they notice when those of A are far too many?
//!
//! A takes whatever it can get: its pool has no maxima, so that each of its users holds a connection for as long as its
//! patience lasts, and without a reserve A alone uses up what the process may have. Each case gets a fresh tidegate and
//! fresh backends in each round, in an order of chance. Printed is what B's users got; of A's only how many came.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidegate_compare::stats::Spread;
use tidegate_compare::table::{Style, Table};

use crate::bench::{Backends, Users, local, raise_descriptor_limit};
use crate::cli::Options;
use crate::contestant::{Programs, start_tidegate};
use crate::users::{self, Sample};

/// What the process may have, and what of that is kept for B: more than B needs at `B_LOAD`.
const MAX_CONNECTIONS: u32 = 1_000;
const RESERVED: u32 = 100;
/// B's users a second, in units of its pool's capacity.
const B_LOAD: f64 = 0.25;

struct Case {
    name: &'static str,
    a_is_loaded: bool,
    reserved: u32,
}

const CASES: [Case; 3] = [
    Case { name: "A idle, B has a reserve", a_is_loaded: false, reserved: RESERVED },
    Case { name: "A overloaded, B has a reserve", a_is_loaded: true, reserved: RESERVED },
    Case { name: "A overloaded, no reserve", a_is_loaded: true, reserved: 0 },
];

/// What one window brought.
struct Window {
    case: usize,
    a: Option<Sample>,
    b: Sample,
}

type Figure = fn(&Window) -> Option<f64>;

/// Heading, value, decimals.
const FIGURES: [(&str, Figure, usize); 7] = [
    ("B: users served %", |w| Some(100.0 * w.b.useful as f64 / (w.b.useful + w.b.lost_users).max(1) as f64), 1),
    ("wait p50 ms", |w| Some(w.b.wait.p50), 1),
    ("p99 ms", |w| Some(w.b.wait.p99), 1),
    ("attempts refused %", |w| Some(100.0 * w.b.refused as f64 / w.b.attempts.max(1) as f64), 1),
    ("A: connects/s", |w| w.a.as_ref().map(|a| a.attempts as f64 / a.seconds), 0),
    ("refused/s", |w| w.a.as_ref().map(|a| a.refused as f64 / a.seconds), 0),
    ("proxy CPU %", |w| Some(100.0 * w.b.proxy_cpu / w.b.seconds), 0),
];

/// Runs all cases in each round, and prints the table.
pub fn run(options: &Options) -> Result<()> {
    raise_descriptor_limit(options)?;
    let programs = Programs::find(options);
    let kept = tempfile::tempdir().context("making a directory")?;
    let directory = options.keep.as_deref().unwrap_or(kept.path());
    std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let (began, mut windows, mut dice) = (Instant::now(), Vec::new(), fastrand::Rng::new());
    for round in 0..options.rounds() {
        let mut order: Vec<usize> = (0..CASES.len()).collect();
        dice.shuffle(&mut order);
        for case in order {
            eprintln!("round {}: {}", round + 1, CASES[case].name);
            windows.push(measure(case, round, &programs, options, directory)?);
        }
    }
    print!("{}", text(&windows, &programs, options, began.elapsed()));
    Ok(())
}

fn measure(case: usize, round: u64, programs: &Programs, options: &Options, directory: &Path) -> Result<Window> {
    let pools =
        [Backends::start("backends-a", 0, options, directory)?, Backends::start("backends-b", 1, options, directory)?];
    let listen = [local(options.base_port + 1), local(options.base_port + 2)];
    let config = config(&CASES[case], listen, &pools);
    let proxy = start_tidegate("bulkheads", programs, &config, &listen, directory)?;
    let before = proxy.tree();
    let job = |pool: usize, load: f64| users::Job {
        targets: vec![listen[pool]],
        rate: options.capacity() * load,
        patience: options.patience(),
        retries: options.retries,
        warm_up: options.warm_up(),
        window: options.window(),
        seed: 2 * round + pool as u64,
        tally: pools[pool].tally.clone(),
        proxy: before.clone(),
        backends: pools[pool].process.pid(),
    };
    let loaded = CASES[case].a_is_loaded.then(|| Users::start("users-a", &job(0, options.load), directory));
    let b = Users::start("users-b", &job(1, B_LOAD), directory)?.sample()?;
    let a = loaded.transpose()?.map(Users::sample).transpose()?;
    if proxy.tree() != before {
        bail!("the processes of the proxy were {before:?} and are {:?}", proxy.tree());
    }
    let broken = b.broken + a.as_ref().map_or(0, |a| a.broken);
    if broken > 0 {
        eprintln!("  ! {broken} connects failed for want of something on this host");
    }
    Ok(Window { case, a, b })
}

fn config(case: &Case, listen: [std::net::SocketAddrV4; 2], pools: &[Backends; 2]) -> String {
    let list = |pool: &Backends| {
        let list: Vec<String> = pool.listen.iter().map(|address| format!("\"{address}\"")).collect();
        list.join(", ")
    };
    format!(
        "[runtime]\nworkers = 1\nmax_connections = {MAX_CONNECTIONS}\n\
         [listeners.a]\nbind = \"{}\"\npool = \"a\"\n\
         [listeners.b]\nbind = \"{}\"\npool = \"b\"\nreserved_connections = {}\n\
         [pools.a]\nbackends = [{}]\n[pools.b]\nbackends = [{}]\n",
        listen[0],
        listen[1],
        case.reserved,
        list(&pools[0]),
        list(&pools[1]),
    )
}

fn text(windows: &[Window], programs: &Programs, options: &Options, took: Duration) -> String {
    let style = if options.markdown { Style::Markdown } else { Style::Text };
    let mut table = Table::new(["case"].into_iter().chain(FIGURES.iter().map(|figure| figure.0)));
    for (index, case) in CASES.iter().enumerate() {
        let cells = FIGURES.iter().map(|&(_, figure, decimals)| {
            let own = windows.iter().filter(|window| window.case == index).filter_map(figure);
            Spread::of(own).map_or_else(|| "-".to_owned(), |spread| format!("{:.decimals$}", spread.median))
        });
        table.row(std::iter::once(case.name.to_owned()).chain(cells));
    }
    format!(
        "Two pools of {:.0} answers/s each, {} ms for each request. Users of B: {B_LOAD} of that; of A: none, or {} times it. Each \
         waits {} ms for an answer and tries again up to {} times. The process may have {MAX_CONNECTIONS} connections, of which \
         {RESERVED} are reserved for B, or none. {} round(s) of {:.1} s after {:.1} s; medians. {}. {:.0} s in all.\n\n{}\n",
        options.capacity(),
        options.service,
        options.load,
        options.patience,
        options.retries,
        options.rounds(),
        options.window().as_secs_f64(),
        options.warm_up().as_secs_f64(),
        programs.versions().join("; "),
        took.as_secs_f64(),
        table.print(style),
    )
}
