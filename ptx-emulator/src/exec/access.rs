//! `ld`, `st` and fences (PTX ISA, "Data Movement and Conversion Instructions", "Parallel Synchronization").

use super::address::{Region, generic, is_misplaced, region_of};
use super::context::{Cause, Context, Done};
use super::rows::{LANES, Row, each};
use crate::memory::{Order, Scope, Width};
use crate::program::{Address, Decoded, Line, Op, Typed};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &[
    "ld",
    "ldu",
    "st",
    "fence",
    "membar",
    "prefetch",
    "prefetchu",
    "discard",
    "applypriority",
    "createpolicy",
];

/// Each element of a vector is an access of its own.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) space: Space,
    pub(crate) width: Width,
    pub(crate) signed: bool,
    pub(crate) order: Order,
    pub(crate) scope: Scope,
    pub(crate) address: Address,
    pub(crate) elements: Box<[Typed]>,
}

#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) space: Space,
    pub(crate) width: Width,
    pub(crate) order: Order,
    pub(crate) scope: Scope,
    pub(crate) address: Address,
    pub(crate) elements: Box<[Typed]>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Fence {
    pub(crate) order: Order,
    pub(crate) scope: Scope,
}

pub(crate) const SCOPES: [(&str, Scope); 4] =
    [("cta", Scope::Cta), ("cluster", Scope::Cluster), ("gpu", Scope::Gpu), ("sys", Scope::Sys)];

const CACHE: [(&str, ()); 7] =
    [("ca", ()), ("cg", ()), ("cs", ()), ("lu", ()), ("cv", ()), ("wb", ()), ("wt", ())];

/// Takes `.weak`, `.relaxed.gpu`, `.volatile` and the like.
fn ordering(line: &mut Line<'_, '_>, strong: (&str, Order)) -> Decoded<(Order, Scope)> {
    let mmio = line.flag("mmio");
    let orders = [("weak", Order::Weak), ("relaxed", Order::Relaxed), strong];
    let order = line.choice(&orders);
    let scope = line.choice(&SCOPES);
    match (order, scope) {
        (None | Some(Order::Weak), None) if !mmio => {
            let volatile = line.flag("volatile");
            Ok(if volatile { (Order::Relaxed, Scope::Sys) } else { (Order::Weak, Scope::Cta) })
        }
        (Some(order), Some(scope)) if order != Order::Weak => Ok((order, scope)),
        _ => line.refuse(),
    }
}

/// Takes hints that change no result. A cache policy is an operand more.
fn hints(line: &mut Line<'_, '_>, at: usize) -> Decoded<()> {
    let policy = line.flag("L2::cache_hint");
    line.prefixed("L1::");
    line.prefixed("L2::");
    line.choice(&CACHE);
    if policy {
        line.source(at, T::B64)?;
        return line.exactly(at + 1);
    }
    line.exactly(at)
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    match line.name {
        "fence" | "membar" => return fence(line),
        "ld" | "ldu" | "st" => {}
        _ => return hint(line),
    }
    let load = line.name != "st";
    if !load && line.flag("async") {
        return super::asynchronous::decode_store(line);
    }
    let (order, scope) =
        ordering(line, if load { ("acquire", Order::Acquire) } else { ("release", Order::Release) })?;
    let space = line.space();
    line.flag("unified");
    line.flag("nc");
    hints(line, 2)?;
    let lanes = line.choice(&[("v2", 2), ("v4", 4), ("v8", 8)]);
    let ty = line.ty()?;
    let Some(width) = Width::from_bytes(u64::from(ty.bytes())) else { return line.refuse() };
    let (list, place) = if load { (0, 1) } else { (1, 0) };
    let address = line.address(place)?;
    let parts = line.elements(list)?;
    if parts.len() != lanes.unwrap_or(1) {
        return line.refuse();
    }
    let typed = |line: &mut Line<'_, '_>, index: usize| -> Decoded<Typed> {
        let part = &line.elements(list)?[index];
        if load { line.any_destination_in(part) } else { line.any_source_in(part, ty) }
    };
    let elements = (0..parts.len()).map(|index| typed(line, index)).collect::<Decoded<Vec<_>>>()?;
    let fits = |typed: &Typed| match typed.class {
        super::rows::Class::Double => true,
        super::rows::Class::Word => width != Width::B8,
        super::rows::Class::Pred => false,
    };
    if elements.iter().any(|typed| typed.slot != super::rows::Slot::NONE && !fits(typed)) {
        return line.refuse();
    }
    let elements = elements.into();
    Ok(if load {
        Op::Load(Box::new(Load { space, width, signed: ty.is_signed(), order, scope, address, elements }))
    } else {
        Op::Store(Box::new(Store { space, width, order, scope, address, elements }))
    })
}

