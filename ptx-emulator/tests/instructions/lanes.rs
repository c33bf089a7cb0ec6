//! Instructions on arrays: thread i takes element i of every source.

use std::fmt::Write as _;

use proptest::prelude::*;
use ptx_emulator::MachineOptions;

use crate::common::{Rig, params};

/// Runs PTX that reads %a, %b, %c and %e of these types and writes %d; the bits of %d by thread.
pub(crate) fn evaluate(body: &str, d: &str, types: &[&str], sources: &[&[u64]]) -> Vec<u64> {
    evaluate_in("", body, d, types, sources)
}

/// `evaluate` with declarations before the instructions. %lane holds the thread's number, %mask all lanes.
pub(crate) fn evaluate_in(
    declarations: &str,
    body: &str,
    d: &str,
    types: &[&str],
    sources: &[&[u64]],
) -> Vec<u64> {
    let threads = sources[0].len();
    assert!(threads.is_multiple_of(32) && threads <= 1024, "{threads} threads");
    let names = ["a", "b", "c", "e"];
    let mut text = format!(
        ".visible .entry k(.param .u64 out, .param .u64 in) {{
        .reg .pred %q; .reg .b32 %lane, %mask; .reg .b64 %at, %step, %w; .reg .{d} %d; {declarations}
        mov.u32 %lane, %tid.x; mov.b32 %mask, -1; mul.wide.u32 %step, %lane, 8; ld.param.u64 %at, [in];
        add.s64 %at, %at, %step;\n"
    );
    for (index, (name, ty)) in names.iter().zip(types).enumerate() {
        let load = match *ty {
            "pred" => format!("setp.ne.u64 %{name}, %w, 0;"),
            "b64" => format!("mov.b64 %{name}, %w;"),
            _ => format!("cvt.u{}.u64 %{name}, %w;", &ty[1..]),
        };
        let offset = 8 * threads * index;
        writeln!(text, ".reg .{ty} %{name}; ld.global.u64 %w, [%at+{offset}]; {load}").unwrap();
    }
    let widen = match d {
        "pred" => "selp.u64 %w, 1, 0, %d;".to_owned(),
        "b64" => "mov.b64 %w, %d;".to_owned(),
        _ => format!("cvt.u64.u{} %w, %d;", &d[1..]),
    };
    write!(
        text,
        "{body}\n{widen} ld.param.u64 %at, [out]; add.s64 %at, %at, %step; st.global.u64 [%at], %w; ret; }}"
    )
    .unwrap();
    let mut rig = Rig::of(&text, MachineOptions::default());
    let bytes: Vec<u8> =
        sources.iter().flat_map(|source| source.iter()).flat_map(|w| w.to_le_bytes()).collect();
    let (input, out) = (rig.upload(&bytes, "in"), rig.empty(8 * threads as u64, "out"));
    rig.run("k", [1, 1, 1], [threads as u32, 1, 1], 0, &params(&[out, input], &[]))
        .unwrap_or_else(|error| panic!("{body}: {error}"));
    rig.download(out, 8 * threads)
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// Asserts `instruction %d, %a, …;` against a model of one lane's bits.
pub(crate) fn agree<const N: usize>(
    instruction: &str,
    d: &str,
    types: [&str; N],
    sources: [&[u64]; N],
    model: impl Fn([u64; N]) -> u64,
) {
    accept(instruction, d, types, sources, |inputs, found| {
        let wanted = model(inputs);
        (found != wanted).then(|| format!("{wanted:#x}"))
    });
}

/// Asserts that a judge of one lane's inputs and result has nothing to object.
pub(crate) fn accept<const N: usize>(
    instruction: &str,
    d: &str,
    types: [&str; N],
    sources: [&[u64]; N],
    judge: impl Fn([u64; N], u64) -> Option<String>,
) {
    let operands = [", %a", ", %b", ", %c", ", %e"][..N].concat();
    let (opcode, literal) = instruction.split_once(' ').unwrap_or((instruction, ""));
    let body = format!("{opcode} %d{operands}{literal};");
    let found = evaluate(&body, d, &types, &sources);
    for (lane, found) in found.into_iter().enumerate() {
        let inputs = sources.map(|source| source[lane]);
        if let Some(wanted) = judge(inputs, found) {
            panic!("{body} on {inputs:#x?}: found {found:#x}, wanted {wanted}");
        }
    }
}

/// 64 words of `bits` bits: random ones and those at which integers and floats change their ways.
pub(crate) fn words(bits: u32) -> impl Strategy<Value = Vec<u64>> {
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let edge = prop_oneof![
        Just(0u64),
        Just(u64::MAX),
        (0..bits).prop_map(|bit| 1 << bit),
        (0..bits).prop_map(|bit| (1 << bit) - 1),
        prop::sample::select(vec![
            0x7F80_0000,
            0x7F80_0001,
            0x7FC0_0000,
            0xFF80_0000,
            0x0080_0000,
            0x807F_FFFF
        ]),
        prop::sample::select(vec![
            0x3F80_0000,
            0xBF80_0000,
            0x4B00_0001,
            0x4F00_0000,
            0xCF00_0000,
            0x3F00_0000
        ]),
        prop::sample::select(vec![
            0x7C00, 0xFC00, 0x7E00, 0x3C00, 0x0400, 0x83FF, 0x7BFF, 0x7F80, 0x3F80, 0xFF7F
        ]),
        prop::sample::select(vec![0x7FF0 << 48, 0x7FF8 << 48, 0xFFF0 << 48, 0x3FF0 << 48, 0x0010 << 48]),
    ];
    let any = prop_oneof![3 => any::<u64>(), 2 => edge];
    prop::collection::vec(any.prop_map(move |word| word & mask), 64)
}

/// Integers near 0 and of all sizes, for amounts and positions.
pub(crate) fn amounts() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![4 => 0u64..70, 1 => 0u64..300, 1 => 0u64..1 << 32], 64)
}

/// Finite floats of moderate size, as bits of f32.
pub(crate) fn moderate(low: f32, high: f32) -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec((low..high).prop_map(|value| u64::from(value.to_bits())), 64)
}

pub(crate) fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

pub(crate) fn double(bits: u64) -> f64 {
    f64::from_bits(bits)
}
