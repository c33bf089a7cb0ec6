//! Rows: how they are dealt to blocks and threads, and residual and RMSNorm over one whose sum arrives.

use super::call::{Call, Pass};
use super::element::{Bf16, Element};
use super::fused::Parts;
use super::letters::Letters;
use super::schedule::Place;
use super::tensor::NONE;
use crate::params::{Collective, UNIT_BYTES};
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, ld_v4_here, st_v4};
use crate::ptx::math::{fma, rcp, rsqrt};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, here, nctaid_x, nctaid_z, tid_x};
use crate::tile::bf16::{pack8, unpack8};

/// bf16 in a unit.
const PER_UNIT: u32 = 8;

/// Rows dealt in turn to the blocks in z, the units of each to the workers of the blocks in x.
#[derive(Clone, Copy)]
pub struct Rows {
    /// Units of a row.
    pub row_units: u32,
    /// The block's first row.
    pub first: u32,
    /// From one of its rows to the next.
    pub step: u32,
    /// The thread's first unit in each of them.
    lead: u32,
    /// From one of its units to the next.
    stride: u32,
}

impl Rows {
    /// Of rows as wide as the call's.
    #[inline(always)]
    pub fn new(p: &Collective) -> Self {
        let workers = Call::workers();
        Self {
            row_units: p.hidden / PER_UNIT,
            first: ctaid_z(),
            step: nctaid_z(),
            lead: ctaid_x() * workers + tid_x(),
            stride: nctaid_x() * workers,
        }
    }

    /// The thread's units of a row, `K` together. Those that it begins with come last.
    #[inline(always)]
    pub fn of_thread<const K: usize>(&self) -> impl Iterator<Item = [u32; K]> + use<K> {
        let rows = *self;
        let step = K as u32 * rows.stride;
        let mut behind = rows.lead;
        while behind < rows.row_units {
            behind += step;
        }
        core::iter::from_fn(move || {
            let is_more = behind > rows.lead;
            behind -= step;
            is_more.then_some(rows.from(behind))
        })
    }

    /// `K` of the thread's units, [`NONE`] where there are fewer.
    #[inline(always)]
    fn from<const K: usize>(&self, first: u32) -> [u32; K] {
        core::array::from_fn(|k| {
            let unit = first + k as u32 * self.stride;
            if unit < self.row_units { unit } else { NONE }
        })
    }
}

/// Rows of which every rank of the node owns an equal part, so that all blocks have as much to sum.
#[derive(Clone, Copy)]
pub struct SharedRows {
    rows: Rows,
    place: Place,
    /// Rows of the tensor.
    count: u32,
}

impl SharedRows {
    /// Those of the call's tensor.
    #[inline(always)]
    pub fn new(call: &Call, rows: Rows) -> Self {
        let place = Place::new(call.p.nodes, call.p.gpus_per_node, call.rank);
        Self { rows, place, count: call.p.numel / call.p.hidden }
    }

    /// The block's rows.
    #[inline(always)]
    pub fn of_block(&self) -> impl Iterator<Item = u32> + use<> {
        let (mut next, end, step) = (self.rows.first, self.count, self.rows.step);
        core::iter::from_fn(move || {
            let row = next;
            next += step;
            (row < end).then_some(row)
        })
    }

    /// The unit of the tensor that a row begins with.
    #[inline(always)]
    pub fn first_unit(&self, row: u32) -> u32 {
        row * self.rows.row_units
    }

    /// What `local` owns of each row: its first unit, and how many.
    #[inline(always)]
    fn part(&self, local: u32) -> (u32, u32) {
        self.place.shard(self.rows.row_units, 1, local)
    }

    /// Who owns unit `j` of `row`, and where it lies in that rank's slots: there a row takes as much as its longest
    /// part has, the first one.
    #[inline(always)]
    pub fn owner(&self, row: u32, j: u32) -> (u32, u32) {
        let mut found = (0, j);
        for local in 1..self.place.gpus {
            let (first, _) = self.part(local);
            found = if j >= first { (local, j - first) } else { found };
        }
        (found.0, row * self.part(0).1 + found.1)
    }
}

impl Parts for SharedRows {
    #[inline(always)]
    fn place(&self) -> Place {
        self.place
    }

