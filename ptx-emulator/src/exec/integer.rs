//! Integer arithmetic (PTX ISA, "Integer Arithmetic Instructions").

use super::carry;
use super::rows::{Slots, lanes};
use crate::program::{Decoded, Line, Op};
use crate::text::ScalarType as T;

pub(crate) const NAMES: &[&str] = &[
    "add", "sub", "mul", "mad", "mul24", "mad24", "sad", "div", "rem", "abs", "neg", "min", "max", "addc",
    "subc", "madc", "dp4a", "dp2a",
];

/// A function for each width; signs do not matter.
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

/// A function for each width and sign.
macro_rules! by_sign {
    ($ty:expr, $line:expr, |$($arg:ident),+| $body:expr) => {
        match $ty {
            T::U16 => lanes!(|$($arg: u16),+| $body),
            T::S16 => lanes!(|$($arg: i16),+| $body),
            T::U32 => lanes!(|$($arg: u32),+| $body),
            T::S32 => lanes!(|$($arg: i32),+| $body),
            T::U64 => lanes!(|$($arg: u64),+| $body),
            T::S64 => lanes!(|$($arg: i64),+| $body),
            _ => return $line.refuse(),
        }
    };
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if matches!(line.name, "add" | "sub" | "mad") && line.flag("cc") {
        return carry::carry_out(line);
    }
    match line.name {
        "addc" | "subc" | "madc" => return carry::carry(line),
        "mul" | "mad" => return multiply(line),
        "mul24" | "mad24" => return multiply_24(line),
        "dp4a" | "dp2a" => return dot(line),
        _ => {}
    }
    let saturate = line.flag("sat");
    let ty = line.ty()?;
    if saturate && (ty != T::S32 || !matches!(line.name, "add" | "sub")) {
        return Err(crate::program::Refusal::Modifier("sat".to_owned()));
    }
    let (run, sources) = match line.name {
        "add" if saturate => (lanes!(|a: i32, b: i32| a.saturating_add(b)), 2),
        "sub" if saturate => (lanes!(|a: i32, b: i32| a.saturating_sub(b)), 2),
        "add" => (by_width!(ty, line, |a, b| a.wrapping_add(b)), 2),
        "sub" => (by_width!(ty, line, |a, b| a.wrapping_sub(b)), 2),
        // Division by zero is unspecified; GPUs give all ones, and the dividend as the remainder.
        "div" => (by_sign!(ty, line, |a, b| if b == 0 { !b } else { a.wrapping_div(b) }), 2),
        "rem" => (by_sign!(ty, line, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }), 2),
        "min" => (by_sign!(ty, line, |a, b| a.min(b)), 2),
        "max" => (by_sign!(ty, line, |a, b| a.max(b)), 2),
        "neg" if !ty.is_signed() => return line.refuse(),
        "neg" => (by_width!(ty, line, |a| a.wrapping_neg()), 1),
        "abs" => (absolute(ty, line)?, 1),
        "sad" => (
            by_sign!(ty, line, |a, b, c| c.wrapping_add(if a < b {
                b.wrapping_sub(a)
            } else {
                a.wrapping_sub(b)
            })),
            3,
        ),
        _ => return line.refuse(),
    };
    let slots = line.slots(ty, sources)?;
    line.rows(run, slots)
}

fn absolute(ty: T, line: &Line<'_, '_>) -> Decoded<super::rows::RowFn> {
    Ok(match ty {
        T::S16 => lanes!(|a: i16| a.wrapping_abs()),
        T::S32 => lanes!(|a: i32| a.wrapping_abs()),
        T::S64 => lanes!(|a: i64| a.wrapping_abs()),
        _ => return line.refuse(),
    })
}

#[derive(Clone, Copy)]
pub(super) enum Part {
    Low,
    High,
    Wide,
}

