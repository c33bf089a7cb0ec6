//! Cases of the matrix products.

use half::bf16;

use super::bounds;
use super::record::Freedom;
use super::reference::{inverse_rms, matmul, round, silu, widen};
use super::rig::{Guarded, Rig};
use super::tally::Tally;
use crate::driver::Result;
use crate::kernels::{Gemm, Gemv, GemvKernel, Launch, Norm, Product, Tile, Tiling};

const EPS: f32 = 1e-5;

/// (n, k, elements that rows of `a` are longer than k): single elements, tails of every tile and vector,
/// unaligned rows, and models' own.
const GEMV_SHAPES: [(usize, usize, usize); 16] = [
    (1, 1, 0),
    (2, 8, 0),
    (7, 9, 0),
    (33, 65, 0),
    (16, 64, 8),
    (258, 72, 0),
    (64, 100, 4),
    (100, 200, 3),
    (576, 1536, 0),
    (1536, 576, 8),
    (17, 2080, 8),
    (40, 4104, 0),
    (34, 14_336, 0),
    (130, 4096, 0),
    (960, 576, 0),
    (4096, 4096, 0),
];

/// (m, n, k, elements that rows of `a` are longer than k). Tensor copies take those of aligned rows whose n is a multiple
/// of 32: among them tiles of which few rows and columns exist, parts without columns, and several turns of the stages.
const GEMM_SHAPES: [(usize, usize, usize, usize); 18] = [
    (1, 1, 1, 0),
    (1, 2, 8, 0),
    (5, 7, 9, 0),
    (3, 64, 100, 4),
    (16, 32, 64, 0),
    (17, 33, 65, 0),
    (128, 128, 8, 0),
    (130, 258, 72, 0),
    (33, 66, 4096, 0),
    (257, 130, 200, 3),
    (2, 40, 14_336, 0),
    (64, 576, 1536, 0),
    (200, 1536, 576, 8),
    (129, 960, 576, 0),
    (16, 4096, 1024, 0),
    (1, 32, 1000, 8),
    (5, 96, 1096, 8),
    (131, 160, 88, 0),
];

/// The numbers of parts of k, and of blocks at most, with which a tile is tried.
fn tilings(tile: Tile) -> &'static [(u32, u32)] {
    if tile.takes_parts() { &[(1, u32::MAX), (1, 3), (3, u32::MAX), (8, u32::MAX)] } else { &[(1, u32::MAX)] }
}

/// Threads of a block of the gemv for one row.
const M1_THREADS: u32 = 128;

#[derive(Clone, Copy)]
enum Family {
    GemvM1,
    GemvM8,
    Tiled(Tile),
}

#[derive(Clone, Copy, PartialEq)]
enum Epilogue {
    Store,
    F32,
    Add,
    SwiGlu,
}

/// A product kernel by the parts of its name.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    family: Family,
    epilogue: Epilogue,
}

/// One product to compute.
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    ld_a: usize,
    norm: bool,
    /// Of k, and blocks at most: see [`Tiling`].
    parts: u32,
    max_blocks: u32,
}

/// The output in either type.
enum Out {
    Bf16(Guarded<bf16>),
    F32(Guarded<f32>),
}

impl Kernel {
    pub(super) fn named(entry: &str) -> Option<Self> {
        let (family, epilogue) = entry.rsplit_once('_')?;
        let family = match family {
            "gemv_bf16_m1" => Family::GemvM1,
            "gemv_bf16_m8" => Family::GemvM8,
            "gemm_bf16_16x32" => Family::Tiled(Tile::T16x32),
            "gemm_bf16_64x32" => Family::Tiled(Tile::T64x32),
            "gemm_bf16_128x128" => Family::Tiled(Tile::T128x128),
            "wgmma_bf16_32x128" => Family::Tiled(Tile::W32x128),
            "wgmma_bf16_64x128" => Family::Tiled(Tile::W64x128),
            "wgmma_bf16_128x128" => Family::Tiled(Tile::W128x128),
            "wgmma_bf16_128x192" => Family::Tiled(Tile::W128x192),
            "wgmma_bf16_128x256" => Family::Tiled(Tile::W128x256),
            _ => return None,
        };
        let epilogue = match epilogue {
            "store" => Epilogue::Store,
            "f32" => Epilogue::F32,
            "add" => Epilogue::Add,
            "swiglu" => Epilogue::SwiGlu,
            _ => return None,
        };
        Some(Self { family, epilogue })
    }

