//! Clusters: shared memory of other blocks, the barrier of a cluster, and what goes wrong there.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, params};
use ptx_emulator::memory::{Fault, MemoryOptions};
use ptx_emulator::{Cause, DeviceOptions, Launch, LaunchError, MachineOptions, Policy, RunError};

fn options(seed: u64) -> MachineOptions {
    let weak = (seed % 2 == 1).then_some(seed);
    // Room for one cluster of four and a half.
    let device = DeviceOptions { multiprocessors: 6, max_resident_blocks: 6 };
    MachineOptions {
        device,
        memory: MemoryOptions { race: true, weak, ..MemoryOptions::default() },
        policy: [Policy::RoundRobin, Policy::Random, Policy::Adversarial][seed as usize % 3],
        seed,
        max_instructions: Some(5_000_000),
        ..MachineOptions::default()
    }
}

/// A kernel whose %r1 is the thread, %r2 the rank in the cluster, %r3 the size of that, %r4 the rank after it, %r5 a
/// word of shared memory, and %rd3 the place of the output of (block, thread), 32 threads each.
fn kernel(body: &str) -> String {
    format!(
        ".shared .align 8 .b8 box[256];
        .visible .entry k(.param .u64 out) {{
          .reg .pred %p<4>; .reg .b32 %r<32>; .reg .b64 %rd<8>;
          ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x;
          mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, %cluster_nctarank;
          add.u32 %r4, %r2, 1; rem.u32 %r4, %r4, %r3; shl.b32 %r6, %r1, 2; mov.u32 %r5, box; add.u32 %r5, %r5, %r6;
          mov.u32 %r7, %ctaid.y; mov.u32 %r8, %nctaid.x; mov.u32 %r9, %ctaid.x; mad.lo.u32 %r10, %r7, %r8, %r9;
          mad.lo.u32 %r11, %r10, 32, %r1; mul.wide.u32 %rd2, %r11, 4; add.u64 %rd3, %rd1, %rd2;
          {body}
          ret;
        }}"
    )
}

fn launch(
    body: &str,
    grid: [u32; 3],
    cluster: [u32; 3],
    options: MachineOptions,
) -> Result<Vec<u32>, RunError> {
    let mut rig = Rig::of(&kernel(body), options);
    let threads = grid.iter().product::<u32>() * 32;
    let out = rig.upload(&vec![0; 4 * threads as usize], "out");
    let kernel = rig.machine.kernel(rig.module, "k").unwrap();
    let block = [32, 1, 1];
    let params = params(&[out], &[]);
    let launch = Launch { cluster, ..Launch::new(kernel, grid, block, params) };
    rig.machine.launch(rig.stream, &launch).unwrap_or_else(|error| panic!("{error}"));
    rig.machine.run()?;
    Ok(rig.words(out, threads as usize))
}

fn fault(body: &str, seed: u64) -> Cause {
    match launch(body, [2, 1, 1], [2, 1, 1], options(seed)) {
        Err(RunError::Fault(report)) => report.cause,
        other => panic!("{other:?}"),
    }
}

const MEET: &str = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;";

/// Gives the next block of the cluster the number of this thread in the grid.
fn pass_on(before: &str, behind: &str) -> String {
    format!(
        "{before}
        mapa.shared::cluster.u32 %r12, %r5, %r4; st.shared::cluster.u32 [%r12], %r11;
        {behind}
        ld.shared.u32 %r13, [%r5]; st.global.u32 [%rd3], %r13;"
    )
}

#[test]
fn blocks_reach_the_shared_memory_of_their_cluster() {
    // Clusters of 2 × 2 in a grid of 4 × 4: rank r of a cluster passes to r + 1, x fastest.
    let rank_of = |[x, y]: [u32; 2]| x % 2 + y % 2 * 2;
    let before = |[x, y]: [u32; 2]| {
        let rank = (rank_of([x, y]) + 3) % 4;
        [x / 2 * 2 + rank % 2, y / 2 * 2 + rank / 2]
    };
    for seed in 0..12 {
        let found = launch(&pass_on(MEET, MEET), [4, 4, 1], [2, 2, 1], options(seed)).unwrap();
        for block in (0..16).map(|i| [i % 4, i / 4]) {
            let [x, y] = before(block);
            let first = (block[1] * 4 + block[0]) as usize * 32;
            let expected: Vec<u32> = (0..32).map(|thread| (y * 4 + x) * 32 + thread).collect();
            assert_eq!(found[first..first + 32], expected);
        }
    }
}

