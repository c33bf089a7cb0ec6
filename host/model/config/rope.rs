//! Rotary frequencies.

use std::f64::consts::TAU;
use std::path::Path;

use super::{Config, RopeScaling};
use crate::model::ModelError;

impl Config {
    /// The `head_dim / 2` angular frequencies, in radians per token: pair `i` of a head turns by
    /// `position * rope_inv_freq()[i]`. Computed in f64 and rounded once; the scaling of Llama 3.1 is
    /// that of `_compute_llama3_parameters` in Hugging Face transformers.
    pub fn rope_inv_freq(&self) -> Vec<f32> {
        let base = f64::from(self.rope_base);
        let n_pairs = self.head_dim / 2;
        (0..n_pairs)
            .map(|pair| {
                let frequency = base.powf(-(pair as f64) / n_pairs as f64);
                (frequency * self.rope_scaling.multiplier(pair, frequency)) as f32
            })
            .collect()
    }

    pub(super) fn validate_rope(&self, path: &Path) -> Result<(), ModelError> {
        let refuse = |what: String, supported: &str| Err(ModelError::unsupported(path, what, supported));
        if !(self.rope_base >= 1.0 && self.rope_base.is_finite()) {
            return refuse(format!("rotary base {}", self.rope_base), "a finite one of at least 1");
        }
        match &self.rope_scaling {
            RopeScaling::None => Ok(()),
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => {
                let ordered =
                    factor >= 1.0 && factor.is_finite() && low > 0.0 && high > low && high.is_finite();
                if ordered && original_context > 0 {
                    return Ok(());
                }
                let what = format!(
                    "llama3 rotary scaling with factor {factor}, low_freq_factor {low}, high_freq_factor {high} \
                     and original context {original_context}"
                );
                refuse(what, "factor >= 1, 0 < low_freq_factor < high_freq_factor, a positive context")
            }
            RopeScaling::Divisors(divisors) => {
                let n_pairs = self.head_dim / 2;
                if divisors.len() != n_pairs {
                    return refuse(
                        format!("{} rotary divisors for head width {}", divisors.len(), self.head_dim),
                        "one per pair",
                    );
                }
                match divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
                    Some(divisor) => refuse(format!("rotary divisor {divisor}"), "finite positive divisors"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl RopeScaling {
    /// What the unscaled `frequency` of a pair is multiplied by.
    fn multiplier(&self, pair: usize, frequency: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Divisors(divisors) => 1.0 / f64::from(divisors[pair]),
            &Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (factor, low, high) =
                    (f64::from(factor), f64::from(low_freq_factor), f64::from(high_freq_factor));
                // Turns over the context of pre-training: many turns are kept, few are stretched.
                let turns = original_context as f64 * frequency / TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                kept + (1.0 - kept) / factor
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    fn close(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() <= 1e-6 * b.abs()
    }

    #[test]
    fn unscaled_frequencies_are_the_powers_of_the_base() {
        let config = shapes::named("smollm2").unwrap();
        let frequencies = config.rope_inv_freq();
        assert_eq!(frequencies.len(), 32);
        assert_eq!(frequencies[0], 1.0);
        // 100000^(-2/64) and 100000^(-62/64), by logarithms.
        assert!(close(frequencies[1], (-(2.0 / 64.0) * 100_000f64.ln()).exp()));
        assert!(close(frequencies[31], (-(62.0 / 64.0) * 100_000f64.ln()).exp()));
    }

    /// The formula as transformers writes it: by wavelength, in three branches.
    fn by_wavelength(frequency: f64, factor: f64, low: f64, high: f64, context: f64) -> f64 {
        let wavelength = TAU / frequency;
        if wavelength < context / high {
            frequency
        } else if wavelength > context / low {
            frequency / factor
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }

    #[test]
    fn llama3_scaling_agrees_with_the_wavelength_formula() {
        for (name, factor) in [("llama3.1-8b", 8.0), ("llama3.2-1b", 32.0)] {
            let config = shapes::named(name).unwrap();
            let mut branches = [0; 3];
            for (pair, &got) in config.rope_inv_freq().iter().enumerate() {
                let plain = (-(2.0 * pair as f64 / config.head_dim as f64) * 500_000f64.ln()).exp();
                let want = by_wavelength(plain, factor, 1.0, 4.0, 8192.0);
                assert!(close(got, want), "{name} pair {pair}: {got} for {want}");
                branches[if want == plain {
                    0
                } else if want == plain / factor {
                    1
                } else {
                    2
                }] += 1;
            }
            assert!(branches.iter().all(|&n| n > 0), "{name}: {branches:?}");
        }
    }

    #[test]
    fn divisors_divide() {
        let mut config = shapes::named("tiny").unwrap();
        let plain = config.rope_inv_freq();
        let divisors: Vec<f32> = (0..16).map(|i| 1.0 + i as f32).collect();
        config.rope_scaling = RopeScaling::Divisors(divisors.clone());
        for ((scaled, plain), divisor) in config.rope_inv_freq().iter().zip(&plain).zip(&divisors) {
            assert!(close(*scaled, f64::from(*plain) / f64::from(*divisor)));
        }
    }
}
