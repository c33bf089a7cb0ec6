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
        asm!(
            "barrier.cluster.arrive.release.aligned;",
            "barrier.cluster.wait.acquire.aligned;",
            options(nostack)
        );
    }
}

/// `barrier.cluster.arrive.relaxed.aligned`: before [`wait`]. Orders only what a fence before it does.
#[inline(always)]
pub fn arrive() {
    // SAFETY: a barrier has no operand that could be wrong; kernels call it once, in uniform control flow.
    unsafe { asm!("barrier.cluster.arrive.relaxed.aligned;", options(nostack)) };
}

/// `barrier.cluster.wait.acquire`: until all threads of the cluster that have not exited have [arrived](arrive), as
/// this one has.
#[inline(always)]
pub fn wait() {
    // SAFETY: as above; lanes of a warp may come by themselves.
    unsafe { asm!("barrier.cluster.wait.acquire;", options(nostack)) };
}

/// `mapa.shared::cluster.u32`: the cluster's address of what lies at `address` in block `rank`.
#[inline(always)]
pub fn map(address: Shared, rank: u32) -> Shared {
    let mapped: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("mapa.shared::cluster.u32 {}, {}, {};", out(reg32) mapped, in(reg32) address, in(reg32) rank,
            options(pure, nomem, nostack));
    }
    mapped
}

/// `st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32`: stores to a [mapped](map) address and tells the
/// mbarrier at `barrier`, of the same block, of 4 bytes. Who waits for that with
/// [`wait_cluster`](super::mbarrier::wait_cluster) sees the value.
#[inline(always)]
pub unsafe fn st_async_b32(mapped: Shared, value: u32, barrier: Shared) {
    asm!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [{}], {}, [{}];",
        in(reg32) mapped, in(reg32) value, in(reg32) barrier, options(nostack));
}

/// `ld.shared::cluster.v4.f32`: of a [mapped](map) address, 16-byte aligned, that nobody stores to meanwhile.
#[inline(always)]
pub unsafe fn ld_v4_f32(mapped: Shared) -> [f32; 4] {
    let (x, y, z, w): (f32, f32, f32, f32);
    asm!("ld.shared::cluster.v4.f32 {{{}, {}, {}, {}}}, [{}];",
        out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg32) mapped,
        options(pure, readonly, nostack));
    [x, y, z, w]
}
