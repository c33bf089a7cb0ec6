//! Cases of the kernels that put: many ranks on the one GPU, nodes of them joined by a network within it
//! ([`LoopbackPuts`](crate::comm::gpu::LoopbackPuts)).

use half::bf16;

use super::collective::{NUMELS, ROWS, gathers_of};
use super::group::{Group, random};
use super::rig::Rig;
use super::tally::Tally;
use crate::comm::gpu::Tuning;
use crate::comm::{CommError, Element, Shape};
use crate::kernels::nvrar::Far;

/// Several nodes, powers of two and others, of one rank and of several.
const SHAPES: [(usize, usize); 7] = [(2, 1), (3, 1), (2, 2), (4, 1), (3, 3), (5, 1), (4, 2)];

/// The usual grid; a single block, whose couriers share its long message; passes of which the last is a short one.
fn tunings() -> [Tuning; 3] {
    let usual = Tuning::default();
    let passes = Tuning { blocks: Some(2), workers: Some(64), pass_units: Some(192), ..usual };
    [usual, Tuning { blocks: Some(1), ..usual }, passes]
}

/// Every topology in every tuning.
fn sites() -> impl Iterator<Item = (Shape, Tuning)> {
    let shapes = SHAPES.into_iter().map(|(nodes, gpus_per_node)| Shape { nodes, gpus_per_node });
    shapes.flat_map(|shape| tunings().map(|tuning| (shape, tuning)))
}

/// Whole sums, and the phases one after the other, of alternating sizes on one buffer.
pub(super) fn sums<T: Element>(rig: &Rig<'_>, tally: &mut Tally) -> Result<(), CommError> {
    for (shape, tuning) in sites() {
        let numels = NUMELS.into_iter().filter(|&numel| rig.wants(numel * 64));
        let most = numels.clone().max().unwrap_or_default() * size_of::<T>();
        let mut group = Group::new(rig, shape, most, Far::Puts, tuning)?;
        for numel in numels {
            let of_rank = random::<T>(rig, shape, numel);
            tally.shape(format_args!("{shape}, {tuning}, {numel} elements"));
            group.sum(tally, &of_rank)?;
            tally.shape(format_args!("{shape}, {tuning}, {numel} elements, phase by phase"));
            group.sum_by_phases(tally, &of_rank)?;
        }
    }
    Ok(())
}

/// The sums of bf16, and such with an addend before and residual and norm behind them, in a launch of their own.
pub(super) fn sums_and_norms(rig: &Rig<'_>, tally: &mut Tally) -> Result<(), CommError> {
    sums::<bf16>(rig, tally)?;
    for (shape, tuning) in sites() {
        let rows = ROWS.into_iter().filter(|&(hidden, rows)| rig.wants(hidden * rows * 64));
        let most = rows.clone().map(|(hidden, rows)| hidden * rows).max().unwrap_or_default();
        let mut group = Group::new(rig, shape, most * size_of::<bf16>(), Far::Puts, tuning)?;
        for (hidden, rows) in rows {
            tally.shape(format_args!("{shape}, {tuning}, {rows} rows of {hidden}"));
            group.norm(rig, tally, (hidden, rows), false)?;
        }
    }
    Ok(())
}

/// Pieces of uneven sizes and empty ones.
pub(super) fn gathers(rig: &Rig<'_>, tally: &mut Tally) -> Result<(), CommError> {
    for (shape, tuning) in sites() {
        gathers_of::<f32>(rig, tally, shape, Far::Puts, tuning)?;
        gathers_of::<bf16>(rig, tally, shape, Far::Puts, tuning)?;
    }
    Ok(())
}
