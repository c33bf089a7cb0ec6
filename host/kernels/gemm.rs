//! Matrix products `y = a · wᵀ`: which kernel, which tile.

use std::mem::offset_of;

use half::bf16;

use super::launch::TensorMaps;
use super::tiling::{Kernel, Shape};
use super::{Addr, Launch, MAX_CLUSTER, Rows, Target, TensorMap, Tile, Tiling, params};

/// `[kernel][epilogue]`: the two of [`Gemv`], then those of [`Tile::ALL`] without `wgmma`.
pub(super) const NAMES: [[&str; 4]; 5] = [
    ["gemv_bf16_m1_store", "gemv_bf16_m1_f32", "gemv_bf16_m1_add", "gemv_bf16_m1_swiglu"],
    ["gemv_bf16_m8_store", "gemv_bf16_m8_f32", "gemv_bf16_m8_add", "gemv_bf16_m8_swiglu"],
    ["gemm_bf16_16x32_store", "gemm_bf16_16x32_f32", "gemm_bf16_16x32_add", "gemm_bf16_16x32_swiglu"],
    ["gemm_bf16_64x32_store", "gemm_bf16_64x32_f32", "gemm_bf16_64x32_add", "gemm_bf16_64x32_swiglu"],
    ["gemm_bf16_128x128_store", "gemm_bf16_128x128_f32", "gemm_bf16_128x128_add", "gemm_bf16_128x128_swiglu"],
];

/// Those of [`Tile::ALL`] with `wgmma`, weights streamed.
pub(super) const STREAM_NAMES: [[&str; 4]; 2] = [
    ["wgmma_bf16_32x128_store", "wgmma_bf16_32x128_f32", "wgmma_bf16_32x128_add", "wgmma_bf16_32x128_swiglu"],
    ["wgmma_bf16_64x128_store", "wgmma_bf16_64x128_f32", "wgmma_bf16_64x128_add", "wgmma_bf16_64x128_swiglu"],
];

/// The others with `wgmma`.
pub(super) const PREFILL_NAMES: [[&str; 4]; 3] = [
    [
        "wgmma_bf16_128x128_store",
        "wgmma_bf16_128x128_f32",
        "wgmma_bf16_128x128_add",
        "wgmma_bf16_128x128_swiglu",
    ],
    [
        "wgmma_bf16_128x192_store",
        "wgmma_bf16_128x192_f32",
        "wgmma_bf16_128x192_add",
        "wgmma_bf16_128x192_swiglu",
    ],
    [
        "wgmma_bf16_128x256_store",
        "wgmma_bf16_128x256_f32",
        "wgmma_bf16_128x256_add",
        "wgmma_bf16_128x256_swiglu",
    ],
];

const M1: usize = 0;
const M8: usize = 1;
const FIRST_TILE: usize = 2;
const FIRST_STREAM: usize = Tile::W32x128 as usize;
const FIRST_PREFILL: usize = Tile::W128x128 as usize;

/// A warp of the kernel for one row of activations has two rows of the weights.
const M1_ROWS_PER_WARP: u32 = 2;
/// Its blocks: large ones where they are resident all at once, else small ones, which even out the end.
const M1_THREADS: [u32; 2] = [256, 128];
const M1_RESIDENT: u32 = 3;
/// Weight rows of a block of the kernel for up to eight rows; its warps share k.
const M8_BLOCK: u32 = 16;
const M8_THREADS: u32 = 256;
const M8_RESIDENT: u32 = 2;
/// Blocks of a grid in y at most.
const MAX_GRID_Y: u32 = 65_535;
/// Columns of k in one stage, in bytes of a row.
const STAGE_ROW_BYTES: u32 = 128;

/// What becomes of `y`, and where it goes: `[m, n]`, with SwiGLU `[m, n / 2]`.
#[derive(Debug, Clone, Copy)]
pub enum Product {
    /// `out = y` in bf16.
    Store(Rows<bf16>),
    /// `out = y` in f32.
    StoreF32(Rows<f32>),
    /// `out += y` in bf16; the sum is formed in f32.
    Add(Rows<bf16>),
    /// `out[j] = silu(y[2j]) · y[2j + 1]`: row 2j of the weights is gate j, row 2j + 1 is up j.
    SwiGlu(Rows<bf16>),
}

