//! May this connection be served at all: the limits of the process, of a listener, of several listeners together and
//! of each client.
//!
//! Pure but for atomics and small locks: the time is handed in, and what happens to a client that is refused is the
//! acceptor's business.

mod cidr;
mod clients;
mod pressure;
mod rate;

pub use pressure::Pressure;
