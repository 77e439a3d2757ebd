//! The stop of the process as a signal, and the only place that spawns tasks that outlive their spawner.
//!
//! Owns the stages of a stop, and when what is left is to go before the last of them; and the counting of what still
//! has to finish. Decides no deadline and closes no socket. A task that panics harms itself alone: the runtime contains
//! it, and its guards run. Next: `daemon`, which moves the stages on, and the acceptors, which watch them.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};

/// How far a stop has come. Stages only ever go forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    #[default]
    Serving,
    /// Accept what is queued, close the listening sockets, let sessions finish.
    Draining,
    /// Reset what is left.
    Aborting,
}

/// From when on what is left is ended bit by bit, evenly, and by when all of it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    pub from: Instant,
    pub until: Instant,
}

/// What the daemon says.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    stage: Stage,
    spread: Option<Spread>,
}

/// The sending half, held by the daemon.
#[derive(Debug)]
pub struct Stopper(watch::Sender<Word>);

/// The receiving half, held by everybody else.
#[derive(Clone, Debug)]
pub struct Drain(watch::Receiver<Word>);

/// A new stop signal, at [`Stage::Serving`].
#[must_use]
pub fn channel() -> (Stopper, Drain) {
    let (sender, receiver) = watch::channel(Word::default());
    (Stopper(sender), Drain(receiver))
}

impl Stopper {
    /// Moves to `stage`, unless the stop is already further.
    pub fn advance(&self, stage: Stage) {
        self.0.send_if_modified(|current| {
            let forward = stage > current.stage;
            if forward {
                current.stage = stage;
            }
            forward
        });
    }

    /// Says how what is left is ended before [`Stage::Aborting`].
    pub fn spread(&self, spread: Spread) {
        self.0.send_modify(|word| word.spread = Some(spread));
    }
}

impl Drain {
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.0.borrow().stage
    }

    /// How what is left is ended before [`Stage::Aborting`]; `None` if not at all.
    #[must_use]
    pub fn spread(&self) -> Option<Spread> {
        self.0.borrow().spread
    }

    /// Waits until the stop has reached `stage`. A daemon that is gone counts as [`Stage::Aborting`].
    pub async fn reached(&mut self, stage: Stage) {
        // An error means that the sender is gone: nothing will be served any more.
        let _ = self.0.wait_for(|current| current.stage >= stage).await;
    }
}

/// Counts what is alive on one thread, by guards.
#[derive(Clone, Debug, Default)]
pub struct Living(Rc<LivingInner>);

#[derive(Debug, Default)]
struct LivingInner {
    count: Cell<usize>,
    none_left: Notify,
}

/// One thing alive, until it is dropped.
#[derive(Debug)]
pub struct Alive(Rc<LivingInner>);

impl Living {
    #[must_use]
    pub fn enter(&self) -> Alive {
        self.0.count.set(self.0.count.get() + 1);
        Alive(Rc::clone(&self.0))
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.0.count.get()
    }

    /// Waits until nothing is alive.
    pub async fn none_left(&self) {
        while self.count() > 0 {
            self.0.none_left.notified().await;
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            // Keeps a permit if nobody waits yet; `none_left` checks the count again after each wake.
            self.0.none_left.notify_one();
        }
    }
}

/// Spawns a task on the current thread's runtime, which must be a local one.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn spawn_local<F: Future + 'static>(task: F) -> JoinHandle<F::Output> {
    tokio::task::spawn_local(task)
}

/// Runs `task` at once on the current thread; it becomes a task of the runtime only if it has to wait. A panic in it
/// harms nobody else either way.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn run_local<F: Future<Output = ()> + 'static>(task: F) {
    let mut task = Box::pin(task);
    // Nobody needs to be woken: a task that waits is polled once more as it is spawned.
    let polled = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
    if let Ok(Poll::Pending) = polled {
        drop(tokio::task::spawn_local(task));
    }
}

/// The panic of a task that its spawner can't do without goes on in the spawner; what is left is a cancelled task.
#[must_use]
pub fn panic_on(ended: JoinError) -> io::Error {
    match ended.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(cancelled) => cancelled.into(),
    }
}

/// Tasks whose end matters, on the current thread's runtime, which must be a local one. Those that are left are
/// cancelled on drop.
#[derive(Debug, Default)]
pub struct LocalTasks(JoinSet<()>);

impl LocalTasks {
    pub fn spawn<F: Future<Output = ()> + 'static>(&mut self, task: F) {
        self.0.spawn_local(task);
    }

    /// Waits until one of them has ended, without end if there is none; its panic goes on here.
    pub async fn one_ended(&mut self) -> io::Result<()> {
        match self.0.join_next().await {
            Some(ended) => ended.map_err(panic_on),
            None => std::future::pending().await,
        }
    }

    /// Waits for all of them; the panic of the first goes on here at once.
    pub async fn all_ended(&mut self) -> io::Result<()> {
        while let Some(ended) = self.0.join_next().await {
            ended.map_err(panic_on)?;
        }
        Ok(())
    }
}

/// Spawns a task on the current runtime.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(task)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn stages_only_go_forward() {
        let (stopper, mut drain) = channel();
        stopper.advance(Stage::Aborting);
        stopper.advance(Stage::Draining);
        drain.reached(Stage::Draining).await;
        assert_eq!(drain.stage(), Stage::Aborting);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn waiting_ends_when_the_last_guard_goes() {
        let living = Living::default();
        living.none_left().await;
        let (first, second) = (living.enter(), living.enter());
        let waiting = tokio::task::LocalSet::new();
        let waiter = living.clone();
        let task = waiting.run_until(async move {
            let waiter = spawn_local(async move { waiter.none_left().await });
            tokio::task::yield_now().await;
            drop(first);
            tokio::task::yield_now().await;
            assert!(!waiter.is_finished());
            drop(second);
            waiter.await.unwrap();
        });
        task.await;
        assert_eq!(living.count(), 0);
    }

    #[tokio::test(flavor = "local")]
    #[should_panic(expected = "a bug of ours")]
    async fn the_panic_of_a_task_that_matters_goes_on() {
        let mut tasks = LocalTasks::default();
        tasks.spawn(async { panic!("a bug of ours") });
        let _ = tasks.all_ended().await;
    }

    #[tokio::test(flavor = "local")]
    async fn a_task_that_panics_at_once_harms_nobody() {
        let (done, mut dones) = tokio::sync::mpsc::channel(2);
        run_local(async { panic!("a test asked for it") });
        for waits in [false, true] {
            let done = done.clone();
            run_local(async move {
                if waits {
                    tokio::task::yield_now().await;
                }
                done.try_send(waits).unwrap();
            });
        }
        assert_eq!(dones.try_recv(), Ok(false), "done before `run_local` returned");
        assert_eq!(dones.recv().await, Some(true));
    }
}
