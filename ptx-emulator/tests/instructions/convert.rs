//! `cvt` between all pairs of types, in all roundings, through 128-bit integers and f64.

use proptest::prelude::*;

use crate::halves::{FORMATS, Format};
use crate::lanes::{accept, agree, double, moderate, single, words};

const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("s8", 8, true),
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

type Rounding = (&'static str, fn(f64) -> f64);
const TO_INTEGRAL: [Rounding; 4] =
    [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];

/// The narrowest register for so many bits.
fn register(bits: u32) -> &'static str {
    match bits {
        8 | 16 => "b16",
        32 => "b32",
        _ => "b64",
    }
}

fn read(bits: u64, width: u32, signed: bool) -> i128 {
    let value = i128::from(bits) & ((1 << width) - 1);
    if signed && value >> (width - 1) & 1 != 0 { value - (1 << width) } else { value }
}

/// What a register of `register` bits shows of an integer type's value: extended by its sign.
fn shown(value: i128, (width, signed): (u32, bool), register: u32) -> u64 {
    let value = read(value as u64, width, signed);
    if register == 64 { value as u64 } else { value as u64 & ((1 << register) - 1) }
}

fn clamp(value: i128, width: u32, signed: bool) -> i128 {
    let (least, most) =
        if signed { (-(1 << (width - 1)), (1 << (width - 1)) - 1) } else { (0, (1 << width) - 1) };
    value.clamp(least, most)
}

/// An integer rounded to odd in f64: a further rounding errs no more than one alone.
fn odd(value: i128) -> f64 {
    let near = value as f64;
    match value - near as i128 {
        _ if near.to_bits() & 1 == 1 => near,
        0 => near,
        lost if lost > 0 => near.next_up(),
        _ => near.next_down(),
    }
}

/// To f32 in a mode, from a value of which f64 holds enough.
fn to_single(exact: f64, mode: &str) -> u64 {
    if exact.is_nan() {
        return 0x7FFF_FFFF;
    }
    let near = exact as f32;
    let wide = f64::from(near);
    let down = mode == "rm" || (mode == "rz" && exact > 0.0);
    let rounded = match mode {
        "rn" => near,
        _ if down && wide > exact => near.next_down(),
        _ if !down && wide < exact => near.next_up(),
        _ => near,
    };
    u64::from(rounded.to_bits())
}

