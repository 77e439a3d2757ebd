//! One section of a record, as values and ratios over its rounds. Pure.
//!
//! Invariant: a window that was lost has no value, and its round has no ratio; a window with trouble keeps its value
//! and is marked wherever the value is shown.

use std::fmt;

use crate::bench::{Record, Window};
use crate::figure::Figure;
use crate::load::Sample;
use crate::mode::Mode;
use crate::stats::{self, Spread};

/// Value and ratio to the base, each over the rounds.
#[derive(Clone, Copy)]
pub struct Reading {
    pub value: Option<Spread>,
    pub ratio: Option<Spread>,
}

#[derive(Clone, Copy)]
pub struct View<'a> {
    record: &'a Record,
    section: usize,
    /// The peer that ratios refer to; `None` if it is not there.
    base: Option<usize>,
}

/// Windows of a peer in a mode that were lost or had trouble.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    pub lost: usize,
    pub troubled: usize,
    pub windows: usize,
}

impl Marks {
    pub fn any(self) -> bool {
        self.lost + self.troubled > 0
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.lost, self.troubled) {
            (0, 0) => Ok(()),
            (0, troubled) => write!(f, "! in {troubled} of {}", self.windows),
            (lost, 0) => write!(f, "! {lost} of {} lost", self.windows),
            (lost, troubled) => write!(f, "! {lost} of {} lost, in {troubled}", self.windows),
        }
    }
}

impl<'a> View<'a> {
    pub fn new(record: &'a Record, section: usize, base: &str) -> Self {
        Self { record, section, base: record.peers.iter().position(|peer| peer.name == base) }
    }

    pub fn modes(&self) -> &'a [&'static Mode] {
        &self.record.plan.sections[self.section].modes
    }

    pub fn mode(&self, name: &str) -> Option<&'static Mode> {
        self.modes().iter().copied().find(|mode| mode.name == name)
    }

    fn windows(self, peer: usize, mode: &Mode) -> impl Iterator<Item = &'a Window> + use<'a> {
        let (section, name) = (self.section, mode.name);
        let all = self.record.windows.iter();
        all.filter(move |window| window.section == section && window.peer == peer && window.mode.name == name)
    }

    /// The windows that are not lost.
    pub fn samples(self, peer: usize, mode: &Mode) -> impl Iterator<Item = &'a Sample> + use<'a> {
        self.windows(peer, mode).filter_map(|window| window.result.as_ref().ok())
    }

    pub fn marks(&self, peer: usize, mode: &Mode) -> Marks {
        let mut marks = Marks::default();
        for window in self.windows(peer, mode) {
            marks.windows += 1;
            match &window.result {
                Err(_) => marks.lost += 1,
                Ok(sample) if sample.trouble.any() => marks.troubled += 1,
                Ok(_) => {}
            }
        }
        marks
    }

    /// A figure of a peer over the rounds.
    pub fn reading(&self, peer: usize, mode: &Mode, figure: Figure) -> Reading {
        let rounds = self.record.windows.iter().map(|window| window.round as usize + 1).max().unwrap_or(0);
        let by_round = |peer: usize| -> Vec<Option<f64>> {
            let mut values = vec![None; rounds];
            for window in self.windows(peer, mode) {
                values[window.round as usize] = window.result.as_ref().ok().and_then(|sample| figure.of(sample));
            }
            values
        };
        let values = by_round(peer);
        let base = self.base.filter(|_| !figure.is_plain()).map(by_round);
        Reading {
            value: Spread::of(values.iter().flatten().copied()),
            ratio: base.and_then(|base| Spread::of(stats::ratios(&values, &base))),
        }
    }

    /// The median of a figure here, divided by the median in another section of the same run.
    pub fn scaling(&self, to: &View<'_>, peer: usize, mode: &Mode, figure: Figure) -> Option<f64> {
        let median = |view: &View<'_>| view.reading(peer, mode, figure).value.map(|value| value.median);
        let (here, there) = (median(self)?, median(to)?);
        (there > 0.0).then(|| here / there)
    }
}
