//! f16, bf16 and their pairs against sums and products that f64 holds, rounded once through the table of all
//! values of the format.

use half::{bf16, f16};
use proptest::prelude::*;

use crate::lanes::{accept, words};

/// A format by its non-negative finite values in ascending order: pattern i is value i.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) value: fn(u16) -> f64,
    /// The pattern of infinity.
    pub(crate) infinity: u16,
}

pub(crate) const FORMATS: [Format; 2] = [
    Format { name: "f16", value: |bits| f16::from_bits(bits).to_f64(), infinity: 0x7C00 },
    Format { name: "bf16", value: |bits| bf16::from_bits(bits).to_f64(), infinity: 0x7F80 },
];

impl Format {
    /// `exact` rounded in a mode, by bisection of the format's values.
    pub(crate) fn round(&self, exact: f64, mode: &str) -> u16 {
        if exact.is_nan() {
            return 0x7FFF;
        }
        let (negative, magnitude) = (exact.is_sign_negative(), exact.abs());
        let (mut low, mut high) = (0u16, self.infinity);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if (self.value)(middle) <= magnitude { low = middle } else { high = middle }
        }
        // Infinity takes the place of the next power of two.
        let below = (self.value)(low);
        let overflows = high == self.infinity;
        let above = if overflows { 2.0 * below - (self.value)(low - 1) } else { (self.value)(high) };
        let away = match mode {
            _ if magnitude == below => false,
            _ if magnitude.is_infinite() => true,
            "rz" => false,
            "rm" => negative,
            "rp" => !negative,
            _ => match (magnitude - below).total_cmp(&(above - magnitude)) {
                std::cmp::Ordering::Equal => low & 1 == 1,
                order => order.is_gt(),
            },
        };
        (if away { high } else { low }) | u16::from(negative) << 15
    }

    fn differs(&self, found: u16, wanted: u16) -> bool {
        let nan = |bits: u16| (self.value)(bits).is_nan();
        found != wanted && !(nan(found) && nan(wanted))
    }
}

/// The error-free sum of two f64: their rounded sum and what it lost.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let from_b = sum - a;
    (sum, (a - (sum - from_b)) + (b - from_b))
}

/// a + b rounded to odd: a second rounding, to fewer bits, then errs no more than one alone.
pub(crate) fn odd_sum(a: f64, b: f64) -> f64 {
    let (sum, lost) = two_sum(a, b);
    match lost {
        _ if sum.to_bits() & 1 == 1 => sum,
        lost if lost > 0.0 => sum.next_up(),
        lost if lost < 0.0 => sum.next_down(),
        _ => sum,
    }
}

type Model = fn(f64, f64, f64) -> f64;

const MODELS: [(&str, usize, Model); 4] = [
    ("add", 2, |a, b, _| odd_sum(a, b)),
    ("sub", 2, |a, b, _| odd_sum(a, -b)),
    ("mul", 2, |a, b, _| a * b),
    ("fma.rn", 3, |a, b, c| odd_sum(a * b, c)),
];

