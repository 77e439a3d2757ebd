//! Which sessions there are: what may be asked, and what is answered.
//!
//! Owns the words between those who ask and the workers, each of which answers for its own sessions
//! (`session::listing`), the order of a listing, and how the answers of the workers become one page. Invariants: a page
//! has no more than [`MAX_LIMIT`] sessions; the order is the same on all workers, so that a page goes on where the one
//! before it ended, whichever worker has the sessions. A session that moves in the order between two pages may be on
//! both or on none.

use crate::clock::Millis;
use crate::name::{BackendAddr, ClientAddr, ListenerName, PoolName, SessionId};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Sessions on a page, unless something else is asked for.
pub const DEFAULT_LIMIT: usize = 100;

/// The most that may be asked for.
pub const MAX_LIMIT: usize = 1_000;

/// Which sessions are wanted, and in which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Only those of this pool.
    pub pool: Option<String>,
    /// Only those of this backend, by what `/status` calls it.
    pub backend: Option<String>,
    /// Only those of this listener.
    pub listener: Option<String>,
    pub sort: Sort,
    /// The most on a page, 1 to [`MAX_LIMIT`].
    pub limit: usize,
    /// Where the page before this one ended.
    pub after: Option<Cursor>,
}

impl Default for Query {
    fn default() -> Self {
        Self { pool: None, backend: None, listener: None, sort: Sort::Age, limit: DEFAULT_LIMIT, after: None }
    }
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// The oldest.
    #[default]
    Age,
    /// What has moved the most bytes, both ways together.
    Bytes,
    /// What has moved none for the longest time.
    Idle,
}

impl Sort {
    /// The words of a query.
    pub const WORDS: [(&str, Self); 3] = [("age", Self::Age), ("bytes", Self::Bytes), ("idle", Self::Idle)];

    /// The place in the order, the smallest first, of a session that was accepted and that has moved its last byte at
    /// these moments.
    #[must_use]
    pub fn rank(self, accepted: Millis, last_moved: Millis, bytes: [u64; 2]) -> u64 {
        match self {
            Self::Age => accepted,
            Self::Bytes => u64::MAX - bytes[0].saturating_add(bytes[1]),
            Self::Idle => last_moved,
        }
    }
}

/// A place in the order of a listing, as text like `4711.1-17`, which means something to the process that wrote it
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub rank: u64,
    /// Of those with one rank.
    pub id: SessionId,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.rank, self.id)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (rank, id) = text.split_once('.').ok_or(())?;
        let rank = Some(rank).filter(|rank| rank.bytes().all(|byte| byte.is_ascii_digit())).ok_or(())?;
        Ok(Self { rank: rank.parse().map_err(drop)?, id: id.parse()? })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One session, as it was when its worker answered.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    #[serde(skip)]
    pub place: Cursor,
    #[serde(serialize_with = "shown")]
    pub id: SessionId,
    #[serde(serialize_with = "shown")]
    pub client: ClientAddr,
    #[serde(serialize_with = "shown")]
    pub listener: ListenerName,
    /// The rule that it has taken; `None` before that, and where its listener has no routes.
    #[serde(serialize_with = "shown_if_any")]
    pub rule: Option<Arc<str>>,
    #[serde(serialize_with = "shown_if_any")]
    pub pool: Option<PoolName>,
    /// The one that it has, or tries.
    #[serde(serialize_with = "shown_if_any")]
    pub backend: Option<Arc<str>>,
    #[serde(serialize_with = "shown_if_any")]
    pub backend_address: Option<BackendAddr>,
    /// As in the access log; `closing` once its end is decided, while what was read is still delivered.
    pub phase: &'static str,
    /// Since it was accepted.
    pub age_ms: Millis,
    /// Since the last byte was moved; since it was accepted, if none was.
    pub idle_ms: Millis,
    pub bytes: Bytes,
}

/// What the sinks have taken.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bytes {
    pub to_backend: u64,
    pub to_client: u64,
}

fn shown<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "what serde hands over")]
fn shown_if_any<T: fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// What one worker has to say.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its first sessions in the order, no more than were asked for.
    pub rows: Vec<Row>,
    /// Where it has stopped, if it has more than these.
    pub up_to: Option<Cursor>,
}

/// Some of the sessions of all workers that have answered.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Page {
    pub connections: Vec<Row>,
    /// For the query of the page after this one; `None` on the last.
    pub next: Option<Cursor>,
    /// Workers that have not answered in time: their sessions are missing.
    pub silent_workers: Vec<u16>,
}

