//! Temperature, top-k and top-p sampling without a sort.
//!
//! A logit becomes a 31-bit integer *gap*: `(max − logit) / temperature` in units of 2^-26, and a
//! weight of 2^32 · exp(−gap). Gaps order the tokens; sums of weights are exact integers, so the draw
//! does not depend on the order in which threads add. Tokens 22 or more below the maximum weigh less
//! than 2^-32 of it and are dropped.

use crate::params::Sample;
use crate::pointwise::philox::draw_u64;
use crate::ptx::atomic::{add_shared_u32, add_shared_u64};
use crate::ptx::barrier::sync_block;
use crate::ptx::global::{ld_b32, ld_b64, ld_f32, st_b32};
use crate::ptx::math::exp2;
use crate::ptx::shared::{
    ld_b32 as ld_shared_b32, ld_b64 as ld_shared_b64, st_b32 as st_shared_b32, st_b64 as st_shared_b64,
};
use crate::ptx::shuffle::{ballot, broadcast, up};
use crate::ptx::special::{ctaid_x, lane, ntid_x, opaque, tid_x, warp};
use crate::ptx::{Global, pdl};
use crate::tile::reduce::{block_max_u32, warp_sum_u64};

/// Gap units per nat: 2^26.
const UNITS_PER_NAT: f32 = 67_108_864.0;
/// First gap whose weight is below one: 32 · ln 2 nats.
const GAP_LIMIT: u32 = 1_488_522_235;
const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// Logits of a thread in flight together.
const BATCH: usize = 16;
const BINS: u32 = 2048;
/// Histogram levels of a threshold, coarse to fine, and the bits of a gap that each resolves.
const LEVELS: u32 = 3;
const LEVEL_BITS: u32 = 10;

shared_array! {
    /// One mass or count per bin.
    bins: 16384 bytes, align 16
}
shared_array! {
    /// Bin and what lies before it, from the thread that found it to all; then the drawn token.
    found: 16 bytes, align 16
}
shared_array! {
    /// One sum per warp.
    warp_sums: 256 bytes, align 16
}

kernel! {
    /// Draws one token per row.
    ///
    /// # Shape and layout
    /// Rows of `len` logits, any length. Order of the filters: temperature, top-k, top-p over what
    /// top-k left. Ties at a threshold are all kept.
    ///
    /// # Thread mapping
    /// One block of 1024 threads per row. A threshold takes three passes of a 2048-bin histogram; the
    /// draw finds the token by sums over 32 segments, 32 parts of one, and one part.
    ///
    /// # Safety
    /// The grid is one block of 1024 threads per row; all arrays have a value per row.
    #[launch_bounds(1024, 1)]
    pub fn sample_f32(p: Sample) {
        pdl::launch_dependents();
        pdl::wait();
        let row = u64::from(ctaid_x());
        let temperature = ld_f32(p.temperatures + row * 4);
        let greedy = temperature.is_nan() || temperature <= 0.0;
        let mut logits = Logits {
            base: p.logits + row * u64::from(p.ld_logits) * 4,
            len: p.len,
            max: 0.0,
            // Greedy: any difference at all is a gap.
            units: if greedy { f32::MAX } else { UNITS_PER_NAT / temperature },
        };
        logits.max = logits.find_max();

        let top_k = ld_b32(p.top_ks + row * 4);
        let top_p = ld_f32(p.top_ps + row * 4);
        let mut limit = GAP_LIMIT - 1;
        if greedy {
            limit = 0;
        } else {
            if top_k > 0 && top_k < p.len {
                limit = logits.threshold(limit, Measure::Count, u64::from(top_k));
            }
            if top_p < 1.0 {
                let kept = total(logits.sum_of_weights(limit, tid_x(), p.len, ntid_x()));
                // At least 1, so that the best token always stays.
                let mass = ((kept as f32 * top_p) as u64).min(kept).max(1);
                limit = logits.threshold(limit, Measure::Weight, mass);
            }
        }

        let seed = ld_b64(p.seeds + row * 8);
        let counter = ld_b32(p.counters + row * 4);
        let random = if greedy { 0 } else { draw_u64(seed, u64::from(counter)) };
        let token = logits.draw(limit, random);
        if tid_x() == 0 {
            st_b32(p.tokens + row * 4, token);
        }
    }
}

/// What a threshold counts.
#[derive(Clone, Copy, PartialEq)]
enum Measure {
    Count,
    Weight,
}

/// One row.
struct Logits {
    base: Global,
    len: u32,
    max: f32,
    /// Gap units per unit of logit.
    units: f32,
}