    pub(super) fn bound(self) -> f64 {
        if self.epilogue == Epilogue::F32 { bounds::F32 } else { bounds::ROUNDED }
    }

    pub(super) fn run(self, rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
        for shape in self.shapes() {
            let odd_swiglu = self.epilogue == Epilogue::SwiGlu && !shape.n.is_multiple_of(2);
            if !odd_swiglu && rig.wants(shape.m * shape.n * shape.k) {
                self.run_shape(rig, tally, &shape)?;
            }
        }
        Ok(())
    }

    fn shapes(self) -> Vec<Shape> {
        let gemv = |ms: &[usize]| {
            let mut shapes = Vec::new();
            for &m in ms {
                for (n, k, pad) in GEMV_SHAPES {
                    let shape = |norm| Shape { m, n, k, ld_a: k + pad, norm, parts: 1, max_blocks: u32::MAX };
                    shapes.extend([false, true].map(shape));
                }
            }
            shapes
        };
        match self.family {
            Family::GemvM1 => gemv(&[1]),
            Family::GemvM8 => gemv(&[1, 3, 8]),
            Family::Tiled(tile) => {
                let shapes = GEMM_SHAPES.into_iter().flat_map(|(m, n, k, pad)| {
                    let shape = move |&(parts, max_blocks): &(u32, u32)| Shape {
                        m,
                        n,
                        k,
                        ld_a: k + pad,
                        norm: false,
                        parts,
                        max_blocks,
                    };
                    tilings(tile).iter().map(shape)
                });
                shapes.collect()
            }
        }
    }

    fn run_shape(self, rig: &Rig<'_>, tally: &mut Tally<'_>, shape: &Shape) -> Result<()> {
        let &Shape { m, n, k, ld_a, norm, parts, max_blocks } = shape;
        let with_norm = if norm { ", norm" } else { "" };
        let divided = match (parts, max_blocks) {
            (1, u32::MAX) => String::new(),
            (1, blocks) => format!(", {blocks} blocks at most"),
            (parts, _) => format!(", k in {parts} parts"),
        };
        tally.shape(format_args!("{m}x{n}x{k}, rows of {ld_a}{with_norm}{divided}"));
        let n_out = if self.epilogue == Epilogue::SwiGlu { n / 2 } else { n };
        // What lies between the rows of a must not matter, and the last row ends with its last element.
        let mut a = rig.random_bf16((m - 1) * ld_a + k, 1.0);
        a.iter_mut().enumerate().filter(|(i, _)| i % ld_a >= k).for_each(|(_, a)| *a = bf16::NAN);
        let w = rig.random_bf16(n * k, (k as f32).sqrt().recip());
        let norm_weight = norm.then(|| rig.random_bf16(k, 1.0));
        let old = rig.random_bf16(m * n_out, 1.0);

        let (d_a, d_w) = (rig.holding(&a)?, rig.holding(&w)?);
        let d_norm = norm_weight.as_deref().map(|weight| rig.holding(weight)).transpose()?;
        let out = match self.epilogue {
            Epilogue::F32 => Out::F32(rig.poisoned(m * n_out)?),
            Epilogue::Add => Out::Bf16(rig.holding(&old)?),
            Epilogue::Store | Epilogue::SwiGlu => Out::Bf16(rig.poisoned(m * n_out)?),
        };
        let norm = d_norm.as_ref().map(|weight| Norm { weight: weight.addr(), eps: EPS });
        let launch = self.launch(shape, (&d_a, &d_w), self.product(&out, n_out), norm);
        tally.launches(&launch);
        // SAFETY: the buffers have these shapes and live until the launch has been waited for.
        unsafe { rig.launch(&launch)? };

        let expected = self.expected(shape, &a, &w, norm_weight.as_deref(), &old);
        if tally.is_comparing() {
            tally.may_differ(self.freedom(shape, &a, &w, norm_weight.as_deref()));
        }
        match out {
            Out::Bf16(out) => tally.close_bf16(rig, "out", &expected, &out, n_out),
            Out::F32(out) => {
                let found: Vec<f64> = tally.read(rig, "out", &out)?.into_iter().map(f64::from).collect();
                tally.close("out", &expected, &found, n_out);
                Ok(())
            }
        }
    }

