//! Whether memory is short, as a flag between the one who measures it and those who admit clients.
//!
//! Owns one bit. Who sets it, and by which rule, is the control task's business. Next: `Process`, which asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that all its clones share: memory is short, so nobody new is served.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<AtomicBool>);

impl Pressure {
    /// Whether memory is short.
    #[must_use]
    pub fn is_low(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Says whether memory is short from now on.
    pub fn set(&self, low: bool) {
        self.0.store(low, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clones_say_the_same() {
        let (set, asked) = {
            let pressure = Pressure::default();
            (pressure.clone(), pressure)
        };
        assert!(!asked.is_low());
        set.set(true);
        assert!(asked.is_low());
        set.set(false);
        assert!(!asked.is_low());
    }
}
