//! Matrix products `y = a · wᵀ`: which kernel, which tile.

use half::bf16;

use super::{Addr, Launch, Rows, params};

/// `[kernel][epilogue]`: the two of [`Gemv`], then [`Tile::ALL`].
pub(super) const NAMES: [[&str; 4]; 5] = [
    ["gemv_bf16_m1_store", "gemv_bf16_m1_f32", "gemv_bf16_m1_add", "gemv_bf16_m1_swiglu"],
    ["gemv_bf16_m8_store", "gemv_bf16_m8_f32", "gemv_bf16_m8_add", "gemv_bf16_m8_swiglu"],
    ["gemm_bf16_16x32_store", "gemm_bf16_16x32_f32", "gemm_bf16_16x32_add", "gemm_bf16_16x32_swiglu"],
    ["gemm_bf16_64x32_store", "gemm_bf16_64x32_f32", "gemm_bf16_64x32_add", "gemm_bf16_64x32_swiglu"],
    ["gemm_bf16_128x128_store", "gemm_bf16_128x128_f32", "gemm_bf16_128x128_add", "gemm_bf16_128x128_swiglu"],
];

const M1: usize = 0;
const M8: usize = 1;
const FIRST_TILE: usize = 2;

/// A warp of the kernel for one row of activations has two rows of the weights.
const M1_ROWS_PER_WARP: u32 = 2;
/// Its blocks: large ones where they are resident all at once, else small ones, which even out the end.
const M1_THREADS: [u32; 2] = [256, 128];
const M1_RESIDENT: u32 = 3;
/// Weight rows of a block of the kernel for up to eight rows; its warps share k.
const M8_BLOCK: u32 = 16;
const M8_THREADS: u32 = 256;
const M8_RESIDENT: u32 = 2;
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

/// The part of the output that one block of the tensor-core kernel makes: rows of `a` × rows of `w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 16 × 32.
    T16x32,
    /// 64 × 32.
    T64x32,
    /// 128 × 128.
    T128x128,
}

/// What a tile is made of, and how fast it is.
struct TileShape {
    m: u32,
    n: u32,
    threads: u32,
    stages: u32,
    /// Blocks that a multiprocessor holds at once.
    resident: u32,
    /// Time of a round with one block a multiprocessor, in ns per column of k on an H200.
    first_ns: f32,
    /// What each further block of the round adds.
    more_ns: f32,
}

impl Tile {
    /// All tiles, smallest first.
    pub const ALL: [Self; 3] = [Self::T16x32, Self::T64x32, Self::T128x128];

    const fn shape(self) -> TileShape {
        let (m, n, threads, stages, resident, first_ns, more_ns) = match self {
            Self::T16x32 => (16, 32, 64, 8, 4, 3.6, 0.15),
            Self::T64x32 => (64, 32, 128, 6, 3, 7.0, 0.05),
            Self::T128x128 => (128, 128, 128, 3, 2, 14.5, 5.0),
        };
        TileShape { m, n, threads, stages, resident, first_ns, more_ns }
    }

    /// The tile with which the product of `m` × `n` is done first on `sm_count` multiprocessors: rounds of
    /// resident blocks, the last one perhaps not full.
    ///
    /// The times were measured on an H200 (m from 2 to 1024, the products of SmolLM2, Llama 3.2 1B and 3 8B);
    /// only their ratios matter.
    pub fn choose(m: u32, n: u32, sm_count: u32) -> Self {
        let time = |tile: Self| {
            let shape = tile.shape();
            let round = |blocks_per_sm: u32| shape.first_ns + shape.more_ns * (blocks_per_sm - 1) as f32;
            let blocks = m.div_ceil(shape.m) * n.div_ceil(shape.n);
            let per_sm = blocks.div_ceil(sm_count.max(1)).max(1);
            let (full, rest) = (per_sm / shape.resident, per_sm % shape.resident);
            full as f32 * round(shape.resident) + if rest > 0 { round(rest) } else { 0.0 }
        };
        let by_time = |a: &Self, b: &Self| time(*a).total_cmp(&time(*b));
        Self::ALL.into_iter().min_by(by_time).unwrap_or(Self::T128x128)
    }
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
    /// See [`Tile::choose`].
    pub tile: Tile,
}

