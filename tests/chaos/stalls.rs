//! When the machine itself did not run: a witness beside the balancer, and what may be forgiven for its sake.
//!
//! A witness asks a backend of its own, directly, again and again; nothing ever happens to that backend. When its
//! answer takes long, so long did this machine not run our processes, whatever the balancer did. Exactly these spans
//! are forgiven.

use crate::backend::{Server, ask};
use crate::kit::wait::pace;
use crate::load::Exchange;
use crate::protocol::HEALTH;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const BETWEEN: Duration = Duration::from_millis(20);
/// What a look may take, its pause included, before it counts as a stall.
const FINE: Duration = Duration::from_millis(70);

#[derive(Debug, Default)]
pub struct Stalls(Vec<(Instant, Instant)>);

impl Stalls {
    /// Watches until `stop`.
    pub fn watch(server: &Server, stop: &AtomicBool) -> Self {
        let conn = TcpStream::connect(server.address).unwrap();
        conn.set_nodelay(true).unwrap();
        let mut stalls = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            pace(BETWEEN);
            ask(&conn, &format!("{HEALTH}\n")).unwrap();
            if begun.elapsed() > FINE {
                stalls.push((begun, Instant::now()));
            }
        }
        Self(stalls)
    }

    /// How much of an exchange fell into stalls.
    pub fn within(&self, exchange: Exchange) -> Duration {
        let Exchange { from, until } = exchange;
        let common = |(begin, end): &(Instant, Instant)| until.min(*end).saturating_duration_since(from.max(*begin));
        self.0.iter().map(common).sum()
    }

    /// What the exchange took when the machine ran.
    pub fn took(&self, exchange: Exchange) -> Duration {
        (exchange.until - exchange.from).saturating_sub(self.within(exchange))
    }

    /// Whether a single stall of at least `length` overlaps the span.
    pub fn any_of(&self, length: Duration, span: Exchange) -> bool {
        let touches = |(begin, end): &(Instant, Instant)| *begin < span.until && *end > span.from;
        self.0.iter().any(|stall| stall.1 - stall.0 >= length && touches(stall))
    }

    pub fn summary(&self) -> String {
        let longest = self.0.iter().map(|(begin, end)| *end - *begin).max().unwrap_or_default();
        let sum: Duration = self.0.iter().map(|(begin, end)| *end - *begin).sum();
        format!(
            "{} stalls of this machine, {:.2} s together, the longest {:.3} s",
            self.0.len(),
            sum.as_secs_f64(),
            longest.as_secs_f64()
        )
    }
}
