//! Sockets and bytes: listening, connecting, and the relay. Knows no pool and no route.

pub mod async_stream;
pub mod client_hello;
pub mod connect;
pub mod first_bytes;
pub mod keepalive;
pub mod listen;
pub mod origin;
pub mod proxy_protocol;
pub mod relay;
pub mod resolve;
pub mod send;
pub mod stream;
