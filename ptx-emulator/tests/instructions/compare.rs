//! `setp`, `set`, `selp` and `slct`: every comparison of every type, with NaN, and what is combined with it.

use std::cmp::Ordering;

use proptest::prelude::*;

use crate::halves::FORMATS;
use crate::lanes::{agree, double, evaluate, single, words};

type Test = fn(Option<Ordering>) -> bool;

const SIGNED: [(&str, Test); 6] = [
    ("eq", |order| order == Some(Ordering::Equal)),
    ("ne", |order| order.is_some_and(Ordering::is_ne)),
    ("lt", |order| order.is_some_and(Ordering::is_lt)),
    ("le", |order| order.is_some_and(Ordering::is_le)),
    ("gt", |order| order.is_some_and(Ordering::is_gt)),
    ("ge", |order| order.is_some_and(Ordering::is_ge)),
];
const UNSIGNED: [(&str, Test); 4] = [
    ("lo", |order| order.is_some_and(Ordering::is_lt)),
    ("ls", |order| order.is_some_and(Ordering::is_le)),
    ("hi", |order| order.is_some_and(Ordering::is_gt)),
    ("hs", |order| order.is_some_and(Ordering::is_ge)),
];
const WITH_NAN: [(&str, Test); 8] = [
    ("equ", |order| order.is_none_or(Ordering::is_eq)),
    ("neu", |order| order.is_none_or(Ordering::is_ne)),
    ("ltu", |order| order.is_none_or(Ordering::is_lt)),
    ("leu", |order| order.is_none_or(Ordering::is_le)),
    ("gtu", |order| order.is_none_or(Ordering::is_gt)),
    ("geu", |order| order.is_none_or(Ordering::is_ge)),
    ("num", |order| order.is_some()),
    ("nan", |order| order.is_none()),
];

type Compare = fn(u64, u64) -> Option<Ordering>;

/// Types with the order of their bits, and whether they are unsigned or floats.
const TYPES: [(&str, Compare, &str); 10] = [
    ("u16", |a, b| (a as u16).partial_cmp(&(b as u16)), "unsigned"),
    ("s16", |a, b| (a as i16).partial_cmp(&(b as i16)), "signed"),
    ("u32", |a, b| (a as u32).partial_cmp(&(b as u32)), "unsigned"),
    ("s32", |a, b| (a as i32).partial_cmp(&(b as i32)), "signed"),
    ("u64", |a, b| a.partial_cmp(&b), "unsigned"),
    ("s64", |a, b| (a as i64).partial_cmp(&(b as i64)), "signed"),
    ("f16", |a, b| (FORMATS[0].value)(a as u16).partial_cmp(&(FORMATS[0].value)(b as u16)), "float"),
    ("bf16", |a, b| (FORMATS[1].value)(a as u16).partial_cmp(&(FORMATS[1].value)(b as u16)), "float"),
    ("f32", |a, b| single(a).partial_cmp(&single(b)), "float"),
    ("f64", |a, b| double(a).partial_cmp(&double(b)), "float"),
];

fn tests_of(kind: &str) -> Vec<(&'static str, Test)> {
    let more: &[(&str, Test)] = match kind {
        "unsigned" => &UNSIGNED,
        "float" => &WITH_NAN,
        _ => &[],
    };
    SIGNED.iter().chain(more).copied().collect()
}

fn register(ty: &str) -> String {
    format!("b{}", ty.trim_start_matches(|c: char| !c.is_ascii_digit()))
}

/// Second operands, of which every fourth equals the first.
fn often_equal(a: &[u64], b: &[u64]) -> Vec<u64> {
    a.iter().zip(b).enumerate().map(|(lane, (&a, &b))| if lane % 4 == 0 { a } else { b }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_comparison(a in words(64), b in words(64)) {
        let b = often_equal(&a, &b);
        for (ty, compare, kind) in TYPES {
            let reg = register(ty);
            for (name, test) in tests_of(kind) {
                let holds = |a, b| test(compare(a, b));
                agree(&format!("setp.{name}.{ty}"), "pred", [&reg, &reg], [&a, &b], |[a, b]| holds(a, b).into());
                agree(&format!("set.{name}.u32.{ty}"), "b32", [&reg, &reg], [&a, &b], |[a, b]| {
                    if holds(a, b) { 0xFFFF_FFFF } else { 0 }
                });
                agree(&format!("set.{name}.f32.{ty}"), "b32", [&reg, &reg], [&a, &b], |[a, b]| {
                    if holds(a, b) { 0x3F80_0000 } else { 0 }
                });
            }
        }
    }

    #[test]
    fn subnormal_numbers_equal_zero_when_flushed(a in prop::collection::vec(0u64..0x0100_0000, 64), b in words(32)) {
        let flush = |bits: u64| if single(bits).is_subnormal() { 0.0 } else { single(bits) };
        agree("setp.eq.ftz.f32", "pred", ["b32"; 2], [&a, &b], |[a, b]| u64::from(flush(a) == flush(b)));
        agree("setp.gtu.ftz.f32", "pred", ["b32"; 2], [&a, &b], |[a, b]| {
            u64::from(!matches!(flush(a).partial_cmp(&flush(b)), Some(Ordering::Less | Ordering::Equal)))
        });
    }

    /// `p = compare op c`, `q = !compare op c`, and c may be negated.
    #[test]
    fn combinations(a in words(32), b in words(32), c in words(1)) {
        let b = often_equal(&a, &b);
        type Combine = (&'static str, fn(bool, bool) -> bool);
        let combine: [Combine; 3] = [("and", |t, c| t & c), ("or", |t, c| t | c), ("xor", |t, c| t ^ c)];
        for (name, model) in combine {
            for negated in [false, true] {
                for second in [false, true] {
                    let pair = if second { "%p|%d" } else { "%d|%p" };
                    let not = if negated { "!" } else { "" };
                    let body = format!(".reg .pred %p; setp.ltu.{name}.f32 {pair}, %a, %b, {not}%c;");
                    let found = evaluate(&body, "pred", &["b32", "b32", "pred"], &[&a, &b, &c]);
                    for lane in 0..found.len() {
                        let (x, y) = (single(a[lane]), single(b[lane]));
                        let test = x < y || x.is_nan() || y.is_nan();
                        let wanted = model(test != second, (c[lane] != 0) != negated);
                        prop_assert_eq!(found[lane] != 0, wanted, "{} on {:e}, {:e}, {}", body, x, y, c[lane]);
                    }
                }
            }
            agree(&format!("set.ge.{name}.u32.s32"), "b32", ["b32", "b32", "pred"], [&a, &b, &c], |[a, b, c]| {
                if model(a as i32 >= b as i32, c != 0) { 0xFFFF_FFFF } else { 0 }
            });
        }
    }

    #[test]
    fn selection(a in words(64), b in words(64), c in words(32)) {
        for width in [16, 32, 64] {
            let reg = format!("b{width}");
            let mask = u64::MAX >> (64 - width);
            agree(&format!("selp.b{width}"), &reg, [&reg, &reg, "pred"], [&a, &b, &c], |[a, b, c]| {
                (if c != 0 { a } else { b }) & mask
            });
            agree(&format!("slct.b{width}.s32"), &reg, [&reg, &reg, "b32"], [&a, &b, &c], |[a, b, c]| {
                (if c as i32 >= 0 { a } else { b }) & mask
            });
            agree(&format!("slct.b{width}.f32"), &reg, [&reg, &reg, "b32"], [&a, &b, &c], |[a, b, c]| {
                (if single(c) >= 0.0 { a } else { b }) & mask
            });
        }
    }
}
