//! A worker thread: a runtime of its own, its share of the listening sockets, and the engine that relays.
//!
//! Owns the order of a worker's end: acceptors empty their queues and close, sessions finish or are reset, and the
//! thread says how many it had to cut. Shares nothing with other workers but what `Shared` holds.

use super::Failure;
use super::start::{Shared, WorkerSockets};
use crate::config::RelayMode;
use crate::drain::{Drain, LocalTasks, Stage, spawn_local};
use crate::metrics::Metrics;
use crate::net::relay::{self, PipeBounds};
use crate::session::{Worker, WorkerSetup, acceptor};
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;

/// How often a worker hands its log lines on and updates the metrics that it keeps for itself.
const HOUSEKEEPING: Duration = Duration::from_millis(250);

/// A worker that runs.
pub struct WorkerThread {
    pub index: u16,
}

/// A worker that has ended: how many sessions it had to reset, or what killed it.
pub struct Ended {
    pub index: u16,
    pub result: Result<usize, Failure>,
}

/// Starts one thread for each share of sockets; each says once, through `up`, that it serves. If one can't start,
/// the process must not go on.
pub fn spawn_all(
    sockets: Vec<WorkerSockets>,
    shared: &Shared,
    pipes: PipeBounds,
    relay: RelayMode,
    drain: &Drain,
    up: &mpsc::Sender<()>,
    events: &mpsc::Sender<Ended>,
) -> Result<Vec<WorkerThread>, Failure> {
    let mut workers = Vec::new();
    for (index, sockets) in (0..).zip(sockets) {
        let setup = WorkerSetup {
            index,
            table: Arc::clone(&shared.table),
            admission: Arc::clone(&shared.admission),
            access: shared.access.clone(),
            pipes,
            relay,
            shortage: Arc::clone(&shared.shortage),
        };
        let (drain, up, events, metrics) = (drain.clone(), up.clone(), events.clone(), Arc::clone(&shared.metrics));
        let body = move || {
            let served = catch_unwind(AssertUnwindSafe(|| serve(setup, sockets, drain, up, &metrics)));
            let result = match served {
                Ok(Ok(cut)) => Ok(cut),
                Ok(Err(error)) => Err(Failure::System(format!("worker {index} failed: {error}"))),
                Err(_) => Err(Failure::Internal(format!("worker {index} panicked"))),
            };
            // The daemon is gone only if the process is about to be.
            let _ = events.blocking_send(Ended { index, result });
        };
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(body)
            .map_err(|error| Failure::System(format!("can't start worker {index}: {error}")))?;
        workers.push(WorkerThread { index });
    }
    Ok(workers)
}

fn serve(
    setup: WorkerSetup,
    sockets: WorkerSockets,
    drain: Drain,
    up: mpsc::Sender<()>,
    metrics: &Metrics,
) -> io::Result<usize> {
    // Not a `LocalSet`: there each wake-up of a task costs a write(2), as if it came from another thread.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let worker = Rc::new(Worker::new(setup)?);
        let mut acceptors = LocalTasks::default();
        for (socket, options, listener) in sockets {
            acceptors.spawn(acceptor::run(socket, options, listener, Rc::clone(&worker), drain.clone()));
        }
        // A task of its own: it is woken for each turn, and nothing else needs to look around then.
        let engine = spawn_local(relay::drive(Rc::clone(&worker.engine)));
        let cut = tokio::select! {
            biased;
            failed = engine => failed?.map(never)?,
            never_ends = keep_house(&worker, metrics, up) => never(never_ends),
            cut = drained(&worker, acceptors, drain) => cut?,
        };
        worker.housekeep(metrics);
        Ok(cut)
    })
}

/// Waits for the acceptors to end and the sessions to finish, or for the order to reset them; how many it reset.
async fn drained(worker: &Worker, mut acceptors: LocalTasks, mut drain: Drain) -> io::Result<usize> {
    let finished = async {
        acceptors.all_ended().await?;
        worker.living.none_left().await;
        io::Result::Ok(())
    };
    tokio::select! {
        finished = finished => finished.map(|()| 0),
        () = drain.reached(Stage::Aborting) => {
            let left = worker.living.count();
            worker.engine.borrow_mut().abort_all();
            Ok(left)
        }
    }
}

async fn keep_house(worker: &Worker, metrics: &Metrics, up: mpsc::Sender<()>) -> Infallible {
    // The engine has begun before this is polled, so all is in place. A daemon that no longer listens is stopping.
    let _ = up.try_send(());
    drop(up);
    let mut tick = tokio::time::interval(HOUSEKEEPING);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        worker.housekeep(metrics);
    }
}

fn never<T>(never: Infallible) -> T {
    match never {}
}
