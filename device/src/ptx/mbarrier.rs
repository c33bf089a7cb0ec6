//! `mbarrier`: barriers in shared memory that some threads arrive at and others wait for (waiting: sm_90).

use core::arch::asm;

use super::Shared;

/// `mbarrier.init.shared.b64`: every phase ends with so many arrivals.
#[inline(always)]
pub unsafe fn init(barrier: Shared, arrivals: u32) {
    asm!("mbarrier.init.shared.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals, options(nostack));
}

/// `mbarrier.arrive.shared.b64`: releases what this thread has done before.
#[inline(always)]
pub unsafe fn arrive(barrier: Shared) {
    asm!("{{ .reg .b64 %state; mbarrier.arrive.shared.b64 %state, [{}]; }}", in(reg32) barrier, options(nostack));
}

/// `mbarrier.try_wait.parity.shared.b64`, until the phase of this parity has ended: 0 for the first, the third, …, and
/// 1 for the one before the first, too. Acquires what those who arrived have released.
#[inline(always)]
pub unsafe fn wait(barrier: Shared, parity: u32) {
    while !try_wait(barrier, parity) {}
}

#[inline(always)]
unsafe fn try_wait(barrier: Shared, parity: u32) -> bool {
    let ended: u32;
    asm!("{{ .reg .pred %ended; mbarrier.try_wait.parity.shared.b64 %ended, [{}], {}; selp.u32 {}, 1, 0, %ended; }}",
        in(reg32) barrier, in(reg32) parity, out(reg32) ended, options(nostack));
    ended != 0
}
