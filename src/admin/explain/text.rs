//! The answer for a terminal: a line each for the client, its admission, each rule and each backend.

use super::view::{BackendView, Explanation, Outcome, PoolView, RuleView, Standpoint};
use std::fmt;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.to.as_ref().map_or_else(String::new, |to| format!(" to {to}"));
        writeln!(f, "listener {}: {}{to}, has sent {}", self.listener, self.client, self.sent)?;
        match self.state {
            Standpoint::Live => writeln!(f, "state: live")?,
            Standpoint::Config => {
                writeln!(f, "state: from the config alone; every backend is taken to be up and idle")?;
            }
        }
        let admitted = if self.admission.allowed { "let in" } else { "kept out" };
        writeln!(f, "admission: {admitted}: {}", self.admission.because)?;
        self.rules.iter().try_for_each(|rule| write!(f, "{rule}"))?;
        match (self.verdict, &self.pool) {
            (Outcome::Refused, _) => writeln!(f, "refused (route_refused)")?,
            (Outcome::NoRoute, _) => writeln!(f, "refused: no rule takes it, and the listener has no pool (no_route)")?,
            (Outcome::NeedsMore, _) => writeln!(f, "open: the client must send more, for {}", self.needs.join(", "))?,
            (Outcome::Pool, Some(pool)) => write!(f, "{pool}")?,
            (Outcome::Pool, None) => {}
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

impl fmt::Display for RuleView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = self.answer.replace('_', " ");
        write!(f, "rule {}: {answer}", self.rule)?;
        match (&*self.answer, self.pools.as_slice()) {
            ("no", _) => {}
            (_, _) if self.refuse => f.write_str(", refuses")?,
            (_, [one]) => write!(f, ", leads to {}", one.pool)?,
            (_, several) => {
                let several: Vec<_> = several.iter().map(|to| format!("{} ({})", to.pool, to.weight)).collect();
                write!(f, ", leads to {}", several.join(", "))?;
            }
        }
        writeln!(f)?;
        self.conditions.iter().try_for_each(|condition| {
            let answer = condition.answer.replace('_', " ");
            let seen = condition.seen.as_deref().unwrap_or("nothing");
            writeln!(f, "    {}: {answer}; wants {}, sees {seen}", condition.key, condition.wanted)
        })
    }
}

impl fmt::Display for PoolView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pool {}: {}", self.name, self.balance)?;
        if let Some(hash) = &self.hash {
            let value = hash.value.as_ref().map_or_else(String::new, |value| format!(", hash {value}"));
            write!(f, " by {} ({}{value})", hash.key, hash.of)?;
        }
        if self.panic {
            f.write_str(", in panic")?;
        }
        writeln!(f)?;
        if let Some(share) = self.shed.filter(|share| *share > 0.0) {
            writeln!(f, "    refuses {:.1} % of new connections, for a latency is too high", 100.0 * share)?;
        }
        if self.waits && self.backends.iter().any(|backend| backend.probability > 0.0) {
            writeln!(f, "    others wait in its queue, so that this one would queue up as well")?;
        }
        writeln!(f, "backend {}", self.choice)?;
        self.backends.iter().try_for_each(|backend| write!(f, "{backend}"))
    }
}

impl fmt::Display for BackendView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "    {}", self.name)?;
        if self.name != self.address {
            write!(f, " ({})", self.address)?;
        }
        match &self.because {
            Some(because) => writeln!(f, ": no: {because}"),
            None => writeln!(f, ": {:.1} %", 100.0 * self.probability),
        }
    }
}
