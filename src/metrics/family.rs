//! A metric family whose series live exactly as long as somebody holds a handle to them.
//!
//! The library's own vectors won't do for labels that come and go with the config. They key their children by a
//! hash over the joined label values, so that pool `web` with backend `110.0.0.1:80` and pool `web1` with backend
//! `10.0.0.1:80` are one series to them; and a series removed by an old handle is gone for a new one too.
//!
//! Invariants: two label sets never share a series; a series is exposed from its first handle to the drop of its
//! last one, and handles to the same labels share one value. The lock is never held while text is rendered.

use super::names::Name;
use prometheus::core::{Collector, Desc, Metric};
use prometheus::proto::{LabelPair, MetricFamily, MetricType};
use prometheus::{Error, Histogram, HistogramOpts, IntCounter, IntGauge};
use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A value that a family can hold.
pub trait Kind: Metric + 'static {
    const TYPE: MetricType;

    /// A zero. Its own name and labels are never seen: the family writes them.
    fn zero(name: &Name) -> Result<Self, Error>;
}

impl Kind for IntCounter {
    const TYPE: MetricType = MetricType::COUNTER;

    fn zero(_: &Name) -> Result<Self, Error> {
        Self::new("value", "value")
    }
}

impl Kind for IntGauge {
    const TYPE: MetricType = MetricType::GAUGE;

    fn zero(_: &Name) -> Result<Self, Error> {
        Self::new("value", "value")
    }
}

impl Kind for Histogram {
    const TYPE: MetricType = MetricType::HISTOGRAM;

    fn zero(name: &Name) -> Result<Self, Error> {
        Self::with_opts(HistogramOpts::new("value", "value").buckets(name.buckets.to_vec()))
    }
}

type Labels = Arc<[Box<str>]>;

/// All series of one name. Cloning it clones a handle to the same family.
pub struct Family<M: Kind>(Arc<Inner<M>>);

struct Inner<M> {
    name: &'static Name,
    desc: Desc,
    series: Mutex<BTreeMap<Labels, Shared<M>>>,
}

struct Shared<M> {
    value: M,
    handles: usize,
}

impl<M: Kind> Family<M> {
    /// Fails if the name, a label or the buckets aren't valid.
    pub fn new(name: &'static Name) -> Result<Self, Error> {
        let labels = name.labels.iter().map(ToString::to_string).collect();
        let desc = Desc::new(name.name.into(), name.help.into(), labels, HashMap::new())?;
        M::zero(name)?;
        Ok(Self(Arc::new(Inner { name, desc, series: Mutex::default() })))
    }

    /// A handle to the series with these label values, in the order of [`Name::labels`].
    #[must_use]
    pub fn series(&self, labels: &[&str]) -> Series<M> {
        debug_assert_eq!(labels.len(), self.0.name.labels.len(), "{}", self.0.name.name);
        let labels: Labels = labels.iter().map(|&value| value.into()).collect();
        let mut series = self.0.lock();
        let shared = series.entry(Arc::clone(&labels)).or_insert_with(|| Shared {
            value: M::zero(self.0.name).expect("Family::new has built one from the same name"),
            handles: 0,
        });
        shared.handles += 1;
        let value = shared.value.clone();
        drop(series);
        Series { value, labels, family: self.clone() }
    }
}

impl<M: Kind> Clone for Family<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Inner<M> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Labels, Shared<M>>> {
        // Nothing under the lock can leave the map half changed.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Kind> Collector for Family<M> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let snapshot: Vec<(Labels, M)> =
            self.0.lock().iter().map(|(labels, shared)| (Arc::clone(labels), shared.value.clone())).collect();
        let name = self.0.name;
        let metrics = snapshot.iter().map(|(labels, value)| {
            let mut metric = value.metric();
            metric.set_label(name.labels.iter().zip(labels.iter()).map(|(name, value)| pair(name, value)).collect());
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(name.name.into());
        family.set_help(name.help.into());
        family.set_field_type(M::TYPE);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

fn pair(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

/// A handle to one series, which it keeps exposed. Use it like the value itself: no lock and no look-up.
pub struct Series<M: Kind> {
    value: M,
    labels: Labels,
    family: Family<M>,
}

impl<M: Kind> Deref for Series<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.value
    }
}

impl<M: Kind> Drop for Series<M> {
    fn drop(&mut self) {
        let mut series = self.family.0.lock();
        if let Some(shared) = series.get_mut(&self.labels) {
            shared.handles -= 1;
            if shared.handles == 0 {
                series.remove(&self.labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::names::BACKEND_CONNECTIONS;

    static NAME: Name = BACKEND_CONNECTIONS;

    /// `pool/backend=value` of each exposed series.
    fn exposed(family: &Family<IntCounter>) -> Vec<String> {
        let families = family.collect();
        let show = |metric: &prometheus::proto::Metric| {
            let labels: Vec<_> = metric.get_label().iter().map(|pair| pair.value().to_owned()).collect();
            format!("{}={}", labels.join("/"), metric.get_counter().get_value())
        };
        families[0].get_metric().iter().map(show).collect()
    }

    #[test]
    fn an_old_handle_does_not_take_the_new_ones_series_with_it() {
        let family = Family::<IntCounter>::new(&NAME).unwrap();
        let old = family.series(&["web", "a"]);
        old.inc();
        let new = family.series(&["web", "a"]);
        new.inc();
        assert_eq!(exposed(&family), ["web/a=2"]);
        drop(old);
        assert_eq!(exposed(&family), ["web/a=2"]);
        drop(new);
        assert_eq!(exposed(&family), [""; 0]);
    }

    #[test]
    fn labels_that_join_to_the_same_text_are_two_series() {
        let family = Family::<IntCounter>::new(&NAME).unwrap();
        let a = family.series(&["web", "110.0.0.1:80"]);
        let b = family.series(&["web1", "10.0.0.1:80"]);
        a.inc();
        assert_eq!(exposed(&family), ["web/110.0.0.1:80=1", "web1/10.0.0.1:80=0"]);
        drop(b);
        assert_eq!(exposed(&family), ["web/110.0.0.1:80=1"]);
    }
}
