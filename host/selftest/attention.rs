//! Cases of attention over the paged cache.

use rayon::prelude::*;

use super::paging::{Cache, Layout};
use super::reference::{attention, widen};
use super::rig::Rig;
use super::tally::Tally;
use crate::driver::Result;
use crate::kernels::{AttnDecode, AttnPrefill, HeadDim, decode_splits};

/// Query scales: an even softmax, and one that few keys win.
const SHARPNESS: [f32; 2] = [1.0, 6.0];

/// (query heads of each KV head, page size, cached tokens of each sequence, splits; 0 for the library's choice).
type DecodeShape = (&'static [usize], usize, &'static [usize], u32);

const DECODE_SHAPES: [DecodeShape; 12] = [
    (&[1], 16, &[1], 1),
    (&[3, 3, 3], 16, &[1, 17, 100], 4),
    (&[1, 4, 2], 16, &[1000, 64, 65], 7),
    (&[4; 8], 16, &[1024], 16),
    (&[4; 8], 16, &[1024], 1),
    (&[4; 8], 64, &[4096, 1, 1500], 0),
    (&[20, 1], 4, &[333, 5000], 9),
    (&[2, 0, 3], 1, &[70, 129], 5),
    (&[8], 256, &[0, 5, 4097], 16),
    (&[1], 32, &[200], 1),
    (&[16, 16], 16, &[63, 64, 65, 127, 128, 129], 2),
    (&[7], 128, &[8192], 0),
];

/// One query token a sequence, twice without a reset of the counters.
pub(super) fn decode(head_dim: HeadDim, rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    let width = head_dim.get() as usize;
    for ((groups, page_size, lens, n_splits), sharpness) in
        DECODE_SHAPES.into_iter().flat_map(|shape| SHARPNESS.map(|sharpness| (shape, sharpness)))
    {
        let (n_heads, n_kv_heads, n_sequences) = (groups.iter().sum::<usize>(), groups.len(), lens.len());
        let n_splits = match n_splits {
            0 => {
                let (largest, longest) = (groups.iter().max(), lens.iter().max());
                let [largest, longest] = [largest, longest].map(|n| n.map_or(0, |&n| n as u32));
                decode_splits(n_sequences as u32, n_kv_heads as u32, largest, longest, rig.sm_count())
            }
            n => n,
        };
        if !rig.wants(lens.iter().sum::<usize>() * n_heads * width * 2) {
            continue;
        }
        let layout = Layout::new(rig, lens, n_kv_heads, page_size, head_dim);
        let (cache, host) = Cache::random(rig, layout, lens)?;
        // Rows of q are longer than its heads, as in a fused qkv.
        let ld_q = (n_heads + 2) * width;
        let q = rig.random_bf16(n_sequences * ld_q, sharpness);
        let group_heads = rig.permutation(n_heads);
        let group_starts: Vec<u32> =
            (0..=n_kv_heads).map(|g| groups[..g].iter().sum::<usize>() as u32).collect();
        let kv_lens: Vec<u32> = lens.iter().map(|&len| len as u32).collect();
        let (d_q, d_lens) = (rig.holding(&q)?, rig.holding(&kv_lens)?);
        let (d_starts, d_heads) = (rig.holding(&group_starts)?, rig.holding(&group_heads)?);
        let (n_heads32, n_kv32, n_seq32) = (n_heads as u32, n_kv_heads as u32, n_sequences as u32);
        let scratch = AttnDecode::scratch(head_dim, n_heads32, n_kv32, n_seq32, n_splits);
        let partial_out = rig.poisoned(scratch.partial_out)?;
        let partial_stats = rig.poisoned(scratch.partial_stats)?;
        let counters = rig.zeroed::<u32>(scratch.counters)?;
        let mut out = rig.poisoned(n_sequences * n_heads * width)?;
        let launch = AttnDecode {
            head_dim,
            q: d_q.rows(ld_q),
            out: out.rows(n_heads * width),
            cache: cache.paged_kv(),
            kv_lens: d_lens.addr(),
            group_starts: d_starts.addr(),
            group_heads: d_heads.addr(),
            partial_out: partial_out.addr(),
            partial_stats: partial_stats.addr(),
            counters: counters.addr(),
            n_heads: n_heads32,
            n_sequences: n_seq32,
            n_splits,
        }
        .launch();
        tally.launches(&launch);

        let q = widen(&q);
        let mut kv_head_of = vec![0; n_heads];
        for kv_head in 0..n_kv_heads {
            let group = group_starts[kv_head] as usize..group_starts[kv_head + 1] as usize;
            group_heads[group].iter().for_each(|&head| kv_head_of[head as usize] = kv_head);
        }
        let row = |i: usize| {
            let (sequence, head) = (i / n_heads, i % n_heads);
            let (keys, values) = host.rows(&cache.layout, sequence, kv_head_of[head], lens[sequence]);
            attention(&q[sequence * ld_q + head * width..][..width], &keys, &values)
        };
        let expected: Vec<f64> = (0..n_sequences * n_heads).into_par_iter().flat_map_iter(row).collect();
        for launch_number in ["first", "second"] {
            tally.shape(format_args!(
                "{groups:?} heads, page {page_size}, {lens:?} tokens, {n_splits} splits, q x {sharpness}, \
                 {launch_number} launch"
            ));
            rig.poison(&mut out)?;
            // SAFETY: the buffers have these shapes; the cache has all positions below the lengths.
            unsafe { rig.launch(&launch)? };
            tally.close_bf16(rig, "out", &expected, &out, width)?;
            let counters = tally.read(rig, "counters", &counters)?;
            tally.equal("counters", &vec![0; counters.len()], &counters);
            tally.read(rig, "partial_out", &partial_out)?;
            tally.read(rig, "partial_stats", &partial_stats)?;
        }
    }
    Ok(())
}

