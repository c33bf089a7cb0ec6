//! One-shot with what follows it in a transformer block: residual and RMSNorm, in the same launch.

use super::call::{Call, Pass, Stores};
use super::element::{Bf16, Element};
use super::letters::Letters;
use super::one_shot::{send, sum};
use super::tensor::{self, NONE};
use super::wire::{Cells, Wire, Words};
use crate::params::{Collective, UNIT_BYTES};
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, ld_v4_here, st_v4};
use crate::ptx::math::{fma, rcp, rsqrt};
use crate::ptx::special::{ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_z, tid_x};
use crate::tile::bf16::{pack8, unpack8};

/// Rows that a block sends before it receives the first.
const AHEAD: u32 = 2;
/// bf16 in a unit.
const PER_UNIT: u32 = 8;

/// The epilogue's operands.
#[derive(Clone, Copy)]
struct Operands {
    residual: Global,
    gain: Global,
    out: Global,
}

/// A thread's share of a row, whose units are dealt to the workers of `blocks` blocks.
#[derive(Clone, Copy)]
struct Lane {
    /// The block's number among those of its row.
    part: u32,
    blocks: u32,
    row_units: u32,
}

impl Lane {
    #[inline(always)]
    fn first(&self) -> u32 {
        self.part * Call::workers() + tid_x()
    }

    #[inline(always)]
    fn stride(&self) -> u32 {
        self.blocks * Call::workers()
    }

    /// The lane's unit number `k` of a row that begins at unit `row` of the pass.
    #[inline(always)]
    fn unit(&self, row: u32, k: u32) -> u32 {
        let i = self.first() + k * self.stride();
        if i < self.row_units { row + i } else { NONE }
    }
}

/// A unit of an array.
#[inline(always)]
fn at(array: Global, unit: u32) -> Global {
    array + u64::from(unit) * UNIT_BYTES
}

/// Sums a tensor of rows.
#[inline(always)]
unsafe fn all_reduce<W: Wire>(p: &Collective) {
    let row_units = p.hidden / PER_UNIT;
    let mut letters = Letters::begin();
    if Call::is_kept_by_clerk::<Stores>(p, p.numel) {
        return;
    }
    let mut call = Call::begin(p, p.numel);
    let slice = u64::from(ctaid_y()) * p.slice_stride;
    let operands = Operands { residual: p.residual + slice, gain: p.gain, out: p.out + slice };
    let lane = Lane { part: ctaid_x(), blocks: nctaid_x(), row_units };
    let (first_row, stride) = (ctaid_z() * row_units, nctaid_z() * row_units);
    let mut pass = call.first_pass();
    let all = tensor::units(call.own.halves);
    for number in 0..p.passes {
        if number > 0 {
            pass = call.pass_after(&pass);
        }
        let units = call.units_of(&pass, all);
        let (mut sent, mut received) = (first_row, first_row);
        loop {
            if sent < units {
                send_row::<W>(&call, &pass, lane, sent);
            }
            if number == 0 && sent == first_row {
                Call::number_is_read();
            }
            sent += stride;
            if sent < units && sent - received < AHEAD * stride {
                continue;
            }
            if received >= units {
                break;
            }
            finish_row::<W>(&mut call, &pass, lane, received, &mut letters, operands);
            received += stride;
        }
    }
}

/// Sends a row.
#[inline(always)]
unsafe fn send_row<W: Wire>(call: &Call, pass: &Pass, lane: Lane, row: u32) {
    let mut k = 0;
    while lane.unit(row, k) != NONE {
        let unit = [lane.unit(row, k)];
        send::<W, 1>(call, pass, unit, call.own.add(pass.first, unit, call.own.load(pass.first, unit)));
        k += 1;
    }
}

