//! From logits to a token.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Same seed, same text.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// Whether it is always the likeliest token.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// Draws tokens one after the other.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its random sequence.
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    /// What it was made with.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Chooses from one row of logits. Filters apply in the usual order: temperature, top-k, top-p.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        if self.sampling.is_greedy() {
            return argmax(logits);
        }
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        if top_k > 0 && top_k < ids.len() {
            ids.select_nth_unstable_by(top_k - 1, by_logit);
            ids.truncate(top_k);
        }
        ids.sort_unstable_by(by_logit);
        let max = logits[ids[0] as usize];
        let weights: Vec<f64> =
            ids.iter().map(|&id| f64::from((logits[id as usize] - max) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let mut n_kept = 0;
        for weight in &weights {
            kept += weight;
            n_kept += 1;
            if kept >= f64::from(top_p) * total {
                break;
            }
        }
        // 53 random bits: uniform in [0, 1).
        let mut draw = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * kept;
        for (id, weight) in ids.iter().zip(&weights[..n_kept]) {
            draw -= weight;
            if draw < 0.0 {
                return *id;
            }
        }
        ids[n_kept - 1]
    }
}

/// The likeliest token; of equal ones the first. NaN is never the likeliest; 0 where there is nothing else.
pub fn argmax(logits: &[f32]) -> u32 {
    // Maxima of independent columns are vector instructions; positions would not be.
    let (rows, rest) = logits.as_chunks::<16>();
    let mut columns = [f32::NEG_INFINITY; 16];
    for row in rows {
        for (best, &logit) in columns.iter_mut().zip(row) {
            *best = if logit > *best { logit } else { *best };
        }
    }
    let best = columns.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == best).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -1.0];

    #[test]
    fn the_first_of_the_likeliest_wins_wherever_it_is() {
        for len in [1, 5, 16, 17, 48, 61] {
            for best in 0..len {
                let mut logits: Vec<f32> = (0..len).map(|i| -((i * 7 % 5) as f32) - 2.0).collect();
                logits[best] = -1.5;
                assert_eq!(argmax(&logits), best as u32, "{len}");
                logits[len - 1] = -1.5;
                assert_eq!(argmax(&logits), best as u32, "{len}");
            }
        }
        assert_eq!(argmax(&[f32::NEG_INFINITY; 20]), 0);
        assert_eq!(argmax(&[f32::NAN; 20]), 0);
        assert_eq!(argmax(&[f32::NAN, 1.0, 3.0, 3.0]), 2);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
    }

    fn shares(sampling: Sampling) -> [f64; 5] {
        let mut sampler = Sampler::new(sampling);
        let mut counts = [0.0; 5];
        for _ in 0..20_000 {
            counts[sampler.sample(&LOGITS) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn softmax(temperature: f64, keep: &[usize]) -> [f64; 5] {
        let weight = |i: usize| (f64::from(LOGITS[i]) / temperature).exp();
        let total: f64 = keep.iter().map(|&i| weight(i)).sum();
        std::array::from_fn(|i| if keep.contains(&i) { weight(i) / total } else { 0.0 })
    }

    fn close(seen: [f64; 5], expected: [f64; 5]) {
        for (s, e) in seen.iter().zip(expected) {
            // Four standard deviations of 20 000 draws are below 0.015.
            assert!((s - e).abs() < 0.015 && (e > 0.0 || *s == 0.0), "{seen:?} {expected:?}");
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(Sampler::new(Sampling::GREEDY).sample(&LOGITS), 1);
    }

    #[test]
    fn frequencies_follow_the_filters() {
        let plain = Sampling { temperature: 0.7, ..Sampling::GREEDY };
        close(shares(plain), softmax(0.7, &[0, 1, 2, 3, 4]));
        close(shares(Sampling { top_k: 3, ..plain }), softmax(0.7, &[1, 3, 2]));
        // The two likeliest hold about 0.8 of the mass: one is not enough for 0.5, two are.
        close(shares(Sampling { top_p: 0.5, ..plain }), softmax(0.7, &[1, 3]));
        close(shares(Sampling { top_k: 1, ..plain }), softmax(0.7, &[1]));
    }

    #[test]
    fn a_seed_fixes_the_sequence() {
        let draws = |seed| {
            let mut s = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::GREEDY });
            (0..64).map(|_| s.sample(&LOGITS)).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }
}