impl Product {
    /// Column of [`NAMES`], address, stride.
    fn parts(self) -> (usize, u64, u32) {
        match self {
            Self::Store(out) => (0, out.at.raw(), out.stride),
            Self::StoreF32(out) => (1, out.at.raw(), out.stride),
            Self::Add(out) => (2, out.at.raw(), out.stride),
            Self::SwiGlu(out) => (3, out.at.raw(), out.stride),
        }
    }
}

/// The RMSNorm that [`Gemv`] applies to its activations on the way.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// `[k]`.
    pub weight: Addr<bf16>,
    /// Added to the mean square.
    pub eps: f32,
}

/// `y = norm(a) · wᵀ` for a few rows: the weights are streamed once, at the memory's speed.
#[derive(Debug, Clone, Copy)]
pub struct Gemv {
    /// `[m, k]`.
    pub a: Rows<bf16>,
    /// `[n, k]`, contiguous.
    pub w: Addr<bf16>,
    /// What becomes of the product.
    pub out: Product,
    /// Normalises the rows of `a` first.
    pub norm: Option<Norm>,
    /// Rows of `a`, 1 to [`Gemv::MAX_ROWS`].
    pub m: u32,
    /// Rows of `w`, at least one.
    pub n: u32,
    /// Columns of both.
    pub k: u32,
}

impl Gemv {
    /// The most rows of activations.
    pub const MAX_ROWS: u32 = 8;

    /// The kernel that [`GemvKernel::choose`] takes.
    ///
    /// # Panics
    /// If `m` is above [`Gemv::MAX_ROWS`].
    pub fn launch(&self, sm_count: u32) -> Launch {
        self.launch_as(GemvKernel::choose(self.m, self.n, self.k, sm_count))
    }

    /// This kernel.
    ///
    /// # Panics
    /// If `m` is more than the kernel takes.
    pub fn launch_as(&self, kernel: GemvKernel) -> Launch {
        let &Self { a, w, out, norm, m, n, k } = self;
        let (name, block, threads, most) = match kernel {
            GemvKernel::M1 { threads } => (M1, threads / 32 * M1_ROWS_PER_WARP, threads, 1),
            GemvKernel::M8 => (M8, M8_BLOCK, M8_THREADS, Self::MAX_ROWS),
        };
        assert!(m <= most, "a gemv of {m} rows, more than {most}");
        let (column, out, ld_out) = out.parts();
        let (norm_weight, eps) = norm.map_or((0, 0.0), |norm| (norm.weight.raw(), norm.eps));
        let (a, ld_a, w) = (a.at.raw(), a.stride, w.raw());
        let params = params::Gemm { a, w, out, norm_weight, m, n, k, ld_a, ld_out, eps };
        Launch::new(NAMES[name][column], [n.div_ceil(block), 1, 1], threads, 0, &params)
    }
}

/// The kernels of [`Gemv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GemvKernel {
    /// One row of activations; a warp per two rows of the weights.
    M1 {
        /// Of a block: whole warps, 32 to 256.
        threads: u32,
    },
    /// Up to eight rows of activations; a block of eight warps, which share k, per 16 rows of the weights.
    M8,
}

impl GemvKernel {
    /// For one row of activations [`GemvKernel::M1`], unless the weights' rows are long and so few that they do
    /// not fill `sm_count` multiprocessors.
    pub fn choose(m: u32, n: u32, k: u32, sm_count: u32) -> Self {
        if m > 1 || (has_few_rows(n, sm_count) && k >= 4096) {
            return Self::M8;
        }
        let [large, small] = M1_THREADS;
        let at_once = n.div_ceil(large / 32 * M1_ROWS_PER_WARP) <= sm_count * M1_RESIDENT;
        Self::M1 { threads: if at_once { large } else { small } }
    }
}

/// Whether blocks of 16 weight rows are resident all at once.
fn has_few_rows(n: u32, sm_count: u32) -> bool {
    n.div_ceil(M8_BLOCK) <= sm_count * M8_RESIDENT
}

