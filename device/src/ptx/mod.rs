//! One PTX instruction, one inline function.
//!
//! What only computes is safe. What touches memory takes addresses and is `unsafe`: the caller
//! answers for bounds, alignment and races. Loads are marked read-only for the compiler and are not
//! moved across barriers, fences or stores.

#[macro_use]
pub mod shared;
pub mod async_copy;
pub mod atomic;
pub mod barrier;
#[cfg(cuda_arch_min = "90")]
pub mod cluster;
pub mod global;
pub mod math;
#[cfg(cuda_arch_min = "90")]
pub mod mbarrier;
pub mod mma;
pub mod pdl;
#[cfg(cuda_arch = "sm_90a")]
pub mod registers;
pub mod shuffle;
pub mod special;
pub mod system;
#[cfg(cuda_arch_min = "90")]
pub mod tensor_copy;
#[cfg(cuda_arch = "sm_90a")]
pub mod wgmma;

/// Address in global memory, in bytes.
pub type Global = u64;
/// Address in the block's shared memory, in bytes.
pub type Shared = u32;
