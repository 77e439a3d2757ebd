//! The bounded pool of pipes through which a worker splices.
//!
//! Owns every pipe's life: at most `max` exist at once, they are made when first needed, and idle ones are kept
//! for reuse. A pipe with data in it is never reused; it is closed with its session. Pipes that the kernel gives
//! only a few pages (a user over `pipe-user-pages-soft`) are no use for splicing and count as "none to be had".

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The size asked for. 256 KiB is the smallest that was as fast as 1 MiB on loopback.
pub const PIPE_SIZE: usize = 1024 * 1024;
/// Splicing through less than this costs more calls than copying does.
const MIN_PIPE_SIZE: usize = 64 * 1024;
/// Idle pipes kept; more than this are closed again after a burst.
const MAX_IDLE: usize = 64;
/// After the kernel has refused a pipe, this many requests are answered with "none" before it is asked again.
const REFUSAL_PAUSE: u32 = 1_024;

/// A pipe that belongs to one direction of one session while it holds data.
pub struct Pipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
    _open: Counted,
}

/// Counts one open pipe of the pool for as long as it lives.
struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The pool of one worker.
pub struct Pipes {
    #[expect(clippy::vec_box, reason = "a flow holds a pipe as one pointer; boxing it at each use would allocate")]
    idle: Vec<Box<Pipe>>,
    open: Rc<Cell<usize>>,
    max: usize,
    refused: u32,
}

impl Pipes {
    /// A pool of at most `max` pipes, each of which takes two file descriptors while it exists.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { idle: Vec::new(), open: Rc::default(), max, refused: 0 }
    }

    /// An empty pipe, or `None` when the bound is reached or the kernel has none of a useful size.
    pub fn take(&mut self) -> Option<Box<Pipe>> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.refused > 0 {
            self.refused -= 1;
            return None;
        }
        if self.open.get() >= self.max {
            return None;
        }
        let pipe = self.open_pipe();
        if pipe.is_none() {
            self.refused = REFUSAL_PAUSE;
        }
        pipe
    }

    /// Takes back a pipe that is empty.
    pub fn give_back(&mut self, pipe: Box<Pipe>) {
        if self.idle.len() < MAX_IDLE {
            self.idle.push(pipe);
        }
    }

    /// Closes the idle pipes, so that a worker at rest holds none.
    pub fn trim(&mut self) {
        self.idle = Vec::new();
    }

    /// Pipes that exist now, idle ones included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.get()
    }

    fn open_pipe(&self) -> Option<Box<Pipe>> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        let size = fcntl_setpipe_size(&write, PIPE_SIZE).or_else(|_| fcntl_getpipe_size(&write)).ok()?;
        if size < MIN_PIPE_SIZE {
            return None;
        }
        self.open.set(self.open.get() + 1);
        Some(Box::new(Pipe { read, write, _open: Counted(Rc::clone(&self.open)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_and_counts_by_guards() {
        let mut pipes = Pipes::new(2);
        let (first, second) = (pipes.take().unwrap(), pipes.take().unwrap());
        assert!(pipes.take().is_none());
        assert_eq!(pipes.open(), 2);
        drop(first);
        assert_eq!(pipes.open(), 1);
        pipes.give_back(second);
        assert_eq!(pipes.open(), 1, "an idle pipe still exists");
        drop(pipes.take().unwrap());
        let last = pipes.take().unwrap();
        pipes.give_back(last);
        pipes.trim();
        assert_eq!(pipes.open(), 0);
    }
}
