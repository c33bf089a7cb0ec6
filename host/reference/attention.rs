//! Causal grouped-query attention over a growing KV cache, one query head at a time.

use gemm::Parallelism;
use rayon::prelude::*;

use super::math::Threads;
use crate::model::sharding::HeadShard;

/// Keys and values of one sequence in one block: per local KV head, rows of `head_dim`.
#[derive(Debug, Clone, Default)]
pub(crate) struct KvCache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl KvCache {
    /// Appends one position's keys and values, `[kv_heads, head_dim]` each.
    pub(crate) fn push(&mut self, keys: &[f32], values: &[f32], head_dim: usize) {
        let n_kv_heads = keys.len() / head_dim;
        self.keys.resize(n_kv_heads, Vec::new());
        self.values.resize(n_kv_heads, Vec::new());
        for (cache, new) in self.keys.iter_mut().zip(keys.chunks_exact(head_dim)) {
            cache.extend_from_slice(new);
        }
        for (cache, new) in self.values.iter_mut().zip(values.chunks_exact(head_dim)) {
            cache.extend_from_slice(new);
        }
    }

    /// Keeps the first `len` positions.
    pub(crate) fn truncate(&mut self, len: usize, head_dim: usize) {
        for cache in self.keys.iter_mut().chain(&mut self.values) {
            cache.truncate(len * head_dim);
        }
    }
}

/// `out[n, heads · head_dim]` = attention of the last `n` positions of `cache`, whose rotated queries
/// are `q`, `[n, heads · head_dim]`. The probabilities, `[n, positions]` a head, are appended to `scores`, one vector
/// a head, where somebody wants them.
pub(crate) fn attention(
    q: &[f32],
    cache: &KvCache,
    heads: &HeadShard,
    head_dim: usize,
    out: &mut [f32],
    threads: Threads,
    scores: Option<&mut [Vec<f32>]>,
) {
    let width = heads.heads.len() * head_dim;
    let one_head = |(index, &kv): (usize, &usize)| {
        let queries = Strided { values: &q[index * head_dim..], stride: width, rows: q.len() / width };
        one_head(queries, &cache.keys[kv], &cache.values[kv], head_dim)
    };
    let by_head: Vec<Attended> = if threads.0 == 1 {
        heads.kv_index.iter().enumerate().map(one_head).collect()
    } else {
        heads.kv_index.par_iter().enumerate().map(one_head).collect()
    };
    for (index, head) in by_head.iter().enumerate() {
        for (out, result) in out.chunks_exact_mut(width).zip(head.out.chunks_exact(head_dim)) {
            out[index * head_dim..][..head_dim].copy_from_slice(result);
        }
    }
    for (all, head) in scores.into_iter().flatten().zip(&by_head) {
        all.extend_from_slice(&head.scores);
    }
}

/// One head's result: probabilities `[n, positions]` and `[n, head_dim]`.
struct Attended {
    scores: Vec<f32>,
    out: Vec<f32>,
}

/// Rows that lie `stride` values apart.
struct Strided<'a> {
    values: &'a [f32],
    stride: usize,
    rows: usize,
}

fn one_head(q: Strided<'_>, keys: &[f32], values: &[f32], head_dim: usize) -> Attended {
    let (n, len) = (q.rows, keys.len() / head_dim);
    let mut scores = vec![0.0f32; n * len];
    assert!(
        q.values.len() >= (n - 1) * q.stride + head_dim && values.len() == keys.len(),
        "attention: shapes"
    );
    // SAFETY: the strides describe scores as [n, len], the queries as [n, head_dim] (bounds asserted above)
    // and the keys as [len, head_dim] read transposed.
    unsafe {
        gemm::gemm(
            n,
            len,
            head_dim,
            scores.as_mut_ptr(),
            1,
            len as isize,
            false,
            q.values.as_ptr(),
            1,
            q.stride as isize,
            keys.as_ptr(),
            head_dim as isize,
            1,
            0.0,
            1.0 / (head_dim as f32).sqrt(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    for (row, scores) in scores.chunks_exact_mut(len).enumerate() {
        // The last row sees every position, the one before it one less, and so on.
        let (visible, hidden) = scores.split_at_mut(len - (n - 1 - row));
        softmax(visible);
        hidden.fill(0.0);
    }
    let mut out = vec![0.0f32; n * head_dim];
    // SAFETY: scores is [n, len], values [len, head_dim], out [n, head_dim], all dense and row-major.
    unsafe {
        gemm::gemm(
            n,
            head_dim,
            len,
            out.as_mut_ptr(),
            1,
            head_dim as isize,
            false,
            scores.as_ptr(),
            1,
            len as isize,
            values.as_ptr(),
            1,
            head_dim as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    Attended { scores, out }
}

fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in row.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    for v in row {
        *v /= sum;
    }
}
