//! Values of the config as an operator gives them at run time: read by the same rules, and refused in the same words.
//!
//! Owns nothing but the way in: what a duration, an address or a name is, `unit`, `address` and `pools` decide.

use super::findings::Complaint;
use super::{Address, address, limits, pools, unit, words};
use crate::name::{BackendAddr, Endpoint};
use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

/// How long something may take that an operator asks for; zero is at once.
pub const DEADLINE: RangeInclusive<Duration> = Duration::ZERO..=limits::MAX_DURATION;
/// As in the file.
pub const WEIGHT: RangeInclusive<u16> = 1..=limits::MAX_WEIGHT;
pub const TIER: RangeInclusive<u8> = 0..=limits::MAX_TIER;

/// `"5s"`, `"1m 30s"`, within [`DEADLINE`]. Fails with what is wrong and the way out.
pub fn deadline(text: &str) -> Result<Duration, String> {
    unit::duration(text, &DEADLINE).map_err(|complaint| sentence(&complaint))
}

/// An address that one backend is reached at: what a host name stands for isn't known, and may be several.
pub fn backend(text: &str) -> Result<BackendAddr, String> {
    match address::backend(text).map_err(|complaint| sentence(&complaint))? {
        Address::Endpoint(endpoint @ (Endpoint::Tcp(_) | Endpoint::Unix(_))) => Ok(BackendAddr(endpoint)),
        Address::Host { host, .. } => {
            Err(format!("{} is a name; write the address that it stands for, such as \"10.0.0.1:80\"", quoted(&host)))
        }
    }
}

/// What a backend may be called. Fails with what is wrong and the way out.
pub fn backend_name(text: &str) -> Result<(), String> {
    pools::wrong_name(text).map_or(Ok(()), |(message, hint)| Err(format!("{message}; {hint}")))
}

/// The text in quotes, with nothing in it that a terminal or log might act upon; long text is cut.
#[must_use]
pub fn quoted(text: &str) -> String {
    words::quoted(text)
}

/// The text as one word of a command line that people may paste into a shell.
#[must_use]
pub fn shell_word(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', "'\\''")).into()
}

/// `a, b or c`.
#[must_use]
pub fn any_of<S: AsRef<str>>(all: &[S]) -> String {
    words::any_of(all)
}

/// The candidate that `word` is probably a slip of.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    words::nearest(word, candidates)
}

fn sentence(complaint: &Complaint) -> String {
    format!("{}; {}", complaint.message, complaint.hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_a_word_as_it_is_meant() {
        for (text, word) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("unix:/run/my app.sock", "'unix:/run/my app.sock'"),
            ("[::1]:80", "'[::1]:80'"),
            ("it's", "'it'\\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(text), word);
        }
    }
}
