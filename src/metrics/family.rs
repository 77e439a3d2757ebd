//! A metric family whose series live exactly as long as somebody holds a handle to them.
//!
//! Owns the set of series of one name, and their labels. Labels are kept as the text that a scrape shows
//! ([`Labels`]), rendered once and shared by all series of a listener, pool or backend; what tells the series of one
//! family apart beyond that, such as a direction, is a constant of the code. So a pool of thousands of backends costs
//! little memory, and a scrape little time.
//!
//! Invariants: two label sets never share a series; a series is exposed from its first handle to the drop of its last
//! one, and handles to the same labels share one value. The lock is never held while text is rendered.

use super::names::Name;
use super::value::Kind;
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The labels that the series of one listener, pool or backend have in common, as `pool="web",backend="10.0.0.1:80"`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Arc<str>);

impl Labels {
    /// Each name with its value.
    #[must_use]
    pub fn new(labels: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (name, value) in labels {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a string can't fail.
            let _ = write!(text, "{comma}{name}=\"");
            for c in value.chars() {
                match c {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    c => text.push(c),
                }
            }
            text.push('"');
        }
        Self(text.into())
    }

    /// These and one more, whose value is a constant of the code: plain letters and digits.
    #[must_use]
    pub fn and(&self, name: &'static str, value: &'static str) -> Self {
        Self(format!("{},{name}=\"{value}\"", self.0).into())
    }

    /// Of what exists once in the process.
    #[must_use]
    pub fn none() -> Self {
        Self::new(&[])
    }
}

/// All labels of a series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    shared: Labels,
    /// The value of the family's last label, if that isn't among the shared ones: plain letters and digits.
    last: Option<&'static str>,
}

/// All series of one name. Cloning it clones a handle to the same family.
pub struct Family<M: Kind>(Arc<Inner<M>>);

struct Inner<M: Kind> {
    name: &'static Name,
    series: Mutex<BTreeSet<Entry<M>>>,
}

/// One series. All but the value changes only under the family's lock.
struct Cell<M: Kind> {
    value: M,
    key: Key,
    handles: AtomicUsize,
    family: Family<M>,
}

/// A series in its family's set, ordered by its labels.
struct Entry<M: Kind>(Arc<Cell<M>>);

impl<M: Kind> Family<M> {
    #[must_use]
    pub fn new(name: &'static Name) -> Self {
        Self(Arc::new(Inner { name, series: Mutex::default() }))
    }

    /// A handle to the series with these labels, which are all that the family has.
    #[must_use]
    pub fn series(&self, labels: &Labels) -> Series<M> {
        self.at(Key { shared: labels.clone(), last: None })
    }

    /// A handle to the series with these labels and this value of the family's last label.
    #[must_use]
    pub fn with(&self, labels: &Labels, last: &'static str) -> Series<M> {
        self.at(Key { shared: labels.clone(), last: Some(last) })
    }

    fn at(&self, key: Key) -> Series<M> {
        let mut series = self.0.lock();
        let cell = if let Some(Entry(cell)) = series.get(&key) {
            Arc::clone(cell)
        } else {
            let (value, handles) = (M::zero(self.0.name), AtomicUsize::new(0));
            let cell = Arc::new(Cell { value, key, handles, family: self.clone() });
            series.insert(Entry(Arc::clone(&cell)));
            cell
        };
        cell.handles.fetch_add(1, Relaxed);
        Series(cell)
    }
}

/// A family of any kind, as a scrape sees it.
pub trait Exposed: Send + Sync {
    fn name(&self) -> &'static str;

    /// Appends the family's text; nothing if it has no series.
    fn write(&self, out: &mut String);
}

impl<M: Kind> Exposed for Family<M> {
    fn name(&self) -> &'static str {
        self.0.name.name
    }

    fn write(&self, out: &mut String) {
        let series: Vec<Arc<Cell<M>>> = self.0.lock().iter().map(|Entry(cell)| Arc::clone(cell)).collect();
        if series.is_empty() {
            return;
        }
        let name = self.0.name;
        head(out, name, M::TYPE);
        let mut labels = String::new();
        for cell in series {
            let Key { shared, last } = &cell.key;
            let (Some(last), Some(label)) = (last, name.labels.last()) else {
                cell.value.write(name, &shared.0, out);
                continue;
            };
            labels.clear();
            let comma = if shared.0.is_empty() { "" } else { "," };
            let _ = write!(labels, "{}{comma}{label}=\"{last}\"", shared.0);
            cell.value.write(name, &labels, out);
        }
    }
}

