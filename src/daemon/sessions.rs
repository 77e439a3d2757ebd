//! The sessions of all workers, for the admin endpoint: who there is, and one of them ended.
//!
//! Owns the words for what came of that, and the audit line.

use crate::admin::command::{Asker, Done, Refused, Reply, Why};
use crate::admin::{self, Soon};
use crate::listing::{Page, Query};
use crate::name::SessionId;
use crate::session::balance::Seats;
use crate::session::listing::{self, Closed};
use serde_json::json;
use std::sync::{Arc, OnceLock};

/// Asks the workers, once there are some.
pub struct Sessions(pub Arc<OnceLock<Arc<Seats>>>);

impl admin::Sessions for Sessions {
    fn list(&self, query: Query) -> Soon<Page> {
        let seats = self.0.get().cloned();
        Box::pin(async move {
            match seats {
                Some(seats) => listing::ask(&seats, query).await,
                None => Page::default(),
            }
        })
    }

    fn close(&self, id: SessionId, by: Asker) -> Soon<Reply> {
        let seats = self.0.get().cloned();
        Box::pin(async move {
            let closed = match seats {
                Some(seats) => listing::end(&seats, id).await,
                None => Closed::Unknown,
            };
            answer(closed, id, &by)
        })
    }
}

fn answer(closed: Closed, id: SessionId, by: &Asker) -> Reply {
    let (why, text) = match closed {
        Closed::Done => {
            tracing::info!(%by, command = "close", from = %id, to = "closed", "changed");
            let summary = format!("connection {id} is closed");
            return Ok(Done { summary, changed: true, details: json!({ "id": id.to_string() }) });
        }
        Closed::Already => {
            let summary = format!("nothing has changed: connection {id} is closing, when its ends have what was read");
            return Ok(Done { summary, changed: false, details: json!({ "id": id.to_string() }) });
        }
        Closed::Unknown => (Why::NotFound, format!("there is no connection {id}; it may have ended already")),
        Closed::Silent => (Why::Conflict, format!("the worker of connection {id} doesn't answer; try again")),
    };
    tracing::warn!(%by, command = "close", connection = %id, "refused: {text}");
    Err(Refused { why, text })
}
