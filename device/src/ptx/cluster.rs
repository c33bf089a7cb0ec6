//! Clusters (sm_90): blocks that run at the same time and reach each other's shared memory. A launch without
//! clusters has clusters of one block.

use core::arch::asm;

use super::Shared;

/// `barrier.cluster.arrive.release`, then `barrier.cluster.wait.acquire`: all threads of the cluster that have not
/// exited; orders their memory accesses.
#[inline(always)]
pub fn sync() {
    // SAFETY: a barrier has no operand that could be wrong; kernels call it in uniform control flow.
    unsafe {
        asm!("barrier.cluster.arrive.release.aligned;", "barrier.cluster.wait.acquire.aligned;", options(nostack));
    }
}

/// `mapa.shared::cluster.u32`: an address of the own block's shared memory, in block `rank` of the cluster.
#[inline(always)]
pub fn map(address: Shared, rank: u32) -> u32 {
    let mapped: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("mapa.shared::cluster.u32 {}, {}, {};", out(reg32) mapped, in(reg32) address, in(reg32) rank,
            options(pure, nomem, nostack));
    }
    mapped
}

/// `st.relaxed.cluster.shared::cluster.b64`: to a [mapped](map) address whose block has begun and not ended.
#[inline(always)]
pub unsafe fn st_relaxed_b64(mapped: u32, value: u64) {
    asm!("st.relaxed.cluster.shared::cluster.b64 [{}], {};", in(reg32) mapped, in(reg64) value, options(nostack));
}

/// `ld.relaxed.cluster.shared.b64`: of the own block, where others of the cluster store.
#[inline(always)]
pub unsafe fn ld_relaxed_b64(address: Shared) -> u64 {
    let value: u64;
    asm!("ld.relaxed.cluster.shared.b64 {}, [{}];", out(reg64) value, in(reg32) address, options(nostack));
    value
}
