//! What a mistake in `lb.toml` looks like: `file:line:col`, the key, a sentence with the value, the way out.
//!
//! Owns the types, the order in which mistakes are shown and their text, with the offending line below each.
//! Whatever comes from the file is printed with its control characters escaped, so that a config can't write to
//! somebody's terminal. Who finds mistakes: `source` (can the file be read), `syntax` (is it TOML), `file` (has it
//! the right keys and types), `validate` (does it make sense); the daemon adds those of names that don't resolve.

use super::Member;
use super::words;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// More mistakes than this in one file are counted, not listed.
pub const MAX_LISTED: usize = 200;

/// One mistake, or one warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub severity: Severity,
    pub place: Place,
    /// What is wrong, with the value.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    excerpt: Option<Excerpt>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file can't be used.
    Error,
    /// The file can be used, but does something that is hardly meant.
    Warning,
}

/// Displays as `lb.toml:14:9: pools.web.backends[2]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub source: Arc<str>,
    /// `None` if the file as a whole is meant.
    pub position: Option<Position>,
    /// Empty where no key can be named, as in a syntax error.
    pub key: String,
}

/// Both count from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// The line that a mistake is on, or a window of it, and the bytes of it that are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excerpt {
    pub line: String,
    pub marked: Range<usize>,
}

/// With or without terminal colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Colour,
}

impl Mistake {
    /// Values should be quoted by then; a control character that was overlooked is replaced all the same.
    pub(super) fn new(severity: Severity, place: Place, message: impl AsRef<str>, hint: impl AsRef<str>) -> Self {
        let [message, hint] = [message.as_ref(), hint.as_ref()].map(words::masked);
        Self { severity, place, message, hint: (!hint.is_empty()).then_some(hint), excerpt: None }
    }

    /// A mistake about the file as a whole.
    pub(super) fn of_file(source: &Arc<str>, message: impl AsRef<str>, hint: impl AsRef<str>) -> Self {
        let place = Place { source: source.clone(), position: None, key: String::new() };
        Self::new(Severity::Error, place, message, hint)
    }

    /// A mistake in a member's address that only the outside world could show, such as a name that doesn't resolve.
    #[must_use]
    pub fn of_member(member: &Member, message: &str, hint: &str) -> Self {
        Self::new(Severity::Error, Place::from_text(&member.place), message, hint)
    }

    pub(super) fn with_excerpt(self, excerpt: Excerpt) -> Self {
        Self { excerpt: Some(excerpt), ..self }
    }

    /// The first line and, if the place is known, the line of the file below it.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let mut text = self.first_line();
        if let (Some(excerpt), Some(position)) = (&self.excerpt, self.place.position) {
            text.push('\n');
            text.push_str(&excerpt.render(position.line, self.severity, style));
        }
        text
    }

    /// `lb.toml:14:9: pools.web.backends[2]: port 0 is not a port; use 1 to 65535`.
    #[must_use]
    pub fn first_line(&self) -> String {
        let mut line = self.place.to_string();
        if self.severity == Severity::Warning {
            line.push_str(": warning");
        }
        line.push_str(": ");
        line.push_str(&self.message);
        if let Some(hint) = &self.hint {
            line.push_str("; ");
            line.push_str(hint);
        }
        line
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Style::Plain))
    }
}

impl Excerpt {
    fn render(&self, line: usize, severity: Severity, style: Style) -> String {
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Colour => Renderer::styled(),
        };
        let level = match severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mark = AnnotationKind::Primary.span(self.marked.clone());
        let snippet = Snippet::source(self.line.as_str()).line_start(line).annotation(mark);
        renderer.render(&[Group::with_level(level).element(snippet)])
    }
}

impl Place {
    /// The inverse of `Display`. A member's key path holds no `: `, since the names in it are of a small alphabet.
    fn from_text(text: &str) -> Self {
        let (at, key) = text.rsplit_once(": ").unwrap_or((text, ""));
        let mut parts = at.rsplitn(3, ':');
        let (column, line, source) = (parts.next(), parts.next(), parts.next());
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        match (source, number(line), number(column)) {
            (Some(source), Some(line), Some(column)) => {
                Self { source: source.into(), position: Some(Position { line, column }), key: key.into() }
            }
            _ => Self { source: at.into(), position: None, key: key.into() },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a file, in the order of the file; warnings stand among the mistakes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    listed: Vec<Mistake>,
    more: usize,
}

impl Mistakes {
    /// Lists the first [`MAX_LISTED`] of them; `more` have not even been kept.
    pub(super) fn new(mut found: Vec<Mistake>, more: usize) -> Self {
        found.sort_by(|a, b| (a.place.position, &a.message).cmp(&(b.place.position, &b.message)));
        // The parser reports some errors once for each time that it looks.
        found.dedup();
        if found.len() > MAX_LISTED {
            // Errors first.
            found.sort_by_key(|mistake| mistake.severity == Severity::Warning);
        }
        let more = more + found.len().saturating_sub(MAX_LISTED);
        found.truncate(MAX_LISTED);
        found.sort_by_key(|mistake| mistake.place.position);
        Self { listed: found, more }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Mistake> {
        self.listed.iter()
    }

    pub(super) fn into_listed(self) -> Vec<Mistake> {
        self.listed
    }

    /// How many there are beyond those listed.
    #[must_use]
    pub fn unlisted(&self) -> usize {
        self.more
    }

    /// All of them, one below the other.
    #[must_use]
    pub fn render(&self, style: Style) -> String {
        let mut texts: Vec<String> = self.iter().map(|mistake| mistake.render(style)).collect();
        if self.more > 0 {
            texts.push(format!("and {} more", self.more));
        }
        texts.join("\n")
    }
}

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Self {
        Self::new(vec![mistake], 0)
    }
}

impl FromIterator<Mistake> for Mistakes {
    fn from_iter<I: IntoIterator<Item = Mistake>>(mistakes: I) -> Self {
        Self::new(mistakes.into_iter().collect(), 0)
    }
}

impl<'a> IntoIterator for &'a Mistakes {
    type Item = &'a Mistake;
    type IntoIter = std::slice::Iter<'a, Mistake>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Style::Plain))
    }
}

impl std::error::Error for Mistakes {}
