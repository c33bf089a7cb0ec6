//! Asynchronous copies: `cp.async` and its groups, `cp.async.bulk` with mbarriers and bulk groups; `st.async`.
//!
//! Sources are read when a copy is issued; destinations are written as late as PTX allows: when its group is
//! waited for, or, for copies that signal an mbarrier, at a moment that the scheduler chooses; a bulk copy that is only
//! waited for with `.read`, at the end of its block. So whoever reads a destination too early sees what was there
//! before. Nothing but such a wait completes a copy (PTX ISA, "cp.async"): one that still uses shared memory of its
//! block when that ends is a fault. Clusters are refused.

use super::address::{Region, generic, is_misplaced, region_of};
use super::context::{Cause, Context, Done};
use super::mbarrier;
pub(crate) use super::pending::{AsyncState, Late};
use super::pending::{Groups, Parcel, Pending};
use super::rows::Class;
use super::tensor;
use crate::memory::{Access, Memory, SHARED_WINDOW, Thread, Width, cluster_offset};
use crate::program::{Address, Decoded, Line, Op, Refusal, Typed, class_of};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["cp"];

#[derive(Debug, Clone)]
pub(crate) enum Async {
    /// `cp.async`: bytes to write, and the operand that says how many of them to read.
    Copy {
        to: Address,
        from: Address,
        bytes: u32,
        read: Option<Typed>,
    },
    Commit {
        bulk: bool,
    },
    /// All but so many groups of the thread; `None` for all copies.
    Wait {
        bulk: bool,
        left: Option<u32>,
    },
    /// `.read`: until the sources of all but so many bulk groups have been read.
    WaitForReads {
        left: u32,
    },
    /// `cp.async.mbarrier.arrive`
    Arrive {
        address: Address,
        space: Space,
        increments: bool,
    },
    Bulk {
        to: Address,
        to_space: Space,
        from: Address,
        from_space: Space,
        bytes: Typed,
        barrier: Option<Address>,
    },
    /// `st.async`: to shared memory of the cluster, whose mbarrier is told.
    Store {
        to: Address,
        width: Width,
        elements: Box<[Typed]>,
        barrier: Address,
    },
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if !line.flag("async") {
        return line.refuse();
    }
    if line.flag("bulk") {
        return bulk(line);
    }
    if line.flag("mbarrier") {
        if !line.flag("arrive") {
            return line.refuse();
        }
        let increments = !line.flag("noinc");
        let space = line.space();
        line.ty()?;
        line.exactly(1)?;
        return Ok(boxed(Async::Arrive { address: line.address(0)?, space, increments }));
    }
    if let Some(op) = groups(line, false)? {
        return Ok(boxed(op));
    }
    let cache_all = line.flag("ca");
    let global_only = line.flag("cg");
    let spaces = (line.space(), line.space());
    if spaces != (Space::Shared, Space::Global) || cache_all == global_only {
        return line.refuse();
    }
    let policy = line.flag("L2::cache_hint");
    line.prefixed("L2::");
    let bytes = match line.literal(2)? {
        bytes @ (4 | 8 | 16) if bytes == 16 || !global_only => bytes as u32,
        _ => return line.refuse(),
    };
    line.between(3, 4 + usize::from(policy))?;
    if policy {
        line.source(line.count() - 1, T::B64)?;
    }
    let sized = line.count() - usize::from(policy) == 4;
    let read = if sized { Some(Typed { slot: line.source(3, T::U32)?, class: Class::Word }) } else { None };
    Ok(boxed(Async::Copy { to: line.address(0)?, from: line.address(1)?, bytes, read }))
}

