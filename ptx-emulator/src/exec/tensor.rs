//! `cp.async.bulk.tensor`: boxes of a tensor from global to shared memory, in tile mode (PTX ISA, "Tensors").
//!
//! The part of a box inside the tensor is read when the copy is issued; the rest is zeros. All of it is written when the
//! mbarrier is told, of the whole box's bytes.

use std::ops::Range;

use super::address::{Region, generic, region_of};
use super::context::{Cause, Context, Done};
use super::pending::Pending;
use super::rows::{Class, Row};
use crate::memory::{Access, Order, Scope, Width};
use crate::program::{Address, Decoded, Line, Op, Refusal, Typed};
use crate::tensor::{Swizzle, TENSOR_MAP_ALIGN, TensorMap};
use crate::text::{ScalarType as T, Space};

/// What a box's place in shared memory is a multiple of.
const BOX_ALIGN: u64 = 128;

/// A copy of a box to shared memory.
#[derive(Debug, Clone)]
pub(crate) struct TensorCopy {
    to: Address,
    map: Address,
    /// Of the box's first element, the innermost first; signed.
    coordinates: Box<[Typed]>,
    barrier: Address,
}

/// `cp.async.bulk.tensor`, whose name is taken up to there.
pub(super) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if line.flag("prefetch") {
        return Err(Refusal::Modifier("prefetch.tensor".to_owned()));
    }
    let rank = line.choice(&[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]);
    line.flag("tile");
    if line.flag("multicast::cluster") {
        return Err(Refusal::Cluster("multicast copies"));
    }
    // In a cluster, too, 32-bit addresses without a block's rank name the own block.
    let sides =
        [("shared::cluster", Space::Shared), ("shared::cta", Space::Shared), ("global", Space::Global)];
    let to_shared = (line.choice(&sides), line.choice(&sides)) == (Some(Space::Shared), Some(Space::Global));
    if !line.flag("mbarrier::complete_tx::bytes") || !to_shared {
        return line.refuse();
    }
    let policy = line.flag("L2::cache_hint");
    line.done()?;
    line.exactly(3 + usize::from(policy))?;
    if policy {
        line.source(3, T::B64)?;
    }
    let (map, coordinates) = line.tensor(1)?;
    if Some(coordinates.len()) != rank {
        return Err(Refusal::Elements { expected: rank.unwrap_or(1), found: coordinates.len() });
    }
    let coordinate = |part| Ok(Typed { slot: line.source_in(part, T::S32)?, class: Class::Word });
    let coordinates = coordinates.iter().map(coordinate).collect::<Decoded<_>>()?;
    let (to, barrier) = (line.address(0)?, line.address(2)?);
    Ok(Op::TensorCopy(Box::new(TensorCopy { to, map, coordinates, barrier })))
}

pub(crate) fn execute(context: &mut Context<'_>, op: &TensorCopy) -> Done {
    let [to, barriers] =
        [&op.to, &op.barrier].map(|at| context.addresses(at).map(|at| generic(Space::Shared, at)));
    let maps = context.addresses(&op.map);
    let coordinates: Vec<Row<u64>> =
        op.coordinates.iter().map(|typed| context.rows.wide(typed.slot, typed.class)).collect();
    for lane in context.active() {
        *context.culprit = Some(lane);
        let map = read_map(context, lane, maps[lane])?;
        let at: Vec<i64> = coordinates.iter().map(|row| i64::from(row[lane] as u32 as i32)).collect();
        start(context, lane, &map, &at, (to[lane], barriers[lane]))?;
    }
    *context.progress += 1;
    Ok(())
}

/// The map at a generic address.
fn read_map(context: &mut Context<'_>, lane: usize, address: u64) -> Done<TensorMap> {
    if !address.is_multiple_of(TENSOR_MAP_ALIGN) {
        return Err(Cause::Misaligned { address, bytes: TENSOR_MAP_ALIGN as u32 });
    }
    let access = context.access(lane, Order::Weak, Scope::Cta);
    let mut words = [0; 16];
    for (at, word) in (address..).step_by(8).zip(&mut words) {
        *word = match region_of(at) {
            (Region::Params, offset) => context.privates.params[lane].load(offset, 8)?,
            (Region::Memory, _) => context.memory.load(&access, at, Width::B8)?,
            (Region::Local, _) => return Err(Cause::PrivateAddress { address }),
        };
    }
    TensorMap::decode(&words).ok_or(Cause::TensorMap { address, why: "no tensor map was encoded there" })
}

fn start(
    context: &mut Context<'_>,
    lane: usize,
    map: &TensorMap,
    at: &[i64],
    (to, barrier): (u64, u64),
) -> Done {
    if at.len() != map.dims.len() {
        let (address, why) = (map.address, "the map has not as many dimensions as the instruction");
        return Err(Cause::TensorMap { address, why });
    }
    let row_bytes = map.row_bytes() as usize;
    let mut bytes = vec![0; row_bytes * map.rows() as usize];
    if !to.is_multiple_of(BOX_ALIGN) {
        let (bytes, from, why) = (bytes.len() as u64, map.address, "a box lies at a multiple of 128");
        return Err(Cause::AsyncCopy { bytes, from, to, why });
    }
    let thread = context.thread(lane);
    let agent = context.memory.begin_proxy(thread);
    let access = Access::weak(agent, context.site);
    let mut row = vec![0; row_bytes];
    for (index, place) in bytes.chunks_exact_mut(row_bytes).enumerate() {
        let Some((from, inside)) = row_inside(map, at, index as u64) else { continue };
        row.fill(0);
        context.memory.read_by(&access, from, &mut row[inside])?;
        permute(map.swizzle, to + (index * row_bytes) as u64, &row, place);
    }
    let (site, number) = (context.site, context.asynchronous.next_number());
    let copy = Pending { agent, reader: None, site, thread: thread.index, number, to, bytes };
    context.asynchronous.signal_bytes(barrier, copy);
    Ok(())
}

/// Where the part of a box's row that lies inside the tensor begins, and which of the row's bytes it is.
fn row_inside(map: &TensorMap, at: &[i64], mut index: u64) -> Option<(u64, Range<usize>)> {
    let mut from = map.address;
    for (dimension, stride) in (1..).zip(&map.strides_bytes) {
        let elements = u64::from(map.box_dims[dimension]);
        let coordinate = u64::try_from(at[dimension] + (index % elements) as i64).ok()?;
        if coordinate >= map.dims[dimension] {
            return None;
        }
        from += coordinate * stride;
        index /= elements;
    }
    let end = (at[0] + i64::from(map.box_dims[0])).min(map.dims[0] as i64);
    let begin = at[0].max(0);
    if begin >= end {
        return None;
    }
    let bytes = |elements: i64| elements as usize * map.element_bytes as usize;
    Some((from + bytes(begin) as u64, bytes(begin - at[0])..bytes(end - at[0])))
}

/// A row of a box as it lies at `to`: in the 128-byte swizzle, unit c of 16 bytes changes places by bits 7 to 9 of its
/// address, and stays among the 128 bytes.
fn permute(swizzle: Swizzle, to: u64, row: &[u8], place: &mut [u8]) {
    if swizzle == Swizzle::None {
        return place.copy_from_slice(row);
    }
    let by = (to >> 7) as usize & 7;
    for (unit, bytes) in row.chunks_exact(16).enumerate() {
        place[(unit ^ by) * 16..][..16].copy_from_slice(bytes);
    }
}
