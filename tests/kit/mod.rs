//! The kit of the tests that run the real binary: the process, scripted peers, and waiting without sleeping.
//!
//! Owns no test and no expectation about a feature, only about leaks: a [`daemon::Tidegate`] that goes out of scope
//! asserts that sessions, slots and fds are back where they began. Each target includes this folder as a module. Next:
//! `daemon` for the process, `conn` for both ends of a connection, `backend` for scripted backends.

#![allow(dead_code, unused_imports, reason = "each test target uses its own part of the kit")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::must_use_candidate, reason = "nobody calls the kit for nothing")]

pub mod backend;
pub mod config;
pub mod conn;
pub mod daemon;
pub mod files;
pub mod http;
pub mod kernel;
pub mod ledger;
pub mod metrics;
pub mod output;
pub mod pattern;
pub mod port;
pub mod program;
pub mod proxied;
pub mod running;
pub mod toxic;
pub mod views;
pub mod wait;

pub use backend::{Backend, Listening, Refusing, Silent};
pub use config::Config;
pub use conn::{Addr, Conn, End};
pub use daemon::{Exit, Launch, Tidegate};
pub use port::free_port;
pub use running::Running;
pub use toxic::{Poison, Toxic, Way};
pub use views::{attempts, outcomes};
pub use wait::{PATIENCE, eventually, eventually_eq, eventually_some, throughout};
