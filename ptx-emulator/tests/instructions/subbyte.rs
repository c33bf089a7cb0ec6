//! `mma.sync` on 4-bit integers and single bits against plain loops, with fragments laid out by the formulas of the PTX
//! ISA ("Matrix Fragments for mma.m16n8k64" and its like): element i of a lane, of group g and number t in it.

use proptest::prelude::*;
use ptx_emulator::MachineOptions;

use crate::common::{Rig, params};
use crate::numbers;

/// Row and column of element i of a lane.
type Layout = fn(i: usize, g: usize, t: usize) -> (usize, usize);

struct Shape {
    name: &'static str,
    rows: usize,
    k: usize,
    bits: usize,
    a: Layout,
    b: Layout,
}

const SHAPES: [Shape; 6] = [
    Shape {
        name: "m8n8k32",
        rows: 8,
        k: 32,
        bits: 4,
        a: |i, g, t| (g, 8 * t + i),
        b: |i, g, t| (8 * t + i, g),
    },
    Shape {
        name: "m16n8k32",
        rows: 16,
        k: 32,
        bits: 4,
        a: |i, g, t| (if i < 8 { g } else { g + 8 }, 8 * t + (i & 7)),
        b: |i, g, t| (8 * t + i, g),
    },
    Shape {
        name: "m16n8k64",
        rows: 16,
        k: 64,
        bits: 4,
        a: |i, g, t| {
            let upper = i < 8 || (16..24).contains(&i);
            (if upper { g } else { g + 8 }, 8 * t + (i & 7) + if i < 16 { 0 } else { 32 })
        },
        b: |i, g, t| (8 * t + (i & 7) + if i < 8 { 0 } else { 32 }, g),
    },
    Shape {
        name: "m8n8k128",
        rows: 8,
        k: 128,
        bits: 1,
        a: |i, g, t| (g, 32 * t + i),
        b: |i, g, t| (32 * t + i, g),
    },
    Shape {
        name: "m16n8k128",
        rows: 16,
        k: 128,
        bits: 1,
        a: |i, g, t| (if i < 32 { g } else { g + 8 }, 32 * t + (i & 31)),
        b: |i, g, t| (32 * t + i, g),
    },
    Shape {
        name: "m16n8k256",
        rows: 16,
        k: 256,
        bits: 1,
        a: |i, g, t| {
            let upper = i < 32 || (64..96).contains(&i);
            (if upper { g } else { g + 8 }, 32 * t + (i & 31) + if i < 64 { 0 } else { 128 })
        },
        b: |i, g, t| (32 * t + (i & 31) + if i < 32 { 0 } else { 128 }, g),
    },
];

/// The words that a lane holds of a matrix of so many elements.
fn fragment(
    shape: &Shape,
    layout: Layout,
    elements: usize,
    lane: usize,
    at: impl Fn((usize, usize)) -> i64,
) -> Vec<u32> {
    let per_word = 32 / shape.bits;
    let mut words = vec![0; elements / 32 / per_word];
    for i in 0..elements / 32 {
        let value = at(layout(i, lane / 4, lane % 4)) as u32 & ((1 << shape.bits) - 1);
        words[i / per_word] |= value << (shape.bits * (i % per_word));
    }
    words
}

