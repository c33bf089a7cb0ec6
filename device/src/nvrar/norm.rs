//! One-shot with what follows it in a transformer block: residual and RMSNorm, in the same launch.

use super::call::{Call, Pass};
use super::element::{Bf16, Element};
use super::one_shot::{NONE, group, send, sum};
use super::tensor;
use super::wire::{Cells, Wire, Words};
use crate::params::Collective;
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, st_v4};
use crate::ptx::math::{fma, rsqrt};
use crate::ptx::special::{ctaid_x, ctaid_y, nctaid_x, tid_x};
use crate::ptx::system::fence;
use crate::tile::bf16::{pack8, unpack8};
use crate::tile::reduce::block_sum_of;

/// Units of a row that a thread keeps in registers.
const HELD: usize = 3;
/// The barrier of the threads that move data.
const WORKERS_MEET: u32 = 2;
/// bf16 in a unit.
const PER_UNIT: u32 = 8;

/// The epilogue's operands.
#[derive(Clone, Copy)]
struct Operands {
    residual: Global,
    gain: Global,
    out: Global,
}

/// A unit of an array.
#[inline(always)]
fn at(array: Global, unit: u32) -> Global {
    array + u64::from(unit) * 16
}

/// Sums a tensor of rows, a block per row.
#[inline(always)]
unsafe fn all_reduce<W: Wire, const K: usize>(p: &Collective) {
    let mut call = Call::begin(p, p.numel);
    if Call::is_clerk() {
        return call.keep_books();
    }
    let slice = u64::from(ctaid_y()) * p.slice_stride;
    let operands = Operands { residual: p.residual + slice, gain: p.gain, out: p.out + slice };
    let row_units = p.hidden / PER_UNIT;
    let units = tensor::units(call.own.halves);
    let mut pass = call.first_pass(units);
    for number in 0..p.passes {
        let mut row = ctaid_x() * row_units;
        while row < pass.units {
            let mut i = tid_x();
            while i < row_units {
                send::<W, K>(&call, &pass, in_row(row, i, row_units));
                i += Call::workers() * K as u32;
            }
            row += nctaid_x() * row_units;
        }
        if number == 0 {
            Call::number_is_read();
        }
        let mut row = ctaid_x() * row_units;
        while row < pass.units {
            finish_row::<W, K>(&mut call, &pass, row, row_units, operands);
            row += nctaid_x() * row_units;
        }
        if number + 1 < p.passes {
            // Peers that hear of the next pass find empty what this thread has cleared.
            fence();
            pass = call.pass_after(&pass, units);
        }
    }
}

/// This thread's next units of the row that begins at unit `row` of the pass.
#[inline(always)]
fn in_row<const K: usize>(row: u32, first: u32, row_units: u32) -> [u32; K] {
    group(first, Call::workers(), row_units).map(|i| if i == NONE { NONE } else { row + i })
}

/// Receives and sums a row, adds it to the residual, normalises the residual.
#[inline(always)]
unsafe fn finish_row<W: Wire, const K: usize>(
    call: &mut Call,
    pass: &Pass,
    row: u32,
    row_units: u32,
    operands: Operands,
) {
    let Operands { residual, gain, out } = operands;
    let indices: [u32; HELD] = in_row(row, tid_x(), row_units);
    let (mut held, mut gains) = ([[0; 4]; HELD], [[0; 4]; HELD]);
    for k in 0..HELD {
        if indices[k] != NONE {
            held[k] = ld_v4(at(residual, pass.first + indices[k]));
            gains[k] = ld_v4(at(gain, indices[k] - row));
        }
    }
    for k in (0..HELD).step_by(K) {
        let after = add::<W, K>(
            call,
            pass,
            core::array::from_fn(|j| indices[k + j]),
            core::array::from_fn(|j| held[k + j]),
            residual,
        );
        for j in 0..K {
            held[k + j] = after[j];
        }
    }
    let mut squares = 0.0;
    for k in 0..HELD {
        squares = sum_of_squares(squares, held[k]);
    }
    let beyond = tid_x() + Call::workers() * HELD as u32;
    let mut i = beyond;
    while i < row_units {
        let index = row + i;
        let before = ld_v4(at(residual, pass.first + index));
        let [after] = add::<W, _>(call, pass, [index], [before], residual);
        squares = sum_of_squares(squares, after);
        i += Call::workers();
    }

    let mean = block_sum_of::<WORKERS_MEET>(squares, Call::workers()) / call.p.hidden as f32;
    let inverse_rms = rsqrt(mean + call.p.eps);
    if call.watch.over {
        return;
    }
    for k in 0..HELD {
        if indices[k] != NONE {
            st_v4(at(out, pass.first + indices[k]), scale(held[k], gains[k], inverse_rms));
        }
    }
    // Each thread reads back only what it wrote itself.
    let mut i = beyond;
    while i < row_units {
        let unit = pass.first + row + i;
        st_v4(at(out, unit), scale(ld_v4(at(residual, unit)), ld_v4(at(gain, i)), inverse_rms));
        i += Call::workers();
    }
}

/// Leaves the sums in the tensor, and their sums with the residual there.
#[inline(always)]
unsafe fn add<W: Wire, const K: usize>(
    call: &mut Call,
    pass: &Pass,
    indices: [u32; K],
    before: [[u32; 4]; K],
    residual: Global,
) -> [[u32; 4]; K] {
    let sums = sum::<Bf16, W, K>(call, pass, indices);
    let mut after = before;
    for k in 0..K {
        if indices[k] != NONE && !call.watch.over {
            let unit = pass.first + indices[k];
            st_v4(at(call.own.data, unit), sums[k]);
            after[k] = Bf16::narrow(Bf16::add(Bf16::widen(sums[k]), Bf16::widen(before[k])));
            st_v4(at(residual, unit), after[k]);
        }
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
    ($($name:ident: $wire:ident, $together:literal at once;)*) => {$(kernel! {
        /// One-shot all-reduce, then `residual += sum` and `out = rmsnorm(residual) · gain`. The sum is
        /// rounded to bf16 before it is added, and the residual before it is normalised.
        ///
        /// # Shape and layout
        /// As [`allreduce_bf16_oneshot_cells`](super::one_shot::allreduce_bf16_oneshot_cells), in rows of
        /// `hidden`, a multiple of 8; a pass is whole rows.
        ///
        /// # Thread mapping
        /// A row per block in turn. A thread keeps three units of it in registers and reads the others again.
        ///
        /// # Memory order, safety
        /// As there; `residual` and `out` overlap nothing.
        #[launch_bounds(416, 1)]
        pub fn $name(p: Collective) {
            all_reduce::<$wire, $together>(&p);
        }
    })*};
}

norm! {
    allreduce_bf16_oneshot_cells_norm: Cells, 1 at once;
    allreduce_bf16_oneshot_words_norm: Words, 3 at once;
}
