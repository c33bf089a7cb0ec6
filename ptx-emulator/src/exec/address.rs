//! State spaces in generic addresses: `cvta`, `isspacep`, and the windows.

use super::context::Context;
use super::rows::Class;
use crate::memory::{LOCAL_WINDOW, SHARED_WINDOW, cluster_offset};
use crate::program::{Decoded, Line, Op, Typed};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["cvta", "isspacep"];

const WINDOW_BYTES: u64 = LOCAL_WINDOW - SHARED_WINDOW;
/// `.param` variables lie in the upper half of the local window.
const PARAM_WINDOW: u64 = LOCAL_WINDOW + WINDOW_BYTES / 2;

/// Which memory a generic address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Region {
    /// Shared, global or constant memory, all of which `Memory` holds.
    Memory,
    Local,
    Params,
}

/// The region and, for private memory, the offset.
pub(crate) fn region_of(address: u64) -> (Region, u64) {
    if !(LOCAL_WINDOW..LOCAL_WINDOW + WINDOW_BYTES).contains(&address) {
        (Region::Memory, address)
    } else if address >= PARAM_WINDOW {
        (Region::Params, address - PARAM_WINDOW)
    } else {
        (Region::Local, address - LOCAL_WINDOW)
    }
}

/// The generic address of an address of a space.
#[inline]
pub(crate) fn generic(space: Space, address: u64) -> u64 {
    match space {
        // An offset beyond the window must not alias another one, nor one of a cluster's the own block.
        Space::Shared if cluster_offset(address).0.is_some() => SHARED_WINDOW + WINDOW_BYTES - 1,
        Space::Shared | Space::SharedCluster => SHARED_WINDOW + address.min(WINDOW_BYTES - 1),
        Space::Local => LOCAL_WINDOW + address.min(WINDOW_BYTES / 2 - 1),
        Space::Param => PARAM_WINDOW + address.min(WINDOW_BYTES / 2 - 1),
        Space::Global | Space::Const | Space::Generic => address,
    }
}

/// Whether an instruction of a space is given an address of shared memory, though it names another.
#[inline]
pub(crate) fn is_misplaced(space: Space, address: u64) -> bool {
    matches!(space, Space::Global | Space::Const) && address.wrapping_sub(SHARED_WINDOW) < WINDOW_BYTES
}

fn specific(space: Space, address: u64) -> u64 {
    match space {
        Space::Shared | Space::SharedCluster => address.wrapping_sub(SHARED_WINDOW),
        Space::Local => address.wrapping_sub(LOCAL_WINDOW),
        Space::Param => address.wrapping_sub(PARAM_WINDOW),
        Space::Global | Space::Const | Space::Generic => address,
    }
}

/// `cvta.space` or `cvta.to.space`; `isspacep.space` has a predicate as destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvertAddress {
    pub(crate) d: Typed,
    pub(crate) a: Typed,
    pub(crate) space: Space,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ToGeneric,
    FromGeneric,
    Test,
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let kind = if line.name == "isspacep" {
        Kind::Test
    } else if line.flag("to") {
        Kind::FromGeneric
    } else {
        Kind::ToGeneric
    };
    let space = line.space();
    if space == Space::Generic {
        return line.refuse();
    }
    line.exactly(2)?;
    if kind == Kind::Test {
        let d = Typed { slot: line.destination(0, T::Pred)?, class: Class::Pred };
        let a = line.any_source(1, T::U64)?;
        return Ok(Op::ConvertAddress(ConvertAddress { d, a, space, kind }));
    }
    let ty = line.ty()?;
    if !matches!(ty, T::U64 | T::U32) {
        return line.refuse();
    }
    let d = line.any_destination(0)?;
    let a = line.any_source(1, ty)?;
    Ok(Op::ConvertAddress(ConvertAddress { d, a, space, kind }))
}

pub(crate) fn execute(context: &mut Context<'_>, op: &ConvertAddress) {
    let a = context.rows.wide(op.a.slot, op.a.class);
    let space_of = |address: u64| match region_of(address).0 {
        Region::Local => Space::Local,
        Region::Params => Space::Param,
        Region::Memory if (SHARED_WINDOW..LOCAL_WINDOW).contains(&address) => Space::Shared,
        Region::Memory => Space::Global,
    };
    let row = a.map(|address| match op.kind {
        Kind::ToGeneric => generic(op.space, address),
        Kind::FromGeneric => specific(op.space, address),
        Kind::Test => u64::from(space_of(address) == op.space),
    });
    context.rows.put_wide(op.d.slot, op.d.class, &row);
}
