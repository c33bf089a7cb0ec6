//! `mma.sync` against plain loops, with fragments laid out by the formulas of the PTX ISA ("Matrix Fragments
//! for mma.m16n8k16" and its like), which name element i of a lane by its group g = lane / 4 and t = lane mod 4.

use half::{bf16, f16};
use proptest::prelude::*;
use ptx_emulator::MachineOptions;

use crate::common::{Rig, params};
use crate::numbers;

/// Row and column of element i of a lane.
type Layout = fn(i: usize, g: usize, t: usize) -> (usize, usize);

/// How many elements a lane holds of a matrix, and where they lie.
#[derive(Clone, Copy)]
struct Fragment(usize, Layout);

struct Shape {
    name: &'static str,
    rows: usize,
    k: usize,
    /// Element types of A and B.
    types: &'static [&'static str],
    a: Fragment,
    b: Fragment,
}

const PAIRED_B: Layout = |i, g, t| (2 * t + (i & 1) + 8 * (i / 2), g);

const SHAPES: [Shape; 11] = [
    Shape {
        name: "m16n8k8",
        rows: 16,
        k: 8,
        types: &["f16", "bf16"],
        a: Fragment(4, |i, g, t| (if i < 2 { g } else { g + 8 }, 2 * t + (i & 1))),
        b: Fragment(2, PAIRED_B),
    },
    Shape {
        name: "m16n8k16",
        rows: 16,
        k: 16,
        types: &["f16", "bf16"],
        a: Fragment(8, |i, g, t| {
            (
                if i < 2 || (4..6).contains(&i) { g } else { g + 8 },
                2 * t + (i & 1) + if i < 4 { 0 } else { 8 },
            )
        }),
        b: Fragment(4, PAIRED_B),
    },
    Shape {
        name: "m16n8k4",
        rows: 16,
        k: 4,
        types: &["tf32"],
        a: Fragment(2, |i, g, t| (if i == 0 { g } else { g + 8 }, t)),
        b: Fragment(1, |_, g, t| (t, g)),
    },
    Shape {
        name: "m16n8k8",
        rows: 16,
        k: 8,
        types: &["tf32"],
        a: Fragment(4, |i, g, t| (if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 })),
        b: Fragment(2, |i, g, t| (if i == 0 { t } else { t + 4 }, g)),
    },
    Shape {
        name: "m8n8k16",
        rows: 8,
        k: 16,
        types: &["s8", "u8"],
        a: Fragment(4, |i, g, t| (g, 4 * t + i)),
        b: Fragment(4, |i, g, t| (4 * t + i, g)),
    },
    Shape {
        name: "m16n8k16",
        rows: 16,
        k: 16,
        types: &["s8", "u8"],
        a: Fragment(8, |i, g, t| (if i < 4 { g } else { g + 8 }, 4 * t + (i & 3))),
        b: Fragment(4, |i, g, t| (4 * t + i, g)),
    },
    Shape {
        name: "m16n8k32",
        rows: 16,
        k: 32,
        types: &["s8", "u8"],
        a: Fragment(16, |i, g, t| {
            let upper = i < 4 || (8..12).contains(&i);
            (if upper { g } else { g + 8 }, 4 * t + (i & 3) + if i < 8 { 0 } else { 16 })
        }),
        b: Fragment(8, |i, g, t| (4 * t + (i & 3) + if i < 4 { 0 } else { 16 }, g)),
    },
    Shape {
        name: "m8n8k4",
        rows: 8,
        k: 4,
        types: &["f64"],
        a: Fragment(1, |_, g, t| (g, t)),
        b: Fragment(1, |_, g, t| (t, g)),
    },
    Shape {
        name: "m16n8k4",
        rows: 16,
        k: 4,
        types: &["f64"],
        a: Fragment(2, |i, g, t| (if i == 0 { g } else { g + 8 }, t)),
        b: Fragment(1, |_, g, t| (t, g)),
    },
    Shape {
        name: "m16n8k8",
        rows: 16,
        k: 8,
        types: &["f64"],
        a: Fragment(4, |i, g, t| (if i == 0 || i == 2 { g } else { g + 8 }, if i < 2 { t } else { t + 4 })),
        b: Fragment(2, |i, g, t| (t + 4 * i, g)),
    },
    Shape {
        name: "m16n8k16",
        rows: 16,
        k: 16,
        types: &["f64"],
        a: Fragment(8, |i, g, t| (if i % 2 == 0 { g } else { g + 8 }, t + 4 * (i / 2))),
        b: Fragment(4, |i, g, t| (t + 4 * i, g)),
    },
];

/// Of C and D, in all shapes.
fn accumulator(rows: usize) -> Fragment {
    Fragment(rows / 4, |i, g, t| (if i < 2 { g } else { g + 8 }, 2 * t + (i & 1)))
}

