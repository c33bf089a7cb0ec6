//! One-shot with what follows it in a transformer block: residual and RMSNorm, in the same launch.

use super::call::{Call, Pass, Stores};
use super::element::{Bf16, Element};
use super::letters::Letters;
use super::one_shot::send;
use super::reduce::{add_own_as_last, add_some};
use super::rows::{Operands, Rows, finish_row};
use super::schedule::Place;
use super::tensor;
use super::wire::{Cells, Wire, Words};
use crate::params::Collective;

/// Rows that a block sends before it receives the first.
const AHEAD: u32 = 2;

/// Sums a tensor of rows.
#[inline(always)]
unsafe fn all_reduce<W: Wire>(p: &Collective) {
    let mut letters = Letters::begin();
    if Call::is_kept_by_clerk::<Stores>(p, p.numel) {
        return;
    }
    let mut call = Call::begin(p, p.numel);
    let (rows, operands) = (Rows::new(p), Operands::new(p));
    let (first_row, stride) = (rows.first * rows.row_units, rows.step * rows.row_units);
    let place = Place::in_one_node(call.world, call.rank);
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
                send_row::<W>(&call, &pass, rows, sent);
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
            finish_row(&mut call, rows, pass.first + received, &mut letters, operands, |call, [j]| {
                let own = call.own.unit(pass.first + received + j);
                [sum_of_all::<W>(call, &pass, &place, received + j, own)]
            });
            received += stride;
        }
    }
}

/// Sends the row that begins at unit `row` of the pass, in the order in which it is received.
#[inline(always)]
unsafe fn send_row<W: Wire>(call: &Call, pass: &Pass, rows: Rows, row: u32) {
    for [j] in rows.of_thread() {
        send::<W, 1>(call, pass, [row + j], [call.own.unit(pass.first + row + j)]);
    }
}

/// Receives unit `i` from all other ranks, first from up to three and then from two at a time, and adds all up in rank
/// order. As [`sum_of_node`](super::reduce::sum_of_node), but so that less waits in registers for many ranks.
#[inline(always)]
unsafe fn sum_of_all<W: Wire>(
    call: &mut Call,
    pass: &Pass,
    place: &Place,
    i: u32,
    own: [u32; 4],
) -> [f32; 8] {
    let (others, mut sum) = (place.gpus - 1, Bf16::NOTHING);
    if others == 1 {
        sum = add_some::<Bf16, W, 1>(call, pass, place, i, own, 0, sum);
    } else if others > 1 {
        sum = add_some::<Bf16, W, 3>(call, pass, place, i, own, 0, sum);
        let mut first = 3;
        while first < others {
            sum = add_some::<Bf16, W, 2>(call, pass, place, i, own, first, sum);
            first += 2;
        }
    }
    add_own_as_last::<Bf16>(place, own, sum)
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
