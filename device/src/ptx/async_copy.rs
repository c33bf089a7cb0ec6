//! `cp.async`: global to shared memory without registers in between (sm_80).

use core::arch::asm;

use super::{Global, Shared};

/// `cp.async.cg.shared.global.L2::128B`: copies `bytes` (at most 16) and fills the rest of the 16
/// with zeros. Both addresses are 16-byte aligned; with `bytes` = 0 nothing is read.
#[inline(always)]
pub unsafe fn copy_16(to: Shared, from: Global, bytes: u32) {
    asm!("cp.async.cg.shared.global.L2::128B [{}], [{}], 16, {};",
        in(reg32) to, in(reg64) from, in(reg32) bytes, options(nostack));
}

/// `cp.async.commit_group`: closes the group of copies issued since the last one.
#[inline(always)]
pub unsafe fn commit() {
    asm!("cp.async.commit_group;", options(nostack));
}

/// `cp.async.wait_group`: waits until at most `PENDING` of this thread's groups are in flight.
#[inline(always)]
pub unsafe fn wait<const PENDING: usize>() {
    asm!("cp.async.wait_group {};", const PENDING, options(nostack));
}

/// `cp.async.wait_group`: waits for the oldest of `AHEAD` groups in flight.
#[inline(always)]
pub unsafe fn wait_oldest<const AHEAD: u32>() {
    const { assert!(AHEAD >= 1) };
    asm!("cp.async.wait_group {};", const AHEAD - 1, options(nostack));
}

/// `cp.async.wait_group`: in a ring of `STAGES` stages with one group each, waits for the oldest of
/// the `STAGES - 1` groups in flight.
#[inline(always)]
pub unsafe fn wait_stage<const STAGES: u32>() {
    const { assert!(STAGES >= 2) };
    asm!("cp.async.wait_group {};", const STAGES - 2, options(nostack));
}
