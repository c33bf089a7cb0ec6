//! Values from type to type, exact until the one rounding at the end.

use half::{bf16, f16};

use super::halves::Small;
use super::rounding::{Rounding, canonical, flush, round_to_f32, round_to_odd, saturate, step_f64};
use crate::text::ScalarType as T;

/// How values are rounded, to integers or to the precision of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    None,
    Float(Rounding),
    Integer(Rounding),
    /// Ties away from zero, for tf32.
    Away,
}

/// What a conversion does; `wide_*` tell 64-bit registers.
#[derive(Clone, Copy)]
pub(super) struct Conversion {
    pub(super) to: T,
    pub(super) from: T,
    pub(super) form: Form,
    pub(super) flush: bool,
    pub(super) saturate: bool,
    pub(super) relu: bool,
    pub(super) wide_to: bool,
    pub(super) wide_from: bool,
}

pub(super) fn is_float(ty: T) -> bool {
    matches!(ty, T::F16 | T::Bf16 | T::F32 | T::F64 | T::Tf32)
}

/// A value on its way: integers and floats are both exact.
#[derive(Clone, Copy)]
enum Value {
    Integer(i128),
    Float(f64),
}

fn read(conversion: Conversion, bits: u64) -> Value {
    let single = |value: f32| f64::from(if conversion.flush { flush(value) } else { value });
    match conversion.from {
        T::U8 | T::B8 => Value::Integer(i128::from(bits as u8)),
        T::S8 => Value::Integer(i128::from(bits as i8)),
        T::U16 => Value::Integer(i128::from(bits as u16)),
        T::S16 => Value::Integer(i128::from(bits as i16)),
        T::U32 => Value::Integer(i128::from(bits as u32)),
        T::S32 => Value::Integer(i128::from(bits as i32)),
        T::U64 => Value::Integer(i128::from(bits)),
        T::S64 => Value::Integer(i128::from(bits as i64)),
        T::F16 => Value::Float(f16::from_bits(bits as u16).to_f64()),
        T::Bf16 => Value::Float(bf16::from_bits(bits as u16).to_f64()),
        T::F64 => Value::Float(f64::from_bits(bits)),
        _ => Value::Float(single(f32::from_bits(bits as u32))),
    }
}

pub(super) fn convert(conversion: Conversion, bits: u64) -> u64 {
    match (read(conversion, bits), is_float(conversion.to)) {
        (Value::Integer(value), false) => integer_bits(conversion, value),
        (Value::Float(value), false) => float_to_integer(conversion, value),
        (Value::Integer(value), true) => {
            let high = value as f64;
            let low = (value - high as i128) as f64;
            float_bits(conversion, high, low)
        }
        (Value::Float(value), true) => {
            let value = match conversion.form {
                Form::Integer(rounding) => integral(value, rounding),
                _ => value,
            };
            float_bits(conversion, value, 0.0)
        }
    }
}