/// D of one instruction, whose operands a lane has one after the other.
fn run(shape: &Shape, suffix: &str, lanes: &[[Vec<u32>; 3]], d_words: usize) -> Vec<u32> {
    let mut text = String::new();
    let mut lists = Vec::new();
    let mut offset = 0;
    for (name, part) in ["a", "b", "c"].into_iter().zip(&lanes[0]) {
        text += &format!(".reg .b32 %{name}<{}>;", part.len());
        for index in 0..part.len() {
            text += &format!("ld.global.b32 %{name}{index}, [%in+{offset}];");
            offset += 4;
        }
        let list: Vec<String> = (0..part.len()).map(|index| format!("%{name}{index}")).collect();
        lists.push(format!("{{{}}}", list.join(", ")));
    }
    let d: Vec<String> = (0..d_words).map(|index| format!("%d{index}")).collect();
    let stores: String =
        d.iter().enumerate().map(|(i, d)| format!("st.global.b32 [%out+{}], {d};", 4 * i)).collect();
    let source = format!(
        ".visible .entry k(.param .u64 o, .param .u64 i) {{ .reg .b32 %lane, %d<8>; .reg .b64 %in, %out, %step;
        mov.u32 %lane, %laneid; ld.param.u64 %in, [i]; ld.param.u64 %out, [o];
        mul.wide.u32 %step, %lane, {offset}; add.s64 %in, %in, %step;
        mul.wide.u32 %step, %lane, {}; add.s64 %out, %out, %step; {text}
        mma.sync.aligned.{}.row.col{suffix} {{{}}}, {}, {}, {}; {stores} ret; }}",
        4 * d_words,
        shape.name,
        d.join(", "),
        lists[0],
        lists[1],
        lists[2],
    );
    let mut rig = Rig::of(&source, MachineOptions::default());
    let bytes: Vec<u8> = lanes.iter().flatten().flatten().flat_map(|word| word.to_le_bytes()).collect();
    let (input, out) = (rig.upload(&bytes, "in"), rig.empty(128 * d_words as u64, "out"));
    rig.run("k", [1; 3], [32, 1, 1], 0, &params(&[out, input], &[]))
        .unwrap_or_else(|error| panic!("{error}"));
    rig.words(out, 32 * d_words)
}

fn judge(shape: &Shape, types: [&str; 2], operation: &str, saturates: bool, next: &mut impl FnMut() -> u64) {
    let element = |ty: &str, bits: u64| match ty {
        "s4" => i64::from((bits as i8) << 4 >> 4),
        "u4" => (bits & 15) as i64,
        _ => (bits & 1) as i64,
    };
    let a: Vec<i64> = (0..shape.rows * shape.k).map(|_| element(types[0], next())).collect();
    let b: Vec<i64> = (0..shape.k * 8).map(|_| element(types[1], next())).collect();
    // Some near the ends of the range.
    let sum =
        |bits: u64| if bits & 3 == 0 { i32::MAX - (bits >> 40) as i32 % 64 } else { (bits >> 32) as i32 };
    let c: Vec<i32> = (0..shape.rows * 8).map(|_| sum(next())).collect();
    let place = |i: usize, lane: usize| (lane / 4 + if i < 2 { 0 } else { 8 }) * 8 + 2 * (lane % 4) + (i & 1);
    let lanes: Vec<[Vec<u32>; 3]> = (0..32)
        .map(|lane| {
            [
                fragment(shape, shape.a, shape.rows * shape.k, lane, |(row, k)| a[row * shape.k + k]),
                fragment(shape, shape.b, shape.k * 8, lane, |(k, column)| b[k * 8 + column]),
                (0..shape.rows / 4).map(|i| c[place(i, lane)] as u32).collect(),
            ]
        })
        .collect();
    let clamp = if saturates { ".satfinite" } else { "" };
    let suffix = format!("{clamp}.s32.{}.{}.s32{operation}", types[0], types[1]);
    let found = run(shape, &suffix, &lanes, shape.rows / 4);
    for (index, &found) in found.iter().enumerate() {
        let at = place(index % (shape.rows / 4), index / (shape.rows / 4));
        let (row, column) = (at / 8, at % 8);
        let mut sum = i64::from(c[at]);
        for k in 0..shape.k {
            let (a, b) = (a[row * shape.k + k], b[k * 8 + column]);
            sum += match operation {
                ".and.popc" => a & b,
                ".xor.popc" => a ^ b,
                _ => a * b,
            };
        }
        let wanted = if saturates { sum.clamp(i32::MIN.into(), i32::MAX.into()) } else { sum };
        assert_eq!(found, wanted as u32, "{}{suffix} at [{row}, {column}]", shape.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn every_shape_and_type(seed in 1u64..) {
        let mut numbers = numbers(seed);
        let mut next = move || {
            let number = numbers();
            number ^ number >> 29
        };
        for shape in &SHAPES {
            if shape.bits == 1 {
                for operation in [".and.popc", ".xor.popc"] {
                    judge(shape, ["b1", "b1"], operation, false, &mut next);
                }
                continue;
            }
            for types in [["s4", "s4"], ["s4", "u4"], ["u4", "s4"], ["u4", "u4"]] {
                for saturates in [false, true] {
                    judge(shape, types, "", saturates, &mut next);
                }
            }
        }
    }
}