impl Logits {
    #[inline(always)]
    unsafe fn value(&self, i: u32) -> f32 {
        ld_f32(self.base + u64::from(i) * 4)
    }

    /// Calls `each` with the logits `start`, `start + stride`, … below `end`, loaded in batches so that
    /// a pass costs bandwidth and not latency.
    #[inline(always)]
    unsafe fn scan(&self, start: u32, end: u32, stride: u32, mut each: impl FnMut(f32)) {
        let mut i = start;
        while i < end && end - i > (BATCH as u32 - 1) * stride {
            let mut batch = [0.0; BATCH];
            for b in 0..BATCH {
                batch[b] = self.value(i + b as u32 * stride);
            }
            for b in 0..BATCH {
                each(batch[b]);
            }
            i += BATCH as u32 * stride;
        }
        while i < end {
            each(self.value(i));
            i += stride;
        }
    }

    /// Gap of a logit; `u32::MAX` for a NaN and for what weighs nothing.
    #[inline(always)]
    fn gap(&self, value: f32) -> u32 {
        let gap = (self.max - value) * self.units;
        if gap < GAP_LIMIT as f32 { gap as u32 } else { u32::MAX }
    }

    /// Largest logit; −∞ when all are NaN.
    #[inline(always)]
    unsafe fn find_max(&self) -> f32 {
        // As integers whose unsigned order is the floats' order.
        let mut best = 0;
        self.scan(tid_x(), self.len, ntid_x(), |value| {
            let bits = value.to_bits();
            let ordered = if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits };
            if !value.is_nan() && ordered > best {
                best = ordered;
            }
        });
        let best = block_max_u32(best);
        let bits = if best >> 31 == 1 { best & 0x7fff_ffff } else { !best };
        if best == 0 { f32::NEG_INFINITY } else { f32::from_bits(bits) }
    }

    /// The smallest gap `g ≤ limit` such that the tokens with gaps up to `g` reach `target`; `limit`
    /// when all together do not.
    #[inline(always)]
    unsafe fn threshold(&self, limit: u32, measure: Measure, target: u64) -> u32 {
        let mut prefix = 0;
        let mut remaining = target;
        for level in 0..opaque(LEVELS) {
            let shift = LEVEL_BITS * (LEVELS - 1 - level);
            clear_bins();
            self.scan(tid_x(), self.len, ntid_x(), |value| {
                let gap = self.gap(value);
                // The first level has all the upper bits: 11 of them.
                let in_prefix = level == 0 || gap >> (shift + LEVEL_BITS) == prefix;
                if gap <= limit && in_prefix {
                    let bin = if level == 0 { gap >> shift } else { (gap >> shift) % (1 << LEVEL_BITS) };
                    // SAFETY: a gap below the limit has its bin inside the array.
                    unsafe {
                        match measure {
                            Measure::Count => add_shared_u32(bins() + bin * 8, 1),
                            Measure::Weight => add_shared_u64(bins() + bin * 8, weight(gap)),
                        }
                    }
                }
            });
            sync_block();
            let (bin, before) = find_bin(remaining);
            if bin == BINS {
                return limit;
            }
            prefix = prefix << LEVEL_BITS | bin;
            remaining -= before;
        }
        prefix
    }

    /// Sum of the weights within `limit` of the logits `start`, `start + stride`, … below `end`.
    #[inline(always)]
    unsafe fn sum_of_weights(&self, limit: u32, start: u32, end: u32, stride: u32) -> u64 {
        let mut sum = 0;
        self.scan(start, end, stride, |value| {
            let gap = self.gap(value);
            sum += if gap <= limit { weight(gap) } else { 0 };
        });
        sum
    }

    /// The token at which the running sum of kept weights passes `random / 2^64` of the total.
    #[inline(always)]
    unsafe fn draw(&self, limit: u32, random: u64) -> u32 {
        let n_warps = ntid_x() / 32;
        let mut start = 0;
        let mut end = self.len;
        let mut target = 0;
        // Twice: every warp sums a part, all follow into the part that holds the target.
        for round in 0..opaque(2) {
            let part = (end - start).div_ceil(n_warps);
            let own = (start + warp() * part).min(end);
            let own_end = (own + part).min(end);
            let sum = warp_sum_u64(self.sum_of_weights(limit, own + lane(), own_end, 32));
            sync_block();
            if lane() == 0 {
                st_shared_b64(warp_sums() + warp() * 8, sum);
            }
            sync_block();
            if round == 0 {
                let mut all = 0;
                for w in 0..n_warps {
                    all += ld_shared_b64(warp_sums() + w * 8);
                }
                target = ((u128::from(all) * u128::from(random)) >> 64) as u64;
            }
            let mut w = 0;
            while w + 1 < n_warps && target >= ld_shared_b64(warp_sums() + w * 8) {
                target -= ld_shared_b64(warp_sums() + w * 8);
                w += 1;
            }
            start = (start + w * part).min(end);
            end = (start + part).min(end);
        }
        // 32 tokens at a time; all warps do the same and agree.
        let mut token = start;
        while token < end {
            let i = token + lane();
            let gap = if i < end { self.gap(self.value(i)) } else { u32::MAX };
            let own = if gap <= limit { weight(gap) } else { 0 };
            // The sum first passes the target in a lane that adds to it.
            let passed = ballot(prefix_sum(own) > target);
            if passed != 0 {
                return token + passed.trailing_zeros();
            }
            target -= warp_sum_u64(own);
            token += 32;
        }
        // Only when nothing can be drawn: all logits NaN.
        0
    }
}

