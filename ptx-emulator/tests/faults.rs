//! Planted faults between threads, blocks and devices: races, weak memory, asynchronous copies.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Rig, hand_over, params};
use ptx_emulator::memory::MemoryOptions;
use ptx_emulator::{Launch, MachineOptions, Module, Policy, RunError};

fn options(race: bool, weak: Option<u64>, seed: u64) -> MachineOptions {
    let memory = MemoryOptions { race, weak, ..MemoryOptions::default() };
    let policy = [Policy::RoundRobin, Policy::Random, Policy::Adversarial][seed as usize % 3];
    MachineOptions {
        devices: 2,
        memory,
        policy,
        seed,
        max_instructions: Some(5_000_000),
        ..MachineOptions::default()
    }
}

/// A block of 64 threads exchanges its values through shared memory.
fn exchange(barrier: &str) -> String {
    format!(
        ".shared .align 4 .b8 tile[256];
        .visible .entry k(.param .u64 out) {{
          .reg .b32 %r<16>; .reg .b64 %rd<8>;
          ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, tile; shl.b32 %r3, %r1, 2;
          add.s32 %r4, %r2, %r3; st.shared.u32 [%r4], %r1;
          {barrier}
          xor.b32 %r5, %r3, 252; add.s32 %r6, %r2, %r5; ld.shared.u32 %r7, [%r6];
          mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2; st.global.u32 [%rd3], %r7; ret;
        }}"
    )
}

fn run_exchange(barrier: &str, options: MachineOptions) -> Result<Vec<u32>, RunError> {
    let mut rig = Rig::of(&exchange(barrier), options);
    let out = rig.empty(256, "out");
    rig.run("k", [1, 1, 1], [64, 1, 1], 0, &params(&[out], &[]))?;
    Ok(rig.words(out, 64))
}

#[test]
fn a_missing_barrier_is_a_race_and_reads_uninitialised_memory() {
    let expected: Vec<u32> = (0..64).rev().collect();
    for seed in 0..6 {
        assert_eq!(run_exchange("bar.sync 0;", options(true, Some(seed), seed)).unwrap(), expected);
        let error = run_exchange("", options(true, None, seed)).unwrap_err().to_string();
        assert!(error.contains("race") || error.contains("never been written"), "{error}");
    }
    let RunError::Fault(report) = run_exchange("bar.warp.sync -1;", options(false, None, 0)).unwrap_err()
    else {
        panic!("no fault")
    };
    assert!(report.place.text.starts_with("ld.shared"), "{report}");
}

/// Thread 0 of the producer writes a value and a flag; thread 0 of the consumer spins on the flag.
fn handover(produce: &str, consume: &str) -> String {
    format!(
        ".visible .entry produce(.param .u64 data, .param .u64 flag, .param .u64 out) {{
          .reg .b64 %rd<4>; ld.param.u64 %rd1, [data]; ld.param.u64 %rd2, [flag]; {produce} ret;
        }}
        .visible .entry consume(.param .u64 data, .param .u64 flag, .param .u64 out) {{
          .reg .b64 %rd<4>; .reg .b32 %r<8>; .reg .pred %p;
          ld.param.u64 %rd1, [data]; ld.param.u64 %rd2, [flag]; ld.param.u64 %rd3, [out];
          {consume}
          st.global.u32 [%rd3], %r1; ret;
        }}"
    )
}

/// The producer on one device, the consumer on the other; data and flag lie on the consumer's.
fn run_handover(source: &str, options: MachineOptions) -> Result<u32, RunError> {
    let text = format!(".version 8.0\n.target sm_90\n.address_size 64\n{source}");
    let module = Arc::new(Module::new("peers.ptx", &text).unwrap_or_else(|error| panic!("{error}")));
    hand_over(1, &module, options)
}

const SPIN: &str = "L: ld.relaxed.sys.global.u32 %r2, [%rd2]; setp.eq.u32 %p, %r2, 0; @%p bra L;";

