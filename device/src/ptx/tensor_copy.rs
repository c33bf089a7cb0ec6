//! `cp.async.bulk.tensor`: boxes of a tensor in global memory to shared memory by the copy engine, issued by one thread
//! (sm_90). A box may reach beyond the tensor; what lies there arrives as zeros, and counts like the rest.
//!
//! A map is the generic address of what `cuTensorMapEncodeTiled` has written, 64-byte aligned, in a kernel's parameters
//! or in global memory. Coordinates are in elements, the innermost first. `to` is 128-byte aligned; in the 128-byte
//! swizzle, whose pattern lies in the address, chunk c of 16 bytes in row r lies at c ^ (r mod 8) if `to` is a multiple
//! of 1024. `barrier` is told of the bytes of the whole box.

use core::arch::asm;

use super::Shared;

/// `prefetch.tensormap`: the map is going to be used.
#[inline(always)]
pub unsafe fn prefetch(map: u64) {
    asm!("prefetch.tensormap [{}];", in(reg64) map, options(nostack));
}

/// `cp.async.bulk.tensor.2d`: the box at (x, y).
#[inline(always)]
pub unsafe fn copy_2d(to: Shared, map: u64, [x, y]: [u32; 2], barrier: Shared) {
    asm!("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [{}], [{}, {{{}, {}}}], [{}];",
        in(reg32) to, in(reg64) map, in(reg32) x, in(reg32) y, in(reg32) barrier, options(nostack));
}

/// `cp.async.bulk.tensor.5d`: the box at (x, y, z, v, w).
#[inline(always)]
pub unsafe fn copy_5d(to: Shared, map: u64, [x, y, z, v, w]: [u32; 5], barrier: Shared) {
    asm!("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes \
        [{}], [{}, {{{}, {}, {}, {}, {}}}], [{}];",
        in(reg32) to, in(reg64) map, in(reg32) x, in(reg32) y, in(reg32) z, in(reg32) v, in(reg32) w,
        in(reg32) barrier, options(nostack));
}
