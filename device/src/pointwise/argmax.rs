//! Greedy choice.

use crate::params::Argmax;
use crate::ptx::atomic::{add_acq_rel_gpu, load_u64_gpu, max_u64_gpu};
use crate::ptx::barrier::sync_block;
use crate::ptx::global::{ld_b32, ld_f32, ld_v4, st_b32, st_b64, st_f32};
use crate::ptx::pdl;
use crate::ptx::shared::{ld_b64, st_b64 as st_shared_b64};
use crate::ptx::special::{ctaid_x, ctaid_y, lane, nctaid_x, ntid_x, tid_x, warp};
use crate::tile::reduce::warp_max_u64;

shared_array! {
    /// One key per warp.
    warp_keys: 256 bytes, align 16
}

kernel! {
    /// Index and value of the largest logit of every row.
    ///
    /// # Shape and layout
    /// Rows of `len`, any length; 16-byte loads where `ld_logits` is a multiple of 4.
    ///
    /// # Thread mapping
    /// Grid (any, rows): the first dimension shares a row.
    ///
    /// # Memory order
    /// A block's maximum goes to the row's cell by a relaxed atomic, then the block counts itself by an
    /// acquire-release one. The block that counts last sees all maxima, writes the result and leaves
    /// cell and counter zero for the next launch.
    ///
    /// # Safety
    /// The block has whole warps; `best` and `counters` are zero and no other launch uses them
    /// meanwhile.
    #[launch_bounds(1024, 1)]
    pub fn argmax_f32(p: Argmax) {
        pdl::launch_dependents();
        pdl::wait();
        let row = u64::from(ctaid_y());
        let logits = p.logits + row * u64::from(p.ld_logits) * 4;
        let thread = ctaid_x() * ntid_x() + tid_x();
        let n_threads = nctaid_x() * ntid_x();

        // This thread's share.
        let mut best = 0;
        let n_vectors = if p.ld_logits.is_multiple_of(4) { p.len / 4 } else { 0 };
        let mut vector = thread;
        while vector < n_vectors {
            let values = ld_v4(logits + u64::from(vector) * 16);
            for j in 0..4 {
                best = best.max(key(f32::from_bits(values[j]), vector * 4 + j as u32));
            }
            vector += n_threads;
        }
        let mut i = n_vectors * 4 + thread;
        while i < p.len {
            best = best.max(key(ld_f32(logits + u64::from(i) * 4), i));
            i += n_threads;
        }

        // The block's.
        let best = warp_max_u64(best);
        if lane() == 0 {
            st_shared_b64(warp_keys() + warp() * 8, best);
        }
        sync_block();
        if warp() != 0 {
            return;
        }
        let n_warps = ntid_x() / 32;
        let best = warp_max_u64(if lane() < n_warps { ld_b64(warp_keys() + lane() * 8) } else { 0 });
        if lane() == 0 {
            finish(&p, row, logits, best);
        }
    }
}

/// Joins the row's blocks; the last one writes the result.
#[inline(always)]
unsafe fn finish(p: &Argmax, row: u64, logits: u64, block_best: u64) {
    let (cell, counter) = (p.best + row * 8, p.counters + row * 4);
    max_u64_gpu(cell, block_best);
    if add_acq_rel_gpu(counter, 1) != nctaid_x() - 1 {
        return;
    }
    let index = !(load_u64_gpu(cell) as u32);
    // A row of NaNs leaves the key 0 and thus no index; it counts as its first element.
    let index = if index < p.len { index } else { 0 };
    st_b32(p.indices + row * 4, index);
    if p.values != 0 {
        st_f32(p.values + row * 4, f32::from_bits(ld_b32(logits + u64::from(index) * 4)));
    }
    st_b64(cell, 0);
    st_b32(counter, 0);
}

/// Orders by value, then by lower index; NaN is below everything.
#[inline(always)]
fn key(value: f32, index: u32) -> u64 {
    if value.is_nan() { 0 } else { u64::from(ordered(value)) << 32 | u64::from(!index) }
}

/// A float's bits, so that unsigned order is the floats' order.
#[inline(always)]
fn ordered(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}
