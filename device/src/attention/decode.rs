//! Attention of one query token per sequence, split along the cache and merged in the same launch.

use crate::attention::flash::{FLOOR, Rows};
use crate::attention::paged::load_tile;
use crate::params::AttnDecode;
use crate::ptx::atomic::add_acq_rel_gpu;
use crate::ptx::barrier::{sync_block, sync_warp};
use crate::ptx::global::{ld_b32, ld_f32, ld_v4, st_b32, st_f32};
use crate::ptx::math::{bf16x2, exp2, fma, max, rcp};
use crate::ptx::shared::{ld_b32 as ld_shared_b32, ld_f32 as ld_shared_f32};
use crate::ptx::shared::{st_b32 as st_shared_b32, st_f32 as st_shared_f32, st_v2_f32 as st_shared_v2_f32};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, lane, nctaid_x, tid_x, warp};
use crate::ptx::{Global, Shared, async_copy, pdl, shared};
use crate::tile::bf16::{BYTES, store};
use crate::tile::reduce::{warp_max, warp_sum};

const WARPS: u32 = 4;
const THREADS: u32 = WARPS * 32;
/// Keys of a warp's tile; also query heads of a pass.
const TILE: u32 = 16;
/// A split is a multiple of this many tokens: one tile per warp.
const SPLIT_GRANULE: u32 = WARPS * TILE;

shared_array! {
    /// Maximum and sum of each warp's rows.
    warp_stats: 512 bytes, align 16
}
shared_array! {
    /// Whether this block is the last of its KV head.
    is_last: 4 bytes, align 4
}

kernel! {
    /// Decode attention, head_dim 64.
    ///
    /// # Shape and layout
    /// See [`AttnDecode`]. Any number of query heads per KV head, also different ones; any page size
    /// that is a power of two.
    ///
    /// # Thread mapping
    /// Grid (n_splits, KV heads, sequences); 128 threads. A block attends to one split of a sequence for
    /// all query heads of a KV head, 16 at a time: they are the rows of the products, so keys and values
    /// are read once. A warp has every fourth tile of 16 tokens and two stages of its own. Dynamic
    /// shared memory: 512 · head_dim bytes.
    ///
    /// # Memory order
    /// A split's result goes to scratch; the block then counts itself in `counters` by an
    /// acquire-release atomic. The block that counts last sees all results, merges them in split order
    /// and leaves the counter zero, so that a captured launch can be replayed. Splits without tokens
    /// neither write nor count. Two launches must not share scratch or counters at the same time.
    ///
    /// # Safety
    /// Every position below `kv_len` has a page and is written; scratch has the sizes given; a KV head's
    /// query heads times `n_splits` are at most 128 · head_dim.
    #[launch_bounds(128, 2)]
    pub fn attn_decode_bf16_d64(p: AttnDecode) {
        attn_decode::<64, 8, 4>(&p);
    }
}

kernel! {
    /// [`attn_decode_bf16_d64`] for head_dim 128.
    ///
    /// # Safety
    /// As there.
    #[launch_bounds(128, 2)]
    pub fn attn_decode_bf16_d128(p: AttnDecode) {
        attn_decode::<128, 16, 8>(&p);
    }
}

/// What a block works on.
struct Work {
    sequence: u32,
    kv_head: u32,
    /// Query heads: a range of `group_heads`.
    group: (u32, u32),
    /// Tokens of the split.
    span: (u32, u32),
    split: u32,
    /// Splits that have tokens.
    n_active: u32,
}

