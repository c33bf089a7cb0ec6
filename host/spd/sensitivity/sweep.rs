//! The measurement: every block's drop, from that block's exact input.
//!
//! Blocks come in order, so that only one hidden state a chunk is kept: the present block's input, which the
//! synchronised block then carries to the next. Both rankings share the block that drops. Against whole passes that is
//! half the blocks to run.

use super::{Ranking, Sensitivity, SensitivityError};
use crate::eval::compare;
use crate::model::Config;
use crate::runner::{RunError, Segment};
use crate::spd::meter::{Meter, Score};
use crate::spd::{BlockPlan, Plan};

/// Bytes of hidden states that a sweep keeps for a text, those of its meter included.
pub fn state_bytes(config: &Config, n_tokens: usize) -> usize {
    Meter::state_bytes(config, n_tokens) / 2 * 3
}

/// Fills in what `sensitivity` lacks of `rankings`. After every block that was measured `after_block` is called with
/// its number; where it answers false, the sweep ends early and can be resumed later.
///
/// # Errors
/// What the runner or `after_block` reports.
pub fn sweep(
    meter: &mut Meter<'_>,
    rankings: &[Ranking],
    sensitivity: &mut Sensitivity,
    mut after_block: impl FnMut(&Sensitivity, usize) -> Result<bool, SensitivityError>,
) -> Result<(), SensitivityError> {
    let (tp, n_layers) = (meter.tp(), meter.config().n_layers);
    let synchronised = Plan::synchronised(tp, n_layers);
    let dropped = vec![BlockPlan { sync_attention: false, ..BlockPlan::default() }; n_layers];
    let dropped = Plan::new(tp, dropped);
    if sensitivity.synchronised.is_none() {
        sensitivity.synchronised = Some(meter.score(&synchronised)?);
    }
    // At the input of the block whose turn it is.
    let mut inputs = meter.embedded.clone();
    for layer in 0..n_layers {
        let block = sensitivity.blocks[layer];
        let missing: Vec<Ranking> = rankings.iter().copied().filter(|&r| block.get(r).is_none()).collect();
        if !missing.is_empty() {
            let scores = drop_block(meter, layer, &missing, &inputs, [&synchronised, &dropped])?;
            let block = &mut sensitivity.blocks[layer];
            for (ranking, score) in missing.iter().zip(scores) {
                match ranking {
                    Ranking::Single => block.single = Some(score),
                    Ranking::Cumulative => block.cumulative = Some(score),
                }
            }
            if !after_block(sensitivity, layer)? || sensitivity.is_complete(rankings) {
                return Ok(());
            }
        }
        meter.runner.set_plan(&synchronised)?;
        for input in &mut inputs {
            *input = meter.runner.run_segment(Segment::blocks(layer..layer + 1, input))?;
        }
    }
    Ok(())
}

/// Scores of one block's drop, in the order of `rankings`.
fn drop_block(
    meter: &mut Meter<'_>,
    layer: usize,
    rankings: &[Ranking],
    inputs: &[Vec<f32>],
    [synchronised, dropped]: [&Plan; 2],
) -> Result<Vec<Score>, RunError> {
    let n_layers = meter.config().n_layers;
    let mut tallies = vec![Vec::new(); rankings.len()];
    for (i, input) in inputs.iter().enumerate() {
        meter.runner.set_plan(dropped)?;
        let behind = meter.runner.run_segment(Segment::blocks(layer..layer + 1, input))?;
        let mut ends = Vec::with_capacity(rankings.len());
        for ranking in rankings {
            meter.runner.set_plan(match ranking {
                Ranking::Single => synchronised,
                Ranking::Cumulative => dropped,
            })?;
            ends.push(meter.runner.run_segment(Segment::blocks(layer + 1..n_layers, &behind))?);
        }
        let ends: Vec<&[f32]> = ends.iter().map(Vec::as_slice).collect();
        let scored = compare(meter.runner, &meter.chunks[i], &meter.synchronised[i], &ends)?;
        tallies.iter_mut().zip(scored).for_each(|(all, tally)| all.push(tally));
    }
    Ok(tallies.iter().map(|tallies| Score::of(tallies)).collect())
}
