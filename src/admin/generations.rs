//! Which configs the process has had, as `/status` tells it.
//!
//! Plain data: the daemon writes it, whole, after each change.

use super::moment::Moment;
use serde::Serialize;

/// Of the config in force, and those before it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigStatus {
    /// Of its text, by xxh3; 16 hexadecimal digits.
    pub hash: String,
    pub loaded: Moment,
    /// Who asked for it; `start` where nobody did.
    pub by: String,
    /// Where it is read from; `None` for one that was given without a file.
    pub file: Option<String>,
    /// Keys that the process goes by as it was started with them: an upgrade takes them over.
    #[serde(skip)]
    pub needs_upgrade: Vec<&'static str>,
    /// The last ones, the one in force first; each can be gone back to.
    pub generations: Vec<Generation>,
    /// The last config that was asked for and couldn't be had, unless another one has been taken since.
    pub last_refused: Option<RefusedConfig>,
}

/// One of the configs.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    pub generation: u64,
    pub hash: String,
    pub loaded: Moment,
    pub by: String,
    /// Which one it goes back to, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<u64>,
}

/// What didn't become a generation.
#[derive(Clone, Debug, Serialize)]
pub struct RefusedConfig {
    pub at: Moment,
    pub by: String,
    /// One line for each mistake.
    pub text: String,
}
