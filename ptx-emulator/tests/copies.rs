//! Asynchronous copies: what is reported where, and what is there when.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, params};
use ptx_emulator::memory::{Fault, MemoryOptions};
use ptx_emulator::{Cause, MachineOptions, Policy, Report, RunError};

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

fn options(policy: Policy, seed: u64, race: bool, weak: bool) -> MachineOptions {
    let memory = MemoryOptions { race, weak: weak.then_some(seed), ..MemoryOptions::default() };
    MachineOptions { policy, seed, memory, max_instructions: Some(2_000_000), ..MachineOptions::default() }
}

/// All modes of every policy under a few seeds.
fn every_option() -> impl Iterator<Item = MachineOptions> {
    let modes = [(false, false), (true, false), (false, true), (true, true)];
    POLICIES.into_iter().flat_map(move |policy| {
        (0..20).flat_map(move |seed| modes.map(|(race, weak)| options(policy, seed, race, weak)))
    })
}

/// `threads` of a kernel with 1024 bytes `%from` (words 0, 1, 2, …) and `%out`, a tile and an mbarrier of `arrivals`.
fn run(body: &str, arrivals: u32, threads: u32, options: MachineOptions) -> Result<Vec<u32>, RunError> {
    let source = format!(
        ".visible .entry k(.param .u64 from, .param .u64 out) {{
          .shared .align 128 .b8 tile[1024]; .shared .align 8 .b8 bar[8];
          .reg .b64 %from, %out, %rd<8>; .reg .b32 %tid, %tile, %bar, %r<8>; .reg .pred %first, %p<4>;
          ld.param.u64 %from, [from]; ld.param.u64 %out, [out]; mov.u32 %tid, %tid.x;
          mov.u32 %tile, tile; mov.u32 %bar, bar; setp.eq.u32 %first, %tid, 0;
          @%first mbarrier.init.shared::cta.b64 [%bar], {arrivals};
          bar.sync 0;
          {body}
          ret;
        }}"
    );
    let mut rig = Rig::of(&source, options);
    let input: Vec<u8> = (0..256u32).flat_map(u32::to_le_bytes).collect();
    let (from, out) = (rig.upload(&input, "from"), rig.upload(&[0; 1024], "out"));
    rig.run("k", [1, 1, 1], [threads, 1, 1], 0, &params(&[from, out], &[]))?;
    Ok(rig.words(out, 256))
}

fn fault(error: RunError) -> Report {
    match error {
        RunError::Fault(report) => *report,
        other => panic!("no fault: {other}"),
    }
}

const BULK: &str = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes";
const WAIT: &str = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%bar], 0; @!%p1 bra WAIT;";

#[test]
fn a_bulk_copy_that_is_too_long_names_its_line() {
    // Thread 33 copies over the end of shared memory, which shows when the copy arrives.
    let body = format!(
        "setp.ne.u32 %p2, %tid, 33; @%p2 bra WAIT;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 1024;
        add.u32 %tile, %tile, 512; {BULK} [%tile], [%from], 1024, [%bar];
        {WAIT}"
    );
    for policy in POLICIES {
        let report = fault(run(&body, 1, 64, options(policy, 1, false, false)).unwrap_err());
        assert!(
            matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::OutOfBounds { .. }))
        );
        assert!(report.place.text.contains("cp.async.bulk"), "{report}");
        assert_eq!(report.place.thread, [33, 0, 0], "{report}");
    }
}

#[test]
fn a_race_with_a_bulk_copy_names_both() {
    // Thread 1 stores to the tile before it waits for the copy.
    let body = format!(
        "@!%first bra EARLY;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 1024;
        {BULK} [%tile], [%from], 1024, [%bar];
        bra WAIT;
        EARLY: st.shared.u32 [%tile], %tid;
        {WAIT}"
    );
    for policy in POLICIES {
        let report = fault(run(&body, 1, 2, options(policy, 1, true, false)).unwrap_err());
        let other = report.other.as_ref().expect("the other side");
        let mut texts = [report.place.text.as_str(), other.text.as_str()];
        texts.sort_unstable();
        assert!(texts[0].contains("cp.async.bulk") && texts[1].starts_with("st.shared"), "{report}");
    }
}

/// Each thread copies 16 bytes, signals, waits or not, and reads a word of its own and of its neighbour's.
fn signalled(arrive: &str, wait: &str) -> String {
    format!(
        "shl.b32 %r1, %tid, 4; add.u32 %r2, %tile, %r1; cvt.u64.u32 %rd1, %r1; add.u64 %rd2, %from, %rd1;
        cp.async.cg.shared.global [%r2], [%rd2], 16;
        {arrive}
        {wait}
        xor.b32 %r3, %r1, 16; add.u32 %r3, %tile, %r3; ld.shared.u32 %r4, [%r2]; ld.shared.u32 %r5, [%r3];
        add.u64 %rd3, %out, %rd1; st.global.v2.u32 [%rd3], {{%r4, %r5}};"
    )
}

