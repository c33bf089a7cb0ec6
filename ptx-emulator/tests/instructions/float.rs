//! f32 and f64: to nearest as the host rounds, in the other modes by the neighbours of an exact result.

use proptest::prelude::*;

use crate::lanes::{accept, agree, double, evaluate, single, words};

/// The bits of a result, NaN as the one that f32 arithmetic gives.
fn bits(value: f32) -> u64 {
    if value.is_nan() { 0x7FFF_FFFF } else { u64::from(value.to_bits()) }
}

/// f64 keeps payloads, which PTX leaves open.
fn same(model: f64) -> impl Fn(u64) -> Option<String> {
    move |found| {
        let right = double(found).to_bits() == model.to_bits() || (double(found).is_nan() && model.is_nan());
        (!right).then(|| format!("{model:e}"))
    }
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

fn saturate(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }
}

/// An exact value rounded to f32.
fn rounded(exact: f64, mode: &str) -> f32 {
    let near = exact as f32;
    let below = if f64::from(near) > exact { near.next_down() } else { near };
    let above = if f64::from(near) < exact { near.next_up() } else { near };
    match mode {
        "rm" => below,
        "rp" => above,
        "rz" if exact > 0.0 => below,
        "rz" => above,
        _ => near,
    }
}

const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn f32_to_nearest(a in words(32), b in words(32), c in words(32)) {
        type Binary = (&'static str, fn(f32, f32) -> f32);
        let binary: [Binary; 4] =
            [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b), ("div.rn", |a, b| a / b)];
        for (name, model) in binary {
            agree(&format!("{name}.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b]| bits(model(single(a), single(b))));
            agree(&format!("{name}.ftz.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b]| {
                bits(flush(model(flush(single(a)), flush(single(b)))))
            });
            if name != "div.rn" {
                agree(&format!("{name}.sat.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b]| {
                    bits(saturate(model(single(a), single(b))))
                });
            }
        }
        let fused = |a, b, c| single(a).mul_add(single(b), single(c));
        agree("fma.rn.f32", "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| bits(fused(a, b, c)));
        agree("fma.rn.sat.f32", "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| bits(saturate(fused(a, b, c))));
        agree("sqrt.rn.f32", "b32", ["b32"], [&a], |[a]| bits(single(a).sqrt()));
        agree("rcp.rn.ftz.f32", "b32", ["b32"], [&a], |[a]| bits(flush(1.0 / flush(single(a)))));
    }

    #[test]
    fn f32_in_all_modes(a in words(32), b in words(32), x in grid(), y in grid(), z in grid()) {
        for mode in MODES {
            // Products of f32 are exact in f64. Grids keep sums and fused sums exact too.
            let product = |a: u64, b: u64| f64::from(single(a)) * f64::from(single(b));
            accept(&format!("mul.{mode}.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b], found| {
                let exact = product(a, b);
                let sign_of_zero = exact == 0.0 || !exact.is_finite();
                let wanted = if sign_of_zero { single(a) * single(b) } else { rounded(exact, mode) };
                (found != bits(wanted)).then(|| format!("{wanted:e}"))
            });
            let zero = if mode == "rm" { 0x8000_0000 } else { 0 };
            let wanted = |exact: f64| if exact == 0.0 { zero } else { bits(rounded(exact, mode)) };
            let value = |bits: u64| f64::from(single(bits));
            let nonzero = |bits: u64| single(bits) != 0.0;
            accept(&format!("add.{mode}.f32"), "b32", ["b32"; 2], [&x, &y], |[x, y], found| {
                let wanted = wanted(value(x) + value(y));
                (nonzero(x) && found != wanted).then(|| format!("{wanted:#x}"))
            });
            accept(&format!("fma.{mode}.f32"), "b32", ["b32"; 3], [&x, &y, &z], |[x, y, z], found| {
                let wanted = wanted(product(x, y) + value(z));
                (nonzero(z) && found != wanted).then(|| format!("{wanted:#x}"))
            });
            // Quotients and roots lie where their product with the divisor, exact in f64, says.
            accept(&format!("div.{mode}.f32"), "b32", ["b32"; 2], [&x, &y], |[x, y], found| {
                if !nonzero(x) || !nonzero(y) {
                    return None;
                }
                let sign = value(y).signum();
                let (a, b, q) = (value(x) * sign, value(y) * sign, single(found));
                let side = |q: f32| (f64::from(q) * b).total_cmp(&a);
                wrong_side(mode, q, a, side)
            });
            accept(&format!("sqrt.{mode}.f32"), "b32", ["b32"], [&x], |[x], found| {
                if single(x) <= 0.0 {
                    return None;
                }
                let side = |root: f32| (f64::from(root) * f64::from(root)).total_cmp(&value(x));
                wrong_side(mode, single(found), value(x), side)
            });
        }
    }

    #[test]
    fn f64_to_nearest(a in words(64), b in words(64), c in words(64)) {
        type Binary = (&'static str, fn(f64, f64) -> f64);
        let binary: [Binary; 4] =
            [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b), ("div.rn", |a, b| a / b)];
        for (name, model) in binary {
            accept(&format!("{name}.f64"), "b64", ["b64"; 2], [&a, &b], |[a, b], found| {
                same(model(double(a), double(b)))(found)
            });
        }
        accept("fma.rn.f64", "b64", ["b64"; 3], [&a, &b, &c], |[a, b, c], found| {
            same(double(a).mul_add(double(b), double(c)))(found)
        });
        accept("sqrt.rn.f64", "b64", ["b64"], [&a], |[a], found| same(double(a).sqrt())(found));
        accept("rcp.rn.f64", "b64", ["b64"], [&a], |[a], found| same(1.0 / double(a))(found));
        accept("neg.f64", "b64", ["b64"], [&a], |[a], found| same(-double(a))(found));
        accept("abs.f64", "b64", ["b64"], [&a], |[a], found| same(double(a).abs())(found));
    }

    /// Directed results enclose the exact one tightly, and nearest is one of them.
    #[test]
    fn f64_modes_enclose(a in words(64), b in words(64), c in words(64)) {
        for (name, sources) in [("add", 2), ("mul", 2), ("div", 2), ("sqrt", 1), ("rcp", 1), ("fma", 3)] {
            let operands = [", %a", ", %b", ", %c"][..sources].concat();
            let run = |mode: &str| {
                evaluate(&format!("{name}.{mode}.f64 %d{operands};"), "b64", &["b64"; 3], &[&a, &b, &c])
            };
            let [near, zero, down, up] = MODES.map(run);
            for lane in 0..a.len() {
                let [near, zero, down, up] = [&near, &zero, &down, &up].map(|row| double(row[lane]));
                let shown = format!("{name} {:#x} {:#x} {:#x}: {near:e} {zero:e} {down:e} {up:e}", a[lane], b[lane], c[lane]);
                if near.is_nan() {
                    prop_assert!(zero.is_nan() && down.is_nan() && up.is_nan(), "{}", shown);
                    continue;
                }
                prop_assert!(down == up || down.next_up() == up, "{}", shown);
                prop_assert!(near == down || near == up, "{}", shown);
                prop_assert!(zero == if down >= 0.0 { down } else { up }, "{}", shown);
            }
        }
    }

    #[test]
    fn extremes(a in words(32), b in words(32), x in words(64), y in words(64)) {
        for (name, largest) in [("min", false), ("max", true)] {
            let pick = |a: f32, b: f32| if (a.total_cmp(&b).is_gt()) == largest { a } else { b };
            let one_nan = |a: f32, b: f32| match (a.is_nan(), b.is_nan()) {
                (false, false) => pick(a, b),
                (true, false) => b,
                (false, true) => a,
                _ => f32::NAN,
            };
            let any_nan = |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { pick(a, b) };
            agree(&format!("{name}.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b]| bits(one_nan(single(a), single(b))));
            agree(&format!("{name}.NaN.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b]| bits(any_nan(single(a), single(b))));
            agree(&format!("{name}.ftz.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b]| {
                bits(one_nan(flush(single(a)), flush(single(b))))
            });
            agree(&format!("{name}.NaN.xorsign.abs.f32"), "b32", ["b32"; 2], [&a, &b], |[a, b]| {
                let (a, b) = (single(a), single(b));
                let value = any_nan(a.abs(), b.abs());
                let negative = a.is_sign_negative() != b.is_sign_negative();
                bits(if negative { -value } else { value })
            });
            accept(&format!("{name}.f64"), "b64", ["b64"; 2], [&x, &y], |[x, y], found| {
                let (x, y) = (double(x), double(y));
                let model = match (x.is_nan(), y.is_nan()) {
                    (false, false) if (x.total_cmp(&y).is_gt()) == largest => x,
                    (false, true) => x,
                    _ => y,
                };
                same(model)(found)
            });
        }
        agree("copysign.f32", "b32", ["b32"; 2], [&a, &b], |[a, b]| b & 0x7FFF_FFFF | a & 0x8000_0000);
        accept("neg.f32", "b32", ["b32"], [&a], |[a], found| {
            (found != a ^ 0x8000_0000 && !single(a).is_nan()).then(|| format!("{:e}", -single(a)))
        });
        agree("abs.ftz.f32", "b32", ["b32"], [&a], |[a]| bits(flush(single(a).abs())));
    }

    #[test]
    fn classes(a in words(32), x in words(64)) {
        type Class = (&'static str, fn(f64, bool) -> bool);
        let classes: [Class; 6] = [
            ("finite", |value, _| value.is_finite()),
            ("infinite", |value, _| value.is_infinite()),
            ("number", |value, _| !value.is_nan()),
            ("notanumber", |value, _| value.is_nan()),
            ("normal", |value, subnormal| value.is_finite() && !subnormal),
            ("subnormal", |_, subnormal| subnormal),
        ];
        for (name, model) in classes {
            agree(&format!("testp.{name}.f32"), "pred", ["b32"], [&a], |[a]| {
                u64::from(model(single(a).into(), single(a).is_subnormal()))
            });
            agree(&format!("testp.{name}.f64"), "pred", ["b64"], [&x], |[x]| {
                u64::from(model(double(x), double(x).is_subnormal()))
            });
        }
    }
}

/// Multiples of 2^-10 below 2^10: sums, and products plus one, are exact in f64.
fn grid() -> impl Strategy<Value = Vec<u64>> {
    let value = prop_oneof![4 => -(1i32 << 20)..1 << 20, 1 => -4i32..4];
    prop::collection::vec(value.prop_map(|n| u64::from((n as f32 / 1024.0).to_bits())), 64)
}

/// Whether a result lies on the side of the exact value (positive operand or not) that its mode wants;
/// `side(r)` orders candidates r against it.
fn wrong_side(mode: &str, found: f32, sign: f64, side: impl Fn(f32) -> std::cmp::Ordering) -> Option<String> {
    let down = mode == "rm" || (mode == "rz" && sign > 0.0);
    let right = match mode {
        "rn" => side(found.next_down()).is_lt() && side(found.next_up()).is_gt(),
        _ if down => side(found).is_le() && side(found.next_up()).is_gt(),
        _ => side(found).is_ge() && side(found.next_down()).is_lt(),
    };
    (!right).then(|| format!("a neighbour of {found:e}"))
}
