//! Integers of all widths through 128-bit arithmetic; carries; bits of 64-bit words.

use proptest::prelude::*;

use crate::lanes::{agree, amounts, evaluate, words};

fn read(bits: u64, width: u32, signed: bool) -> i128 {
    let value = i128::from(bits) & ((1 << width) - 1);
    if signed && value >> (width - 1) & 1 != 0 { value - (1 << width) } else { value }
}

fn cut(value: i128, width: u32) -> u64 {
    (value & ((1 << width) - 1)) as u64
}

type Model = fn(i128, i128, i128, u32) -> i128;

/// Two and three operands; division by zero is judged elsewhere, since PTX leaves it open.
const BINARY: [(&str, Model); 8] = [
    ("add", |a, b, _, _| a + b),
    ("sub", |a, b, _, _| a - b),
    ("mul.lo", |a, b, _, _| a.wrapping_mul(b)),
    ("mul.hi", |a, b, _, width| high(a, b, width)),
    ("min", |a, b, _, _| a.min(b)),
    ("max", |a, b, _, _| a.max(b)),
    ("div", |a, b, _, _| if b == 0 { -1 } else { a / b }),
    ("rem", |a, b, _, _| if b == 0 { a } else { a % b }),
];
const TERNARY: [(&str, Model); 3] = [
    ("mad.lo", |a, b, c, _| a.wrapping_mul(b).wrapping_add(c)),
    ("mad.hi", |a, b, c, width| high(a, b, width) + c),
    ("sad", |a, b, c, _| c + (a - b).abs()),
];

