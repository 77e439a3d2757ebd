//! Sockets and bytes: listening, connecting, and the relay. Knows no pool and no route.

pub mod async_stream;
pub mod connect;
pub mod keepalive;
pub mod listen;
pub mod relay;
pub mod resolve;
pub mod stream;
