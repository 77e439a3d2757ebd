//! The ratios of the most telling figures as a picture: grouped bars, with the quartiles as whiskers.
//!
//! The axis is logarithmic and the bars begin at 1, which is the base: twice as much and half as much are equally long.
//! The picture brings its own white ground, so it can be read on a dark page as well. A figure that a peer lacks is
//! told in words, never left out.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::machine_line;
use super::view::View;
use crate::bench::Record;
use crate::cli::Options;
use crate::figure::{Figure, Per};
use crate::stats::Spread;

/// Mode, figure, label.
const GROUPS: &[(&str, Figure, &str)] = &[
    ("conn", Figure::Cpu(Per::Connection), "CPU a short connection"),
    ("rr", Figure::Cpu(Per::Request), "CPU a request"),
    ("bulk", Figure::Cpu(Per::Gigabyte), "CPU a gigabyte"),
    ("idle", Figure::IdleBytes, "memory an idle connection"),
    ("mixed", Figure::P99, "p99 of requests beside bulk"),
    ("mixed", Figure::Requests, "requests/s beside bulk"),
];
/// Distinct for colour-blind eyes too; one for each peer, in the order of the peers, then from the start again.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
];
const INK: RGBColor = RGBColor(31, 35, 40);
const FAINT: RGBColor = RGBColor(101, 109, 118);
const RULE: RGBColor = RGBColor(216, 222, 228);

// Pixels. The backend draws a font of size 5 with letters of 4.
const WIDTH: i32 = 880;
const LEFT: i32 = 240;
const RIGHT: i32 = WIDTH - 60;
const TOP: i32 = 70;
const BAR: i32 = 15;
const BAR_STEP: i32 = 19;
const GROUP_GAP: i32 = 16;
const BELOW: i32 = 80;

struct Group {
    label: &'static str,
    more_is_better: bool,
    bars: Vec<Bar>,
}

struct Bar {
    ratio: Option<Spread>,
    /// Some of its windows were lost or had trouble.
    marked: bool,
}

/// Draws the first section of the record.
pub fn write(record: &Record, options: &Options, file: &Path) -> Result<()> {
    let svg = draw(record, options)?;
    fs::write(file, svg).with_context(|| format!("writing {}", file.display()))
}

fn draw(record: &Record, options: &Options) -> Result<String> {
    let view = View::new(record, 0, &options.base);
    let peers: Vec<usize> = (0..record.peers.len())
        .filter(|&i| record.peers[i].is_proxy() && record.peers[i].name != options.base)
        .collect();
    let groups = groups(&view, &peers);
    let group_height = peers.len() as i32 * BAR_STEP + GROUP_GAP;
    let bottom = TOP + groups.len() as i32 * group_height;
    let axis = Axis::around(groups.iter().flat_map(|group| &group.bars).filter_map(|bar| bar.ratio));

    let mut svg = String::new();
    let size = (WIDTH as u32, (bottom + BELOW) as u32);
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let paper = Paper { area: &area };
    paper.rectangle((0, 0), (WIDTH, bottom + BELOW), WHITE)?;
    let base = &options.base;
    paper.text(&format!("In relation to {base}, whose value is 1"), (LEFT, 18), 20, INK, HPos::Left)?;
    let mut x = LEFT;
    for (place, &peer) in peers.iter().enumerate() {
        let name = &record.peers[peer].name;
        paper.rectangle((x, 40), (x + 12, 52), colour(place))?;
        paper.text(name, (x + 17, 46), 15, INK, HPos::Left)?;
        // About 8 pixels a letter of this size.
        x += 45 + 8 * name.chars().count() as i32;
    }
    for power in axis.low..=axis.high {
        let x = axis.place(f64::from(power).exp2());
        paper.line((x, TOP - 8), (x, bottom - GROUP_GAP / 2), if power == 0 { INK } else { RULE })?;
        paper.text(&tick(power), (x, bottom + 4), 14, FAINT, HPos::Center)?;
    }
    for (row, group) in groups.iter().enumerate() {
        let top = TOP + row as i32 * group_height;
        let middle = top + (group_height - GROUP_GAP) / 2;
        let better = if group.more_is_better { "more is better" } else { "less is better" };
        paper.text(group.label, (LEFT - 14, middle - 8), 16, INK, HPos::Right)?;
        paper.text(better, (LEFT - 14, middle + 9), 14, FAINT, HPos::Right)?;
        for (place, bar) in group.bars.iter().enumerate() {
            paper.bar(bar, top + place as i32 * BAR_STEP, colour(place), axis)?;
        }
    }
    for (line, words) in footer(&machine_line(record, options)).iter().enumerate() {
        paper.text(words, (14, bottom + 30 + 17 * line as i32), 13, FAINT, HPos::Left)?;
    }
    area.present().map_err(failed)?;
    drop(area);
    Ok(svg)
}

/// The line about the machine in three: the machine, the versions, and the rest without its word about ratios.
fn footer(machine: &str) -> Vec<String> {
    let clauses: Vec<&str> = machine.trim().split("; ").filter(|clause| !clause.starts_with("ratios")).collect();
    let (first, rest) = clauses.split_at(clauses.len().min(2));
    let told = [rest.join("; "), "medians; whiskers: quartiles; !: trouble".to_owned()].join("; ");
    first.iter().map(|clause| (*clause).to_owned()).chain([told]).collect()
}

