//! The case of the rotary embedding and the write to the cache.

use half::bf16;

use super::paging::{Cache, Layout};
use super::reference::{rope, widen};
use super::rig::Rig;
use super::tally::Tally;
use crate::driver::Result;
use crate::kernels::{HeadDim, RopeKvWrite};

/// (query heads, KV heads, page size, tokens, sequences, positions below).
const SHAPES: [(usize, usize, usize, usize, usize, u32); 7] = [
    (1, 1, 16, 1, 1, 100),
    (9, 3, 16, 5, 5, 4000),
    (5, 2, 1, 7, 2, 300),
    (32, 8, 16, 1, 1, 131_072),
    (32, 8, 256, 33, 3, 8192),
    (4, 1, 64, 130, 1, 2048),
    (28, 2, 16, 520, 1, 600),
];

pub(super) fn run(head_dim: HeadDim, rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    for (n_heads, n_kv_heads, page_size, n_tokens, n_sequences, end) in SHAPES {
        let width = head_dim.get() as usize;
        if !rig.wants_cache(end as usize * n_sequences * n_kv_heads * width) {
            continue;
        }
        tally.shape(format_args!(
            "{n_heads}+{n_kv_heads} heads, page {page_size}, {n_tokens} tokens below position {end}"
        ));
        // Different positions, so that no two tokens of a sequence share a slot.
        let positions = &rig.permutation(end as usize)[..n_tokens];
        let sequences: Vec<u32> = (0..n_tokens).map(|t| (t % n_sequences) as u32).collect();
        let layout = Layout::new(rig, &vec![end as usize; n_sequences], n_kv_heads, page_size, head_dim);
        let cache = Cache::poisoned(rig, layout)?;
        let n_rows = n_heads + 2 * n_kv_heads;
        let qkv = rig.random_bf16(n_tokens * n_rows * width, 1.0);
        let inv_freq: Vec<f32> =
            (0..width / 2).map(|i| 500_000f64.powf(-2.0 * i as f64 / width as f64) as f32).collect();
        let (d_qkv, d_inv_freq) = (rig.holding(&qkv)?, rig.holding(&inv_freq)?);
        let (d_positions, d_sequences) = (rig.holding(positions)?, rig.holding(&sequences)?);
        let launch = RopeKvWrite {
            head_dim,
            qkv: d_qkv.addr(),
            inv_freq: d_inv_freq.addr(),
            positions: d_positions.addr(),
            sequences: d_sequences.addr(),
            cache: cache.paged_kv(),
            n_heads: n_heads as u32,
            n_tokens: n_tokens as u32,
        }
        .launch();
        tally.launches(&launch);
        // SAFETY: the buffers have these shapes, the table covers all positions, no two tokens share a slot.
        unsafe { rig.launch(&launch)? };

        // q in place; k and v of qkv stay as they were.
        let input = widen(&qkv);
        let head = |t: usize, row: usize| &input[(t * n_rows + row) * width..][..width];
        let expected: Vec<f64> = (0..n_tokens * n_rows)
            .flat_map(|i| {
                let (t, row) = (i / n_rows, i % n_rows);
                if row < n_heads {
                    rope(head(t, row), positions[t], &inv_freq)
                } else {
                    head(t, row).to_vec()
                }
            })
            .collect();
        tally.close_bf16(rig, "qkv", &expected, &d_qkv, width)?;

        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for t in 0..n_tokens {
            for kv_head in 0..n_kv_heads {
                let row = cache.layout.row(sequences[t] as usize, kv_head, positions[t] as usize);
                keys.push((row, rope(head(t, n_heads + kv_head), positions[t], &inv_freq)));
                values.push((row, head(t, n_heads + n_kv_heads + kv_head).to_vec()));
            }
        }
        let found = tally.read(rig, "k cache", &cache.k)?;
        check_cache(tally, "k cache", &keys, &found, |tally, what, expected, found, width| {
            tally.close(what, expected, found, width);
        });
        let found = tally.read(rig, "v cache", &cache.v)?;
        check_cache(tally, "v cache", &values, &found, |tally, what, expected, found, _| {
            tally.equal(what, expected, found);
        });
    }
    Ok(())
}

/// The rows that should be written hold what they should, and nothing else was written.
fn check_cache(
    tally: &mut Tally<'_>,
    what: &str,
    rows: &[(usize, Vec<f64>)],
    cache: &[bf16],
    compare: impl Fn(&mut Tally<'_>, &str, &[f64], &[f64], usize),
) {
    for (at, expected) in rows {
        compare(tally, what, expected, &widen(&cache[*at..][..expected.len()]), expected.len());
    }
    let n_written = cache.iter().filter(|value| !value.is_nan()).count();
    let n_expected: usize = rows.iter().map(|(_, row)| row.len()).sum();
    if n_written != n_expected {
        tally.fail(format!("{n_written} elements of the {what} were written instead of {n_expected}"));
    }
}
