//! The tiled product over `mma.sync`, for any m, n and k.

use crate::gemm::epilogue::{Add, Epilogue, Store, StoreF32, SwiGlu};
use crate::gemm::loader::BLOCK_K;
use crate::gemm::tile::Tile;
use crate::params::Gemm;
use crate::ptx::barrier::sync_block;
use crate::ptx::special::{ctaid_x, ctaid_y, opaque};
use crate::ptx::{async_copy, pdl, shared};

macro_rules! gemm_kernels {
    ($($name:ident: $threads:literal threads, $min_blocks:literal blocks,
       warps $wm:literal x $wn:literal of $mt:literal x $np:literal, $stages:literal stages, $epilogue:ident, $doc:literal;)*) => {$(
        kernel! {
            #[doc = $doc]
            /// The name gives the tile.
            ///
            /// # Shape and layout
            /// See [`Gemm`]: any `m`, `n`, `k`; `cp.async` where `k` and `ld_a` are multiples of 8, else
            /// element by element. `norm_weight` is not used.
            ///
            /// # Thread mapping
            /// Grid (m tiles, n tiles): blocks that run together share rows of `w`. The block's size is the
            /// launch bound; dynamic shared memory is stages · (tile m + tile n) · 128 bytes.
            ///
            /// # Memory order
            /// A stage is refilled after the barrier that follows its last use; `cp.async` groups are
            /// waited for before that barrier, so all threads see all copies.
            ///
            /// # Safety
            /// All rows exist; `w` is written by no kernel in flight; `out` overlaps no input.
            #[launch_bounds($threads, $min_blocks)]
            pub fn $name(p: Gemm) {
                Tile::<$wm, $wn, $mt, $np, $stages>::product::<$epilogue>(&p);
            }
        }
    )*};
}

gemm_kernels! {
    gemm_bf16_16x32_store: 64 threads, 4 blocks, warps 1 x 2 of 1 x 1, 8 stages, Store, "`out = a · wᵀ` in bf16.";
    gemm_bf16_16x32_f32: 64 threads, 4 blocks, warps 1 x 2 of 1 x 1, 8 stages, StoreF32, "`out = a · wᵀ` in f32.";
    gemm_bf16_16x32_add: 64 threads, 4 blocks, warps 1 x 2 of 1 x 1, 8 stages, Add, "`out += a · wᵀ` in bf16.";
    gemm_bf16_16x32_swiglu: 64 threads, 4 blocks, warps 1 x 2 of 1 x 1, 8 stages, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
    gemm_bf16_64x32_store: 128 threads, 2 blocks, warps 2 x 2 of 2 x 1, 6 stages, Store, "`out = a · wᵀ` in bf16.";
    gemm_bf16_64x32_f32: 128 threads, 2 blocks, warps 2 x 2 of 2 x 1, 6 stages, StoreF32, "`out = a · wᵀ` in f32.";
    gemm_bf16_64x32_add: 128 threads, 2 blocks, warps 2 x 2 of 2 x 1, 6 stages, Add, "`out += a · wᵀ` in bf16.";
    gemm_bf16_64x32_swiglu: 128 threads, 2 blocks, warps 2 x 2 of 2 x 1, 6 stages, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
    gemm_bf16_128x128_store: 128 threads, 2 blocks, warps 2 x 2 of 4 x 4, 3 stages, Store, "`out = a · wᵀ` in bf16.";
    gemm_bf16_128x128_f32: 128 threads, 2 blocks, warps 2 x 2 of 4 x 4, 3 stages, StoreF32, "`out = a · wᵀ` in f32.";
    gemm_bf16_128x128_add: 128 threads, 2 blocks, warps 2 x 2 of 4 x 4, 3 stages, Add, "`out += a · wᵀ` in bf16.";
    gemm_bf16_128x128_swiglu: 128 threads, 2 blocks, warps 2 x 2 of 4 x 4, 3 stages, SwiGlu, "`out = silu(gate) · up` of interleaved `a · wᵀ`.";
}

impl<const WARPS_M: u32, const WARPS_N: u32, const MT: usize, const NP: usize, const STAGES: u32>
    Tile<WARPS_M, WARPS_N, MT, NP, STAGES>
{
    /// The whole kernel for this block's tile.
    #[inline(always)]
    unsafe fn product<E: Epilogue>(p: &Gemm) {
        let row = ctaid_x() * Self::BLOCK_M;
        let col = ctaid_y() * Self::BLOCK_N;
        let (a, w) = (Self::a_loader(p, row), Self::w_loader(p, col));
        let base = shared::dynamic();
        let n_k_tiles = p.k.div_ceil(BLOCK_K);

        // Prologue: all stages but one; the weights do not wait for the predecessor.
        pdl::launch_dependents();
        for k_tile in 0..opaque(STAGES - 1) {
            Self::load_w(&w, Self::stage(base, k_tile), k_tile);
        }
        pdl::wait();
        for k_tile in 0..opaque(STAGES - 1) {
            Self::load_a(&a, Self::stage(base, k_tile), k_tile);
            async_copy::commit();
        }

        // Main loop. Beyond the last tile the groups are empty, so that their count stays right.
        let mut acc = [[[[0.0; 4]; 2]; NP]; MT];
        for k_tile in 0..n_k_tiles {
            async_copy::wait_stage::<STAGES>();
            sync_block();
            let next = k_tile + STAGES - 1;
            if next < n_k_tiles {
                Self::load_w(&w, Self::stage(base, next), next);
                Self::load_a(&a, Self::stage(base, next), next);
            }
            async_copy::commit();
            Self::multiply(Self::stage(base, k_tile), &mut acc);
        }

        // Epilogue. Where k has fewer tiles than the prologue filled stages, nobody leaves with copies in flight.
        async_copy::wait::<0>();
        Self::for_each_pair(&acc, |r, c, y| {
            if row + r < p.m && col + c < p.n {
                // SAFETY: row and column are inside the output.
                unsafe { E::apply(p, row + r, col + c, y) };
            }
        });
    }
}
