//! libdevice and the approximate instructions within their documented errors; conversions and halves exactly.

use half::{bf16, f16};

use crate::{Random, addresses, each_variant};

/// The error function by its series, for |x| up to 4.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Errors relative to the result or, near zero, to one.
fn assert_near(kernel: &str, variant: &str, found: f64, expected: f64, bound: f64) {
    let error = (found - expected).abs() / expected.abs().max(1.0);
    assert!(
        error <= bound,
        "{kernel}, {variant}: {found}, not {expected} (error {error:e}, at most {bound:e})"
    );
}

#[test]
fn functions_of_binary32() {
    each_variant("math.cu", 80, |sample| {
        let values = Random(18).many(64, |random| random.within(4.0) as f32);
        let (input, out) = (sample.upload(&values, "in"), sample.room::<[f32; 16]>(64, "out"));
        sample.run("functions_f32", [2, 1, 1], [32, 1, 1], addresses([input, out]));
        for (&value, found) in values.iter().zip(sample.download::<[f32; 16]>(out, 64)) {
            let x = f64::from(value);
            let expected = [
                x.exp(),
                (x.abs() + 1e-3).ln(),
                x.sin(),
                x.cos(),
                x.tanh(),
                x.abs().sqrt(),
                1.0 / (x.abs() + 0.25).sqrt(),
                x.abs().powf(1.7),
                erf(x),
                1.0 / (x + 100.0),
                x % 3.0,
                x.atan2(2.0),
                x.floor() + x.ceil() * 2.0 + x.trunc() * 4.0 + x.round_ties_even() * 8.0,
                x.exp2() + (x.abs() + 1.0).log2(),
                x.cbrt(),
                x.hypot(3.0),
            ];
            for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                assert_near(
                    &format!("functions_f32[{index}]"),
                    sample.variant,
                    f64::from(found),
                    expected,
                    1e-6,
                );
            }
        }

        let out = sample.room::<[f32; 8]>(64, "out");
        sample.run("approximations_f32", [2, 1, 1], [32, 1, 1], addresses([input, out]));
        for (&value, found) in values.iter().zip(sample.download::<[f32; 8]>(out, 64)) {
            let x = f64::from(value);
            let expected = [
                x.exp(),
                (x.abs() + 1e-3).ln(),
                x.sin(),
                x.cos(),
                x / 7.0,
                1.0 / (x.abs() + 0.25).sqrt(),
                x * 2.2 + 0.3 + x,
                x.clamp(0.0, 1.0),
            ];
            for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                assert_near(
                    &format!("approximations_f32[{index}]"),
                    sample.variant,
                    f64::from(found),
                    expected,
                    3e-6,
                );
            }
        }
    });
}

#[test]
fn functions_of_binary64() {
    each_variant("math.cu", 80, |sample| {
        let values = Random(19).many(64, |random| random.within(6.0));
        let (input, out) = (sample.upload(&values, "in"), sample.room::<[f64; 8]>(64, "out"));
        sample.run("functions_f64", [2, 1, 1], [32, 1, 1], addresses([input, out]));
        for (&x, found) in values.iter().zip(sample.download::<[f64; 8]>(out, 64)) {
            let expected = [
                x.exp(),
                (x.abs() + 1e-3).ln(),
                x.sin(),
                x.abs().sqrt(),
                1.0 / (x + 100.0),
                x.abs().powf(1.7),
                x.mul_add(x, -1.0) + x.floor(),
                x.round_ties_even() + (x * 1e6) as i64 as f64 + f64::from(x as f32),
            ];
            for (index, (found, expected)) in found.into_iter().zip(expected).enumerate() {
                assert_near(&format!("functions_f64[{index}]"), sample.variant, found, expected, 1e-14);
            }
        }
    });
}

