//! The two-shot and hierarchical all-reduce: reduce, put and broadcast in one launch, or one of them alone.

use core::marker::PhantomData;

use super::call::{Call, Deal, InTurn, Pass, Share, Stores};
use super::element::{Bf16, Element, F16, F32};
use super::schedule::Place;
use super::tensor::NONE;
use super::wire::{Cells, Wire, Words};
use super::{broadcast, put, reduce, tensor};
use crate::params::{Collective, GRANULE_UNITS, PHASE_BROADCAST, PHASE_PUT, PHASE_REDUCE};

/// How a tensor's units are dealt to the ranks of a node, and each rank's to threads: all ranks' thread i has the
/// same ones.
pub trait Parts {
    /// This rank's place.
    fn place(&self) -> Place;
    /// This thread's units of what `local` owns, of a pass. Each call answers the next one: where it lies in the
    /// tensor, [`NONE`] behind the last, and where in a slot.
    fn units(&self, call: &Call, pass: &Pass, local: u32) -> impl FnMut() -> (u32, u32) + use<Self>;
}

/// A shard of the tensor to each rank, its units to threads as `D` deals them.
#[derive(Clone, Copy)]
pub struct Shards<D> {
    place: Place,
    deal: PhantomData<D>,
}

impl<D> Shards<D> {
    /// Those of the call's tensor.
    #[inline(always)]
    pub fn new(call: &Call) -> Self {
        let place = Place::new(call.p.nodes, call.p.gpus_per_node, call.rank);
        Self { place, deal: PhantomData }
    }

    /// What a pass has of the shard that `local` owns: its first unit in the tensor, and how many.
    #[inline(always)]
    pub fn part(&self, call: &Call, pass: &Pass, local: u32) -> (u32, u32) {
        let (first, units) = self.place.shard(tensor::units(call.own.halves), GRANULE_UNITS, local);
        (first + pass.first, call.units_of(pass, units))
    }
}

impl<D: Deal> Parts for Shards<D> {
    #[inline(always)]
    fn place(&self) -> Place {
        self.place
    }

    #[inline(always)]
    fn units(&self, call: &Call, pass: &Pass, local: u32) -> impl FnMut() -> (u32, u32) + use<D> {
        let (first, units) = self.part(call, pass, local);
        let Share { first: mut next, end, step } = D::share(units);
        move || {
            let i = next;
            next += step;
            (if i < end { first + i } else { NONE }, i)
        }
    }
}

/// Pushes unit `i` of the own shard to all neighbours.
#[inline(always)]
pub unsafe fn push<W: Wire>(call: &Call, pass: &Pass, place: &Place, i: u32, unit: [u32; 4]) {
    let mut local = place.local;
    for _ in 1..place.gpus {
        local = if local + 1 == place.gpus { 0 } else { local + 1 };
        let slot = call.slot(pass, place.neighbour(local), place.broadcast_slot(place.local));
        W::send(slot + W::offset(i), unit, pass.flag());
    }
}

#[inline(always)]
unsafe fn all_reduce<E: Element, W: Wire, const M: usize>(p: &Collective) {
    if Call::is_kept_by_clerk::<Stores>(p, p.numel * E::HALVES) {
        return;
    }
    let mut call = Call::begin(p, p.numel * E::HALVES);
    let shards = Shards::<InTurn>::new(&call);
    let has = |phase: u32| p.phases & phase != 0;
    let onward = has(PHASE_REDUCE) && has(PHASE_BROADCAST) && p.nodes == 1;
    let mut pass = call.first_pass();
    for number in 0..p.passes {
        if number > 0 {
            pass = call.pass_after(&pass);
        }
        if has(PHASE_REDUCE) {
            reduce::send::<W>(&call, &pass, &shards);
        }
        if number == 0 {
            Call::number_is_read();
        }
        if has(PHASE_REDUCE) && (p.gpus_per_node > 1 || p.addend != 0) {
            reduce::sum::<E, W, M>(&mut call, &pass, &shards, onward);
        }
        if has(PHASE_PUT) && p.nodes > 1 {
            put::exchange::<E, W>(&mut call, &pass, &shards);
        }
        if has(PHASE_BROADCAST) {
            if !onward {
                broadcast::send::<W>(&call, &pass, &shards);
            }
            broadcast::receive::<W>(&mut call, &pass, &shards);
        }
    }
}

macro_rules! two_shot {
    ($($name:ident: $element:ident over $wire:ident, $together:literal at once;)*) => {$(kernel! {
        /// All-reduce in the phases that `phases` has: reduce, put, broadcast.
        ///
        /// # Shape and layout
        /// With all of them `data[..numel]` becomes the sum over all ranks of `data + addend`. Each rank of a
        /// node owns a shard of whole granules; a pass is `pass_units` of each shard.
        ///
        /// # Thread mapping
        /// Any grid in x, a rank per block in y; whole warps, the last of each block its clerk. The units of
        /// each shard are dealt to the other threads in turn, on all ranks alike where there are several passes.
        ///
        /// # Memory order
        /// See [`crate::nvrar`]. What a thread of one phase reads in the next it wrote itself; that a shard is
        /// overwritten only after it was sent follows from what overwrites it.
        ///
        /// # Safety
        /// All blocks are resident at once; rows, regions and tensors exist as [`Collective`] says; all ranks
        /// make the same calls in the same order.
        #[launch_bounds(416, 1)]
        pub fn $name(p: Collective) {
            all_reduce::<$element, $wire, $together>(&p);
        }
    })*};
}

two_shot! {
    allreduce_bf16_twoshot_cells: Bf16 over Cells, 3 at once;
    allreduce_bf16_twoshot_words: Bf16 over Words, 3 at once;
    allreduce_f16_twoshot_cells: F16 over Cells, 3 at once;
    allreduce_f16_twoshot_words: F16 over Words, 3 at once;
    allreduce_f32_twoshot_cells: F32 over Cells, 3 at once;
    allreduce_f32_twoshot_words: F32 over Words, 3 at once;
}
