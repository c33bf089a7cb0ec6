//! `ldmatrix` and `stmatrix`: 8 × 8 matrices of 16-bit elements between shared memory and registers.
//!
//! Lane 8 i + j names the address of row j of matrix i. Lane l holds the elements 2 (l mod 4) and the next of row
//! l / 4; with `.trans`, row and column change places.

use super::address::generic;
use super::context::{Cause, Context, Done};
use super::rows::Slot;
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

pub(crate) fn execute(context: &mut Context<'_>, op: &MatrixAccess) -> Done {
    let addresses = context.addresses(&op.address).map(|at| generic(op.space, at));
    for (index, &slot) in op.registers.iter().enumerate() {
        let rows: [u64; 8] = std::array::from_fn(|row| addresses[8 * index + row]);
        if let Some(&address) = rows.iter().find(|&&address| address & 15 != 0) {
            return Err(Cause::Misaligned { address, bytes: 16 });
        }
        if op.load {
            let matrix = read(context, index, &rows)?;
            let half = |lane: usize, part: usize| {
                let (row, column) = place(lane, part, op.transposed);
                u32::from(matrix[row][column])
            };
            context.rows.put_word(slot, &std::array::from_fn(|lane| half(lane, 0) | half(lane, 1) << 16));
        } else {
            let values = *context.rows.word(slot);
            let mut matrix = [[0; 8]; 8];
            for (lane, value) in values.into_iter().enumerate() {
                for part in 0..2 {
                    let (row, column) = place(lane, part, op.transposed);
                    matrix[row][column] = (value >> (16 * part)) as u16;
                }
            }
            write(context, index, &rows, &matrix)?;
        }
    }
    Ok(())
}

fn read(context: &mut Context<'_>, index: usize, rows: &[u64; 8]) -> Done<[[u16; 8]; 8]> {
    let mut matrix = [[0; 8]; 8];
    for (row, &address) in rows.iter().enumerate() {
        let access = context.access(8 * index + row, Order::Weak, Scope::Cta);
        for part in 0..2 {
            let bits = context.memory.load(&access, address + 8 * part, Width::B8)?;
            for element in 0..4 {
                matrix[row][4 * part as usize + element] = (bits >> (16 * element)) as u16;
            }
        }
    }
    Ok(matrix)
}

fn write(context: &mut Context<'_>, index: usize, rows: &[u64; 8], matrix: &[[u16; 8]; 8]) -> Done {
    for (row, &address) in rows.iter().enumerate() {
        let access = context.access(8 * index + row, Order::Weak, Scope::Cta);
        for part in 0..2 {
            let bits = (0..4)
                .fold(0, |bits, element| bits | u64::from(matrix[row][4 * part + element]) << (16 * element));
            context.memory.store(&access, address + 8 * part as u64, Width::B8, bits)?;
        }
    }
    Ok(())
}
