//! What has been found wrong so far, and the places it is found at.
//!
//! Owns the collecting: nothing stops at the first mistake, and a file with a million of them doesn't fill the
//! memory. Shared by everything that reads or judges the file, one after the other. Next: `file`, `validate`.

use super::error::{Mistake, Mistakes, Severity};
use super::source::Source;
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// More mistakes than this are counted, not kept. Larger than what is listed, since they come unsorted.
const MAX_KEPT: usize = 2_000;

/// Where something stands in the file.
#[derive(Clone, Debug)]
pub(super) struct At {
    pub span: Range<usize>,
    /// `pools.web.backends[2]`.
    pub key: String,
}

/// A value of the file, with its place.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub at: At,
    pub value: T,
}

/// A key's value: not there, there but wrong (and said so), or good.
#[derive(Clone, Debug)]
pub(super) enum Given<T> {
    Absent,
    Bad,
    Good(Placed<T>),
}

/// What is wrong with a piece of text that doesn't know where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub message: String,
    pub hint: String,
}

/// How much of the file is there to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coverage {
    Whole,
    /// Some of it was not understood, and said so: what seems to be missing may be there.
    Partial,
}

/// The collector.
pub(super) struct Findings<'s> {
    pub source: &'s Source,
    pub coverage: Cell<Coverage>,
    kept: RefCell<Vec<Mistake>>,
    more: Cell<usize>,
    mistakes: Cell<usize>,
}

impl<'s> Findings<'s> {
    pub fn new(source: &'s Source) -> Self {
        Self {
            source,
            coverage: Cell::new(Coverage::Whole),
            kept: RefCell::default(),
            more: Cell::new(0),
            mistakes: Cell::new(0),
        }
    }

    pub fn mistake(&self, at: &At, message: impl AsRef<str>, hint: impl AsRef<str>) {
        self.mistake_at(at.span.clone(), &at.key, message, hint);
    }

    pub fn mistake_at(&self, span: Range<usize>, key: &str, message: impl AsRef<str>, hint: impl AsRef<str>) {
        self.mistakes.set(self.mistakes.get() + 1);
        self.keep(Severity::Error, span, key, message, hint);
    }

    pub fn complaint(&self, at: &At, complaint: Complaint) {
        self.mistake(at, complaint.message, complaint.hint);
    }

    /// A mistake that consists in something not being there.
    pub fn missing(&self, at: &At, message: impl AsRef<str>, hint: impl AsRef<str>) {
        if self.coverage.get() == Coverage::Whole {
            self.mistake(at, message, hint);
        }
    }

    /// Most warnings are about something not being there, too.
    pub fn warning(&self, at: &At, message: impl AsRef<str>, hint: impl AsRef<str>) {
        if self.coverage.get() == Coverage::Whole {
            self.keep(Severity::Warning, at.span.clone(), &at.key, message, hint);
        }
    }

    /// Further mistakes are only counted, so that nobody need look for words about them.
    pub fn is_full(&self) -> bool {
        self.kept.borrow().len() >= MAX_KEPT
    }

    fn keep(&self, severity: Severity, span: Range<usize>, key: &str, message: impl AsRef<str>, hint: impl AsRef<str>) {
        let mut kept = self.kept.borrow_mut();
        let room = if severity == Severity::Error { MAX_KEPT } else { MAX_KEPT / 2 };
        if kept.len() >= room {
            self.more.set(self.more.get() + 1);
            return;
        }
        kept.push(self.source.mistake(severity, span, key, message, hint));
    }

    /// Everything found if a mistake is among it, else only the warnings.
    pub fn finish(self) -> Result<Vec<Mistake>, Mistakes> {
        let (kept, more) = (self.kept.into_inner(), self.more.get());
        if self.mistakes.get() > 0 {
            return Err(Mistakes::new(kept, more));
        }
        Ok(Mistakes::new(kept, more).into_listed())
    }
}

impl At {
    /// Finds the parts of the text that is the value here. What is in the file in another way, with escapes, is one
    /// part.
    pub fn parts(&self, source: &Source, text: &str) -> impl Fn(Range<usize>) -> Self + use<> {
        let (at, inside) = (self.clone(), source.text.get(self.span.clone()).and_then(|raw| raw.find(text)));
        move |part| match inside.map(|offset| at.span.start + offset) {
            Some(start) => Self { span: start + part.start..start + part.end, key: at.key.clone() },
            None => at.clone(),
        }
    }
}

impl Complaint {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl<T> Given<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Given<U> {
        match self {
            Self::Good(Placed { at, value }) => Given::Good(Placed { at, value: change(value) }),
            Self::Absent => Given::Absent,
            Self::Bad => Given::Bad,
        }
    }

    pub fn good(&self) -> Option<&Placed<T>> {
        match self {
            Self::Good(placed) => Some(placed),
            Self::Absent | Self::Bad => None,
        }
    }

    pub fn into_good(self) -> Option<Placed<T>> {
        match self {
            Self::Good(placed) => Some(placed),
            Self::Absent | Self::Bad => None,
        }
    }

    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// The value, or `default` for one that isn't given or isn't good.
    pub fn or(&self, default: T) -> T
    where
        T: Copy,
    {
        self.good().map_or(default, |placed| placed.value)
    }

    pub fn value_or(self, default: T) -> T {
        self.into_good().map_or(default, |placed| placed.value)
    }
}
