//! What becomes of that which operators have changed at run time, when the config is another one.
//!
//! Owns the words. Only what the new config makes a difference to is told, and what hides a difference of it: the rest
//! stays as it is. What becomes of it is found by who knows what runs, `daemon/plan/adjusted.rs`.

use super::Kind;
use serde::{Deserialize, Serialize};

/// One of these changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjusted {
    pub kind: Kind,
    /// As `/status` calls it; of the log's level the key.
    pub name: String,
    /// The pool of a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    pub becomes: Becomes,
    /// The same for people: what it is, and what becomes of it.
    pub says: String,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Becomes {
    /// It stays in force, so that what the config changes there doesn't show.
    Stays,
    /// What it is about goes; it is kept, and counts again when that is back.
    Rests,
    /// What it is about comes, or is another one: it counts for that.
    Applies,
    /// The config has the backend that was added: its word counts.
    TakenOver,
    /// The backend that was added can't stand beside what the config has.
    LeftOut,
}

impl Becomes {
    /// All words, as programs get them.
    pub const WORDS: [&str; 5] = ["stays", "rests", "applies", "taken_over", "left_out"];
}
