//! How messages leave for another node: staged by a block's workers, posted by its couriers.
//!
//! A block is workers, then the couriers' warps, then the clerk's. Each message of a block is one run of
//! consecutive units, so that a network card sees few large puts; the couriers share a long one.

use core::ffi::c_void;

use crate::nvrar::call::{Call, Deal, Pass, Post, Share};
use crate::nvrar::wire::{Wire, Words};
use crate::params::{CLERKS, COURIERS, Collective, GREETING_BYTES, ROW_STAGING};
use crate::ptx::Global;
use crate::ptx::atomic::load_u32_gpu;
use crate::ptx::barrier::sync_some;
use crate::ptx::global::ld_b64;
use crate::ptx::shuffle::ballot;
use crate::ptx::special::{ctaid_x, nctaid_x, ntid_x, tid_x};
use crate::ptx::system::st_v2_b64;

unsafe extern "C" {
    /// Puts `bytes` at the place `dst` of `pe`'s symmetric memory; called by a whole warp.
    fn nvshmemx_putmem_nbi_warp(dst: *mut c_void, src: *const c_void, bytes: usize, pe: i32);
    /// The same by one thread.
    fn nvshmem_putmem_nbi(dst: *mut c_void, src: *const c_void, bytes: usize, pe: i32);
}

/// The barrier at which couriers learn that a message is staged.
const STAGED: u32 = 2;
/// Messages up to this size are one put.
const WHOLE_BYTES: u32 = 4096;
const UNIT_BYTES: u32 = crate::params::UNIT_BYTES as u32;

/// A run of consecutive units to each block, in turn to its workers.
pub struct InRuns;

impl InRuns {
    /// The block's run of `units`: its first unit and its end.
    #[inline(always)]
    fn run(units: u32) -> (u32, u32) {
        let length = units.div_ceil(nctaid_x());
        let first = (ctaid_x() * length).min(units);
        (first, (first + length).min(units))
    }
}

impl Deal for InRuns {
    #[inline(always)]
    fn share(units: u32) -> Share {
        let (first, end) = Self::run(units);
        Share { first: first + tid_x(), end, step: workers() }
    }
}

/// Threads of a block that move data.
#[inline(always)]
pub fn workers() -> u32 {
    ntid_x() - CLERKS - COURIERS
}

/// Whether this thread is a courier; it is none of the clerk's.
#[inline(always)]
pub fn is_courier() -> bool {
    tid_x() >= workers()
}

/// Greetings: a store to neighbours, a put to ranks of other nodes.
pub struct Puts;

impl Post for Puts {
    #[inline(always)]
    unsafe fn greet(call: &Call, to: u32, offset: u64, cells: [u64; 2]) {
        let gpus = call.p.gpus_per_node;
        if to / gpus == call.rank / gpus {
            return st_v2_b64(call.region(to) + offset, cells);
        }
        // A place for each receiver, where the greetings of this turn are.
        let turn = offset - u64::from(call.rank) * GREETING_BYTES;
        let from = staging(call) + turn + u64::from(to) * GREETING_BYTES;
        st_v2_b64(from, cells);
        let (dst, pe) = (call.home + offset, call.region(to) as i32);
        nvshmem_putmem_nbi(dst as *mut c_void, from as *const c_void, GREETING_BYTES as usize, pe);
    }
}

#[inline(always)]
unsafe fn staging(call: &Call) -> Global {
    ld_b64(call.row + ROW_STAGING)
}

/// Where the message for a slot of other nodes' ranks is staged.
#[inline(always)]
unsafe fn staged(call: &Call, pass: &Pass, slot: u32) -> Global {
    staging(call) + call.slot_offset(pass, slot)
}

/// A worker's part of a message: stages its units of `units`, and lets the couriers have them.
///
/// The loop is the block's, not the lane's: behind a loop that lanes leave one by one the compiler may give each way
/// out a barrier of its own, and a warp that comes to it in parts hangs. `tests/ptx.rs` counts them.
#[inline(always)]
pub unsafe fn stage(call: &Call, pass: &Pass, slot: u32, units: u32, load: impl Fn(u32) -> [u32; 4]) {
    let place = staged(call, pass, slot);
    let (mut begin, end) = InRuns::run(units);
    while begin < end {
        let i = begin + tid_x();
        if i < end && !call.watch.over {
            Words::send(place + Words::offset(i), load(i), pass.flag());
        }
        begin += workers();
    }
    hand_over();
}

/// Workers and couriers meet once for each message.
#[inline(always)]
fn hand_over() {
    sync_some::<STAGED>(ntid_x() - CLERKS);
}

/// A courier's part: awaits the block's run of `units`, and puts it to each of the ranks `to` that are there.
/// Nothing is put once the rank has failed.
#[inline(always)]
pub unsafe fn post(call: &Call, pass: &Pass, slot: u32, units: u32, to: impl Iterator<Item = u32>) {
    hand_over();
    let (first, end) = InRuns::run(units);
    let warps = COURIERS / 32;
    let warp = (tid_x() - workers()) / 32;
    let bytes = (end - first) * UNIT_BYTES;
    let share = bytes.div_ceil(warps).next_multiple_of(UNIT_BYTES).max(WHOLE_BYTES);
    let begin = (warp * share).min(bytes);
    let length = share.min(bytes - begin);
    let failed = ballot(load_u32_gpu(call.p.failed) != 0) != 0;
    if length == 0 || failed {
        return;
    }
    let at = u64::from(first * UNIT_BYTES + begin);
    let (dst, src) = (call.own_slot(pass, slot) + at, staged(call, pass, slot) + at);
    for rank in to {
        let pe = call.region(rank) as i32;
        nvshmemx_putmem_nbi_warp(dst as *mut c_void, src as *const c_void, length as usize, pe);
    }
}

/// What a thread begins with: none for the clerk, whose books are then kept.
#[inline(always)]
pub unsafe fn begin(p: &Collective, halves: u32) -> Option<Call<'_>> {
    if Call::is_kept_by_clerk::<Puts>(p, halves) { None } else { Some(Call::begin(p, halves)) }
}
