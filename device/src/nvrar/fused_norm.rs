//! The two-shot and hierarchical all-reduce with what follows it in a transformer block: residual and RMSNorm, in the
//! same launch.
//!
//! The phases are those of [`super::fused`], over rows of which each rank of the node owns a part; instead of the
//! broadcast's receiving side a block finishes its rows. The thread that has a unit of a row does everything about it:
//! it sends it to its owner, or sums and pushes it, takes the sum and normalises. So no thread waits for another one
//! of its rank but for the sum over the row, and before that it has sent all that any peer waits for.

use super::broadcast;
use super::call::{Call, Pass, Stores};
use super::element::{Bf16, Element};
use super::fused::Parts;
use super::letters::Letters;
use super::rows::{Operands, Rows, SharedRows, finish_row};
use super::tensor::NONE;
use super::wire::{Cells, Wire, Words};
use super::{put, reduce};
use crate::params::Collective;

/// Sums a tensor of rows, in one pass; messages of so many neighbours are awaited together.
#[inline(always)]
unsafe fn all_reduce<W: Wire, const TOGETHER: usize>(p: &Collective) {
    let mut letters = Letters::begin();
    if Call::is_kept_by_clerk::<Stores>(p, p.numel) {
        return;
    }
    let mut call = Call::begin(p, p.numel);
    let (rows, operands) = (Rows::new(p), Operands::new(p));
    let parts = SharedRows::new(&call, rows);
    let pass = call.first_pass();
    let onward = p.nodes == 1;
    reduce::send::<W>(&call, &pass, &parts);
    Call::number_is_read();
    if p.gpus_per_node > 1 || p.addend != 0 {
        reduce::sum::<Bf16, W, TOGETHER>(&mut call, &pass, &parts, onward);
    }
    if !onward {
        put::exchange::<Bf16, W>(&mut call, &pass, &parts);
        broadcast::send::<W>(&call, &pass, &parts);
    }
    for row in parts.of_block() {
        finish_row(&mut call, rows, parts.first_unit(row), &mut letters, operands, |call, units| {
            take::<W>(call, &pass, &parts, row, units).map(Bf16::widen)
        });
    }
}

/// Two units of a row, those that others own awaited together.
#[inline(always)]
unsafe fn take<W: Wire>(
    call: &mut Call,
    pass: &Pass,
    parts: &SharedRows,
    row: u32,
    units: [u32; 2],
) -> [[u32; 4]; 2] {
    let place = parts.place();
    let (mut places, mut owners, mut own) = ([0; 2], [0; 2], [NONE; 2]);
    for k in 0..2 {
        let (local, i) = parts.owner(row, units[k]);
        if local == place.local {
            own[k] = units[k];
        } else if units[k] != NONE {
            let slot = call.own_slot(pass, place.broadcast_slot(local));
            (places[k], owners[k]) = (slot + W::offset(i), local);
        }
    }
    let mut taken = call.own.load(parts.first_unit(row), own);
    let from = |k| broadcast::source(&place, if k == 0 { owners[0] } else { owners[1] });
    if places[0] != 0 && places[1] != 0 {
        return call.receive::<W, 2>(pass, places, from);
    }
    for k in 0..2 {
        if places[k] != 0 {
            taken[k] = call.receive_one::<W>(pass, places[k], from(k));
        }
    }
    taken
}

macro_rules! norm {
    ($($name:ident: $wire:ident, $together:literal at once, $min_blocks:literal resident;)*) => {$(kernel! {
        /// All-reduce in all phases, then `residual += sum` and `out = rmsnorm(residual) · gain`. The tensor gets the
        /// rounded sum, which is what travels, and so does the residual; it is rounded before it is normalised.
        ///
        /// # Shape and layout
        /// Rows of `hidden`, a multiple of 8, any nodes, one pass. Each rank of a node owns a part of every row, its
        /// units shared out evenly; in a slot each row has as many units as the longest part.
        ///
        /// # Thread mapping
        /// As [`allreduce_bf16_oneshot_cells_norm`](super::norm::allreduce_bf16_oneshot_cells_norm), but that a thread
        /// keeps two units in registers.
        ///
        /// # Memory order, safety
        /// See [`crate::nvrar`] and [`super::letters`]; a thread overwrites only what it has sent itself; `residual`
        /// and `out` overlap nothing.
        #[launch_bounds(288, $min_blocks)]
        pub fn $name(p: Collective) {
            all_reduce::<$wire, $together>(&p);
        }
    })*};
}

// Two blocks fit a multiprocessor, so that all clusters of a launch are resident however they are dealt to it.
#[cfg(cuda_arch_min = "90")]
norm! {
    allreduce_bf16_twoshot_cells_norm: Cells, 1 at once, 2 resident;
    allreduce_bf16_twoshot_words_norm: Words, 3 at once, 2 resident;
}

#[cfg(not(cuda_arch_min = "90"))]
norm! {
    allreduce_bf16_twoshot_cells_norm: Cells, 1 at once, 1 resident;
    allreduce_bf16_twoshot_words_norm: Words, 3 at once, 1 resident;
}