#[test]
fn two_devices_hand_over_with_fences_and_not_without() {
    let store = "st.global.u32 [%rd1], 42;";
    let flag = "st.relaxed.sys.global.u32 [%rd2], 1;";
    let fence = |scope: &str| format!("fence.acq_rel.{scope};");
    let load = "ld.global.u32 %r1, [%rd1];";
    let program = |scope: &str| {
        handover(&format!("{store} {} {flag}", fence(scope)), &format!("{SPIN} {} {load}", fence("sys")))
    };
    for seed in 0..12 {
        assert_eq!(run_handover(&program("sys"), options(true, Some(seed), seed)).unwrap(), 42);
        let error = run_handover(&program("gpu"), options(true, None, seed)).unwrap_err().to_string();
        assert!(error.contains("race") && error.contains("against"), "{error}");
        let unfenced = handover(&format!("{store} {flag}"), &format!("{SPIN} {load}"));
        assert!(run_handover(&unfenced, options(true, None, seed)).is_err());
    }
    // Without the detector, weak memory itself shows the old value under some seed.
    let relaxed = handover(
        "st.relaxed.sys.global.u32 [%rd1], 42; st.relaxed.sys.global.u32 [%rd2], 1;",
        &format!("{SPIN} ld.relaxed.sys.global.u32 %r1, [%rd1];"),
    );
    let stale = (0..300)
        .filter(|&seed| run_handover(&relaxed, options(false, Some(seed), seed)).unwrap() == 0)
        .count();
    assert!(stale > 0 && stale < 300, "{stale} of 300 runs read the old value");
}

#[test]
fn release_and_acquire_order_as_fences_do() {
    let program = handover(
        "st.global.u32 [%rd1], 42; st.release.sys.global.u32 [%rd2], 1;",
        "L: ld.acquire.sys.global.u32 %r2, [%rd2]; setp.eq.u32 %p, %r2, 0; @%p bra L; ld.global.u32 %r1, [%rd1];",
    );
    for seed in 0..12 {
        assert_eq!(run_handover(&program, options(true, Some(seed), seed)).unwrap(), 42);
    }
}

#[test]
fn a_flag_and_its_payload_travel_together_in_one_word_only() {
    // Cells of 8 bytes: payload and flag. One 64-bit access is whole; two of 32 bits tear.
    let spin = |load: &str, unpack: &str| format!("L: {load} {unpack} setp.eq.u32 %p, %r2, 0; @%p bra L;");
    let whole = handover(
        "st.relaxed.sys.global.u64 [%rd1], 0x12345678F;",
        &spin("ld.relaxed.sys.global.u64 %rd2, [%rd1];", "mov.b64 {%r1, %r2}, %rd2;"),
    );
    let torn = handover(
        ".reg .b32 %x; mov.u32 %x, 1; st.relaxed.sys.global.v2.u32 [%rd1], {0x2345678F, %x};",
        &spin("ld.relaxed.sys.global.v2.u32 {%r1, %r2}, [%rd1];", ""),
    );
    let mut failures = 0;
    for seed in 0..200 {
        assert_eq!(run_handover(&whole, options(true, Some(seed), seed)).unwrap(), 0x2345_678F);
        failures += u32::from(run_handover(&torn, options(false, Some(seed), seed)).unwrap() != 0x2345_678F);
    }
    assert!(failures > 0, "a vector access must tear under some seed");
}

/// 16 bytes per thread from global to shared memory by `cp.async`, then a neighbour's are read.
fn staged(wait: &str) -> String {
    format!(
        ".visible .entry k(.param .u64 from, .param .u64 out) {{
          .shared .align 16 .b8 tile[512];
          .reg .b32 %r<16>; .reg .b64 %rd<8>;
          ld.param.u64 %rd1, [from]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x;
          mul.wide.u32 %rd3, %r1, 16; add.s64 %rd4, %rd1, %rd3; mov.u32 %r2, tile; shl.b32 %r3, %r1, 4;
          add.s32 %r4, %r2, %r3;
          cp.async.cg.shared.global [%r4], [%rd4], 16; cp.async.commit_group;
          {wait}
          xor.b32 %r3, %r3, 496; add.s32 %r4, %r2, %r3; ld.shared.u32 %r5, [%r4];
          mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd2, %rd3; st.global.u32 [%rd4], %r5; ret;
        }}"
    )
}

fn run_staged(wait: &str, seed: u64) -> Result<Vec<u32>, RunError> {
    let mut rig = Rig::of(&staged(wait), options(true, Some(seed), seed));
    let input: Vec<u8> = (0..128u32).flat_map(u32::to_le_bytes).collect();
    let (from, out) = (rig.upload(&input, "from"), rig.empty(128, "out"));
    rig.run("k", [1, 1, 1], [32, 1, 1], 0, &params(&[from, out], &[]))?;
    Ok(rig.words(out, 32))
}

