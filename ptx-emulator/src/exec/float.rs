//! Floating-point arithmetic in f32 and f64 (PTX ISA, "Floating-Point Instructions").
//!
//! Exact instructions are exact in every rounding mode. Approximate ones (`ex2.approx`, `sin.approx`, …) are
//! computed in binary64 and rounded once, which is within 0.51 ulp and so within every bound that PTX gives;
//! a GPU may differ by its own bound (2 ulp for `ex2`, 2^-22.6 relative for `lg2` away from 1, …).

use super::rounding::{self as exact, Mode, Rounding, canonical, flush};
use super::rows::{RowFn, Slots, lanes};
use crate::program::{Decoded, Line, Op, Refusal};
use crate::text::ScalarType as T;

pub(crate) const NAMES: &[&str] = &[
    "add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "rsqrt", "abs", "neg", "min", "max", "sin",
    "cos", "lg2", "ex2", "tanh", "copysign",
];

const ROUNDINGS: [(&str, Rounding); 4] =
    [("rn", Rounding::Nearest), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)];

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let rounding = line.choice(&ROUNDINGS);
    let mode = Mode {
        rounding: rounding.unwrap_or(Rounding::Nearest),
        flush: line.flag("ftz"),
        saturate: line.flag("sat"),
    };
    match line.ty()? {
        T::F32 => single(line, mode, rounding.is_some()),
        T::F64 => double(line, mode, rounding.is_some()),
        _ => line.refuse(),
    }
}

fn finish(line: &mut Line<'_, '_>, ty: T, run: RowFn, sources: usize, mode: Mode) -> Decoded<Op> {
    let mut slots: Slots = line.slots(ty, sources)?;
    slots.mode = mode.pack();
    line.rows(run, slots)
}

/// A function of f32 with flushed inputs and a flushed, saturated, canonical result.
macro_rules! single {
    (|$mode:ident, $($arg:ident),+| $body:expr) => {
        lanes!(bits; |$($arg: f32),+| {
            let $mode = Mode::unpack(bits);
            $(let $arg = $mode.input($arg);)+
            $mode.output($body)
        })
    };
}

fn single(line: &mut Line<'_, '_>, mode: Mode, rounded: bool) -> Decoded<Op> {
    let plain = mode.pack() == 0;
    let (run, sources) = match line.name {
        "add" if plain => (lanes!(|a: f32, b: f32| canonical(a + b)), 2),
        "sub" if plain => (lanes!(|a: f32, b: f32| canonical(a - b)), 2),
        "mul" if plain => (lanes!(|a: f32, b: f32| canonical(a * b)), 2),
        "fma" | "mad" if plain && rounded => {
            (lanes!(|a: f32, b: f32, c: f32| canonical(exact::fma_f32(a, b, c, Rounding::Nearest))), 3)
        }
        "add" => (single!(|m, a, b| exact::add_f32(a, b, m.rounding)), 2),
        "sub" => (single!(|m, a, b| exact::add_f32(a, -b, m.rounding)), 2),
        "mul" => (single!(|m, a, b| exact::mul_f32(a, b, m.rounding)), 2),
        "fma" | "mad" if rounded => (single!(|m, a, b, c| exact::fma_f32(a, b, c, m.rounding)), 3),
        "abs" if !rounded && !mode.saturate => (single!(|m, a| a.abs()), 1),
        "neg" if !rounded && !mode.saturate => (single!(|m, a| -a), 1),
        "min" | "max" if !rounded && !mode.saturate => return extreme(line, mode),
        "copysign" if plain && !rounded => (lanes!(|a: f32, b: f32| b.copysign(a)), 2),
        _ if !mode.saturate => return quotient(line, mode, rounded),
        _ => return line.refuse(),
    };
    finish(line, T::F32, run, sources, mode)
}

/// Division, roots and transcendental functions.
fn quotient(line: &mut Line<'_, '_>, mode: Mode, rounded: bool) -> Decoded<Op> {
    let approximate = line.flag("approx");
    let full = line.flag("full");
    if usize::from(approximate) + usize::from(full) + usize::from(rounded) != 1 {
        return line.refuse();
    }
    let (run, sources) = match line.name {
        "div" if rounded => (single!(|m, a, b| exact::div_f32(a, b, m.rounding)), 2),
        "div" if full => (single!(|m, a, b| (f64::from(a) / f64::from(b)) as f32), 2),
        "div" => (single!(|m, a, b| approximate_quotient(a, b)), 2),
        "rcp" if rounded => (single!(|m, a| exact::div_f32(1.0, a, m.rounding)), 1),
        "rcp" => (single!(|m, a| (1.0 / f64::from(a)) as f32), 1),
        "sqrt" if rounded => (single!(|m, a| exact::sqrt_f32(a, m.rounding)), 1),
        "sqrt" => (single!(|m, a| f64::from(a).sqrt() as f32), 1),
        "rsqrt" if approximate => (single!(|m, a| (1.0 / f64::from(a).sqrt()) as f32), 1),
        "sin" if approximate => (single!(|m, a| f64::from(a).sin() as f32), 1),
        "cos" if approximate => (single!(|m, a| f64::from(a).cos() as f32), 1),
        "lg2" if approximate => (single!(|m, a| f64::from(a).log2() as f32), 1),
        "ex2" if approximate => (single!(|m, a| f64::from(a).exp2() as f32), 1),
        "tanh" if approximate && !mode.flush => (single!(|m, a| f64::from(a).tanh() as f32), 1),
        _ => return line.refuse(),
    };
    finish(line, T::F32, run, sources, mode)
}

