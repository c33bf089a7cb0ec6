//! Causal attention of a prompt, or of a chunk of one.

use crate::attention::flash::Rows;
use crate::attention::paged::load_tile;
use crate::params::AttnPrefill;
use crate::ptx::barrier::sync_block;
use crate::ptx::global::{ld_b32, st_b32};
use crate::ptx::math::{bf16x2, rcp};
use crate::ptx::mma::ldmatrix_x4;
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, lane, nctaid_x, tid_x, warp};
use crate::ptx::{Shared, async_copy, pdl, shared};
use crate::tile::bf16::{BYTES, PER_VECTOR};
use crate::tile::swizzle;

const WARPS: u32 = 8;
const THREADS: u32 = WARPS * 32;
/// Query tokens of a block.
const BLOCK_Q: u32 = WARPS * 16;
/// Keys of a tile.
const BLOCK_KV: u32 = 64;
const KV_PAIRS: usize = (BLOCK_KV / 16) as usize;

kernel! {
    /// Causal attention, head_dim 64.
    ///
    /// # Shape and layout
    /// See [`AttnPrefill`]. Query token i of a sequence stands at position `kv_len - q_len + i` and
    /// sees the positions up to its own. Any page size that is a power of two.
    ///
    /// # Thread mapping
    /// Grid (tiles of 128 query tokens of the longest sequence, query heads, sequences); 256 threads, 16
    /// query tokens a warp. Long tiles come first. Dynamic shared memory: 512 · head_dim bytes, two
    /// stages of 64 keys and values.
    ///
    /// # Memory order
    /// As in the GEMM: a stage is refilled after the barrier that follows its last use.
    ///
    /// # Safety
    /// Every position below `kv_len` has a page and is written; `out` overlaps nothing.
    #[launch_bounds(256, 1)]
    pub fn attn_prefill_bf16_d64(p: AttnPrefill) {
        attn_prefill::<64, 8, 4>(&p);
    }
}

kernel! {
    /// [`attn_prefill_bf16_d64`] for head_dim 128.
    ///
    /// # Safety
    /// As there.
    #[launch_bounds(256, 1)]
    pub fn attn_prefill_bf16_d128(p: AttnPrefill) {
        attn_prefill::<128, 16, 8>(&p);
    }
}

#[inline(always)]
unsafe fn attn_prefill<const HEAD_DIM: u32, const CHUNKS: u32, const KT: usize>(p: &AttnPrefill) {
    let tile = nctaid_x() - 1 - ctaid_x();
    let (head, sequence) = (ctaid_y(), ctaid_z());
    let kv_head = ld_b32(p.kv_head_of + u64::from(head) * 4);
    pdl::launch_dependents();
    pdl::wait();

    // This block's queries: `first..first + n` of the sequence.
    let q_start = ld_b32(p.q_starts + u64::from(sequence) * 4);
    let q_len = ld_b32(p.q_starts + u64::from(sequence + 1) * 4) - q_start;
    let kv_len = ld_b32(p.kv_lens + u64::from(sequence) * 4);
    let first = tile * BLOCK_Q;
    if first >= q_len {
        return;
    }
    let n = (q_len - first).min(BLOCK_Q);
    let first_position = kv_len - q_len + first;
    let kv_end = first_position + n;
    let n_tiles = kv_end.div_ceil(BLOCK_KV);

    // Shared memory: two stages of keys and values; the queries pass through the second.
    let tile_bytes = BLOCK_KV * HEAD_DIM * 2;
    let base = shared::dynamic();
    let stage = |i: u32| (base + i % 2 * 2 * tile_bytes, base + (i % 2 * 2 + 1) * tile_bytes);
    let load = |i: u32| {
        let span = (i * BLOCK_KV, kv_end);
        // SAFETY: tokens below kv_end have pages.
        unsafe {
            load_tile::<HEAD_DIM, CHUNKS, BLOCK_KV, false>(
                &p.cache,
                sequence,
                kv_head,
                stage(i),
                span,
                (tid_x(), THREADS),
            );
            async_copy::commit();
        }
    };

    load_queries::<HEAD_DIM, CHUNKS>(p, stage(1).0, head, q_start + first, n);
    load(0);
    async_copy::wait::<1>();
    sync_block();
    let mut rows = Rows::<KT>::new(fragments::<CHUNKS, KT>(stage(1).0));
    sync_block();

    let scale = p.scale * core::f32::consts::LOG2_E;
    let row_position = (first_position + warp() * 16 + lane() / 4) as i32;
    for i in 0..n_tiles {
        if i + 1 < n_tiles {
            load(i + 1);
            async_copy::wait::<1>();
        } else {
            async_copy::wait::<0>();
        }
        sync_block();
        let tile_start = (i * BLOCK_KV) as i32;
        let visible = [row_position - tile_start + 1, row_position - tile_start + 9];
        let masked = (i + 1) * BLOCK_KV > first_position + 1;
        let (k, v) = stage(i);
        rows.attend::<KV_PAIRS, CHUNKS>(k, v, visible, masked, scale);
        sync_block();
    }
    rows.finish();
    store::<HEAD_DIM, KT>(p, &rows, head, q_start + first, n);
}

/// Issues and commits the copies of `n` query rows; further rows become zeros.
#[inline(always)]
unsafe fn load_queries<const HEAD_DIM: u32, const CHUNKS: u32>(
    p: &AttnPrefill,
    to: Shared,
    head: u32,
    token: u32,
    n: u32,
) {
    let chunk = tid_x() % CHUNKS;
    let rows_per_pass = THREADS / CHUNKS;
    for pass in 0..BLOCK_Q / rows_per_pass {
        let row = tid_x() / CHUNKS + pass * rows_per_pass;
        let column = u64::from(head * HEAD_DIM + chunk * PER_VECTOR);
        let (source, bytes) = if row < n {
            (p.q + (u64::from(token + row) * u64::from(p.ld_q) + column) * BYTES, 16)
        } else {
            (p.q, 0)
        };
        async_copy::copy_16(swizzle::address::<CHUNKS>(to, row, chunk), source, bytes);
    }
    async_copy::commit();
}

/// This warp's 16 query rows as left operands.
#[inline(always)]
unsafe fn fragments<const CHUNKS: u32, const KT: usize>(tile: Shared) -> [[u32; 4]; KT] {
    let mut q = [[0; 4]; KT];
    for kt in 0..KT {
        let row = warp() * 16 + lane() % 16;
        q[kt] = ldmatrix_x4(swizzle::address::<CHUNKS>(tile, row, kt as u32 * 2 + lane() / 16));
    }
    q
}

#[inline(always)]
unsafe fn store<const HEAD_DIM: u32, const KT: usize>(
    p: &AttnPrefill,
    rows: &Rows<KT>,
    head: u32,
    token: u32,
    n: u32,
) {
    for h in 0..2 {
        let row = warp() * 16 + lane() / 4 + 8 * h as u32;
        if row >= n {
            continue;
        }
        let inverse = rcp(rows.sum[h]);
        let target =
            u64::from(token + row) * u64::from(p.ld_out) + u64::from(head * HEAD_DIM + lane() % 4 * 2);
        for kt in 0..KT {
            for half in 0..2 {
                let d = &rows.out[kt][half];
                let column = (kt * 16 + half * 8) as u64;
                let pair = bf16x2(d[2 * h] * inverse, d[2 * h + 1] * inverse);
                st_b32(p.out + (target + column) * BYTES, pair);
            }
        }
    }
}
