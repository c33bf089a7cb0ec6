//! `atom.exch.b128` and `atom.cas.b128` (PTX ISA, "atom").
//!
//! Memory has 8 bytes at a time; nobody comes between the two halves of an instruction.

use super::address::generic;
use super::atomic::{Update, check_place};
use super::context::{Context, Done};
use super::rows::{Row, Slot};
use crate::memory::{Order, Scope, Width};
use crate::program::{Address, Decoded, Line, Op};
use crate::text::Space;

#[derive(Debug, Clone)]
pub(crate) struct Atomic128 {
    order: Order,
    scope: Scope,
    space: Space,
    address: Address,
    /// Of the low half, as all slots here.
    result: Slot,
    operand: Slot,
    /// The new value of a compare-and-swap, whose operand is the expected one.
    swap: Option<Slot>,
}

pub(super) fn decode(
    line: &mut Line<'_, '_>,
    update: Update,
    (order, scope, space): (Order, Scope, Space),
) -> Decoded<Op> {
    let swaps = match update {
        Update::Exchange => false,
        Update::CompareAndSwap => true,
        _ => return line.refuse(),
    };
    if !matches!(space, Space::Global | Space::Shared | Space::Generic) {
        return line.refuse();
    }
    line.exactly(3 + usize::from(swaps))?;
    let (result, address, operand) = (line.quad(0, true)?, line.address(1)?, line.quad(2, false)?);
    let swap = if swaps { Some(line.quad(3, false)?) } else { None };
    Ok(Op::Atomic128(Box::new(Atomic128 { order, scope, space, address, result, operand, swap })))
}

fn halves(context: &Context<'_>, low: Slot) -> [Row<u64>; 2] {
    [low, Slot(low.0 + 1)].map(|slot| *context.rows.double(slot))
}

/// Lanes follow each other, lowest first.
pub(crate) fn execute(context: &mut Context<'_>, op: &Atomic128) -> Done {
    let addresses = context.addresses(&op.address).map(|at| generic(op.space, at));
    let operand = halves(context, op.operand);
    let swap = op.swap.map(|swap| halves(context, swap));
    let mut old: [Row<u64>; 2] = [[0; 32]; 2];
    for lane in context.active() {
        *context.culprit = Some(lane);
        let address = addresses[lane];
        check_place(op.space, address, 16)?;
        let access = context.access(lane, op.order, op.scope);
        let mut half = |index: usize, new: Option<u64>| {
            context.memory.rmw(&access, address + 8 * index as u64, Width::B8, |_| new)
        };
        match swap {
            None => {
                for index in 0..2 {
                    old[index][lane] = half(index, Some(operand[index][lane]))?;
                }
            }
            Some(swap) => {
                let found = [half(0, None)?, half(1, None)?];
                if found == [operand[0][lane], operand[1][lane]] {
                    half(0, Some(swap[0][lane]))?;
                    half(1, Some(swap[1][lane]))?;
                }
                (old[0][lane], old[1][lane]) = (found[0], found[1]);
            }
        }
    }
    if op.result != Slot::NONE {
        context.rows.put_double(op.result, &old[0]);
        context.rows.put_double(Slot(op.result.0 + 1), &old[1]);
    }
    Ok(())
}
