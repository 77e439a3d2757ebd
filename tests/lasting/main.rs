//! Tests of the real binary on loopback that take their time, in what they wait for or in what they do:
//! `cargo test --test lasting`, and a step of `./tests/run`.
//!
//! As `tests/system`, of which they are no part so that a plain `cargo test` stays short.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../kit/mod.rs"]
mod kit;

mod bandwidth;
mod changes;
mod gone;
mod load;
mod queue_soak;
mod rolling;
mod slow_start;
mod time;
mod watchdog;
