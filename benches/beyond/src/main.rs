//! Relays of three kinds on one skeleton: what would `io_uring` and sockmap gain and lose in tidegate's place?
//!
//! Owns the command line. One thread, two backends or more in turn, `TCP_NODELAY`, a FIN passed on after the bytes, a
//! reset passed on as a reset; no more. `relay.rs` is the epoll relay and its sockmap variant, `uring.rs` the third
//! kind, `program.rs` the BPF program, `sys.rs` has all the `unsafe`.

mod program;
mod relay;
mod sockets;
mod sys;
mod uring;

use std::net::SocketAddrV4;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Prototypes of a TCP relay, to be measured beside tidegate
#[derive(Debug, Parser)]
#[command(name = "beyond", version)]
struct Cli {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Edge-triggered epoll, copying through one shared buffer: the common ground
    Epoll(Addresses),
    /// The same set-up; then the kernel passes the bytes on by itself (needs root)
    Sockmap {
        #[command(flatten)]
        addresses: Addresses,
        /// How the end of a connection waits for bytes that are still inside the kernel
        #[arg(long, value_enum, default_value_t = Ending::Counted)]
        ending: Ending,
    },
    /// Everything through an `io_uring`
    Uring {
        #[command(flatten)]
        addresses: Addresses,
        /// Receive once into one buffer a direction, instead of again and again
        #[arg(long)]
        single_shot: bool,
        /// Receive buffers that all connections share; a power of two
        #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=8192))]
        buffers: u16,
        /// Size of each, in bytes
        #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(4096..=1_048_576))]
        buffer_bytes: u32,
    },
}

#[derive(Debug, Args)]
struct Addresses {
    #[arg(long)]
    listen: SocketAddrV4,
    /// Each connection goes to the next of these
    #[arg(long = "backend", required = true)]
    backends: Vec<SocketAddrV4>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ending {
    /// Not at all: the FIN or the reset is passed on as soon as it is seen
    Naive,
    /// Compares every millisecond what TCP has received on one side with what it was given on the other
    Counted,
}

fn main() -> Result<()> {
    match Cli::parse().kind {
        Kind::Epoll(addresses) => relay::run(addresses.listen, &addresses.backends, None),
        Kind::Sockmap { addresses, ending } => relay::run(addresses.listen, &addresses.backends, Some(ending)),
        Kind::Uring { addresses, single_shot, buffers, buffer_bytes } => {
            let ring = uring::start(buffers, buffer_bytes)?;
            uring::run(addresses.listen, &addresses.backends, ring, single_shot)
        }
    }
}
