//! Instructions: one file per family, which decodes, executes and tests it.

pub(crate) mod access;
pub(crate) mod address;
pub(crate) mod asynchronous;
pub(crate) mod atomic;
pub(crate) mod atomic128;
pub(crate) mod barrier;
pub(crate) mod call;
mod carry;
pub(crate) mod cluster;
mod compare;
pub(crate) mod context;
pub(crate) mod control;
mod conversion;
mod convert;
mod data;
mod descriptor;
mod float;
mod float8;
mod halves;
#[cfg(test)]
mod harness;
mod integer;
mod logic;
pub(crate) mod matrix;
pub(crate) mod mbarrier;
pub(crate) mod mma;
pub(crate) mod pending;
mod phase;
mod products;
pub(crate) mod registers;
mod rounding;
pub(crate) mod rows;
pub(crate) mod special;
pub(crate) mod subbyte;
pub(crate) mod tensor;
pub(crate) mod warp;
mod warpgroup;
pub(crate) mod wgmma;
pub(crate) mod wmma;

pub use context::Cause;

use crate::program::{Decoded, Line, Op, Refusal};
use crate::text::ScalarType as T;

/// A family: what its instructions are called, and how they are decoded.
type Family = (&'static [&'static str], fn(&mut Line<'_, '_>) -> Decoded<Op>);

const FAMILIES: [Family; 22] = [
    (access::NAMES, access::decode),
    (address::NAMES, address::decode),
    (asynchronous::NAMES, asynchronous::decode),
    (atomic::NAMES, atomic::decode),
    (barrier::NAMES, barrier::decode),
    (call::NAMES, call::decode),
    (cluster::NAMES, cluster::decode),
    (compare::NAMES, compare::decode),
    (control::NAMES, control::decode),
    (convert::NAMES, convert::decode),
    (data::NAMES, data::decode),
    (float::NAMES, arithmetic),
    (halves::NAMES, arithmetic),
    (integer::NAMES, arithmetic),
    (logic::NAMES, logic::decode),
    (matrix::NAMES, matrix::decode),
    (mbarrier::NAMES, mbarrier::decode),
    (mma::NAMES, mma::decode),
    (registers::NAMES, registers::decode),
    (warp::NAMES, warp::decode),
    (wgmma::NAMES, wgmma::decode),
    (wmma::NAMES, wmma::decode),
];

/// Decodes one instruction.
pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let family = FAMILIES.iter().find(|family| family.0.contains(&line.name));
    family.map_or(Err(Refusal::Instruction), |family| (family.1)(line))
}

/// `add` and its like mean another family for each type.
fn arithmetic(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let last = line.instruction.opcode.rsplit('.').find_map(T::parse);
    match last {
        Some(T::F32 | T::F64) => float::decode(line),
        Some(T::F16 | T::F16x2 | T::Bf16 | T::Bf16x2) => halves::decode(line),
        Some(T::U16 | T::S16 | T::U32 | T::S32 | T::U64 | T::S64) => integer::decode(line),
        Some(_) => line.refuse(),
        None => Err(Refusal::NoType),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::FAMILIES;

    /// The README's table lists what is decoded, and nothing else.
    #[test]
    fn the_readme_lists_every_instruction() {
        let readme = include_str!("../../README.md");
        let rows = readme.lines().skip_while(|line| !line.starts_with("## Instructions")).skip(1);
        let rows = rows.take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `"));
        let listed: BTreeSet<&str> = rows
            .filter_map(|row| row.split('|').nth(1))
            .flat_map(|cell| cell.split('`').skip(1).step_by(2))
            .collect();
        let decoded: BTreeSet<&str> = FAMILIES.iter().flat_map(|family| family.0).copied().collect();
        assert_eq!(listed, decoded);
    }
}
