//! Confidence intervals from the scatter between chunks.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Resamples of one interval.
const RESAMPLES: usize = 1000;

/// The 95 % interval of a statistic of chunks, by the percentile bootstrap: chunks are drawn with replacement, and
/// `statistic` gets their numbers. Of one chunk there is no scatter, and so no interval. The same seed gives the same.
pub fn interval(n_chunks: usize, seed: u64, statistic: impl Fn(&[usize]) -> f64) -> Option<(f64, f64)> {
    if n_chunks < 2 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; n_chunks];
    let mut values = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        for chunk in &mut drawn {
            // The bias of the remainder is n / 2⁶⁴.
            *chunk = (rng.next_u64() % n_chunks as u64) as usize;
        }
        values.push(statistic(&drawn));
    }
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[(part * (RESAMPLES - 1) as f64).round() as usize];
    Some((at(0.025), at(0.975)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_about_two_standard_errors_wide() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 10)).collect();
        let mean = |drawn: &[usize]| drawn.iter().map(|&i| values[i]).sum::<f64>() / drawn.len() as f64;
        let (low, high) = interval(values.len(), 1, mean).unwrap();
        // The mean is 4.5, its standard error 2.87 / 10.
        assert!(
            (4.5 - 1.96 * 0.287 - low).abs() < 0.1 && (4.5 + 1.96 * 0.287 - high).abs() < 0.1,
            "{low} {high}"
        );
        assert_eq!(interval(values.len(), 1, mean), Some((low, high)));
        assert_ne!(interval(values.len(), 2, mean), Some((low, high)));
    }

    #[test]
    fn no_scatter_no_width() {
        assert_eq!(interval(5, 0, |_| 3.0), Some((3.0, 3.0)));
        assert_eq!(interval(1, 0, |_| 3.0), None);
    }
}
