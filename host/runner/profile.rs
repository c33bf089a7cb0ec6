//! Where the time of a decode step goes, as a back end with kernels measures it.

use serde::Serialize;

/// What a kernel of a decode step is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelClass {
    /// The products of the blocks.
    Gemm,
    /// Attention over the cache.
    Attention,
    /// Embedding, norms, RoPE, the cache's write.
    Pointwise,
    /// All-reduces, with the residual and norm fused into them, and the gathering of the logits. A rank that is
    /// alone has none: its residual and norm are [`KernelClass::Pointwise`].
    Sync,
    /// The output head's product and the choice of the next token.
    Head,
}

impl KernelClass {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Gemm, Self::Attention, Self::Pointwise, Self::Sync, Self::Head];

    /// In tables and columns.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gemm => "gemm",
            Self::Attention => "attention",
            Self::Pointwise => "pointwise",
            Self::Sync => "sync",
            Self::Head => "head",
        }
    }
}

/// Tokens behind a sequence's end that a profile's replays may write.
pub const STEPS_AHEAD: usize = 9;

/// Times of a decode step's graph and of graphs with fewer of its kernels, in µs: one value a series of replays.
#[derive(Debug, Clone, PartialEq)]
pub struct StepProfile {
    /// All kernels.
    pub whole_us: Vec<f64>,
    /// In the order of [`KernelClass::ALL`].
    pub classes: Vec<ClassProfile>,
}

/// One class of a [`StepProfile`].
#[derive(Debug, Clone, PartialEq)]
pub struct ClassProfile {
    /// Which.
    pub class: KernelClass,
    /// Kernels and copies of the step.
    pub kernels: usize,
    /// The step with this class alone.
    pub alone_us: Vec<f64>,
    /// The step without this class.
    pub without_us: Vec<f64>,
}

impl StepProfile {
    /// Of all ranks' profiles of the same step: each series as long as on the rank that was slowest in it. None of no
    /// profile.
    pub(crate) fn slowest(by_rank: Vec<Self>) -> Option<Self> {
        let longer = |all: &mut Vec<f64>, own: Vec<f64>| {
            all.iter_mut().zip(own).for_each(|(longest, us)| *longest = longest.max(us));
        };
        by_rank.into_iter().reduce(|mut all, own| {
            longer(&mut all.whole_us, own.whole_us);
            for (all, own) in all.classes.iter_mut().zip(own.classes) {
                longer(&mut all.alone_us, own.alone_us);
                longer(&mut all.without_us, own.without_us);
            }
            all
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_rank_counts_in_every_series() {
        let profile = |whole: [f64; 2], alone: [f64; 2]| StepProfile {
            whole_us: whole.to_vec(),
            classes: vec![ClassProfile {
                class: KernelClass::Sync,
                kernels: 3,
                alone_us: alone.to_vec(),
                without_us: whole.to_vec(),
            }],
        };
        let slowest =
            StepProfile::slowest(vec![profile([5.0, 7.0], [1.0, 4.0]), profile([6.0, 2.0], [3.0, 2.0])]);
        let expected = profile([6.0, 7.0], [3.0, 4.0]);
        assert_eq!(slowest, Some(expected));
        assert_eq!(StepProfile::slowest(Vec::new()), None);
    }
}
