//! `cp.async` and its groups, `cp.async.bulk`, and the words and phases of `mbarrier`.

use ptx_emulator::{MachineOptions, Policy};

use crate::common::{Rig, params};
use crate::lanes::evaluate_in;

/// Shared memory of 32 lanes, 16 bytes each, that says where it was not written; %cell is the lane's part.
const TILE: &str = ".shared .align 128 .b8 tile[512]; .reg .b32 %cell, %ones, %r<4>; .reg .pred %p;";
const FILL: &str = "mov.b32 %cell, tile; mad.lo.u32 %cell, %lane, 16, %cell; mov.b32 %ones, -1;
    st.shared.v4.b32 [%cell], {%ones, %ones, %ones, %ones}; bar.sync 0;";

/// 16 bytes per lane in global memory: words 2 l and 2 l + 1 of the source.
fn source() -> Vec<u64> {
    (0..64u64).map(|word| word * 0x0101_0101_0101_0101).collect()
}

#[test]
fn copies_of_every_size_and_fill() {
    let source = source();
    let byte = |lane: usize, at: usize| source[2 * lane + at / 8] >> (8 * (at % 8)) & 255;
    let address = "add.s64 %at, %at, %step;";
    for (cache, bytes, read) in [
        ("ca", 4, None),
        ("ca", 8, None),
        ("ca", 16, None),
        ("cg", 16, None),
        ("ca", 8, Some(4)),
        ("cg", 16, Some(12)),
        ("ca", 4, Some(0)),
    ] {
        let size = read.map_or(String::new(), |read| format!(", {read}"));
        for part in [0, 8] {
            let body = format!(
                "{FILL} {address} cp.async.{cache}.shared.global [%cell], [%at], {bytes}{size};
                cp.async.wait_all; bar.sync 0; ld.shared.b64 %d, [%cell+{part}];"
            );
            let found = evaluate_in(TILE, &body, "b64", &["b64"; 2], &[&source[..32], &source[32..]]);
            for (lane, found) in found.into_iter().enumerate() {
                let wanted = (0..8).fold(0u64, |word, index| {
                    let at = part + index;
                    let value = if at >= bytes {
                        255
                    } else if at < read.unwrap_or(bytes) {
                        byte(lane, at)
                    } else {
                        0
                    };
                    word | value << (8 * index)
                });
                assert_eq!(found, wanted, "cp.async.{cache} of {bytes}{size} lane {lane} part {part}");
            }
        }
    }
}

/// `wait_group n` leaves the n newest groups: what they write has not arrived.
#[test]
fn groups_arrive_oldest_first() {
    let source: Vec<u64> = (0..32).collect();
    let copies: String = (0..3)
        .map(|group| {
            format!("cp.async.ca.shared.global [%cell+{}], [%at], 4; cp.async.commit_group;", 4 * group)
        })
        .collect();
    for left in 0..3 {
        for group in 0..3 {
            let body = format!(
                "{FILL} {copies} cp.async.wait_group {left}; ld.shared.b32 %d, [%cell+{}]; cp.async.wait_all;",
                4 * group
            );
            let found = evaluate_in(TILE, &body, "b32", &["b64"], &[&source]);
            let wanted = |lane: u64| if group < 3 - left { lane } else { 0xFFFF_FFFF };
            assert!(found.into_iter().eq((0..32).map(wanted)), "group {group} with {left} left");
        }
    }
}

/// A bulk copy into shared memory, awaited by its bytes, doubled, and copied back.
#[test]
fn bulk_copies_there_and_back() {
    let text = ".visible .entry k(.param .u64 o, .param .u64 i) {
        .shared .align 128 .b8 tile[1024]; .shared .align 8 .b8 bar[8];
        .reg .pred %p, %done; .reg .b32 %r<8>; .reg .b64 %rd<4>;
        ld.param.u64 %rd0, [i]; ld.param.u64 %rd1, [o]; mov.u32 %r0, %tid.x; mov.u32 %r1, tile; mov.u32 %r2, bar;
        setp.ne.u32 %p, %r0, 0; @%p bra READY;
        mbarrier.init.shared.b64 [%r2], 1;
        mbarrier.arrive.expect_tx.shared.b64 %rd2, [%r2], 1024;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0], 1024, [%r2];
        READY: bar.sync 0;
        WAIT: mbarrier.try_wait.parity.shared.b64 %done, [%r2], 0; @!%done bra WAIT;
        mad.lo.u32 %r3, %r0, 4, %r1; ld.shared.u32 %r4, [%r3]; add.u32 %r4, %r4, %r4; st.shared.u32 [%r3], %r4;
        fence.proxy.async.shared::cta; bar.sync 0; @%p bra END;
        cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1], 1024; cp.async.bulk.commit_group;
        cp.async.bulk.wait_group 0;
        END: ret; }";
    for policy in [Policy::RoundRobin, Policy::Random, Policy::Adversarial] {
        let mut rig = Rig::of(text, MachineOptions { policy, seed: 5, ..MachineOptions::default() });
        let input: Vec<u8> = (0..256u32).flat_map(|n| (n * n).to_le_bytes()).collect();
        let (at, out) = (rig.upload(&input, "in"), rig.empty(1024, "out"));
        rig.run("k", [1, 1, 1], [256, 1, 1], 0, &params(&[out, at], &[]))
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(rig.words(out, 256).into_iter().eq((0..256).map(|n| 2 * n * n)), "{policy:?}");
    }
}

