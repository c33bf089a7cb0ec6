//! Accesses that other devices and the host take part in: relaxed, system scope.
//!
//! A vector access is one access per element (PTX ISA, *Vectors as atomic elements*): each element
//! arrives whole, their order is free. They are volatile for the compiler too.

use core::arch::asm;

use super::Global;

/// `st.relaxed.sys.global.v2.b64`: two 8-byte elements; 16-byte aligned.
#[inline(always)]
pub unsafe fn st_v2_b64(address: Global, v: [u64; 2]) {
    asm!("st.relaxed.sys.global.v2.b64 [{}], {{{}, {}}};",
        in(reg64) address, in(reg64) v[0], in(reg64) v[1], options(nostack));
}

/// `ld.relaxed.sys.global.v2.b64`: two 8-byte elements; 16-byte aligned.
#[inline(always)]
pub unsafe fn ld_v2_b64(address: Global) -> [u64; 2] {
    let (x, y): (u64, u64);
    asm!("ld.relaxed.sys.global.v2.b64 {{{}, {}}}, [{}];",
        out(reg64) x, out(reg64) y, in(reg64) address, options(nostack));
    [x, y]
}

/// `st.relaxed.sys.global.v4.b32`: four 4-byte elements; 16-byte aligned.
#[inline(always)]
pub unsafe fn st_v4_b32(address: Global, v: [u32; 4]) {
    asm!("st.relaxed.sys.global.v4.b32 [{}], {{{}, {}, {}, {}}};",
        in(reg64) address, in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], options(nostack));
}

/// `ld.relaxed.sys.global.v4.b32`: four 4-byte elements; 16-byte aligned.
#[inline(always)]
pub unsafe fn ld_v4_b32(address: Global) -> [u32; 4] {
    let (x, y, z, w): (u32, u32, u32, u32);
    asm!("ld.relaxed.sys.global.v4.b32 {{{}, {}, {}, {}}}, [{}];",
        out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg64) address, options(nostack));
    [x, y, z, w]
}

/// `st.relaxed.sys.global.b32`
#[inline(always)]
pub unsafe fn st_b32(address: Global, value: u32) {
    asm!("st.relaxed.sys.global.b32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack));
}

/// `st.release.sys.global.b32`: what this thread wrote before is visible to who acquires the value.
#[inline(always)]
pub unsafe fn st_release_b32(address: Global, value: u32) {
    asm!("st.release.sys.global.b32 [{}], {};", in(reg64) address, in(reg32) value, options(nostack));
}

/// `fence.acq_rel.sys`
#[inline(always)]
pub fn fence() {
    // SAFETY: only orders memory accesses.
    unsafe { asm!("fence.acq_rel.sys;", options(nostack)) };
}

/// `%globaltimer`: nanoseconds, in steps of about a microsecond.
#[inline(always)]
pub fn globaltimer_ns() -> u64 {
    let now: u64;
    // SAFETY: reads a clock.
    unsafe { asm!("mov.u64 {}, %globaltimer;", out(reg64) now, options(nostack)) };
    now
}
