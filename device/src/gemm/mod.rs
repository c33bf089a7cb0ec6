//! Matrix products `y = a · wᵀ` with weights `[n, k]`, and what happens to `y`.
//!
//! [`gemv_m1`] and [`gemv_m8`] stream the weights once for one and for up to eight rows of activations;
//! [`tiled`] works in tiles on tensor cores for any shape, and on Hopper [`stream`] and [`prefill`] do so by `wgmma`.
//! All share the [`epilogue`]s. Which one, and which tile, is the host's choice.

#[cfg(cuda_arch = "sm_90a")]
mod cluster_sum;
#[cfg(cuda_arch = "sm_90a")]
mod eight;
pub mod epilogue;
pub mod gemv_m1;
pub mod gemv_m8;
pub mod loader;
#[cfg(cuda_arch = "sm_90a")]
pub mod prefill;
#[cfg(cuda_arch = "sm_90a")]
pub mod stream;
pub mod tile;
pub mod tiled;
