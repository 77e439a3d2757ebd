//! Waiting for a condition: the only place of the tests that lets time pass.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails: far longer than any machine needs, since only failures wait it
/// out.
pub const PATIENCE: Duration = Duration::from_secs(20);

const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Waits until `check` holds.
///
/// # Panics
/// When it doesn't within [`PATIENCE`].
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    eventually_some(what, || check().then_some(()));
}

/// Waits until `look` gives `expected`, and says at the end what it gave instead.
pub fn eventually_eq<T: PartialEq + Debug>(what: &str, expected: &T, mut look: impl FnMut() -> T) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if seen == *expected {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: still {seen:?} after {PATIENCE:?}, expected {expected:?}");
        pause();
    }
}

/// Waits until `look` finds something.
pub fn eventually_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        pause();
    }
}

/// Looks again and again for `span` and fails as soon as `check` doesn't hold: for what must *not* happen.
pub fn throughout(what: &str, span: Duration, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert!(check(), "{what}");
        pause();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a look is repeated after it; nothing is ever assumed to have happened during it"
)]
fn pause() {
    std::thread::sleep(BETWEEN_LOOKS);
}

/// Does something again and again, `interval` apart, until `span` is over: for trickles.
#[expect(clippy::disallowed_methods, reason = "the pace of a trickle is what the test is about")]
pub fn trickle(interval: Duration, span: Duration, mut drop: impl FnMut()) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        drop();
        std::thread::sleep(interval);
    }
}

/// Lets time pass between two steps of a script: where the pace is what the test is about, and nothing is assumed to
/// have happened.
#[expect(clippy::disallowed_methods, reason = "the pace of a script is what the test is about")]
pub fn pace(span: Duration) {
    std::thread::sleep(span);
}
