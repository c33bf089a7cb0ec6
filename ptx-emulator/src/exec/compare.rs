//! Comparison and selection (PTX ISA, "Comparison and Selection Instructions" and `testp`).

use half::{bf16, f16};

use super::halves::Small;
use super::rounding::flush;
use super::rows::{Lane, Mask, Pair, RowFn, Rows, Slot, Slots, lanes, map2};
use crate::program::{Decoded, Line, Op, Refusal};
use crate::text::{Operand, ScalarType as T};

pub(crate) const NAMES: &[&str] = &["setp", "set", "selp", "slct", "testp"];

/// Comparisons as sets of outcomes: less, equal, greater, unordered.
const LESS: u32 = 1;
const EQUAL: u32 = 2;
const GREATER: u32 = 4;
const UNORDERED: u32 = 8;

const ORDERED: [(&str, u32); 12] = [
    ("eq", EQUAL),
    ("ne", LESS | GREATER),
    ("lt", LESS),
    ("le", LESS | EQUAL),
    ("gt", GREATER),
    ("ge", GREATER | EQUAL),
    ("num", LESS | EQUAL | GREATER),
    ("nan", UNORDERED),
    ("lo", LESS),
    ("ls", LESS | EQUAL),
    ("hi", GREATER),
    ("hs", GREATER | EQUAL),
];

const UNORDERED_TOO: [(&str, u32); 6] = [
    ("equ", EQUAL | UNORDERED),
    ("neu", LESS | GREATER | UNORDERED),
    ("ltu", LESS | UNORDERED),
    ("leu", LESS | EQUAL | UNORDERED),
    ("gtu", GREATER | UNORDERED),
    ("geu", GREATER | EQUAL | UNORDERED),
];

const OUTCOMES: u32 = 15;
const FLUSH: u32 = 1 << 4;
/// How the result is combined with the third source: 0 not, 1 and, 2 or, 3 xor; bit 7 negates the source.
const COMBINE: u32 = 5;
const NEGATE: u32 = 1 << 7;

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    match line.name {
        "setp" | "set" => comparison(line),
        "selp" => select(line),
        "slct" => select_by_sign(line),
        "testp" => test(line),
        _ => line.refuse(),
    }
}

/// The lanes for which the outcome is in the set.
#[inline(always)]
fn outcomes<A: Lane + PartialOrd>(rows: &Rows<'_>, slots: &Slots, prepare: impl Fn(A) -> A) -> Mask {
    let (a, b) = (A::row(rows, slots.a), A::row(rows, slots.b));
    let set = slots.mode & OUTCOMES;
    let (less, equal, greater) = (set & LESS != 0, set & EQUAL != 0, set & GREATER != 0);
    let unordered = set & UNORDERED != 0;
    let mut bits = 0;
    for lane in 0..32 {
        let (a, b) = (prepare(a[lane]), prepare(b[lane]));
        let (lt, eq, gt) = (a < b, a == b, a > b);
        let holds = lt & less | eq & equal | gt & greater | (!(lt | eq | gt)) & unordered;
        bits |= u32::from(holds) << lane;
    }
    bits
}

fn combine(rows: &Rows<'_>, slots: &Slots, bits: Mask) -> Mask {
    if slots.mode >> COMBINE & 3 == 0 {
        return bits;
    }
    let other = if slots.mode & NEGATE != 0 { !rows.pred(slots.c) } else { rows.pred(slots.c) };
    match slots.mode >> COMBINE & 3 {
        1 => bits & other,
        2 => bits | other,
        _ => bits ^ other,
    }
}

fn comparer(ty: T) -> Option<fn(&Rows<'_>, &Slots) -> Mask> {
    Some(match ty {
        T::B16 | T::U16 => |rows, slots| outcomes::<u16>(rows, slots, |a| a),
        T::S16 => |rows, slots| outcomes::<i16>(rows, slots, |a| a),
        T::B32 | T::U32 => |rows, slots| outcomes::<u32>(rows, slots, |a| a),
        T::S32 => |rows, slots| outcomes::<i32>(rows, slots, |a| a),
        T::B64 | T::U64 => |rows, slots| outcomes::<u64>(rows, slots, |a| a),
        T::S64 => |rows, slots| outcomes::<i64>(rows, slots, |a| a),
        T::F32 => |rows, slots| {
            let flushed = slots.mode & FLUSH != 0;
            if flushed { outcomes::<f32>(rows, slots, flush) } else { outcomes::<f32>(rows, slots, |a| a) }
        },
        T::F64 => |rows, slots| outcomes::<f64>(rows, slots, |a| a),
        T::F16 => |rows, slots| {
            let flushed = slots.mode & FLUSH != 0;
            outcomes::<f16>(rows, slots, |a| {
                if flushed && !a.is_normal() && !a.is_nan() && !a.is_infinite() { f16::ZERO } else { a }
            })
        },
        T::Bf16 => |rows, slots| outcomes::<bf16>(rows, slots, |a| a),
        _ => return None,
    })
}

