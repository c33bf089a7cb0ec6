//! Between instructions and kernels: number formats, swizzles, reductions, rings of stages.

pub mod bf16;
pub mod reduce;
#[cfg(cuda_arch_min = "90")]
pub mod ring;
pub mod swizzle;
#[cfg(cuda_arch_min = "90")]
pub mod transpose;