#[test]
fn a_launch_without_clusters_has_clusters_of_one() {
    let found = launch(&pass_on(MEET, "bar.sync 0;"), [3, 1, 1], [1; 3], options(0)).unwrap();
    assert_eq!(found, (0..96).collect::<Vec<_>>());
}

/// A 64-bit message that is its own signal, `store` and `load` with the given scopes.
fn letter(store: &str, load: &str) -> String {
    format!(
        "mov.u64 %rd4, 0; shl.b32 %r6, %r1, 3; mov.u32 %r5, box; add.u32 %r5, %r5, %r6; st.shared.b64 [%r5], %rd4;
        {MEET}
        mov.b64 %rd5, {{%r11, 7}}; mapa.shared::cluster.u32 %r12, %r5, %r4;
        st.relaxed.{store}.shared::cluster.b64 [%r12], %rd5;
        LOOK: ld.relaxed.{load}.shared.b64 %rd6, [%r5]; mov.b64 {{%r13, %r14}}, %rd6;
        setp.ne.u32 %p1, %r14, 7; @%p1 bra LOOK; st.global.u32 [%rd3], %r13;"
    )
}

#[test]
fn a_letter_of_cluster_scope_arrives_and_one_of_block_scope_is_a_race() {
    for seed in 0..12 {
        let found = launch(&letter("cluster", "cluster"), [2, 1, 1], [2, 1, 1], options(seed)).unwrap();
        assert_eq!(found, (32..64).chain(0..32).collect::<Vec<_>>());
    }
    for (store, load) in [("cta", "cluster"), ("cluster", "cta")] {
        let found = fault(&letter(store, load), 0);
        assert!(matches!(&found, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })), "{found}");
    }
}

#[test]
fn what_nothing_orders_is_a_race() {
    for (before, behind) in [(MEET, ""), (MEET, "bar.sync 0;")] {
        let found = (0..12).map(|seed| fault(&pass_on(before, behind), seed).to_string());
        for found in found {
            assert!(
                found.contains("race") || found.contains("never been written") || found.contains("freed"),
                "{found}"
            );
        }
    }
    let relaxed = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;";
    let found = fault(&pass_on(MEET, relaxed), 0);
    assert!(matches!(&found, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })), "{found}");
}

#[test]
fn shared_memory_of_a_block_that_has_ended_is_gone() {
    // Block 1 leaves behind the barrier; block 0 stores to it after a while.
    let body = format!(
        "{MEET} setp.eq.u32 %p1, %r2, 1; @%p1 ret; nanosleep.u32 100000;
        mapa.shared::cluster.u32 %r12, %r5, 1; st.shared::cluster.u32 [%r12], %r11;"
    );
    let found = fault(&body, 0);
    assert!(
        matches!(&found, Cause::Memory(fault) if matches!(**fault, Fault::UseAfterFree { .. })),
        "{found}"
    );
}

#[test]
fn an_address_of_another_block_is_no_address_of_the_own() {
    let body = format!("{MEET} mapa.shared::cluster.u32 %r12, %r5, %r4; ld.shared.u32 %r13, [%r12];");
    let found = fault(&body, 0);
    assert!(
        matches!(&found, Cause::Memory(fault) if matches!(**fault, Fault::OutOfBounds { .. })),
        "{found}"
    );
    let found = fault("mapa.shared::cluster.u32 %r12, %r5, 2;", 0);
    assert_eq!(found, Cause::ClusterRank { rank: 2, blocks: 2 });
}

