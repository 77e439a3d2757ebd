//! A worker thread: a runtime of its own, its share of the listening sockets, and the engine that relays.
//!
//! Owns the order of a worker's end: acceptors empty their queues and close, sessions finish or are reset, and the
//! thread says how many it had to cut. A worker that is done with accepting waits for its siblings, whose queues it
//! empties if they are stuck. Shares with other workers what `Shared` and `Seats` hold, and nothing else.

use super::Failure;
use super::start::Shared;
use crate::config::RelayMode;
use crate::drain::{Drain, LocalTasks, Stage, panic_on, spawn_local};
use crate::every::Every;
use crate::metrics::Metrics;
use crate::net::relay::{self, PipeBounds};
use crate::session::balance::{self, Seats, SharedSocket};
use crate::session::{Worker, WorkerSetup, orders};
use crate::sys;
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;

/// What is said about workers that are stuck is said at most this often.
const STUCK_LOG: Duration = Duration::from_secs(10);

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
    sockets: Vec<Vec<Arc<SharedSocket>>>,
    shared: &Shared,
    pipes: PipeBounds,
    relay: RelayMode,
    drain: &Drain,
    up: &mpsc::Sender<()>,
    events: &mpsc::Sender<Ended>,
) -> Result<Vec<WorkerThread>, Failure> {
    let mut workers = Vec::new();
    let now = Instant::now();
    let seats = Arc::new(Seats::new(sockets, &shared.metrics, now));
    // Workers are started once.
    let _ = shared.seats.set(Arc::clone(&seats));
    let stuck = Arc::new(Every::new(STUCK_LOG, now));
    for index in seats.iter().map(|seat| seat.index) {
        let setup = WorkerSetup {
            index,
            seats: Arc::clone(&seats),
            table: Arc::clone(&shared.table),
            access: shared.access.clone(),
            pipes,
            relay,
            drain: drain.clone(),
            shortage: Arc::clone(&shared.shortage),
            stuck: Arc::clone(&stuck),
        };
        let (drain, up, events, metrics) = (drain.clone(), up.clone(), events.clone(), Arc::clone(&shared.metrics));
        let body = move || {
            let served = catch_unwind(AssertUnwindSafe(|| serve(setup, drain, up, &metrics)));
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

fn serve(setup: WorkerSetup, drain: Drain, up: mpsc::Sender<()>, metrics: &Metrics) -> io::Result<usize> {
    // Not a `LocalSet`: there each wake-up of a task costs a write(2), as if it came from another thread.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let worker = Rc::new(Worker::new(setup)?);
        let orders = worker.seat.take_orders().ok_or_else(|| io::Error::other("another worker has its seat"))?;
        let mut inbox = LocalTasks::default();
        inbox.spawn(balance::serve_inbox(Rc::clone(&worker), drain.clone()));
        // A task of its own: it is woken for each turn, and nothing else needs to look around then.
        let engine = spawn_local(relay::drive(Rc::clone(&worker.engine))?);
        let cut = tokio::select! {
            biased;
            failed = engine => failed.map_err(panic_on)?.map(never)?,
            failed = orders::serve(Rc::clone(&worker), orders) => failed.map(never)?,
            never_ends = keep_house(&worker, metrics, up) => never(never_ends),
            cut = drained(&worker, inbox, drain) => cut?,
        };
        worker.housekeep(metrics);
        Ok(cut)
    })
}

/// Waits for all accepting to end and the sessions to finish, or for the order to reset them; how many it reset.
async fn drained(worker: &Rc<Worker>, mut inbox: LocalTasks, mut drain: Drain) -> io::Result<usize> {
    let watched = drain.clone();
    let finished = async {
        let own = async {
            // It ends with the stop.
            inbox.all_ended().await?;
            worker.seat.all_closed().await;
            worker.seats.retire(&worker.seat);
            io::Result::Ok(())
        };
        let siblings = async {
            balance::look_after(worker, &watched).await;
            Ok(())
        };
        tokio::try_join!(own, siblings)?;
        worker.living.none_left().await;
        io::Result::Ok(())
    };
    tokio::select! {
        finished = finished => finished.map(|()| worker.cut()),
        () = drain.reached(Stage::Aborting) => {
            // Nothing comes into the inbox any more; what was in it is reset here.
            let left = worker.cut() + worker.living.count() + worker.seat.inbox.close().len();
            worker.engine.borrow_mut().abort_all();
            Ok(left)
        }
    }
}

async fn keep_house(worker: &Worker, metrics: &Metrics, up: mpsc::Sender<()>) -> Infallible {
    // Whatever needs a descriptor has it. A daemon that no longer listens is stopping.
    let _ = up.try_send(());
    drop(up);
    let mut tick = tokio::time::interval(balance::BEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        worker.housekeep(metrics);
        sys::shrink_own_heap();
    }
}

fn never<T>(never: Infallible) -> T {
    match never {}
}