/// Bytes of an element and its bits; the value is what the bits hold.
fn encode(ty: &str, value: f64) -> (usize, u64) {
    match ty {
        "f16" => (2, f16::from_f64(value).to_bits().into()),
        "bf16" => (2, bf16::from_f64(value).to_bits().into()),
        "tf32" => (4, u64::from((value as f32).to_bits() & !0x1FFF)),
        "s8" => (1, u64::from(value as i8 as u8)),
        "u8" => (1, u64::from(value as u8)),
        "s32" => (4, u64::from(value as i32 as u32)),
        "f64" => (8, value.to_bits()),
        _ => (4, u64::from((value as f32).to_bits())),
    }
}

fn decode(ty: &str, bits: u64) -> f64 {
    match ty {
        "f16" => f16::from_bits(bits as u16).to_f64(),
        "bf16" => bf16::from_bits(bits as u16).to_f64(),
        "s8" => (bits as i8).into(),
        "u8" => (bits as u8).into(),
        "s32" => (bits as i32).into(),
        "f64" => f64::from_bits(bits),
        _ => f32::from_bits(bits as u32).into(),
    }
}

/// A matrix of values that its type holds exactly.
struct Matrix {
    ty: &'static str,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn random(ty: &'static str, rows: usize, columns: usize, next: &mut impl FnMut() -> f64) -> Self {
        let scale = match ty {
            "s8" => 127.0,
            "u8" => 255.0,
            "s32" => 2_147_483_000.0,
            _ => 3.0,
        };
        let value = |x: f64| if ty == "u8" { x.abs() * scale } else { x * scale };
        let values = (0..rows * columns).map(|_| decode(ty, encode(ty, value(next())).1)).collect();
        Self { ty, columns, values }
    }

    fn at(&self, (row, column): (usize, usize)) -> f64 {
        self.values[row * self.columns + column]
    }

    /// The fragment of a lane as memory: element after element, low ones first.
    fn fragment(&self, Fragment(count, place): Fragment, lane: usize) -> Vec<u8> {
        let elements = (0..count).map(|i| encode(self.ty, self.at(place(i, lane / 4, lane % 4))));
        elements.flat_map(|(bytes, bits)| bits.to_le_bytes()[..bytes].to_vec()).collect()
    }
}

/// Registers of a fragment, what loads them, and their list.
fn registers(name: &str, ty: &str, bytes: usize, offset: usize) -> (String, String) {
    let (reg, size) = if ty == "f64" { ("b64", 8) } else { ("b32", 4) };
    let count = bytes / size;
    let mut text = format!(".reg .{reg} %{name}<{count}>;");
    for index in 0..count {
        text += &format!(" ld.global.{reg} %{name}{index}, [%in+{}];", offset + size * index);
    }
    (
        text,
        format!("{{{}}}", (0..count).map(|index| format!("%{name}{index}")).collect::<Vec<_>>().join(", ")),
    )
}

/// Runs one instruction; D as a matrix.
fn run(shape: &Shape, suffix: &str, d_type: &'static str, [a, b, c]: [&Matrix; 3]) -> Matrix {
    let accumulator = accumulator(shape.rows);
    let lane_bytes =
        |lane: usize| [a.fragment(shape.a, lane), b.fragment(shape.b, lane), c.fragment(accumulator, lane)];
    let [a_bytes, b_bytes, c_bytes] = lane_bytes(0).map(|part| part.len().next_multiple_of(4));
    let stride = (a_bytes + b_bytes + c_bytes).next_multiple_of(8);
    let (load_a, a_list) = registers("a", a.ty, a_bytes, 0);
    let (load_b, b_list) = registers("b", b.ty, b_bytes, a_bytes);
    let (load_c, c_list) = registers("c", c.ty, c_bytes, a_bytes + b_bytes);
    let d_bytes = accumulator.0 * encode(d_type, 0.0).0;
    let (reg, size) = if d_type == "f64" { ("b64", 8) } else { ("b32", 4) };
    let names: Vec<String> = (0..d_bytes / size).map(|index| format!("%d{index}")).collect();
    let stores: String =
        names.iter().enumerate().map(|(i, d)| format!("st.global.{reg} [%out+{}], {d};", size * i)).collect();
    let text = format!(
        ".visible .entry k(.param .u64 o, .param .u64 i) {{
        .reg .b32 %lane; .reg .b64 %in, %out, %step; .reg .{reg} {declared};
        mov.u32 %lane, %laneid; ld.param.u64 %in, [i]; ld.param.u64 %out, [o];
        mul.wide.u32 %step, %lane, {stride}; add.s64 %in, %in, %step;
        mul.wide.u32 %step, %lane, {d_bytes}; add.s64 %out, %out, %step;
        {load_a} {load_b} {load_c}
        mma.sync.aligned.{name}.row.col{suffix} {{{d_list}}}, {a_list}, {b_list}, {c_list};
        {stores} ret; }}",
        declared = names.join(", "),
        name = shape.name,
        d_list = names.join(", "),
    );
    let mut rig = Rig::of(&text, MachineOptions::default());
    let mut bytes = vec![0; 32 * stride];
    for lane in 0..32 {
        let starts = [0, a_bytes, a_bytes + b_bytes];
        for (part, start) in lane_bytes(lane).into_iter().zip(starts) {
            bytes[lane * stride + start..][..part.len()].copy_from_slice(&part);
        }
    }
    let (input, out) = (rig.upload(&bytes, "in"), rig.empty(32 * d_bytes as u64, "out"));
    rig.run("k", [1, 1, 1], [32, 1, 1], 0, &params(&[out, input], &[]))
        .unwrap_or_else(|error| panic!("{error}"));
    let found = rig.download(out, 32 * d_bytes);
    let mut d = Matrix { ty: d_type, columns: 8, values: vec![f64::NAN; shape.rows * 8] };
    let width = encode(d_type, 0.0).0;
    for (index, element) in found.chunks(width).enumerate() {
        let (lane, i) = (index / accumulator.0, index % accumulator.0);
        let (row, column) = accumulator.1(i, lane / 4, lane % 4);
        let mut bits = [0; 8];
        bits[..width].copy_from_slice(element);
        d.values[8 * row + column] = decode(d_type, u64::from_le_bytes(bits));
    }
    d
}

