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
