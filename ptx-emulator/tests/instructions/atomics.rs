//! `atom` and `red`: each operation and type on a cell per thread; then many threads on one cell.

use proptest::prelude::*;
use ptx_emulator::{MachineOptions, Policy};

use crate::common::{Rig, params};
use crate::halves::{FORMATS, Format};
use crate::lanes::{double, evaluate, evaluate_in, single, words};

type Model = fn(u64, u64) -> u64;

fn signed(order: fn(i64, i64) -> i64, old: u64, value: u64, width: u32) -> u64 {
    let extend = |bits: u64| (bits << (64 - width)) as i64 >> (64 - width);
    order(extend(old), extend(value)) as u64
}

const INTEGERS: [(&str, &str, Model); 21] = [
    ("and.b32", "b32", |old, value| old & value),
    ("or.b32", "b32", |old, value| old | value),
    ("xor.b32", "b32", |old, value| old ^ value),
    ("and.b64", "b64", |old, value| old & value),
    ("or.b64", "b64", |old, value| old | value),
    ("xor.b64", "b64", |old, value| old ^ value),
    ("exch.b32", "b32", |_, value| value),
    ("exch.b64", "b64", |_, value| value),
    ("add.u32", "b32", |old, value| old.wrapping_add(value)),
    ("add.s32", "b32", |old, value| old.wrapping_add(value)),
    ("add.u64", "b64", |old, value| old.wrapping_add(value)),
    ("inc.u32", "b32", |old, value| if old as u32 >= value as u32 { 0 } else { old + 1 }),
    (
        "dec.u32",
        "b32",
        |old, value| if old as u32 == 0 || old as u32 > value as u32 { value } else { old - 1 },
    ),
    ("min.u32", "b32", |old, value| u64::from((old as u32).min(value as u32))),
    ("max.u32", "b32", |old, value| u64::from((old as u32).max(value as u32))),
    ("min.s32", "b32", |old, value| signed(i64::min, old, value, 32)),
    ("max.s32", "b32", |old, value| signed(i64::max, old, value, 32)),
    ("min.u64", "b64", |old, value| old.min(value)),
    ("max.u64", "b64", |old, value| old.max(value)),
    ("min.s64", "b64", |old, value| signed(i64::min, old, value, 64)),
    ("max.s64", "b64", |old, value| signed(i64::max, old, value, 64)),
];

/// The result and the new value of a cell that held the second source, in global and in shared memory.
fn apply(name: &str, ty: &str, a: &[u64], cells: &[u64], more: Option<&[u64]>) -> [Vec<[u64; 2]>; 2] {
    let third = if more.is_some() { ", %c" } else { "" };
    let (operation, of) = name.split_once('.').unwrap_or((name, ""));
    let mut sources = vec![a, cells];
    sources.extend(more);
    let types = vec![ty; sources.len()];
    let global = format!("[%at+{}]", 8 * a.len());
    let shared = "[%cell]".to_owned();
    [("global", global), ("shared", shared)].map(|(space, cell)| {
        let run = |last: &str| {
            let body = format!(
                "mov.b32 %cell, cells; mad.lo.u32 %cell, %lane, 8, %cell; st.shared.{ty} [%cell], %b;
                atom.{space}.{operation}.{of} %d, {cell}, %a{third}; {last}"
            );
            let declarations = ".shared .align 8 .b8 cells[512]; .reg .b32 %cell;";
            evaluate_in(declarations, &body, ty, &types, &sources)
        };
        let new = run(&format!("ld.{space}.{ty} %d, {cell};"));
        run("").into_iter().zip(new).map(|(old, new)| [old, new]).collect()
    })
}

fn judge(name: &str, ty: &str, a: &[u64], cells: &[u64], right: impl Fn(u64, u64, u64, bool) -> Option<u64>) {
    let mask = if ty == "b64" { u64::MAX } else { (1 << ty[1..].parse::<u32>().unwrap()) - 1 };
    let global = [true, false];
    for (rows, global) in apply(name, ty, a, cells, None).into_iter().zip(global) {
        for (lane, [old, new]) in rows.into_iter().enumerate() {
            let (cell, value) = (cells[lane] & mask, a[lane] & mask);
            assert_eq!(old, cell, "atom.{name} returns what was there");
            if let Some(wanted) = right(cell, value, new, global) {
                panic!("atom.{name} of {value:#x} on {cell:#x}: {new:#x}, not {wanted:#x}");
            }
        }
    }
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0f32.copysign(value) } else { value }
}

