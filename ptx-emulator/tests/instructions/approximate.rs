//! Approximate functions within the bounds that the PTX ISA gives for them, and their special values.

use std::f32::consts::TAU;

use proptest::prelude::*;

use crate::lanes::{accept, moderate, single, words};

fn check(name: &str, a: &[u64], exact: fn(f64) -> f64, allowed: impl Fn(f64, f64) -> f64) {
    accept(&format!("{name}.f32"), "b32", ["b32"], [a], |[a], found| {
        let (x, found) = (f64::from(single(a)), f64::from(single(found)));
        let wanted = exact(x);
        let overflows = wanted.abs() > f64::from(f32::MAX);
        let right = if wanted.is_nan() {
            found.is_nan()
        } else if overflows {
            found.is_infinite() && found.signum() == wanted.signum()
        } else {
            // Half a unit of the least subnormal is what rounding itself may cost.
            (found - wanted).abs() <= allowed(x, wanted) + 2f64.powi(-150)
        };
        (!right).then(|| format!("{wanted:e} at {x:e}, not {found:e}"))
    });
}

fn ulps(count: f64) -> impl Fn(f64, f64) -> f64 {
    move |_, wanted| count * 2f64.powi(-23) * wanted.abs()
}

proptest! {
    #[test]
    fn reciprocals_and_roots(a in words(32)) {
        check("rcp.approx", &a, |x| 1.0 / x, ulps(1.0));
        check("rsqrt.approx", &a, |x| 1.0 / x.sqrt(), |_, wanted| 2f64.powf(-22.9) * wanted);
        check("sqrt.approx", &a, f64::sqrt, |_, wanted| 2f64.powi(-23) * wanted);
    }

    #[test]
    fn exponentials(a in words(32), near in moderate(-160.0, 130.0)) {
        for a in [a, near] {
            check("ex2.approx", &a, f64::exp2, ulps(2.0));
            check("tanh.approx", &a, f64::tanh, |_, wanted| 2f64.powi(-11) * wanted.abs());
        }
    }

    /// lg2: 2^-22 absolute in [0.5, 2], 2^-22 relative elsewhere.
    #[test]
    fn logarithms(a in words(32), near in moderate(0.4, 2.1)) {
        for a in [a, near] {
            check("lg2.approx", &a, f64::log2, |x, wanted| {
                if (0.5..=2.0).contains(&x) { 2f64.powi(-22) } else { 2f64.powi(-22) * wanted.abs() }
            });
        }
    }

    /// sin and cos: 2^-20.5 absolute in [-2π, 2π]; infinities give NaN.
    #[test]
    fn circles(a in moderate(-TAU, TAU)) {
        check("sin.approx", &a, f64::sin, |_, _| 2f64.powf(-20.5));
        check("cos.approx", &a, f64::cos, |_, _| 2f64.powf(-20.5));
        let infinite = vec![0xFF80_0000; 32];
        check("sin.approx", &infinite, f64::sin, |_, _| 0.0);
        check("cos.approx", &infinite, f64::cos, |_, _| 0.0);
    }

    /// div.approx: 2 ulp while the divisor is between 2^-126 and 2^126; beyond, the quotient is 0 or NaN.
    #[test]
    fn quotients(a in words(32), b in words(32)) {
        accept("div.approx.f32", "b32", ["b32"; 2], [&a, &b], |[a, b], found| {
            let (x, y, found) = (single(a), single(b), single(found));
            let exact = f64::from(x) / f64::from(y);
            let magnitude = y.abs();
            let right = if exact.is_nan() {
                found.is_nan()
            } else if magnitude > 2f32.powi(126) && magnitude.is_finite() {
                if x.is_infinite() { found.is_nan() } else { found == 0.0 }
            } else if magnitude < 2f32.powi(-126) || exact.abs() > f64::from(f32::MAX) {
                true
            } else {
                (f64::from(found) - exact).abs() <= 2f64.powi(-22) * exact.abs() + 2f64.powi(-150)
            };
            (!right).then(|| format!("{exact:e}"))
        });
        accept("div.full.f32", "b32", ["b32"; 2], [&a, &b], |[a, b], found| {
            let exact = f64::from(single(a)) / f64::from(single(b));
            let within = (2f64.powi(-126)..2f64.powi(126)).contains(&f64::from(single(b)).abs());
            let error = (f64::from(single(found)) - exact).abs();
            let wrong = within && exact.abs() <= f64::from(f32::MAX) && error > 2f64.powi(-22) * exact.abs() + 2f64.powi(-149);
            wrong.then(|| format!("{exact:e}"))
        });
    }

    /// `.ftz`: subnormal operands and results are zeros of their sign.
    #[test]
    fn flushing(a in prop::collection::vec(1u64..0x0080_0000, 64)) {
        let infinity = |found: u64| (single(found) != f32::INFINITY).then(|| "infinity".to_owned());
        accept("rcp.approx.ftz.f32", "b32", ["b32"], [&a], |_, found| infinity(found));
        accept("rsqrt.approx.ftz.f32", "b32", ["b32"], [&a], |_, found| infinity(found));
        accept("sqrt.approx.ftz.f32", "b32", ["b32"], [&a], |_, found| (found != 0).then(|| "0".to_owned()));
        accept("lg2.approx.ftz.f32", "b32", ["b32"], [&a], |_, found| {
            (single(found) != f32::NEG_INFINITY).then(|| "-infinity".to_owned())
        });
        let low: Vec<u64> = a.iter().map(|n| u64::from((-127.0 - (*n % 16) as f32).to_bits())).collect();
        accept("ex2.approx.ftz.f32", "b32", ["b32"], [&low], |_, found| (found != 0).then(|| "0".to_owned()));
    }
}