#[inline(always)]
unsafe fn attn_decode<const HEAD_DIM: u32, const CHUNKS: u32, const KT: usize>(p: &AttnDecode) {
    let kv_head = ctaid_y();
    let starts = p.group_starts + u64::from(kv_head) * 4;
    let group = (ld_b32(starts), ld_b32(starts + 4));
    pdl::launch_dependents();
    pdl::wait();

    let (split, sequence) = (ctaid_x(), ctaid_z());
    let kv_len = ld_b32(p.kv_lens + u64::from(sequence) * 4);
    let split_len = kv_len.div_ceil(nctaid_x()).next_multiple_of(SPLIT_GRANULE).max(SPLIT_GRANULE);
    // A sequence without tokens is one empty split, which writes zeros.
    let n_active = kv_len.div_ceil(split_len).max(1);
    if split >= n_active {
        return;
    }
    let start = split * split_len;
    let span = (start, (start + split_len).min(kv_len));
    let work = Work { sequence, kv_head, group, span, split, n_active };

    let mut first = group.0;
    while first < group.1 {
        attend_group::<HEAD_DIM, CHUNKS, KT>(p, &work, first);
        first += TILE;
    }
    if n_active > 1 && count_in(p, &work) {
        merge::<HEAD_DIM>(p, &work);
    }
}

/// Attends to the split for up to 16 heads from `first` on, and writes output or scratch.
#[inline(always)]
unsafe fn attend_group<const HEAD_DIM: u32, const CHUNKS: u32, const KT: usize>(
    p: &AttnDecode,
    work: &Work,
    first: u32,
) {
    let n_heads = (work.group.1 - first).min(TILE);
    let tile_bytes = TILE * HEAD_DIM * 2;
    let base = shared::dynamic() + warp() * 4 * tile_bytes;
    let stage = |i: u32| (base + i % 2 * 2 * tile_bytes, base + (i % 2 * 2 + 1) * tile_bytes);
    let tile_start = |i: u32| work.span.0 + (i * WARPS + warp()) * TILE;
    let load = |i: u32| {
        let span = (tile_start(i), work.span.1);
        // SAFETY: tokens inside the split have pages.
        unsafe {
            load_tile::<HEAD_DIM, CHUNKS, TILE, true>(
                &p.cache,
                work.sequence,
                work.kv_head,
                stage(i),
                span,
                (lane(), 32),
            );
            async_copy::commit();
        }
    };

    load(0);
    let mut rows = Rows::<KT>::new(queries::<HEAD_DIM, KT>(p, work, first, n_heads));
    let scale = p.scale * core::f32::consts::LOG2_E;
    let mut i = 0;
    while tile_start(i) < work.span.1 {
        load(i + 1);
        async_copy::wait::<1>();
        sync_warp();
        let visible = (work.span.1 - tile_start(i)) as i32;
        let (k, v) = stage(i);
        rows.attend::<1, CHUNKS>(k, v, [visible; 2], visible < TILE as i32, scale);
        sync_warp();
        i += 1;
    }
    rows.finish();
    async_copy::wait::<0>();
    combine_warps::<HEAD_DIM, KT>(p, work, first, n_heads, &rows);
}

/// The heads' queries as left operands; rows beyond `n_heads` are zeros.
#[inline(always)]
unsafe fn queries<const HEAD_DIM: u32, const KT: usize>(
    p: &AttnDecode,
    work: &Work,
    first: u32,
    n_heads: u32,
) -> [[u32; 4]; KT] {
    let mut q = [[0; 4]; KT];
    for h in 0..2 {
        let row = lane() / 4 + 8 * h as u32;
        if row >= n_heads {
            continue;
        }
        let head = ld_b32(p.group_heads + u64::from(first + row) * 4);
        let offset =
            u64::from(work.sequence) * u64::from(p.ld_q) + u64::from(head * HEAD_DIM + lane() % 4 * 2);
        for kt in 0..KT {
            q[kt][h] = ld_b32(p.q + (offset + kt as u64 * 16) * BYTES);
            q[kt][h + 2] = ld_b32(p.q + (offset + kt as u64 * 16 + 8) * BYTES);
        }
    }
    q
}

