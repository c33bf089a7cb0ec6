//! One-shot with what follows it in a transformer block: residual and RMSNorm, in the same launch.

use super::call::{Call, Pass, Stores};
use super::element::{Bf16, Element};
use super::one_shot::{group, send, sum};
use super::tensor::{self, NONE};
use super::watch::Source;
use super::wire::{Cells, Wire, Words};
use crate::params::{Collective, LETTER_BYTES, PHASE_REDUCE, ROW_MAIL, UNIT_BYTES};
use crate::ptx::Global;
use crate::ptx::barrier::sync_some;
use crate::ptx::global::{ld_b64, ld_v4, st_v4};
use crate::ptx::math::{fma, rcp, rsqrt};
use crate::ptx::shared;
use crate::ptx::special::{self, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_z, tid_x};
use crate::ptx::system::{ld_v2_b64, st_v2_b64};
use crate::tile::bf16::{pack8, unpack8};
use crate::tile::reduce::warp_sum;

/// Units of a row that a thread keeps in registers.
const HELD: usize = 2;
/// Rows that a block sends before it receives the first.
const AHEAD: u32 = 2;
/// The barrier of the threads that move data.
const WORKERS_MEET: u32 = 2;
/// bf16 in a unit.
const PER_UNIT: u32 = 8;

/// Warps of a block that move data, at most.
const MAX_WARPS: usize = 12;

shared_array! {
    /// A word per warp, twice: rows take turns.
    squares_of_warps: 128 bytes, align 16
}

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

    /// `K` units from the lane's `first` on, in the row that begins at unit `row` of the pass.
    #[inline(always)]
    fn group<const K: usize>(&self, row: u32, first: u32) -> [u32; K] {
        group(first, self.stride(), self.row_units).map(|i| if i == NONE { NONE } else { row + i })
    }
}

/// A unit of an array.
#[inline(always)]
fn at(array: Global, unit: u32) -> Global {
    array + u64::from(unit) * UNIT_BYTES
}

/// Sums a tensor of rows.
#[inline(always)]
unsafe fn all_reduce<W: Wire, const K: usize>(p: &Collective) {
    if Call::is_kept_by_clerk::<Stores>(p, p.numel) {
        return;
    }
    let mut call = Call::begin(p, p.numel);
    let slice = u64::from(ctaid_y()) * p.slice_stride;
    let operands = Operands { residual: p.residual + slice, gain: p.gain, out: p.out + slice };
    let row_units = p.hidden / PER_UNIT;
    let lane = Lane { part: ctaid_x(), blocks: nctaid_x(), row_units };
    let (first_row, stride) = (ctaid_z() * row_units, nctaid_z() * row_units);
    let mut pass = call.first_pass();
    let mut brought = call.own.load(0, lane.group::<K>(first_row, lane.first()));
    clear_words_of_no_warp();
    let all = tensor::units(call.own.halves);
    for number in 0..p.passes {
        if number > 0 {
            pass = call.pass_after(&pass);
            brought = call.own.load(pass.first, lane.group::<K>(first_row, lane.first()));
        }
        let units = call.units_of(&pass, all);
        let (mut sent, mut received, mut turn) = (first_row, first_row, 0);
        loop {
            if sent < units {
                send_row::<W, K>(&call, &pass, lane, sent, brought);
            }
            if number == 0 && sent == first_row {
                Call::number_is_read();
            }
            sent += stride;
            if sent < units {
                brought = call.own.load(pass.first, lane.group::<K>(sent, lane.first()));
                if sent - received < AHEAD * stride {
                    continue;
                }
            }
            if received >= units {
                break;
            }
            finish_row::<W, K>(&mut call, &pass, lane, (received, turn), operands);
            received += stride;
            turn ^= 1;
        }
    }
}

/// Sends a row, of which this thread has its first units already.
#[inline(always)]
unsafe fn send_row<W: Wire, const K: usize>(
    call: &Call,
    pass: &Pass,
    lane: Lane,
    row: u32,
    first: [[u32; 4]; K],
) {
    let (mut i, mut brought) = (lane.first(), first);
    while i < lane.row_units {
        let indices = lane.group(row, i);
        send::<W, K>(call, pass, indices, call.own.add(pass.first, indices, brought));
        i += lane.stride() * K as u32;
        if i < lane.row_units {
            brought = call.own.load(pass.first, lane.group::<K>(row, i));
        }
    }
}