#[test]
fn copies_that_signal_an_mbarrier_are_there_after_its_phase() {
    let expected = |found: Vec<u32>| {
        for thread in 0..64 {
            let neighbour = thread ^ 1;
            assert_eq!(found[4 * thread..4 * thread + 2], [4 * thread as u32, 4 * neighbour as u32]);
        }
    };
    let noinc = "cp.async.mbarrier.arrive.noinc.shared.b64 [%bar];";
    // Without .noinc the thread arrives by itself.
    let inc = "cp.async.mbarrier.arrive.shared.b64 [%bar]; mbarrier.arrive.shared.b64 _, [%bar];";
    for options in every_option() {
        for arrive in [noinc, inc] {
            expected(
                run(&signalled(arrive, WAIT), 64, 64, options).unwrap_or_else(|error| panic!("{error}")),
            );
        }
        // Groups may be waited for as well, by the thread itself.
        let both = format!("cp.async.commit_group; {noinc} cp.async.wait_group 0; {WAIT}");
        expected(run(&signalled("", &both), 64, 64, options).unwrap_or_else(|error| panic!("{error}")));
    }
}

#[test]
fn a_phase_may_wait_for_copies_that_it_was_not_made_for() {
    // Thread 0 adds the end of its copy to the phase, and only then lets thread 1 make the arrival that it counts.
    let body = format!(
        "mov.u32 %r1, 0; add.u32 %r2, %tile, 512; @%first st.relaxed.cta.shared.u32 [%r2], %r1; bar.sync 0;
        @!%first bra OTHER;
        cp.async.ca.shared.global [%tile], [%from+4], 4; cp.async.mbarrier.arrive.shared.b64 [%bar];
        mov.u32 %r1, 1; st.relaxed.cta.shared.u32 [%r2], %r1; bra WAIT;
        OTHER: ld.relaxed.cta.shared.u32 %r1, [%r2]; setp.eq.u32 %p1, %r1, 0; @%p1 bra OTHER;
        mbarrier.arrive.shared.b64 _, [%bar];
        {WAIT}
        ld.shared.u32 %r3, [%tile]; @!%first st.global.u32 [%out], %r3;"
    );
    for options in every_option() {
        let found = run(&body, 1, 2, options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found[0], 1);
    }
}

#[test]
fn an_arrival_behind_copies_is_no_wait() {
    // The thread's own word, before anybody has said that the copy is there.
    let own = signalled("cp.async.mbarrier.arrive.noinc.shared.b64 [%bar];", "")
        .replace("ld.shared.u32 %r5, [%r3];", "mov.u32 %r5, %r4;");
    for options in every_option() {
        run(&own, 32, 32, options).unwrap_err();
    }
}

#[test]
fn reads_of_a_bulk_group_are_not_its_writes() {
    // The tile goes to `out`; its first word may be overwritten once it has been read.
    let body = |wait: &str, reads: &str| {
        format!(
            "shl.b32 %r1, %tid, 4; add.u32 %r2, %tile, %r1; mov.u32 %r3, 7;
            st.shared.v4.u32 [%r2], {{%r3, %r3, %r3, %r3}}; fence.proxy.async.shared::cta; bar.sync 0;
            @!%first bra END;
            cp.async.bulk.global.shared::cta.bulk_group [%out], [%tile], 1024;
            cp.async.bulk.commit_group; {wait}
            st.shared.u32 [%tile], %tid; {reads}
            END:"
        )
    };
    let (read, full) = ("cp.async.bulk.wait_group.read 0;", "cp.async.bulk.wait_group 0;");
    let load = "ld.global.u32 %r4, [%out]; st.global.u32 [%out], %r4;";
    for options in every_option() {
        // Behind the kernel, all of it has arrived.
        assert_eq!(run(&body(read, ""), 1, 64, options).unwrap(), [7; 256]);
        assert_eq!(run(&body(full, load), 1, 64, options).unwrap(), [7; 256]);
        if options.memory.race {
            let report = fault(run(&body(read, load), 1, 64, options).unwrap_err());
            assert!(report.to_string().contains("cp.async.bulk.global"), "{report}");
            run(&body("", ""), 1, 64, options).unwrap_err();
        }
    }
}

