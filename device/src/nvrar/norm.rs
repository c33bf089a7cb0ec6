//! One-shot with what follows it in a transformer block: residual and RMSNorm, in the same launch.

use super::call::{Call, Pass};
use super::element::{Bf16, Element};
use super::letters::Letters;
use super::one_shot::{send, sum};
use super::tensor::{self, NONE};
use super::wire::{Cells, Wire, Words};
use crate::params::{Collective, LETTER_UNITS, UNIT_BYTES};
use crate::ptx::Global;
use crate::ptx::global::{ld_v4, st_v4};
use crate::ptx::math::{fma, rcp, rsqrt};
use crate::ptx::special::{self, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_z, tid_x};
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

    /// The first unit that the warp has of number `k`: that of a group. The same in all lanes.
    #[inline(always)]
    fn group(&self, k: u32) -> u32 {
        self.first() - special::lane() + k * self.stride()
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
    let mut letters = Letters::begin(nctaid_x(), row_units);
    if Call::is_kept_by_clerk(p, p.numel) {
        return;
    }
    let mut call = Call::begin(p, p.numel);
    let slice = u64::from(ctaid_y()) * p.slice_stride;
    let operands = Operands { residual: p.residual + slice, gain: p.gain, out: p.out + slice };
    let lane = Lane { part: ctaid_x(), blocks: nctaid_x(), row_units };
    let (first_row, stride) = (ctaid_z() * row_units, nctaid_z() * row_units);
    let mut pass = call.first_pass();
    let mut brought = call.own.load(0, [lane.unit(first_row, 0)]);
    let all = tensor::units(call.own.halves);
    for number in 0..p.passes {
        if number > 0 {
            pass = call.pass_after(&pass);
            brought = call.own.load(pass.first, [lane.unit(first_row, 0)]);
        }
        let units = call.units_of(&pass, all);
        let (mut sent, mut received) = (first_row, first_row);
        loop {
            if sent < units {
                send_row::<W>(&call, &pass, lane, sent, brought);
            }
            if number == 0 && sent == first_row {
                Call::number_is_read();
            }
            sent += stride;
            if sent < units {
                brought = call.own.load(pass.first, [lane.unit(sent, 0)]);
                if sent - received < AHEAD * stride {
                    continue;
                }
            }
            if received >= units {
                break;
            }
            if lane.group(0) < row_units {
                finish_row::<W>(&mut call, &pass, lane, received, &letters, operands);
            }
            letters = letters.of_next_row();
            received += stride;
        }
    }
}

/// Sends a row, of which this thread has its first unit already.
#[inline(always)]
unsafe fn send_row<W: Wire>(call: &Call, pass: &Pass, lane: Lane, row: u32, first: [[u32; 4]; 1]) {
    let (mut k, mut brought) = (0, first);
    loop {
        let unit = [lane.unit(row, k)];
        if unit[0] == NONE {
            break;
        }
        send::<W, 1>(call, pass, unit, call.own.add(pass.first, unit, brought));
        k += 1;
        brought = call.own.load(pass.first, [lane.unit(row, k)]);
    }
}

/// Receives and sums a row, adds it to the residual, normalises the residual. Between the last message of the row
/// and its output lie two additions across a warp and the flight of a letter; loads come before, all other stores
/// meanwhile.
#[inline(always)]
unsafe fn finish_row<W: Wire>(
    call: &mut Call,
    pass: &Pass,
    lane: Lane,
    row: u32,
    letters: &Letters,
    operands: Operands,
) {
    let Operands { residual, gain, out } = operands;
    let one_over_hidden = rcp(call.p.hidden as f32);
    // Of a lane without a unit the row's first one stands in; it is stored nowhere.
    let first = lane.unit(row, 0);
    let place = pass.first + if first == NONE { row } else { first };
    let weights = ld_v4(at(gain, place - pass.first - row));
    let (mut k, mut held) = (0, [0; 4]);
    while lane.group(k) < lane.row_units {
        let after = finish_unit::<W>(call, pass, (lane, k), row, letters, residual);
        held = if k == 0 { after } else { held };
        k += 1;
    }

    let inverse_rms = rsqrt(fma(letters.sum(), one_over_hidden, call.p.eps));
    if call.watch.over || first == NONE {
        return;
    }
    st_v4(at(out, place), scale(held, weights, inverse_rms));
    // Each thread reads back only what it wrote itself.
    let mut i = lane.first() + lane.stride();
    while i < lane.row_units {
        let unit = pass.first + row + i;
        st_v4(at(out, unit), scale(ld_v4(at(residual, unit)), ld_v4(at(gain, i)), inverse_rms));
        i += lane.stride();
    }
}

