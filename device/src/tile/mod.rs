//! Between instructions and kernels: number formats, swizzles, reductions.

pub mod bf16;
pub mod reduce;
pub mod swizzle;
