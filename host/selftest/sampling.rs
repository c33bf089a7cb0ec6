//! Cases of argmax, sampling and the step counter.

use rayon::prelude::*;

use super::reference::{argmax as reference_argmax, distribution, philox_unit};
use super::rig::Rig;
use super::tally::Tally;
use crate::driver::Result;
use crate::kernels::{AdvancePositions, Argmax, Sample};

/// (rows, logits, stride).
const ARGMAX_SHAPES: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (2, 7, 8),
    (4, 1000, 1000),
    (3, 4097, 4100),
    (5, 49_152, 49_153),
    (2, 128_256, 128_256),
    (33, 512, 512),
];

/// Rows with ties, with NaN, of −∞ alone, negative alone; twice without a reset of the cells.
pub(super) fn argmax(rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    for (n_rows, len, stride) in ARGMAX_SHAPES {
        if !rig.wants(n_rows * len) {
            continue;
        }
        let mut logits = rig.random((n_rows - 1) * stride + len, 3.0);
        for (row, logits) in logits.chunks_mut(stride).enumerate() {
            match row % 4 {
                // The last element ties with the maximum, which must win.
                0 => logits[len - 1] = logits[reference_argmax(&logits[..len])],
                1 => logits[..len / 2].fill(f32::NAN),
                2 => logits.fill(f32::NEG_INFINITY),
                _ => logits.iter_mut().for_each(|logit| *logit = -logit.abs() - 1.0),
            }
            // What lies between rows would win.
            logits[len..].fill(f32::INFINITY);
        }
        let rows: Vec<&[f32]> = logits.chunks(stride).map(|row| &row[..len]).collect();
        let indices: Vec<u32> = rows.iter().map(|row| reference_argmax(row) as u32).collect();
        let values: Vec<f32> = rows.iter().zip(&indices).map(|(row, &i)| row[i as usize]).collect();
        let d_logits = rig.holding(&logits)?;
        let (mut d_indices, mut d_values) = (rig.poisoned::<u32>(n_rows)?, rig.poisoned::<f32>(n_rows)?);
        let (best, counters) = (rig.zeroed::<u64>(n_rows)?, rig.zeroed::<u32>(n_rows)?);
        let launch = Argmax {
            logits: d_logits.rows(stride),
            len: len as u32,
            n_rows: n_rows as u32,
            indices: d_indices.addr(),
            values: d_values.addr(),
            best: best.addr(),
            counters: counters.addr(),
        }
        .launch();
        tally.launches(&launch);
        for launch_number in ["first", "second"] {
            tally.shape(format_args!("{n_rows} rows of {len}, stride {stride}, {launch_number} launch"));
            rig.poison(&mut d_indices)?;
            rig.poison(&mut d_values)?;
            // SAFETY: the buffers have these shapes; cells and counters are zero before the first launch.
            unsafe { rig.launch(&launch)? };
            let found = tally.read(rig, "indices", &d_indices)?;
            tally.equal("indices", &indices, &found);
            let found = tally.read(rig, "values", &d_values)?;
            tally.equal("values", &values, &found);
            let found = tally.read(rig, "best", &best)?;
            tally.equal("best", &vec![0; n_rows], &found);
            let found = tally.read(rig, "counters", &counters)?;
            tally.equal("counters", &vec![0; n_rows], &found);
        }
    }
    Ok(())
}

/// (logits, temperature, top-k, top-p, draws).
const SAMPLE_SHAPES: [(usize, f32, u32, f32, usize); 12] = [
    (1, 1.0, 0, 1.0, 3),
    (10, 1.0, 0, 1.0, 500),
    (33, 1.0, 0, 0.3, 500),
    (1000, 0.7, 0, 1.0, 500),
    (1000, 1.0, 5, 1.0, 500),
    (1000, 1.0, 1, 1.0, 50),
    (1000, 1.3, 0, 0.9, 500),
    (1000, 1.0, 40, 0.8, 500),
    (5000, 2.0, 100, 0.5, 300),
    (5000, 0.0, 0, 1.0, 50),
    (49_152, 0.8, 0, 0.95, 100),
    (128_256, 1.0, 50, 0.95, 100),
];

