//! What may be asked of the process at run time: the messages between those who ask and the daemon, which answers.
//!
//! Owns the words of both sides and the bounded channel; decides nothing. Whoever asks (the admin endpoint, a signal,
//! the look at the config file) says who it is, for the audit line that the daemon writes of every change. Commands are
//! carried out one after the other, in the order in which they came.

use crate::config::{Adjustment, AdminState, Level};
use crate::name::{BackendAddr, ListenerName, PoolName};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for the one that is being carried out; one more is refused.
const ROOM: usize = 64;

/// Something to do, or to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Take the config file as it is now.
    Reload,
    /// What a reload would change: of this text, or of the config file as it is now.
    Plan(Option<String>),
    /// Go back to an earlier generation; without a number to the one before.
    Rollback(Option<u64>),
    /// Start the binary that is there now and hand everything over to it.
    Upgrade,
    /// Stop as SIGTERM does.
    Drain,
    Listener {
        name: ListenerName,
        state: AdminState,
        /// When its sessions are ended; `None` never.
        deadline: Option<Duration>,
    },
    Backend {
        pool: PoolName,
        /// What `/status` calls it.
        backend: Arc<str>,
        change: Adjustment,
        /// When its sessions are ended, where it is taken out; `None` never.
        deadline: Option<Duration>,
    },
    AddBackend {
        pool: PoolName,
        address: BackendAddr,
        /// By default its address.
        name: Option<String>,
        weight: u16,
        tier: u8,
    },
    RemoveBackend {
        pool: PoolName,
        backend: Arc<str>,
        deadline: Option<Duration>,
    },
    LogLevel(Level),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asker {
    Signal(&'static str),
    /// The look at the config file.
    Watch,
    /// Somebody with the token, from this address.
    Token(String),
    /// A peer on a unix socket, by its user's number.
    Uid(u32),
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(name) => f.write_str(name),
            Self::Watch => f.write_str("watch"),
            Self::Token(from) => write!(f, "token from {from}"),
            Self::Uid(uid) => write!(f, "uid {uid}"),
        }
    }
}

/// What came of a command.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// A sentence for people.
    pub summary: String,
    /// False if all was so already.
    pub changed: bool,
    /// For programs; what it holds depends on the command.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

/// Why a command was not carried out; nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub why: Why,
    /// One line for each mistake, each with its way out.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is no listener, pool, backend or generation of that name.
    NotFound,
    /// It can't be done as things are: the process is stopping, or an upgrade is under way.
    Conflict,
    /// What was given is wrong, or the system refuses what it asks for.
    Invalid,
    /// Too many commands wait.
    Busy,
}

pub type Reply = Result<Done, Refused>;

/// One command on its way.
#[derive(Debug)]
pub struct Call {
    pub command: Command,
    pub by: Asker,
    /// Who asked may have gone meanwhile.
    pub reply: oneshot::Sender<Reply>,
}

/// For those who ask.
#[derive(Clone, Debug)]
pub struct Commands(mpsc::Sender<Call>);

/// The channel from those who ask to the daemon.
#[must_use]
pub fn channel() -> (Commands, mpsc::Receiver<Call>) {
    let (sender, receiver) = mpsc::channel(ROOM);
    (Commands(sender), receiver)
}

impl Commands {
    /// Has it carried out, and says what came of it.
    pub async fn ask(&self, command: Command, by: Asker) -> Reply {
        let (reply, answer) = oneshot::channel();
        let refused = |why, text: &str| Refused { why, text: text.to_owned() };
        self.0.try_send(Call { command, by, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                refused(Why::Busy, "too many changes wait already: try again when they are done")
            }
            mpsc::error::TrySendError::Closed(_) => refused(Why::Conflict, "the process is stopping"),
        })?;
        answer.await.unwrap_or_else(|_| Err(refused(Why::Conflict, "the process is stopping")))
    }
}
