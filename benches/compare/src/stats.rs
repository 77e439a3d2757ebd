//! Medians and quartiles over the rounds of a run. Pure.
//!
//! A ratio is taken within each round, between windows that lie close together in time, and the median is taken over
//! those ratios. So a machine that is slower in one round than in the other bends values but hardly ratios.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub lower_quartile: f64,
    pub upper_quartile: f64,
    pub rounds: usize,
}

impl Spread {
    /// `None` of nothing. What is not a number is left out.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        if values.is_empty() {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&values, 0.5),
            lower_quartile: quantile(&values, 0.25),
            upper_quartile: quantile(&values, 0.75),
            rounds: values.len(),
        })
    }
}

/// Of sorted values, at least one; between two of them a straight line.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let place = at * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The ratios of the rounds that have both values, and more than nothing to compare with.
pub fn ratios<'a>(values: &'a [Option<f64>], base: &'a [Option<f64>]) -> impl Iterator<Item = f64> + 'a {
    values.iter().zip(base).filter_map(|(value, base)| match (value, base) {
        (Some(value), Some(base)) if *base > 0.0 => Some(value / base),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_values() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
        let one = Spread::of([3.0]).unwrap();
        assert_eq!((one.lower_quartile, one.median, one.upper_quartile), (3.0, 3.0, 3.0));
        let five = Spread::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((five.lower_quartile, five.median, five.upper_quartile, five.rounds), (2.0, 3.0, 4.0, 5));
        let two = Spread::of([1.0, 3.0]).unwrap();
        assert_eq!((two.lower_quartile, two.median, two.upper_quartile), (1.5, 2.0, 2.5));
    }

    #[test]
    fn a_ratio_needs_both_values_of_its_round() {
        let values = [Some(2.0), None, Some(3.0), Some(1.0)];
        let base = [Some(4.0), Some(1.0), None, Some(0.0)];
        assert_eq!(ratios(&values, &base).collect::<Vec<_>>(), [0.5]);
    }
}