/// Every element against the sum of its products; rounded once, but for f64, where each step may round.
fn judge(shape: &Shape, suffix: &str, d_type: &'static str, [a, b, c]: [&Matrix; 3]) {
    let d = run(shape, suffix, d_type, [a, b, c]);
    for row in 0..shape.rows {
        for column in 0..8 {
            let terms = || (0..shape.k).map(|k| a.at((row, k)) * b.at((k, column)));
            let exact = terms().sum::<f64>() + c.at((row, column));
            let scale = terms().map(f64::abs).sum::<f64>() + c.at((row, column)).abs();
            let (wanted, bound) = match d_type {
                "s32" if suffix.contains("satfinite") => (exact.clamp(i32::MIN.into(), i32::MAX.into()), 0.0),
                "s32" => (f64::from(exact as i64 as i32), 0.0),
                "f16" => (exact, exact.abs() * 2f64.powi(-11) + scale * 2f64.powi(-45)),
                "f64" => (exact, scale * (shape.k + 1) as f64 * 2f64.powi(-53)),
                _ => (exact, exact.abs() * 2f64.powi(-24) + scale * 2f64.powi(-45)),
            };
            let found = d.at((row, column));
            assert!(
                (found - wanted).abs() <= bound,
                "{}{suffix} at [{row}, {column}]: {found}, not {wanted}",
                shape.name
            );
        }
    }
}

/// The types of D and C that go with an element type.
fn accumulators(ty: &str) -> &'static [(&'static str, &'static str)] {
    match ty {
        "f16" => &[("f32", "f32"), ("f16", "f16"), ("f32", "f16"), ("f16", "f32")],
        "s8" | "u8" => &[("s32", "s32")],
        "f64" => &[("f64", "f64")],
        _ => &[("f32", "f32")],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn every_shape_and_type(seed in 1u64..) {
        let mut numbers = numbers(seed);
        let mut next = move || (numbers() >> 11) as f64 / 2f64.powi(52) - 1.0;
        for shape in &SHAPES {
            for &a_type in shape.types {
                // Integers may differ in sign.
                let b_types: &[&'static str] = if a_type.ends_with('8') { shape.types } else { &[a_type] };
                for &b_type in b_types {
                    for &(d_type, c_type) in accumulators(a_type) {
                        let a = Matrix::random(a_type, shape.rows, shape.k, &mut next);
                        let b = Matrix::random(b_type, shape.k, 8, &mut next);
                        let c = Matrix::random(c_type, shape.rows, 8, &mut next);
                        for satfinite in if c_type == "s32" { &["", ".satfinite"][..] } else { &[""] } {
                            let suffix = format!("{satfinite}.{d_type}.{a_type}.{b_type}.{c_type}");
                            judge(shape, &suffix, d_type, [&a, &b, &c]);
                        }
                    }
                }
            }
        }
    }
}

/// Infinities, NaN and subnormal halves pass through.
#[test]
fn special_values() {
    let shape = &SHAPES[0];
    let zero = |ty, rows, columns| Matrix { ty, columns, values: vec![0.0; rows * columns] };
    let (mut a, mut b, c) = (zero("f16", 16, 8), zero("f16", 8, 8), zero("f32", 16, 8));
    a.values[0] = f64::INFINITY;
    a.values[8] = 2f64.powi(-24);
    a.values[16] = f64::NAN;
    a.values[24] = -65504.0;
    b.values[0] = 65504.0;
    let d = run(shape, ".f32.f16.f16.f32", "f32", [&a, &b, &c]);
    assert_eq!(d.at((0, 0)), f64::INFINITY);
    assert!(d.at((0, 1)).is_nan(), "infinity times zero");
    assert_eq!(d.at((1, 0)), 65504.0 * 2f64.powi(-24));
    assert!(d.at((2, 0)).is_nan());
    assert_eq!(d.at((3, 0)), f64::from(-65504f32 * 65504.0));
}
