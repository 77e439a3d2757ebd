//! What went wrong in a window: counted by kind, never hidden, the first of it in words.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Why a client gave a connection up.
#[derive(Debug)]
pub enum Failure {
    /// The connection did not come up.
    Connect(io::Error),
    /// It was up and broke.
    Broken(io::Error),
    /// The other side closed in an orderly way before all the bytes were there.
    Short { received: usize },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub connect: u64,
    pub broken: u64,
    pub short: u64,
    /// Clients that completed nothing in the whole window.
    pub stalled: u64,
    pub first: Option<String>,
}

impl Trouble {
    pub fn note(&mut self, who: &str, failure: &Failure) {
        let words = match failure {
            Failure::Connect(error) => {
                self.connect += 1;
                format!("{who}: connect: {error}")
            }
            Failure::Broken(error) => {
                self.broken += 1;
                format!("{who}: {error}")
            }
            Failure::Short { received } => {
                self.short += 1;
                format!("{who}: closed by the other side after {received} bytes")
            }
        };
        self.first.get_or_insert(words);
    }

    pub fn stalled(&mut self, who: &str) {
        self.stalled += 1;
        self.first.get_or_insert_with(|| format!("{who}: nothing complete in the whole window"));
    }

    pub fn add(&mut self, other: &Self) {
        self.connect += other.connect;
        self.broken += other.broken;
        self.short += other.short;
        self.stalled += other.stalled;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }

    pub fn count(&self) -> u64 {
        self.connect + self.broken + self.short + self.stalled
    }

    pub fn any(&self) -> bool {
        self.count() > 0
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.connect, "connects failed"),
            (self.broken, "connections broke"),
            (self.short, "answers short"),
            (self.stalled, "clients stalled"),
        ];
        let words: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        write!(f, "{}", if words.is_empty() { "no trouble".to_owned() } else { words.join(", ") })?;
        match &self.first {
            Some(first) => write!(f, " (first: {first})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_counted_by_kind_and_keeps_the_first_words() {
        let mut trouble = Trouble::default();
        assert!(!trouble.any());
        trouble.note("short", &Failure::Short { received: 3 });
        trouble.note("short", &Failure::Broken(io::ErrorKind::ConnectionReset.into()));
        trouble.stalled("ping");
        assert!(trouble.any());
        assert_eq!((trouble.connect, trouble.broken, trouble.short, trouble.stalled), (0, 1, 1, 1));
        let text = trouble.to_string();
        assert!(text.contains("1 answers short") && text.contains("after 3 bytes"), "{text}");
    }
}
