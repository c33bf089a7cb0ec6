//! Barriers and fences.

use core::arch::asm;

/// `bar.sync 0`: all threads of the block; orders their memory accesses.
#[inline(always)]
pub fn sync_block() {
    // SAFETY: a barrier has no operand that could be wrong; kernels call it in uniform control flow.
    unsafe { asm!("bar.sync 0;", options(nostack)) };
}

/// `bar.sync`: waits until `threads` threads (whole warps) are at barrier `ID`, by this or by [`arrive`].
#[inline(always)]
pub fn sync_some<const ID: u32>(threads: u32) {
    const { assert!(ID > 0 && ID < 16) };
    // SAFETY: as above.
    unsafe { asm!("bar.sync {}, {};", const ID, in(reg32) threads, options(nostack)) };
}

/// `bar.arrive`: counts this warp at barrier `ID` and goes on.
#[inline(always)]
pub fn arrive<const ID: u32>(threads: u32) {
    const { assert!(ID > 0 && ID < 16) };
    // SAFETY: as above.
    unsafe { asm!("bar.arrive {}, {};", const ID, in(reg32) threads, options(nostack)) };
}

/// [`sync_some`] at a barrier that is only known at run time: 1 to 15, alike in all lanes.
#[cfg(cuda_arch_min = "90")]
#[inline(always)]
pub fn sync_at(id: u32, threads: u32) {
    // SAFETY: as above.
    unsafe { asm!("bar.sync {}, {};", in(reg32) id, in(reg32) threads, options(nostack)) };
}

/// [`arrive`] likewise.
#[cfg(cuda_arch_min = "90")]
#[inline(always)]
pub fn arrive_at(id: u32, threads: u32) {
    // SAFETY: as above.
    unsafe { asm!("bar.arrive {}, {};", in(reg32) id, in(reg32) threads, options(nostack)) };
}

/// `bar.warp.sync`: all lanes of the warp; orders their memory accesses.
#[inline(always)]
pub fn sync_warp() {
    // SAFETY: as above.
    unsafe { asm!("bar.warp.sync 0xffffffff;", options(nostack)) };
}

/// `fence.proxy.async.shared::cta`: what this thread has written to shared memory, or waited for, is seen by the
/// asynchronous proxy, which tensor cores read it through.
#[cfg(cuda_arch_min = "90")]
#[inline(always)]
pub fn fence_proxy_async() {
    // SAFETY: only orders memory accesses.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) };
}

/// `fence.acq_rel.gpu`
#[inline(always)]
pub fn fence_gpu() {
    // SAFETY: only orders memory accesses.
    unsafe { asm!("fence.acq_rel.gpu;", options(nostack)) };
}