impl Page {
    /// Merges what the workers have answered: no more than `limit`, and nothing beyond where one of them has stopped.
    #[must_use]
    pub fn merge(answers: Vec<Answer>, silent_workers: Vec<u16>, limit: usize) -> Self {
        let end = answers.iter().filter_map(|answer| answer.up_to).min();
        let mut connections: Vec<Row> = answers.into_iter().flat_map(|answer| answer.rows).collect();
        connections.retain(|row| end.is_none_or(|end| row.place <= end));
        connections.sort_unstable_by_key(|row| row.place);
        let next = if connections.len() > limit { Some(connections[limit - 1].place) } else { end };
        connections.truncate(limit);
        Self { connections, next, silent_workers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rank: u64, worker: u16) -> Row {
        let id = SessionId::new(worker, rank);
        Row {
            place: Cursor { rank, id },
            id,
            client: ClientAddr::tcp("192.0.2.1:4711".parse().unwrap()),
            listener: ListenerName::new("web"),
            rule: None,
            pool: Some(PoolName::new("app")),
            backend: Some("a".into()),
            backend_address: None,
            phase: "relay",
            age_ms: 5,
            idle_ms: 4,
            bytes: Bytes { to_backend: 1, to_client: 2 },
        }
    }

    fn ids(page: &Page) -> Vec<String> {
        page.connections.iter().map(|row| row.id.to_string()).collect()
    }

    fn answer(rows: Vec<Row>) -> Answer {
        Answer { rows, up_to: None }
    }

    #[test]
    fn pages_of_all_workers_are_one_order() {
        let answers =
            || vec![answer(vec![row(1, 0), row(4, 0), row(6, 0)]), answer(vec![row(2, 1), row(4, 1), row(5, 1)])];
        let page = Page::merge(answers(), vec![], 2);
        assert_eq!(ids(&page), ["0-1", "1-2"]);
        assert_eq!(page.next, Some(row(2, 1).place));
        let behind = |mut answer: Answer| {
            answer.rows.retain(|row| Some(row.place) > page.next);
            answer
        };
        let last = Page::merge(answers().into_iter().map(behind).collect(), vec![7], 4);
        assert_eq!(ids(&last), ["0-4", "1-4", "1-5", "0-6"]);
        assert_eq!((last.next, last.silent_workers), (None, vec![7]));
    }

    /// Some of what a worker has counted may have ended before it could tell of it.
    #[test]
    fn nothing_is_told_of_what_lies_behind_a_place_where_a_worker_has_stopped() {
        let stopped = Answer { rows: vec![row(1, 0)], up_to: Some(row(3, 0).place) };
        let page = Page::merge(vec![stopped, answer(vec![row(2, 1), row(5, 1)])], vec![], 2);
        assert_eq!(ids(&page), ["0-1", "1-2"]);
        assert_eq!(page.next, Some(row(3, 0).place));
        let empty = Page::merge(vec![Answer { rows: vec![], up_to: Some(row(3, 0).place) }], vec![], 2);
        assert_eq!((ids(&empty).len(), empty.next), (0, Some(row(3, 0).place)));
    }

    #[test]
    fn a_cursor_is_what_it_was() {
        let cursor = Cursor { rank: u64::MAX, id: SessionId::new(3, 4_711) };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "1", "1.2", ".2-3", "1.2-3-4", "+1.2-3", "1.2-x", "99999999999999999999.0-1"] {
            assert_eq!(text.parse::<Cursor>(), Err(()), "{text}");
        }
    }

    #[test]
    fn the_first_of_an_order_has_the_smallest_rank() {
        let (old, young) = ((1, 9, [5, 5]), (2, 3, [7, 4]));
        let first = |sort: Sort| sort.rank(old.0, old.1, old.2) < sort.rank(young.0, young.1, young.2);
        assert_eq!(Sort::WORDS.map(|(_, sort)| first(sort)), [true, false, false]);
        assert!(Sort::Bytes.rank(1, 1, [u64::MAX, 1]) < Sort::Bytes.rank(1, 1, [3, 1]));
    }

    #[test]
    fn the_json_of_a_page() {
        let page = Page::merge(vec![answer(vec![row(1, 0), row(2, 0)])], vec![1], 1);
        let json = serde_json::to_value(&page).unwrap();
        let expected = serde_json::json!({
            "connections": [{
                "id": "0-1", "client": "192.0.2.1:4711", "listener": "web", "rule": null, "pool": "app",
                "backend": "a", "backend_address": null, "phase": "relay", "age_ms": 5, "idle_ms": 4,
                "bytes": {"to_backend": 1, "to_client": 2},
            }],
            "next": "1.0-1",
            "silent_workers": [1],
        });
        assert_eq!(json, expected);
    }
}