fn range(ty: T) -> (i128, i128) {
    match ty {
        T::U8 | T::B8 => (0, u8::MAX.into()),
        T::S8 => (i8::MIN.into(), i8::MAX.into()),
        T::U16 => (0, u16::MAX.into()),
        T::S16 => (i16::MIN.into(), i16::MAX.into()),
        T::U32 => (0, u32::MAX.into()),
        T::S32 => (i32::MIN.into(), i32::MAX.into()),
        T::U64 => (0, u64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    }
}

/// The low bits, extended by sign or zero as the result's type says.
fn integer_bits(conversion: Conversion, value: i128) -> u64 {
    let (least, most) = range(conversion.to);
    let value = if conversion.saturate { value.clamp(least, most) } else { value };
    match conversion.to {
        T::U8 | T::B8 => u64::from(value as u8),
        T::S8 => value as i8 as u64,
        T::U16 => u64::from(value as u16),
        T::S16 => value as i16 as u64,
        T::U32 => u64::from(value as u32),
        T::S32 => value as i32 as u64,
        _ => value as u64,
    }
}

fn integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// Out of range values are clamped. NaN becomes 0, or the top bit alone where 64 bits are involved.
fn float_to_integer(conversion: Conversion, value: f64) -> u64 {
    let Form::Integer(rounding) = conversion.form else { return 0 };
    let (least, most) = range(conversion.to);
    if value.is_nan() {
        let wide = conversion.from == T::F64 || conversion.to.bytes() == 8;
        let top = 1 << (8 * conversion.to.bytes() - 1);
        return if wide { integer_bits(Conversion { saturate: false, ..conversion }, top) } else { 0 };
    }
    let value = (integral(value, rounding) as i128).clamp(least, most);
    integer_bits(conversion, value)
}

fn float_bits(conversion: Conversion, high: f64, low: f64) -> u64 {
    let rounding = match conversion.form {
        Form::Float(rounding) => rounding,
        _ => Rounding::Nearest,
    };
    match conversion.to {
        T::F64 if low == 0.0 => high.to_bits(),
        T::F64 => step_f64(high, low, rounding).to_bits(),
        T::F16 => small_bits::<f16>(conversion, round_to_odd(high, low), rounding),
        T::Bf16 => small_bits::<bf16>(conversion, round_to_odd(high, low), rounding),
        T::Tf32 => tf32_bits(conversion, high as f32, rounding),
        _ => {
            let value = round_to_f32(high, low, rounding);
            let value = if conversion.flush { flush(value) } else { value };
            let value = if conversion.saturate { saturate(value) } else { value };
            u64::from(canonical(value).to_bits())
        }
    }
}

pub(super) fn small_bits<S: Small>(conversion: Conversion, value: f64, rounding: Rounding) -> u64 {
    let value = if conversion.saturate { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
    let value = if conversion.relu && value <= 0.0 { 0.0 } else { value };
    let nearest = S::narrow(value);
    let toward = |condition: bool, step: i16| {
        if condition { nearest.bits().wrapping_add_signed(step) } else { nearest.bits() }
    };
    let bits = match rounding {
        _ if value.is_nan() || value.is_infinite() => nearest.bits(),
        Rounding::Nearest => nearest.bits(),
        Rounding::Zero => toward(nearest.wide().abs() > value.abs(), -1),
        Rounding::Down if value >= 0.0 => toward(nearest.wide() > value, -1),
        Rounding::Up if value <= 0.0 => toward(nearest.wide() < value, -1),
        Rounding::Down => toward(nearest.wide() > value, 1),
        Rounding::Up => toward(nearest.wide() < value, 1),
    };
    u64::from(bits)
}

/// 10 bits of fraction, the low 13 of the word zero.
fn tf32_bits(conversion: Conversion, value: f32, rounding: Rounding) -> u64 {
    let value = if conversion.relu && value <= 0.0 { 0.0 } else { value };
    if value.is_nan() {
        return 0x7FFF_FFFF;
    }
    let bits = value.to_bits();
    let rounded = match (conversion.form, rounding) {
        _ if value.is_infinite() => bits,
        (Form::Away, _) => bits + 0x1000,
        (_, Rounding::Zero) => bits,
        _ => bits + 0xFFF + (bits >> 13 & 1),
    };
    u64::from(rounded & !0x1FFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn conversion(to: T, from: T, form: Form) -> Conversion {
        Conversion {
            to,
            from,
            form,
            flush: false,
            saturate: false,
            relu: false,
            wide_to: false,
            wide_from: false,
        }
    }

    proptest! {
        #[test]
        fn integers_as_rust_casts_them(value: i64) {
            for (to, model) in [
                (T::U8, value as u8 as u64), (T::S8, value as i8 as u64), (T::S16, value as i16 as u64),
                (T::U32, value as u32 as u64), (T::S32, value as i32 as u64),
            ] {
                prop_assert_eq!(convert(conversion(to, T::S64, Form::None), value as u64), model);
            }
            let near = Form::Float(Rounding::Nearest);
            prop_assert_eq!(convert(conversion(T::F32, T::S64, near), value as u64), u64::from((value as f32).to_bits()));
            prop_assert_eq!(convert(conversion(T::F64, T::U64, near), value as u64), (value as u64 as f64).to_bits());
        }

        #[test]
        fn floats_to_integers_saturate(bits: u32) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            let truncated = |to| convert(conversion(to, T::F32, Form::Integer(Rounding::Zero)), bits.into());
            prop_assert_eq!(truncated(T::S32) as u32, value as i32 as u32);
            prop_assert_eq!(truncated(T::U64), value as u64);
        }

        #[test]
        fn small_floats_as_half_rounds_them(bits: u32) {
            let value = f32::from_bits(bits);
            prop_assume!(!value.is_nan());
            let near = Form::Float(Rounding::Nearest);
            prop_assert_eq!(convert(conversion(T::Bf16, T::F32, near), bits.into()), u64::from(bf16::from_f32(value).to_bits()));
            prop_assert_eq!(convert(conversion(T::F16, T::F32, near), bits.into()), u64::from(f16::from_f32(value).to_bits()));
        }

        #[test]
        fn small_floats_toward_zero(value in -70000f32..70000.0) {
            let zero = Form::Float(Rounding::Zero);
            let half = f16::from_bits(convert(conversion(T::F16, T::F32, zero), value.to_bits().into()) as u16);
            prop_assert!(half.to_f32().abs() <= value.abs());
            prop_assert!(f16::from_bits(half.to_bits() + 1).to_f32().abs() > value.abs());
        }
    }

    #[test]
    fn nan_and_tf32() {
        let to = |to, from, bits| convert(conversion(to, from, Form::Integer(Rounding::Zero)), bits);
        assert_eq!(to(T::S32, T::F32, f32::NAN.to_bits().into()), 0);
        assert_eq!(to(T::S64, T::F32, f32::NAN.to_bits().into()), 1 << 63);
        let away = conversion(T::Tf32, T::F32, Form::Away);
        assert_eq!(convert(away, 0x3F80_1000), 0x3F80_2000);
        assert_eq!(convert(away, 0x3F80_0FFF), 0x3F80_0000);
    }
}
