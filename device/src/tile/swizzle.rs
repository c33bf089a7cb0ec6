//! Where a 16-byte chunk of a row lies in shared memory.

use crate::ptx::Shared;

/// Bytes of a chunk: one `cp.async`, one `ldmatrix` row.
pub const CHUNK_BYTES: u32 = 16;

/// Address of `chunk` in `row` of a tile with rows of `CHUNKS` chunks (a multiple of 8).
///
/// The chunk index is XORed with the row's low three bits, so that the same chunk of 8 consecutive
/// rows covers all 32 banks: `ldmatrix` and 16-byte stores are free of conflicts.
#[inline(always)]
pub fn address<const CHUNKS: u32>(tile: Shared, row: u32, chunk: u32) -> Shared {
    const { assert!(CHUNKS.is_multiple_of(8)) };
    tile + (row * CHUNKS + (chunk ^ (row & 7))) * CHUNK_BYTES
}
