//! Atomic operations.

use core::arch::asm;

use super::{Global, Shared};

/// `atom.acq_rel.gpu.global.add.u32`: returns the old value.
#[inline(always)]
pub unsafe fn add_acq_rel_gpu(address: Global, value: u32) -> u32 {
    let old: u32;
    asm!("atom.acq_rel.gpu.global.add.u32 {}, [{}], {};",
        out(reg32) old, in(reg64) address, in(reg32) value, options(nostack));
    old
}

/// `atom.acq_rel.gpu.global.inc.u32`: counts from 0 to `last` and then from 0 again; returns the old value.
#[inline(always)]
pub unsafe fn increment_acq_rel_gpu(address: Global, last: u32) -> u32 {
    let old: u32;
    asm!("atom.acq_rel.gpu.global.inc.u32 {}, [{}], {};",
        out(reg32) old, in(reg64) address, in(reg32) last, options(nostack));
    old
}

/// `atom.relaxed.gpu.global.cas.b32`: returns the old value.
#[inline(always)]
pub unsafe fn compare_and_swap_gpu(address: Global, expected: u32, new: u32) -> u32 {
    let old: u32;
    asm!("atom.relaxed.gpu.global.cas.b32 {}, [{}], {}, {};",
        out(reg32) old, in(reg64) address, in(reg32) expected, in(reg32) new, options(nostack));
    old
}

/// `red.relaxed.gpu.global.max.u64`
#[inline(always)]
pub unsafe fn max_u64_gpu(address: Global, value: u64) {
    asm!("red.relaxed.gpu.global.max.u64 [{}], {};", in(reg64) address, in(reg64) value, options(nostack));
}

/// `ld.relaxed.gpu.global.b64`
#[inline(always)]
pub unsafe fn load_u64_gpu(address: Global) -> u64 {
    let value: u64;
    asm!("ld.relaxed.gpu.global.b64 {}, [{}];", out(reg64) value, in(reg64) address, options(nostack));
    value
}

/// `ld.relaxed.gpu.global.b32`
#[inline(always)]
pub unsafe fn load_u32_gpu(address: Global) -> u32 {
    let value: u32;
    asm!("ld.relaxed.gpu.global.b32 {}, [{}];", out(reg32) value, in(reg64) address, options(nostack));
    value
}

/// `st.relaxed.gpu.global.b64`
#[inline(always)]
pub unsafe fn store_u64_gpu(address: Global, value: u64) {
    asm!("st.relaxed.gpu.global.b64 [{}], {};", in(reg64) address, in(reg64) value, options(nostack));
}

/// `red.shared.add.u32`
#[inline(always)]
pub unsafe fn add_shared_u32(address: Shared, value: u32) {
    asm!("red.shared.add.u32 [{}], {};", in(reg32) address, in(reg32) value, options(nostack));
}

/// `atom.shared.add.u32`: returns the old value.
#[inline(always)]
pub unsafe fn fetch_add_shared_u32(address: Shared, value: u32) -> u32 {
    let old: u32;
    asm!("atom.shared.add.u32 {}, [{}], {};", out(reg32) old, in(reg32) address, in(reg32) value, options(nostack));
    old
}

/// Adds to a 64-bit sum (little-endian) by 32-bit atomics, which shared memory has in hardware; the
/// sum is whole once all threads are done.
#[inline(always)]
pub unsafe fn add_shared_u64(address: Shared, value: u64) {
    let low = value as u32;
    let (_, carry) = fetch_add_shared_u32(address, low).overflowing_add(low);
    let high = (value >> 32) as u32 + u32::from(carry);
    if high != 0 {
        add_shared_u32(address + 4, high);
    }
}