/// What one thread sees of an object with three expected arrivals, as a list of words.
fn observe(body: &str) -> u64 {
    let declarations =
        ".shared .align 8 .b8 bar[8]; .reg .b32 %o, %n; .reg .b64 %s<4>; .reg .pred %first, %t;";
    // Lane 0 of the first warp alone.
    let body = format!(
        "mov.b64 %d, 0; mov.b32 %o, bar; setp.eq.u32 %first, %lane, 0; @!%first bra END;
        mbarrier.init.shared.b64 [%o], 3; {body} END:"
    );
    let lanes: Vec<u64> = (0..32).collect();
    evaluate_in(declarations, &body, "b64", &["b64"], &[&lanes])[0]
}

/// Appends a number as the lowest digit of sixteen.
const NOTE: &str = "{ .reg .b64 %x; cvt.u64.u32 %x, %n; shl.b64 %d, %d, 4; or.b64 %d, %d, %x; }";

#[test]
fn arrivals_count_down_and_turn_the_phase() {
    let pending = |state: &str| format!("mbarrier.pending_count.b64 %n, {state}; {NOTE}");
    let test = |state: &str| {
        format!("mbarrier.test_wait.shared.b64 %t, [%o], {state}; selp.b32 %n, 1, 0, %t; {NOTE}")
    };
    let parity = |bit: u32| {
        format!("mbarrier.test_wait.parity.shared.b64 %t, [%o], {bit}; selp.b32 %n, 1, 0, %t; {NOTE}")
    };
    let arrive = |to: &str, count: &str| format!("mbarrier.arrive.shared.b64 {to}, [%o]{count};");
    // States show what was pending before each arrival; the phase ends with the third.
    let body = [
        arrive("%s0", ""),
        arrive("%s1", ", 1"),
        test("%s0"),
        parity(0),
        parity(1),
        arrive("%s2", ""),
        test("%s0"),
        test("%s2"),
        parity(0),
        parity(1),
        pending("%s0"),
        pending("%s1"),
        pending("%s2"),
    ]
    .concat();
    assert_eq!(observe(&body), 0x0000_1111_0321, "tests and counts of the first phase");
    // Two arrivals at once; the drop leaves two for the next phase.
    let drop = "mbarrier.arrive_drop.shared.b64 %s1, [%o];".to_owned();
    let body = [
        arrive("%s0", ", 2"),
        drop,
        parity(0),
        arrive("%s2", ""),
        pending("%s2"),
        arrive("_", ""),
        parity(1),
    ]
    .concat();
    assert_eq!(observe(&body), 0x121, "the second phase ends after two arrivals");
}

#[test]
fn bytes_are_awaited_as_arrivals_are() {
    let parity = format!("mbarrier.test_wait.parity.shared.b64 %t, [%o], 0; selp.b32 %n, 1, 0, %t; {NOTE}");
    let body = [
        "mbarrier.arrive.expect_tx.shared.b64 %s0, [%o], 96; mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%o], 32;",
        "mbarrier.arrive.shared.b64 %s1, [%o], 2;",
        &parity,
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%o], 100;",
        &parity,
        "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%o], 28;",
        &parity,
    ]
    .concat();
    assert_eq!(observe(&body), 0x001);
}

/// `cp.async.mbarrier.arrive.noinc` arrives once the thread's copies have.
#[test]
fn copies_signal_an_mbarrier() {
    let source: Vec<u64> = (0..32).map(|lane| 3 * lane).collect();
    let body = format!(
        "{FILL} mov.b32 %r0, bar; setp.eq.u32 %p, %lane, 0; @%p mbarrier.init.shared.b64 [%r0], 32; bar.sync 0;
        cp.async.ca.shared.global [%cell], [%at], 8; cp.async.mbarrier.arrive.noinc.shared.b64 [%r0];
        WAIT: mbarrier.test_wait.parity.shared.b64 %p, [%r0], 0; @!%p bra WAIT;
        xor.b32 %r1, %cell, 16; ld.shared.b64 %d, [%r1];"
    );
    let declarations = format!("{TILE} .shared .align 8 .b8 bar[8];");
    let found = evaluate_in(&declarations, &body, "b64", &["b64"], &[&source]);
    assert!(found.into_iter().eq((0..32).map(|lane| 3 * (lane ^ 1))));
}
