//! Sessions, as the endpoint lists and closes them: the parameters of the query, and whom it asks.
//!
//! Owns the words of the query. What sessions there are, the workers know.

use super::command::{Asker, Reply};
use super::explain::{Complaint, parameters, quoted};
use crate::config::values::{any_of, nearest};
use crate::listing::{DEFAULT_LIMIT, MAX_LIMIT, Page, Query, Sort};
use crate::name::SessionId;
use std::future::Future;
use std::pin::Pin;

/// What will be there in a moment.
pub type Soon<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Who knows the sessions of all workers.
pub trait Sessions: Send + Sync {
    /// At most [`Query::limit`] of those that there are just now.
    fn list(&self, query: Query) -> Soon<Page>;

    /// Ends one by a reset to both sides; whoever asked is named in the audit line.
    fn close(&self, id: SessionId, by: Asker) -> Soon<Reply>;
}

/// Each may be given once.
pub const PARAMETERS: [&str; 6] = ["pool", "backend", "listener", "sort", "limit", "after"];

/// Reads the query of a request. Fails with the first parameter that makes no sense.
pub fn query(text: &str) -> Result<Query, Complaint> {
    let mut query = Query::default();
    let mut seen: Vec<String> = Vec::new();
    for (name, value) in parameters(text)? {
        if seen.contains(&name) {
            return Err(Complaint::new(&name, "it is given twice", "give it once"));
        }
        let complaint = |message: String, hint: String| Complaint::new(&name, message, hint);
        match name.as_str() {
            "pool" => query.pool = Some(value),
            "backend" => query.backend = Some(value),
            "listener" => query.listener = Some(value),
            "sort" => {
                let found = Sort::WORDS.iter().find(|(word, _)| *word == value);
                let words = Sort::WORDS.map(|(word, _)| word);
                let hint = || format!("use {}", any_of(&words));
                query.sort = found.ok_or_else(|| complaint(format!("{} is not known here", quoted(&value)), hint()))?.1;
            }
            "limit" => {
                let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                let limit = value.parse().ok().filter(|limit| is_number && (1..=MAX_LIMIT).contains(limit));
                let hint = || format!("use 1 to {MAX_LIMIT}; without it there are {DEFAULT_LIMIT}");
                query.limit =
                    limit.ok_or_else(|| complaint(format!("{} is no such number", quoted(&value)), hint()))?;
            }
            "after" => {
                let message = || format!("{} is not where a page has ended", quoted(&value));
                let hint = "give the \"next\" of the page before".to_owned();
                query.after = Some(value.parse().map_err(|()| complaint(message(), hint))?);
            }
            other => {
                let hint = match nearest(other, PARAMETERS.iter().copied()) {
                    Some(meant) => format!("did you mean {}?", quoted(meant)),
                    None => format!("use {}", any_of(&PARAMETERS)),
                };
                return Err(Complaint::new(&quoted(other), "unknown parameter", hint));
            }
        }
        seen.push(name);
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_sense_is_understood() {
        assert_eq!(query("").unwrap(), Query::default());
        let all = query("pool=app&backend=10.0.0.1%3a80&listener=web&sort=idle&limit=1000&after=7.1-2").unwrap();
        assert_eq!((all.pool.as_deref(), all.listener.as_deref()), (Some("app"), Some("web")));
        assert_eq!((all.backend.as_deref(), all.sort, all.limit), (Some("10.0.0.1:80"), Sort::Idle, 1_000));
        assert_eq!(all.after, "7.1-2".parse().ok());
    }

    #[test]
    fn what_makes_none_is_told_with_its_way_out() {
        for (text, expected) in [
            ("sort=size", "sort: \"size\" is not known here; use age, bytes or idle"),
            ("limit=0", "limit: \"0\" is no such number; use 1 to 1000; without it there are 100"),
            ("limit=1001", "limit: \"1001\" is no such number; use 1 to 1000; without it there are 100"),
            ("limit=%2b5", "limit: \"+5\" is no such number; use 1 to 1000; without it there are 100"),
            ("after=x", "after: \"x\" is not where a page has ended; give the \"next\" of the page before"),
            ("pol=a", "\"pol\": unknown parameter; did you mean \"pool\"?"),
            ("x=a", "\"x\": unknown parameter; use pool, backend, listener, sort, limit or after"),
            ("pool=a&pool=b", "pool: it is given twice; give it once"),
        ] {
            assert_eq!(query(text).unwrap_err().to_string(), expected, "{text}");
        }
    }
}
