//! Exchange between the lanes of a warp; all 32 take part.

use core::arch::asm;

/// `shfl.sync.bfly`: the value of lane `lane ^ MASK`.
#[inline(always)]
pub fn xor<const MASK: u32>(value: u32) -> u32 {
    const { assert!(MASK < 32) };
    let other: u32;
    // SAFETY: registers only; kernels call it with the whole warp converged.
    unsafe {
        asm!("shfl.sync.bfly.b32 {}, {}, {}, 31, 0xffffffff;", out(reg32) other, in(reg32) value, const MASK,
            options(nomem, nostack));
    }
    other
}

/// `shfl.sync.bfly` of a float.
#[inline(always)]
pub fn xor_f32<const MASK: u32>(value: f32) -> f32 {
    f32::from_bits(xor::<MASK>(value.to_bits()))
}

/// `shfl.sync.bfly` of both halves of a 64-bit value.
#[inline(always)]
pub fn xor_u64<const MASK: u32>(value: u64) -> u64 {
    let (low, high) = (xor::<MASK>(value as u32), xor::<MASK>((value >> 32) as u32));
    u64::from(high) << 32 | u64::from(low)
}

/// `shfl.sync.up`: the value of lane `lane - DELTA`, or the own value in the first lanes.
#[inline(always)]
pub fn up<const DELTA: u32>(value: u32) -> u32 {
    const { assert!(DELTA < 32) };
    let other: u32;
    // SAFETY: as above.
    unsafe {
        asm!("shfl.sync.up.b32 {}, {}, {}, 0, 0xffffffff;", out(reg32) other, in(reg32) value, const DELTA,
            options(nomem, nostack));
    }
    other
}

/// `shfl.sync.idx`: the value of `lane`.
#[inline(always)]
pub fn broadcast(value: u32, lane: u32) -> u32 {
    let other: u32;
    // SAFETY: as above.
    unsafe {
        asm!("shfl.sync.idx.b32 {}, {}, {}, 31, 0xffffffff;", out(reg32) other, in(reg32) value, in(reg32) lane,
            options(nomem, nostack));
    }
    other
}

/// `vote.sync.ballot`: bit i is lane i's `condition`.
#[inline(always)]
pub fn ballot(condition: bool) -> u32 {
    let mask: u32;
    // SAFETY: as above.
    unsafe {
        asm!("{{ .reg .pred p; setp.ne.u32 p, {}, 0; vote.sync.ballot.b32 {}, p, 0xffffffff; }}",
            in(reg32) u32::from(condition), out(reg32) mask, options(nomem, nostack));
    }
    mask
}
