//! Lets a worker's runtime drive its engine: waits for the inner epoll, the next deadline, or the engine's own word
//! that something is to be done; then takes turns.
//!
//! Owns no state of sessions. Between two turns it yields, so that accepting and connecting are never starved.

use super::{Engine, Owner, Turn};
use crate::sys;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep_until};

/// How far ahead the timer is set when the engine has no deadline.
const NEVER: Duration = Duration::from_secs(24 * 3_600);

/// What drives an engine, with all that it needs of the system in hand. It runs until it is dropped; it fails only if
/// epoll itself does.
pub fn drive<O: Owner>(engine: Rc<RefCell<Engine<O>>>) -> io::Result<impl Future<Output = io::Result<Infallible>>> {
    let inner = sys::watch(engine.borrow().epoll.try_clone()?, Interest::READABLE)?;
    Ok(run(engine, inner))
}

async fn run<O: Owner>(engine: Rc<RefCell<Engine<O>>>, inner: AsyncFd<OwnedFd>) -> io::Result<Infallible> {
    let notify = Rc::clone(&engine.borrow().woken);
    let mut woken = pin!(notify.notified());
    let mut timer = pin!(sleep_until((Instant::now() + NEVER).into()));
    loop {
        let next_look = engine.borrow().next_look();
        if let Some(at) = next_look {
            set_earlier(timer.as_mut(), at);
        } else if timer.is_elapsed() {
            timer.as_mut().reset((Instant::now() + NEVER).into());
        }
        let ready = tokio::select! {
            biased;
            ready = inner.readable() => Some(ready?),
            () = timer.as_mut() => None,
            () = woken.as_mut() => {
                woken.set(notify.notified());
                None
            }
        };
        while engine.borrow_mut().turn(Instant::now())? == Turn::Busy {
            tokio::task::yield_now().await;
        }
        if let Some(mut ready) = ready {
            ready.clear_ready();
        }
    }
}

/// Deadlines mostly move away as bytes flow; then the timer may fire early, which is cheaper than setting it anew.
fn set_earlier(timer: std::pin::Pin<&mut Sleep>, at: Instant) {
    if timer.is_elapsed() || at < timer.deadline().into_std() {
        timer.reset(at.into());
    }
}