#[test]
fn threads_that_have_left_are_not_waited_for_and_others_keep_the_order_of_calls() {
    let early = format!("setp.lt.u32 %p1, %r1, 8; @%p1 ret; {}", MEET.replace(".aligned", ""));
    assert!(launch(&early, [2, 1, 1], [2, 1, 1], options(1)).is_ok());
    let twice = "barrier.cluster.arrive.aligned; barrier.cluster.arrive.aligned;";
    assert_eq!(fault(twice, 0), Cause::ClusterBarrier("arrives again without having waited"));
    let alone = fault("barrier.cluster.wait.aligned;", 0);
    assert_eq!(alone, Cause::ClusterBarrier("waits without having arrived"));
    let half = "setp.eq.u32 %p1, %r2, 1; @%p1 bra SPIN; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        ret; SPIN: bra SPIN;";
    match launch(half, [2, 1, 1], [2, 1, 1], options(0)) {
        Err(RunError::Deadlock(deadlock)) => {
            assert!(
                deadlock.to_string().contains("barrier of its cluster, where 32 of 64 threads are"),
                "{deadlock}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn clusters_that_no_device_takes_are_refused() {
    let mut rig = Rig::of(&kernel(""), options(0));
    let kernel = rig.machine.kernel(rig.module, "k").unwrap();
    for (grid, cluster) in [(6, 4), (16, 16), (8, 0), (8, 8)] {
        let launch = Launch {
            cluster: [cluster, 1, 1],
            ..Launch::new(kernel, [grid, 1, 1], [32, 1, 1], params(&[0], &[]))
        };
        let refused = rig.machine.launch(rig.stream, &launch);
        assert!(matches!(refused, Err(LaunchError::ClusterSize { limit: 6, .. })), "{refused:?}");
    }
}

/// Every block sends the number of each of its threads to the next one by `st.async`, which that one waits for: `wait`
/// is how it tests its mbarrier.
fn send(wait: &str, behind: &str) -> String {
    format!(
        ".reg .b64 %state; .reg .pred %done;
        mov.u32 %r20, box; add.u32 %r20, %r20, 248;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra READY;
        mbarrier.init.shared.b64 [%r20], 1; fence.mbarrier_init.release.cluster;
        mbarrier.arrive.expect_tx.shared.b64 %state, [%r20], 128;
        READY: {MEET}
        mapa.shared::cluster.u32 %r12, %r5, %r4; mapa.shared::cluster.u32 %r21, %r20, %r4;
        st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r12], %r11, [%r21];
        WAIT: {wait}
        @!%done bra WAIT;
        ld.shared.u32 %r13, [%r5]; st.global.u32 [%rd3], %r13;
        {behind}"
    )
}

const WAIT_CLUSTER: &str = "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %done, [%r20], 0;";

#[test]
fn asynchronous_stores_arrive_with_their_mbarrier() {
    for seed in 0..60 {
        let blocks = 1 + seed as u32 % 4;
        let got = launch(&send(WAIT_CLUSTER, ""), [blocks, 1, 1], [blocks, 1, 1], options(seed)).unwrap();
        for (at, value) in got.into_iter().enumerate() {
            let (block, thread) = (at as u32 / 32, at as u32 % 32);
            assert_eq!(value, (block + blocks - 1) % blocks * 32 + thread, "seed {seed}");
        }
    }
}

#[test]
fn a_wait_within_the_block_does_not_order_stores_of_others() {
    let wait = WAIT_CLUSTER.replace(".acquire.cluster", ".acquire.cta");
    for seed in 0..20 {
        let cause = fault(&send(&wait, ""), seed);
        assert!(matches!(&cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })), "{cause}");
    }
}

#[test]
fn a_block_stays_until_stores_to_it_have_arrived() {
    let leaves =
        send("setp.eq.u32 %done, %r1, %r1;", "").replace("ld.shared.u32 %r13, [%r5];", "mov.u32 %r13, 0;");
    let mut found = [0; 2];
    for seed in 0..60 {
        match launch(&leaves, [4, 1, 1], [4, 1, 1], options(seed)) {
            Err(RunError::Fault(report)) => match report.cause {
                Cause::LateStore { bytes: 4, .. } => found[0] += 1,
                Cause::Memory(fault) if matches!(*fault, Fault::UseAfterFree { .. }) => found[1] += 1,
                other => panic!("seed {seed}: {other}"),
            },
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert!(found.iter().all(|&count| count > 0), "{found:?}");
}

#[test]
fn an_asynchronous_store_tells_an_mbarrier_of_its_own_block() {
    let elsewhere = send(WAIT_CLUSTER, "").replace(", [%r21];", ", [%r20];");
    let cause = fault(&elsewhere, 0);
    assert!(matches!(cause, Cause::AsyncCopy { .. }), "{cause}");
}

#[test]
fn a_relaxed_arrival_carries_what_a_fence_has_ordered() {
    let relaxed = MEET.replace(".release", ".relaxed");
    for seed in 0..20 {
        let with = send(WAIT_CLUSTER, "").replace(MEET, &relaxed);
        launch(&with, [4, 1, 1], [4, 1, 1], options(seed)).unwrap();
        let cause = fault(&with.replace("fence.mbarrier_init.release.cluster;", ""), seed);
        assert!(matches!(&cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })), "{cause}");
    }
}