/// Instructions about caches: their operands are checked, they change nothing.
fn hint(line: &mut Line<'_, '_>) -> Decoded<Op> {
    line.space();
    match line.name {
        "prefetch" | "prefetchu" => {
            const PLACES: [&str; 5] = ["L1", "L2", "L2::evict_last", "L2::evict_normal", "tensormap"];
            line.choice(&PLACES.map(|place| (place, ())));
            line.address(0)?;
        }
        "createpolicy" => {
            line.choice(&[("fractional", ()), ("range", ())]);
            line.prefixed("L2::");
            line.ty()?;
            line.destination(0, T::B64)?;
            // The policy is opaque; a zero marks it as written.
            let zero = line.builder.constant(super::rows::Class::Double, 0);
            let d = line.destination(0, T::B64)?;
            let slots = super::rows::Slots { d, a: zero.slot, ..super::rows::Slots::NONE };
            return line.rows(super::rows::lanes!(|a: u64| a), slots);
        }
        _ => {
            line.prefixed("L2::");
            line.flag("L2");
            line.address(0)?;
        }
    }
    Ok(Op::Nop)
}

fn fence(line: &mut Line<'_, '_>) -> Decoded<Op> {
    line.exactly(0)?;
    if line.flag("proxy") {
        if !line.flag("async") {
            // Nothing here has several addresses.
            return if line.flag("alias") { Ok(Op::Nop) } else { line.refuse() };
        }
        // Proxies are told apart in shared memory.
        return match line.space() {
            Space::Generic | Space::Shared | Space::SharedCluster => Ok(Op::ProxyFence),
            Space::Global => Ok(Op::Nop),
            _ => line.refuse(),
        };
    }
    if line.name == "membar" {
        let levels = [("cta", Scope::Cta), ("gl", Scope::Gpu), ("sys", Scope::Sys)];
        let Some(scope) = line.choice(&levels) else { return line.refuse() };
        return Ok(Op::Fence(Fence { order: Order::Sc, scope }));
    }
    if line.flag("mbarrier_init") {
        let is_whole = line.flag("release") && line.choice(&SCOPES) == Some(Scope::Cluster);
        return if is_whole { Ok(Op::InitFence) } else { line.refuse() };
    }
    let orders = [
        ("sc", Order::Sc),
        ("acq_rel", Order::AcqRel),
        ("acquire", Order::Acquire),
        ("release", Order::Release),
    ];
    let order = line.choice(&orders).unwrap_or(Order::AcqRel);
    let Some(scope) = line.choice(&SCOPES) else { return line.refuse() };
    Ok(Op::Fence(Fence { order, scope }))
}

/// How a set of lanes reaches memory.
enum Route {
    /// All through `Memory`, at these generic addresses.
    Memory(Row<u64>),
    /// Some in private memory: lane by lane.
    Mixed(Row<u64>),
}

fn route(context: &mut Context<'_>, space: Space, address: &Address, bytes: u64) -> Done<Route> {
    let mut row = context.addresses(address);
    let misaligned = each(&row, |at| at & (bytes - 1) != 0);
    for lane in context.active() {
        if misaligned[lane] {
            *context.culprit = Some(lane);
            return Err(Cause::Misaligned { address: row[lane], bytes: bytes as u32 });
        }
    }
    if space != Space::Generic && space != Space::Global {
        row = each(&row, |at| generic(space, at));
    }
    if matches!(space, Space::Global | Space::Const) {
        let misplaced = each(&row, |at| is_misplaced(space, at));
        if let Some(lane) = context.active().find(|&lane| misplaced[lane]) {
            *context.culprit = Some(lane);
            return Err(Cause::WrongSpace { address: row[lane] });
        }
    }
    let private = match space {
        Space::Global | Space::Shared | Space::SharedCluster | Space::Const => false,
        Space::Local | Space::Param => true,
        Space::Generic => {
            let outside = each(&row, |at| region_of(at).0 != Region::Memory);
            context.active().any(|lane| outside[lane])
        }
    };
    Ok(if private { Route::Mixed(row) } else { Route::Memory(row) })
}