/// The kernel draws by inverting the cumulative distribution at a number that Philox gives, so each draw has
/// one right answer: the error is how far that number lies outside the drawn token's interval. Greedy draws
/// must be the argmax.
pub(super) fn sample(rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    for (len, temperature, top_k, top_p, n_rows) in SAMPLE_SHAPES {
        let n_rows = rig.wanted_rows(n_rows, len);
        if n_rows == 0 {
            continue;
        }
        tally.shape(format_args!("{len} logits, temperature {temperature}, top-k {top_k}, top-p {top_p}"));
        let mut logits = rig.random(len, 2.0);
        if len > 100 {
            // A NaN, and two tokens that tie.
            (logits[3], logits[len - 1]) = (f32::NAN, logits[77]);
        }
        // All rows are the same logits, drawn from with different numbers.
        let seeds: Vec<u64> = (0..n_rows as u64).map(|i| i << 33 ^ 0xfeed).collect();
        let counters = rig.random_below(n_rows, u32::MAX);
        let (d_logits, d_tokens) = (rig.holding(&logits)?, rig.poisoned::<u32>(n_rows)?);
        let (d_temperatures, d_top_ks) =
            (rig.holding(&vec![temperature; n_rows])?, rig.holding(&vec![top_k; n_rows])?);
        let (d_top_ps, d_seeds) = (rig.holding(&vec![top_p; n_rows])?, rig.holding(&seeds)?);
        let d_counters = rig.holding(&counters)?;
        let launch = Sample {
            logits: d_logits.rows(0),
            len: len as u32,
            n_rows: n_rows as u32,
            tokens: d_tokens.addr(),
            temperatures: d_temperatures.addr(),
            top_ks: d_top_ks.addr(),
            top_ps: d_top_ps.addr(),
            seeds: d_seeds.addr(),
            counters: d_counters.addr(),
        }
        .launch();
        tally.launches(&launch);
        // SAFETY: the buffers have these shapes.
        unsafe { rig.launch(&launch)? };
        let tokens = tally.read(rig, "tokens", &d_tokens)?;
        if temperature <= 0.0 {
            tally.equal("tokens", &vec![reference_argmax(&logits) as u32; n_rows], &tokens);
            continue;
        }
        let probabilities = distribution(&logits, temperature, top_k, top_p);
        let mut sum = 0.0;
        let upto: Vec<f64> = probabilities
            .iter()
            .map(|p| {
                sum += p;
                sum
            })
            .collect();
        let outside = |row: usize| {
            let (token, drawn) = (tokens[row] as usize, philox_unit(seeds[row], counters[row]));
            let Some(&p) = probabilities.get(token).filter(|p| **p > 0.0) else { return f64::INFINITY };
            (upto[token] - p - drawn).max(drawn - upto[token]).max(0.0)
        };
        let errors: Vec<f64> = (0..n_rows).into_par_iter().map(outside).collect();
        tally.draws(&tokens, &errors);
    }
    Ok(())
}

/// More sequences than a block has threads, twice.
pub(super) fn advance_positions(rig: &Rig<'_>, tally: &mut Tally<'_>) -> Result<()> {
    for n_sequences in [1usize, 127, 128, 129, 1500] {
        let positions = rig.random_below(n_sequences, 1 << 20);
        let kv_lens: Vec<u32> = positions.iter().map(|position| position + 1).collect();
        let (d_positions, d_kv_lens) = (rig.holding(&positions)?, rig.holding(&kv_lens)?);
        let launch = AdvancePositions {
            positions: d_positions.addr(),
            kv_lens: d_kv_lens.addr(),
            n_sequences: n_sequences as u32,
        }
        .launch();
        tally.launches(&launch);
        for step in 1..=2 {
            tally.shape(format_args!("{n_sequences} sequences, step {step}"));
            // SAFETY: the buffers have these shapes.
            unsafe { rig.launch(&launch)? };
            let advanced = |values: &[u32]| values.iter().map(|value| value + step).collect::<Vec<_>>();
            let found = tally.read(rig, "positions", &d_positions)?;
            tally.equal("positions", &advanced(&positions), &found);
            let found = tally.read(rig, "kv_lens", &d_kv_lens)?;
            tally.equal("kv_lens", &advanced(&kv_lens), &found);
        }
    }
    Ok(())
}
