//! A tiny HTTP/1.1 client for the admin endpoint: one request a connection, read to the end.

use super::conn::{Addr, Conn, Rest};

/// The token of every [`super::Launch`], in its `$DIR/token`.
pub const TOKEN: &str = "canary-4711-0123456789abcdef";

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    /// # Panics
    /// When it isn't an HTTP answer.
    pub fn parse(rest: &Rest) -> Self {
        let text = rest.text();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {rest:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no status: {head}")),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.body))
    }
}

pub fn request(admin: &Addr, method: &str, path: &str) -> Answer {
    raw(admin, &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
}

pub fn get(admin: &Addr, path: &str) -> Answer {
    request(admin, "GET", path)
}

/// Asks for a change, with the token; an empty body is none.
pub fn post(admin: &Addr, path: &str, body: &str) -> Answer {
    post_with(admin, path, &format!("Authorization: Bearer {TOKEN}\r\n"), body)
}

/// As [`post`], with these header lines instead of the token's.
pub fn post_with(admin: &Addr, path: &str, headers: &str, body: &str) -> Answer {
    let length = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    };
    let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}{length}\r\n");
    raw(admin, &(head + body))
}

/// Sends these bytes and reads to the end.
pub fn raw(admin: &Addr, bytes: &str) -> Answer {
    let mut conn = Conn::to(admin);
    conn.send(bytes);
    Answer::parse(&conn.rest())
}