/// `y = a · wᵀ` over tensor cores, for any shape.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// `[m, k]`.
    pub a: Rows<bf16>,
    /// `[n, k]`, contiguous.
    pub w: Addr<bf16>,
    /// What becomes of the product.
    pub out: Product,
    /// Rows of `a`, at least one.
    pub m: u32,
    /// Rows of `w`, at least one.
    pub n: u32,
    /// Columns of both.
    pub k: u32,
    /// See [`Tiling::choose`].
    pub tiling: Tiling,
}

impl Gemm {
    /// The tile's kernel.
    ///
    /// # Panics
    /// If the tiling has parts of k that its tile does not take, or that no cluster has room for.
    pub fn launch(&self) -> Launch {
        let &Self { a, w, out, m, n, k, tiling: Tiling { tile, k_parts, max_blocks } } = self;
        let most = if tile.takes_parts() { MAX_CLUSTER } else { 1 };
        assert!((1..=most).contains(&k_parts), "k in {k_parts} parts, {tile:?} takes 1 to {most}");
        let (column, out, ld_out) = out.parts();
        let (a, ld_a, w) = (a.at.raw(), a.stride, w.raw());
        let gemm = params::Gemm { a, w, out, norm_weight: 0, m, n, k, ld_a, ld_out, eps: 0.0 };
        let shape = tile.shape();
        let (m_tiles, n_tiles) = (m.div_ceil(shape.m), n.div_ceil(shape.n));
        let grid = match shape.kernel {
            Kernel::Tiled { .. } => [m_tiles, n_tiles, 1],
            Kernel::Stream(_) => [k_parts, m_tiles, n_tiles],
            // Blocks take several tiles, so fewer of them than tiles are no error.
            Kernel::Prefill(_) if k_parts == 1 => {
                [1, (m_tiles * n_tiles).min(max_blocks.max(1)).min(MAX_GRID_Y), 1]
            }
            Kernel::Prefill(_) => [k_parts, m_tiles * n_tiles, 1],
        };
        let shared_bytes = shape.stages * (shape.m + shape.n) * STAGE_ROW_BYTES;
        let tile = tile as usize;
        let launch = match shape.kernel {
            Kernel::Tiled { .. } => {
                Launch::new(NAMES[FIRST_TILE + tile][column], grid, shape.threads, shared_bytes, &gemm)
            }
            Kernel::Stream(_) => {
                let name = STREAM_NAMES[tile - FIRST_STREAM][column];
                Launch::new(name, grid, shape.threads, shared_bytes, &gemm)
            }
            Kernel::Prefill(_) => {
                let [a_map, w_map] = [params::TensorMap([0; 16]); 2];
                let params = params::PrefillGemm { gemm, has_maps: 0, reserved: 0, a_map, w_map };
                let name = PREFILL_NAMES[tile - FIRST_PREFILL][column];
                Launch::new(name, grid, shape.threads, shared_bytes, &params)
                    .to_encode(self.tensor_maps(&shape))
            }
        };
        launch.in_clusters(k_parts)
    }

    /// Of both matrices, if tensor copies can take both.
    fn tensor_maps(&self, tile: &Shape) -> Option<TensorMaps> {
        let &Self { a, w, m, n, k, .. } = self;
        let tokens = TensorMap::of_tokens(a, (m, k), tile.m)?;
        let weights = TensorMap::of_weights(w, (n, k), tile.n)?;
        Some(TensorMaps {
            maps: [
                (offset_of!(params::PrefillGemm, a_map), tokens),
                (offset_of!(params::PrefillGemm, w_map), weights),
            ],
            flag_at: offset_of!(params::PrefillGemm, has_maps),
        })
    }
}

/// `y = a · wᵀ` by whichever kernel is fastest for the shape.
#[derive(Debug, Clone, Copy)]
pub struct MatMul {
    /// `[m, k]`.
    pub a: Rows<bf16>,
    /// `[n, k]`, contiguous.
    pub w: Addr<bf16>,
    /// What becomes of the product.
    pub out: Product,
    /// Rows of `a`, at least one.
    pub m: u32,
    /// Rows of `w`, at least one.
    pub n: u32,
    /// Columns of both.
    pub k: u32,
}

