//! Vector loads and stores of all widths, sign extension, packing, and the order of elements.

use proptest::prelude::*;
use ptx_emulator::MachineOptions;

use crate::common::{Rig, params};
use crate::lanes::{agree, evaluate, words};

/// Copies 32 · lanes elements through registers, reversing each vector.
fn reverse(space: &str, lanes: usize, width: usize) {
    let reg = format!("b{}", width.max(16));
    let bytes = lanes * width / 8;
    let names: Vec<String> = (0..lanes).map(|index| format!("%v{index}")).collect();
    let reversed: Vec<&str> = names.iter().rev().map(String::as_str).collect();
    let list = |names: &str| if lanes == 1 { names.to_owned() } else { format!("{{{names}}}") };
    let vector = if lanes == 1 { String::new() } else { format!(".v{lanes}") };
    let (forward, backward) = (list(&names.join(", ")), list(&reversed.join(", ")));
    // Through shared memory, the copy makes a detour.
    let detour = if space == "shared" {
        format!(
            "mov.b32 %s, tile; mad.lo.u32 %s, %lane, {bytes}, %s; st.shared{vector}.b{width} [%s], {forward};
            ld.shared{vector}.b{width} {forward}, [%s];"
        )
    } else {
        String::new()
    };
    let text = format!(
        ".visible .entry k(.param .u64 o, .param .u64 i) {{
        .shared .align 32 .b8 tile[1024]; .reg .b32 %lane, %s; .reg .b64 %in, %out, %step; .reg .{reg} %v<{lanes}>;
        mov.u32 %lane, %tid.x; mul.wide.u32 %step, %lane, {bytes}; ld.param.u64 %in, [i]; ld.param.u64 %out, [o];
        add.s64 %in, %in, %step; add.s64 %out, %out, %step;
        ld.global{vector}.b{width} {forward}, [%in]; {detour} st.global{vector}.b{width} [%out], {backward}; ret; }}"
    );
    let mut rig = Rig::of(&text, MachineOptions::default());
    let input: Vec<u8> = (0..32 * bytes).map(|index| (index * 37 + index / 256) as u8).collect();
    let (at, out) = (rig.upload(&input, "in"), rig.empty(32 * bytes as u64, "out"));
    rig.run("k", [1, 1, 1], [32, 1, 1], 0, &params(&[out, at], &[]))
        .unwrap_or_else(|error| panic!("{error}"));
    let wanted: Vec<u8> =
        input.chunks(bytes).flat_map(|vector| vector.chunks(width / 8).rev().flatten().copied()).collect();
    assert_eq!(rig.download(out, 32 * bytes), wanted, "{space} v{lanes}.b{width}");
}

#[test]
fn elements_lie_in_order() {
    for space in ["global", "shared"] {
        for width in [8, 16, 32, 64] {
            for lanes in [1, 2, 4] {
                if lanes * width <= 128 {
                    reverse(space, lanes, width);
                }
            }
        }
    }
    // 256 bits, from PTX 8.8 on.
    reverse("global", 8, 32);
    reverse("global", 4, 64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn loads_extend_to_the_register(a in words(64)) {
        for (width, keep) in [(8, 56), (16, 48), (32, 32)] {
            for reg in ["b16", "b32", "b64"] {
                let bits: u32 = reg[1..].parse().unwrap();
                if bits < width {
                    continue;
                }
                let mask = u64::MAX >> (64 - bits);
                let signed = evaluate(&format!("ld.global.s{width} %d, [%at];"), reg, &["b64"], &[&a]);
                let unsigned = evaluate(&format!("ld.global.u{width} %d, [%at];"), reg, &["b64"], &[&a]);
                for lane in 0..a.len() {
                    prop_assert_eq!(signed[lane], ((a[lane] << keep) as i64 >> keep) as u64 & mask);
                    prop_assert_eq!(unsigned[lane], a[lane] << keep >> keep);
                }
            }
        }
    }

    #[test]
    fn mov_packs_and_unpacks(a in words(64), b in words(32)) {
        agree("mov.b64", "b64", ["b64"], [&a], |[a]| a);
        let body = "mov.b64 %d, {%a, %b};";
        let found = evaluate(body, "b64", &["b32", "b32"], &[&a, &b]);
        for lane in 0..found.len() {
            prop_assert_eq!(found[lane], b[lane] << 32 | a[lane] & 0xFFFF_FFFF);
        }
        let body = ".reg .b16 %h<4>; mov.b64 {%h0, %h1, %h2, %h3}, %a; mov.b64 %d, {%h3, %h2, %h1, %h0};";
        let found = evaluate(body, "b64", &["b64"], &[&a]);
        for lane in 0..found.len() {
            let wanted = (0..4).fold(0, |out, part| out << 16 | a[lane] >> (16 * part) & 0xFFFF);
            prop_assert_eq!(found[lane], wanted);
        }
        let body = ".reg .b16 %low; mov.b32 {%low, %d}, %b;";
        let found = evaluate(body, "b16", &["b64", "b32"], &[&a, &b]);
        for lane in 0..found.len() {
            prop_assert_eq!(found[lane], b[lane] >> 16);
        }
    }
}
