//! Matrix products `y = a · wᵀ` with weights `[n, k]`, and what happens to `y`.
//!
//! [`gemv`] streams the weights once for up to 16 rows; [`gemm`] is tiled over tensor cores for any
//! shape. Both share the [`epilogue`]s. Which one, and which tile, is the host's choice.

pub mod epilogue;
pub mod gemm;
pub mod gemv;
pub mod tile;