fn extreme(a: f64, b: f64, largest: bool) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if (a.total_cmp(&b).is_gt()) == largest => a,
        _ => b,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn integers(a in words(64), cells in words(64)) {
        for (name, ty, model) in INTEGERS {
            let mask = if ty == "b64" { u64::MAX } else { 0xFFFF_FFFF };
            judge(name, ty, &a, &cells, |old, value, new, _| {
                let wanted = model(old, value) & mask;
                (new != wanted).then_some(wanted)
            });
        }
    }

    /// f32 flushes subnormal numbers in global memory, not in shared memory.
    #[test]
    fn floats(a in words(64), cells in words(64)) {
        judge("add.f32", "b32", &a, &cells, |old, value, new, global| {
            let (old, value) = (single(old), single(value));
            let wanted = if global { flush(flush(old) + flush(value)) } else { old + value };
            let nan = wanted.is_nan() && single(new).is_nan();
            (new as u32 != wanted.to_bits() && !nan).then_some(wanted.to_bits().into())
        });
        judge("add.f64", "b64", &a, &cells, |old, value, new, _| {
            let wanted = double(old) + double(value);
            (new != wanted.to_bits() && !(wanted.is_nan() && double(new).is_nan())).then_some(wanted.to_bits())
        });
    }

    #[test]
    fn halves(a in words(32), cells in words(32)) {
        for format in FORMATS {
            let half = |old: u64, value: u64, f: fn(f64, f64) -> f64, format: &Format| {
                u64::from(format.round(f((format.value)(old as u16), (format.value)(value as u16)), "rn"))
            };
            let nan = |bits: u64| (format.value)(bits as u16).is_nan();
            let operations: [(&str, fn(f64, f64) -> f64); 3] = [
                ("add.noftz", crate::halves::odd_sum),
                ("min.noftz", |a, b| extreme(a, b, false)),
                ("max.noftz", |a, b| extreme(a, b, true)),
            ];
            for (operation, model) in operations {
                let name = format!("{operation}.{}", format.name);
                judge(&name, "b16", &a, &cells, |old, value, new, _| {
                    let wanted = half(old, value, model, &format);
                    (new != wanted && !(nan(new) && nan(wanted))).then_some(wanted)
                });
                judge(&format!("{name}x2"), "b32", &a, &cells, |old, value, new, _| {
                    [0, 16].into_iter().find_map(|shift| {
                        let wanted = half(old >> shift, value >> shift, model, &format);
                        (new >> shift & 0xFFFF != wanted && !(nan(new >> shift) && nan(wanted))).then_some(wanted)
                    })
                });
            }
        }
    }

    #[test]
    fn compare_and_swap(cells in words(64), other in words(64), swaps in words(64)) {
        let expected: Vec<u64> = (0..64).map(|lane| if lane % 2 == 0 { cells[lane] } else { other[lane] }).collect();
        for (ty, mask) in [("b16", 0xFFFF), ("b32", 0xFFFF_FFFF), ("b64", u64::MAX)] {
            for rows in apply(&format!("cas.{ty}"), ty, &expected, &cells, Some(&swaps)) {
                for (lane, [old, new]) in rows.into_iter().enumerate() {
                    let [cell, expected, swap] = [cells[lane], expected[lane], swaps[lane]].map(|bits| bits & mask);
                    prop_assert_eq!(old, cell);
                    prop_assert_eq!(new, if cell == expected { swap } else { cell });
                }
            }
        }
    }

    /// `red` changes the cell as `atom` does; vectors add element by element.
    #[test]
    fn reductions_and_vectors(a in words(64), cells in words(64), b in 0u32..1000) {
        for (name, ty, model) in INTEGERS {
            if name.starts_with("exch") {
                continue;
            }
            let at = 8 * a.len();
            let body = format!("red.relaxed.sys.global.{name} [%at+{at}], %a; ld.global.{ty} %d, [%at+{at}];");
            let found = evaluate(&body, ty, &[ty, ty], &[&a, &cells]);
            let mask = if ty == "b64" { u64::MAX } else { 0xFFFF_FFFF };
            for lane in 0..found.len() {
                prop_assert_eq!(found[lane], model(cells[lane] & mask, a[lane] & mask) & mask, "{}", name);
            }
        }
        // %b is a pair of floats in memory.
        let pairs: Vec<u64> = (0..64u32).map(|n| u64::from((n as f32).to_bits()) << 32 | u64::from((b as f32).to_bits())).collect();
        let body = ".reg .b32 %x, %y, %p, %q2; mov.b64 {%x, %y}, %a; atom.global.add.v2.f32 {%p, %q2}, [%at+512], {%x, %y};
            ld.global.b64 %d, [%at+512];";
        let found = evaluate(body, "b64", &["b64", "b64"], &[&pairs, &pairs]);
        for (n, found) in found.into_iter().enumerate() {
            prop_assert_eq!(single(found >> 32), 2.0 * n as f32);
            prop_assert_eq!(single(found & 0xFFFF_FFFF), 2.0 * b as f32);
        }
    }
}

