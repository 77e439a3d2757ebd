//! The fields of a line of the operational log as text: `key=value`, so that a reader of logfmt finds each value.
//!
//! Owns when a value stands in quotes: what the code knows as text always, and else where it could be misread. The
//! message comes first, without a key.

use super::escape;
use std::fmt::{self, Debug, Write};
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// The format.
pub struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut pairs = Pairs::default();
        fields.record(&mut pairs);
        writer.write_str(&pairs.out)
    }
}

#[derive(Default)]
struct Pairs {
    out: String,
}

impl Pairs {
    fn key(&mut self, field: &Field) {
        if !self.out.is_empty() {
            self.out.push(' ');
        }
        self.out.extend([field.name(), "="]);
    }
}

impl Visit for Pairs {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.key(field);
        escape::push_quoted(&mut self.out, value);
    }

    /// Numbers and truths, too, and what is shown by its `Display`.
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string can't fail.
        if field.name() == "message" {
            let fields = std::mem::take(&mut self.out);
            _ = write!(self.out, "{value:?}");
            let gap = if fields.is_empty() { "" } else { " " };
            self.out.extend([gap, &fields]);
            return;
        }
        self.key(field);
        let start = self.out.len();
        _ = write!(self.out, "{value:?}");
        if !escape::is_bare(&self.out[start..]) {
            let value = self.out.split_off(start);
            escape::push_quoted(&mut self.out, &value);
        }
    }
}
