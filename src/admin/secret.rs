//! The token: kept, compared, never shown.
//!
//! Invariant: whatever prints a [`Secret`], for people or programs, prints `***`.

use serde::{Serialize, Serializer};
use std::fmt;
use subtle::ConstantTimeEq;

/// Something that only who knows it may know.
pub struct Secret(Box<[u8]>);

impl Secret {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Whether `given` is the secret. How long that takes depends on the length of both, not on what they hold.
    pub fn is(&self, given: &[u8]) -> bool {
        let mut padded = vec![0; self.0.len()];
        let common = given.len().min(padded.len());
        padded[..common].copy_from_slice(&given[..common]);
        (padded.ct_eq(&self.0) & given.len().ct_eq(&self.0.len())).into()
    }

    pub fn is_same(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

const SHOWN: &str = "***";

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(SHOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_secret_is_the_secret() {
        let secret = Secret::new(b"0123456789abcdef");
        assert!(secret.is(b"0123456789abcdef"));
        for other in [
            &b""[..],
            b"0",
            b"0123456789abcde",
            b"0123456789abcdeF",
            b"0123456789abcdef0",
            b"\0\0\0",
            b"0123456789abcdef\0",
        ] {
            assert!(!secret.is(other), "{other:?}");
        }
        assert!(!Secret::new(b"abc\0").is(b"abc"), "what is filled up with is no part of it");
    }

    #[test]
    fn f85_nothing_prints_a_secret() {
        let secret = Secret::new(b"canary-0123456789");
        let shown = [format!("{secret}"), format!("{secret:?}"), serde_json::to_string(&secret).unwrap()];
        assert_eq!(shown, ["***", "***", "\"***\""]);
        assert!(!format!("{:?}", Some((1, &secret))).contains("canary"));
    }
}
