//! Embedding, norms, RoPE with the cache's write, argmax and sampling.

use super::operands::Operands;
use super::{BenchError, Rank, Work};
use crate::kernels::{
    AddRmsNorm, Addr, Argmax, Embedding, Launch, PageSize, PagedKv, RmsNorm, RopeKvWrite, Rows, Sample,
};

const EPS: f32 = 1e-5;

/// All pointwise kernels for `m` tokens.
pub(super) fn all<'a>(rank: &Rank, m: usize, operands: &'a Operands) -> Result<Vec<Work<'a>>, BenchError> {
    let hidden = rank.config.hidden;
    let (tokens, width) = (m as u32, hidden as u32);
    let row_bytes = 2 * m * hidden;
    let work = |op, k: usize, moved_bytes: usize, copy_bytes, launch| Work {
        op,
        m,
        n: 0,
        k,
        context: 0,
        moved_bytes: moved_bytes as f64,
        flops: 0.0,
        copy_bytes,
        // The residual and, for its norm, as much behind it.
        shared_bytes: 2 * row_bytes,
        product: None,
        launch,
    };
    type Launcher<'a> = Box<dyn Fn(usize) -> Launch + 'a>;

    let ids = operands.upload(&(0..tokens).rev().collect::<Vec<_>>())?;
    let embedding: Launcher<'a> = Box::new(move |offset| {
        let (table, out) = (operands.at(offset), operands.out());
        Embedding { table, rows: tokens, width, ids: ids.addr(), out, n_tokens: tokens }.launch()
    });
    let rmsnorm: Launcher<'a> = Box::new(move |offset| {
        let (x, weight, out) = (operands.at(offset), operands.at(0), operands.out());
        RmsNorm { x, weight, out, n_tokens: tokens, hidden: width, eps: EPS }.launch()
    });
    let add_rmsnorm: Launcher<'a> = Box::new(move |offset| {
        let (x, weight, residual) = (operands.at(offset), operands.at(0), operands.out::<half::bf16>());
        let out = residual.at(m * hidden);
        AddRmsNorm { x, residual, sum: residual, weight, out, n_tokens: tokens, hidden: width, eps: EPS }
            .launch()
    });
    let mut works = vec![
        work("embedding", hidden, 2 * row_bytes, row_bytes, embedding),
        work("rmsnorm", hidden, 2 * row_bytes + 2 * hidden, row_bytes, rmsnorm),
        work("add_rmsnorm", hidden, 4 * row_bytes + 2 * hidden, row_bytes, add_rmsnorm),
    ];
    works.push(rope(rank, m, operands)?);
    works.extend(choices(rank, m, operands)?);
    Ok(works)
}

/// Every token is the first of its own sequence. What it reads it has written, so it is warm.
fn rope<'a>(rank: &Rank, m: usize, operands: &'a Operands) -> Result<Work<'a>, BenchError> {
    const PAGE_SIZE: usize = 16;
    let unsupported = |source| BenchError::UnsupportedShape { model: rank.model.clone(), source };
    let page_size = PageSize::try_from(PAGE_SIZE).map_err(unsupported)?;
    let width = rank.config.head_dim;
    let n_rows = rank.n_heads + 2 * rank.n_kv_heads;
    let inv_freq = operands.upload(&vec![0.5f32; width / 2])?;
    let positions = operands.upload(&vec![0u32; m])?;
    let sequences = operands.upload(&(0..m as u32).collect::<Vec<_>>())?;
    let block_table = operands.upload(&(0..m as u32).collect::<Vec<_>>())?;
    let (head_dim, n_heads, n_kv_heads) = (rank.head_dim, rank.n_heads as u32, rank.n_kv_heads as u32);
    let (qkv_len, cache_len) = (m * n_rows * width, m * rank.n_kv_heads * PAGE_SIZE * width);
    Ok(Work {
        op: "rope_kv_write",
        m,
        n: 0,
        k: n_rows * width,
        context: 0,
        moved_bytes: (4 * qkv_len) as f64,
        flops: 0.0,
        copy_bytes: 1,
        shared_bytes: 2 * (qkv_len + 2 * cache_len),
        product: None,
        launch: Box::new(move |_| {
            let qkv: Addr<half::bf16> = operands.out();
            let (k, v) = (qkv.at(qkv_len), qkv.at(qkv_len + cache_len));
            let cache =
                PagedKv { k, v, block_table: block_table.addr(), max_pages: 1, page_size, n_kv_heads };
            RopeKvWrite {
                head_dim,
                qkv,
                inv_freq: inv_freq.addr(),
                positions: positions.addr(),
                sequences: sequences.addr(),
                cache,
                n_heads,
                n_tokens: m as u32,
            }
            .launch()
        }),
    })
}

/// Greedy and sampled choice over the whole vocabulary.
fn choices<'a>(rank: &Rank, m: usize, operands: &'a Operands) -> Result<[Work<'a>; 2], BenchError> {
    let (vocab, rows) = (rank.config.vocab, m as u32);
    let over_logits = |op, launch: Box<dyn Fn(usize) -> Launch + 'a>| Work {
        op,
        m,
        n: 0,
        k: vocab,
        context: 0,
        moved_bytes: (4 * m * vocab) as f64,
        flops: 0.0,
        copy_bytes: 4 * m * vocab,
        shared_bytes: 4 * m,
        product: None,
        launch,
    };
    let (best, counters) = (operands.upload(&vec![0u64; m])?, operands.upload(&vec![0u32; m])?);
    let argmax = over_logits(
        "argmax",
        Box::new(move |offset| {
            let (logits, indices) = (Rows::new(operands.at(offset), vocab as u32), operands.out());
            let (best, counters, len) = (best.addr(), counters.addr(), vocab as u32);
            Argmax { logits, len, n_rows: rows, indices, values: Addr::NULL, best, counters }.launch()
        }),
    );
    let temperatures = operands.upload(&vec![0.8f32; m])?;
    let (top_ks, top_ps) = (operands.upload(&vec![50u32; m])?, operands.upload(&vec![0.9f32; m])?);
    let (seeds, draws) = (operands.upload(&vec![1u64; m])?, operands.upload(&vec![1u32; m])?);
    let sample = over_logits(
        "sample k=50 p=0.9",
        Box::new(move |offset| {
            let (logits, tokens) = (Rows::new(operands.at(offset), vocab as u32), operands.out());
            Sample {
                logits,
                len: vocab as u32,
                n_rows: rows,
                tokens,
                temperatures: temperatures.addr(),
                top_ks: top_ks.addr(),
                top_ps: top_ps.addr(),
                seeds: seeds.addr(),
                counters: draws.addr(),
            }
            .launch()
        }),
    );
    Ok([argmax, sample])
}
