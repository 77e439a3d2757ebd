//! The bounded pool of pipes through which a worker splices.
//!
//! Owns every pipe's life, and the account of what they take: descriptors, and the bytes of buffer that the kernel
//! counts against the user for as long as a pipe exists, idle or not ([`PipeBounds`]). Decides how large a pipe is: a
//! large one while there is room, smaller ones as the account fills up, none when it is full. Invariants: neither bound
//! is ever exceeded; a pipe with data in it is never reused but closed with its session. Pipes that the kernel gives
//! only a few pages (a user over `pipe-user-pages-soft`) are no use for splicing and count as "none to be had".

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// The sizes of pipes, the largest first. A few large transfers move a byte through 1 MiB for half the CPU of 64 KiB or
/// less; through less than the smallest, splicing costs more calls than copying does.
const SIZES: [usize; 3] = [1 << 20, 256 << 10, SMALLEST];
const SMALLEST: usize = 64 << 10;
/// A pipe gets at most this part of the room that is left, unless it is one of the smallest: so that the first
/// transfers get large ones, and many still get one.
const PART: usize = 8;
/// Idle pipes kept; more than this are closed again after a burst. They take at most half of the room.
const MAX_IDLE: usize = 64;
/// After the kernel has refused a pipe, this many requests are answered with "none" before it is asked again.
const REFUSAL_PAUSE: u32 = 1_024;

/// What the pipes of one worker may take; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipeBounds {
    /// Pipes at once; each takes two file descriptors.
    pub count: usize,
    /// Bytes of buffer of all of them together.
    pub bytes: usize,
    /// Bytes of one.
    pub largest: usize,
}

impl PipeBounds {
    /// Whether not a single pipe fits.
    #[must_use]
    pub fn allow_none(&self) -> bool {
        self.count == 0 || self.bytes.min(self.largest) < SMALLEST
    }
}

/// What the pipes of one worker take now. Pure: it opens and closes nothing.
#[derive(Debug, Default)]
struct Account {
    bounds: PipeBounds,
    /// Pipes that exist.
    count: Cell<usize>,
    /// Their bytes, idle ones included.
    bytes: Cell<usize>,
    /// Bytes of those that are idle.
    idle: Cell<usize>,
}

impl Account {
    fn new(bounds: PipeBounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// The size that a pipe taken now should have, as if no idle one took room; `None` if not even the smallest fits.
    fn wanted(&self) -> Option<usize> {
        let lent = self.bytes.get() - self.idle.get();
        self.size_within(self.bounds.bytes.saturating_sub(lent))
    }

    /// The size that a new pipe may have.
    fn affordable(&self) -> Option<usize> {
        if self.count.get() >= self.bounds.count {
            return None;
        }
        self.size_within(self.bounds.bytes.saturating_sub(self.bytes.get()))
    }

    fn size_within(&self, room: usize) -> Option<usize> {
        let fits = |size: usize| size <= self.bounds.largest && size <= room;
        SIZES.into_iter().find(|&size| fits(size) && (size == SMALLEST || size <= room / PART))
    }

    /// Whether a pipe of this size may be kept although nobody needs it.
    fn may_idle(&self, size: usize, idle_pipes: usize) -> bool {
        idle_pipes < MAX_IDLE && self.idle.get() + size <= self.bounds.bytes / 2
    }

    fn opened(&self, size: usize) {
        self.count.set(self.count.get() + 1);
        self.bytes.set(self.bytes.get() + size);
    }

    fn closed(&self, size: usize) {
        self.count.set(self.count.get() - 1);
        self.bytes.set(self.bytes.get() - size);
    }

    fn put_aside(&self, size: usize) {
        self.idle.set(self.idle.get() + size);
    }

    fn taken_up(&self, size: usize) {
        self.idle.set(self.idle.get() - size);
    }
}

/// A pipe that belongs to one direction of one session while it holds data.
pub struct Pipe {
    pub read: OwnedFd,
    pub write: OwnedFd,
    /// Bytes that it holds at most; never less than 64 KiB.
    pub size: usize,
    account: Rc<Account>,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.account.closed(self.size);
    }
}

