//! How close logits in bf16 have to be to those of the reference.

use fewsync::generate::argmax;

/// Largest difference to the reference's logits, relative to the largest logit.
pub const TOLERANCE: f32 = 2e-2;
/// Likeliest tokens have to agree where the reference's two best logits are further apart.
pub const MARGIN: f32 = 0.25;

/// What a comparison saw.
#[derive(Default)]
pub struct Agreement {
    /// Largest difference relative to the largest logit.
    pub error: f32,
    /// Likeliest tokens whose margin allowed a comparison.
    pub compared: usize,
}

impl Agreement {
    /// Compares rows of logits.
    #[track_caller]
    pub fn add(&mut self, seen: &[f32], expected: &[f32], vocab: usize) {
        assert_eq!(seen.len(), expected.len());
        let scale = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let difference = seen.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(difference.is_finite(), "logits are not finite");
        self.error = self.error.max(difference / scale);
        for (seen, expected) in seen.chunks(vocab).zip(expected.chunks(vocab)) {
            let best = argmax(expected);
            let second = expected.iter().enumerate().filter(|(i, _)| *i != best as usize);
            let second = second.fold(f32::NEG_INFINITY, |max, (_, x)| max.max(*x));
            if expected[best as usize] - second > MARGIN {
                assert_eq!(argmax(seen), best, "the margin is {}", expected[best as usize] - second);
                self.compared += 1;
            }
        }
    }

    #[track_caller]
    pub fn judge(&self, what: &str) {
        println!(
            "{what}: max |Δlogit| / max |logit| {:.2e}, {} likeliest tokens compared",
            self.error, self.compared
        );
        assert!(self.error <= TOLERANCE, "{what}");
    }
}