/// Joins the four warps' rows in shared memory and writes the split's result.
#[inline(always)]
unsafe fn combine_warps<const HEAD_DIM: u32, const KT: usize>(
    p: &AttnDecode,
    work: &Work,
    first: u32,
    n_heads: u32,
    rows: &Rows<KT>,
) {
    // The stages are done with: each warp's [16, head_dim] f32 takes their place.
    let sums = shared::dynamic();
    sync_block();
    for h in 0..2 {
        let row = lane() / 4 + 8 * h as u32;
        if lane().is_multiple_of(4) {
            st_shared_v2_f32(warp_stats() + (warp() * TILE + row) * 8, [rows.max[h], rows.sum[h]]);
        }
        let target = sums + ((warp() * TILE + row) * HEAD_DIM + lane() % 4 * 2) * 4;
        for kt in 0..KT {
            for half in 0..2 {
                let d = &rows.out[kt][half];
                st_shared_v2_f32(target + (kt * 16 + half * 8) as u32 * 4, [d[2 * h], d[2 * h + 1]]);
            }
        }
    }
    sync_block();

    let mut i = tid_x();
    while i < n_heads * HEAD_DIM {
        let (row, dim) = (i / HEAD_DIM, i % HEAD_DIM);
        let (row_max, row_sum, value) = join_row::<HEAD_DIM>(sums, row, dim);
        let head = ld_b32(p.group_heads + u64::from(first + row) * 4);
        if work.n_active == 1 {
            // Without tokens the sum is zero, and so is the value.
            let value = if row_sum > 0.0 { value * rcp(row_sum) } else { 0.0 };
            store(p.out, out_index::<HEAD_DIM>(p, work, head) + u64::from(dim), value);
        } else {
            let slot = partial_slot(p, work, head, work.split);
            st_f32(p.partial_out + (slot * u64::from(HEAD_DIM) + u64::from(dim)) * 4, value);
            if dim == 0 {
                st_f32(p.partial_stats + slot * 8, row_max);
                st_f32(p.partial_stats + slot * 8 + 4, row_sum);
            }
        }
        i += THREADS;
    }
    sync_block();
}

/// Maximum, sum and one value of a row over the four warps.
#[inline(always)]
unsafe fn join_row<const HEAD_DIM: u32>(sums: Shared, row: u32, dim: u32) -> (f32, f32, f32) {
    let stats = |w: u32| warp_stats() + (w * TILE + row) * 8;
    let mut row_max = ld_shared_f32(stats(0));
    for w in 1..WARPS {
        row_max = max(row_max, ld_shared_f32(stats(w)));
    }
    let (mut row_sum, mut value) = (0.0, 0.0);
    for w in 0..WARPS {
        let weight = exp2(ld_shared_f32(stats(w)) - row_max);
        row_sum += weight * ld_shared_f32(stats(w) + 4);
        value += weight * ld_shared_f32(sums + ((w * TILE + row) * HEAD_DIM + dim) * 4);
    }
    (row_max, row_sum, value)
}

#[inline(always)]
fn out_index<const HEAD_DIM: u32>(p: &AttnDecode, work: &Work, head: u32) -> u64 {
    u64::from(work.sequence) * u64::from(p.ld_out) + u64::from(head * HEAD_DIM)
}

/// Index of a (sequence, head, split) in scratch.
#[inline(always)]
fn partial_slot(p: &AttnDecode, work: &Work, head: u32, split: u32) -> u64 {
    let row = u64::from(work.sequence) * u64::from(p.n_heads) + u64::from(head);
    row * u64::from(nctaid_x()) + u64::from(split)
}

/// Counts this block; true in the block that completes the sequence's KV head.
#[inline(always)]
unsafe fn count_in(p: &AttnDecode, work: &Work) -> bool {
    // The barrier before this orders the block's writes before thread 0's release.
    if tid_x() == 0 {
        let n_kv_heads = u64::from(p.cache.n_kv_heads);
        let counter = p.counters + (u64::from(work.sequence) * n_kv_heads + u64::from(work.kv_head)) * 4;
        let last = add_acq_rel_gpu(counter, 1) == work.n_active - 1;
        if last {
            st_b32(counter, 0);
        }
        st_shared_b32(is_last(), u32::from(last));
    }
    sync_block();
    ld_shared_b32(is_last()) != 0
}

