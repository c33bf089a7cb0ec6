//! `cvt` to and from pairs of 8-bit floats: e4m3 and e5m2 (PTX ISA, "Alternate Floating-Point Data Formats").
//!
//! Of 8 bits, 4 or 5 are the exponent's. e5m2 is binary16 without the low half; e4m3 has no infinities, and one NaN.

use half::f16;

use super::rows::{Slots, lanes};
use crate::program::{Decoded, Line, Op};
use crate::text::ScalarType as T;

/// An 8-bit format.
#[derive(Debug, Clone, Copy)]
struct Format {
    fraction_bits: i32,
    /// Of the smallest normal number.
    least_exponent: i32,
    largest: f64,
}

const E4M3: Format = Format { fraction_bits: 3, least_exponent: -6, largest: 448.0 };
const E5M2: Format = Format { fraction_bits: 2, least_exponent: -14, largest: 57344.0 };
/// In both formats.
const NAN: u8 = 0x7F;
const NAN_F16: u16 = 0x7FFF;

const IS_E5M2: u32 = 1;
const RELU: u32 = 2;

fn format(mode: u32) -> Format {
    if mode & IS_E5M2 != 0 { E5M2 } else { E4M3 }
}

pub(super) fn is_pair(ty: T) -> bool {
    matches!(ty, T::E4m3x2 | T::E5m2x2)
}

/// What the modifiers of a conversion are, beside its types.
pub(super) struct Modifiers {
    /// `.rn`
    pub(super) nearest: bool,
    pub(super) finite: bool,
    pub(super) relu: bool,
}

pub(super) fn decode(line: &mut Line<'_, '_>, to: T, from: T, modifiers: &Modifiers) -> Decoded<Op> {
    let e5m2 = to == T::E5m2x2 || from == T::E5m2x2;
    let mode = if e5m2 { IS_E5M2 } else { 0 } | if modifiers.relu { RELU } else { 0 };
    // `.satfinite` has to be said of 8-bit results, and of no others.
    if !modifiers.nearest || modifiers.finite != is_pair(to) {
        return line.refuse();
    }
    let slots = match (to, from) {
        (T::E4m3x2 | T::E5m2x2, T::F32) => {
            line.exactly(3)?;
            let d = line.destination(0, T::B16)?;
            let (a, b) = (line.source(1, T::F32)?, line.source(2, T::F32)?);
            let slots = Slots { d, a, b, mode, ..Slots::NONE };
            return line.rows(lanes!(mode; |a: f32, b: f32| pair(mode, f64::from(a), f64::from(b))), slots);
        }
        (T::E4m3x2 | T::E5m2x2, T::F16x2) => (T::B16, T::B32),
        (T::F16x2, T::E4m3x2 | T::E5m2x2) => (T::B32, T::B16),
        _ => return line.refuse(),
    };
    line.exactly(2)?;
    let slots = Slots { d: line.destination(0, slots.0)?, a: line.source(1, slots.1)?, mode, ..Slots::NONE };
    if is_pair(to) {
        line.rows(lanes!(mode; |a: u32| pair(mode, high_half(a), low_half(a))), slots)
    } else {
        line.rows(lanes!(mode; |a: u32| [widen(mode, a as u8), widen(mode, (a >> 8) as u8)]), slots)
    }
}

fn low_half(bits: u32) -> f64 {
    f16::from_bits(bits as u16).to_f64()
}

fn high_half(bits: u32) -> f64 {
    f16::from_bits((bits >> 16) as u16).to_f64()
}

fn pair(mode: u32, high: f64, low: f64) -> u16 {
    u16::from(narrow(mode, high)) << 8 | u16::from(narrow(mode, low))
}

/// Rounded to nearest even; what is too large becomes the largest number.
fn narrow(mode: u32, value: f64) -> u8 {
    if value.is_nan() {
        return NAN;
    }
    if mode & RELU != 0 && value.is_sign_negative() {
        return 0;
    }
    let Format { fraction_bits, least_exponent, largest } = format(mode);
    let sign = u8::from(value.is_sign_negative()) << 7;
    let magnitude = value.abs().min(largest);
    // The exponent of binary64 is that of the value, unless it is far below.
    let exponent = ((magnitude.to_bits() >> 52) as i32 - 1023).max(least_exponent);
    let ulp = f64::from(exponent - fraction_bits).exp2();
    let steps = (magnitude / ulp).round_ties_even() as i32;
    // Steps of a normal number begin with its leading 1, which the exponent counts.
    let bits = ((exponent - least_exponent) << fraction_bits) + steps;
    sign | bits as u8
}

fn widen(mode: u32, bits: u8) -> u16 {
    let Format { fraction_bits, least_exponent, largest } = format(mode);
    let (exponent, fraction) =
        (i32::from(bits & 0x7F) >> fraction_bits, i32::from(bits) & ((1 << fraction_bits) - 1));
    let steps = if exponent == 0 { fraction } else { fraction + (1 << fraction_bits) };
    let ulp = f64::from(exponent.max(1) - 1 + least_exponent - fraction_bits).exp2();
    let magnitude = f64::from(steps) * ulp;
    let is_special = magnitude > largest;
    let is_infinite = is_special && mode & IS_E5M2 != 0 && fraction == 0;
    if is_special && !is_infinite {
        return NAN_F16;
    }
    if mode & RELU != 0 && bits & 0x80 != 0 {
        return 0;
    }
    let value = f16::from_f64(if is_infinite { f64::INFINITY } else { magnitude });
    value.to_bits() | u16::from(bits & 0x80) << 8
}
