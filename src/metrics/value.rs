//! What a series can be: a counter, a gauge or a histogram, each a few atomics.
//!
//! Owns how a value is counted and how its samples are written. Counting never waits: no lock, and no look-up.

use super::names::Name;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// A value that a family can hold.
pub trait Kind: Send + Sync + 'static {
    /// The word of the exposition format.
    const TYPE: &'static str;

    fn zero(name: &Name) -> Self;

    /// Appends the sample lines; `labels` are without braces, and may be empty.
    fn write(&self, name: &Name, labels: &str, out: &mut String);
}

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.inc_by(1);
    }

    pub fn inc_by(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Kind for Counter {
    const TYPE: &'static str = "counter";

    fn zero(_: &Name) -> Self {
        Self::default()
    }

    fn write(&self, name: &Name, labels: &str, out: &mut String) {
        sample(out, name.name, "", labels, self.get());
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn dec(&self) {
        self.add(-1);
    }

    pub fn add(&self, more: i64) {
        self.0.fetch_add(more, Relaxed);
    }

    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Kind for Gauge {
    const TYPE: &'static str = "gauge";

    fn zero(_: &Name) -> Self {
        Self::default()
    }

    fn write(&self, name: &Name, labels: &str, out: &mut String) {
        sample(out, name.name, "", labels, self.get());
    }
}

/// A gauge from 0 to 1.
#[derive(Debug, Default)]
pub struct Ratio(
    /// The bits of an `f64`.
    AtomicU64,
);

impl Ratio {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    #[must_use]
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

impl Kind for Ratio {
    const TYPE: &'static str = "gauge";

    fn zero(_: &Name) -> Self {
        Self::default()
    }

    fn write(&self, name: &Name, labels: &str, out: &mut String) {
        sample(out, name.name, "", labels, self.get());
    }
}

/// How many observations lie at or below each of some bounds, and their sum.
#[derive(Debug)]
pub struct Histogram {
    /// Ascending.
    bounds: &'static [f64],
    /// Not cumulative; the last one is for what lies above all bounds.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, value: f64) {
        self.counts[self.bounds.partition_point(|&bound| bound < value)].fetch_add(1, Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure never refuses.
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }
}

impl Kind for Histogram {
    const TYPE: &'static str = "histogram";

    fn zero(name: &Name) -> Self {
        let counts = (0..=name.buckets.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds: name.buckets, counts, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }

    /// The count is that of the buckets as they were read, so that the two always agree; the sum may be an
    /// observation ahead or behind.
    fn write(&self, name: &Name, labels: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (index, count) in self.counts.iter().enumerate() {
            below += count.load(Relaxed);
            // Writing to a string can't fail, here and below.
            let _ = match self.bounds.get(index) {
                Some(bound) => writeln!(out, "{}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}", name.name),
                None => writeln!(out, "{}_bucket{{{labels}{comma}le=\"+Inf\"}} {below}", name.name),
            };
        }
        sample(out, name.name, "_sum", labels, f64::from_bits(self.sum.load(Relaxed)));
        sample(out, name.name, "_count", labels, below);
    }
}

fn sample(out: &mut String, name: &str, suffix: &str, labels: &str, value: impl std::fmt::Display) {
    out.push_str(name);
    out.push_str(suffix);
    if !labels.is_empty() {
        out.push('{');
        out.push_str(labels);
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: Name = Name { name: "h", help: "A help.", labels: &[], buckets: &[0.001, 1.0, 60.0] };

    #[test]
    fn a_histogram_counts_what_lies_at_or_below_each_bound() {
        let histogram = Histogram::zero(&NAME);
        for value in [0.0, 0.001, 0.5, 1.0, 1.000_1, 60.0, 1e9] {
            histogram.observe(value);
        }
        let mut text = String::new();
        histogram.write(&NAME, "", &mut text);
        let sum = 0.0 + 0.001 + 0.5 + 1.0 + 1.000_1 + 60.0 + 1e9;
        let expected = format!(
            "h_bucket{{le=\"0.001\"}} 2\nh_bucket{{le=\"1\"}} 4\nh_bucket{{le=\"60\"}} 6\nh_bucket{{le=\"+Inf\"}} 7\n\
             h_sum {sum}\nh_count 7\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn labels_stand_in_braces_and_a_gauge_may_be_negative() {
        let gauge = Gauge::default();
        gauge.inc();
        gauge.add(-3);
        let mut text = String::new();
        gauge.write(&NAME, "a=\"b\"", &mut text);
        Histogram::zero(&NAME).write(&NAME, "a=\"b\"", &mut text);
        assert!(text.starts_with("h{a=\"b\"} -2\nh_bucket{a=\"b\",le=\"0.001\"} 0\n"), "{text}");
    }
}
