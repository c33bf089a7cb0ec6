//! Load buffering: a load may see what a store behind it has led to, unless something puts them in order.

mod common;

use std::collections::BTreeSet;

use common::{Rig, params};
use ptx_emulator::memory::MemoryOptions;
use ptx_emulator::{MachineOptions, Policy};

/// Two blocks: each loads from one place, then does `BETWEEN`, then stores 1 to the other's place.
const KERNEL: &str = "
.visible .entry test(.param .u64 x, .param .u64 y, .param .u64 out)
{
    .reg .pred %second, %always;
    .reg .b32 %block, %seen, %again, %one, %zero;
    .reg .b64 %x, %y, %out, %from, %to, %far, %step;
    ld.param.u64 %x, [x];
    ld.param.u64 %y, [y];
    ld.param.u64 %out, [out];
    mov.u32 %block, %ctaid.x;
    setp.ne.u32 %second, %block, 0;
    selp.b64 %from, %y, %x, %second;
    selp.b64 %to, %x, %y, %second;
    mov.u32 %one, 1;
    BODY
    mul.wide.u32 %step, %block, 8;
    add.u64 %out, %out, %step;
    st.global.u32 [%out], %seen;
    st.global.u32 [%out+4], %again;
    ret;
}
";

/// What the two blocks saw, `[first, first, second, second]`, in some of many weak runs.
fn outcomes(body: &str) -> BTreeSet<Vec<u32>> {
    let source = KERNEL.replace("BODY", body);
    let mut seen = BTreeSet::new();
    for policy in [Policy::RoundRobin, Policy::Random, Policy::Adversarial] {
        for seed in 0..1000 {
            let memory = MemoryOptions { weak: Some(seed), ..MemoryOptions::default() };
            let mut rig =
                Rig::of(&source, MachineOptions { policy, seed, memory, ..MachineOptions::default() });
            let [x, y, out] = ["x", "y", "out"].map(|name| rig.upload(&[0; 256], name));
            rig.run("test", [2, 1, 1], [1, 1, 1], 0, &params(&[x, y, out], &[])).expect("it runs");
            seen.insert(rig.words(out, 4));
        }
    }
    seen
}

const BOTH: [u32; 4] = [1, 0, 1, 0];

fn both_see_each_other(load: &str, between: &str, value: &str) -> bool {
    let body = format!(
        "mov.u32 %again, 0; {load} %seen, [%from]; {between} st.relaxed.sys.global.u32 [%to], {value};"
    );
    outcomes(&body).contains(&BOTH[..])
}

#[test]
fn loads_are_satisfied_behind_later_stores() {
    for load in ["ld.relaxed.sys.global.u32", "ld.global.u32", "ld.volatile.global.u32", "ld.u32"] {
        assert!(both_see_each_other(load, "", "%one"), "{load}");
    }
    // Arithmetic and other memory lie between; the store depends on none of it.
    let between = "add.u32 %zero, %one, 3; st.global.u32 [%out+64], %zero; ld.global.u32 %zero, [%out+64];";
    assert!(both_see_each_other("ld.relaxed.sys.global.u32", between, "%one"));
}

#[test]
fn dependencies_and_fences_forbid_it() {
    let load = "ld.relaxed.sys.global.u32";
    let data = "and.b32 %zero, %seen, 0; add.u32 %one, %zero, 1;";
    let address = "and.b32 %zero, %seen, 0; cvt.u64.u32 %far, %zero; add.u64 %to, %to, %far;";
    let control = "setp.lt.u32 %always, %seen, 2; @!%always ret;";
    for between in [data, address, control, "fence.acq_rel.sys;", "fence.sc.sys;", "bar.warp.sync 1;"] {
        assert!(!both_see_each_other(load, between, "%one"), "{between}");
    }
    assert!(!both_see_each_other("ld.acquire.sys.global.u32", "", "%one"), "acquire");
    let release = "ld.relaxed.sys.global.u32 %seen, [%from]; st.release.sys.global.u32 [%to], %one;";
    let seen = outcomes(&format!("mov.u32 %again, 0; {release}"));
    assert!(!seen.contains(&BOTH[..]), "release");
    // Out of thin air.
    assert!(!both_see_each_other(load, "", "%seen"), "the value itself");
}

#[test]
fn one_place_keeps_its_order() {
    // The own store is later than the load.
    let seen = outcomes(
        "mov.u32 %again, 0; ld.relaxed.sys.global.u32 %seen, [%from]; st.relaxed.sys.global.u32 [%from], %one;",
    );
    assert_eq!(seen, BTreeSet::from([vec![0; 4]]), "own store");
    // Two loads of one place do not go back.
    let two = "st.relaxed.sys.global.u32 [%to], %one;
        ld.relaxed.sys.global.u32 %seen, [%from]; ld.relaxed.sys.global.u32 %again, [%from];";
    let seen = outcomes(two);
    assert!(seen.iter().all(|it| it[0] <= it[1] && it[2] <= it[3]), "{seen:?}");
    assert!(seen.contains(&vec![0, 1, 0, 1]), "{seen:?}");
}
