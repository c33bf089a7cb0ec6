//! Bits (PTX ISA, "Logic and Shift Instructions", and the bit-field part of "Integer Arithmetic").

use super::rows::{Class, RowFn, Rows, Slots, lanes};
use crate::program::{Decoded, Line, Op, Refusal};
use crate::text::ScalarType as T;

pub(crate) const NAMES: &[&str] = &[
    "and", "or", "xor", "not", "cnot", "lop3", "shl", "shr", "shf", "popc", "clz", "brev", "bfind", "bfe",
    "bfi", "bmsk", "szext", "fns", "prmt",
];

macro_rules! by_width {
    ($ty:expr, $line:expr, |$($arg:ident),+| $body:expr) => {
        match $ty.bytes() {
            2 => lanes!(|$($arg: u16),+| $body),
            4 => lanes!(|$($arg: u32),+| $body),
            8 => lanes!(|$($arg: u64),+| $body),
            _ => return $line.refuse(),
        }
    };
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    match line.name {
        "shl" | "shr" => return shift(line),
        "shf" => return funnel(line),
        "popc" | "clz" | "bfind" => return count(line),
        "bfe" | "bfi" => return field(line),
        "lop3" => return lop3(line),
        "prmt" => return permute(line),
        "bmsk" | "szext" => return mask(line),
        "fns" => {
            let run = lanes!(|mask: u32, base: u32, offset: i32| find_nth_set(mask, base, offset));
            line.ty()?;
            let slots = line.slots(T::B32, 3)?;
            return line.rows(run, slots);
        }
        _ => {}
    }
    let ty = line.ty()?;
    if ty == T::Pred {
        return predicates(line);
    }
    if !matches!(ty, T::B16 | T::B32 | T::B64) {
        return line.refuse();
    }
    let (run, sources) = match line.name {
        "and" => (by_width!(ty, line, |a, b| a & b), 2),
        "or" => (by_width!(ty, line, |a, b| a | b), 2),
        "xor" => (by_width!(ty, line, |a, b| a ^ b), 2),
        "not" => (by_width!(ty, line, |a| !a), 1),
        "cnot" => (by_width!(ty, line, |a| 1 - a.min(1)), 1),
        "brev" => (by_width!(ty, line, |a| a.reverse_bits()), 1),
        _ => return line.refuse(),
    };
    let slots = line.slots(ty, sources)?;
    line.rows(run, slots)
}

fn predicates(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let (run, sources): (RowFn, _) = match line.name {
        "and" => (|rows, slots| rows.put_pred(slots.d, rows.pred(slots.a) & rows.pred(slots.b)), 2),
        "or" => (|rows, slots| rows.put_pred(slots.d, rows.pred(slots.a) | rows.pred(slots.b)), 2),
        "xor" => (|rows, slots| rows.put_pred(slots.d, rows.pred(slots.a) ^ rows.pred(slots.b)), 2),
        "not" => (|rows, slots| rows.put_pred(slots.d, !rows.pred(slots.a)), 1),
        _ => return line.refuse(),
    };
    line.exactly(sources + 1)?;
    let mut slots = Slots { d: line.destination(0, T::Pred)?, ..Slots::NONE };
    for (index, slot) in [&mut slots.a, &mut slots.b].into_iter().take(sources).enumerate() {
        let (source, negated) = line.predicate(index + 1)?;
        if negated {
            return line.refuse();
        }
        *slot = source;
    }
    line.rows(run, slots)
}