fn lanes_agree(
    instruction: &str,
    format: &Format,
    sources: [&[u64]; 3],
    count: usize,
    model: impl Fn([f64; 3]) -> u16,
) {
    let packed = instruction.ends_with("x2");
    let parts: &[u32] = if packed { &[0, 16] } else { &[0] };
    let judge = |inputs: [u64; 3], found: u64| {
        parts.iter().find_map(|shift| {
            let wanted = model(inputs.map(|bits| (format.value)((bits >> shift) as u16)));
            format.differs((found >> shift) as u16, wanted).then(|| format!("{wanted:#x} at bit {shift}"))
        })
    };
    let ty = if packed { "b32" } else { "b16" };
    match count {
        1 => accept(instruction, ty, [ty; 1], [sources[0]], |[a], found| judge([a, 0, 0], found)),
        2 => accept(instruction, ty, [ty; 2], [sources[0], sources[1]], |[a, b], found| {
            judge([a, b, 0], found)
        }),
        _ => accept(instruction, ty, [ty; 3], sources, judge),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn arithmetic(a in words(32), b in words(32), c in words(32)) {
        for format in FORMATS {
            for pair in ["", "x2"] {
                let ty = format!("{}{pair}", format.name);
                for (name, count, model) in MODELS {
                    lanes_agree(&format!("{name}.{ty}"), &format, [&a, &b, &c], count, |[a, b, c]| {
                        format.round(model(a, b, c), "rn")
                    });
                }
                lanes_agree(&format!("fma.rn.relu.{ty}"), &format, [&a, &b, &c], 3, |[a, b, c]| {
                    // max(x, +0), and +0 is above -0.
                    let rounded = format.round(odd_sum(a * b, c), "rn");
                    if (format.value)(rounded) <= 0.0 { 0 } else { rounded }
                });
                for (name, largest) in [("min", false), ("max", true)] {
                    let pick = move |a: f64, b: f64| match (a.is_nan(), b.is_nan()) {
                        (false, false) if a.total_cmp(&b).is_gt() == largest => a,
                        (false, true) => a,
                        _ => b,
                    };
                    lanes_agree(&format!("{name}.{ty}"), &format, [&a, &b, &c], 2, |[a, b, _]| format.round(pick(a, b), "rn"));
                    lanes_agree(&format!("{name}.NaN.{ty}"), &format, [&a, &b, &c], 2, |[a, b, _]| {
                        format.round(if a.is_nan() { a } else if b.is_nan() { b } else { pick(a, b) }, "rn")
                    });
                }
                lanes_agree(&format!("abs.{ty}"), &format, [&a, &b, &c], 1, |[a, ..]| format.round(a.abs(), "rn"));
                lanes_agree(&format!("neg.{ty}"), &format, [&a, &b, &c], 1, |[a, ..]| format.round(-a, "rn"));
            }
        }
    }

    /// f16 alone saturates and flushes.
    #[test]
    fn f16_modes(a in words(32), b in words(32)) {
        let format = FORMATS[0];
        let flush = |value: f64| if value.abs() < 2f64.powi(-14) { 0f64.copysign(value) } else { value };
        for ty in ["f16", "f16x2"] {
            lanes_agree(&format!("add.sat.{ty}"), &format, [&a, &b, &a], 2, |[a, b, _]| {
                let sum = a + b;
                format.round(if sum > 0.0 { sum.min(1.0) } else { 0.0 }, "rn")
            });
            lanes_agree(&format!("mul.ftz.{ty}"), &format, [&a, &b, &a], 2, |[a, b, _]| {
                let rounded = format.round(flush(a) * flush(b), "rn");
                format.round(flush((format.value)(rounded)), "rn")
            });
        }
    }

    /// Within 2^-9.9 (f16) and 2^-7 (bf16) relative for ex2, 2^-10.987 and 2^-8 for tanh, or a step of the format.
    #[test]
    fn approximations(a in words(16)) {
        for (format, exponent, tangent) in [(FORMATS[0], -9.9, -10.987), (FORMATS[1], -7.0, -8.0)] {
            let functions: [(&str, fn(f64) -> f64, f64); 2] = [("ex2", f64::exp2, exponent), ("tanh", f64::tanh, tangent)];
            for (name, exact, bound) in functions {
                let flush = if name == "ex2" && format.name == "bf16" { ".ftz" } else { "" };
                let instruction = format!("{name}.approx{flush}.{}", format.name);
                accept(&instruction, "b16", ["b16"], [&a], |[a], found| {
                    let (x, found) = ((format.value)(a as u16), (format.value)(found as u16));
                    let wanted = exact(x);
                    let largest = (format.value)(format.infinity - 1);
                    let right = if wanted.is_nan() {
                        found.is_nan()
                    } else if wanted > largest {
                        found >= largest
                    } else {
                        (found - wanted).abs() <= 2f64.powf(bound) * wanted.abs() + (format.value)(if flush.is_empty() { 1 } else { 0x80 })
                    };
                    (!right).then(|| format!("{wanted:e} at {x:e}, not {found:e}"))
                });
            }
        }
    }
}