/// The upper half of a product, whose 128 bits may not hold the unsigned one of 64 bits.
fn high(a: i128, b: i128, width: u32) -> i128 {
    if width < 64 {
        return (a * b) >> width;
    }
    let (low, high) = (b & 0xFFFF_FFFF, b >> 32);
    (a * high + ((a * low) >> 32)) >> 32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_width_and_sign(a in words(64), b in words(64), c in words(64)) {
        for width in [16, 32, 64] {
            for (sign, signed) in [("u", false), ("s", true)] {
                let reg = format!("b{width}");
                let of = |bits: u64| read(bits, width, signed);
                for (name, model) in BINARY {
                    let name = format!("{name}.{sign}{width}");
                    agree(&name, &reg, [&reg, &reg], [&a, &b], |[a, b]| cut(model(of(a), of(b), 0, width), width));
                }
                for (name, model) in TERNARY {
                    let name = format!("{name}.{sign}{width}");
                    agree(&name, &reg, [&reg; 3], [&a, &b, &c], |[a, b, c]| {
                        cut(model(of(a), of(b), of(c), width), width)
                    });
                }
                if width < 64 {
                    let to = format!("b{}", 2 * width);
                    agree(&format!("mul.wide.{sign}{width}"), &to, [&reg, &reg], [&a, &b], |[a, b]| {
                        cut(of(a) * of(b), 2 * width)
                    });
                    agree(&format!("mad.wide.{sign}{width}"), &to, [&reg, &reg, &to], [&a, &b, &c], |[a, b, c]| {
                        cut(of(a) * of(b) + read(c, 2 * width, signed), 2 * width)
                    });
                }
            }
            let reg = format!("b{width}");
            agree(&format!("neg.s{width}"), &reg, [&reg], [&a], |[a]| cut(-read(a, width, true), width));
            agree(&format!("abs.s{width}"), &reg, [&reg], [&a], |[a]| cut(read(a, width, true).abs(), width));
            agree(&format!("cnot.b{width}"), &reg, [&reg], [&a], |[a]| u64::from(cut(a.into(), width) == 0));
            agree(&format!("xor.b{width}"), &reg, [&reg; 2], [&a, &b], |[a, b]| cut((a ^ b).into(), width));
        }
    }

    #[test]
    fn saturation_and_24_bits(a in words(32), b in words(32), c in words(32)) {
        let clamp = |value: i128| cut(value.clamp(i32::MIN.into(), i32::MAX.into()), 32);
        let s = |bits: u64| read(bits, 32, true);
        agree("add.sat.s32", "b32", ["b32"; 2], [&a, &b], |[a, b]| clamp(s(a) + s(b)));
        agree("sub.sat.s32", "b32", ["b32"; 2], [&a, &b], |[a, b]| clamp(s(a) - s(b)));
        agree("mad.hi.sat.s32", "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| clamp(((s(a) * s(b)) >> 32) + s(c)));
        for (sign, signed) in [("u", false), ("s", true)] {
            let of = |bits: u64| read(bits, 24, signed);
            for (part, shift) in [("lo", 0), ("hi", 16)] {
                agree(&format!("mad24.{part}.{sign}32"), "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| {
                    cut(((of(a) * of(b)) >> shift) + i128::from(c), 32)
                });
            }
        }
    }

    #[test]
    fn carries_make_wide_sums(a in words(64), b in words(64), c in words(64), e in words(64)) {
        // Two words each, added, subtracted, and multiplied into two words.
        let halves = |low: &str, high: &str, op: &str| {
            let body = format!(
                ".reg .b32 %al, %ah, %bl, %bh, %dl, %dh; mov.b64 {{%al, %ah}}, %a; mov.b64 {{%bl, %bh}}, %b;
                {low} %dl, %al, %bl; {high} %dh, %ah, %bh; mov.b64 %d, {{%dl, %dh}};"
            );
            (body, op.to_owned())
        };
        for (body, op) in [halves("add.cc.u32", "addc.u32", "+"), halves("sub.cc.u32", "subc.u32", "-")] {
            let found = evaluate(&body, "b64", &["b64", "b64"], &[&a, &b]);
            for ((found, a), b) in found.into_iter().zip(&a).zip(&b) {
                let wanted = if op == "+" { a.wrapping_add(*b) } else { a.wrapping_sub(*b) };
                prop_assert_eq!(found, wanted, "{:#x} {} {:#x}", a, op, b);
            }
        }
        // The upper word of a · b + (e:c), 128 bits.
        let body = ".reg .b64 %low; mad.lo.cc.u64 %low, %a, %b, %c; madc.hi.u64 %d, %a, %b, %e;";
        let found = evaluate(body, "b64", &["b64"; 4], &[&a, &b, &c, &e]);
        for lane in 0..found.len() {
            let addend = u128::from(e[lane]) << 64 | u128::from(c[lane]);
            let wanted = (u128::from(a[lane]) * u128::from(b[lane])).wrapping_add(addend);
            prop_assert_eq!(found[lane], (wanted >> 64) as u64);
        }
        // The carry of the last addition, as a value.
        let body = ".reg .b64 %s; add.cc.u64 %s, %a, %b; addc.cc.u64 %s, %c, %e; addc.u64 %d, 0, 0;";
        let found = evaluate(body, "b64", &["b64"; 4], &[&a, &b, &c, &e]);
        for lane in 0..found.len() {
            let first = u128::from(a[lane]) + u128::from(b[lane]);
            let second = u128::from(c[lane]) + u128::from(e[lane]) + (first >> 64);
            prop_assert_eq!(found[lane], (second >> 64) as u64);
        }
    }

    #[test]
    fn dot_products(a in words(32), b in words(32), c in words(32)) {
        for (x, signed_a) in [("u32", false), ("s32", true)] {
            for (y, signed_b) in [("u32", false), ("s32", true)] {
                let term = |a: u64, b: u64, i: u32, j: u32, width: u32| {
                    read(a >> (i * width), width, signed_a) * read(b >> (j * 8), 8, signed_b)
                };
                agree(&format!("dp4a.{x}.{y}"), "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| {
                    cut((0..4).map(|i| term(a, b, i, i, 8)).sum::<i128>() + i128::from(c), 32)
                });
                for (half, first) in [("lo", 0), ("hi", 2)] {
                    agree(&format!("dp2a.{half}.{x}.{y}"), "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| {
                        cut((0..2).map(|i| term(a, b, i, first + i, 16)).sum::<i128>() + i128::from(c), 32)
                    });
                }
            }
        }
    }

    #[test]
    fn shifts_of_every_width(a in words(64), n in amounts()) {
        for width in [16, 32, 64] {
            let reg = format!("b{width}");
            let of = |bits, signed| read(bits, width, signed);
            let clamp = |n: u64| n.min(width.into()) as u32;
            agree(&format!("shl.b{width}"), &reg, [&reg, "b32"], [&a, &n], |[a, n]| cut(of(a, false) << clamp(n), width));
            agree(&format!("shr.u{width}"), &reg, [&reg, "b32"], [&a, &n], |[a, n]| cut(of(a, false) >> clamp(n), width));
            agree(&format!("shr.s{width}"), &reg, [&reg, "b32"], [&a, &n], |[a, n]| cut(of(a, true) >> clamp(n), width));
        }
    }

    #[test]
    fn funnels_and_bits(a in words(64), b in words(32), n in amounts()) {
        let wide = |a: u64, b: u64| (b & 0xFFFF_FFFF) << 32 | a & 0xFFFF_FFFF;
        for (mode, limit) in [("wrap", None), ("clamp", Some(32))] {
            let amount = |n: u64| limit.map_or(n & 31, |limit: u64| n.min(limit)) as u32;
            agree(&format!("shf.l.{mode}.b32"), "b32", ["b32"; 3], [&a, &b, &n], |[a, b, n]| {
                cut(i128::from(wide(a, b)) << amount(n) >> 32, 32)
            });
            agree(&format!("shf.r.{mode}.b32"), "b32", ["b32"; 3], [&a, &b, &n], |[a, b, n]| {
                cut(i128::from(wide(a, b)) >> amount(n), 32)
            });
        }
        agree("popc.b64", "b32", ["b64"], [&a], |[a]| (0..64).map(|bit| a >> bit & 1).sum());
        agree("clz.b64", "b32", ["b64"], [&a], |[a]| (0..64).take_while(|bit| a >> (63 - bit) & 1 == 0).count() as u64);
        agree("brev.b64", "b64", ["b64"], [&a], |[a]| (0..64).fold(0, |out, bit| out | (a >> bit & 1) << (63 - bit)));
        for (sign, signed) in [("u", false), ("s", true)] {
            for width in [32u32, 64] {
                let last = |a: u64| {
                    let value = read(a, width, signed);
                    let value = if value < 0 { !value } else { value };
                    (0..width).rev().find(|bit| value >> bit & 1 != 0)
                };
                let reg = format!("b{width}");
                let found = |bit: Option<u32>| u64::from(bit.unwrap_or(u32::MAX));
                agree(&format!("bfind.{sign}{width}"), "b32", [&reg], [&a], |[a]| found(last(a)));
                agree(&format!("bfind.shiftamt.{sign}{width}"), "b32", [&reg], [&a], |[a]| {
                    found(last(a).map(|bit| width - 1 - bit))
                });
            }
        }
    }

    /// PTX ISA, bfe and bfi: the manual's pseudocode, bit by bit.
    #[test]
    fn fields(a in words(64), b in words(64), p in amounts(), n in amounts()) {
        for width in [32u32, 64] {
            let reg = format!("b{width}");
            let bit = |value: u64, index: u32| value >> index & 1;
            for (sign, signed) in [("u", false), ("s", true)] {
                agree(&format!("bfe.{sign}{width}"), &reg, [&reg, "b32", "b32"], [&a, &p, &n], |[a, p, n]| {
                    let (pos, len) = (p as u32 & 255, n as u32 & 255);
                    let fill = if signed && len != 0 { bit(a, (pos + len - 1).min(width - 1)) } else { 0 };
                    (0..width).fold(0, |out, i| {
                        out | (if i < len && pos + i < width { bit(a, pos + i) } else { fill }) << i
                    })
                });
            }
            agree(&format!("bfi.b{width}"), &reg, [&reg, &reg, "b32", "b32"], [&a, &b, &p, &n], |[a, b, p, n]| {
                let (pos, len) = (p as u32 & 255, n as u32 & 255);
                let target = |out: u64, i: u32| out & !(1 << (pos + i)) | bit(a, i) << (pos + i);
                (0..len).filter(|i| pos + i < width).fold(cut(b.into(), width), target)
            });
        }
        agree("bmsk.clamp.b32", "b32", ["b32"; 2], [&p, &n], |[p, n]| {
            (0..32).filter(|bit| *bit >= p && *bit < p.saturating_add(n)).fold(0, |out, bit| out | 1 << bit)
        });
        agree("szext.clamp.s32", "b32", ["b32"; 2], [&a, &n], |[a, n]| match n {
            0 => 0,
            n => cut(read(a, n.min(32) as u32, true), 32),
        });
        agree("szext.wrap.u32", "b32", ["b32"; 2], [&a, &n], |[a, n]| match n & 31 {
            0 => 0,
            n => cut(read(a, n as u32, false), 32),
        });
    }

    #[test]
    fn byte_permutations(a in words(32), b in words(32), c in words(32)) {
        // PTX ISA, prmt: the bytes chosen for d.b3 … d.b0 by the low two bits of c.
        let modes: [(&str, [[usize; 4]; 4]); 6] = [
            ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
            ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
            ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
            ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
            ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
            ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
        ];
        let byte = |a: u64, b: u64, index: usize| (b << 32 | a) >> (8 * index) & 255;
        for (mode, table) in modes {
            agree(&format!("prmt.b32.{mode}"), "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| {
                table[(c & 3) as usize].iter().fold(0, |out, &index| out << 8 | byte(a, b, index))
            });
        }
        agree("prmt.b32", "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| {
            (0..4).fold(0, |out, i| {
                let selector = (c >> (4 * i)) as usize;
                let byte = byte(a, b, selector & 7);
                let byte = if selector & 8 == 0 { byte } else { 255 * (byte >> 7) };
                out | byte << (8 * i)
            })
        });
        for table in [0x00u64, 0x80, 0x96, 0xE8, 0xCA, 0xFE, 0x1B] {
            agree(&format!("lop3.b32 , {table}"), "b32", ["b32"; 3], [&a, &b, &c], |[a, b, c]| {
                (0..32).fold(0, |out, bit| {
                    let index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1;
                    out | (table >> index & 1) << bit
                })
            });
        }
    }
}
