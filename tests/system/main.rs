//! Tests of the real binary that need nothing but this machine's loopback: `cargo test --test system`.
//!
//! A function named `fNN_…` covers number NN of the fault catalogue, one named `iNN_…` an invariant of the design, one
//! named `end_…` a line of the table of ends. Each starts its own process on port 0; what they share is `kit`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../kit/mod.rs"]
mod kit;

mod accept_queue;
mod access;
mod admin;
mod admin_api;
mod admission;
mod agents;
mod bytes;
mod carried;
mod choice;
mod cli;
mod cli_changes;
mod cli_sessions;
mod connecting;
mod control;
mod control_state;
mod distress;
mod drain;
mod ejection;
mod ends;
mod explain;
mod families;
mod health;
mod hedge;
mod hold;
mod hold_release;
mod inherit;
mod limits;
mod log_fields;
mod memory;
mod moving;
mod origin;
mod panics;
mod parking;
mod plan;
mod policies;
mod probes;
mod proxy_in;
mod proxy_out;
mod queue;
mod queue_backends;
mod queue_replay;
mod quiet;
mod relay;
mod reload;
mod reload_admin;
mod reload_load;
mod reload_watch;
mod replay;
mod replay_ends;
mod routes;
mod routes_preread;
mod shed;
mod sockets;
mod source_hash;
mod start;
mod stop;
mod tiers;
mod upgrade;
mod upgrade_history;
mod workers;