/// Appends the two lines that begin a family.
pub fn head(out: &mut String, Name { name, help, .. }: &Name, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

impl<M: Kind> Clone for Family<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Kind> Inner<M> {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<Entry<M>>> {
        // Nothing under the lock can leave the set half changed.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Kind> Borrow<Key> for Entry<M> {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl<M: Kind> PartialEq for Entry<M> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl<M: Kind> Eq for Entry<M> {}

impl<M: Kind> PartialOrd for Entry<M> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<M: Kind> Ord for Entry<M> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

/// A handle to one series, which it keeps exposed. Use it like the value itself: no lock and no look-up.
pub struct Series<M: Kind>(Arc<Cell<M>>);

impl<M: Kind> Deref for Series<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.0.value
    }
}

impl<M: Kind> Clone for Series<M> {
    fn clone(&self) -> Self {
        let _lock = self.0.family.0.lock();
        self.0.handles.fetch_add(1, Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl<M: Kind> Drop for Series<M> {
    fn drop(&mut self) {
        let mut series = self.0.family.0.lock();
        if self.0.handles.fetch_sub(1, Relaxed) == 1 {
            series.remove(&self.0.key);
        }
    }
}

impl<M: Kind + std::fmt::Debug> std::fmt::Debug for Series<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.value.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::{BACKEND_BYTES, BACKEND_CONNECTIONS};
    use crate::metrics::value::Counter;

    static NAME: Name = BACKEND_CONNECTIONS;

    fn labels(pool: &str, backend: &str) -> Labels {
        Labels::new(&[("pool", pool), ("backend", backend)])
    }

    /// The sample lines, without the name.
    fn exposed(family: &Family<Counter>) -> Vec<String> {
        let mut text = String::new();
        family.write(&mut text);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.trim_start_matches(family.name()).to_owned()).collect()
    }

    #[test]
    fn an_old_handle_does_not_take_the_new_ones_series_with_it() {
        let family = Family::<Counter>::new(&NAME);
        let old = family.series(&labels("web", "a"));
        old.inc();
        let new = family.series(&labels("web", "a"));
        new.inc();
        let line = r#"{pool="web",backend="a"} 2"#;
        assert_eq!(exposed(&family), [line]);
        drop(old);
        assert_eq!(exposed(&family), [line]);
        let copy = new.clone();
        drop(new);
        assert_eq!(exposed(&family), [line]);
        drop(copy);
        assert_eq!(exposed(&family), [""; 0]);
    }

    #[test]
    fn labels_that_join_to_the_same_text_are_two_series() {
        let family = Family::<Counter>::new(&NAME);
        let a = family.series(&labels("web", "110.0.0.1:80"));
        let b = family.series(&labels("web1", "10.0.0.1:80"));
        a.inc();
        assert_eq!(
            exposed(&family),
            [r#"{pool="web",backend="110.0.0.1:80"} 1"#, r#"{pool="web1",backend="10.0.0.1:80"} 0"#]
        );
        drop(b);
        assert_eq!(exposed(&family).len(), 1);
        let sly = family.series(&labels("web\",backend=\"x", "y"));
        let plain = family.series(&labels("web", "x\",backend=\"y"));
        sly.inc();
        assert_eq!(plain.get(), 0, "what is in a value doesn't end it");
    }

    #[test]
    fn the_last_label_may_be_a_constant() {
        let family = Family::<Counter>::new(&BACKEND_BYTES);
        let labels = labels("web", "a\\\"\n");
        let (up, down) = (family.with(&labels, "to_backend"), family.with(&labels, "to_client"));
        up.inc_by(7);
        down.inc_by(8);
        let text = |direction, value| format!(r#"{{pool="web",backend="a\\\"\n",direction="{direction}"}} {value}"#);
        assert_eq!(exposed(&family), [text("to_backend", 7), text("to_client", 8)]);
    }

    #[test]
    fn handles_may_come_and_go_on_many_threads() {
        let family = Family::<Counter>::new(&NAME);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..1_000 {
                        let series = family.series(&labels("web", ["a", "b"][number % 2]));
                        series.inc();
                        drop(series.clone());
                    }
                });
            }
        });
        assert_eq!(exposed(&family), [""; 0]);
    }
}
