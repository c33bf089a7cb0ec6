//! `setmaxnreg`: registers that the warpgroups of a block hand to each other (sm_90a).
//!
//! A block begins with what its launch bounds leave each thread; what some give back others may take. The assembler
//! obeys where the roles of warpgroups are the two sides of one branch, and says so where it does not.

use core::arch::asm;

/// `setmaxnreg.dec`: this warpgroup keeps `COUNT` registers a thread, a multiple of 8 from 24 on.
#[inline(always)]
pub fn keep<const COUNT: u32>() {
    const { assert!(COUNT >= 24 && COUNT <= 256 && COUNT.is_multiple_of(8)) };
    // SAFETY: registers beyond these are the assembler's concern.
    unsafe { asm!("setmaxnreg.dec.sync.aligned.u32 {};", const COUNT, options(nomem, nostack)) };
}

/// `setmaxnreg.inc`: waits until this warpgroup has `COUNT` registers a thread.
#[inline(always)]
pub fn take<const COUNT: u32>() {
    const { assert!(COUNT >= 24 && COUNT <= 256 && COUNT.is_multiple_of(8)) };
    // SAFETY: as above.
    unsafe { asm!("setmaxnreg.inc.sync.aligned.u32 {};", const COUNT, options(nomem, nostack)) };
}