pub(super) const PARTS: [(&str, Part); 3] = [("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)];

fn multiply(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let Some(part) = line.choice(&PARTS) else { return line.refuse() };
    let saturate = line.flag("sat");
    let ty = line.ty()?;
    let add = line.name == "mad";
    line.exactly(if add { 4 } else { 3 })?;
    let result = match (part, ty) {
        (Part::Wide, T::U16) => T::U32,
        (Part::Wide, T::S16) => T::S32,
        (Part::Wide, T::U32) => T::U64,
        (Part::Wide, T::S32) => T::S64,
        (Part::Wide, _) => return line.refuse(),
        _ => ty,
    };
    let run = match (part, ty, add) {
        (Part::High, T::S32, true) if saturate => {
            lanes!(|a: i32, b: i32, c: i32| high_s32(a, b).saturating_add(c))
        }
        _ if saturate => return Err(crate::program::Refusal::Modifier("sat".to_owned())),
        (Part::Low, _, false) => by_width!(ty, line, |a, b| a.wrapping_mul(b)),
        (Part::Low, _, true) => by_width!(ty, line, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        (Part::High, T::U16, false) => lanes!(|a: u16, b: u16| high_u16(a, b)),
        (Part::High, T::S16, false) => lanes!(|a: i16, b: i16| high_s16(a, b)),
        (Part::High, T::U32, false) => lanes!(|a: u32, b: u32| high_u32(a, b)),
        (Part::High, T::S32, false) => lanes!(|a: i32, b: i32| high_s32(a, b)),
        (Part::High, T::U64, false) => lanes!(|a: u64, b: u64| high_u64(a, b)),
        (Part::High, T::S64, false) => lanes!(|a: i64, b: i64| high_s64(a, b)),
        (Part::High, T::U16, true) => lanes!(|a: u16, b: u16, c: u16| high_u16(a, b).wrapping_add(c)),
        (Part::High, T::S16, true) => lanes!(|a: i16, b: i16, c: i16| high_s16(a, b).wrapping_add(c)),
        (Part::High, T::U32, true) => lanes!(|a: u32, b: u32, c: u32| high_u32(a, b).wrapping_add(c)),
        (Part::High, T::S32, true) => lanes!(|a: i32, b: i32, c: i32| high_s32(a, b).wrapping_add(c)),
        (Part::High, T::U64, true) => lanes!(|a: u64, b: u64, c: u64| high_u64(a, b).wrapping_add(c)),
        (Part::High, T::S64, true) => lanes!(|a: i64, b: i64, c: i64| high_s64(a, b).wrapping_add(c)),
        (Part::Wide, T::U16, false) => lanes!(|a: u16, b: u16| u32::from(a) * u32::from(b)),
        (Part::Wide, T::S16, false) => lanes!(|a: i16, b: i16| i32::from(a) * i32::from(b)),
        (Part::Wide, T::U32, false) => lanes!(|a: u32, b: u32| u64::from(a) * u64::from(b)),
        (Part::Wide, T::S32, false) => lanes!(|a: i32, b: i32| i64::from(a) * i64::from(b)),
        (Part::Wide, T::U16, true) => {
            lanes!(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c))
        }
        (Part::Wide, T::S16, true) => {
            lanes!(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c))
        }
        (Part::Wide, T::U32, true) => {
            lanes!(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c))
        }
        (Part::Wide, T::S32, true) => {
            lanes!(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c))
        }
        _ => return line.refuse(),
    };
    let mut slots = Slots {
        d: line.destination(0, result)?,
        a: line.source(1, ty)?,
        b: line.source(2, ty)?,
        ..Slots::NONE
    };
    if add {
        slots.c = line.source(3, result)?;
    }
    line.rows(run, slots)
}

pub(crate) fn high_u16(a: u16, b: u16) -> u16 {
    ((u32::from(a) * u32::from(b)) >> 16) as u16
}

pub(crate) fn high_s16(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b)) >> 16) as i16
}

pub(crate) fn high_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

pub(crate) fn high_s32(a: i32, b: i32) -> i32 {
    ((i64::from(a) * i64::from(b)) >> 32) as i32
}

pub(crate) fn high_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