fn integral_model(value: f64, round: fn(f64) -> f64, (width, signed): (u32, bool), wide: bool) -> i128 {
    if value.is_nan() {
        return if wide { 1 << (width - 1) } else { 0 };
    }
    clamp(round(value) as i128, width, signed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn integers(a in words(64)) {
        for (from, from_bits, from_signed) in INTEGERS {
            for (to, bits, signed) in INTEGERS {
                let of = |a: u64| read(a, from_bits, from_signed);
                let d = register(bits);
                let width = d[1..].parse().unwrap();
                let source = register(from_bits);
                agree(&format!("cvt.{to}.{from}"), d, [source], [&a], |[a]| shown(of(a), (bits, signed), width));
                agree(&format!("cvt.sat.{to}.{from}"), d, [source], [&a], |[a]| {
                    shown(clamp(of(a), bits, signed), (bits, signed), width)
                });
                // A wider register is filled by the sign of the type.
                agree(&format!("cvt.{to}.{from}"), "b64", [source], [&a], |[a]| shown(of(a), (bits, signed), 64));
            }
        }
    }

    #[test]
    fn floats_to_integers(a in words(64), near in moderate(-300.0, 300.0)) {
        let sources: [(&str, u32, fn(u64) -> f64); 4] = [
            ("f32", 32, |bits| single(bits).into()),
            ("f64", 64, double),
            ("f16", 16, |bits| (FORMATS[0].value)(bits as u16)),
            ("bf16", 16, |bits| (FORMATS[1].value)(bits as u16)),
        ];
        for (from, from_bits, value) in sources {
            for (to, bits, signed) in INTEGERS {
                for (mode, round) in TO_INTEGRAL {
                    let d = register(bits);
                    let width = d[1..].parse().unwrap();
                    let wide = from == "f64" || bits == 64;
                    for a in [&a, &near] {
                        agree(&format!("cvt.{mode}.{to}.{from}"), d, [register(from_bits)], [a], |[a]| {
                            shown(integral_model(value(a), round, (bits, signed), wide), (bits, signed), width)
                        });
                    }
                }
            }
        }
        agree("cvt.rpi.ftz.s32.f32", "b32", ["b32"], [&a], |[a]| {
            let value = if single(a).is_subnormal() { 0.0 } else { f64::from(single(a)) };
            shown(integral_model(value, f64::ceil, (32, true), false), (32, true), 32)
        });
        for (mode, round) in TO_INTEGRAL {
            agree(&format!("cvt.{mode}.f32.f32"), "b32", ["b32"], [&near], |[a]| {
                u64::from((round(single(a).into()) as f32).to_bits())
            });
        }
    }

    #[test]
    fn integers_to_floats(a in words(64)) {
        for (from, from_bits, signed) in INTEGERS {
            let of = |a: u64| read(a, from_bits, signed);
            let source = register(from_bits);
            for mode in MODES {
                agree(&format!("cvt.{mode}.f32.{from}"), "b32", [source], [&a], |[a]| to_single(odd(of(a)), mode));
                for format in FORMATS {
                    agree(&format!("cvt.{mode}.{}.{from}", format.name), "b16", [source], [&a], |[a]| {
                        format.round(odd(of(a)), mode).into()
                    });
                }
                agree(&format!("cvt.{mode}.f64.{from}"), "b64", [source], [&a], |[a]| {
                    let (value, near) = (of(a), of(a) as f64);
                    let side = (near as i128).cmp(&value);
                    let down = mode == "rm" || (mode == "rz" && value > 0);
                    match mode {
                        "rn" => near,
                        _ if down && side.is_gt() => near.next_down(),
                        _ if !down && side.is_lt() => near.next_up(),
                        _ => near,
                    }
                    .to_bits()
                });
            }
        }
    }

    #[test]
    fn floats_to_floats(a in words(64), near in moderate(-70000.0, 70000.0)) {
        let format = |name: &str| FORMATS.into_iter().find(|format: &Format| format.name == name);
        let sources: [(&str, &str, fn(u64) -> f64); 4] = [
            ("f32", "b32", |bits| single(bits).into()),
            ("f64", "b64", double),
            ("f16", "b16", |bits| (FORMATS[0].value)(bits as u16)),
            ("bf16", "b16", |bits| (FORMATS[1].value)(bits as u16)),
        ];
        for a in [&a, &near] {
            for (from, source, value) in sources {
                for mode in MODES {
                    if from == "f64" {
                        agree(&format!("cvt.{mode}.f32.f64"), "b32", ["b64"], [a], |[a]| to_single(double(a), mode));
                    }
                    for target in FORMATS {
                        if from == target.name {
                            continue;
                        }
                        let name = format!("cvt.{mode}.{}.{from}", target.name);
                        agree(&name, "b16", [source], [a], |[a]| target.round(value(a), mode).into());
                    }
                }
                if from == "f32" || format(from).is_some() {
                    accept(&format!("cvt.f64.{from}"), "b64", [source], [a], |[a], found| {
                        let (wanted, found) = (value(a), double(found));
                        let right = found.to_bits() == wanted.to_bits() || (found.is_nan() && wanted.is_nan());
                        (!right).then(|| format!("{wanted:e}"))
                    });
                }
                if format(from).is_some() {
                    agree(&format!("cvt.f32.{from}"), "b32", [source], [a], |[a]| to_single(value(a), "rn"));
                }
            }
        }
    }

    #[test]
    fn saturation_and_pairs(a in words(32), b in words(32)) {
        let unit = |value: f64| if value > 0.0 { value.min(1.0) } else { 0.0 };
        agree("cvt.sat.f32.f32", "b32", ["b32"], [&a], |[a]| to_single(unit(single(a).into()), "rn"));
        agree("cvt.rn.sat.f16.f32", "b16", ["b32"], [&a], |[a]| FORMATS[0].round(unit(single(a).into()), "rn").into());
        let clip = |value: f64| if value <= 0.0 { 0.0 } else { value };
        for format in FORMATS {
            for mode in ["rn", "rz"] {
                let round = |bits: u64| u64::from(format.round(single(bits).into(), mode));
                let name = format!("cvt.{mode}.{}x2.f32", format.name);
                agree(&name, "b32", ["b32"; 2], [&a, &b], |[a, b]| round(a) << 16 | round(b));
                let round = |bits: u64| u64::from(format.round(clip(single(bits).into()), mode));
                let name = format!("cvt.{mode}.relu.{}x2.f32", format.name);
                agree(&name, "b32", ["b32"; 2], [&a, &b], |[a, b]| round(a) << 16 | round(b));
            }
        }
    }

    /// tf32: 10 bits of fraction, the others zero.
    #[test]
    fn tf32(a in words(32)) {
        let modes: [(&str, fn(f64) -> f64); 3] =
            [("rna", f64::round), ("rn", f64::round_ties_even), ("rz", f64::trunc)];
        for (mode, round) in modes {
            accept(&format!("cvt.{mode}.tf32.f32"), "b32", ["b32"], [&a], |[a], found| {
                let (value, found) = (single(a), single(found));
                if value.is_nan() {
                    return (!found.is_nan()).then(|| "NaN".to_owned());
                }
                // One unit of the eleventh significant bit; subnormal numbers share the least one.
                let exponent = (value.to_bits() >> 23 & 255).max(1) as i32;
                let unit = 2f64.powi(exponent - 127 - 10);
                let wanted = if value.is_infinite() { value } else { (round(f64::from(value) / unit) * unit) as f32 };
                (found.to_bits() != wanted.to_bits()).then(|| format!("{wanted:e}"))
            });
        }
    }
}

/// The value of an 8-bit float: sign, exponent, fraction (OCP 8-bit Floating Point Specification, revision 1.0).
fn of_8_bits(bits: u8, fraction_bits: i32) -> f64 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits & 0x7F) >> fraction_bits, bits & ((1 << fraction_bits) - 1));
    let bias = (1 << (6 - fraction_bits)) - 1;
    let part = f64::from(fraction) / f64::from(1 << fraction_bits);
    match (fraction_bits, exponent) {
        (3, 15) if fraction == 7 => f64::NAN,
        (2, 31) if fraction == 0 => sign * f64::INFINITY,
        (2, 31) => f64::NAN,
        (_, 0) => sign * part * f64::from(1 - bias).exp2(),
        (_, exponent) => sign * (1.0 + part) * f64::from(exponent - bias).exp2(),
    }
}

