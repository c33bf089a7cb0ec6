//! `mbarrier`: barriers in shared memory that some threads arrive at, and copies with their bytes, and others wait for
//! (sm_90). One takes 8 bytes, 8-byte aligned. Its phases end when all arrivals and all expected bytes are there; a
//! phase is named by its parity: 0 for the first, the third, …, and 1 for the one before the first, too.

use core::arch::asm;

use super::Shared;

/// `mbarrier.init`: every phase ends with so many arrivals.
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

/// `mbarrier.arrive`: releases what this thread has done before.
#[inline(always)]
pub unsafe fn arrive(barrier: Shared) {
    asm!("mbarrier.arrive.shared::cta.b64 _, [{}];", in(reg32) barrier, options(nostack));
}

/// `mbarrier.arrive.expect_tx`: one arrival; the phase ends behind so many bytes more.
#[inline(always)]
pub unsafe fn arrive_and_expect(barrier: Shared, bytes: u32) {
    asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};",
        in(reg32) barrier, in(reg32) bytes, options(nostack));
}

/// `mbarrier.test_wait.parity`: whether the phase of this parity has ended; if so, as [`wait`].
#[inline(always)]
pub unsafe fn has_ended(barrier: Shared, parity: u32) -> bool {
    let ended: u32;
    asm!("{{ .reg .pred %ended;",
        "mbarrier.test_wait.parity.shared::cta.b64 %ended, [{}], {};",
        "selp.b32 {}, 1, 0, %ended; }}",
        in(reg32) barrier, in(reg32) parity, out(reg32) ended, options(nostack));
    ended != 0
}

macro_rules! waits {
    ($($name:ident: $order:literal, $doc:literal;)*) => {$(
        #[doc = $doc]
        #[inline(always)]
        pub unsafe fn $name(barrier: Shared, parity: u32) {
            let mut ended = 0;
            while ended == 0 {
                asm!("{{ .reg .pred %ended;",
                    concat!("mbarrier.try_wait.parity", $order, ".shared::cta.b64 %ended, [{}], {};"),
                    "selp.b32 {}, 1, 0, %ended; }}",
                    in(reg32) barrier, in(reg32) parity, out(reg32) ended, options(nostack));
            }
        }
    )*};
}

waits! {
    wait: "", "`mbarrier.try_wait.parity`, until the phase of this parity has ended. Acquires what those of the block \
        who arrived have released.";
    wait_cluster: ".acquire.cluster", "`mbarrier.try_wait.parity.acquire.cluster`, likewise: acquires also what other \
        blocks of the cluster have released.";
}