/// Amounts are 32 bits wide and clamped.
fn shift(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let ty = line.ty()?;
    let run = match (line.name, ty) {
        ("shl", T::B16) => lanes!(|a: u16, n: u32| a.checked_shl(n).unwrap_or(0)),
        ("shl", T::B32) => lanes!(|a: u32, n: u32| a.checked_shl(n).unwrap_or(0)),
        ("shl", T::B64) => lanes!(|a: u64, n: u32| a.checked_shl(n).unwrap_or(0)),
        ("shr", T::B16 | T::U16) => lanes!(|a: u16, n: u32| a.checked_shr(n).unwrap_or(0)),
        ("shr", T::B32 | T::U32) => lanes!(|a: u32, n: u32| a.checked_shr(n).unwrap_or(0)),
        ("shr", T::B64 | T::U64) => lanes!(|a: u64, n: u32| a.checked_shr(n).unwrap_or(0)),
        ("shr", T::S16) => lanes!(|a: i16, n: u32| a >> n.min(15)),
        ("shr", T::S32) => lanes!(|a: i32, n: u32| a >> n.min(31)),
        ("shr", T::S64) => lanes!(|a: i64, n: u32| a >> n.min(63)),
        _ => return line.refuse(),
    };
    line.exactly(3)?;
    let slots = Slots {
        d: line.destination(0, ty)?,
        a: line.source(1, ty)?,
        b: line.source(2, T::U32)?,
        ..Slots::NONE
    };
    line.rows(run, slots)
}

fn funnel(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let left = line.choice(&[("l", true), ("r", false)]);
    let wrap = line.choice(&[("wrap", true), ("clamp", false)]);
    if line.ty()? != T::B32 {
        return line.refuse();
    }
    let run = match (left, wrap) {
        (Some(true), Some(true)) => lanes!(|a: u32, b: u32, n: u32| funnel_left(a, b, n & 31)),
        (Some(true), Some(false)) => lanes!(|a: u32, b: u32, n: u32| funnel_left(a, b, n.min(32))),
        (Some(false), Some(true)) => lanes!(|a: u32, b: u32, n: u32| funnel_right(a, b, n & 31)),
        (Some(false), Some(false)) => lanes!(|a: u32, b: u32, n: u32| funnel_right(a, b, n.min(32))),
        _ => return line.refuse(),
    };
    let slots = line.slots(T::B32, 3)?;
    line.rows(run, slots)
}

fn funnel_left(low: u32, high: u32, n: u32) -> u32 {
    (((u64::from(high) << 32 | u64::from(low)) << n) >> 32) as u32
}

fn funnel_right(low: u32, high: u32, n: u32) -> u32 {
    ((u64::from(high) << 32 | u64::from(low)) >> n) as u32
}

fn count(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let shift_amount = line.flag("shiftamt");
    let ty = line.ty()?;
    let run = match (line.name, ty) {
        ("popc", T::B32) => lanes!(|a: u32| a.count_ones()),
        ("popc", T::B64) => lanes!(|a: u64| a.count_ones()),
        ("clz", T::B32) => lanes!(|a: u32| a.leading_zeros()),
        ("clz", T::B64) => lanes!(|a: u64| a.leading_zeros()),
        ("bfind", T::U32 | T::S32 | T::U64 | T::S64) => find_leading(ty, shift_amount),
        _ => return line.refuse(),
    };
    if shift_amount && line.name != "bfind" {
        return Err(Refusal::Modifier("shiftamt".to_owned()));
    }
    line.exactly(2)?;
    let slots = Slots { d: line.destination(0, T::U32)?, a: line.source(1, ty)?, ..Slots::NONE };
    line.rows(run, slots)
}

/// The highest bit that differs from the sign, or all ones; `.shiftamt` counts from the top.
fn find_leading(ty: T, shift_amount: bool) -> RowFn {
    const NOT_FOUND: u32 = u32::MAX;
    match (ty, shift_amount) {
        (T::U32, false) => lanes!(|a: u32| 31u32.wrapping_sub(a.leading_zeros())),
        (T::S32, false) => lanes!(|a: i32| 31u32.wrapping_sub((a ^ a >> 31).leading_zeros())),
        (T::U64, false) => lanes!(|a: u64| 63u32.wrapping_sub(a.leading_zeros())),
        (T::S64, false) => lanes!(|a: i64| 63u32.wrapping_sub((a ^ a >> 63).leading_zeros())),
        (T::U32, true) => lanes!(|a: u32| if a == 0 { NOT_FOUND } else { a.leading_zeros() }),
        (T::S32, true) => {
            lanes!(|a: i32| if a ^ a >> 31 == 0 { NOT_FOUND } else { (a ^ a >> 31).leading_zeros() })
        }
        (T::U64, true) => lanes!(|a: u64| if a == 0 { NOT_FOUND } else { a.leading_zeros() }),
        _ => lanes!(|a: i64| if a ^ a >> 63 == 0 { NOT_FOUND } else { (a ^ a >> 63).leading_zeros() }),
    }
}