/// Such a fence tells of mbarriers alone: what the thread has stored besides needs one of its own.
#[test]
fn a_fence_of_initialisations_orders_nothing_else() {
    let body = |fence: &str, passes: &str| {
        format!(
            "mov.u32 %r20, box; add.u32 %r20, %r20, 248; st.shared.u32 [%r5], %r11;
            setp.eq.u32 %p1, %r1, 0; @%p1 mbarrier.init.shared.b64 [%r20], 1;
            {fence}
            barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;
            mapa.shared::cluster.u32 %r12, %r5, %r4; {passes} st.global.u32 [%rd3], %r13; {MEET}"
        )
    };
    let (inits, all) = ("fence.mbarrier_init.release.cluster;", "fence.acq_rel.cluster;");
    let load = "ld.shared::cluster.u32 %r13, [%r12];";
    // The object itself may be used, which is an access of the whole cluster.
    let send = "mapa.shared::cluster.u32 %r21, %r20, %r4;
        @%p1 st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r12+128], %r11, [%r21];
        @%p1 mbarrier.arrive.expect_tx.shared.b64 _, [%r20], 4;
        .reg .pred %done; WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %done, [%r20], 0;
        @!%done bra WAIT; mov.u32 %r13, %r11;";
    for seed in 0..20 {
        let cause = fault(&body(inits, load), seed);
        assert!(matches!(&cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })), "{cause}");
        assert!(cause.to_string().contains("plain load"), "{cause}");
        for fences in [all.to_owned(), format!("{all} {inits}"), format!("{inits} {all}")] {
            launch(&body(&fences, load), [2, 1, 1], [2, 1, 1], options(seed)).unwrap();
        }
        for fence in [inits, all] {
            launch(&body(fence, send), [2, 1, 1], [2, 1, 1], options(seed)).unwrap();
        }
        let cause = fault(&body("", send), seed);
        assert!(cause.to_string().contains("`mbarrier.init` of block"), "{cause}");
    }
}

/// Blocks wait for all of a grid of `blocks`, each with so much shared memory, on two multiprocessors.
fn meet_in_global_memory(blocks: u32, shared_bytes: u32, cluster: u32) -> Result<(), RunError> {
    let body = "setp.ne.u32 %p1, %r1, 0; @%p1 ret; mov.u32 %r20, %nctaid.x;
        red.relaxed.gpu.global.add.u32 [%rd1], 1;
        LOOK: ld.relaxed.gpu.global.u32 %r21, [%rd1]; setp.ne.u32 %p2, %r21, %r20; @%p2 bra LOOK;";
    let device = DeviceOptions { multiprocessors: 2, max_resident_blocks: 8 };
    let mut rig = Rig::of(&kernel(body), MachineOptions { device, ..options(0) });
    let out = rig.upload(&[0; 4], "out");
    let kernel = rig.machine.kernel(rig.module, "k").unwrap();
    let launch = Launch::new(kernel, [blocks, 1, 1], [32, 1, 1], params(&[out], &[]));
    let launch = Launch { cluster: [cluster, 1, 1], dynamic_shared_bytes: shared_bytes, ..launch };
    rig.machine.launch(rig.stream, &launch).unwrap_or_else(|error| panic!("{error}"));
    rig.machine.run()
}

#[test]
fn shared_memory_bounds_the_blocks_and_clusters_that_are_resident() {
    // 228 KiB hold four blocks of 56 KiB with what the system and the kernel take, two of 100 and one of 200.
    for (kib, resident) in [(0, 8), (55, 8), (100, 4), (200, 2)] {
        for cluster in [1, 2] {
            meet_in_global_memory(resident, kib << 10, cluster).unwrap_or_else(|error| panic!("{error}"));
            let beyond = meet_in_global_memory(resident + cluster, kib << 10, cluster);
            assert!(
                matches!(beyond, Err(RunError::Deadlock(_))),
                "{kib} KiB, clusters of {cluster}: {beyond:?}"
            );
        }
    }
    let device = DeviceOptions { multiprocessors: 2, max_resident_blocks: 8 };
    let mut rig = Rig::of(&kernel(""), MachineOptions { device, ..options(0) });
    let kernel = rig.machine.kernel(rig.module, "k").unwrap();
    for (kib, limit) in [(56, 6), (100, 4), (200, 2)] {
        let launch = Launch::new(kernel, [8, 1, 1], [32, 1, 1], params(&[0], &[]));
        let launch = Launch { cluster: [8, 1, 1], dynamic_shared_bytes: kib << 10, ..launch };
        let refused = rig.machine.launch(rig.stream, &launch);
        assert!(
            matches!(refused, Err(LaunchError::ClusterSize { limit: found, .. }) if found == limit),
            "{kib} KiB: {refused:?}"
        );
    }
}
