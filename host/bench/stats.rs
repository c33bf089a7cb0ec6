//! Order statistics of a series of timings.

use serde::Serialize;

/// Median and the tenth and ninetieth percentiles, nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// 10 % of the values are at most this.
    pub p10: f64,
    /// The middle value (of an even number the lower one).
    pub median: f64,
    /// 90 % of the values are at most this.
    pub p90: f64,
}

impl Percentiles {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        Self { p10: rank(10), median: rank(50), p90: rank(90) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let values: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        assert_eq!(Percentiles::of(&values), Percentiles { p10: 1.0, median: 5.0, p90: 9.0 });
        assert_eq!(Percentiles::of(&[7.0]), Percentiles { p10: 7.0, median: 7.0, p90: 7.0 });
    }
}
