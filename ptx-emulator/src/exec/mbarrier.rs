//! `mbarrier` objects (PTX ISA, "mbarrier"): arrivals and bytes that a phase waits for.
//!
//! The object is its 64-bit word: pending and expected arrivals, transaction count and phase, changed by
//! atomic accesses, so that memory checks them like any other. Order is kept in clocks beside it, by the object's
//! address in its own block: `st.async` completes bytes of objects of other blocks of the cluster.

use std::collections::{BTreeMap, HashMap};

use super::access::SCOPES;
use super::address::generic;
use super::context::{Cause, Context, Done, lanes};
use super::phase::{COUNT_MASK, VALID, advanced, transactions, word};
use super::rows::{Class, LANES, Row, Slot};
use crate::memory::{Access, Clock, Memory, Order, SHARED_WINDOW, Scope, Width, cluster_offset};
use crate::program::{Address, Decoded, Line, Op, Refusal, Typed, class_of};
use crate::text::{Operand, ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["mbarrier"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Init,
    Invalidate,
    Arrive { expects: bool, drops: bool },
    ExpectBytes,
    CompleteBytes,
    Test { parity: bool },
    PendingCount,
}

#[derive(Debug, Clone)]
pub(crate) struct Operation {
    kind: Kind,
    /// Orders nothing; else arrivals release, and tests acquire.
    relaxed: bool,
    /// A test acquires what other blocks of the cluster have released, too.
    acquires_cluster: bool,
    /// The phase may not end with this arrival.
    no_complete: bool,
    space: Space,
    address: Option<Address>,
    d: Typed,
    /// Count, bytes, state or parity.
    operand: Option<Typed>,
}

/// Whether a failed attempt gives way to other warps.
impl Operation {
    pub(crate) fn is_test(&self) -> bool {
        matches!(self.kind, Kind::Test { .. })
    }
}

/// What has been released into the current and by the last phase of each object, by address.
#[derive(Debug, Default)]
pub(crate) struct PhaseClocks {
    clocks: HashMap<u64, Released>,
    /// The objects as they were left, for reports.
    words: BTreeMap<u64, u64>,
}

/// What threads of the block, and those of other blocks of its cluster, have released.
#[derive(Debug, Default)]
struct Released {
    now: [Clock; 2],
    last: [Clock; 2],
}

/// Operations on an object are atomic for the whole cluster; their own scope says what they order.
pub(super) const OBJECT: Scope = Scope::Cluster;

const BLOCK: usize = 0;
const CLUSTER: usize = 1;

/// The address in its own block of an object in the window of shared memory.
fn at_home(address: u64) -> u64 {
    SHARED_WINDOW + cluster_offset(address.wrapping_sub(SHARED_WINDOW)).1
}

impl PhaseClocks {
    /// What the present phases of a block's objects still wait for.
    pub(crate) fn missing(&self) -> String {
        let object = |(address, word): (&u64, &u64)| {
            let (arrivals, bytes) = (word & COUNT_MASK, transactions(*word));
            format!("at {address:#x} {arrivals} arrivals and {bytes} bytes are missing")
        };
        self.words.iter().map(object).collect::<Vec<_>>().join("; ")
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let kinds = [
        ("init", Kind::Init),
        ("inval", Kind::Invalidate),
        ("arrive", Kind::Arrive { expects: false, drops: false }),
        ("arrive_drop", Kind::Arrive { expects: false, drops: true }),
        ("complete_tx", Kind::CompleteBytes),
        ("test_wait", Kind::Test { parity: false }),
        ("try_wait", Kind::Test { parity: false }),
        ("pending_count", Kind::PendingCount),
    ];
    let expects = line.flag("expect_tx");
    let kind = match line.choice(&kinds) {
        Some(Kind::Arrive { drops, .. }) => Kind::Arrive { expects, drops },
        Some(Kind::Test { .. }) => Kind::Test { parity: line.flag("parity") },
        None if expects => Kind::ExpectBytes,
        Some(kind) if !expects => kind,
        _ => return line.refuse(),
    };
    let no_complete = line.flag("noComplete");
    let orders = [("release", Order::Release), ("acquire", Order::Acquire), ("relaxed", Order::Relaxed)];
    let order = line.choice(&orders);
    let orderly = match (order, kind) {
        (None, _) => true,
        (Some(Order::Release), kind) => matches!(kind, Kind::Arrive { .. }),
        (Some(Order::Acquire), kind) => matches!(kind, Kind::Test { .. }),
        (_, kind) => !matches!(kind, Kind::Init | Kind::Invalidate | Kind::PendingCount),
    };
    if !orderly || no_complete && !matches!(kind, Kind::Arrive { expects: false, .. }) {
        return line.refuse();
    }
    let scope = line.choice(&SCOPES);
    if scope == Some(Scope::Cluster) && matches!(kind, Kind::Arrive { .. }) && line.flag("shared::cluster") {
        return Err(Refusal::Cluster("remote arrivals on an mbarrier"));
    }
    let space = line.space();
    if !matches!(space, Space::Shared | Space::Generic) {
        return line.refuse();
    }
    line.ty()?;
    let none = Typed { slot: Slot::NONE, class: Class::Word };
    let relaxed = order == Some(Order::Relaxed);
    let acquires_cluster = scope.is_some_and(|scope| scope != Scope::Cta);
    let mut op = Operation {
        kind,
        relaxed,
        acquires_cluster,
        no_complete,
        space,
        address: None,
        d: none,
        operand: None,
    };
    // Arrivals and expect_tx may have no destination.
    let result = match kind {
        Kind::Arrive { .. } => !matches!(line.operand(0)?, Operand::Address(..)),
        Kind::Test { .. } | Kind::PendingCount => true,
        _ => false,
    };
    let first = usize::from(result);
    if result {
        let ty = match kind {
            Kind::Test { .. } => T::Pred,
            Kind::PendingCount => T::U32,
            _ => T::B64,
        };
        op.d = Typed { slot: line.destination(0, ty)?, class: class_of(ty) };
    }
    if kind == Kind::PendingCount {
        line.exactly(2)?;
        op.operand = Some(Typed { slot: line.source(1, T::B64)?, class: Class::Double });
        return Ok(Op::Mbarrier(Box::new(op)));
    }
    op.address = Some(line.address(first)?);
    let operand_type = if kind == (Kind::Test { parity: false }) { T::B64 } else { T::B32 };
    let hinted = matches!(kind, Kind::Test { .. });
    let required = !matches!(kind, Kind::Invalidate | Kind::Arrive { expects: false, .. });
    line.between(first + 1 + usize::from(required), first + 2 + usize::from(hinted))?;
    if line.count() > first + 1 {
        op.operand =
            Some(Typed { slot: line.source(first + 1, operand_type)?, class: class_of(operand_type) });
    }
    if line.count() > first + 2 {
        line.source(first + 2, T::U32)?;
    }
    Ok(Op::Mbarrier(Box::new(op)))
}

/// What happens to an object.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    arrivals: u64,
    drops: u64,
    bytes: i64,
    /// What the thread did before is for those who wait to see.
    releases: bool,
    no_complete: bool,
    /// By another block of the cluster.
    from_cluster: bool,
}

/// Changes the object at `address` for `access`'s agent; returns the old word.
fn change(
    memory: &mut Memory,
    clocks: &mut PhaseClocks,
    access: &Access,
    address: u64,
    change: Change,
) -> Done<u64> {
    let mut outcome = Ok((0, false));
    let old = memory.rmw(access, address, Width::B8, |old| {
        outcome = advanced(address, old, change.arrivals, change.drops, change.bytes);
        outcome.as_ref().ok().map(|new| new.0)
    })?;
    let (new, ended) = outcome?;
    if ended && change.no_complete {
        return Err(Cause::MbarrierCount {
            address,
            why: "`.noComplete` is said of the arrival that ends the phase",
        });
    }
    let home = at_home(address);
    clocks.words.insert(home, new);
    let entry = clocks.clocks.entry(home).or_default();
    let from = if change.from_cluster { CLUSTER } else { BLOCK };
    if access.thread.async_copy().is_some() {
        memory.end_async(access.thread, &mut entry.now[from]);
    } else if change.releases {
        memory.release(access.thread, &mut entry.now[from]);
    }
    if ended {
        entry.last = std::mem::take(&mut entry.now);
    }
    Ok(old)
}

/// The present phase waits for one arrival more: `cp.async.mbarrier.arrive` without `.noinc`, when it is issued.
pub(crate) fn expect_arrival(context: &mut Context<'_>, lane: usize, address: u64) -> Done {
    let access = context.access(lane, Order::Relaxed, OBJECT);
    let mut outcome = Ok(0);
    context.memory.rmw(&access, address, Width::B8, |old| {
        outcome = match old & COUNT_MASK {
            _ if old & VALID == 0 => Err(Cause::MbarrierState { address }),
            COUNT_MASK => {
                Err(Cause::MbarrierCount { address, why: "more than 2^20 - 1 arrivals are pending" })
            }
            _ => Ok(old + 1),
        };
        outcome.as_ref().ok().copied()
    })?;
    context.asynchronous.phases.words.insert(at_home(address), outcome?);
    Ok(())
}

/// One arrival by an asynchronous agent, behind the copies that have `ended`.
pub(crate) fn arrive_behind(
    memory: &mut Memory,
    clocks: &mut PhaseClocks,
    access: &Access,
    address: u64,
    ended: &Clock,
) -> Done {
    memory.join(&mut clocks.clocks.entry(at_home(address)).or_default().now[BLOCK], ended);
    change(memory, clocks, access, address, Change { arrivals: 1, ..Change::default() })?;
    Ok(())
}

/// An asynchronous copy, `access`'s agent, has written its bytes and ends.
pub(crate) fn complete_bytes(
    memory: &mut Memory,
    clocks: &mut PhaseClocks,
    access: &Access,
    address: u64,
    bytes: u64,
    from_cluster: bool,
) -> Done {
    let amount = Change { bytes: -(bytes as i64), from_cluster, ..Change::default() };
    change(memory, clocks, access, address, amount)?;
    Ok(())
}

pub(crate) fn execute(context: &mut Context<'_>, op: &Operation) -> Done {
    let operand = op.operand.map(|typed| context.rows.wide(typed.slot, typed.class));
    let Some(address) = op.address else {
        let states = operand.unwrap_or([0; LANES]);
        context.rows.put_wide(op.d.slot, op.d.class, &states.map(|state| state & COUNT_MASK));
        return Ok(());
    };
    let addresses = context.addresses(&address).map(|at| generic(op.space, at));
    let mut result: Row<u64> = [0; LANES];
    for lane in lanes(context.rows.mask) {
        *context.culprit = Some(lane);
        let value = operand.map(|row| row[lane]);
        result[lane] = lane_operation(context, op, lane, addresses[lane], value)?;
    }
    context.rows.put_wide(op.d.slot, op.d.class, &result);
    Ok(())
}

fn lane_operation(
    context: &mut Context<'_>,
    op: &Operation,
    lane: usize,
    address: u64,
    value: Option<u64>,
) -> Done<u64> {
    let access = context.access(lane, Order::Relaxed, OBJECT);
    let count = value.unwrap_or(1) & 0xFFFF_FFFF;
    let Operation { kind, relaxed, acquires_cluster, no_complete, .. } = *op;
    let (arrivals, drops, bytes) = match kind {
        Kind::Init => {
            if count == 0 || count > COUNT_MASK {
                return Err(Cause::MbarrierCount {
                    address,
                    why: "the count of arrivals must be 1 to 2^20 - 1",
                });
            }
            let init = context.memory.begin_init(access.thread);
            let plain = Access::weak(init, access.site);
            context.memory.store(&plain, address, Width::B8, word(0, 0, count, count))?;
            context.memory.end_init(access.thread, init);
            context.asynchronous.phases.clocks.remove(&at_home(address));
            context.asynchronous.phases.words.insert(at_home(address), word(0, 0, count, count));
            return Ok(0);
        }
        Kind::Invalidate => {
            let plain = Access::weak(access.thread, access.site);
            context.memory.store(&plain, address, Width::B8, 0)?;
            context.asynchronous.phases.words.remove(&at_home(address));
            return Ok(0);
        }
        Kind::Test { parity } => {
            let scopes: &[usize] = match (relaxed, acquires_cluster) {
                (true, _) => &[],
                (false, false) => &[BLOCK],
                (false, true) => &[BLOCK, CLUSTER],
            };
            return test(context, lane, address, (parity, value.unwrap_or(0)), scopes);
        }
        Kind::Arrive { expects: false, drops } => (count, if drops { count } else { 0 }, 0),
        // Bytes are expected before the arrival, in one step.
        Kind::Arrive { expects: true, drops } => (1, u64::from(drops), count as i64),
        Kind::ExpectBytes => (0, 0, count as i64),
        Kind::CompleteBytes => (0, 0, -(count as i64)),
        Kind::PendingCount => return Ok(0),
    };
    *context.progress += 1;
    // Only arrivals release (PTX ISA, "mbarrier.arrive"); changes of the bytes alone are relaxed.
    let releases = arrivals > 0 && !relaxed;
    let amount = Change { arrivals, drops, bytes, releases, no_complete, from_cluster: false };
    change(context.memory, &mut context.asynchronous.phases, &access, address, amount)
}

/// Whether the phase of `state` (or the last phase of that parity) has ended; if so, acquires what was released into
/// it from those `scopes`.
fn test(
    context: &mut Context<'_>,
    lane: usize,
    address: u64,
    (parity, state): (bool, u64),
    scopes: &[usize],
) -> Done<u64> {
    let access = context.access(lane, Order::Relaxed, OBJECT);
    let word = context.memory.load(&access, address, Width::B8)?;
    if word & VALID == 0 {
        return Err(Cause::MbarrierState { address });
    }
    let phase = word >> 63;
    let asked = if parity { state & 1 } else { state >> 63 };
    if phase == asked {
        return Ok(0);
    }
    let thread = context.thread(lane);
    if let Some(released) = context.asynchronous.phases.clocks.get(&at_home(address)) {
        scopes.iter().for_each(|&scope| context.memory.acquire(thread, &released.last[scope]));
    }
    Ok(1)
}
