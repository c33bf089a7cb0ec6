//! The two-shot and hierarchical all-reduce with what follows it in a transformer block: residual and RMSNorm, in the
//! same launch.
//!
//! The phases are those of [`super::fused`], over rows of which each rank of the node owns a part; instead of the
//! broadcast's receiving side a block finishes its rows. The thread that has a unit of a row does everything about it:
//! it sends it to its owner, or sums and pushes it, takes the sum and normalises. So no thread waits for another one
//! of its rank but for the sum over the row, and before that it has sent all that any peer waits for.

use super::broadcast;
use super::call::{Call, Stores};
use super::element::{Bf16, Element};
use super::fused::Parts;
use super::letters::Letters;
use super::rows::{Operands, Rows, SharedRows, at, finish_row};
use super::wire::{Cells, Wire, Words};
use super::{put, reduce};
use crate::params::Collective;
use crate::ptx::global::ld_v4;

/// Neighbours whose messages are awaited together.
const TOGETHER: usize = 3;

/// Sums a tensor of rows, in one pass.
#[inline(always)]
unsafe fn all_reduce<W: Wire>(p: &Collective) {
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
    let place = parts.place();
    for row in parts.of_block() {
        let first = row * rows.row_units;
        finish_row(&mut call, rows, first, &mut letters, operands, |call, j| {
            let (local, i) = parts.owner(row, j);
            Bf16::widen(if local == place.local {
                ld_v4(at(call.own.data, first + j))
            } else {
                broadcast::receive_one::<W>(call, &pass, &place, local, i)
            })
        });
    }
}

macro_rules! norm {
    ($($name:ident: $wire:ident;)*) => {$(kernel! {
        /// All-reduce in all phases, then `residual += sum` and `out = rmsnorm(residual) · gain`. The tensor gets the
        /// rounded sum, which is what travels, and so does the residual; it is rounded before it is normalised.
        ///
        /// # Shape and layout
        /// Rows of `hidden`, a multiple of 8, any nodes, one pass. Each rank of a node owns a part of every row, its
        /// units shared out evenly; in a slot each row has as many units as the longest part.
        ///
        /// # Thread mapping
        /// As [`allreduce_bf16_oneshot_cells_norm`](super::norm::allreduce_bf16_oneshot_cells_norm).
        ///
        /// # Memory order, safety
        /// See [`crate::nvrar`] and [`super::letters`]; a thread overwrites only what it has sent itself; `residual`
        /// and `out` overlap nothing.
        #[launch_bounds(288, 2)]
        pub fn $name(p: Collective) {
            all_reduce::<$wire>(&p);
        }
    })*};
}

norm! {
    allreduce_bf16_twoshot_cells_norm: Cells;
    allreduce_bf16_twoshot_words_norm: Words;
}