impl Gemm {
    /// One block a tile.
    pub fn launch(&self) -> Launch {
        let &Self { a, w, out, m, n, k, tile } = self;
        let (column, out, ld_out) = out.parts();
        let (a, ld_a, w) = (a.at.raw(), a.stride, w.raw());
        let params = params::Gemm { a, w, out, norm_weight: 0, m, n, k, ld_a, ld_out, eps: 0.0 };
        let shape = tile.shape();
        let shared_bytes = shape.stages * (shape.m + shape.n) * STAGE_ROW_BYTES;
        let grid = [m.div_ceil(shape.m), n.div_ceil(shape.n), 1];
        let kernel = FIRST_TILE + tile as usize;
        Launch::new(NAMES[kernel][column], grid, shape.threads, shared_bytes, &params)
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
    /// A [`Gemv`] for few rows of activations, unless the weights' rows are short or many enough for the
    /// smallest [`Tile`]; else a [`Gemm`]. Measured on an H200, as [`Tile::choose`] says.
    pub fn launch(&self, sm_count: u32) -> Launch {
        let &Self { a, w, out, m, n, k } = self;
        let is_gemv = match m {
            1 => k >= 1024 && !(k <= 2048 && n >= 16_384),
            2..=Gemv::MAX_ROWS => k >= 1024 && has_few_rows(n, sm_count),
            _ => false,
        };
        if is_gemv {
            return Gemv { a, w, out, norm: None, m, n, k }.launch(sm_count);
        }
        Gemm { a, w, out, m, n, k, tile: Tile::choose(m, n, sm_count) }.launch()
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
            for (tile, size) in Tile::ALL.into_iter().zip(["16x32", "64x32", "128x128"]) {
                let gemm = Gemm { a: rows(8), w: Addr::new(256), out, m: 129, n: 129, k: 8, tile }.launch();
                assert_eq!(gemm.entry, format!("gemm_bf16_{size}{suffix}"));
            }
        }
    }

    #[test]
    fn a_launch_covers_the_product_within_the_limits_of_its_kernel() {
        for tile in Tile::ALL {
            for (m, n) in [(1, 1), (16, 32), (17, 33), (512, 28_672)] {
                let out = Product::Store(rows(n));
                let launch = Gemm { a: rows(64), w: Addr::new(256), out, m, n, k: 64, tile }.launch();
                let shape = tile.shape();
                assert!(launch.grid[0] * shape.m >= m && launch.grid[1] * shape.n >= n, "{launch:?}");
                let entry = PTX[0].entry(launch.entry).unwrap();
                assert_eq!(launch.threads, entry.max_threads, "{launch:?}");
                // What GPUs of compute capability 8.6 and 8.9 offer a block.
                assert!(launch.shared_bytes <= 99 << 10, "{launch:?}");
            }
        }
    }

    /// Where measurements differ by more than a tenth, the fastest is chosen: (m, n, the fastest).
    #[test]
    fn tiles_are_the_fastest_measured() {
        for (m, n, fastest) in [
            (16, 4096, Tile::T16x32),
            (64, 4096, Tile::T16x32),
            (192, 4096, Tile::T64x32),
            (1024, 4096, Tile::T128x128),
            (32, 28_672, Tile::T16x32),
            (128, 28_672, Tile::T128x128),
            (1024, 28_672, Tile::T128x128),
            (256, 6144, Tile::T64x32),
            (512, 6144, Tile::T128x128),
            (256, 960, Tile::T16x32),
            (1024, 960, Tile::T64x32),
            (512, 3072, Tile::T64x32),
            (1024, 3072, Tile::T128x128),
            (1024, 576, Tile::T64x32),
        ] {
            let chosen = Tile::choose(m, n, SMS);
            assert_eq!(chosen, fastest, "{m} × {n}");
        }
    }

    #[test]
    fn few_rows_take_the_kernel_that_was_measured_fastest() {
        let kernel = |m, n, k| {
            let launch =
                MatMul { a: rows(k), w: Addr::new(256), out: Product::Store(rows(n)), m, n, k }.launch(SMS);
            launch.entry.split('_').nth(2).unwrap()
        };
        // Llama 3 8B: qkv, o, gate and up, down, head; then SmolLM2's.
        let large = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)];
        let small = [(960, 576), (3072, 576), (576, 1536)];
        assert_eq!(large.map(|(n, k)| kernel(1, n, k)), ["m1", "m8", "m1", "m8", "m1"]);
        assert_eq!(small.map(|(n, k)| kernel(1, n, k)), ["16x32", "16x32", "m1"]);
        assert_eq!(large.map(|(n, k)| kernel(4, n, k)), ["16x32", "m8", "16x32", "m8", "16x32"]);
        assert_eq!(small.map(|(n, k)| kernel(4, n, k)), ["16x32", "16x32", "m8"]);
        assert_eq!(kernel(9, 4096, 4096), "16x32");
    }

    #[test]
    #[should_panic(expected = "gemv of 9 rows")]
    fn too_many_rows_for_a_gemv_are_the_callers_mistake() {
        let out = Product::Store(rows(8));
        Gemv { a: rows(8), w: Addr::new(256), out, norm: None, m: 9, n: 8, k: 8 }.launch(SMS);
    }
}