/// The pool of one worker.
pub struct Pipes {
    /// From the smallest to the largest.
    #[expect(clippy::vec_box, reason = "a flow holds a pipe as one pointer; boxing it at each use would allocate")]
    idle: Vec<Box<Pipe>>,
    account: Rc<Account>,
    refused: u32,
}

impl Pipes {
    #[must_use]
    pub fn new(bounds: PipeBounds) -> Self {
        Self { idle: Vec::new(), account: Rc::new(Account::new(bounds)), refused: 0 }
    }

    /// An empty pipe, or `None` when a bound is reached or the kernel has none of a useful size.
    pub fn take(&mut self) -> Option<Box<Pipe>> {
        let wanted = self.account.wanted()?;
        if self.idle.last().is_some_and(|pipe| pipe.size >= wanted) {
            return self.take_idle();
        }
        // A new one, if it can be larger than what lies idle.
        match self.account.affordable() {
            Some(size) if self.idle.last().is_none_or(|pipe| pipe.size < size) => {
                self.open_one(size).or_else(|| self.take_idle())
            }
            _ => self.take_idle(),
        }
    }

    /// Takes back a pipe that is empty.
    pub fn give_back(&mut self, pipe: Box<Pipe>) {
        if self.account.may_idle(pipe.size, self.idle.len()) {
            self.account.put_aside(pipe.size);
            let at = self.idle.partition_point(|idle| idle.size <= pipe.size);
            self.idle.insert(at, pipe);
        }
    }

    /// Closes the idle pipes, so that a worker at rest holds none.
    pub fn trim(&mut self) {
        for pipe in std::mem::take(&mut self.idle) {
            self.account.taken_up(pipe.size);
        }
    }

    /// Pipes that exist now, idle ones included.
    #[must_use]
    pub fn open(&self) -> usize {
        self.account.count.get()
    }