/// (KV head of each query head, page size, (query tokens, tokens cached before them) of each sequence).
type PrefillShape = (&'static [u32], usize, &'static [(usize, usize)]);

const PREFILL_SHAPES: [PrefillShape; 13] = [
    (&[0], 16, &[(1, 0)]),
    (&[0, 0, 0, 1, 1, 1], 16, &[(5, 0)]),
    (&[0, 1], 16, &[(64, 0), (1, 10), (130, 7)]),
    (&[0, 0, 1], 1, &[(33, 100)]),
    (&[1, 0], 4, &[(300, 0)]),
    (&[0], 256, &[(128, 64), (129, 0)]),
    (&[0, 0, 0, 0, 1, 1, 1, 1], 16, &[(17, 2000)]),
    (&[0, 0], 16, &[(700, 0)]),
    // Few queries over many tiles of keys, and positions that begin within a tile.
    (&[0], 16, &[(1, 200)]),
    (&[0], 16, &[(2, 1100)]),
    (&[0, 0], 8, &[(40, 100), (1, 255)]),
    // As few multiply-adds as take all the warps of a tile, and two tiles of queries.
    (&[0], 16, &[(90, 0)]),
    (&[0], 16, &[(129, 0)]),
];

pub(super) fn prefill(head_dim: HeadDim, rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    let width = head_dim.get() as usize;
    for ((kv_head_of, page_size, sequences), sharpness) in
        PREFILL_SHAPES.into_iter().flat_map(|shape| SHARPNESS.map(|sharpness| (shape, sharpness)))
    {
        let n_heads = kv_head_of.len();
        let n_kv_heads = kv_head_of.iter().max().map_or(0, |&last| last as usize + 1);
        let lens: Vec<usize> = sequences.iter().map(|(q_len, past)| q_len + past).collect();
        let work: usize = sequences.iter().map(|(q_len, past)| q_len * (past + q_len)).sum();
        if !rig.wants(work * n_heads * width * 2) {
            continue;
        }
        tally.shape(format_args!(
            "KV heads {kv_head_of:?}, page {page_size}, (new, cached) {sequences:?}, q x {sharpness}"
        ));
        let layout = Layout::new(rig, &lens, n_kv_heads, page_size, head_dim);
        let (cache, host) = Cache::random(rig, layout, &lens)?;
        // (sequence, position) of every query token.
        let tokens: Vec<(usize, usize)> = sequences
            .iter()
            .enumerate()
            .flat_map(|(s, &(q_len, past))| (past..past + q_len).map(move |position| (s, position)))
            .collect();
        let ld_q = (n_heads + 2 * n_kv_heads) * width;
        let q = rig.random_bf16(tokens.len() * ld_q, sharpness);
        let q_starts: Vec<u32> = (0..=sequences.len())
            .map(|s| sequences[..s].iter().map(|(q_len, _)| *q_len as u32).sum())
            .collect();
        let kv_lens: Vec<u32> = lens.iter().map(|&len| len as u32).collect();
        let (d_q, d_starts) = (rig.holding(&q)?, rig.holding(&q_starts)?);
        let (d_lens, d_kv_head_of) = (rig.holding(&kv_lens)?, rig.holding(kv_head_of)?);
        let out = rig.poisoned(tokens.len() * n_heads * width)?;
        let launch = AttnPrefill {
            head_dim,
            q: d_q.rows(ld_q),
            out: out.rows(n_heads * width),
            cache: cache.paged_kv(),
            q_starts: d_starts.addr(),
            kv_lens: d_lens.addr(),
            kv_head_of: d_kv_head_of.addr(),
            n_heads: n_heads as u32,
            n_sequences: sequences.len() as u32,
            max_q_len: sequences.iter().map(|(q_len, _)| *q_len as u32).max().unwrap_or(1),
        }
        .launch(rig.library().target());
        tally.launches(&launch);
        // SAFETY: the buffers have these shapes; the cache has all positions below the lengths.
        unsafe { rig.launch(&launch)? };

        let q = widen(&q);
        let row = |i: usize| {
            let (token, head) = (i / n_heads, i % n_heads);
            let (sequence, position) = tokens[token];
            let kv_head = kv_head_of[head] as usize;
            let (keys, values) = host.rows(&cache.layout, sequence, kv_head, position + 1);
            attention(&q[token * ld_q + head * width..][..width], &keys, &values)
        };
        let expected: Vec<f64> = (0..tokens.len() * n_heads).into_par_iter().flat_map_iter(row).collect();
        tally.close_bf16(rig, "out", &expected, &out, width)?;
    }
    Ok(())
}