/// Splits whose values are in flight together.
const MERGE_BATCH: usize = 8;

/// Merges the splits' results of all heads of the group.
#[inline(always)]
unsafe fn merge<const HEAD_DIM: u32>(p: &AttnDecode, work: &Work) {
    let n_heads = work.group.1 - work.group.0;
    let head_of = |i: u32| {
        // SAFETY: i is an index into the group.
        unsafe { ld_b32(p.group_heads + u64::from(work.group.0 + i) * 4) }
    };
    // The split's sums in shared memory are done with: the weights of all splits take their place.
    let weights = shared::dynamic();
    let mut i = warp();
    while i < n_heads {
        split_weights(p, work, head_of(i), weights + i * work.n_active * 4);
        i += WARPS;
    }
    sync_block();

    // Four dimensions a thread.
    let mut i = tid_x();
    while i < n_heads * (HEAD_DIM / 4) {
        let (index, dim) = (i / (HEAD_DIM / 4), i % (HEAD_DIM / 4) * 4);
        let head = head_of(index);
        let first =
            p.partial_out + (partial_slot(p, work, head, 0) * u64::from(HEAD_DIM) + u64::from(dim)) * 4;
        let value = weighted_sum::<HEAD_DIM>(first, weights + index * work.n_active * 4, work.n_active);
        let out = p.out + (out_index::<HEAD_DIM>(p, work, head) + u64::from(dim)) * BYTES;
        st_b32(out, bf16x2(value[0], value[1]));
        st_b32(out + 4, bf16x2(value[2], value[3]));
        i += THREADS;
    }
}

/// Writes, by one warp, what each split's values of `head` are to be multiplied with.
#[inline(always)]
unsafe fn split_weights(p: &AttnDecode, work: &Work, head: u32, weights: Shared) {
    let stats = p.partial_stats + partial_slot(p, work, head, 0) * 8;
    let mut row_max = FLOOR;
    let mut split = lane();
    while split < work.n_active {
        row_max = max(row_max, ld_f32(stats + u64::from(split) * 8));
        split += 32;
    }
    let row_max = warp_max(row_max);
    let mut sum = 0.0;
    let mut split = lane();
    while split < work.n_active {
        let weight = exp2(ld_f32(stats + u64::from(split) * 8) - row_max);
        sum += weight * ld_f32(stats + u64::from(split) * 8 + 4);
        st_shared_f32(weights + split * 4, weight);
        split += 32;
    }
    let inverse = rcp(warp_sum(sum));
    let mut split = lane();
    while split < work.n_active {
        st_shared_f32(weights + split * 4, ld_shared_f32(weights + split * 4) * inverse);
        split += 32;
    }
}

/// Weighted sum over the splits, in split order, of four values from `first` on.
#[inline(always)]
unsafe fn weighted_sum<const HEAD_DIM: u32>(first: Global, weights: Shared, n_splits: u32) -> [f32; 4] {
    let mut sum = [0.0; 4];
    let mut split = 0;
    while split < n_splits {
        let mut batch = [[0; 4]; MERGE_BATCH];
        for b in 0..MERGE_BATCH {
            // Past the end the last split is read again, with weight zero.
            let split = (split + b as u32).min(n_splits - 1);
            batch[b] = ld_v4(first + u64::from(split) * u64::from(HEAD_DIM) * 4);
        }
        for b in 0..MERGE_BATCH {
            let split = split + b as u32;
            let weight = if split < n_splits { ld_shared_f32(weights + split * 4) } else { 0.0 };
            for j in 0..4 {
                sum[j] = fma(weight, f32::from_bits(batch[b][j]), sum[j]);
            }
        }
        split += MERGE_BATCH as u32;
    }
    sum
}