/// 256 threads of four blocks on one counter: each old value is seen once, in any schedule.
#[test]
fn every_thread_draws_its_own_number() {
    let text = ".visible .entry k(.param .u64 out, .param .u64 cell) {
        .reg .b32 %r<8>; .reg .b64 %rd<4>;
        ld.param.u64 %rd0, [out]; ld.param.u64 %rd1, [cell]; atom.add.u32 %r0, [%rd1], 1;
        mov.u32 %r1, %ctaid.x; mov.u32 %r2, %tid.x; mad.lo.u32 %r1, %r1, 64, %r2; mul.wide.u32 %rd2, %r1, 4;
        add.s64 %rd2, %rd0, %rd2; st.global.u32 [%rd2], %r0; ret; }";
    for policy in [Policy::RoundRobin, Policy::Random, Policy::Adversarial] {
        let mut rig = Rig::of(text, MachineOptions { policy, seed: 11, ..MachineOptions::default() });
        let (cell, out) = (rig.upload(&[0; 4], "cell"), rig.empty(1024, "out"));
        rig.run("k", [4, 1, 1], [64, 1, 1], 0, &params(&[out, cell], &[]))
            .unwrap_or_else(|error| panic!("{error}"));
        let mut drawn = rig.words(out, 256);
        drawn.sort_unstable();
        assert!(drawn.into_iter().eq(0..256), "{policy:?}");
        assert_eq!(rig.words(cell, 1), [256]);
    }
}

/// Threads that add to a counter of 128 bits by compare-and-swap, and leave their own number by exchange.
#[test]
fn registers_of_128_bits() {
    const THREADS: u64 = 64;
    for (space, cell) in [("global", "%cell"), ("shared", "%near")] {
        let source = format!(
            ".visible .entry k(.param .u64 counter, .param .u64 left) {{
            .shared .align 16 .b8 near[16]; .reg .b64 %cell, %near, %left, %at, %l<4>, %h<4>; .reg .b32 %tid;
            .reg .b128 %q<4>, %last; .reg .pred %p<4>;
            mov.u32 %tid, %tid.x; mov.u64 %near, near; ld.param.u64 %cell, [counter]; ld.param.u64 %left, [left];
            setp.ne.u32 %p0, %tid, 0; @%p0 bra READY;
            ld.global.v2.u64 {{%l0, %h0}}, [%cell]; st.shared.v2.u64 [%near], {{%l0, %h0}};
            READY: bar.sync 0;
            mov.u64 %l0, 0; mov.u64 %h0, 0;
            NEXT: mov.b128 %q0, {{%l0, %h0}};
            // 2^63 + 1, with its carry, and 3 times 2^64.
            add.cc.u64 %l1, %l0, 0x8000000000000001; addc.u64 %h1, %h0, 3; mov.b128 %q1, {{%l1, %h1}};
            atom.relaxed.gpu.{space}.cas.b128 %q2, [{cell}], %q0, %q1;
            mov.b128 {{%l2, %h2}}, %q2; setp.ne.u64 %p1, %l2, %l0; setp.ne.u64 %p2, %h2, %h0;
            mov.u64 %l0, %l2; mov.u64 %h0, %h2; or.pred %p1, %p1, %p2; @%p1 bra NEXT;
            bar.sync 0; @%p0 bra OVER;
            @!%p0 ld.{space}.v2.u64 {{%l0, %h0}}, [{cell}]; st.global.v2.u64 [%cell], {{%l0, %h0}};
            OVER: bar.sync 0;
            cvt.u64.u32 %l0, %tid; not.b64 %h0, %l0; mov.b128 %q3, {{%l0, %h0}};
            atom.exch.b128 %last, [%left], %q3; mov.b128 %q3, %last; mov.b128 {{%l0, %h0}}, %q3;
            mul.wide.u32 %at, %tid, 16; add.u64 %at, %at, %left; st.global.v2.u64 [%at+16], {{%l0, %h0}};
            ret; }}"
        );
        for seed in 0..20 {
            let memory = ptx_emulator::memory::MemoryOptions { weak: Some(seed), ..Default::default() };
            let policy = ptx_emulator::Policy::Random;
            let mut rig = crate::common::Rig::of(
                &source,
                ptx_emulator::MachineOptions { policy, seed, memory, ..Default::default() },
            );
            let counter = rig.upload(&[0; 16], "counter");
            let left = rig.upload(&[0xff; 16 + 16 * THREADS as usize], "left");
            let params = crate::common::params(&[counter, left], &[]);
            rig.run("k", [1; 3], [THREADS as u32, 1, 1], 0, &params)
                .unwrap_or_else(|error| panic!("{error}"));
            let quad = |bytes: &[u8]| u128::from_le_bytes(bytes.try_into().unwrap());
            let each = (1 << 63) + 1 + (3_u128 << 64);
            assert_eq!(quad(&rig.download(counter, 16)), u128::from(THREADS) * each, "{space}");
            // Every number was left once, and is found once: by another thread, or in the end.
            let mut numbers: Vec<u128> =
                rig.download(left, 16 + 16 * THREADS as usize).chunks(16).map(quad).collect();
            numbers.sort_unstable();
            let mut expected: Vec<u128> =
                (0..THREADS).map(|n| u128::from(n) | u128::from(!n) << 64).chain([u128::MAX]).collect();
            expected.sort_unstable();
            assert_eq!(numbers, expected, "{space}");
        }
    }
}
