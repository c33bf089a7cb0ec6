//! Cases of the embedding and the norms.

use half::bf16;

use super::reference::{rms_norm, round, widen};
use super::rig::Rig;
use super::tally::Tally;
use crate::driver::Result;
use crate::kernels::{AddRmsNorm, Embedding, RmsNorm};

/// Widths of a row: one thread's worth, odd ones, and models'.
const WIDTHS: [usize; 9] = [1, 8, 100, 576, 577, 2048, 4096, 8192, 16384];
const TOKENS: [usize; 3] = [1, 5, 33];
/// (width, tokens): more than a block holds in registers, and more than few rows.
const MORE: [(usize, usize); 8] =
    [(20_000, 2), (20_003, 2), (8, 129), (100, 130), (576, 129), (577, 129), (2048, 300), (16_400, 129)];
const EPS: f32 = 1e-5;

/// Rows that exist, and the row beyond the last, which is zeros.
pub(super) fn embedding(rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    const ROWS: usize = 50;
    for (width, n_tokens) in shapes(rig) {
        tally.shape(format_args!("width {width}, {n_tokens} tokens"));
        let table = rig.random_bf16(ROWS * width, 1.0);
        let mut ids = rig.random_below(n_tokens, ROWS as u32);
        (ids[0], ids[n_tokens / 2]) = (ROWS as u32 - 1, ROWS as u32);
        let (d_table, d_ids) = (rig.holding(&table)?, rig.holding(&ids)?);
        let out = rig.poisoned(n_tokens * width)?;
        let launch = Embedding {
            table: d_table.addr(),
            rows: ROWS as u32,
            width: width as u32,
            ids: d_ids.addr(),
            out: out.addr(),
            n_tokens: n_tokens as u32,
        }
        .launch();
        tally.launches(&launch);
        // SAFETY: the buffers have these shapes and live until the launch has been waited for.
        unsafe { rig.launch(&launch)? };
        let row = |id: u32| table.get(id as usize * width..).filter(|rest| !rest.is_empty());
        let expected: Vec<u16> = ids
            .iter()
            .flat_map(|&id| row(id).map_or(vec![bf16::ZERO; width], |rest| rest[..width].to_vec()))
            .map(bf16::to_bits)
            .collect();
        let found: Vec<u16> = tally.read(rig, "out", &out)?.into_iter().map(bf16::to_bits).collect();
        tally.equal("out", &expected, &found);
    }
    Ok(())
}

/// Into another buffer, and in place.
pub(super) fn rmsnorm(rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    for (hidden, n_tokens) in shapes(rig) {
        let (x, weight) = (rig.random_bf16(n_tokens * hidden, 1.0), rig.random_bf16(hidden, 1.0));
        let (d_x, d_weight) = (rig.holding(&x)?, rig.holding(&weight)?);
        let separate = rig.poisoned(n_tokens * hidden)?;
        let expected = norm_rows(&widen(&x), &weight, hidden);
        // In place last: it overwrites x.
        for (place, out) in [("", &separate), (", in place", &d_x)] {
            tally.shape(format_args!("hidden {hidden}, {n_tokens} tokens{place}"));
            let launch = RmsNorm {
                x: d_x.addr(),
                weight: d_weight.addr(),
                out: out.addr(),
                n_tokens: n_tokens as u32,
                hidden: hidden as u32,
                eps: EPS,
            }
            .launch();
            tally.launches(&launch);
            // SAFETY: the buffers have these shapes and live until the launch has been waited for.
            unsafe { rig.launch(&launch)? };
            tally.close_bf16(rig, "out", &expected, out, hidden)?;
        }
    }
    Ok(())
}

/// The residual to the bit, its norm up to the bound.
pub(super) fn add_rmsnorm(rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    for (hidden, n_tokens) in shapes(rig) {
        tally.shape(format_args!("hidden {hidden}, {n_tokens} tokens"));
        let x = rig.random_bf16(n_tokens * hidden, 1.0);
        let residual = rig.random_bf16(n_tokens * hidden, 1.0);
        let weight = rig.random_bf16(hidden, 1.0);
        let (d_x, d_residual, d_weight) = (rig.holding(&x)?, rig.holding(&residual)?, rig.holding(&weight)?);
        let out = rig.poisoned(n_tokens * hidden)?;
        let launch = AddRmsNorm {
            x: d_x.addr(),
            residual: d_residual.addr(),
            sum: d_residual.addr(),
            weight: d_weight.addr(),
            out: out.addr(),
            n_tokens: n_tokens as u32,
            hidden: hidden as u32,
            eps: EPS,
        }
        .launch();
        tally.launches(&launch);
        // SAFETY: the buffers have these shapes and live until the launch has been waited for.
        unsafe { rig.launch(&launch)? };
        // The sum is rounded before it is normalised: that is the kernel's contract.
        let sum: Vec<f64> =
            x.iter().zip(&residual).map(|(x, r)| round(f64::from(*x) + f64::from(*r))).collect();
        let kept = widen(&tally.read(rig, "residual", &d_residual)?);
        tally.equal("residual", &sum, &kept);
        tally.close_bf16(rig, "out", &norm_rows(&sum, &weight, hidden), &out, hidden)?;
    }
    Ok(())
}

fn shapes(rig: &Rig<'_>) -> impl Iterator<Item = (usize, usize)> {
    let all = WIDTHS.into_iter().flat_map(|width| TOKENS.into_iter().map(move |n_tokens| (width, n_tokens)));
    all.chain(MORE).filter(|&(width, n_tokens)| rig.wants(width * n_tokens))
}

pub(super) fn norm_rows(x: &[f64], weight: &[bf16], hidden: usize) -> Vec<f64> {
    let weight = widen(weight);
    x.chunks(hidden).flat_map(|row| rms_norm(row, &weight, EPS)).collect()
}
