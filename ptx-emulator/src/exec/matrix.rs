//! `ldmatrix` and `stmatrix`: 8 × 8 matrices of 16-bit elements between shared memory and registers.
//!
//! Lane 8 i + j names the address of row j of matrix i. Lane l holds the elements 2 (l mod 4) and the next of row
//! l / 4; with `.trans`, row and column change places.

use super::address::generic;
use super::context::{Cause, Context, Done};
use super::rows::{LANES, Mask, Row, Slot, each};
use crate::memory::{Order, Scope, Width};
use crate::program::{Address, Decoded, Line, Op};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["ldmatrix", "stmatrix"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MatrixAccess {
    load: bool,
    transposed: bool,
    space: Space,
    address: Address,
    registers: Box<[Slot]>,
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if !(line.flag("sync") && line.flag("aligned") && line.flag("m8n8")) {
        return line.refuse();
    }
    let Some(matrices) = line.choice(&[("x1", 1), ("x2", 2), ("x4", 4)]) else { return line.refuse() };
    let transposed = line.flag("trans");
    let space = line.space();
    if line.ty()? != T::B16 || !matches!(space, Space::Shared | Space::Generic) {
        return line.refuse();
    }
    line.exactly(2)?;
    let load = line.name == "ldmatrix";
    let address = line.address(usize::from(load))?;
    let registers =
        if load { line.destinations(0, T::B32, matrices)? } else { line.sources(1, T::B32, matrices)? };
    Ok(Op::Matrix(Box::new(MatrixAccess { load, transposed, space, address, registers: registers.into() })))
}

/// The row and column of element `part` (0 or 1) of a lane.
fn place(lane: usize, part: usize, transposed: bool) -> (usize, usize) {
    let (row, column) = (lane >> 2, 2 * (lane & 3) + part);
    if transposed { (column, row) } else { (row, column) }
}

/// 16 bytes of each row: the first and the last 8. Rows lie by lane.
type Halves = [Row<u64>; 2];

fn element(halves: &Halves, matrix: usize, (row, column): (usize, usize)) -> u32 {
    u32::from((halves[column >> 2][8 * matrix + row] >> (16 * (column & 3))) as u16)
}

pub(crate) fn execute(context: &mut Context<'_>, op: &MatrixAccess) -> Done {
    let addresses = each(&context.addresses(&op.address), |at| generic(op.space, at));
    let named = 8 * op.registers.len();
    if let Some(lane) = (0..named).find(|&lane| addresses[lane] & 15 != 0) {
        *context.culprit = Some(lane);
        return Err(Cause::Misaligned { address: addresses[lane], bytes: 16 });
    }
    let access = context.warp_access(Mask::MAX >> (LANES - named), Order::Weak, Scope::Cta);
    let mut halves = [[0; LANES]; 2];
    if op.load {
        for (half, skip) in halves.iter_mut().zip([0, 8]) {
            let addresses = each(&addresses, |at| at.wrapping_add(skip));
            context.memory.load_lanes(&access, &addresses, Width::B8, half)?;
        }
        for (index, &slot) in op.registers.iter().enumerate() {
            let part = |lane: usize, part: usize| element(&halves, index, place(lane, part, op.transposed));
            context.rows.put_word(slot, &std::array::from_fn(|lane| part(lane, 0) | part(lane, 1) << 16));
        }
        return Ok(());
    }
    for (index, &slot) in op.registers.iter().enumerate() {
        for (lane, &value) in context.rows.word(slot).iter().enumerate() {
            for part in 0..2 {
                let (row, column) = place(lane, part, op.transposed);
                let bits = u64::from((value >> (16 * part)) as u16);
                halves[column >> 2][8 * index + row] |= bits << (16 * (column & 3));
            }
        }
    }
    for (half, skip) in halves.iter().zip([0, 8]) {
        let addresses = each(&addresses, |at| at.wrapping_add(skip));
        context.memory.store_lanes(&access, &addresses, Width::B8, half)?;
    }
    Ok(())
}