pub(crate) fn load(context: &mut Context<'_>, op: &Load) -> Done {
    let step = op.width.bytes();
    let access = context.warp_access(context.rows.mask, op.order, op.scope);
    let route = route(context, op.space, &op.address, step * op.elements.len() as u64)?;
    let mut out: Row<u64> = [0; LANES];
    for (index, element) in op.elements.iter().enumerate() {
        let skip = index as u64 * step;
        match &route {
            Route::Memory(row) => {
                let row = each(row, |at| at.wrapping_add(skip));
                context.memory.load_lanes(&access, &row, op.width, &mut out)?;
            }
            Route::Mixed(row) => {
                for lane in context.active() {
                    *context.culprit = Some(lane);
                    out[lane] = load_lane(context, op, lane, row[lane].wrapping_add(skip))?;
                }
            }
        }
        if op.signed {
            let unused = 64 - 8 * step as u32;
            out = each(&out, |value| ((value << unused) as i64 >> unused) as u64);
        }
        context.rows.put_wide(element.slot, element.class, &out);
    }
    Ok(())
}

fn load_lane(context: &mut Context<'_>, op: &Load, lane: usize, address: u64) -> Done<u64> {
    let bytes = op.width.bytes() as usize;
    match region_of(address) {
        (Region::Local, offset) => context.privates.local[lane].load(offset, bytes),
        (Region::Params, offset) => context.privates.params[lane].load(offset, bytes),
        (Region::Memory, _) => {
            let access = context.access(lane, op.order, op.scope);
            Ok(context.memory.load(&access, address, op.width)?)
        }
    }
}

pub(crate) fn store(context: &mut Context<'_>, op: &Store) -> Done {
    let step = op.width.bytes();
    let access = context.warp_access(context.rows.mask, op.order, op.scope);
    let route = route(context, op.space, &op.address, step * op.elements.len() as u64)?;
    for (index, element) in op.elements.iter().enumerate() {
        let skip = index as u64 * step;
        let values = context.rows.wide(element.slot, element.class);
        match &route {
            Route::Memory(row) => {
                let row = each(row, |at| at.wrapping_add(skip));
                context.memory.store_lanes(&access, &row, op.width, &values)?;
            }
            Route::Mixed(row) => {
                for lane in context.active() {
                    *context.culprit = Some(lane);
                    store_lane(context, op, lane, row[lane].wrapping_add(skip), values[lane])?;
                }
            }
        }
    }
    Ok(())
}

fn store_lane(context: &mut Context<'_>, op: &Store, lane: usize, address: u64, value: u64) -> Done {
    let bytes = op.width.bytes() as usize;
    match region_of(address) {
        (Region::Local, offset) => context.privates.local[lane].store(offset, bytes, value),
        (Region::Params, offset) => context.privates.params[lane].store(offset, bytes, value),
        (Region::Memory, _) => {
            let access = context.access(lane, op.order, op.scope);
            Ok(context.memory.store(&access, address, op.width, value)?)
        }
    }
}

/// `fence.proxy.async`
pub(crate) fn execute_proxy_fence(context: &mut Context<'_>) {
    for lane in context.active() {
        context.memory.proxy_fence(context.thread(lane));
    }
}

/// `fence.mbarrier_init`
pub(crate) fn execute_init_fence(context: &mut Context<'_>) {
    for lane in context.active() {
        context.memory.fence_inits(context.thread(lane));
    }
}

pub(crate) fn execute_fence(context: &mut Context<'_>, op: &Fence) {
    for lane in context.active() {
        context.memory.fence(context.thread(lane), op.order, op.scope);
    }
}
