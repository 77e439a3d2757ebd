//! The body of a request: what its head says of it, and the bytes, read within a bound and a time.
//!
//! Owns the bounds. Only who may change things has a body read; bodies that are larger than most are read one at a
//! time, so that their memory is bounded whatever many clients send.

use super::answer::Answer;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::Body;
use hyper::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The largest body, in bytes, but for the one of a config.
pub const MAX: u64 = 64 << 10;

/// For a whole body, from the end of its head.
const TIME: Duration = Duration::from_secs(10);

/// What a request's head says of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    None,
    Length(u64),
    /// It comes in chunks, and ends where it ends.
    Unknown,
}

impl Announced {
    pub fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(TRANSFER_ENCODING) {
            return Self::Unknown;
        }
        // A length that isn't a number was refused by the parser.
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        length.filter(|&length| length > 0).map_or(Self::None, Self::Length)
    }

    /// Why a body that is announced so is not read.
    pub fn refused(self, most: u64) -> Option<(StatusCode, String)> {
        match self {
            Self::Length(length) if length > most => {
                Some((StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {most} bytes at most here")))
            }
            Self::Unknown => Some((StatusCode::LENGTH_REQUIRED, "send the body with a Content-Length".to_owned())),
            Self::None | Self::Length(_) => None,
        }
    }
}

/// The room for large bodies.
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

/// A body that has been read, with its room.
#[derive(Default)]
pub struct Read {
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// All bytes of a body that was announced so, and found no larger than it may be; else why not.
    pub async fn read<B>(&self, announced: Announced, body: B) -> Result<Read, Answer>
    where
        B: Body,
        B::Error: Display + Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Announced::Length(length) = announced else { return Ok(Read::default()) };
        let room = if length > MAX {
            Some(Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
                let text = "another large body is being read: try again in a moment";
                Answer::refused(StatusCode::SERVICE_UNAVAILABLE, text)
            })?)
        } else {
            None
        };
        let most = usize::try_from(length).unwrap_or(usize::MAX);
        match timeout(TIME, Limited::new(body, most).collect()).await {
            Ok(Ok(collected)) => Ok(Read { bytes: collected.to_bytes(), _room: room }),
            Ok(Err(error)) => {
                Err(Answer::refused(StatusCode::BAD_REQUEST, &format!("the body can't be read: {error}")))
            }
            Err(_) => {
                let text = format!("the body has not come within {} s", TIME.as_secs());
                Err(Answer::refused(StatusCode::REQUEST_TIMEOUT, &text))
            }
        }
    }
}
