//! Attention over a cache of pages in random order.

use super::operands::Operands;
use super::{BenchError, Rank, Work};
use crate::driver::DeviceBuffer;
use crate::kernels::{AttnDecode, AttnPrefill, PageSize, PagedKv, Rows, decode_splits};

const PAGE_SIZE: usize = 16;

/// The layout of `n_sequences` caches of `context` tokens, keys and values one behind the other.
struct CacheLayout {
    block_table: DeviceBuffer<u32>,
    max_pages: usize,
    n_kv_heads: usize,
    page_size: PageSize,
    /// Of keys, and as many of values.
    half_bytes: usize,
}

impl CacheLayout {
    fn new(rank: &Rank, n_sequences: usize, context: usize, operands: &Operands) -> Result<Self, BenchError> {
        let max_pages = context.div_ceil(PAGE_SIZE);
        let n_pages = n_sequences * max_pages;
        // An odd stride that shares no factor with the count visits every page once, out of order.
        let stride = ((n_pages / 2) | 1..).find(|s| gcd(*s, n_pages) == 1).unwrap_or(1);
        let pages: Vec<u32> = (0..n_pages).map(|i| (i * stride % n_pages) as u32).collect();
        let unsupported = |source| BenchError::UnsupportedShape { model: rank.model.clone(), source };
        Ok(Self {
            block_table: operands.upload(&pages)?,
            max_pages,
            n_kv_heads: rank.n_kv_heads,
            page_size: PageSize::try_from(PAGE_SIZE).map_err(unsupported)?,
            half_bytes: Operands::stride(n_pages * rank.n_kv_heads * PAGE_SIZE * rank.config.head_dim * 2),
        })
    }

    fn at(&self, offset: usize, operands: &Operands) -> PagedKv {
        PagedKv {
            k: operands.at(offset),
            v: operands.at(offset + self.half_bytes),
            block_table: self.block_table.addr(),
            max_pages: self.max_pages as u32,
            page_size: self.page_size,
            n_kv_heads: self.n_kv_heads as u32,
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The KV head of each query head.
fn kv_head_of(rank: &Rank) -> Vec<u32> {
    (0..rank.n_heads).map(|head| (head * rank.n_kv_heads / rank.n_heads) as u32).collect()
}

/// One token of each of `m` sequences over `context` cached tokens.
pub(super) fn decode<'a>(
    rank: &Rank,
    m: usize,
    context: usize,
    operands: &'a Operands,
) -> Result<Work<'a>, BenchError> {
    let cache = CacheLayout::new(rank, m, context, operands)?;
    let kv_head_of = kv_head_of(rank);
    let group_starts: Vec<u32> = (0..=rank.n_kv_heads as u32)
        .map(|g| kv_head_of.iter().filter(|&&kv_head| kv_head < g).count() as u32)
        .collect();
    let largest = group_starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(1);
    let [n_sequences, n_heads, n_kv_heads] = [m, rank.n_heads, rank.n_kv_heads].map(|n| n as u32);
    let sm_count = operands.device.properties().multiprocessors;
    let n_splits = decode_splits(n_sequences, n_kv_heads, largest, context as u32, sm_count);
    let scratch = AttnDecode::scratch(rank.head_dim, n_heads, n_kv_heads, n_sequences, n_splits);
    let partial_out = operands.device.allocate::<f32>(scratch.partial_out)?;
    let partial_stats = operands.device.allocate::<f32>(scratch.partial_stats)?;
    let counters = operands.upload(&vec![0u32; scratch.counters])?;
    let kv_lens = operands.upload(&vec![context as u32; m])?;
    let group_starts = operands.upload(&group_starts)?;
    let group_heads = operands.upload(&(0..n_heads).collect::<Vec<_>>())?;
    let (head_dim, width) = (rank.head_dim, rank.n_heads * rank.config.head_dim);
    let copy_bytes = 2 * cache.half_bytes;
    Ok(Work {
        op: "decode attention",
        m,
        n: 0,
        k: width,
        context,
        moved_bytes: (2 * m * context * rank.n_kv_heads * rank.config.head_dim * 2 + 4 * m * width) as f64,
        flops: 4.0 * m as f64 * context as f64 * width as f64,
        copy_bytes,
        shared_bytes: 2 * m * width,
        product: None,
        launch: Box::new(move |offset| {
            AttnDecode {
                head_dim,
                q: Rows::new(operands.at(0), width as u32),
                out: Rows::new(operands.out(), width as u32),
                cache: cache.at(offset, operands),
                kv_lens: kv_lens.addr(),
                group_starts: group_starts.addr(),
                group_heads: group_heads.addr(),
                partial_out: partial_out.addr(),
                partial_stats: partial_stats.addr(),
                counters: counters.addr(),
                n_heads,
                n_sequences,
                n_splits,
            }
            .launch()
        }),
    })
}

/// One prompt of `context` tokens.
pub(super) fn prefill<'a>(
    rank: &Rank,
    context: usize,
    operands: &'a Operands,
) -> Result<Work<'a>, BenchError> {
    let cache = CacheLayout::new(rank, 1, context, operands)?;
    let q_starts = operands.upload(&[0, context as u32])?;
    let kv_lens = operands.upload(&[context as u32])?;
    let kv_head_of = operands.upload(&kv_head_of(rank))?;
    let (head_dim, width, n_heads) = (rank.head_dim, rank.n_heads * rank.config.head_dim, rank.n_heads);
    let kv_bytes = 2 * context * rank.n_kv_heads * rank.config.head_dim * 2;
    let copy_bytes = 2 * cache.half_bytes;
    Ok(Work {
        op: "prefill attention",
        m: context,
        n: 0,
        k: width,
        context,
        moved_bytes: (kv_bytes + 4 * context * width) as f64,
        // Token i sees i + 1 keys.
        flops: 2.0 * context as f64 * (context as f64 + 1.0) * width as f64,
        copy_bytes,
        shared_bytes: 2 * context * width,
        product: None,
        launch: Box::new(move |offset| {
            AttnPrefill {
                head_dim,
                q: Rows::new(operands.at(0), width as u32),
                out: Rows::new(operands.out(), width as u32),
                cache: cache.at(offset, operands),
                q_starts: q_starts.addr(),
                kv_lens: kv_lens.addr(),
                kv_head_of: kv_head_of.addr(),
                n_heads: n_heads as u32,
                n_sequences: 1,
                max_q_len: context as u32,
            }
            .launch(operands.target)
        }),
    })
}
