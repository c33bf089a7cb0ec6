//! f16 and bf16 arithmetic, single and packed (PTX ISA, "Half Precision Floating-Point Instructions" and
//! "Mixed Precision").
//!
//! Sums, products and fused multiply-adds of 16-bit floats are exact in binary64 (products have at most 22
//! bits; `fma` is rounded to odd first), so one rounding from there is the right one.

use half::{bf16, f16};

use super::float::extreme_f32;
use super::rounding::{Mode, Rounding, round_to_f32};
use super::rows::{Lane, Pair, RowFn, Rows, Slots, map1, map2, map3};
use crate::program::{Decoded, Line, Op, Refusal};
use crate::text::ScalarType as T;

pub(crate) const NAMES: &[&str] = &["add", "sub", "mul", "fma", "abs", "neg", "min", "max", "ex2", "tanh"];

/// A 16-bit float.
pub(crate) trait Small: Lane {
    fn wide(self) -> f64;
    /// Rounds the exact value `high + low` to nearest even, NaN to the canonical one.
    fn narrow(value: f64) -> Self;
    fn bits(self) -> u16;
    fn of_bits(bits: u16) -> Self;
    const NAN_BITS: u16 = 0x7FFF;
    const MIN_NORMAL: f64;
}

/// A binary64 value rounded once to f16: through binary32 by rounding to odd.
fn odd_f32(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || !near.is_finite() || value.is_nan() {
        return near;
    }
    let down = round_to_f32(value, 0.0, Rounding::Zero);
    if down.to_bits() & 1 != 0 { down } else { f32::from_bits(down.to_bits() + 1) }
}

