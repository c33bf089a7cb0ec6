//! Rotary embedding and the write to the paged KV cache, behind the fused qkv projection.

use crate::attention::paged::row_offset;
use crate::params::RopeKvWrite;
use crate::ptx::global::{ld_b32, ld_f32, st_b32};
use crate::ptx::math::{bf16x2, cos, fma, round, sin};
use crate::ptx::special::{ctaid_x, ctaid_y, nctaid_y, ntid_x, tid_x};
use crate::ptx::{Global, pdl};
use crate::tile::bf16::{BYTES, unpack};

kernel! {
    /// Rotates q in place and k on its way to the cache; copies v to the cache. head_dim 64.
    ///
    /// # Shape and layout
    /// Rotation by halves: dimensions i and i + head_dim/2 turn by `position · inv_freq[i]`. Cache
    /// slot: page `block_table[sequence][position / page_size]`, row `position % page_size`.
    ///
    /// # Thread mapping
    /// Grid (tokens, any): the second dimension shares a token's heads. head_dim/4 threads hold one
    /// head, each two dimensions of either half, and keep their sines for all heads.
    ///
    /// # Safety
    /// The grid covers `n_tokens`; the block is a multiple of head_dim/4; every position has a page in
    /// the block table, no two tokens share a slot, and no other kernel reads those slots meanwhile.
    #[launch_bounds(512, 1)]
    pub fn rope_kv_write_bf16_d64(p: RopeKvWrite) {
        rope_kv_write::<64>(&p);
    }
}

kernel! {
    /// [`rope_kv_write_bf16_d64`] for head_dim 128.
    ///
    /// # Safety
    /// As there.
    #[launch_bounds(512, 1)]
    pub fn rope_kv_write_bf16_d128(p: RopeKvWrite) {
        rope_kv_write::<128>(&p);
    }
}

#[inline(always)]
unsafe fn rope_kv_write<const HEAD_DIM: u32>(p: &RopeKvWrite) {
    let lanes_per_head = HEAD_DIM / 4;
    let token = u64::from(ctaid_x());
    let dim = (tid_x() % lanes_per_head) * 2;
    let heads_per_block = ntid_x() / lanes_per_head;
    let inv_freq = [ld_f32(p.inv_freq + u64::from(dim) * 4), ld_f32(p.inv_freq + u64::from(dim + 1) * 4)];

    pdl::launch_dependents();
    pdl::wait();

    let position = ld_b32(p.positions + token * 4);
    let sequence = ld_b32(p.sequences + token * 4);
    let (sin0, cos0) = sin_cos(position as f32 * inv_freq[0]);
    let (sin1, cos1) = sin_cos(position as f32 * inv_freq[1]);

    let n_kv_heads = p.cache.n_kv_heads;
    let n_rows = p.n_heads + 2 * n_kv_heads;
    let mut head = ctaid_y() * heads_per_block + tid_x() / lanes_per_head;
    while head < n_rows {
        let row = p.qkv + (token * u64::from(n_rows) + u64::from(head)) * u64::from(HEAD_DIM) * BYTES;
        let (low, high) = (ld_b32(half::<HEAD_DIM>(row, dim, 0)), ld_b32(half::<HEAD_DIM>(row, dim, 1)));
        let ([a0, a1], [b0, b1]) = (unpack(low), unpack(high));
        let rotated_low = bf16x2(fma(a0, cos0, -b0 * sin0), fma(a1, cos1, -b1 * sin1));
        let rotated_high = bf16x2(fma(b0, cos0, a0 * sin0), fma(b1, cos1, a1 * sin1));

        let (target, values) = if head < p.n_heads {
            (row, (rotated_low, rotated_high))
        } else if head < p.n_heads + n_kv_heads {
            let offset = row_offset::<HEAD_DIM>(&p.cache, sequence, head - p.n_heads, position);
            (p.cache.k + offset, (rotated_low, rotated_high))
        } else {
            let offset = row_offset::<HEAD_DIM>(&p.cache, sequence, head - p.n_heads - n_kv_heads, position);
            (p.cache.v + offset, (low, high))
        };
        st_b32(half::<HEAD_DIM>(target, dim, 0), values.0);
        st_b32(half::<HEAD_DIM>(target, dim, 1), values.1);
        head += heads_per_block * nctaid_y();
    }
}

/// Address of dimension `dim` of the lower or upper half of a head.
#[inline(always)]
fn half<const HEAD_DIM: u32>(row: Global, dim: u32, which: u32) -> Global {
    row + u64::from(dim + which * (HEAD_DIM / 2)) * BYTES
}

/// Sine and cosine for any angle of a context below 2^20 positions.
///
/// The angle is brought to [−π, π] by three-part reduction: the first product is exact, because 2π's
/// leading part has few enough bits beside the number of turns.
#[inline(always)]
fn sin_cos(angle: f32) -> (f32, f32) {
    const TURNS_PER_RADIAN: f32 = 0.159_154_94;
    const TWO_PI_HIGH: f32 = 6.281_25;
    const TWO_PI_MIDDLE: f32 = 0.001_935_307_2;
    const TWO_PI_LOW: f32 = 1.025_337_6e-11;
    let turns = round(angle * TURNS_PER_RADIAN);
    let r = fma(-turns, TWO_PI_HIGH, angle);
    let r = fma(-turns, TWO_PI_MIDDLE, r);
    let r = fma(-turns, TWO_PI_LOW, r);
    (sin(r), cos(r))
}
