//! A plan as people read it: a line for each thing or key, in columns, and the verdict below.
//!
//! `+` comes, `-` goes, `~` changes, `!` needs a new process; `=` is what was changed at run time, on top of the
//! config.

use super::{Adjusted, Change, Entry, Kind, Plan, Severity};
use std::fmt;

/// Names that are longer don't move the others' column.
const MAX_COLUMN: usize = 40;

impl Plan {
    /// Everything in it, with its sign.
    pub fn entries(&self) -> impl Iterator<Item = (char, &Entry)> {
        let lists = [('!', &self.restarted), ('+', &self.added), ('~', &self.changed), ('-', &self.removed)];
        let signed = lists.into_iter().flat_map(|(sign, entries)| entries.iter().map(move |entry| (sign, entry)));
        let mut all: Vec<_> = signed.collect();
        all.sort_by_key(|(_, entry)| entry.kind as u8);
        all.into_iter()
    }

    /// One line: how much there is of what, and how severe it is.
    #[must_use]
    pub fn summary(&self) -> String {
        let counts = [
            (self.added.len(), "added"),
            (self.removed.len(), "removed"),
            (self.changed.len(), "changed"),
            (
                self.restarted.len(),
                if self.restarted.len() == 1 { "needs a new process" } else { "need a new process" },
            ),
        ];
        let counts: Vec<_> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let said = match self.severity {
            Severity::Nothing => "nothing would change".to_owned(),
            Severity::Changes => counts.join(", "),
            Severity::Disruptive => format!("{}: disruptive", counts.join(", ")),
        };
        match self.adjustments.len() {
            0 => said,
            1 => format!("{said}; 1 change made at run time is concerned"),
            count => format!("{said}; {count} changes made at run time are concerned"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries: Vec<_> = self.entries().map(|(sign, entry)| (sign, entry.subject(), entry)).collect();
        let adjusted: Vec<_> = self.adjustments.iter().map(|adjusted| (adjusted.subject(), adjusted)).collect();
        let subjects = entries.iter().map(|(_, subject, _)| subject).chain(adjusted.iter().map(|(subject, _)| subject));
        let lengths = subjects.map(|subject| subject.chars().count());
        let width = lengths.filter(|length| *length <= MAX_COLUMN).max().unwrap_or(0);
        for (sign, subject, entry) in entries {
            for line in entry.lines(sign) {
                let row = format!("{sign} {subject:width$}  {line}");
                writeln!(f, "{}", row.trim_end())?;
            }
        }
        for (subject, Adjusted { says, .. }) in adjusted {
            writeln!(f, "= {subject:width$}  {says}")?;
        }
        writeln!(f, "{}", self.summary())
    }
}

fn subject(kind: Kind, name: &str, of: Option<&str>) -> String {
    let of = of.unwrap_or_default();
    match kind {
        Kind::Key => name.to_owned(),
        Kind::Limit => format!("limit {name}"),
        Kind::Listener => format!("listener {name}"),
        Kind::Route => format!("route {name} of {of}"),
        Kind::Pool => format!("pool {name}"),
        Kind::Backend => format!("backend {name} of {of}"),
    }
}

impl Adjusted {
    fn subject(&self) -> String {
        subject(self.kind, &self.name, self.of.as_deref())
    }
}

impl Entry {
    fn subject(&self) -> String {
        subject(self.kind, &self.name, self.of.as_deref())
    }

    /// What is said of it; the sessions and the disruption once.
    fn lines(&self, sign: char) -> Vec<String> {
        let mut lines: Vec<String> = match sign {
            '+' | '-' => vec![self.about.clone().unwrap_or_default()],
            _ => self.keys.iter().map(|change| change.line(self.kind)).collect(),
        };
        let Some(first) = lines.first_mut() else { return lines };
        if let Some(sessions) = self.sessions.filter(|sessions| *sessions > 0) {
            let several = self.keys.len() > 1;
            let what = match (sign, sessions) {
                ('-', 1) => "goes on to its end",
                ('-', _) => "go on to their end",
                (_, 1) if several => "keeps the old ones",
                (_, 1) => "keeps the old one",
                (_, _) if several => "keep the old ones",
                _ => "keep the old one",
            };
            let plural = if sessions == 1 { "" } else { "s" };
            let gap = if first.is_empty() { "" } else { " " };
            first.extend([gap, &format!("({sessions} session{plural} {what})")]);
        }
        if let Some(disruptive) = &self.disruptive {
            let gap = if first.is_empty() { "" } else { "; " };
            first.extend([gap, disruptive]);
        }
        lines
    }
}

impl Change {
    /// Of a key of the process, its name stands before it already.
    fn line(&self, kind: Kind) -> String {
        let key = if kind == Kind::Key { String::new() } else { format!("{} ", self.key) };
        match (&self.from, &self.to) {
            (Some(from), Some(to)) if from == to => format!("{key}{from} -> another one"),
            (Some(from), Some(to)) => format!("{key}{from} -> {to}"),
            (None, Some(to)) => format!("{key}{to}"),
            (Some(from), None) => format!("{key}{from} -> none"),
            (None, None) => format!("{key}is another one"),
        }
    }
}