    /// Bytes that the pipes which exist now could hold: what the kernel counts against the user.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.account.bytes.get()
    }

    fn take_idle(&mut self) -> Option<Box<Pipe>> {
        let pipe = self.idle.pop()?;
        self.account.taken_up(pipe.size);
        Some(pipe)
    }

    fn open_one(&mut self, size: usize) -> Option<Box<Pipe>> {
        if self.refused > 0 {
            self.refused -= 1;
            return None;
        }
        let pipe = self.ask_the_kernel(size);
        if pipe.is_none() {
            self.refused = REFUSAL_PAUSE;
        }
        pipe
    }

    fn ask_the_kernel(&self, size: usize) -> Option<Box<Pipe>> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        // Refused, it has still the size with which it was born.
        let size = fcntl_setpipe_size(&write, size).or_else(|_| fcntl_getpipe_size(&write)).ok()?;
        if size < SMALLEST {
            return None;
        }
        self.account.opened(size);
        Some(Box::new(Pipe { read, write, size, account: Rc::clone(&self.account) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds(count: usize, bytes: usize) -> PipeBounds {
        PipeBounds { count, bytes, largest: SIZES[0] }
    }

    /// The sizes of the pipes that one after the other gets, as long as there are any.
    fn handed_out(bounds: PipeBounds) -> Vec<usize> {
        let account = Account::new(bounds);
        let next = || account.affordable().inspect(|&size| account.opened(size));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn the_first_pipes_are_large_and_the_last_are_small() {
        let sizes = handed_out(bounds(1_000, 16 << 20));
        let count = |wanted| sizes.iter().filter(|&&size| size == wanted).count();
        assert!(sizes.is_sorted_by(|earlier, later| earlier >= later), "{sizes:?}");
        // Large ones while at least 8 MiB are left, middle ones down to 2 MiB, small ones to the end.
        assert_eq!(SIZES.map(count), [9, 21, 28]);
        assert_eq!(sizes.iter().sum::<usize>(), 16 << 20);
    }

    #[test]
    fn either_bound_ends_it() {
        assert_eq!(handed_out(bounds(3, 1 << 30)), [1 << 20; 3]);
        assert_eq!(handed_out(bounds(1_000, 3 * SMALLEST + 1)), [SMALLEST; 3]);
        assert_eq!(handed_out(bounds(1_000, SMALLEST - 1)), [0_usize; 0]);
        assert_eq!(handed_out(PipeBounds::default()), [0_usize; 0]);
        for bounds in [bounds(0, 1 << 30), bounds(1, SMALLEST - 1), bounds(1, SMALLEST), PipeBounds::default()] {
            assert_eq!(bounds.allow_none(), handed_out(bounds).is_empty(), "{bounds:?}");
        }
    }

    #[test]
    fn no_pipe_is_larger_than_the_system_allows() {
        assert_eq!(handed_out(PipeBounds { largest: 512 << 10, ..bounds(1, 1 << 30) }), [256 << 10]);
        assert_eq!(handed_out(PipeBounds { largest: 4_096, ..bounds(1, 1 << 30) }), [0_usize; 0]);
    }

    #[test]
    fn the_pool_is_bounded_and_counts_by_guards() {
        let mut pipes = Pipes::new(bounds(2, 1 << 30));
        let (first, second) = (pipes.take().unwrap(), pipes.take().unwrap());
        assert!(pipes.take().is_none());
        assert_eq!((pipes.open(), pipes.bytes()), (2, first.size + second.size));
        let left = second.size;
        drop(first);
        assert_eq!((pipes.open(), pipes.bytes()), (1, left));
        pipes.give_back(second);
        assert_eq!((pipes.open(), pipes.bytes()), (1, left), "an idle pipe still exists");
        drop(pipes.take().unwrap());
        let last = pipes.take().unwrap();
        pipes.give_back(last);
        pipes.trim();
        assert_eq!((pipes.open(), pipes.bytes(), pipes.account.idle.get()), (0, 0, 0));
    }

    #[test]
    fn a_pipe_has_the_size_that_it_says() {
        let mut pipes = Pipes::new(bounds(8, 1 << 20));
        let pipe = pipes.take().unwrap();
        assert_eq!(fcntl_getpipe_size(&pipe.write).unwrap(), pipe.size);
    }

    #[test]
    fn after_a_crowd_a_single_transfer_gets_a_large_pipe_again() {
        let mut pipes = Pipes::new(bounds(1_000, 16 * SMALLEST));
        let crowd: Vec<_> = std::iter::from_fn(|| pipes.take()).collect();
        assert!(crowd.iter().all(|pipe| pipe.size == SMALLEST), "no room for larger ones");
        for pipe in crowd {
            pipes.give_back(pipe);
        }
        let kept: usize = pipes.idle.iter().map(|pipe| pipe.size).sum();
        assert!(kept <= 8 * SMALLEST, "half of the room stays free, but {kept} bytes are idle");
    }

    proptest! {
        #[test]
        fn whatever_happens_neither_bound_is_exceeded(
            count in 0_usize..40,
            bytes in 0_usize..(8 << 20),
            steps in proptest::collection::vec((0_u8..4, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut pipes = Pipes::new(bounds(count, bytes));
            let mut lent: Vec<Box<Pipe>> = Vec::new();
            for (step, which) in steps {
                match step {
                    0 | 1 => lent.extend(pipes.take()),
                    2 if !lent.is_empty() => {
                        let pipe = lent.swap_remove(which.index(lent.len()));
                        pipes.give_back(pipe);
                    }
                    3 if !lent.is_empty() => drop(lent.swap_remove(which.index(lent.len()))),
                    _ => pipes.trim(),
                }
                let exist: Vec<usize> = lent.iter().chain(&pipes.idle).map(|pipe| pipe.size).collect();
                prop_assert_eq!((pipes.open(), pipes.bytes()), (exist.len(), exist.iter().sum()));
                prop_assert!(pipes.open() <= count && pipes.bytes() <= bytes);
                prop_assert!(pipes.idle.is_sorted_by_key(|pipe| pipe.size));
            }
            drop(lent);
            pipes.trim();
            prop_assert_eq!((pipes.open(), pipes.bytes()), (0, 0));
        }
    }
}
