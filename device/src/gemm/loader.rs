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
    stride_bytes: u64,
    /// The thread's rows that exist are those whose distance from its first is below this.
    rows_left: u32,
    /// The thread's first element of k.
    column: u32,
    k: u32,
    /// Rows are 16-byte aligned.
    aligned: bool,
}

impl Loader {
    /// Of the rows of `matrix` from `first_row` on.
    #[inline(always)]
    pub fn new(matrix: Global, n_rows: u32, stride: u32, k: u32, first_row: u32) -> Self {
        Self::starting_at(matrix, n_rows, stride, k, first_row + tid_x() / CHUNKS)
    }

    /// The same for operands in [`permuted`](Self::load_permuted) order.
    #[inline(always)]
    pub fn new_permuted(matrix: Global, n_rows: u32, stride: u32, k: u32, first_row: u32) -> Self {
        let r = tid_x() / CHUNKS % 16;
        Self::starting_at(matrix, n_rows, stride, k, first_row + r % 8 / 2 * 8 + r / 8 * 2 + r % 2)
    }

    #[inline(always)]
    fn starting_at(matrix: Global, n_rows: u32, stride: u32, k: u32, row: u32) -> Self {
        let column = tid_x() % CHUNKS * PER_VECTOR;
        Self {
            matrix,
            source: matrix + (u64::from(row) * u64::from(stride) + u64::from(column)) * BYTES,
            stride_bytes: u64::from(stride) * BYTES,
            rows_left: n_rows.saturating_sub(row),
            column,
            k,
            aligned: stride.is_multiple_of(PER_VECTOR) && k.is_multiple_of(PER_VECTOR),
        }
    }

    /// Loads `n_rows` rows of `k_tile`: a constant, like `threads`, so that the passes are unrolled.
    #[inline(always)]
    pub unsafe fn load(&self, to: Shared, k_tile: u32, n_rows: u32, threads: u32) {
        let per_pass = threads / CHUNKS;
        self.load_passes(to, k_tile, n_rows / per_pass, per_pass, |pass| pass * per_pass);
    }

    /// Loads `n_rows` rows of `k_tile` by 128 threads, of each 32 row 8t + 2j + e as row 8j + 2t + e (t, j below 4, e
    /// below 2). Where this is the right operand of a product, a lane's sums of 32 columns are eight neighbours.
    #[inline(always)]
    pub unsafe fn load_permuted(&self, to: Shared, k_tile: u32, n_rows: u32) {
        self.load_passes(to, k_tile, n_rows / 16, 16, |pass| pass / 2 * 32 + pass % 2 * 4);
    }

    /// `per_pass` rows a pass; `offset` is how far behind its first the thread's row of a pass is.
    #[inline(always)]
    unsafe fn load_passes(
        &self,
        to: Shared,
        k_tile: u32,
        n_passes: u32,
        per_pass: u32,
        offset: impl Fn(u32) -> u32,
    ) {
        let column = self.column + k_tile * BLOCK_K;
        let rows = if column < self.k { self.rows_left } else { 0 };
        let source = self.source + u64::from(k_tile * BLOCK_K) * BYTES;
        let target = swizzle::address::<CHUNKS>(to, tid_x() / CHUNKS, tid_x() % CHUNKS);
        if self.aligned {
            for pass in 0..n_passes {
                let inside = offset(pass) < rows;
                let source = source + u64::from(offset(pass)) * self.stride_bytes;
                // Where nothing is read the address must still be one of the matrix.
                let source = if inside { source } else { self.matrix };
                // Rows a multiple of 8 apart are swizzled alike.
                async_copy::copy_16(target + pass * per_pass * ROW_BYTES, source, if inside { 16 } else { 0 });
            }
            return;
        }
        for pass in 0..opaque(n_passes) {
            let inside = offset(pass) < rows;
            let row =
                self.source - u64::from(self.column) * BYTES + u64::from(offset(pass)) * self.stride_bytes;
            let vector = if inside { gather8(row, column, self.k) } else { [0; 4] };
            st_v4(target + pass * per_pass * ROW_BYTES, vector);
        }
    }
}