impl MatMul {
    /// A [`Gemv`] for up to [`Target::gemv_rows`] rows of activations, unless the weights' rows are short or many
    /// enough for the smallest [`Tile`]; else a [`Gemm`]. Measured on an H200, as [`Tiling::choose`] says.
    pub fn launch(&self, target: Target) -> Launch {
        let &Self { a, w, out, m, n, k } = self;
        let is_long = match m {
            1 => k >= 1024 && !(k <= 2048 && n >= 16_384),
            _ => k >= 1024 && has_few_rows(n, target.sm_count),
        };
        if m <= target.gemv_rows && is_long {
            return Gemv { a, w, out, norm: None, m, n, k }.launch(target.sm_count);
        }
        Gemm { a, w, out, m, n, k, tiling: Tiling::choose(m, n, k, target) }.launch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::PTX;

    const SMS: u32 = 132;

    fn rows<T>(stride: u32) -> Rows<T> {
        Rows::new(Addr::new(256), stride)
    }

    fn gemm(out: Product, (m, n, k): (u32, u32, u32), tiling: Tiling) -> Gemm {
        Gemm { a: rows(k), w: Addr::new(256), out, m, n, k, tiling }
    }

    fn outs() -> [Product; 4] {
        [Product::Store(rows(8)), Product::StoreF32(rows(8)), Product::Add(rows(8)), Product::SwiGlu(rows(4))]
    }

    #[test]
    fn names_say_what_they_are() {
        for (out, suffix) in outs().into_iter().zip(["_store", "_f32", "_add", "_swiglu"]) {
            let gemv = |m, n| {
                let launch =
                    Gemv { a: rows(4096), w: Addr::new(256), out, norm: None, m, n, k: 4096 }.launch(SMS);
                (launch.entry, launch.grid[0], launch.threads)
            };
            assert_eq!(gemv(1, 28_672), (&*format!("gemv_bf16_m1{suffix}"), 3584, 128));
            assert_eq!(gemv(1, 6144), (&*format!("gemv_bf16_m1{suffix}"), 384, 256));
            assert_eq!(gemv(1, 4096), (&*format!("gemv_bf16_m8{suffix}"), 256, 256));
            assert_eq!(gemv(8, 28_672), (&*format!("gemv_bf16_m8{suffix}"), 1792, 256));
            let sizes = ["16x32", "64x32", "128x128", "32x128", "64x128", "128x128", "128x192", "128x256"];
            for (tile, size) in Tile::ALL.into_iter().zip(sizes) {
                let launch = gemm(out, (129, 129, 8), Tiling::of(tile)).launch();
                let op = if tile.needs_wgmma() { "wgmma" } else { "gemm" };
                assert_eq!(launch.entry, format!("{op}_bf16_{size}{suffix}"));
            }
        }
    }

    #[test]
    fn a_launch_covers_the_product_within_the_limits_of_its_kernel() {
        for tile in Tile::ALL {
            for (m, n) in [(1, 1), (16, 32), (17, 33), (512, 28_672)] {
                let launch = gemm(Product::Store(rows(n)), (m, n, 64), Tiling::of(tile)).launch();
                let shape = tile.shape();
                let tiles = m.div_ceil(shape.m) * n.div_ceil(shape.n);
                assert_eq!(launch.grid.iter().product::<u32>(), tiles, "{launch:?}");
                let ptx = &PTX[usize::from(!tile.needs_wgmma())];
                assert_eq!(launch.threads, ptx.entry(launch.entry).unwrap().max_threads, "{launch:?}");
                // What an H200 offers a block beside a little static memory, and compute capability 8.6 and 8.9.
                let limit_bytes = if tile.needs_wgmma() { 226 << 10 } else { 99 << 10 };
                assert!(launch.shared_bytes <= limit_bytes, "{launch:?}");
            }
        }
    }

    #[test]
    fn parts_of_k_are_a_cluster_and_blocks_take_tiles_in_turn() {
        let launch = |tile, k_parts| {
            let tiling = Tiling { tile, k_parts, max_blocks: 7 };
            let launch = gemm(Product::Store(rows(512)), (200, 512, 4096), tiling).launch();
            (launch.grid, launch.cluster)
        };
        assert_eq!(launch(Tile::W64x128, 1), ([1, 4, 4], 1));
        assert_eq!(launch(Tile::W64x128, 3), ([3, 4, 4], 3));
        assert_eq!(launch(Tile::W128x128, 1), ([1, 7, 1], 1));
        assert_eq!(launch(Tile::W128x128, 2), ([2, 8, 1], 2));
    }

    #[test]
    fn maps_are_encoded_into_the_parameters_where_tensor_copies_can_take_both_matrices() {
        let launch = |tile, (m, n, k): (u32, u32, u32)| {
            gemm(Product::Store(rows(n)), (m, n, k), Tiling::of(tile)).launch()
        };
        for (tile, shape) in [
            (Tile::W128x192, (7, 96, 71)),
            (Tile::W128x192, (7, 95, 72)),
            (Tile::W64x128, (7, 96, 72)),
            (Tile::T128x128, (7, 96, 72)),
        ] {
            assert_eq!(launch(tile, shape).tensor_maps().count(), 0, "{tile:?} {shape:?}");
        }
        let plain = launch(Tile::W128x192, (7, 96, 72));
        let boxes: Vec<_> = plain.tensor_maps().map(|map| map.box_dims().to_vec()).collect();
        assert_eq!(boxes, [vec![64, 128], vec![64, 2, 4, 4, 6]]);

        let mut mark = 0;
        let encoded = plain.with_tensor_maps(|_| {
            mark += 1;
            Ok::<_, ()>([mark; TensorMap::BYTES])
        });
        let encoded = encoded.unwrap();
        let (plain, encoded) = (plain.params(), encoded.params());
        assert_eq!((plain.len(), plain.as_ptr().addr() % 64), (320, 0));
        assert_eq!(plain[..56], encoded[..56]);
        assert_eq!((&plain[56..60], &encoded[56..60]), (&[0; 4][..], &1_u32.to_ne_bytes()[..]));
        assert_eq!(plain[60..], [0; 260]);
        assert_eq!((&encoded[64..192], &encoded[192..]), (&[1; 128][..], &[2; 128][..]));
    }

    #[test]
    #[should_panic(expected = "k in 2 parts, T64x32 takes 1 to 1")]
    fn tiles_without_clusters_take_k_whole() {
        let tiling = Tiling { k_parts: 2, ..Tiling::of(Tile::T64x32) };
        gemm(Product::Store(rows(8)), (8, 8, 8), tiling).launch();
    }

    #[test]
    fn few_rows_take_the_kernel_that_was_measured_fastest() {
        let on = |target, m, n, k| {
            let launch = MatMul { a: rows(k), w: Addr::new(256), out: Product::Store(rows(n)), m, n, k }
                .launch(target);
            launch.entry.split('_').nth(2).unwrap()
        };
        let kernel = |m, n, k| on(Target::new(SMS, false), m, n, k);
        // Llama 3 8B: qkv, o, gate and up, down, head; then SmolLM2's.
        let large = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)];
        let small = [(960, 576), (3072, 576), (576, 1536)];
        assert_eq!(large.map(|(n, k)| kernel(1, n, k)), ["m1", "m8", "m1", "m8", "m1"]);
        assert_eq!(small.map(|(n, k)| kernel(1, n, k)), ["16x32", "16x32", "m1"]);
        assert_eq!(large.map(|(n, k)| kernel(4, n, k)), ["16x32", "m8", "16x32", "m8", "16x32"]);
        assert_eq!(small.map(|(n, k)| kernel(4, n, k)), ["16x32", "16x32", "m8"]);
        assert_eq!(kernel(9, 4096, 4096), "16x32");
        let h200 = Target::new(SMS, true);
        assert_eq!(large.map(|(n, k)| on(h200.for_hidden(4096), 1, n, k)), ["m1", "m8", "m1", "m8", "m1"]);
        for m in [1, 2] {
            assert_eq!(large.map(|(n, k)| on(h200.for_hidden(8192), m, n, k)), ["32x128"; 5]);
        }
        assert_eq!(large.map(|(n, k)| on(h200.for_hidden(4096), 2, n, k)), ["32x128"; 5]);
    }

    #[test]
    #[should_panic(expected = "gemv of 9 rows")]
    fn too_many_rows_for_a_gemv_are_the_callers_mistake() {
        let out = Product::Store(rows(8));
        Gemv { a: rows(8), w: Addr::new(256), out, norm: None, m: 9, n: 8, k: 8 }.launch(SMS);
    }
}