/// Receives, sums and adds to the residual the thread's unit number `k`, and posts its group. The whole warp calls
/// it.
#[inline(always)]
unsafe fn finish_unit<W: Wire>(
    call: &mut Call,
    pass: &Pass,
    (lane, k): (Lane, u32),
    row: u32,
    letters: &Letters,
    residual: Global,
) -> [u32; 4] {
    let unit = lane.unit(row, k);
    let place = pass.first + if unit == NONE { row } else { unit };
    let before = ld_v4(at(residual, place));
    let [received] = sum::<Bf16, W, 1>(call, pass, [unit]);
    let after = Bf16::narrow(Bf16::add(received, Bf16::widen(before)));
    letters.send(lane.group(k) / LETTER_UNITS, squares(call, unit, after));
    if unit != NONE && !call.watch.over {
        st_v4(at(call.own.data, place), Bf16::narrow(received));
        st_v4(at(residual, place), after);
    }
    after
}

/// The sum of squares of a unit, 0 where there is none. A thread whose peers did not come makes the row NaN, so
/// that none of it passes for normalised.
#[inline(always)]
fn squares(call: &Call, index: u32, unit: [u32; 4]) -> f32 {
    if call.watch.over {
        f32::NAN
    } else if index == NONE {
        0.0
    } else {
        sum_of_squares(unit)
    }
}

#[inline(always)]
fn sum_of_squares(unit: [u32; 4]) -> f32 {
    unpack8(unit).into_iter().fold(0.0, |sum, x| fma(x, x, sum))
}

#[inline(always)]
fn scale(unit: [u32; 4], gain: [u32; 4], inverse_rms: f32) -> [u32; 4] {
    let (x, gain) = (unpack8(unit), unpack8(gain));
    pack8(core::array::from_fn(|i| x[i] * inverse_rms * gain[i]))
}

macro_rules! norm {
    ($($name:ident: $wire:ident;)*) => {$(kernel! {
        /// One-shot all-reduce, then `residual += sum` and `out = rmsnorm(residual) · gain`. The tensor gets the
        /// rounded sum, the residual the sum in fp32; it is rounded before it is normalised.
        ///
        /// # Shape and layout
        /// As [`allreduce_bf16_oneshot_cells`](super::one_shot::allreduce_bf16_oneshot_cells), in rows of
        /// `hidden`, a multiple of 8 up to 32 × 8 × [`MAX_LETTERS`](crate::params::MAX_LETTERS); a pass is whole rows.
        ///
        /// # Thread mapping
        /// A row per block in z, in turn, spread over the blocks in x. They are a cluster (sm_90; elsewhere only one),
        /// and each has units of every row. A thread keeps its first unit of a row in registers and reads the others
        /// again.
        ///
        /// # Memory order, safety
        /// As there, and [`super::letters`]; `residual` and `out` overlap nothing.
        #[launch_bounds(288, 1)]
        pub fn $name(p: Collective) {
            all_reduce::<$wire>(&p);
        }
    })*};
}

norm! {
    allreduce_bf16_oneshot_cells_norm: Cells;
    allreduce_bf16_oneshot_words_norm: Words;
}