#[test]
fn asynchronous_copies_arrive_when_waited_for_and_not_before() {
    let expected: Vec<u32> = (0..32).map(|lane| 4 * (31 - lane)).collect();
    for seed in 0..6 {
        assert_eq!(run_staged("cp.async.wait_group 0; bar.sync 0;", seed).unwrap(), expected);
        assert!(run_staged("bar.sync 0;", seed).is_err(), "no wait");
        assert!(
            run_staged("cp.async.wait_group 1; bar.sync 0;", seed).is_err(),
            "the wait leaves the group out"
        );
        assert!(run_staged("cp.async.wait_group 0;", seed).is_err(), "no barrier");
    }
}

/// One thread copies 512 bytes in bulk; all wait for the mbarrier's phase.
fn bulk(expected_bytes: u32, parity: u32) -> String {
    format!(
        ".visible .entry k(.param .u64 from, .param .u64 out) {{
          .shared .align 128 .b8 tile[512]; .shared .align 8 .b8 bar[8];
          .reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .pred %p<4>;
          ld.param.u64 %rd1, [from]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, tile;
          mov.u32 %r3, bar; setp.ne.u32 %p1, %r1, 0;
          @!%p1 mbarrier.init.shared::cta.b64 [%r3], 1;
          @!%p1 fence.mbarrier_init.release.cluster;
          bar.sync 0;
          @%p1 bra WAIT;
          mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {expected_bytes};
          cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 512, [%r3];
          WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], {parity}; @!%p2 bra WAIT;
          shl.b32 %r4, %r1, 2; add.s32 %r4, %r4, %r2; ld.shared.u32 %r5, [%r4];
          mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd2, %rd3; st.global.u32 [%rd4], %r5; ret;
        }}"
    )
}

fn run_bulk(expected_bytes: u32, parity: u32, seed: u64) -> Result<Vec<u32>, RunError> {
    let mut rig = Rig::of(&bulk(expected_bytes, parity), options(true, Some(seed), seed));
    let input: Vec<u8> = (0..128u32).flat_map(|word| (7 * word).to_le_bytes()).collect();
    let (from, out) = (rig.upload(&input, "from"), rig.empty(512, "out"));
    rig.run("k", [1, 1, 1], [128, 1, 1], 0, &params(&[from, out], &[]))?;
    Ok(rig.words(out, 128))
}

#[test]
fn bulk_copies_complete_their_mbarrier_and_lost_bytes_are_found() {
    let expected: Vec<u32> = (0..128).map(|word| 7 * word).collect();
    for seed in 0..9 {
        assert_eq!(run_bulk(512, 0, seed).unwrap(), expected);
        let error = run_bulk(528, 0, seed).unwrap_err().to_string();
        assert!(error.contains("deadlock") && error.contains("mbarrier"), "16 bytes never come: {error}");
    }
    // The wrong parity names the phase before the first, which counts as ended: the data is not there yet.
    assert!((0..9).all(|seed| run_bulk(512, 1, seed).is_err()));
}

#[test]
fn only_the_wait_of_a_dependent_launch_orders_it() {
    let source = |wait: &str| {
        format!(
            ".visible .entry first(.param .u64 at) {{
              .reg .b64 %rd<2>; ld.param.u64 %rd1, [at]; griddepcontrol.launch_dependents;
              st.global.u32 [%rd1], 5; ret;
            }}
            .visible .entry second(.param .u64 at) {{
              .reg .b64 %rd<2>; .reg .b32 %r<4>; ld.param.u64 %rd1, [at]; {wait}
              ld.global.u32 %r1, [%rd1]; add.s32 %r1, %r1, 1; st.global.u32 [%rd1], %r1; ret;
            }}"
        )
    };
    let run = |wait: &str, programmatic: bool, seed: u64| {
        let mut rig = Rig::of(&source(wait), options(true, None, seed));
        let at = rig.upload(&[0; 4], "at");
        for name in ["first", "second"] {
            let kernel = rig.machine.kernel(rig.module, name).unwrap();
            let launch =
                Launch { programmatic, ..Launch::new(kernel, [1, 1, 1], [1, 1, 1], params(&[at], &[])) };
            rig.machine.launch(rig.stream, &launch).unwrap();
        }
        rig.machine.run().map(|()| rig.words(at, 1)[0])
    };
    for seed in 0..9 {
        assert_eq!(run("griddepcontrol.wait;", true, seed).unwrap(), 6);
        assert_eq!(run("", false, seed).unwrap(), 6);
    }
    assert!((0..9).all(|seed| run("", true, seed).is_err()), "nothing orders the two");
}

#[test]
fn a_seed_reproduces_a_run() {
    let race = || run_exchange("", options(true, None, 4)).unwrap_err();
    assert_eq!(race(), race());
}
