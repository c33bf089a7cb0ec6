//! How far a kernel may be from exact arithmetic on the same inputs, as [`error`](super::error) measures it.

/// Half a unit in the last place of bf16, whose significand has 8 bits: what rounding a result costs at most.
pub const BF16: f64 = 1.0 / 256.0;

/// One rounding to bf16 of a value accumulated in f32. The 4 % are the f32 arithmetic: sums of up to 14,336
/// terms stay within [`F32`] of the row's root mean square, and a value that they move across the midpoint of
/// two bf16 numbers errs by as much more than half a unit.
pub const ROUNDED: f64 = 1.04 * BF16;

/// A sum in f32 of products that are exact in f32. The tensor core's additions truncate (2^-23 of the partial
/// sum each, one per 16 of k), which for the longest k here, 14,336, drifts by at most 2^-23 · 896 ≈ 1.1e-4
/// and by half of that while the sum grows.
pub const F32: f64 = 6e-5;

/// Attention rounds twice: the probabilities to bf16 for the product with the values, then the result. The
/// denominator sums what was not rounded, so one rounding passes through undiminished where a single token has
/// all the weight; the third unit is for elements that cancel below their row's root mean square.
pub const ATTENTION: f64 = 3.0 * BF16;

/// The mean excess of magnitudes, in the same units, over all values of a kernel: far above what rounding to
/// nearest leaves of that many values, a quarter or less of what truncation to bf16 gives.
pub const BIAS: f64 = BF16 / 16.0;

/// Values from which on [`BIAS`] is asked for: fewer may be that far off by chance, the more so where the
/// elements of a row share the rounding of a probability.
pub const BIAS_MIN_VALUES: usize = 20_000;

/// How far outside its token's interval of the cumulative distribution a drawn number may lie. A weight is
/// 2^32 · exp(−gap) by an exp2 of an f32 near 32, which errs by 2^-19; sums are exact.
pub const DRAW: f64 = 1e-5;