macro_rules! setp_of {
    ($($ty:ident),*) => {
        |ty: T| -> Option<RowFn> {
            match ty {
                $(T::$ty => Some(|rows, slots| {
                    let Some(compare) = comparer(T::$ty) else { return };
                    let bits = compare(rows, slots);
                    let (first, second) = (combine(rows, slots, bits), combine(rows, slots, !bits));
                    rows.put_pred(slots.d, first);
                    rows.put_pred(slots.e, second);
                }),)*
                _ => None,
            }
        }
    };
}

macro_rules! set_of {
    ($($ty:ident),*) => {
        |ty: T, float: bool| -> Option<RowFn> {
            match (ty, float) {
                $((T::$ty, false) => Some(|rows, slots| {
                    let Some(compare) = comparer(T::$ty) else { return };
                    let bits = combine(rows, slots, compare(rows, slots));
                    let row = std::array::from_fn(|lane| if bits >> lane & 1 != 0 { u32::MAX } else { 0 });
                    rows.put_word(slots.d, &row);
                }),
                (T::$ty, true) => Some(|rows, slots| {
                    let Some(compare) = comparer(T::$ty) else { return };
                    let bits = combine(rows, slots, compare(rows, slots));
                    let row = std::array::from_fn(|lane| if bits >> lane & 1 != 0 { 1f32.to_bits() } else { 0 });
                    rows.put_word(slots.d, &row);
                }),)*
                _ => None,
            }
        }
    };
}

/// `setp.cmp{.bool}{.ftz}.type p{|q}, a, b{, {!}c}` and `set.cmp{.bool}{.ftz}.dtype.stype d, a, b{, c}`.
fn comparison(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let set = line.choice(&UNORDERED_TOO).or_else(|| line.choice(&ORDERED));
    let Some(set) = set else { return line.refuse() };
    let combination = line.choice(&[("and", 1), ("or", 2), ("xor", 3)]).unwrap_or(0);
    let flushed = line.flag("ftz");
    let result = if line.name == "set" { Some(line.ty()?) } else { None };
    let ty = line.ty()?;
    if let (Some(result), T::F16x2 | T::Bf16x2, 0) = (result, ty, combination) {
        return packed(line, result, ty, set | if flushed { FLUSH } else { 0 });
    }
    let least = if combination == 0 { 3 } else { 4 };
    line.exactly(least)?;
    let mut slots = Slots { a: line.source(1, ty)?, b: line.source(2, ty)?, ..Slots::NONE };
    slots.mode = set | combination << COMBINE | if flushed { FLUSH } else { 0 };
    if combination != 0 {
        let (slot, negated) = line.predicate(3)?;
        slots.c = slot;
        slots.mode |= if negated { NEGATE } else { 0 };
    }
    let run = match result {
        Some(T::U32 | T::S32) => {
            slots.d = line.destination(0, T::B32)?;
            set_of!(B16, U16, S16, B32, U32, S32, B64, U64, S64, F16, Bf16, F32, F64)(ty, false)
        }
        Some(T::F32) => {
            slots.d = line.destination(0, T::F32)?;
            set_of!(B16, U16, S16, B32, U32, S32, B64, U64, S64, F16, Bf16, F32, F64)(ty, true)
        }
        Some(_) => None,
        None => {
            (slots.d, slots.e) = match line.operand(0)? {
                Operand::Pair(pair) => {
                    (line.destination_in(&pair.0, T::Pred)?, line.destination_in(&pair.1, T::Pred)?)
                }
                operand => (line.destination_in(operand, T::Pred)?, Slot::NONE),
            };
            setp_of!(B16, U16, S16, B32, U32, S32, B64, U64, S64, F16, Bf16, F32, F64)(ty)
        }
    };
    match run {
        Some(run) => line.rows(run, slots),
        None => line.refuse(),
    }
}

/// `set.cmp{.ftz}.dtype.stype d, a, b` of two halves at a time: each becomes 1.0 or 0.0, or ones or zeros.
fn packed(line: &mut Line<'_, '_>, result: T, ty: T, mode: u32) -> Decoded<Op> {
    let yes = match result {
        T::F16x2 if ty == T::F16x2 => f16::ONE.to_bits(),
        T::Bf16x2 if ty == T::Bf16x2 => bf16::ONE.to_bits(),
        T::U32 | T::S32 => u16::MAX,
        _ => return line.refuse(),
    };
    let run: RowFn = match ty {
        T::F16x2 => {
            |rows, slots| map2(rows, slots, |a: Pair<f16>, b: Pair<f16>| packed_lane(slots.mode, a, b))
        }
        _ => |rows, slots| map2(rows, slots, |a: Pair<bf16>, b: Pair<bf16>| packed_lane(slots.mode, a, b)),
    };
    line.exactly(3)?;
    let mut slots = Slots { a: line.source(1, ty)?, b: line.source(2, ty)?, ..Slots::NONE };
    slots.d = line.destination(0, T::B32)?;
    slots.mode = mode | u32::from(yes) << 16;
    line.rows(run, slots)
}

