//! The upgrade: another process, of the binary that is there now, takes this one's place, and no client can tell.
//!
//! | step | the predecessor | the successor |
//! |---|---|---|
//! | 1 | starts the binary, with one end of a socket pair as its standard input (`attempt`) | finds that in its environment (`heir`) |
//! | 2 | sends its listening sockets and what it knows (`handover`, over `wire`) | reads the config file, takes the sockets, binds what is new |
//! | 3 | serves on, and looks a while whether the other one lives | accepts, and says so |
//! | 4 | stops accepting, gives the admin endpoint up, tells systemd who is the main process, says go | is on its own |
//! | 5 | finishes its sessions and ends | |
//!
//! Owns the order, and the way back: until step 4 nothing of the predecessor has changed, and whatever goes wrong with
//! the successor ends that one alone; the sessions that it has by then it finishes by itself, where it can. Invariants:
//! at each moment somebody accepts from each queue; the listening of a socket is never ended by one of the two while
//! the other one needs it; sessions stay where they are. Next: `attempt` and `heir`.

mod attempt;
mod handover;
mod heir;
mod program;
mod wire;

use super::live::Live;
use super::state_file::Keeper;
use rustix::io::Errno;
use std::sync::Arc;

pub use attempt::{Attempt, Successor};
pub use handover::{Estate, Handover};
pub use heir::{Heir, Word};
pub use program::Program;

/// The variable by which a process knows that it is a successor: the number of the descriptor to its predecessor.
const VARIABLE: &str = "TIDEGATE_PREDECESSOR";

impl Live {
    /// All that a successor is to have.
    pub fn estate(&self) -> Result<Estate, Errno> {
        let table = self.shared.table.load();
        let (history, adjustments) = (self.history.left(), self.adjustments.clone());
        let mut estate = Estate::new(self.generation(), self.hash(), history, adjustments, &table.pools);
        for bound in &self.bound {
            let name = bound.listener.as_str();
            estate.add(name, &bound.wanted, bound.sockets.iter().filter_map(|shared| shared.get()), false)?;
            estate.add(name, &bound.wanted, bound.parked.iter().flatten().cloned(), true)?;
        }
        for (wanted, socket) in self.endpoint.sockets() {
            estate.add_admin(wanted, Arc::clone(socket))?;
        }
        Ok(estate)
    }

    /// The predecessor leaves nothing to this process, which holds no address that it doesn't empty.
    pub fn let_go(&mut self) {
        self.endpoint.close();
        self.bound.iter_mut().for_each(|bound| bound.parked.clear());
    }

    /// The predecessor has left everything to this process.
    pub fn take_over(&mut self) {
        let sockets = self.bound.iter().flat_map(|bound| &bound.sockets).filter_map(|shared| shared.get());
        let parked = self.bound.iter().flat_map(|bound| bound.parked.iter().flatten().cloned());
        for socket in sockets.chain(parked).chain(self.endpoint.sockets().map(|(_, socket)| Arc::clone(socket))) {
            socket.take_over();
        }
        self.keeper.iter_mut().for_each(Keeper::start);
    }
}