fn field(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let ty = line.ty()?;
    if line.name == "bfi" {
        line.exactly(5)?;
        let d = line.destination(0, ty)?;
        let (a, b) = (line.source(1, ty)?, line.source(2, ty)?);
        let (c, e) = (line.source(3, T::U32)?, line.source(4, T::U32)?);
        // `e` holds a fourth source here.
        let run: RowFn = match ty {
            T::B32 => |rows, slots| insert(rows, slots, Class::Word, 32),
            T::B64 => |rows, slots| insert(rows, slots, Class::Double, 64),
            _ => return line.refuse(),
        };
        return line.rows(run, Slots { d, e, a, b, c, mode: 0 });
    }
    let run = match ty {
        T::U32 => lanes!(|a: u32, p: u32, n: u32| extract(a.into(), p, n, 32, false) as u32),
        T::S32 => lanes!(|a: u32, p: u32, n: u32| extract(a.into(), p, n, 32, true) as u32),
        T::U64 => lanes!(|a: u64, p: u32, n: u32| extract(a, p, n, 64, false)),
        T::S64 => lanes!(|a: u64, p: u32, n: u32| extract(a, p, n, 64, true)),
        _ => return line.refuse(),
    };
    line.exactly(4)?;
    let slots = Slots {
        d: line.destination(0, ty)?,
        a: line.source(1, ty)?,
        b: line.source(2, T::U32)?,
        c: line.source(3, T::U32)?,
        ..Slots::NONE
    };
    line.rows(run, slots)
}

fn low_ones(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// `bfe`: position and length take their low 8 bits; bits beyond the top are the sign (or zero).
pub(crate) fn extract(a: u64, position: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let (position, length) = (position & 255, length & 255);
    if length == 0 {
        return 0;
    }
    let top = (position + length - 1).min(bits - 1);
    let sign = signed && a >> top & 1 != 0;
    let field = if position >= bits { 0 } else { a >> position & low_ones(length.min(bits - position)) };
    let filled = if position >= bits { 0 } else { length.min(bits - position) };
    let value = if sign { field | !low_ones(filled) } else { field };
    value & low_ones(bits)
}

fn insert(rows: &mut Rows<'_>, slots: &Slots, class: Class, bits: u32) {
    let (a, b) = (rows.wide(slots.a, class), rows.wide(slots.b, class));
    let (position, length) = (*rows.word(slots.c), *rows.word(slots.e));
    let out = std::array::from_fn(|lane| {
        let (position, length) = (position[lane] & 255, length[lane] & 255);
        let mask = if position >= bits { 0 } else { low_ones(length) << position & low_ones(bits) };
        let moved = if position >= bits { 0 } else { a[lane] << position };
        b[lane] & !mask | moved & mask
    });
    rows.put_wide(slots.d, class, &out);
}

fn lop3(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if line.ty()? != T::B32 {
        return line.refuse();
    }
    line.exactly(5)?;
    let slots = Slots {
        d: line.destination(0, T::B32)?,
        a: line.source(1, T::B32)?,
        b: line.source(2, T::B32)?,
        c: line.source(3, T::B32)?,
        mode: line.literal(4)? as u32,
        ..Slots::NONE
    };
    line.rows(lanes!(table; |a: u32, b: u32, c: u32| look_up(table, a, b, c)), slots)
}

fn look_up(table: u32, a: u32, b: u32, c: u32) -> u32 {
    let minterm = |index: u32| {
        let pick = |value: u32, bit: u32| if index >> bit & 1 != 0 { value } else { !value };
        if table >> index & 1 != 0 { pick(a, 2) & pick(b, 1) & pick(c, 0) } else { 0 }
    };
    (0..8).map(minterm).fold(0, |sum, term| sum | term)
}

fn permute(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if line.ty()? != T::B32 {
        return line.refuse();
    }
    let modes = [("f4e", 1), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)];
    let mode = line.choice(&modes).unwrap_or(0);
    let mut slots = line.slots(T::B32, 3)?;
    slots.mode = mode;
    line.rows(lanes!(mode; |a: u32, b: u32, c: u32| permute_bytes(mode, a, b, c)), slots)
}