/// The nearest finite one, of two the one with an even last bit: found among all of them.
fn to_8_bits(value: f64, fraction_bits: i32, relu: bool) -> u8 {
    if value.is_nan() {
        return 0x7F;
    }
    if relu && value.is_sign_negative() {
        return 0;
    }
    let distance = |bits: &u8| (of_8_bits(*bits, fraction_bits) - value.abs()).abs();
    let mut finite = (0..0x80_u8).filter(|bits| of_8_bits(*bits, fraction_bits).is_finite());
    // Far beyond, distances are all the same.
    let is_far = value.abs() > 65536.0;
    let nearest = finite.clone().min_by(|a, b| {
        let order = distance(a).total_cmp(&distance(b));
        order.then((a & 1).cmp(&(b & 1)))
    });
    let magnitude = if is_far { finite.next_back() } else { nearest };
    magnitude.unwrap() | if value.is_sign_negative() { 0x80 } else { 0 }
}

const SMALLEST: [(&str, i32); 2] = [("e4m3x2", 3), ("e5m2x2", 2)];

#[test]
fn every_8_bit_float_becomes_a_half() {
    for (ty, fraction_bits) in SMALLEST {
        for relu in [false, true] {
            let name = format!("cvt.rn{}.f16x2.{ty}", if relu { ".relu" } else { "" });
            for first in (0..256_u64).step_by(64) {
                let pairs: Vec<u64> = (first..first + 64).map(|low| (255 - low) << 8 | low).collect();
                let half = |bits: u64| {
                    let value = of_8_bits(bits as u8, fraction_bits);
                    match value.is_nan() {
                        true => 0x7FFF,
                        false if relu && value.is_sign_negative() => 0,
                        false => u64::from(half::f16::from_f64(value).to_bits()),
                    }
                };
                agree(&name, "b32", ["b16"], [&pairs], |[pair]| half(pair) | half(pair >> 8) << 16);
            }
        }
    }
}

#[test]
fn every_half_becomes_an_8_bit_float() {
    for (ty, fraction_bits) in SMALLEST {
        for relu in [false, true] {
            let name = format!("cvt.rn.satfinite{}.{ty}.f16x2", if relu { ".relu" } else { "" });
            let small = |bits: u64| {
                u64::from(to_8_bits(half::f16::from_bits(bits as u16).to_f64(), fraction_bits, relu))
            };
            for first in (0..1_u64 << 16).step_by(1024) {
                let pairs: Vec<u64> =
                    (first..first + 1024).map(|low| ((low * 40503 + 77) % (1 << 16)) << 16 | low).collect();
                agree(&name, "b16", ["b32"], [&pairs], |[pair]| small(pair) | small(pair >> 16) << 8);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn singles_become_8_bit_floats(a in words(32), b in words(32), c in moderate(-600.0, 600.0)) {
        for (ty, fraction_bits) in SMALLEST {
            for relu in [false, true] {
                let name = format!("cvt.rn.satfinite{}.{ty}.f32", if relu { ".relu" } else { "" });
                let small = |bits: u64| u64::from(to_8_bits(f64::from(single(bits)), fraction_bits, relu));
                let model = |[high, low]: [u64; 2]| small(high) << 8 | small(low);
                agree(&name, "b16", ["b32", "b32"], [&a, &b], model);
                agree(&name, "b16", ["b32", "b32"], [&c, &a], model);
            }
        }
    }
}