/// Receives and sums a row, adds it to the residual, normalises the residual.
#[inline(always)]
unsafe fn finish_row<W: Wire, const K: usize>(
    call: &mut Call,
    pass: &Pass,
    lane: Lane,
    (row, turn): (u32, u32),
    operands: Operands,
) {
    let Operands { residual, gain, out } = operands;
    let one_over_hidden = rcp(call.p.hidden as f32);
    let indices: [u32; HELD] = lane.group(row, lane.first());
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
    let beyond = lane.first() + lane.stride() * HELD as u32;
    let mut i = beyond;
    while i < lane.row_units {
        let before = ld_v4(at(residual, pass.first + row + i));
        let [after] = add::<W, 1>(call, pass, [row + i], [before], residual);
        squares = sum_of_squares(squares, after);
        i += lane.stride();
    }

    let squares = row_sum(call, pass, lane, block_sum(squares, turn));
    let inverse_rms = rsqrt(fma(squares, one_over_hidden, call.p.eps));
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
    while i < lane.row_units {
        let unit = pass.first + row + i;
        st_v4(at(out, unit), scale(ld_v4(at(residual, unit)), ld_v4(at(gain, i)), inverse_rms));
        i += lane.stride();
    }
}

/// Sum over the block's workers, in the order of their warps. With two sets of words one barrier is enough: a set
/// is written again only after the barrier of the row in between.
#[inline(always)]
unsafe fn block_sum(value: f32, turn: u32) -> f32 {
    let words = squares_of_warps() + turn * 64;
    let total = warp_sum(value);
    if special::lane() == 0 {
        shared::st_f32(words + special::warp() * 4, total);
    }
    sync_some::<WORKERS_MEET>(Call::workers());
    let of_warps = [shared::ld_v4(words), shared::ld_v4(words + 16), shared::ld_v4(words + 32)];
    let mut sum = 0.0;
    for warp in 0..MAX_WARPS {
        sum += f32::from_bits(of_warps[warp / 4][warp % 4]);
    }
    sum
}

/// Zeros the words that [`block_sum`] reads and no warp writes; its first barrier orders this, too.
#[inline(always)]
unsafe fn clear_words_of_no_warp() {
    if tid_x() < 32 && tid_x() % 16 >= Call::workers() / 32 {
        shared::st_f32(squares_of_warps() + tid_x() * 4, 0.0);
    }
}

/// Sum over the blocks of a row, in their order; each has one row at most in such a launch.
///
/// A letter is two cells of {value, half of the call's number}. Both halves are looked at, so no letter of an
/// earlier call is ever taken for one of this, and none has to be cleared.
#[inline(always)]
unsafe fn row_sum(call: &mut Call, pass: &Pass, lane: Lane, value: f32) -> f32 {
    if lane.blocks == 1 {
        return value;
    }
    let letter = |value: f32| {
        let number = [pass.sequence << 32, pass.sequence >> 32 << 32];
        number.map(|half| half | u64::from(value.to_bits()))
    };
    let mail = ld_b64(call.row + ROW_MAIL) + u64::from(ctaid_z() * lane.blocks) * LETTER_BYTES;
    if tid_x() == 0 {
        st_v2_b64(mail + u64::from(lane.part) * LETTER_BYTES, letter(value));
    }
    // Lane i of each warp reads the letter of block i.
    let mut sum = 0.0;
    if special::lane() < lane.blocks {
        let place = mail + u64::from(special::lane()) * LETTER_BYTES;
        while !call.watch.over {
            let found = ld_v2_b64(place);
            sum = f32::from_bits(found[0] as u32);
            if found == letter(sum) {
                break;
            }
            if call.watch.is_first_to_give_up() {
                let from = Source { peer: call.rank, phase: PHASE_REDUCE, step: 0 };
                call.watch.report_timeout(call.p, call.rank, from, pass.sequence, 0);
            }
        }
    }
    warp_sum(sum)
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
        /// A row per block in z, in turn, spread over the blocks in x; more than one only where no block has two
        /// rows. A thread keeps two units of it in registers and reads the
        /// others again.
        ///
        /// # Memory order, safety
        /// As there; `residual` and `out` overlap nothing.
        #[launch_bounds(352, 1)]
        pub fn $name(p: Collective) {
            all_reduce::<$wire, $together>(&p);
        }
    })*};
}

norm! {
    allreduce_bf16_oneshot_cells_norm: Cells, 1 at once;
    allreduce_bf16_oneshot_words_norm: Words, 2 at once;
}
