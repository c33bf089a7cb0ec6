//! Barriers in shared memory that count arrivals and bytes (sm_90; PTX ISA, "mbarrier"). One takes 8 bytes, 8-byte
//! aligned; its phases end when all arrivals and all expected bytes are there, and are told apart by their parity.

use core::arch::asm;

use super::Shared;

/// `mbarrier.init`: `arrivals` end each phase.
#[inline(always)]
pub unsafe fn init(barrier: Shared, arrivals: u32) {
    asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals, options(nostack));
}

/// `fence.mbarrier_init.release.cluster`: before the barrier of the cluster behind which other blocks use what this
/// thread has [initialised](init).
#[inline(always)]
pub fn fence_init() {
    // SAFETY: a fence has no operand that could be wrong.
    unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack)) };
}

/// `mbarrier.arrive.expect_tx`: one arrival; the phase ends behind so many bytes more.
#[inline(always)]
pub unsafe fn arrive_and_expect(barrier: Shared, bytes: u32) {
    asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};",
        in(reg32) barrier, in(reg32) bytes, options(nostack));
}

/// `mbarrier.try_wait.parity.acquire.cluster`: whether the phase of that parity has ended. It may wait for a while.
#[inline(always)]
pub unsafe fn try_wait(barrier: Shared, parity: u32) -> bool {
    let ended: u32;
    asm!("{{ .reg .pred %ended; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %ended, [{}], {};",
        "selp.b32 {}, 1, 0, %ended; }}",
        in(reg32) barrier, in(reg32) parity, out(reg32) ended, options(nostack));
    ended != 0
}