/// 1/8, 1/4, ... 1, 2, 4.
fn tick(power: i32) -> String {
    let (sign, size) = if power < 0 { ("1/", power.unsigned_abs()) } else { ("", power.unsigned_abs()) };
    format!("{sign}{}", 1_u32 << size)
}

/// Modes that were not measured have no group.
fn groups(view: &View<'_>, peers: &[usize]) -> Vec<Group> {
    let groups = GROUPS.iter().filter_map(|&(name, figure, label)| {
        let mode = view.mode(name)?;
        let bar = |&peer| Bar {
            ratio: view.reading(peer, mode, figure).ratio.filter(|ratio| ratio.median > 0.0),
            marked: view.marks(peer, mode).any(),
        };
        Some(Group { label, more_is_better: figure.is_rate(), bars: peers.iter().map(bar).collect() })
    });
    groups.collect()
}

fn colour(place: usize) -> RGBColor {
    COLOURS[place % COLOURS.len()]
}

/// From one power of two to another, 1 between them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    low: i32,
    high: i32,
}

impl Axis {
    /// Far enough for every median and quartile, but not beyond a factor of 1,000.
    fn around(ratios: impl Iterator<Item = Spread>) -> Self {
        let mut axis = Self { low: -1, high: 1 };
        for ratio in ratios {
            for value in [ratio.lower_quartile, ratio.median, ratio.upper_quartile].into_iter().filter(|v| *v > 0.0) {
                axis.low = axis.low.min(value.log2().floor().max(-10.0) as i32);
                axis.high = axis.high.max(value.log2().ceil().min(10.0) as i32);
            }
        }
        axis
    }

    /// Horizontally, in pixels. What lies outside is at the edge.
    fn place(self, ratio: f64) -> i32 {
        let (low, high) = (f64::from(self.low), f64::from(self.high));
        let part = (ratio.log2().clamp(low, high) - low) / (high - low);
        LEFT + (part * f64::from(RIGHT - LEFT)).round() as i32
    }
}

struct Paper<'a, 'b> {
    area: &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
}

impl Paper<'_, '_> {
    /// The bar from 1 to the median, its whisker, and its value in figures.
    fn bar(&self, bar: &Bar, top: i32, colour: RGBColor, axis: Axis) -> Result<()> {
        let one = axis.place(1.0);
        let middle = top + BAR / 2;
        let mark = if bar.marked { " !" } else { "" };
        let Some(ratio) = bar.ratio else {
            return self.text(&format!("not measured{mark}"), (one + 5, middle), 14, FAINT, HPos::Left);
        };
        let [low, end, high] =
            [ratio.lower_quartile, ratio.median, ratio.upper_quartile].map(|value| axis.place(value));
        self.rectangle((one.min(end), top), (one.max(end), top + BAR), colour)?;
        self.line((low, middle), (high, middle), INK)?;
        for x in [low, high] {
            self.line((x, middle - 3), (x, middle + 3), INK)?;
        }
        let value = format!("{:.2}{mark}", ratio.median);
        if end < one {
            self.text(&value, (low.min(end) - 5, middle), 14, INK, HPos::Right)
        } else {
            self.text(&value, (high.max(end) + 5, middle), 14, INK, HPos::Left)
        }
    }

    fn rectangle(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
        self.area.draw(&Rectangle::new([from, to], colour.filled())).map_err(failed)
    }

    fn line(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
        self.area.draw(&PathElement::new([from, to], colour)).map_err(failed)
    }

    fn text(&self, text: &str, at: (i32, i32), size: i32, colour: RGBColor, anchor: HPos) -> Result<()> {
        let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(anchor, VPos::Center));
        self.area.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing the plot: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::record;

    #[test]
    fn an_axis_holds_one_and_every_ratio() {
        let spread = |low, median, high| Spread { lower_quartile: low, median, upper_quartile: high, rounds: 3 };
        assert_eq!(Axis::around([].into_iter()), Axis { low: -1, high: 1 });
        let axis = Axis::around([spread(0.11, 0.13, 0.2), spread(2.0, 4.1, 5.0)].into_iter());
        assert_eq!(axis, Axis { low: -4, high: 3 });
        assert_eq!((axis.place(1.0 / 16.0), axis.place(8.0)), (LEFT, RIGHT));
        assert_eq!(axis.place(1000.0), RIGHT);
        assert_eq!(Axis::around([spread(-1.0, 1e300, 1e300)].into_iter()), Axis { low: -1, high: 10 });
    }

    #[test]
    fn ticks_below_one_are_fractions_and_the_footer_has_three_lines() {
        assert_eq!([-3, 0, 2].map(tick), ["1/8", "1", "4"]);
        assert_eq!(footer("m; v; w; r; ratios to x\n"), ["m", "v", "w; r; medians; whiskers: quartiles; !: trouble"]);
    }

    #[test]
    fn a_picture_names_its_peers_and_shows_ratios_and_marks() {
        let (record, options) = record();
        let svg = draw(&record, &options).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("requests/s beside bulk") && svg.contains("0.50"), "{svg}");
        // No CPU was measured: that is told, and the lost window is marked.
        assert!(svg.contains("not measured !"), "{svg}");
        assert!(!svg.contains("gigabyte"), "bulk was not in the plan: {svg}");
    }
}
