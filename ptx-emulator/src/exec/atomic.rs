//! `atom` and `red` (PTX ISA, "Parallel Synchronization and Communication Instructions").

use half::{bf16, f16};

use super::access::SCOPES;
use super::address::{Region, generic, is_misplaced, region_of};
use super::atomic128;
use super::context::{Cause, Context, Done};
use super::float::extreme_f32;
use super::halves::Small;
use super::rounding::{canonical, flush};
use super::rows::{Class, LANES, Row, Slot};
use crate::memory::{Order, Scope, Width};
use crate::program::{Address, Decoded, Line, Op, Typed, class_of};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["atom", "red"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Update {
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Add,
    Increment,
    Decrement,
    Min,
    Max,
}

#[derive(Debug, Clone)]
pub(crate) struct Atomic {
    update: Update,
    ty: T,
    space: Space,
    order: Order,
    scope: Scope,
    address: Address,
    /// Old values go here; empty for `red`.
    results: Box<[Typed]>,
    operands: Box<[Typed]>,
    /// The new value of a compare-and-swap, whose operand is the expected one.
    swap: Option<Typed>,
}

const UPDATES: [(&str, Update); 10] = [
    ("and", Update::And),
    ("or", Update::Or),
    ("xor", Update::Xor),
    ("exch", Update::Exchange),
    ("cas", Update::CompareAndSwap),
    ("add", Update::Add),
    ("inc", Update::Increment),
    ("dec", Update::Decrement),
    ("min", Update::Min),
    ("max", Update::Max),
];

fn fits(update: Update, ty: T) -> bool {
    match update {
        Update::And | Update::Or | Update::Xor => matches!(ty, T::B32 | T::B64),
        Update::Exchange => matches!(ty, T::B32 | T::B64 | T::U32 | T::U64 | T::S32 | T::S64 | T::F32),
        Update::CompareAndSwap => matches!(ty, T::B16 | T::B32 | T::B64 | T::U32 | T::U64 | T::S32 | T::S64),
        Update::Increment | Update::Decrement => ty == T::U32,
        Update::Add => {
            let integer = matches!(ty, T::U32 | T::S32 | T::U64 | T::S64);
            integer || matches!(ty, T::F32 | T::F64 | T::F16 | T::Bf16 | T::F16x2 | T::Bf16x2)
        }
        Update::Min | Update::Max => {
            let integer = matches!(ty, T::U32 | T::S32 | T::U64 | T::S64);
            integer || matches!(ty, T::F16 | T::Bf16 | T::F16x2 | T::Bf16x2)
        }
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let orders = [
        ("relaxed", Order::Relaxed),
        ("acquire", Order::Acquire),
        ("release", Order::Release),
        ("acq_rel", Order::AcqRel),
    ];
    // Without a qualifier: relaxed, device scope.
    let order = line.choice(&orders).unwrap_or(Order::Relaxed);
    let scope = line.choice(&SCOPES).unwrap_or(Scope::Gpu);
    let space = line.space();
    let Some(update) = line.choice(&UPDATES) else { return line.refuse() };
    line.flag("noftz");
    let policy = line.flag("L2::cache_hint");
    let vector = line.choice(&[("v2", 2), ("v4", 4), ("v8", 8)]);
    let ty = line.ty()?;
    if ty == T::B128 && vector.is_none() && !policy && line.name == "atom" {
        return atomic128::decode(line, update, (order, scope, space));
    }
    if !fits(update, ty) || !matches!(space, Space::Global | Space::Shared | Space::Generic) {
        return line.refuse();
    }
    let reduction = line.name == "red";
    let first = usize::from(!reduction);
    let operands = 2 + first + usize::from(update == Update::CompareAndSwap) + usize::from(policy);
    line.exactly(operands)?;
    let results = if reduction {
        Vec::new()
    } else {
        let parts = line.elements(0)?;
        let typed = |part| Ok(Typed { slot: line.destination_in(part, ty)?, class: class_of(ty) });
        parts.iter().map(typed).collect::<Decoded<Vec<_>>>()?
    };
    let address = line.address(first)?;
    let parts = line.elements(first + 1)?;
    let typed = |part| Ok(Typed { slot: line.source_in(part, ty)?, class: class_of(ty) });
    let values = parts.iter().map(typed).collect::<Decoded<Vec<_>>>()?;
    let swap = match update {
        Update::CompareAndSwap => Some(Typed { slot: line.source(first + 2, ty)?, class: class_of(ty) }),
        _ => None,
    };
    if policy {
        line.source(operands - 1, T::B64)?;
    }
    if values.len() != vector.unwrap_or(1) || (!reduction && results.len() != values.len()) {
        return line.refuse();
    }
    Ok(Op::Atomic(Box::new(Atomic {
        update,
        ty,
        space,
        order,
        scope,
        address,
        results: results.into(),
        operands: values.into(),
        swap,
    })))
}

fn small_pair<S: Small>(old: u64, value: u64, packed: bool, f: impl Fn(S, S) -> S) -> u64 {
    let one = |shift: u32| {
        u64::from(f(S::of_bits((old >> shift) as u16), S::of_bits((value >> shift) as u16)).bits())
    };
    if packed { one(0) | one(16) << 16 } else { one(0) }
}

fn small<S: Small>(update: Update, old: u64, value: u64, packed: bool) -> u64 {
    small_pair::<S>(old, value, packed, |a, b| match update {
        Update::Add => S::narrow(a.wide() + b.wide()),
        Update::Max => S::narrow(f64::from(extreme_f32(1 << 6, a.wide() as f32, b.wide() as f32))),
        _ => S::narrow(f64::from(extreme_f32(0, a.wide() as f32, b.wide() as f32))),
    })
}

fn add_f32(old: u64, value: u64, flushes: bool) -> u64 {
    let read = |bits: u64| f32::from_bits(bits as u32);
    let prepare = |value: f32| if flushes { flush(value) } else { value };
    u64::from(canonical(prepare(prepare(read(old)) + prepare(read(value)))).to_bits())
}

/// The new value; `None` leaves memory alone.
fn updated(op: &Atomic, old: u64, value: u64, swap: u64, flushes: bool) -> Option<u64> {
    let (old32, value32) = (old as u32, value as u32);
    let word = op.ty.bytes() == 4;
    Some(match (op.update, op.ty) {
        (Update::And, _) => old & value,
        (Update::Or, _) => old | value,
        (Update::Xor, _) => old ^ value,
        (Update::Exchange, _) => value,
        (Update::CompareAndSwap, ty) => {
            let mask = if ty.bytes() == 8 { u64::MAX } else { (1 << (8 * ty.bytes())) - 1 };
            return (old & mask == value & mask).then_some(swap);
        }
        (Update::Increment, _) => u64::from(if old32 >= value32 { 0 } else { old32 + 1 }),
        (Update::Decrement, _) => u64::from(if old32 == 0 || old32 > value32 { value32 } else { old32 - 1 }),
        (update, T::F16 | T::F16x2) => small::<f16>(update, old, value, op.ty == T::F16x2),
        (update, T::Bf16 | T::Bf16x2) => small::<bf16>(update, old, value, op.ty == T::Bf16x2),
        (Update::Add, T::F32) => add_f32(old, value, flushes),
        (Update::Add, T::F64) => (f64::from_bits(old) + f64::from_bits(value)).to_bits(),
        (Update::Add, _) if word => u64::from(old32.wrapping_add(value32)),
        (Update::Add, _) => old.wrapping_add(value),
        (Update::Min, T::S32) => u64::from((old32 as i32).min(value32 as i32) as u32),
        (Update::Max, T::S32) => u64::from((old32 as i32).max(value32 as i32) as u32),
        (Update::Min, T::S64) => (old as i64).min(value as i64) as u64,
        (Update::Max, T::S64) => (old as i64).max(value as i64) as u64,
        (Update::Min, _) => old.min(value),
        (Update::Max, _) => old.max(value),
    })
}

/// Atomics of `bytes` reach memory, of the space that they name, and are aligned.
pub(super) fn check_place(space: Space, address: u64, bytes: u64) -> Done {
    if region_of(address).0 != Region::Memory {
        return Err(Cause::PrivateAddress { address });
    }
    if is_misplaced(space, address) {
        return Err(Cause::WrongSpace { address });
    }
    if address & (bytes - 1) != 0 {
        return Err(Cause::Misaligned { address, bytes: bytes as u32 });
    }
    Ok(())
}

/// Lanes follow each other, lowest first; the order is one of those that PTX allows.
pub(crate) fn execute(context: &mut Context<'_>, op: &Atomic) -> Done {
    let addresses = context.addresses(&op.address).map(|at| generic(op.space, at));
    let step = u64::from(op.ty.bytes());
    let whole = step * op.operands.len() as u64;
    let Some(width) = Width::from_bytes(step) else { return Ok(()) };
    for (index, operand) in op.operands.iter().enumerate() {
        let values = context.rows.wide(operand.slot, operand.class);
        let swaps = op.swap.map_or([0; LANES], |swap| context.rows.wide(swap.slot, swap.class));
        let mut old: Row<u64> = [0; LANES];
        for lane in context.active() {
            *context.culprit = Some(lane);
            let base = addresses[lane];
            check_place(op.space, base, whole)?;
            let address = base + index as u64 * step;
            let access = context.access(lane, op.order, op.scope);
            // PTX: atom.add.f32 flushes subnormals in global memory, not in shared memory.
            let flushes = address >= crate::memory::LOCAL_WINDOW;
            let update = |old| updated(op, old, values[lane], swaps[lane], flushes);
            old[lane] = context.memory.rmw(&access, address, width, update)?;
        }
        if let Some(result) = op.results.get(index).filter(|result| result.slot != Slot::NONE) {
            let old = if result.class == Class::Word { old.map(|bits| bits & 0xFFFF_FFFF) } else { old };
            context.rows.put_wide(result.slot, result.class, &old);
        }
    }
    Ok(())
}
