//! The upgrade: another process, of the binary that is there now, takes this one's place, and no client can tell.
//!
//! | step | the predecessor | the successor |
//! |---|---|---|
//! | 1 | starts the binary, with one end of a socket pair as its standard input (`attempt`) | finds that in its environment (`heir`) |
//! | 2 | sends its listening sockets and what it knows (`handover`, over `wire`) | reads the config file, takes the sockets, binds what is new |
//! | 3 | serves on | accepts, and says so |
//! | 4 | stops accepting, gives the admin endpoint up, tells systemd who is the main process, says go | is on its own |
//! | 5 | finishes its sessions and ends | |
//!
//! Owns the order, and the way back: until step 4 nothing of the predecessor has changed, and whatever goes wrong with
//! the successor ends that one alone. Invariants: at each moment somebody accepts from each queue; the listening of a
//! socket is never ended by one of the two while the other one needs it; sessions stay where they are. Next: `attempt`
//! and `heir`.

mod attempt;
mod handover;
mod heir;
mod program;
mod wire;

pub use attempt::{Attempt, Successor};
pub use handover::{Estate, Handover};
pub use heir::Heir;
pub use program::Program;

/// The variable by which a process knows that it is a successor: the number of the descriptor to its predecessor.
const VARIABLE: &str = "TIDEGATE_PREDECESSOR";