/// `div.approx`: for 2^126 < |b| < 2^128 the reciprocal underflows, and the result is 0 (NaN for infinite a).
fn approximate_quotient(a: f32, b: f32) -> f32 {
    let magnitude = b.abs();
    if magnitude > 2f32.powi(126) && magnitude.is_finite() {
        return if a.is_finite() { 0f32.copysign(a) * 1f32.copysign(b) } else { f32::NAN };
    }
    (f64::from(a) / f64::from(b)) as f32
}

/// `min`/`max`: one NaN loses, unless `.NaN`; -0 < +0; `.xorsign.abs` compares magnitudes.
fn extreme(line: &mut Line<'_, '_>, mode: Mode) -> Decoded<Op> {
    let keep_nan = line.flag("NaN");
    let xor_sign = line.flag("xorsign");
    if xor_sign != line.flag("abs") {
        return line.refuse();
    }
    let largest = line.name == "max";
    let bits = mode.pack() | u32::from(keep_nan) << 4 | u32::from(xor_sign) << 5 | u32::from(largest) << 6;
    // Two sources, or three with PTX 8.8.
    let sources = line.count() - 1;
    if !(2..=3).contains(&sources) {
        return line.exactly(3).and(line.refuse());
    }
    let run = match sources {
        2 => lanes!(bits; |a: f32, b: f32| extreme_f32(bits, a, b)),
        _ => lanes!(bits; |a: f32, b: f32, c: f32| extreme_f32(bits, extreme_f32(bits, a, b), c)),
    };
    let mut slots = line.slots(T::F32, sources)?;
    slots.mode = bits;
    line.rows(run, slots)
}

pub(crate) fn extreme_f32(bits: u32, a: f32, b: f32) -> f32 {
    let [a, b] = if bits & 4 != 0 { [flush(a), flush(b)] } else { [a, b] };
    let sign = bits & 32 != 0;
    let [x, y] = if sign { [a.abs(), b.abs()] } else { [a, b] };
    let chosen = match (x.is_nan(), y.is_nan()) {
        (true, true) => return canonical(f32::NAN),
        (true, false) | (false, true) if bits & 16 != 0 => return canonical(f32::NAN),
        (true, false) => y,
        (false, true) => x,
        // total_cmp orders the zeros.
        _ if (x.total_cmp(&y).is_gt()) == (bits & 64 != 0) => x,
        _ => y,
    };
    if sign { chosen.abs().copysign(f32::from_bits(a.to_bits() ^ b.to_bits())) } else { chosen }
}

macro_rules! double {
    (|$mode:ident, $($arg:ident),+| $body:expr) => {
        lanes!(bits; |$($arg: f64),+| { let $mode = Mode::unpack(bits).rounding; $body })
    };
}

fn double(line: &mut Line<'_, '_>, mode: Mode, rounded: bool) -> Decoded<Op> {
    let approximate = line.flag("approx");
    if mode.saturate || (mode.flush && !(approximate && matches!(line.name, "rcp" | "rsqrt"))) {
        return Err(Refusal::Form);
    }
    let (run, sources) = match line.name {
        "rcp" if approximate => (lanes!(|a: f64| coarse(1.0 / flush_f64(a))), 1),
        "rsqrt" if approximate => (lanes!(|a: f64| coarse(1.0 / flush_f64(a).sqrt())), 1),
        _ if approximate => return line.refuse(),
        "add" => (double!(|m, a, b| exact::add_f64(a, b, m)), 2),
        "sub" => (double!(|m, a, b| exact::add_f64(a, -b, m)), 2),
        "mul" => (double!(|m, a, b| exact::mul_f64(a, b, m)), 2),
        "fma" | "mad" if rounded => (double!(|m, a, b, c| exact::fma_f64(a, b, c, m)), 3),
        "div" if rounded => (double!(|m, a, b| exact::div_f64(a, b, m)), 2),
        "rcp" if rounded => (double!(|m, a| exact::div_f64(1.0, a, m)), 1),
        "sqrt" if rounded => (double!(|m, a| exact::sqrt_f64(a, m)), 1),
        "abs" if !rounded => (lanes!(|a: f64| a.abs()), 1),
        "neg" if !rounded => (lanes!(|a: f64| -a), 1),
        "copysign" if !rounded => (lanes!(|a: f64, b: f64| b.copysign(a)), 2),
        "min" if !rounded => (lanes!(|a: f64, b: f64| extreme_f64(false, a, b)), 2),
        "max" if !rounded => (lanes!(|a: f64, b: f64| extreme_f64(true, a, b)), 2),
        _ => return line.refuse(),
    };
    finish(line, T::F64, run, sources, mode)
}

fn flush_f64(value: f64) -> f64 {
    if value.abs() < f64::MIN_POSITIVE { 0f64.copysign(value) } else { value }
}

/// `rcp.approx.ftz.f64` and `rsqrt.approx.ftz.f64` keep the upper 32 bits (20 of the fraction).
fn coarse(value: f64) -> f64 {
    let value = flush_f64(value);
    if value.is_nan() {
        f64::from_bits(0x7FFF_FFFF_0000_0000)
    } else {
        f64::from_bits(value.to_bits() & !0xFFFF_FFFF)
    }
}

fn extreme_f64(largest: bool, a: f64, b: f64) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a.total_cmp(&b).is_gt() == largest => a,
        _ => b,
    }
}