pub(crate) fn high_s64(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> 64) as i64
}

fn multiply_24(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let Some(part) = line.choice(&PARTS[..2]) else { return line.refuse() };
    let ty = line.ty()?;
    let add = line.name == "mad24";
    let run = match (part, ty, add) {
        (Part::Low, T::U32, false) => lanes!(|a: u32, b: u32| product_u24(a, b) as u32),
        (Part::Low, T::S32, false) => lanes!(|a: i32, b: i32| product_s24(a, b) as i32),
        (Part::Low, T::U32, true) => {
            lanes!(|a: u32, b: u32, c: u32| (product_u24(a, b) as u32).wrapping_add(c))
        }
        (Part::Low, T::S32, true) => {
            lanes!(|a: i32, b: i32, c: i32| (product_s24(a, b) as i32).wrapping_add(c))
        }
        (Part::High, T::U32, false) => lanes!(|a: u32, b: u32| (product_u24(a, b) >> 16) as u32),
        (Part::High, T::S32, false) => lanes!(|a: i32, b: i32| (product_s24(a, b) >> 16) as i32),
        (Part::High, T::U32, true) => {
            lanes!(|a: u32, b: u32, c: u32| ((product_u24(a, b) >> 16) as u32).wrapping_add(c))
        }
        (Part::High, T::S32, true) => {
            lanes!(|a: i32, b: i32, c: i32| ((product_s24(a, b) >> 16) as i32).wrapping_add(c))
        }
        _ => return line.refuse(),
    };
    let slots = line.slots(ty, if add { 3 } else { 2 })?;
    line.rows(run, slots)
}

fn product_u24(a: u32, b: u32) -> u64 {
    u64::from(a & 0xFF_FFFF) * u64::from(b & 0xFF_FFFF)
}

fn product_s24(a: i32, b: i32) -> i64 {
    i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8)
}

/// `dp4a.atype.btype`, `dp2a.mode.atype.btype`: `mode` bit 0: a signed, bit 1: b signed, bit 2: upper half.
fn dot(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let half = line.choice(&[("lo", 0), ("hi", 4)]);
    let (a, b) = (line.ty()?, line.ty()?);
    if !matches!(a, T::U32 | T::S32)
        || !matches!(b, T::U32 | T::S32)
        || (line.name == "dp2a") != half.is_some()
    {
        return line.refuse();
    }
    let run = match line.name {
        "dp4a" => lanes!(mode; |a: u32, b: u32, c: u32| dot_4(mode, a, b, c)),
        _ => lanes!(mode; |a: u32, b: u32, c: u32| dot_2(mode, a, b, c)),
    };
    let mut slots = line.slots(T::U32, 3)?;
    slots.mode = u32::from(a.is_signed()) | u32::from(b.is_signed()) << 1 | half.unwrap_or(0);
    line.rows(run, slots)
}

fn part(value: u32, index: u32, bits: u32, signed: bool) -> i64 {
    let field = value >> (index * bits) & ((1 << bits) - 1);
    if signed { i64::from((field << (32 - bits)) as i32 >> (32 - bits)) } else { i64::from(field) }
}

fn dot_4(mode: u32, a: u32, b: u32, c: u32) -> u32 {
    let product = |index| part(a, index, 8, mode & 1 != 0) * part(b, index, 8, mode & 2 != 0);
    (0..4).map(product).fold(c, |sum, term| sum.wrapping_add(term as u32))
}

