//! Where a token's keys and values lie, and their way to shared memory.

use crate::params::PagedKv;
use crate::ptx::global::ld_b32;
use crate::ptx::special::opaque;
use crate::ptx::{Shared, async_copy};
use crate::tile::bf16::{BYTES, PER_VECTOR};
use crate::tile::swizzle;

/// The row of one token and KV head, among all of the k or v cache.
#[inline(always)]
pub unsafe fn row(cache: &PagedKv, sequence: u32, kv_head: u32, token: u32) -> u64 {
    let slot = u64::from(sequence) * u64::from(cache.max_pages) + u64::from(token >> cache.page_size_log2);
    let page = ld_b32(cache.block_table + slot * 4);
    let in_page = token & ((1 << cache.page_size_log2) - 1);
    let head = u64::from(page) * u64::from(cache.n_kv_heads) + u64::from(kv_head);
    (head << cache.page_size_log2) + u64::from(in_page)
}

/// Byte offset of that row from the start of the k or v cache.
#[inline(always)]
pub unsafe fn row_offset<const HEAD_DIM: u32>(
    cache: &PagedKv,
    sequence: u32,
    kv_head: u32,
    token: u32,
) -> u64 {
    row(cache, sequence, kv_head, token) * u64::from(HEAD_DIM) * BYTES
}

/// Issues the copies of the keys and values of tokens `start..start + TOKENS` to swizzled tiles of
/// `HEAD_DIM`-wide rows, shared among `threads` threads; tokens from `end` on become zeros.
///
/// `UNROLLED` overlaps the look-ups of all rows, at the price of registers.
#[inline(always)]
pub unsafe fn load_tile<const HEAD_DIM: u32, const CHUNKS: u32, const TOKENS: u32, const UNROLLED: bool>(
    cache: &PagedKv,
    sequence: u32,
    kv_head: u32,
    (k_tile, v_tile): (Shared, Shared),
    (start, end): (u32, u32),
    (thread, threads): (u32, u32),
) {
    const { assert!(CHUNKS * PER_VECTOR == HEAD_DIM) };
    let chunk = thread % CHUNKS;
    let rows_per_pass = threads / CHUNKS;
    let n_passes = TOKENS / rows_per_pass;
    for pass in 0..if UNROLLED { n_passes } else { opaque(n_passes) } {
        let row = thread / CHUNKS + pass * rows_per_pass;
        let token = start + row;
        // Where nothing is read the address must still be one of the cache.
        let (offset, bytes) = if token < end {
            let offset = row_offset::<HEAD_DIM>(cache, sequence, kv_head, token);
            (offset + u64::from(chunk * PER_VECTOR) * BYTES, 16)
        } else {
            (0, 0)
        };
        async_copy::copy_16(swizzle::address::<CHUNKS>(k_tile, row, chunk), cache.k + offset, bytes);
        async_copy::copy_16(swizzle::address::<CHUNKS>(v_tile, row, chunk), cache.v + offset, bytes);
    }
}
