//! What the queue and the counts share between threads: of std here, of a model checker in `tests/loom`.

pub use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
pub use std::sync::{Mutex, MutexGuard};
