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

/// `mapa.shared::cluster.u32`, `cvta.shared::cluster.u64`: the generic address of what lies at `address` in block
/// `rank` of the cluster.
#[inline(always)]
pub fn map(address: Shared, rank: u32) -> u64 {
    let generic: u64;
    // SAFETY: registers only.
    unsafe {
        asm!("{{ .reg .b32 %there; .reg .b64 %wide;",
            "mapa.shared::cluster.u32 %there, {}, {};", "cvt.u64.u32 %wide, %there;",
            "cvta.shared::cluster.u64 {}, %wide; }}",
            in(reg32) address, in(reg32) rank, out(reg64) generic, options(pure, nomem, nostack));
    }
    generic
}

/// `st.relaxed.cluster.b64`: to a [mapped](map) address whose block has begun and not ended.
#[inline(always)]
pub unsafe fn st_relaxed_b64(mapped: u64, value: u64) {
    asm!("st.relaxed.cluster.b64 [{}], {};", in(reg64) mapped, in(reg64) value, options(nostack));
}

/// `ld.v4.f32`: of a [mapped](map) address, 16-byte aligned, that nobody stores to meanwhile.
#[inline(always)]
pub unsafe fn ld_v4_f32(mapped: u64) -> [f32; 4] {
    let (x, y, z, w): (f32, f32, f32, f32);
    asm!("ld.v4.f32 {{{}, {}, {}, {}}}, [{}];",
        out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg64) mapped,
        options(pure, readonly, nostack));
    [x, y, z, w]
}

/// `ld.relaxed.cluster.shared.v2.b64`: of the own block, where others of the cluster store; two 8-byte elements,
/// 16-byte aligned.
#[inline(always)]
pub unsafe fn ld_relaxed_v2_b64(address: Shared) -> [u64; 2] {
    let (x, y): (u64, u64);
    asm!("ld.relaxed.cluster.shared.v2.b64 {{{}, {}}}, [{}];",
        out(reg64) x, out(reg64) y, in(reg32) address, options(nostack));
    [x, y]
}
