//! `mov`, with packing and unpacking of vectors (PTX ISA, "mov").

use super::rows::{Class, RowFn, Rows, Slot, Slots, lanes};
use crate::program::{Decoded, Line, Op, class_of};
use crate::text::{Operand, ScalarType as T};

pub(crate) const NAMES: &[&str] = &["mov"];

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let ty = line.ty()?;
    line.exactly(2)?;
    if ty == T::B128 {
        return quad(line);
    }
    match (line.operand(0)?, line.operand(1)?) {
        (Operand::Vector(_), Operand::Vector(_)) => line.refuse(),
        (Operand::Vector(parts), _) => unpack(line, ty, parts.len()),
        (_, Operand::Vector(parts)) => pack(line, ty, parts.len()),
        _ => {
            let run: RowFn = match class_of(ty) {
                Class::Pred => |rows, slots| rows.put_pred(slots.d, rows.pred(slots.a)),
                Class::Word => lanes!(|a: u32| a),
                Class::Double => lanes!(|a: u64| a),
            };
            let slots = Slots { d: line.destination(0, ty)?, a: line.source(1, ty)?, ..Slots::NONE };
            line.rows(run, slots)
        }
    }
}

/// `mov.b128`: a register of 128 bits is two of 64.
fn quad(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let high = |low: Slot| Slot(low.0 + 1);
    let (to, from) = match (line.operand(0)?, line.operand(1)?) {
        (Operand::Vector(_), Operand::Vector(_)) => return line.refuse(),
        (Operand::Vector(_), _) => {
            let from = line.quad(1, false)?;
            let to = line.destinations(0, T::B64, 2)?;
            ([to[0], to[1]], [from, high(from)])
        }
        (_, Operand::Vector(_)) => {
            let (to, from) = (line.quad(0, true)?, line.sources(1, T::B64, 2)?);
            ([to, high(to)], [from[0], from[1]])
        }
        _ => {
            let (to, from) = (line.quad(0, true)?, line.quad(1, false)?);
            ([to, high(to)], [from, high(from)])
        }
    };
    // The second destination is `c`.
    let slots = Slots { d: to[0], c: to[1], a: from[0], b: from[1], ..Slots::NONE };
    let run: RowFn = |rows, slots| {
        let halves = [*rows.double(slots.a), *rows.double(slots.b)];
        rows.put_double(slots.d, &halves[0]);
        rows.put_double(slots.c, &halves[1]);
    };
    line.rows(run, slots)
}

/// Parts of a vector: 2 or 4, of 8 bits at least.
fn part_type(line: &Line<'_, '_>, ty: T, parts: usize) -> Decoded<T> {
    Ok(match (ty.bytes() * 8, parts) {
        (64, 2) => T::B32,
        (64, 4) | (32, 2) => T::B16,
        (32, 4) | (16, 2) => T::B8,
        _ => return line.refuse(),
    })
}

/// `mov.b64 d, {a, b}`; the first part lies lowest. `e` is a fourth source.
fn pack(line: &mut Line<'_, '_>, ty: T, parts: usize) -> Decoded<Op> {
    let part = part_type(line, ty, parts)?;
    let sources = line.sources(1, part, parts)?;
    let at = |index: usize| sources.get(index).copied().unwrap_or(Slot::NONE);
    let slots =
        Slots { d: line.destination(0, ty)?, a: at(0), b: at(1), c: at(2), e: at(3), mode: part.bytes() * 8 };
    let run = match (ty.bytes(), parts) {
        (8, 2) => lanes!(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
        (4, 2) => lanes!(|a: u32, b: u32| a & 0xFFFF | b << 16),
        (8, _) => |rows: &mut Rows<'_>, slots: &Slots| pack_rows(rows, slots, Class::Double),
        _ => |rows: &mut Rows<'_>, slots: &Slots| pack_rows(rows, slots, Class::Word),
    };
    line.rows(run, slots)
}

fn pack_rows(rows: &mut Rows<'_>, slots: &Slots, class: Class) {
    let mut out = [0; 32];
    for (index, slot) in [slots.a, slots.b, slots.c, slots.e].into_iter().enumerate() {
        if slot == Slot::NONE {
            break;
        }
        let part = rows.word(slot);
        for lane in 0..32 {
            out[lane] |= (u64::from(part[lane]) & ((1 << slots.mode) - 1)) << (index as u32 * slots.mode);
        }
    }
    rows.put_wide(slots.d, class, &out);
}

/// `mov.b64 {d, e}, a`; `b` and `c` are further destinations.
fn unpack(line: &mut Line<'_, '_>, ty: T, parts: usize) -> Decoded<Op> {
    let part = part_type(line, ty, parts)?;
    let destinations = line.destinations(0, part, parts)?;
    let at = |index: usize| destinations.get(index).copied().unwrap_or(Slot::NONE);
    let slots =
        Slots { a: line.source(1, ty)?, d: at(0), e: at(1), b: at(2), c: at(3), mode: part.bytes() * 8 };
    let run: RowFn = match class_of(ty) {
        Class::Double => |rows, slots| unpack_rows(rows, slots, Class::Double),
        _ => |rows, slots| unpack_rows(rows, slots, Class::Word),
    };
    line.rows(run, slots)
}

fn unpack_rows(rows: &mut Rows<'_>, slots: &Slots, class: Class) {
    let a = rows.wide(slots.a, class);
    for (index, slot) in [slots.d, slots.e, slots.b, slots.c].into_iter().enumerate() {
        if slot != Slot::NONE {
            let part = a
                .map(|bits| (bits >> (index as u32 * slots.mode)) as u32 & ((1u64 << slots.mode) - 1) as u32);
            rows.put_word(slot, &part);
        }
    }
}