fn dot_2(mode: u32, a: u32, b: u32, c: u32) -> u32 {
    let first = if mode & 4 != 0 { 2 } else { 0 };
    let product = |index| part(a, index, 16, mode & 1 != 0) * part(b, first + index, 8, mode & 2 != 0);
    (0..2).map(product).fold(c, |sum, term| sum.wrapping_add(term as u32))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::exec::harness::evaluate;

    /// Extends a 32-bit pattern as PTX reads it.
    fn wide(bits: u32, signed: bool) -> i128 {
        if signed { i128::from(bits as i32) } else { i128::from(bits) }
    }

    proptest! {
        #[test]
        fn thirty_two_bits_follow_wide_integers(a: u32, b: u32, c: u32) {
            for signed in [false, true] {
                let ty = if signed { "s32" } else { "u32" };
                let (x, y, z) = (wide(a, signed), wide(b, signed), wide(c, signed));
                let run = |name: &str| evaluate(&format!("{name}.{ty}"), &[a.into(), b.into(), c.into()]) as u32;
                prop_assert_eq!(run("add"), (x + y) as u32);
                prop_assert_eq!(run("sub"), (x - y) as u32);
                prop_assert_eq!(run("mul.lo"), (x * y) as u32);
                prop_assert_eq!(run("mul.hi"), ((x * y) >> 32) as u32);
                prop_assert_eq!(run("mad.lo"), (x * y + z) as u32);
                prop_assert_eq!(run("mad.hi"), (((x * y) >> 32) + z) as u32);
                prop_assert_eq!(run("min"), x.min(y) as u32);
                prop_assert_eq!(run("max"), x.max(y) as u32);
                prop_assert_eq!(run("sad"), (z + (x - y).abs()) as u32);
                if b != 0 {
                    prop_assert_eq!(run("div"), (x / y) as u32);
                    prop_assert_eq!(run("rem"), (x % y) as u32);
                }
                let product = evaluate(&format!("mul.wide.{ty}"), &[a.into(), b.into()]);
                prop_assert_eq!(product, (x * y) as u64);
                let low = |bits: u32| if signed { i128::from((bits << 8) as i32 >> 8) } else { i128::from(bits & 0xFF_FFFF) };
                prop_assert_eq!(run("mul24.lo"), (low(a) * low(b)) as u32);
                prop_assert_eq!(run("mul24.hi"), ((low(a) * low(b)) >> 16) as u32);
            }
            let sum = i64::from(a as i32) + i64::from(b as i32);
            let clamped = sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32;
            prop_assert_eq!(evaluate("add.sat.s32", &[a.into(), b.into()]) as u32, clamped);
        }

        #[test]
        fn sixty_four_and_sixteen_bits(a: u64, b: u64, c: u64) {
            prop_assert_eq!(evaluate("mul.hi.u64", &[a, b]), ((u128::from(a) * u128::from(b)) >> 64) as u64);
            prop_assert_eq!(evaluate("mad.lo.s64", &[a, b, c]), a.wrapping_mul(b).wrapping_add(c));
            prop_assert_eq!(evaluate("max.s64", &[a, b]) as i64, (a as i64).max(b as i64));
            let (x, y) = (a as u16 as i16, b as u16 as i16);
            let words = [u64::from(x as u16), u64::from(y as u16)];
            prop_assert_eq!(evaluate("sub.s16", &words) as u16, x.wrapping_sub(y) as u16);
            prop_assert_eq!(evaluate("mul.wide.s16", &words) as u32, (i32::from(x) * i32::from(y)) as u32);
            prop_assert_eq!(evaluate("min.s16", &words) as u16, x.min(y) as u16);
        }

        #[test]
        fn dot_products_of_bytes(a: [i8; 4], b: [u8; 4], c: i32) {
            let words = [u32::from_le_bytes(a.map(|x| x as u8)).into(), u32::from_le_bytes(b).into(), u64::from(c as u32)];
            let model = a.iter().zip(b).fold(c, |sum, (a, b)| sum.wrapping_add(i32::from(*a) * i32::from(b)));
            prop_assert_eq!(evaluate("dp4a.s32.u32", &words) as u32, model as u32);
        }
    }

    #[test]
    fn division_by_zero_is_all_ones() {
        assert_eq!(evaluate("div.u32", &[7, 0]) as u32, u32::MAX);
        assert_eq!(evaluate("rem.u32", &[7, 0]) as u32, 7);
        assert_eq!(evaluate("div.s32", &[0x8000_0000, 0xFFFF_FFFF]) as u32, 0x8000_0000);
    }
}
