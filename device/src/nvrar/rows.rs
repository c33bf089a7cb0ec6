//! Rows: how they are dealt to blocks and threads, and residual and RMSNorm over one whose sum arrives.

use super::call::{Call, Pass};
use super::element::{Bf16, Element};
use super::fused::Parts;
use super::letters::Letters;
use super::schedule::Place;
use crate::params::{Collective, UNIT_BYTES};
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, ld_v4_here, st_v4};
use crate::ptx::math::{fma, rcp, rsqrt};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_z, tid_x};
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

    /// The thread's units of a row.
    #[inline(always)]
    pub fn of_thread(&self) -> impl Iterator<Item = u32> + use<> {
        let (mut next, end, stride) = (self.lead, self.row_units, self.stride);
        core::iter::from_fn(move || {
            let unit = next;
            next += stride;
            (unit < end).then_some(unit)
        })
    }

    /// The same from the last one on.
    #[inline(always)]
    fn of_thread_backwards(&self) -> impl Iterator<Item = u32> + use<> {
        let (lead, stride) = (self.lead, self.stride);
        let mut behind = lead + self.row_units.saturating_sub(lead).div_ceil(stride) * stride;
        core::iter::from_fn(move || {
            let is_more = behind > lead;
            behind -= stride;
            is_more.then_some(behind)
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
    fn units(&self, _call: &Call, _pass: &Pass, local: u32) -> impl Iterator<Item = (u32, u32)> + use<> {
        let Rows { row_units, first: row, step, lead, stride } = self.rows;
        let (first, units) = self.part(local);
        let lead = lead + first.saturating_sub(lead).div_ceil(stride) * stride;
        let (end, longest, count) = (first + units, self.part(0).1, self.count);
        // A thread without units has no rows.
        let (mut row, mut j) = (if lead < end { row } else { count }, lead);
        core::iter::from_fn(move || {
            let unit = (row * row_units + j, row * longest + j - first);
            let is_more = row < count;
            j += stride;
            if j >= end {
                (row, j) = (row + step, lead);
            }
            is_more.then_some(unit)
        })
    }
}

/// The epilogue's operands.
#[derive(Clone, Copy)]
pub struct Operands {
    residual: Global,
    gain: Global,
    out: Global,
}

impl Operands {
    /// Those of the block's rank.
    #[inline(always)]
    pub fn new(p: &Collective) -> Self {
        let slice = u64::from(ctaid_y()) * p.slice_stride;
        Self { residual: p.residual + slice, gain: p.gain, out: p.out + slice }
    }
}

/// A unit of an array.
#[inline(always)]
pub fn at(array: Global, unit: u32) -> Global {
    array + u64::from(unit) * UNIT_BYTES
}

/// Finishes the row that begins at unit `row` of the tensor: takes the sum of each of the thread's units, adds it to
/// the residual, normalises the residual. Between the last message of the row and its output lies one sum over the
/// row; all loads come before.
#[inline(always)]
pub unsafe fn finish_row(
    call: &mut Call,
    rows: Rows,
    row: u32,
    letters: &mut Letters,
    operands: Operands,
    mut take: impl FnMut(&mut Call, u32) -> [f32; 8],
) {
    let Operands { residual, gain, out } = operands;
    // Of a thread without a unit the row's first one stands in; it is stored nowhere.
    let is_idle = rows.lead >= rows.row_units;
    let first = if is_idle { 0 } else { rows.lead };
    let (mut after, mut squares) = ([0; 4], 0.0);
    // Of several units the first comes last, and stays in registers.
    for j in rows.of_thread_backwards() {
        let before = ld_v4(at(residual, row + j));
        let sum = take(call, j);
        after = Bf16::narrow(Bf16::add(sum, Bf16::widen(before)));
        if !call.watch.over {
            st_v4(at(call.own.data, row + j), Bf16::narrow(sum));
            st_v4(at(residual, row + j), after);
        }
        squares = sum_of_squares(squares, after);
    }
    // Arrives while the row is added up.
    let weights = ld_v4_here(at(gain, first));
    // A thread whose peers did not come makes the row NaN, so that none of it passes for normalised.
    let squares = letters.sum(if call.watch.over { f32::NAN } else { squares });
    if call.watch.over || is_idle {
        return;
    }
    let inverse_rms = rsqrt(fma(squares, rcp(call.p.hidden as f32), call.p.eps));
    st_v4(at(out, row + first), scale(after, weights, inverse_rms));
    // Each thread reads back only what it wrote itself.
    for j in rows.of_thread().skip(1) {
        let after = ld_v4(at(residual, row + j));
        st_v4(at(out, row + j), scale(after, ld_v4(at(gain, j)), inverse_rms));
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
