//! fewsync's GPU kernels.
//!
//! The ladder: [`ptx`] (one instruction, one function) → [`tile`] (fragments, swizzles, reductions)
//! → kernels, one per file: [`pointwise`], [`gemm`], [`attention`], and
//! between GPUs [`nvrar`]. Arguments are the structs of
//! [`params`], passed by value; the host includes that same file.
//!
//! Common to all kernels: bf16 activations and weights, fp32 accumulation, row-major
//! `[tokens, features]` activations and `[out, in]` weights, 16-byte aligned buffers. On sm_90 and
//! later every kernel takes part in programmatic dependent launch ([`ptx::pdl`]); launched without
//! that attribute those instructions do nothing.
#![no_std]
#![feature(abi_ptx, asm_experimental_arch)]
#![allow(clippy::needless_range_loop, reason = "register arrays are indexed by unrolled counters")]

#[macro_use]
mod entry;
#[macro_use]
pub mod ptx;
pub mod params;
pub mod tile;

pub mod attention;
pub mod gemm;
pub mod nvrar;
pub mod pointwise;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    ptx::special::trap()
}
