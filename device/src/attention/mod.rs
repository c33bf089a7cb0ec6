//! Attention over a paged KV cache, on tensor cores.
//!
//! [`flash`] holds the online softmax over one tile of keys and values by `mma.sync`; [`decode`] runs it with rows that
//! are the query heads of one KV head, and `prefill` with rows that are query tokens of one head. On Hopper
//! `warpgroup` takes the place of `prefill`, by `wgmma`: the kernels' names and parameters are the same.

pub mod decode;
pub mod flash;
pub mod paged;
#[cfg(not(cuda_arch = "sm_90a"))]
pub mod prefill;
#[cfg(cuda_arch = "sm_90a")]
pub mod warpgroup;
