//! `cvt` (PTX ISA, "Data Movement and Conversion Instructions: cvt").

use half::{bf16, f16};

use super::conversion::{Conversion, Form, convert, is_float, small_bits};
use super::float8;
use super::halves::Small;
use super::rounding::{Rounding, canonical};
use super::rows::{Class, RowFn, Slots, lanes};
use crate::program::{Decoded, Line, Op, Typed, class_of};
use crate::text::ScalarType as T;

pub(crate) const NAMES: &[&str] = &["cvt"];

/// Types by their place here in `Slots::mode`.
const TYPES: [T; 14] = [
    T::U8,
    T::S8,
    T::U16,
    T::S16,
    T::U32,
    T::S32,
    T::U64,
    T::S64,
    T::F16,
    T::Bf16,
    T::F32,
    T::F64,
    T::Tf32,
    T::B8,
];

const FORMS: [Form; 10] = [
    Form::None,
    Form::Float(Rounding::Nearest),
    Form::Float(Rounding::Zero),
    Form::Float(Rounding::Down),
    Form::Float(Rounding::Up),
    Form::Integer(Rounding::Nearest),
    Form::Integer(Rounding::Zero),
    Form::Integer(Rounding::Down),
    Form::Integer(Rounding::Up),
    Form::Away,
];

const FORM_NAMES: [(&str, u32); 9] =
    [("rn", 1), ("rz", 2), ("rm", 3), ("rp", 4), ("rni", 5), ("rzi", 6), ("rmi", 7), ("rpi", 8), ("rna", 9)];

fn number(ty: T) -> Option<u32> {
    TYPES.iter().position(|&found| found == ty).map(|index| index as u32)
}

fn unpack(mode: u32) -> Conversion {
    Conversion {
        to: TYPES[(mode & 15) as usize],
        from: TYPES[(mode >> 4 & 15) as usize],
        form: FORMS[(mode >> 8 & 15) as usize],
        flush: mode >> 12 & 1 != 0,
        saturate: mode >> 13 & 1 != 0,
        relu: mode >> 14 & 1 != 0,
        wide_to: mode >> 15 & 1 != 0,
        wide_from: mode >> 16 & 1 != 0,
    }
}

