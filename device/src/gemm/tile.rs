//! The tile of a tensor-core product: a ring of stages in shared memory, filled by `cp.async`.

use crate::gemm::loader::{BLOCK_K, CHUNKS, Loader, ROW_BYTES};
use crate::params::Gemm;
use crate::ptx::Shared;
use crate::ptx::mma::{ldmatrix_x4, m16n8k16};
use crate::ptx::special::{lane, warp};
use crate::tile::swizzle;

/// A block's tile: `WARPS_M × WARPS_N` warps, each `MT` tiles of 16 rows by `NP` pairs of 8 columns.
///
/// `STAGES` stages of `(BLOCK_M + BLOCK_N) · 128` bytes lie in dynamic shared memory.
pub struct Tile<const WARPS_M: u32, const WARPS_N: u32, const MT: usize, const NP: usize, const STAGES: u32>;

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
        loader.load(stage, k_tile, Self::BLOCK_M, Self::THREADS);
    }

    /// Issues the copies of `k_tile` of `w`.
    #[inline(always)]
    pub unsafe fn load_w(loader: &Loader, stage: Shared, k_tile: u32) {
        loader.load(stage + Self::BLOCK_M * ROW_BYTES, k_tile, Self::BLOCK_N, Self::THREADS);
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