    fn product(self, out: &Out, n_out: usize) -> Product {
        match (out, self.epilogue) {
            (Out::F32(out), _) => Product::StoreF32(out.rows(n_out)),
            (Out::Bf16(out), Epilogue::Add) => Product::Add(out.rows(n_out)),
            (Out::Bf16(out), Epilogue::SwiGlu) => Product::SwiGlu(out.rows(n_out)),
            (Out::Bf16(out), _) => Product::Store(out.rows(n_out)),
        }
    }

    fn launch(
        self,
        shape: &Shape,
        (a, w): (&Guarded<bf16>, &Guarded<bf16>),
        out: Product,
        norm: Option<Norm>,
    ) -> Launch {
        let [m, n, k] = [shape.m, shape.n, shape.k].map(|size| size as u32);
        let (a, w) = (a.rows(shape.ld_a), w.addr());
        let gemv = |kernel| Gemv { a, w, out, norm, m, n, k }.launch_as(kernel);
        match self.family {
            Family::GemvM1 => gemv(GemvKernel::M1 { threads: M1_THREADS }),
            Family::GemvM8 => gemv(GemvKernel::M8),
            Family::Tiled(tile) => {
                let tiling = Tiling { tile, k_parts: shape.parts, max_blocks: shape.max_blocks };
                Gemm { a, w, out, m, n, k, tiling }.launch()
            }
        }
    }

    /// What PTX leaves open of the output. The gemv for one row sums in an order of its own, without tensor cores.
    fn freedom(self, shape: &Shape, a: &[bf16], w: &[bf16], norm: Option<&[bf16]>) -> Freedom {
        let approximate = norm.is_some() || self.epilogue == Epilogue::SwiGlu;
        if matches!(self.family, Family::GemvM1) {
            return if approximate { Freedom::Approximate } else { Freedom::None };
        }
        let absolute =
            |values: &[bf16]| values.iter().map(|x| bf16::from_f64(x.to_f64().abs())).collect::<Vec<_>>();
        let sums = Self { epilogue: Epilogue::Store, ..self };
        let norm = norm.map(absolute);
        let mut magnitudes = sums.expected(shape, &absolute(a), &absolute(w), norm.as_deref(), &[]);
        if self.epilogue == Epilogue::SwiGlu {
            // |∂(silu(g)·u)| ≤ 1.1·|u|·|∂g| + |silu(g)|·|∂u|, and |silu(g)| ≤ |g|; each at most its Σ|a·b|.
            magnitudes = magnitudes.chunks(2).map(|pair| 2.1 * pair[0] * pair[1]).collect();
        }
        Freedom::Products { magnitudes, k: shape.k, approximate }
    }

    /// The product in f64. With a norm, its weight multiplies the activations and its inverse root mean square
    /// the result; `gemv_bf16_m8` feeds tensor cores, so it rounds the weighted activations to bf16.
    fn expected(
        self,
        shape: &Shape,
        a: &[bf16],
        w: &[bf16],
        norm: Option<&[bf16]>,
        old: &[bf16],
    ) -> Vec<f64> {
        let &Shape { m, n, k, ld_a, .. } = shape;
        let rows: Vec<Vec<f64>> = (0..m).map(|i| widen(&a[i * ld_a..][..k])).collect();
        let weighted = |row: &Vec<f64>| {
            let Some(norm) = norm else { return row.clone() };
            let product = row.iter().zip(norm).map(|(a, weight)| a * f64::from(*weight));
            if matches!(self.family, Family::GemvM8) {
                product.map(round).collect()
            } else {
                product.collect()
            }
        };
        let x: Vec<f64> = rows.iter().flat_map(weighted).collect();
        let mut y = matmul(&x, &widen(w), (m, n, k));
        if norm.is_some() {
            for (y, row) in y.chunks_mut(n).zip(&rows) {
                let inverse = inverse_rms(row, EPS);
                y.iter_mut().for_each(|y| *y *= inverse);
            }
        }
        match self.epilogue {
            Epilogue::Store | Epilogue::F32 => y,
            Epilogue::Add => y.iter().zip(old).map(|(y, old)| y + f64::from(*old)).collect(),
            Epilogue::SwiGlu => y.chunks(2).map(|pair| silu(pair[0]) * pair[1]).collect(),
        }
    }
}