fn needs_form(to: T, from: T) -> bool {
    match (is_float(to), is_float(from)) {
        (true, true) => to.bytes() < from.bytes() || to == T::Tf32 || (to.bytes() == 2 && to != from),
        (to_float, from_float) => to_float != from_float,
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let form = line.choice(&FORM_NAMES).unwrap_or(0);
    let flushed = line.flag("ftz");
    let saturated = line.flag("sat");
    let finite = line.flag("satfinite");
    let relu = line.flag("relu");
    let (to, from) = (line.ty()?, line.ty()?);
    if (float8::is_pair(to) || float8::is_pair(from)) && !flushed && !saturated {
        return float8::decode(line, to, from, &float8::Modifiers { nearest: form == 1, finite, relu });
    }
    if matches!(to, T::F16x2 | T::Bf16x2) && from == T::F32 {
        if finite || flushed || saturated {
            return line.refuse();
        }
        return pack(line, to, form, relu);
    }
    let (Some(to_number), Some(from_number)) = (number(to), number(from)) else { return line.refuse() };
    let integral = matches!(FORMS[form as usize], Form::Integer(_));
    let to_integral = is_float(from) && (!is_float(to) || (to == from && integral));
    let form_fits = (form != 0) == (needs_form(to, from) || to_integral) && (!integral || to_integral);
    if !form_fits || finite || (relu && !matches!(to, T::F16 | T::Bf16 | T::Tf32)) {
        return line.refuse();
    }
    line.exactly(2)?;
    let (d, a) = (line.any_destination(0)?, line.any_source(1, from)?);
    check_width(line, d, to)?;
    check_width(line, a, from)?;
    let wide = |typed: Typed| u32::from(typed.class == Class::Double);
    let mode = to_number
        | from_number << 4
        | form << 8
        | u32::from(flushed) << 12
        | u32::from(saturated) << 13
        | u32::from(relu) << 14
        | wide(d) << 15
        | wide(a) << 16;
    let run =
        if saturated || flushed { convert_rows } else { fast(to, from, form, d, a).unwrap_or(convert_rows) };
    line.rows(run, Slots { d: d.slot, a: a.slot, mode, ..Slots::NONE })
}

/// Registers may be wider than the type, not narrower.
fn check_width(line: &Line<'_, '_>, typed: Typed, ty: T) -> Decoded<()> {
    let fits = typed.class == Class::Double || (typed.class == Class::Word && class_of(ty) == Class::Word);
    if fits { Ok(()) } else { line.refuse() }
}

fn fast(to: T, from: T, form: u32, d: Typed, a: Typed) -> Option<RowFn> {
    if class_of(to) != d.class || class_of(from) != a.class {
        return None;
    }
    Some(match (to, from, form) {
        (T::U64 | T::S64, T::U32, 0) => lanes!(|a: u32| u64::from(a)),
        (T::U64 | T::S64, T::S32, 0) => lanes!(|a: i32| i64::from(a)),
        (T::U64 | T::S64, T::U16, 0) => lanes!(|a: u32| u64::from(a as u16)),
        (T::U32 | T::S32, T::U64 | T::S64, 0) => lanes!(|a: u64| a as u32),
        (T::U16 | T::S16, T::U64 | T::S64, 0) => lanes!(|a: u64| a as u16),
        (T::U16 | T::S16, T::U32 | T::S32, 0) => lanes!(|a: u32| a as u16),
        (T::U32 | T::S32, T::U16, 0) => lanes!(|a: u16| u32::from(a)),
        (T::F32, T::U32, 1) => lanes!(|a: u32| a as f32),
        (T::F32, T::S32, 1) => lanes!(|a: i32| a as f32),
        (T::F32, T::Bf16, 0) => lanes!(|a: bf16| canonical(a.to_f32())),
        (T::F32, T::F16, 0) => lanes!(|a: f16| canonical(a.to_f32())),
        _ => return None,
    })
}

fn convert_rows(rows: &mut super::rows::Rows<'_>, slots: &Slots) {
    let conversion = unpack(slots.mode);
    let class = |wide: bool| if wide { Class::Double } else { Class::Word };
    let a = rows.wide(slots.a, class(conversion.wide_from));
    let out = a.map(|bits| convert(conversion, bits));
    rows.put_wide(slots.d, class(conversion.wide_to), &out);
}

/// `cvt.rn.bf16x2.f32 d, a, b`: a in the upper half.
fn pack(line: &mut Line<'_, '_>, to: T, form: u32, relu: bool) -> Decoded<Op> {
    let run = match (to, form) {
        (T::Bf16x2, 1) if !relu => lanes!(|a: f32, b: f32| [nearest_bf16(b), nearest_bf16(a)]),
        (T::Bf16x2, 1 | 2) => lanes!(mode; |a: f32, b: f32| [small::<bf16>(mode, b), small::<bf16>(mode, a)]),
        (T::F16x2, 1 | 2) => lanes!(mode; |a: f32, b: f32| [small::<f16>(mode, b), small::<f16>(mode, a)]),
        _ => return line.refuse(),
    };
    line.exactly(3)?;
    let slots = Slots {
        d: line.destination(0, T::B32)?,
        a: line.source(1, T::F32)?,
        b: line.source(2, T::F32)?,
        mode: form << 8 | u32::from(relu) << 14,
        ..Slots::NONE
    };
    line.rows(run, slots)
}

#[inline(always)]
fn nearest_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    if value.is_nan() { 0x7FFF } else { rounded as u16 }
}

fn small<S: Small>(mode: u32, value: f32) -> u16 {
    let conversion = unpack(mode);
    let rounding =
        if conversion.form == Form::Float(Rounding::Zero) { Rounding::Zero } else { Rounding::Nearest };
    small_bits::<S>(conversion, f64::from(value), rounding) as u16
}