/// 2^32 · exp(−gap), rounded down; at least 1 below [`GAP_LIMIT`].
#[inline(always)]
fn weight(gap: u32) -> u64 {
    let nats = gap as f32 / UNITS_PER_NAT;
    ((exp2(32.0 - nats * LOG2_E)) as u64).max(1)
}

/// Sum of one value per thread, in every thread.
#[inline(always)]
unsafe fn total(own: u64) -> u64 {
    let sum = warp_sum_u64(own);
    sync_block();
    if lane() == 0 {
        st_shared_b64(warp_sums() + warp() * 8, sum);
    }
    sync_block();
    let n_warps = ntid_x() / 32;
    warp_sum_u64(if lane() < n_warps { ld_shared_b64(warp_sums() + lane() * 8) } else { 0 })
}

#[inline(always)]
unsafe fn clear_bins() {
    sync_block();
    let mut bin = tid_x();
    while bin < BINS {
        st_shared_b64(bins() + bin * 8, 0);
        bin += ntid_x();
    }
    sync_block();
}

/// The first bin at which the running sum reaches `target`, and the sum before it; [`BINS`] when none.
///
/// Every warp sums a section of the bins; the first warp finds the section and then the bin.
#[inline(always)]
unsafe fn find_bin(target: u64) -> (u32, u64) {
    const SECTION: u32 = BINS / 32;
    let bin = warp() * SECTION + lane();
    let sum = warp_sum_u64(ld_shared_b64(bins() + bin * 8) + ld_shared_b64(bins() + (bin + 32) * 8));
    if lane() == 0 {
        st_shared_b64(warp_sums() + warp() * 8, sum);
    }
    sync_block();
    if warp() == 0 {
        let (section, before) = first_reaching(ld_shared_b64(warp_sums() + lane() * 8), 0, target);
        let start = section % 32 * SECTION;
        let low = ld_shared_b64(bins() + (start + lane()) * 8);
        let (in_low, before_low) = first_reaching(low, before, target);
        let high = ld_shared_b64(bins() + (start + 32 + lane()) * 8);
        let (in_high, before_high) = first_reaching(high, before + warp_sum_u64(low), target);
        let (offset, before) = if in_low < 32 { (in_low, before_low) } else { (32 + in_high, before_high) };
        if lane() == 0 {
            st_shared_b32(found(), if section < 32 { start + offset } else { BINS });
            st_shared_b64(found() + 8, before);
        }
    }
    sync_block();
    (ld_shared_b32(found()), ld_shared_b64(found() + 8))
}

/// First lane at which `before` plus the running sum of `own` reaches `target`, and the sum before that
/// lane; 32 when none does. The same in all lanes of the warp.
#[inline(always)]
fn first_reaching(own: u64, before: u64, target: u64) -> (u32, u64) {
    let upto = before + prefix_sum(own);
    let reached = ballot(upto >= target).trailing_zeros();
    let before = upto - own;
    let low = broadcast(before as u32, reached % 32);
    let high = broadcast((before >> 32) as u32, reached % 32);
    (reached, u64::from(high) << 32 | u64::from(low))
}

/// Inclusive prefix sum over the lanes.
#[inline(always)]
fn prefix_sum(x: u64) -> u64 {
    let x = add_from::<1>(x);
    let x = add_from::<2>(x);
    let x = add_from::<4>(x);
    let x = add_from::<8>(x);
    add_from::<16>(x)
}

#[inline(always)]
fn add_from<const DELTA: u32>(x: u64) -> u64 {
    let below = u64::from(up::<DELTA>((x >> 32) as u32)) << 32 | u64::from(up::<DELTA>(x as u32));
    if lane() >= DELTA { x + below } else { x }
}
