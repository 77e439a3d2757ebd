//! Faults that tests ask for; nothing at all in a release build.
//!
//! `TIDEGATE_TEST_PANIC=connect:N` or `relay:N` makes session number N of its worker panic in that phase, so that a
//! test of the real binary can see that one session harms one session.

use crate::name::SessionId;

#[cfg(not(debug_assertions))]
mod imp {
    use super::SessionId;

    pub fn panic_if(_phase: &str, _session: SessionId) {}
}

#[cfg(debug_assertions)]
mod imp {
    use super::SessionId;
    use std::sync::LazyLock;

    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("TIDEGATE_TEST_PANIC").ok());

    pub fn panic_if(phase: &str, session: SessionId) {
        if let Some(wanted) = &*WANTED {
            let count = session.0 & 0xffff_ffff_ffff;
            assert!(*wanted != format!("{phase}:{count}"), "a test asked for a panic in {wanted}");
        }
    }
}

pub fn connect(session: SessionId) {
    imp::panic_if("connect", session);
}

pub fn relay(session: SessionId) {
    imp::panic_if("relay", session);
}
