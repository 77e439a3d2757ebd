//! tidegate, a Layer-4 TCP load balancer.

pub mod backoff;
pub mod config;
pub mod drain;
pub mod metrics;
pub mod name;
pub mod net;
pub mod rng;
pub mod sys;
pub mod health;
pub mod metrics;
pub mod name;
pub mod pool;
pub mod rng;
pub mod table;
