//! The tile of a tensor-core product: a ring of stages in shared memory, filled by `cp.async`.

use crate::params::Gemm;
use crate::ptx::mma::{ldmatrix_x4, m16n8k16};
use crate::ptx::shared::st_v4;
use crate::ptx::special::{lane, opaque, tid_x, warp};
use crate::ptx::{Global, Shared, async_copy};
use crate::tile::bf16::{BYTES, PER_VECTOR, gather8};
use crate::tile::swizzle;

/// Elements of k in one stage.
pub const BLOCK_K: u32 = 64;
/// 16-byte chunks in a row of a stage.
const CHUNKS: u32 = BLOCK_K / PER_VECTOR;
/// Bytes of a row of a stage.
const ROW_BYTES: u32 = BLOCK_K * 2;

/// A block's tile: `WARPS_M × WARPS_N` warps, each `MT` tiles of 16 rows by `NP` pairs of 8 columns.
///
/// `STAGES` stages of `(BLOCK_M + BLOCK_N) · 128` bytes lie in dynamic shared memory.
pub struct Tile<const WARPS_M: u32, const WARPS_N: u32, const MT: usize, const NP: usize, const STAGES: u32>;

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
    #[inline(always)]
    fn new(matrix: Global, n_rows: u32, stride: u32, k: u32, first_row: u32, threads: u32) -> Self {
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

    /// Loads `WARPS · TILES · 16` rows of `k_tile`.
    #[inline(always)]
    unsafe fn load<const TILES: usize, const WARPS: u32>(&self, to: Shared, k_tile: u32, threads: u32) {
        let rows_per_pass = threads / CHUNKS;
        let n_passes = WARPS * TILES as u32 * 16 / rows_per_pass;
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

/// Accumulators of a warp: `[row tile][column pair][column tile]`.
pub type Accumulators<const MT: usize, const NP: usize> = [[[[f32; 4]; 2]; NP]; MT];

impl<const WARPS_M: u32, const WARPS_N: u32, const MT: usize, const NP: usize, const STAGES: u32>
    Tile<WARPS_M, WARPS_N, MT, NP, STAGES>
{
    /// Rows of `a` in the tile.
    pub const BLOCK_M: u32 = WARPS_M * MT as u32 * 16;
    /// Rows of `w` in the tile.
    pub const BLOCK_N: u32 = WARPS_N * NP as u32 * 16;
    const THREADS: u32 = WARPS_M * WARPS_N * 32;
    const STAGE_BYTES: u32 = (Self::BLOCK_M + Self::BLOCK_N) * ROW_BYTES;

    /// Shared address of a stage's rows of `a`; those of `w` follow.
    #[inline(always)]
    pub fn stage(base: Shared, k_tile: u32) -> Shared {
        base + (k_tile % STAGES) * Self::STAGE_BYTES
    }

    /// What copies this block's rows of `a`.
    #[inline(always)]
    pub fn a_loader(p: &Gemm, first_row: u32) -> Loader {
        Loader::new(p.a, p.m, p.ld_a, p.k, first_row, Self::THREADS)
    }

    /// What copies this block's rows of `w`.
    #[inline(always)]
    pub fn w_loader(p: &Gemm, first_row: u32) -> Loader {
        Loader::new(p.w, p.n, p.k, p.k, first_row, Self::THREADS)
    }

    /// Issues the copies of `k_tile` of `a`.
    #[inline(always)]
    pub unsafe fn load_a(loader: &Loader, stage: Shared, k_tile: u32) {
        loader.load::<MT, WARPS_M>(stage, k_tile, Self::THREADS);
    }

    /// Issues the copies of `k_tile` of `w`.
    #[inline(always)]
    pub unsafe fn load_w(loader: &Loader, stage: Shared, k_tile: u32) {
        loader.load::<NP, WARPS_N>(stage + Self::BLOCK_M * ROW_BYTES, k_tile, Self::THREADS);
    }

    /// Multiplies one stage into the accumulators.
    #[inline(always)]
    pub unsafe fn multiply(stage: Shared, acc: &mut Accumulators<MT, NP>) {
        let a_rows = (warp() % WARPS_M) * MT as u32 * 16;
        let w_rows = (warp() / WARPS_M) * NP as u32 * 16;
        let w_stage = stage + Self::BLOCK_M * ROW_BYTES;
        for kk in 0..BLOCK_K / 16 {
            let mut a = [[0; 4]; MT];
            for mt in 0..MT {
                let row = a_rows + mt as u32 * 16 + lane() % 16;
                a[mt] = ldmatrix_x4(swizzle::address::<CHUNKS>(stage, row, kk * 2 + lane() / 16));
            }
            for np in 0..NP {
                let row = w_rows + np as u32 * 16 + lane() % 8 + lane() / 16 * 8;
                let w = ldmatrix_x4(swizzle::address::<CHUNKS>(w_stage, row, kk * 2 + lane() / 8 % 2));
                for mt in 0..MT {
                    m16n8k16(&mut acc[mt][np][0], &a[mt], [w[0], w[1]]);
                    m16n8k16(&mut acc[mt][np][1], &a[mt], [w[2], w[3]]);
                }
            }
        }
    }

    /// Calls `each` with row, even column (both relative to the block's tile) and two neighbouring
    /// results, for all that this thread holds.
    #[inline(always)]
    pub fn for_each_pair(acc: &Accumulators<MT, NP>, mut each: impl FnMut(u32, u32, [f32; 2])) {
        let row = (warp() % WARPS_M) * MT as u32 * 16 + lane() / 4;
        let col = (warp() / WARPS_M) * NP as u32 * 16 + lane() % 4 * 2;
        for mt in 0..MT {
            for np in 0..NP {
                for half in 0..2 {
                    let d = acc[mt][np][half];
                    let col = col + np as u32 * 16 + half as u32 * 8;
                    each(row + mt as u32 * 16, col, [d[0], d[1]]);
                    each(row + mt as u32 * 16 + 8, col, [d[2], d[3]]);
                }
            }
        }
    }
}
