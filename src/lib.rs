//! tidegate, a Layer-4 TCP load balancer.

#![deny(unsafe_code)]

pub mod backoff;
pub mod config;
pub mod name;
pub mod rng;