impl Small for f16 {
    fn wide(self) -> f64 {
        self.to_f64()
    }
    fn narrow(value: f64) -> Self {
        if value.is_nan() { Self::from_bits(Self::NAN_BITS) } else { Self::from_f32(odd_f32(value)) }
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
    fn of_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    const MIN_NORMAL: f64 = 6.103515625e-5;
}

impl Small for bf16 {
    fn wide(self) -> f64 {
        self.to_f64()
    }
    fn narrow(value: f64) -> Self {
        if value.is_nan() { Self::from_bits(Self::NAN_BITS) } else { Self::from_f32(odd_f32(value)) }
    }
    fn bits(self) -> u16 {
        self.to_bits()
    }
    fn of_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    const MIN_NORMAL: f64 = f32::MIN_POSITIVE as f64;
}

const RELU: u32 = 1 << 7;
const KEEP_NAN: u32 = 1 << 4;
const XOR_SIGN: u32 = 1 << 5;
const LARGEST: u32 = 1 << 6;

fn input<S: Small>(bits: u32, value: S) -> f64 {
    let wide = value.wide();
    if bits & 4 != 0 && wide.abs() < S::MIN_NORMAL { 0f64.copysign(wide) } else { wide }
}

fn output<S: Small>(bits: u32, value: f64) -> S {
    let mode = Mode::unpack(bits);
    let mut out = S::narrow(value);
    if mode.flush && out.wide().abs() < S::MIN_NORMAL {
        out = S::narrow(0f64.copysign(out.wide()));
    }
    if mode.saturate {
        let wide = out.wide();
        out = S::narrow(if wide > 0.0 { wide.min(1.0) } else { 0.0 });
    }
    // As `max` with +0 would, which is above -0.
    if bits & RELU != 0 && out.wide() <= 0.0 {
        out = S::narrow(0.0);
    }
    out
}

fn sum<S: Small>(bits: u32, a: S, b: S) -> S {
    output(bits, input(bits, a) + input(bits, b))
}

fn difference<S: Small>(bits: u32, a: S, b: S) -> S {
    output(bits, input(bits, a) - input(bits, b))
}

fn product<S: Small>(bits: u32, a: S, b: S) -> S {
    output(bits, input(bits, a) * input(bits, b))
}

fn fused<S: Small>(bits: u32, a: S, b: S, c: S) -> S {
    // The product is exact; the sum is rounded to odd so that the second rounding is harmless.
    let (a, b, c) = (input(bits, a), input(bits, b), input(bits, c));
    let product = a * b;
    let sum = product + c;
    let virtual_c = sum - product;
    let error = (product - (sum - virtual_c)) + (c - virtual_c);
    let odd = if error == 0.0 || !error.is_finite() || sum.to_bits() & 1 != 0 {
        sum
    } else if (error > 0.0) == (sum > 0.0) {
        f64::from_bits(sum.to_bits() + 1)
    } else {
        f64::from_bits(sum.to_bits() - 1)
    };
    output(bits, odd)
}

fn extreme<S: Small>(bits: u32, a: S, b: S) -> S {
    let (x, y) = (input(bits, a) as f32, input(bits, b) as f32);
    S::narrow(f64::from(extreme_f32(bits & !4, x, y)))
}

fn absolute<S: Small>(bits: u32, a: S) -> S {
    if bits & 4 != 0 { output(bits, input(bits, a).abs()) } else { S::of_bits(a.bits() & 0x7FFF) }
}

fn negated<S: Small>(bits: u32, a: S) -> S {
    if bits & 4 != 0 { output(bits, -input(bits, a)) } else { S::of_bits(a.bits() ^ 0x8000) }
}

fn power_of_two<S: Small>(bits: u32, a: S) -> S {
    output(bits, input(bits, a).exp2())
}

fn hyperbolic_tangent<S: Small>(bits: u32, a: S) -> S {
    output(bits, input(bits, a).tanh())
}

fn one<S: Small>(rows: &mut Rows<'_>, slots: &Slots, f: fn(u32, S) -> S, packed: bool)
where
    Pair<S>: Lane,
{
    let bits = slots.mode;
    if packed {
        map1(rows, slots, |a: Pair<S>| [f(bits, a[0]), f(bits, a[1])]);
    } else {
        map1(rows, slots, |a: S| f(bits, a));
    }
}

fn two<S: Small>(rows: &mut Rows<'_>, slots: &Slots, f: fn(u32, S, S) -> S, packed: bool)
where
    Pair<S>: Lane,
{
    let bits = slots.mode;
    if packed {
        map2(rows, slots, |a: Pair<S>, b: Pair<S>| [f(bits, a[0], b[0]), f(bits, a[1], b[1])]);
    } else {
        map2(rows, slots, |a: S, b: S| f(bits, a, b));
    }
}

fn three<S: Small>(rows: &mut Rows<'_>, slots: &Slots, f: fn(u32, S, S, S) -> S, packed: bool)
where
    Pair<S>: Lane,
{
    let bits = slots.mode;
    if packed {
        map3(rows, slots, |a: Pair<S>, b: Pair<S>, c: Pair<S>| {
            [f(bits, a[0], b[0], c[0]), f(bits, a[1], b[1], c[1])]
        });
    } else {
        map3(rows, slots, |a: S, b: S, c: S| f(bits, a, b, c));
    }
}

/// The function of one name for the four types.
macro_rules! of_types {
    ($arity:ident, $f:ident, $ty:expr) => {
        match $ty {
            T::F16 => |rows, slots| $arity::<f16>(rows, slots, $f, false),
            T::F16x2 => |rows, slots| $arity::<f16>(rows, slots, $f, true),
            T::Bf16 => |rows, slots| $arity::<bf16>(rows, slots, $f, false),
            _ => |rows, slots| $arity::<bf16>(rows, slots, $f, true),
        }
    };
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    line.flag("rn");
    let mode = Mode { rounding: Rounding::Nearest, flush: line.flag("ftz"), saturate: line.flag("sat") };
    let mut bits = mode.pack();
    let extreme_value = matches!(line.name, "min" | "max");
    let approximate = matches!(line.name, "ex2" | "tanh");
    if extreme_value && line.flag("NaN") {
        bits |= KEEP_NAN;
    }
    if extreme_value && line.flag("xorsign") {
        bits |= XOR_SIGN;
        line.flag("abs");
    }
    if line.name == "max" {
        bits |= LARGEST;
    }
    if line.name == "fma" && line.flag("relu") {
        bits |= RELU;
    }
    if approximate != line.flag("approx") || (mode.saturate && (extreme_value || approximate)) {
        return Err(Refusal::Form);
    }
    let ty = line.ty()?;
    let (run, sources): (RowFn, _) = match line.name {
        "add" => (of_types!(two, sum, ty), 2),
        "sub" => (of_types!(two, difference, ty), 2),
        "mul" => (of_types!(two, product, ty), 2),
        "fma" => (of_types!(three, fused, ty), 3),
        "min" | "max" => (of_types!(two, extreme, ty), 2),
        "abs" => (of_types!(one, absolute, ty), 1),
        "neg" => (of_types!(one, negated, ty), 1),
        "ex2" => (of_types!(one, power_of_two, ty), 1),
        "tanh" => (of_types!(one, hyperbolic_tangent, ty), 1),
        _ => return line.refuse(),
    };
    let mut slots = line.slots(ty, sources)?;
    slots.mode = bits;
    line.rows(run, slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn same<S: Small>(ours: S, model: f32, narrow: fn(f32) -> S) -> bool {
        let model = narrow(model);
        ours.bits() == model.bits() || ours.wide().is_nan() && model.wide().is_nan()
    }

    proptest! {
        // Sums and products of 11-bit numbers round in binary32 as they would directly, f16's range permitting
        // (Figueroa's condition, p >= 2q + 2, holds for both formats).
        #[test]
        fn f16_agrees_with_half(a: u16, b: u16) {
            let (a, b) = (f16::from_bits(a), f16::from_bits(b));
            prop_assert!(same(sum(0, a, b), a.to_f32() + b.to_f32(), f16::from_f32));
            prop_assert!(same(difference(0, a, b), a.to_f32() - b.to_f32(), f16::from_f32));
            prop_assert!(same(product(0, a, b), a.to_f32() * b.to_f32(), f16::from_f32));
        }

        #[test]
        fn bf16_agrees_with_half(a: u16, b: u16) {
            let (a, b) = (bf16::from_bits(a), bf16::from_bits(b));
            prop_assert!(same(sum(0, a, b), a.to_f32() + b.to_f32(), bf16::from_f32));
            prop_assume!((a.to_f64() * b.to_f64()).abs() > 1e-37 || a.to_f32() * b.to_f32() == 0.0);
            prop_assert!(same(product(0, a, b), a.to_f32() * b.to_f32(), bf16::from_f32));
        }

        #[test]
        fn fused_is_the_nearest(a in -100f32..100.0, b in -100f32..100.0, c in -100f32..100.0) {
            let (a, b, c) = (f16::from_f32(a), f16::from_f32(b), f16::from_f32(c));
            let exact = a.to_f64() * b.to_f64() + c.to_f64();
            let ours = fused(0, a, b, c);
            for other in [ours.to_bits().wrapping_sub(1), ours.to_bits().wrapping_add(1)] {
                let other = f16::from_bits(other).to_f64();
                prop_assert!(other.is_nan() || (ours.to_f64() - exact).abs() <= (other - exact).abs());
            }
        }
    }

    #[test]
    fn extremes_and_flags() {
        let (nan, one, minus) = (f16::NAN, f16::ONE, f16::NEG_ONE);
        assert_eq!(extreme(LARGEST, nan, one), one);
        assert_eq!(extreme::<f16>(LARGEST | KEEP_NAN, nan, one).to_bits(), 0x7FFF);
        assert_eq!(extreme(0, one, minus), minus);
        assert_eq!(fused(RELU, one, minus, f16::ZERO), f16::ZERO);
        assert_eq!(sum(8, one, one), one, "saturated");
    }
}