/// Receives and sums a row, adds it to the residual, normalises the residual. Between the last message of the row
/// and its output lies one sum over the row; all loads come before.
#[inline(always)]
unsafe fn finish_row<W: Wire>(
    call: &mut Call,
    pass: &Pass,
    lane: Lane,
    row: u32,
    letters: &mut Letters,
    operands: Operands,
) {
    let Operands { residual, gain, out } = operands;
    let one_over_hidden = rcp(call.p.hidden as f32);
    // Of a thread without a unit the row's first one stands in; it is stored nowhere.
    let first = lane.unit(row, 0);
    let place = pass.first + if first == NONE { row } else { first };
    let (mut held, mut squares, mut k) = ([0; 4], 0.0, 0);
    while lane.unit(row, k) != NONE {
        let after = finish_unit::<W>(call, pass, lane.unit(row, k), residual);
        squares = sum_of_squares(squares, after);
        held = if k == 0 { after } else { held };
        k += 1;
    }
    // Arrives while the row is added up.
    let weights = ld_v4_here(at(gain, place - pass.first - row));
    // A thread whose peers did not come makes the row NaN, so that none of it passes for normalised.
    let squares = letters.sum(if call.watch.over { f32::NAN } else { squares });
    if call.watch.over || first == NONE {
        return;
    }
    let inverse_rms = rsqrt(fma(squares, one_over_hidden, call.p.eps));
    st_v4(at(out, place), scale(held, weights, inverse_rms));
    // Each thread reads back only what it wrote itself.
    let mut i = lane.first() + lane.stride();
    while i < lane.row_units {
        let unit = pass.first + row + i;
        st_v4(at(out, unit), scale(ld_v4(at(residual, unit)), ld_v4(at(gain, i)), inverse_rms));
        i += lane.stride();
    }
}

/// Receives and sums a unit, and adds it to the residual.
#[inline(always)]
unsafe fn finish_unit<W: Wire>(call: &mut Call, pass: &Pass, unit: u32, residual: Global) -> [u32; 4] {
    let place = pass.first + unit;
    let before = ld_v4(at(residual, place));
    let [received] = sum::<Bf16, W, 1>(call, pass, [unit]);
    let after = Bf16::narrow(Bf16::add(received, Bf16::widen(before)));
    if !call.watch.over {
        st_v4(at(call.own.data, place), Bf16::narrow(received));
        st_v4(at(residual, place), after);
    }
    after
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

macro_rules! norm {
    ($($name:ident: $wire:ident, $min_blocks:literal resident;)*) => {$(kernel! {
        /// One-shot all-reduce, then `residual += sum` and `out = rmsnorm(residual) · gain`. The tensor gets the
        /// rounded sum, the residual the sum in fp32; it is rounded before it is normalised.
        ///
        /// # Shape and layout
        /// As [`allreduce_bf16_oneshot_cells`](super::one_shot::allreduce_bf16_oneshot_cells), in rows of
        /// `hidden`, a multiple of 8; a pass is whole rows.
        ///
        /// # Thread mapping
        /// A row per block in z, in turn, spread over the blocks in x. They are a cluster (sm_90; elsewhere only one),
        /// and each has units of every row. A thread keeps its first unit of a row in registers and reads the others
        /// again.
        ///
        /// # Memory order, safety
        /// As there, and [`super::letters`]; `residual` and `out` overlap nothing.
        #[launch_bounds(288, $min_blocks)]
        pub fn $name(p: Collective) {
            all_reduce::<$wire>(&p);
        }
    })*};
}

// Two blocks of words fit a multiprocessor, so that all clusters of a launch are resident however they are dealt to it.
#[cfg(cuda_arch_min = "90")]
norm! {
    allreduce_bf16_oneshot_cells_norm: Cells, 1 resident;
    allreduce_bf16_oneshot_words_norm: Words, 2 resident;
}

#[cfg(not(cuda_arch_min = "90"))]
norm! {
    allreduce_bf16_oneshot_cells_norm: Cells, 1 resident;
    allreduce_bf16_oneshot_words_norm: Words, 1 resident;
}
