//! Stub
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    Starting,
    Ready,
    Draining,
}
pub const MAX_CONNECTIONS: usize = 64;