/// The outcomes of two halves; the upper half of `mode` is what a true one becomes.
fn packed_lane<A: Small>(mode: u32, a: Pair<A>, b: Pair<A>) -> u32 {
    let flushed = |value: f64| if mode & FLUSH != 0 && value.abs() < A::MIN_NORMAL { 0.0 } else { value };
    let half = |index: usize| {
        let outcome = match flushed(a[index].wide()).partial_cmp(&flushed(b[index].wide())) {
            Some(std::cmp::Ordering::Less) => LESS,
            Some(std::cmp::Ordering::Equal) => EQUAL,
            Some(std::cmp::Ordering::Greater) => GREATER,
            None => UNORDERED,
        };
        if mode & outcome != 0 { mode >> 16 } else { 0 }
    };
    half(0) | half(1) << 16
}

fn select(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let ty = line.ty()?;
    line.exactly(4)?;
    let (c, negated) = line.predicate(3)?;
    let slots = Slots {
        d: line.destination(0, ty)?,
        a: line.source(1, ty)?,
        b: line.source(2, ty)?,
        c,
        mode: u32::from(negated),
        ..Slots::NONE
    };
    let run: RowFn = match ty.bytes() {
        2 | 4 => select_rows::<u32>,
        8 => select_rows::<u64>,
        _ => return Err(Refusal::Form),
    };
    line.rows(run, slots)
}

fn select_rows<A: Lane>(rows: &mut Rows<'_>, slots: &Slots) {
    let (a, b) = (A::row(rows, slots.a), A::row(rows, slots.b));
    let bits = rows.pred(slots.c) ^ if slots.mode == 0 { 0 } else { Mask::MAX };
    let mut out = b;
    for lane in 0..32 {
        if bits >> lane & 1 != 0 {
            out[lane] = a[lane];
        }
    }
    A::put(rows, slots.d, out);
}

/// `slct.dtype.s32|f32 d, a, b, c`: a where c >= 0.
fn select_by_sign(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let flushed = line.flag("ftz");
    let (ty, sign) = (line.ty()?, line.ty()?);
    let run = match (ty.bytes(), sign, flushed) {
        (2 | 4, T::S32, false) => lanes!(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
        (8, T::S32, false) => lanes!(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        (2 | 4, T::F32, false) => lanes!(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
        (8, T::F32, false) => lanes!(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        (2 | 4, T::F32, true) => lanes!(|a: u32, b: u32, c: f32| if flush(c) >= 0.0 { a } else { b }),
        (8, T::F32, true) => lanes!(|a: u64, b: u64, c: f32| if flush(c) >= 0.0 { a } else { b }),
        _ => return line.refuse(),
    };
    line.exactly(4)?;
    let slots = Slots {
        d: line.destination(0, ty)?,
        a: line.source(1, ty)?,
        b: line.source(2, ty)?,
        c: line.source(3, sign)?,
        ..Slots::NONE
    };
    line.rows(run, slots)
}

fn test(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let tests =
        [("finite", 0), ("infinite", 1), ("number", 2), ("notanumber", 3), ("normal", 4), ("subnormal", 5)];
    let Some(which) = line.choice(&tests) else { return line.refuse() };
    let ty = line.ty()?;
    let run: RowFn = match ty {
        T::F32 => |rows, slots| test_rows(rows, slots, |a: f32| a.classify()),
        T::F64 => |rows, slots| test_rows(rows, slots, |a: f64| a.classify()),
        _ => return line.refuse(),
    };
    line.exactly(2)?;
    let slots =
        Slots { d: line.destination(0, T::Pred)?, a: line.source(1, ty)?, mode: which, ..Slots::NONE };
    line.rows(run, slots)
}

fn test_rows<A: Lane>(rows: &mut Rows<'_>, slots: &Slots, classify: fn(A) -> std::num::FpCategory) {
    use std::num::FpCategory as C;
    let a = A::row(rows, slots.a);
    let holds = |value: A| match (slots.mode, classify(value)) {
        (0, class) => !matches!(class, C::Nan | C::Infinite),
        (1, class) => class == C::Infinite,
        (2, class) => class != C::Nan,
        (3, class) => class == C::Nan,
        // PTX counts zero as normal.
        (4, class) => matches!(class, C::Normal | C::Zero),
        (_, class) => class == C::Subnormal,
    };
    let bits = (0..32).fold(0, |bits, lane| bits | u32::from(holds(a[lane])) << lane);
    rows.put_pred(slots.d, bits);
}