#[test]
fn relaxed_operations_of_an_mbarrier_order_nothing() {
    // Thread 0 stores to the tile and arrives, thread 1 waits and reads.
    let body = |arrive: &str, wait: &str| {
        format!(
            "@!%first bra WAIT; mov.u32 %r1, 7; st.shared.u32 [%tile], %r1; {arrive} bra END;
            WAIT: {wait} @!%p1 bra WAIT; ld.shared.u32 %r2, [%tile]; END:"
        )
    };
    let arrive = "mbarrier.arrive.shared.b64 %rd1, [%bar];";
    let wait = "mbarrier.test_wait.parity.shared.b64 %p1, [%bar], 0;";
    let relaxed_arrive = "mbarrier.arrive.relaxed.cta.shared.b64 %rd1, [%bar];";
    let relaxed_wait = "mbarrier.test_wait.parity.relaxed.cta.shared.b64 %p1, [%bar], 0;";
    // Bytes: expected by an arrival that releases nothing yet, brought by the thread itself.
    let bytes =
        "mbarrier.expect_tx.relaxed.cta.shared.b64 [%bar], 4; mbarrier.arrive.shared.b64 %rd1, [%bar];
        mov.u32 %r1, 8; st.shared.u32 [%tile], %r1; mbarrier.complete_tx.relaxed.cta.shared.b64 [%bar], 4;";
    for policy in POLICIES {
        let options = options(policy, 1, true, false);
        run(&body(arrive, wait), 1, 2, options).unwrap_or_else(|error| panic!("{error}"));
        for (arrive, wait) in [(relaxed_arrive, wait), (arrive, relaxed_wait), (bytes, wait)] {
            let report = fault(run(&body(arrive, wait), 1, 2, options).unwrap_err());
            let is_race =
                matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. }));
            assert!(is_race, "{arrive} {wait}: {report}");
        }
    }
}

#[test]
fn an_arrival_that_completes_nothing_may_not_end_the_phase() {
    let arrive = "@%first mbarrier.arrive.noComplete.shared.b64 %rd1, [%bar], 1;";
    run(arrive, 2, 1, options(Policy::RoundRobin, 1, false, false)).unwrap();
    let report = fault(run(arrive, 1, 1, options(Policy::RoundRobin, 1, false, false)).unwrap_err());
    assert!(matches!(report.cause, Cause::MbarrierCount { .. }), "{report}");
}

#[test]
fn copies_that_nobody_waits_for_use_shared_memory_that_is_gone() {
    let one = "cp.async.ca.shared.global [%tile], [%from], 4;";
    let bulk = format!(
        "@!%first bra END; mov.u32 %r3, 7; st.shared.v4.u32 [%tile], {{%r3, %r3, %r3, %r3}};
        fence.proxy.async.shared::cta; cp.async.bulk.global.shared::cta.bulk_group [%out], [%tile], 16;
        cp.async.bulk.commit_group; {} END:",
        "cp.async.bulk.wait_group.read 1;"
    );
    let unfinished = [
        ("cp.async.ca", format!("@%first {one}")),
        // Nor is one that reads nothing and only fills.
        ("cp.async.ca", "@%first cp.async.ca.shared.global [%tile], [%from], 4, 0;".to_owned()),
        ("cp.async.ca", format!("@%first {one} cp.async.commit_group; cp.async.wait_group 1;")),
        // Committed groups are waited for, the open one is not.
        ("cp.async.ca", format!("cp.async.commit_group; @%first {one} cp.async.wait_group 0;")),
        ("cp.async.bulk.global", bulk.clone()),
    ];
    for options in every_option() {
        for (text, body) in &unfinished {
            let report = fault(run(body, 1, 64, options).unwrap_err());
            assert!(matches!(report.cause, Cause::LateCopy { .. }), "{report}");
            assert!(report.place.text.contains(text), "{report}");
            assert_eq!(report.place.thread, [0; 3], "{report}");
        }
        let empty = "cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;";
        run(&format!("@%first {one} {empty}"), 1, 64, options).unwrap_or_else(|error| panic!("{error}"));
        let read = bulk.replace(".read 1", ".read 0");
        run(&read, 1, 64, options).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn copies_whose_phase_nobody_awaits_may_come_too_late() {
    let signal = "cp.async.ca.shared.global [%tile], [%from], 4;
        cp.async.mbarrier.arrive.noinc.shared.b64 [%bar];";
    let bulk = format!(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 16; {BULK} [%tile], [%from], 16, [%bar];"
    );
    for body in [signal, &bulk] {
        let failures: Vec<_> = every_option().filter_map(|options| run(body, 1, 1, options).err()).collect();
        assert!(!failures.is_empty(), "{body}");
        for failure in failures {
            let report = fault(failure);
            assert!(matches!(report.cause, Cause::LateCopy { .. }), "{report}");
        }
        for options in every_option() {
            run(&format!("{body} {WAIT}"), 1, 1, options).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
