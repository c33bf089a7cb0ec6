//! The matrix products of a block and the output head.

use super::operands::Operands;
use super::{Rank, Work};
use crate::kernels::{Launch, MatMul, Product, Rows, Target};

/// What becomes of a product: see [`Product`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Epilogue {
    Store,
    F32,
    Add,
    SwiGlu,
}

/// `a[m, k] · w[n, k]ᵀ`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) epilogue: Epilogue,
}

struct Layer {
    op: &'static str,
    n: usize,
    k: usize,
    epilogue: Epilogue,
}

fn block(rank: &Rank) -> [Layer; 4] {
    let (hidden, width) = (rank.config.hidden, rank.config.head_dim);
    let qkv = (rank.n_heads + 2 * rank.n_kv_heads) * width;
    [
        Layer { op: "qkv", n: qkv, k: hidden, epilogue: Epilogue::Store },
        Layer { op: "o", n: hidden, k: rank.n_heads * width, epilogue: Epilogue::Add },
        Layer { op: "gate_up", n: 2 * rank.ffn, k: hidden, epilogue: Epilogue::SwiGlu },
        Layer { op: "down", n: hidden, k: rank.ffn, epilogue: Epilogue::Add },
    ]
}

/// A block's products and the output head's for `m` sequences.
pub(super) fn decode<'a>(rank: &Rank, m: usize, operands: &'a Operands) -> Vec<Work<'a>> {
    let head = Layer { op: "lm_head", n: rank.vocab, k: rank.config.hidden, epilogue: Epilogue::F32 };
    works(rank, block(rank).into_iter().chain([head]), m, operands)
}

/// A block's products for `m` prompt tokens.
pub(super) fn prefill<'a>(rank: &Rank, m: usize, operands: &'a Operands) -> Vec<Work<'a>> {
    works(rank, block(rank), m, operands)
}

/// Shares of a high degree may be empty.
fn works<'a>(
    rank: &Rank,
    layers: impl IntoIterator<Item = Layer>,
    m: usize,
    operands: &'a Operands,
) -> Vec<Work<'a>> {
    let target = operands.target.for_hidden(rank.config.hidden);
    let layers = layers.into_iter().filter(|layer| layer.n > 0 && layer.k > 0);
    layers
        .map(|Layer { op, n, k, epilogue }| work(op, Shape { m, n, k, epilogue }, target, operands))
        .collect()
}

/// One product, by the kernel that the library chooses.
pub(super) fn work<'a>(op: &'static str, shape: Shape, target: Target, operands: &'a Operands) -> Work<'a> {
    let Shape { m, n, k, epilogue } = shape;
    let out_bytes = m * match epilogue {
        Epilogue::Store => 2 * n,
        Epilogue::F32 => 4 * n,
        // Read and written.
        Epilogue::Add => 4 * n,
        Epilogue::SwiGlu => n,
    };
    let weight_bytes = 2 * n * k;
    Work {
        op,
        m,
        n,
        k,
        context: 0,
        moved_bytes: (weight_bytes + 2 * m * k + out_bytes) as f64,
        flops: 2.0 * m as f64 * n as f64 * k as f64,
        copy_bytes: weight_bytes,
        // cuBLASLt stores both halves of a SwiGLU.
        shared_bytes: (2 * m * k).max(out_bytes).max(2 * m * n),
        product: Some(shape),
        launch: Box::new(move |offset| launch(&shape, offset, target, operands)),
    }
}

/// The kernel that the library chooses, as in the engine.
fn launch(shape: &Shape, offset: usize, target: Target, operands: &Operands) -> Launch {
    let &Shape { m, n, k, epilogue } = shape;
    let (a, w) = (Rows::new(operands.at(0), k as u32), operands.at(offset));
    let out = match epilogue {
        Epilogue::Store => Product::Store(Rows::new(operands.out(), n as u32)),
        Epilogue::F32 => Product::StoreF32(Rows::new(operands.out(), n as u32)),
        Epilogue::Add => Product::Add(Rows::new(operands.out(), n as u32)),
        Epilogue::SwiGlu => Product::SwiGlu(Rows::new(operands.out(), n as u32 / 2)),
    };
    let [m, n, k] = [m, n, k].map(|size| size as u32);
    MatMul { a, w, out, m, n, k }.launch(target)
}