/// `st.async`, whose `.async` is taken.
pub(crate) fn decode_store(line: &mut Line<'_, '_>) -> Decoded<Op> {
    line.flag("weak");
    let to_cluster = line.flag("shared::cluster");
    if !to_cluster || !line.flag("mbarrier::complete_tx::bytes") {
        return line.refuse();
    }
    let lanes = line.choice(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
    let ty = line.ty()?;
    line.exactly(3)?;
    let parts = line.elements(1)?;
    let width = match ty.bytes() {
        4 => Width::B4,
        8 => Width::B8,
        _ => return line.refuse(),
    };
    if parts.len() != lanes {
        return line.refuse();
    }
    let class = class_of(ty);
    let source = |line: &mut Line<'_, '_>, index: usize| -> Decoded<Typed> {
        let typed = line.any_source_in(&line.elements(1)?[index], ty)?;
        if typed.class == class { Ok(typed) } else { line.refuse() }
    };
    let elements = (0..lanes).map(|index| source(line, index)).collect::<Decoded<Box<[Typed]>>>()?;
    Ok(boxed(Async::Store { to: line.address(0)?, width, elements, barrier: line.address(2)? }))
}

fn boxed(op: Async) -> Op {
    Op::Async(Box::new(op))
}

/// `commit_group`, `wait_group`, `wait_all`.
fn groups(line: &mut Line<'_, '_>, bulk: bool) -> Decoded<Option<Async>> {
    if line.flag("commit_group") {
        line.exactly(0)?;
        return Ok(Some(Async::Commit { bulk }));
    }
    if !bulk && line.flag("wait_all") {
        line.exactly(0)?;
        return Ok(Some(Async::Wait { bulk, left: None }));
    }
    if line.flag("wait_group") {
        let reads = bulk && line.flag("read");
        line.exactly(1)?;
        let Ok(left) = u32::try_from(line.literal(0)?) else { return line.refuse() };
        return Ok(Some(if reads {
            Async::WaitForReads { left }
        } else {
            Async::Wait { bulk, left: Some(left) }
        }));
    }
    Ok(None)
}

fn bulk(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if line.flag("tensor") {
        return tensor::decode(line);
    }
    if let Some(op) = groups(line, true)? {
        return Ok(boxed(op));
    }
    if line.flag("prefetch") {
        line.flag("L2");
        line.space();
        line.flag("L2::cache_hint");
        line.address(0)?;
        return Ok(Op::Nop);
    }
    let signals = line.flag("mbarrier::complete_tx::bytes");
    if line.flag("multicast::cluster") {
        return Err(Refusal::Cluster("multicast copies"));
    }
    // A cluster of one block is that block: shared::cluster names its own memory.
    let sides =
        [("shared::cluster", Space::Shared), ("shared::cta", Space::Shared), ("global", Space::Global)];
    let (Some(to_space), Some(from_space)) = (line.choice(&sides), line.choice(&sides)) else {
        return line.refuse();
    };
    let grouped = line.flag("bulk_group");
    let policy = line.flag("L2::cache_hint");
    let wanted = if signals { (Space::Shared, Space::Global) } else { (Space::Global, Space::Shared) };
    if (to_space, from_space) != wanted || signals == grouped {
        return line.refuse();
    }
    line.exactly(3 + usize::from(signals) + usize::from(policy))?;
    let barrier = if signals { Some(line.address(3)?) } else { None };
    if policy {
        line.source(line.count() - 1, T::B64)?;
    }
    let (to, from) = (line.address(0)?, line.address(1)?);
    let bytes = Typed { slot: line.source(2, T::U32)?, class: Class::Word };
    Ok(boxed(Async::Bulk { to, to_space, from, from_space, bytes, barrier }))
}

pub(crate) fn execute(context: &mut Context<'_>, op: &Async) -> Done {
    match op {
        Async::Copy { to, from, bytes, read } => copy(context, to, from, *bytes, *read),
        Async::Commit { bulk } => {
            for lane in context.active() {
                let groups = groups_of(context, lane, *bulk);
                let group = std::mem::take(&mut groups.open);
                groups.agent = None;
                groups.closed.push_back(group);
            }
            Ok(())
        }
        Async::Wait { bulk, left } => {
            for lane in context.active() {
                *context.culprit = Some(lane);
                let thread = context.thread(lane);
                let waited = context.asynchronous.wait(context.memory, thread, *bulk, *left);
                waited.map_err(|late| late.cause)?;
            }
            Ok(())
        }
        Async::WaitForReads { left } => {
            for lane in context.active() {
                let thread = context.thread(lane);
                context.asynchronous.wait_for_reads(context.memory, thread, *left);
            }
            Ok(())
        }
        Async::Arrive { address, space, increments } => {
            let addresses = context.addresses(address).map(|at| generic(*space, at));
            for lane in context.active() {
                *context.culprit = Some(lane);
                if *increments {
                    mbarrier::expect_arrival(context, lane, addresses[lane])?;
                }
                let thread = context.thread(lane);
                let agent = context.memory.begin_async(thread);
                context.asynchronous.signal_copies(addresses[lane], thread.index, agent, context.site);
            }
            *context.progress += 1;
            Ok(())
        }
        Async::Bulk { .. } => start_bulk(context, op),
        Async::Store { to, width, elements, barrier } => store(context, to, *width, elements, barrier),
    }
}

fn groups_of<'c>(context: &'c mut Context<'_>, lane: usize, bulk: bool) -> &'c mut Groups {
    let thread = context.first.index + lane as u32;
    context.asynchronous.groups_of(thread, bulk)
}

fn copy(context: &mut Context<'_>, to: &Address, from: &Address, bytes: u32, read: Option<Typed>) -> Done {
    let to = context.addresses(to).map(|at| generic(Space::Shared, at));
    let from = context.addresses(from);
    let read = read.map(|typed| context.rows.wide(typed.slot, typed.class));
    for lane in context.active() {
        *context.culprit = Some(lane);
        let (to, from) = (to[lane], from[lane]);
        let read = read.map_or(u64::from(bytes), |row| row[lane] & 0xFFFF_FFFF);
        let misaligned = [to, from].into_iter().find(|at| at % u64::from(bytes) != 0);
        if let Some(address) = misaligned {
            return Err(Cause::Misaligned { address, bytes });
        }
        if is_misplaced(Space::Global, from) {
            return Err(Cause::WrongSpace { address: from });
        }
        if read > u64::from(bytes) {
            return Err(Cause::AsyncCopy { bytes: read, from, to, why: "it reads more than it writes" });
        }
        let thread = context.thread(lane);
        let agent = agent(context, lane, thread);
        let mut data = vec![0; bytes as usize];
        if read > 0 {
            let access = Access::weak(agent, context.site);
            read_lane(context.memory, &access, from, &mut data[..read as usize])?;
        }
        let (site, number) = (context.site, context.asynchronous.next_number());
        let copy = Pending { agent, reader: None, site, thread: thread.index, number, to, bytes: data };
        groups_of(context, lane, false).open.copies.push(copy);
    }
    Ok(())
}

/// The agent of a copy that the lane starts now. Of one group, copies behind something that the thread has waited for
/// come after it, and those before do not.
fn agent(context: &mut Context<'_>, lane: usize, thread: Thread) -> Thread {
    let now = context.memory.moment(thread);
    if let Some((agent, since)) = groups_of(context, lane, false).agent
        && since == now
    {
        return agent;
    }
    let agent = context.memory.begin_async(thread);
    // Beginning is a moment of its own.
    let now = context.memory.moment(thread);
    groups_of(context, lane, false).agent = Some((agent, now));
    agent
}

/// Reads up to 16 bytes from an address aligned to the copy's size, in the widest pieces.
fn read_lane(memory: &mut Memory, access: &Access, from: u64, out: &mut [u8]) -> Done {
    let mut at = 0;
    while at < out.len() {
        let left = out.len() - at;
        let step = [8, 4, 2, 1]
            .into_iter()
            .find(|&step| step <= left && (from + at as u64).is_multiple_of(step as u64));
        let step = step.unwrap_or(1);
        let Some(width) = Width::from_bytes(step as u64) else { return Ok(()) };
        let value = memory.load(access, from + at as u64, width)?;
        out[at..at + step].copy_from_slice(&value.to_le_bytes()[..step]);
        at += step;
    }
    Ok(())
}

fn start_bulk(context: &mut Context<'_>, op: &Async) -> Done {
    let Async::Bulk { to, to_space, from, from_space, bytes, barrier } = op else { return Ok(()) };
    let to = context.addresses(to).map(|at| generic(*to_space, at));
    let from = context.addresses(from).map(|at| generic(*from_space, at));
    let sizes = context.rows.wide(bytes.slot, bytes.class);
    let barriers = barrier.map(|address| context.addresses(&address).map(|at| generic(Space::Shared, at)));
    for lane in context.active() {
        *context.culprit = Some(lane);
        let (to, from, bytes) = (to[lane], from[lane], sizes[lane] & 0xFFFF_FFFF);
        if bytes % 16 != 0 || to % 16 != 0 || from % 16 != 0 {
            return Err(Cause::AsyncCopy {
                bytes,
                from,
                to,
                why: "addresses and size must be multiples of 16",
            });
        }
        if let Some((_, address)) =
            [(*to_space, to), (*from_space, from)].into_iter().find(|&(space, at)| is_misplaced(space, at))
        {
            return Err(Cause::WrongSpace { address });
        }
        if region_of(to).0 != Region::Memory || region_of(from).0 != Region::Memory {
            return Err(Cause::AsyncCopy { bytes, from, to, why: "neither side may be private memory" });
        }
        let thread = context.thread(lane);
        let agent = context.memory.begin_proxy(thread);
        // Of a group, reads can be waited for without the writes.
        let reader = barriers.is_none().then(|| context.memory.begin_proxy(thread));
        let mut data = vec![0; bytes as usize];
        let access = Access::weak(reader.unwrap_or(agent), context.site);
        context.memory.read_by(&access, from, &mut data)?;
        let (site, number) = (context.site, context.asynchronous.next_number());
        let copy = Pending { agent, reader, site, thread: thread.index, number, to, bytes: data };
        match barriers {
            Some(row) => context.asynchronous.signal_bytes(row[lane], copy),
            None => groups_of(context, lane, true).open.copies.push(copy),
        }
    }
    *context.progress += 1;
    Ok(())
}

/// Sends values to shared memory of a block of the cluster, whose mbarrier learns of their bytes.
fn store(
    context: &mut Context<'_>,
    to: &Address,
    width: Width,
    elements: &[Typed],
    barrier: &Address,
) -> Done {
    let [to, barriers] =
        [to, barrier].map(|at| context.addresses(at).map(|at| generic(Space::SharedCluster, at)));
    let values: Vec<_> = elements.iter().map(|typed| context.rows.wide(typed.slot, typed.class)).collect();
    let size = width.bytes() as usize;
    for lane in context.active() {
        *context.culprit = Some(lane);
        let (to, barrier) = (to[lane], barriers[lane]);
        let bytes: Vec<u8> =
            values.iter().flat_map(|row| row[lane].to_le_bytes().into_iter().take(size)).collect();
        if !to.is_multiple_of(bytes.len() as u64) {
            return Err(Cause::Misaligned { address: to, bytes: bytes.len() as u32 });
        }
        let [rank, other] = [to, barrier].map(|at| cluster_offset(at - SHARED_WINDOW).0);
        if rank != other {
            let (bytes, from) = (bytes.len() as u64, barrier);
            let why = "an asynchronous store and its mbarrier lie in one block (the second address is the mbarrier's)";
            return Err(Cause::AsyncCopy { bytes, from, to, why });
        }
        let thread = context.thread(lane);
        let agent = context.memory.begin_async(thread);
        let (site, number) = (context.site, context.asynchronous.next_number());
        let store = Pending { agent, reader: None, site, thread: thread.index, number, to, bytes };
        let rank = rank.unwrap_or_else(|| context.environment.cluster_rank());
        context.cluster.parcels.push(Parcel { rank, barrier, store });
    }
    *context.progress += 1;
    Ok(())
}
