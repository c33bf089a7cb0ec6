//! What fills the stages of a tensor-core product: rows of 64 elements of k, swizzled, by `cp.async`.

use crate::ptx::shared::st_v4;
use crate::ptx::special::{opaque, tid_x};
use crate::ptx::{Global, Shared, async_copy};
use crate::tile::bf16::{BYTES, PER_VECTOR, gather8};
use crate::tile::swizzle;

/// Elements of k in one stage.
pub const BLOCK_K: u32 = 64;
/// 16-byte chunks in a row of a stage.
pub const CHUNKS: u32 = BLOCK_K / PER_VECTOR;
/// Bytes of a row of a stage.
pub const ROW_BYTES: u32 = BLOCK_K * 2;

/// Copies a block of rows of one matrix, stage by stage; rows and columns beyond it become zeros.
///
/// A thread has one 16-byte chunk of every `threads / 8`-th row.
pub struct Loader {
    matrix: Global,
    /// The thread's chunk in its first row and k tile 0.
    source: Global,
    /// From one of the thread's rows to the next.
    pass_bytes: u64,
    /// The thread's rows that exist are those whose distance from its first is below this.
    rows_left: u32,
    /// The thread's first element of k.
    column: u32,
    k: u32,
    /// Rows are 16-byte aligned.
    aligned: bool,
}

impl Loader {
    /// Of the rows of `matrix` from `first_row` on, by so many threads.
    #[inline(always)]
    pub fn new(matrix: Global, n_rows: u32, stride: u32, k: u32, first_row: u32, threads: u32) -> Self {
        let row = first_row + tid_x() / CHUNKS;
        let column = tid_x() % CHUNKS * PER_VECTOR;
        Self {
            matrix,
            source: matrix + (u64::from(row) * u64::from(stride) + u64::from(column)) * BYTES,
            pass_bytes: u64::from(threads / CHUNKS) * u64::from(stride) * BYTES,
            rows_left: n_rows.saturating_sub(row),
            column,
            k,
            aligned: stride.is_multiple_of(PER_VECTOR) && k.is_multiple_of(PER_VECTOR),
        }
    }

    /// Loads `n_rows` rows of `k_tile`: a constant, like `threads`, so that the passes are unrolled.
    #[inline(always)]
    pub unsafe fn load(&self, to: Shared, k_tile: u32, n_rows: u32, threads: u32) {
        let rows_per_pass = threads / CHUNKS;
        let n_passes = n_rows / rows_per_pass;
        let column = self.column + k_tile * BLOCK_K;
        let rows = if column < self.k { self.rows_left } else { 0 };
        let source = self.source + u64::from(k_tile * BLOCK_K) * BYTES;
        let target = swizzle::address::<CHUNKS>(to, tid_x() / CHUNKS, tid_x() % CHUNKS);
        if self.aligned {
            for pass in 0..n_passes {
                let inside = pass * rows_per_pass < rows;
                // Where nothing is read the address must still be one of the matrix.
                let source = if inside { source + u64::from(pass) * self.pass_bytes } else { self.matrix };
                // Rows a multiple of 8 apart are swizzled alike.
                let target = target + pass * rows_per_pass * ROW_BYTES;
                async_copy::copy_16(target, source, if inside { 16 } else { 0 });
            }
            return;
        }
        for pass in 0..opaque(n_passes) {
            let inside = pass * rows_per_pass < rows;
            let row = self.source - u64::from(self.column) * BYTES + u64::from(pass) * self.pass_bytes;
            let vector = if inside { gather8(row, column, self.k) } else { [0; 4] };
            st_v4(target + pass * rows_per_pass * ROW_BYTES, vector);
        }
    }
}
