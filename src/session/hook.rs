//! Faults that tests ask for; nothing at all in a release build.
//!
//! `TIDEGATE_TEST_PANIC=connect:N` or `relay:N` makes session number N of its worker panic in that phase, so that a
//! test of the real binary can see that one session harms one session. `TIDEGATE_TEST_STALL=N:FILE` makes worker N
//! stand still for as long as there is such a file, and says so by one with the extension `begun`.

use crate::name::SessionId;

#[cfg(not(debug_assertions))]
mod imp {
    use super::SessionId;

    pub fn panic_if(_phase: &str, _session: SessionId) {}

    pub fn stall(_worker: u16) {}
}

#[cfg(debug_assertions)]
mod imp {
    use super::SessionId;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::Duration;

    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("TIDEGATE_TEST_PANIC").ok());

    static STALL: LazyLock<Option<(u16, PathBuf)>> = LazyLock::new(|| {
        let wanted = std::env::var("TIDEGATE_TEST_STALL").ok()?;
        let (worker, file) = wanted.split_once(':')?;
        Some((worker.parse().ok()?, file.into()))
    });

    #[expect(clippy::disallowed_methods, reason = "to stand still is what the test asks for")]
    pub fn stall(worker: u16) {
        if let Some((stalled, file)) = &*STALL
            && *stalled == worker
        {
            if file.exists() {
                // How the test sees that it has begun.
                let _ = std::fs::write(file.with_extension("begun"), "");
            }
            while file.exists() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    pub fn panic_if(phase: &str, session: SessionId) {
        if let Some(wanted) = &*WANTED {
            let count = session.0 & 0xffff_ffff_ffff;
            assert!(*wanted != format!("{phase}:{count}"), "a test asked for a panic in {wanted}");
        }
    }
}

pub fn stall(worker: u16) {
    imp::stall(worker);
}

pub fn connect(session: SessionId) {
    imp::panic_if("connect", session);
}

pub fn relay(session: SessionId) {
    imp::panic_if("relay", session);
}