fn permute_bytes(mode: u32, a: u32, b: u32, c: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let low = c & 3;
    // Byte selectors of the named modes, four bits each (PTX ISA, table of prmt).
    let select = |index: u32| match mode {
        0 => c >> (4 * index) & 15,
        1 => low + index,
        2 => (8 + low - index) & 7,
        3 => low,
        4 => low.max(index),
        5 => low.min(index),
        _ => (low & 1) * 2 + (index & 1),
    };
    (0..4).fold(0, |out, index| {
        let selector = select(index);
        let byte = (bytes >> (8 * (selector & 7))) as u8;
        let byte = if selector & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
        out | u32::from(byte) << (8 * index)
    })
}

fn mask(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let wrap = line.choice(&[("wrap", true), ("clamp", false)]);
    let ty = line.ty()?;
    let run = match (line.name, wrap, ty) {
        ("bmsk", Some(true), T::B32) => lanes!(|a: u32, b: u32| bit_mask(a & 31, b & 31)),
        ("bmsk", Some(false), T::B32) => lanes!(|a: u32, b: u32| bit_mask(a, b)),
        ("szext", Some(true), T::U32) => lanes!(|a: u32, n: u32| extend(a, n & 31, false)),
        ("szext", Some(false), T::U32) => lanes!(|a: u32, n: u32| extend(a, n, false)),
        ("szext", Some(true), T::S32) => lanes!(|a: u32, n: u32| extend(a, n & 31, true)),
        ("szext", Some(false), T::S32) => lanes!(|a: u32, n: u32| extend(a, n, true)),
        _ => return line.refuse(),
    };
    let slots = line.slots(ty, 2)?;
    line.rows(run, slots)
}

fn bit_mask(from: u32, count: u32) -> u32 {
    if from >= 32 { 0 } else { (low_ones(count.min(32)) << from) as u32 }
}

fn extend(a: u32, bits: u32, signed: bool) -> u32 {
    match bits {
        0 => 0,
        32.. => a,
        _ if signed => ((a << (32 - bits)) as i32 >> (32 - bits)) as u32,
        _ => a & low_ones(bits) as u32,
    }
}