    #[inline(always)]
    fn units(&self, _call: &Call, _pass: &Pass, local: u32) -> impl FnMut() -> (u32, u32) + use<> {
        let Rows { row_units, first: row, step, lead, stride } = self.rows;
        let (first, units) = self.part(local);
        let mut lead = lead;
        while lead < first {
            lead += stride;
        }
        let (end, longest, count) = (first + units, self.part(0).1, self.count);
        // A thread without units has no rows.
        let (mut row, mut j) = (if lead < end { row } else { count }, lead);
        move || {
            let unit = (if row < count { row * row_units + j } else { NONE }, row * longest + j - first);
            j += stride;
            if j >= end {
                (row, j) = (row + step, lead);
            }
            unit
        }
    }
}

/// The epilogue's operands.
#[derive(Clone, Copy)]
pub struct Operands {
    residual: Global,
    gain: Global,
}

impl Operands {
    /// Those of the block's rank.
    #[inline(always)]
    pub fn new(p: &Collective) -> Self {
        let slice = u64::from(ctaid_y()) * p.slice_stride;
        Self { residual: p.residual + slice, gain: p.gain }
    }
}

/// A unit of an array.
#[inline(always)]
fn at(array: Global, unit: u32) -> Global {
    array + u64::from(unit) * UNIT_BYTES
}

/// Finishes the row that begins at unit `row` of the tensor: takes the sums of the thread's units, `K` together, adds
/// them to the residual, normalises the residual. Between the last message of the row and its output lies one sum over
/// the row; all loads come before.
#[inline(always)]
pub unsafe fn finish_row<const K: usize>(
    call: &mut Call,
    rows: Rows,
    row: u32,
    letters: &mut Letters,
    operands: Operands,
    mut take: impl FnMut(&mut Call, [u32; K]) -> [[f32; 8]; K],
) {
    let Operands { residual, gain } = operands;
    let (mut after, mut squares) = ([[0; 4]; K], 0.0);
    for units in rows.of_thread::<K>() {
        let mut before = [[0; 4]; K];
        for k in 0..K {
            if units[k] != NONE {
                before[k] = ld_v4_here(at(residual, row + units[k]));
            }
        }
        let sums = take(call, units);
        for k in 0..K {
            after[k] = Bf16::narrow(Bf16::add(sums[k], Bf16::widen(before[k])));
            if units[k] != NONE {
                if !call.watch.over {
                    st_v4(at(call.own.data, row + units[k]), Bf16::narrow(sums[k]));
                    st_v4(at(residual, row + units[k]), after[k]);
                }
                squares = sum_of_squares(squares, after[k]);
            }
        }
    }
    let first: [u32; K] = rows.from(rows.lead);
    // Arrive while the row is added up. The first one stands in for those of no unit.
    let mut weights = [[0; 4]; K];
    for k in 0..K {
        weights[k] = ld_v4_here(at(gain, if first[k] == NONE { 0 } else { first[k] }));
    }
    // A thread whose peers did not come makes the row NaN, so that none of it passes for normalised.
    let squares = letters.sum(if call.watch.over { f32::NAN } else { squares });
    if call.watch.over {
        return;
    }
    // Made here, it takes no registers while messages come.
    let out = call.p.out + u64::from(here(ctaid_y())) * call.p.slice_stride;
    let inverse_rms = rsqrt(fma(squares, rcp(call.p.hidden as f32), call.p.eps));
    for k in 0..K {
        if first[k] != NONE {
            st_v4(at(out, row + first[k]), scale(after[k], weights[k], inverse_rms));
        }
    }
    // Each thread reads back only what it wrote itself.
    let mut j = rows.lead + K as u32 * rows.stride;
    while j < rows.row_units {
        let after = ld_v4(at(residual, row + j));
        st_v4(at(out, row + j), scale(after, ld_v4(at(gain, j)), inverse_rms));
        j += rows.stride;
    }
}

#[inline(always)]
fn sum_of_squares(start: f32, unit: [u32; 4]) -> f32 {
    unpack8(unit).into_iter().fold(start, |sum, x| fma(x, x, sum))
}

#[inline(always)]
fn scale(unit: [u32; 4], gain: [u32; 4], inverse_rms: f32) -> [u32; 4] {
    let (x, gain) = (unpack8(unit), unpack8(gain));
    pack8(core::array::from_fn(|i| x[i] * inverse_rms * gain[i]))
}
