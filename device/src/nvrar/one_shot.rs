//! One-shot: every rank sends all it has to every other rank of the node and sums by itself.
//!
//! One hop. The sum is that of [`super::reduce`], in rank order, so the bits are those of the two-shot form.

use super::call::{Call, Pass, Stores};
use super::element::{Bf16, Element, F16, F32};
use super::reduce::sum_of_node;
use super::schedule::Place;
use super::tensor::{self, NONE};
use super::watch::Source;
use super::wire::{Cells, Wire, Words};
use crate::params::{Collective, PHASE_REDUCE};

/// Groups of units that a thread sends before it receives the first: enough to fill the wire, few enough that
/// a long message is received while it is sent.
const AHEAD: u32 = 2;

/// Sums a tensor, units dealt to all workers of the grid in turn, `K` together; of many ranks the messages of `M` are
/// awaited together.
#[inline(always)]
unsafe fn all_reduce<E: Element, W: Wire, const K: usize, const M: usize>(p: &Collective) {
    if Call::is_kept_by_clerk::<Stores>(p, p.numel * E::HALVES) {
        return;
    }
    let mut call = Call::begin(p, p.numel * E::HALVES);
    let (worker, workers) = Call::worker();
    let all = tensor::units(call.own.halves);
    let mut pass = call.first_pass();
    let mut brought = call.own.load(0, group::<K>(worker, workers, call.units_of(&pass, all)));
    let stride = workers * K as u32;
    for number in 0..p.passes {
        let units = if number == 0 {
            call.units_of(&pass, all)
        } else {
            pass = call.pass_after(&pass);
            let units = call.units_of(&pass, all);
            brought = call.own.load(pass.first, group::<K>(worker, workers, units));
            units
        };
        let (mut sent, mut received) = (worker, worker);
        loop {
            if sent < units {
                let indices = group(sent, workers, units);
                let brought = call.own.add(pass.first, indices, brought);
                send::<W, K>(&call, &pass, indices, brought);
            }
            if number == 0 && sent == worker {
                Call::number_is_read();
            }
            sent += stride;
            if sent < units {
                brought = call.own.load(pass.first, group::<K>(sent, workers, units));
                if sent - received < AHEAD * stride {
                    continue;
                }
            }
            if received >= units {
                break;
            }
            let indices = group(received, workers, units);
            let sums = sum::<E, W, K, M>(&mut call, &pass, indices);
            for k in 0..K {
                if indices[k] != NONE && !call.watch.over {
                    let sum = E::narrow(sums[k]);
                    tensor::store(call.own.data, pass.first + indices[k], call.own.halves, sum);
                }
            }
            received += stride;
        }
    }
}

/// `K` indices from `first` on, `step` apart; [`NONE`] from `end` on.
#[inline(always)]
fn group<const K: usize>(first: u32, step: u32, end: u32) -> [u32; K] {
    core::array::from_fn(|k| {
        let index = first + k as u32 * step;
        if index < end { index } else { NONE }
    })
}

/// Sends units of a pass to all peers, into the slot that is this rank's there.
#[inline(always)]
pub(super) unsafe fn send<W: Wire, const K: usize>(
    call: &Call,
    pass: &Pass,
    indices: [u32; K],
    units: [[u32; 4]; K],
) {
    if call.watch.over {
        return;
    }
    // Each rank begins with its successor, so that no rank is everybody's first.
    let mut peer = call.after(call.rank);
    while peer != call.rank {
        let slot = call.slot(pass, peer, call.rank);
        for k in 0..K {
            if indices[k] != NONE {
                W::send(slot + W::offset(indices[k]), units[k], pass.flag());
            }
        }
        peer = call.after(peer);
    }
}

/// Receives units from all peers and sums them with the own ones, in rank order, in fp32.
#[inline(always)]
pub(super) unsafe fn sum<E: Element, W: Wire, const K: usize, const M: usize>(
    call: &mut Call,
    pass: &Pass,
    indices: [u32; K],
) -> [E::Wide; K] {
    let own = call.own.add(pass.first, indices, call.own.load(pass.first, indices));
    let mut sums = own.map(E::widen);
    if call.world == 2 {
        let from = Source { peer: 1 - call.rank, phase: PHASE_REDUCE, step: 0 };
        let slot = call.own_slot(pass, from.peer);
        // The first unit is always there.
        let place = |index: u32| slot + W::offset(if index == NONE { indices[0] } else { index });
        let theirs = call.receive::<W, K>(pass, indices.map(place), |_| from);
        for k in 0..K {
            // Of two, either order gives the same bits.
            sums[k] = E::add(sums[k], E::widen(theirs[k]));
        }
        return sums;
    }
    let place = Place::in_one_node(call.world, call.rank);
    for k in 0..K {
        if indices[k] != NONE {
            sums[k] = sum_of_node::<E, W, M>(call, pass, &place, indices[k], own[k]);
        }
    }
    sums
}

macro_rules! one_shot {
    ($($name:ident: $element:ident over $wire:ident, $units:literal units, $messages:literal messages at once;)*) => {$(kernel! {
        /// One-shot all-reduce.
        ///
        /// # Shape and layout
        /// `data[..numel]` becomes the sum over all ranks of `data + addend`; one node.
        ///
        /// # Thread mapping
        /// Any grid in x, a rank per block in y; whole warps, the last of each block its clerk. Units are
        /// dealt to the other threads in turn; on all ranks alike where there are several passes.
        ///
        /// # Memory order
        /// See [`crate::nvrar`].
        ///
        /// # Safety
        /// All blocks are resident at once; rows, regions and tensors exist as [`Collective`] says; all ranks
        /// make the same calls in the same order.
        #[launch_bounds(416, 1)]
        pub fn $name(p: Collective) {
            all_reduce::<$element, $wire, $units, $messages>(&p);
        }
    })*};
}

one_shot! {
    allreduce_bf16_oneshot_cells: Bf16 over Cells, 1 units, 3 messages at once;
    allreduce_bf16_oneshot_words: Bf16 over Words, 2 units, 3 messages at once;
    allreduce_f16_oneshot_cells: F16 over Cells, 1 units, 3 messages at once;
    allreduce_f16_oneshot_words: F16 over Words, 2 units, 3 messages at once;
    allreduce_f32_oneshot_cells: F32 over Cells, 1 units, 3 messages at once;
    allreduce_f32_oneshot_words: F32 over Words, 2 units, 3 messages at once;
}