fn find_nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let set = |bit: &u32| mask >> bit & 1 != 0;
    let found = match offset {
        0 => Some(base).filter(|bit| *bit < 32 && set(bit)),
        1.. => (base..32).filter(set).nth(offset as usize - 1),
        _ => (0..=base.min(31)).rev().filter(set).nth(offset.unsigned_abs() as usize - 1),
    };
    found.unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::exec::harness::evaluate;

    proptest! {
        #[test]
        fn bits_one_by_one(a: u32, b: u32, c: u32, table in 0u32..256) {
            let run = |name: &str, sources: &[u32]| {
                let sources: Vec<u64> = sources.iter().map(|&bits| bits.into()).collect();
                evaluate(name, &sources) as u32
            };
            prop_assert_eq!(run("and.b32", &[a, b]), a & b);
            prop_assert_eq!(run("not.b32", &[a]), !a);
            prop_assert_eq!(run("cnot.b32", &[a]), u32::from(a == 0));
            prop_assert_eq!(run("popc.b32", &[a]), a.count_ones());
            prop_assert_eq!(run("clz.b32", &[a]), a.leading_zeros());
            prop_assert_eq!(run("brev.b32", &[a]), a.reverse_bits());
            let looked_up = (0..32).fold(0, |out, bit| {
                let index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1;
                out | (table >> index & 1) << bit
            });
            prop_assert_eq!(run(&format!("lop3.b32 {table}"), &[a, b, c]), looked_up);
        }

        #[test]
        fn shifts_clamp_and_funnels_wrap(a: u32, b: u32, n in 0u32..70) {
            let wide = u64::from(b) << 32 | u64::from(a);
            let run = |name: &str, second: u32| evaluate(name, &[a.into(), second.into(), n.into()]) as u32;
            prop_assert_eq!(evaluate("shl.b32", &[a.into(), n.into()]) as u32, (u64::from(a) << n.min(32)) as u32);
            prop_assert_eq!(evaluate("shr.s32", &[a.into(), n.into()]) as u32, (i64::from(a as i32) >> n.min(63)) as u32);
            prop_assert_eq!(run("shf.l.wrap.b32", b), ((wide << (n & 31)) >> 32) as u32);
            prop_assert_eq!(run("shf.r.clamp.b32", b), (wide >> n.min(32)) as u32);
        }

        #[test]
        fn fields_by_the_manuals_loop(a: u32, b: u32, position in 0u32..300, length in 0u32..300) {
            // PTX ISA, bfe and bfi, as their pseudocode says.
            let (pos, len) = (position & 255, length & 255);
            let bit = |value: u32, index: u32| if index < 32 { value >> index & 1 } else { 0 };
            for signed in [false, true] {
                let sign = if !signed || len == 0 { 0 } else { bit(a, (pos + len - 1).min(31)) };
                let model = (0..32).fold(0, |out, i| {
                    out | (if i < len && pos + i <= 31 { bit(a, pos + i) } else { sign }) << i
                });
                let name = if signed { "bfe.s32" } else { "bfe.u32" };
                prop_assert_eq!(evaluate(name, &[a.into(), position.into(), length.into()]) as u32, model);
            }
            let model = (0..len).filter(|i| pos + i <= 31).fold(b, |out, i| out & !(1 << (pos + i)) | bit(a, i) << (pos + i));
            let sources = [a.into(), b.into(), position.into(), length.into()];
            prop_assert_eq!(evaluate("bfi.b32", &sources) as u32, model);
        }

        #[test]
        fn bytes_are_permuted(a: u32, b: u32, c: u32) {
            let bytes: Vec<u8> = a.to_le_bytes().into_iter().chain(b.to_le_bytes()).collect();
            let pick = |index: u32| {
                let byte = bytes[(c >> (4 * index) & 7) as usize];
                if c >> (4 * index) & 8 == 0 { byte } else if byte & 128 != 0 { 255 } else { 0 }
            };
            let model = u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)]);
            prop_assert_eq!(evaluate("prmt.b32", &[a.into(), b.into(), c.into()]) as u32, model);
        }
    }

    #[test]
    fn leading_bits_and_masks() {
        assert_eq!(evaluate("bfind.s32", &[0xFFFF_FFF0]) as u32, 3);
        assert_eq!(evaluate("bfind.u32", &[0]) as u32, u32::MAX);
        assert_eq!(evaluate("bfind.shiftamt.u32", &[0x10]) as u32, 27);
        assert_eq!(evaluate("bmsk.clamp.b32", &[4, 8]) as u32, 0xFF0);
        assert_eq!(evaluate("szext.wrap.s32", &[0x8, 4]) as u32, 0xFFFF_FFF8);
        assert_eq!(evaluate("prmt.b32.rc16", &[0x4433_2211, 0, 1]) as u32, 0x4433_4433);
        assert_eq!(evaluate("fns.b32", &[0b1011_0000, 4, 2]) as u32, 5);
    }
}