#[test]
fn conversions_round_and_wrap_as_in_c() {
    each_variant("math.cu", 80, |sample| {
        let values = Random(20).many(64, |random| random.within(300.0) as f32);
        let (input, out) = (sample.upload(&values, "in"), sample.room::<[i32; 12]>(64, "out"));
        sample.run("conversions", [2, 1, 1], [32, 1, 1], addresses([input, out]));
        let expected = values.iter().map(|&x| {
            let nearest = f16::from_f32(x);
            let away = nearest.to_f32().abs() > x.abs();
            [
                x as i32,
                x.round_ties_even() as i32,
                x.ceil() as i32,
                x.floor() as i32,
                i32::from(x as i32 as u8),
                i32::from(x as i32 as i8),
                f32::from((x * 100.0) as i32 as i16).to_bits() as i32,
                i32::from(nearest.to_bits()),
                i32::from(nearest.to_bits() - u16::from(away)),
                i32::from(bf16::from_f32(x).to_bits()),
                (f64::from(x) * 1e3) as i64 as i32,
                (x.abs() * 1e6) as u32 as i32,
            ]
        });
        let found = sample.download::<[i32; 12]>(out, 64);
        sample.assert_equal("conversions", &found, &expected.collect::<Vec<_>>());
    });
}

/// Pairs of a 16-bit float, as bits, with the wide value of each half.
struct Halves {
    bits: Vec<[u16; 2]>,
    values: Vec<[f64; 2]>,
}

fn halves(seed: u64, narrow: fn(f64) -> u16, wide: fn(u16) -> f64) -> Halves {
    let bits = Random(seed).many(64, |random| [0; 2].map(|_: u32| narrow(random.within(8.0))));
    let values = bits.iter().map(|pair: &[u16; 2]| pair.map(wide)).collect();
    Halves { bits, values }
}

#[test]
fn halves_are_rounded_once() {
    let narrow = |value: f64| f16::from_f64(value).to_bits();
    let wide = |bits: u16| f16::from_bits(bits).to_f64();
    let (a, b) = (halves(21, narrow, wide), halves(22, narrow, wide));
    each_variant("math.cu", 80, |sample| {
        let at = [
            sample.upload(&a.bits, "a"),
            sample.upload(&b.bits, "b"),
            sample.room::<[[u16; 2]; 8]>(64, "out"),
        ];
        sample.run("halves", [2, 1, 1], [32, 1, 1], addresses(at));
        let expected = a.values.iter().zip(&b.values).enumerate().map(|(i, (a, b))| {
            let both = |f: &dyn Fn(f64, f64) -> f64| [narrow(f(a[0], b[0])), narrow(f(a[1], b[1]))];
            [
                both(&|a, b| a + b),
                both(&|a, b| a * b),
                both(&|a, b| a * b + 0.5),
                both(&f64::max),
                both(&|a, _| -a.abs()),
                both(&|a, b| f64::from(u8::from(a < b))),
                [narrow(a[0] - b[1]), narrow(i as f64)],
                [narrow(a[0] * 3.0), narrow(b[1] * 3.0)],
            ]
        });
        let found = sample.download::<[[u16; 2]; 8]>(at[2], 64);
        sample.assert_equal("halves", &found, &expected.collect::<Vec<_>>());
    });
}

#[test]
fn bfloats_are_rounded_once() {
    let narrow = |value: f64| bf16::from_f64(value).to_bits();
    let wide = |bits: u16| bf16::from_bits(bits).to_f64();
    let (a, b) = (halves(23, narrow, wide), halves(24, narrow, wide));
    each_variant("math.cu", 80, |sample| {
        let at = [
            sample.upload(&a.bits, "a"),
            sample.upload(&b.bits, "b"),
            sample.room::<[[u16; 2]; 6]>(64, "out"),
        ];
        sample.run("bfloats", [2, 1, 1], [32, 1, 1], addresses(at));
        let expected = a.values.iter().zip(&b.values).map(|(a, b)| {
            let both = |f: &dyn Fn(f64, f64) -> f64| [narrow(f(a[0], b[0])), narrow(f(a[1], b[1]))];
            [
                both(&|a, b| a + b),
                both(&|a, b| a * b),
                both(&|a, b| a * b + a),
                both(&f64::min),
                both(&|a, _| -a),
                [narrow(a[0] * 3.0), narrow(b[1] * 3.0)],
            ]
        });
        let found = sample.download::<[[u16; 2]; 6]>(at[2], 64);
        sample.assert_equal("bfloats", &found, &expected.collect::<Vec<_>>());
    });
}
