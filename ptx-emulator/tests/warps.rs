//! Lanes of a warp that do something together, or wait: guards, masks, undefined values, results of barriers; and the
//! memory that their instructions may name.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, params};
use ptx_emulator::memory::{Fault, MemoryOptions};
use ptx_emulator::{Cause, Launch, MachineOptions, Policy, RunError};

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

fn options(policy: Policy, seed: u64, race: bool) -> MachineOptions {
    let memory = MemoryOptions { race, ..MemoryOptions::default() };
    MachineOptions { policy, seed, memory, max_instructions: Some(2_000_000), ..MachineOptions::default() }
}

/// A kernel with %tid, the lane's half in %p1 (threads below 16 of each warp), a tile in shared memory, and %r2 that
/// goes to `out`.
fn run(functions: &str, body: &str, threads: u32, options: MachineOptions) -> Result<Vec<u32>, RunError> {
    let source = format!(
        "{functions}
        .visible .entry k(.param .u64 out) {{
          .shared .align 16 .b8 tile[512];
          .reg .b32 %tid, %r<16>; .reg .b64 %rd<8>; .reg .pred %p<4>;
          ld.param.u64 %rd1, [out]; mov.u32 %tid, %tid.x; and.b32 %r1, %tid, 31; setp.lt.u32 %p1, %r1, 16;
          mov.u32 %r2, 99;
          {body}
          mul.wide.u32 %rd2, %tid, 4; add.u64 %rd2, %rd2, %rd1; st.global.u32 [%rd2], %r2; ret;
        }}"
    );
    let mut rig = Rig::of(&source, options);
    let out = rig.upload(&vec![0; 4 * threads as usize], "out");
    rig.run("k", [1, 1, 1], [threads, 1, 1], 0, &params(&[out], &[]))?;
    Ok(rig.words(out, threads as usize))
}

fn cause(found: Result<Vec<u32>, RunError>) -> Cause {
    match found.unwrap_err() {
        RunError::Fault(report) => report.cause,
        other => panic!("no fault: {other}"),
    }
}

#[test]
fn a_guard_divides_a_barrier_of_single_threads() {
    for policy in POLICIES {
        let both = "@%p1 barrier.sync 0; @!%p1 barrier.sync 0;";
        run("", both, 64, options(policy, 1, false)).unwrap_or_else(|error| panic!("{error}"));
        // Half of each warp takes part: 32 threads, of which those of the first warp hold.
        let reduce = "setp.lt.u32 %p2, %tid, 32; @%p1 barrier.red.popc.u32 %r2, 1, 32, %p2;";
        let found = run("", reduce, 64, options(policy, 1, false)).unwrap();
        let expected: Vec<u32> = (0..64).map(|thread| if thread % 32 < 16 { 16 } else { 99 }).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn results_of_a_barrier_outlast_its_next_phase() {
    // Warps 2 and 3 use the barrier as soon as warp 1 has left it, while warp 0 may not have been woken yet.
    let body = "setp.ge.u32 %p2, %tid, 64; @%p2 bra SECOND;
        setp.eq.u32 %p3, %tid, %tid; bar.red.popc.u32 %r2, 1, 64, %p3;
        setp.ne.u32 %p3, %tid, 32; @%p3 bra END; mov.u32 %r3, 1; st.volatile.shared.u32 [tile], %r3; bra END;
        SECOND: ld.volatile.shared.u32 %r3, [tile]; setp.eq.u32 %p3, %r3, 0; @%p3 bra SECOND;
        setp.ne.u32 %p3, %tid, %tid; bar.red.popc.u32 %r2, 1, 64, %p3;
        END:";
    let zero = "mov.u32 %r3, 0; setp.eq.u32 %p3, %tid, 0; @%p3 st.shared.u32 [tile], %r3; bar.sync 0;";
    let expected: Vec<u32> = (0..128).map(|thread| if thread < 64 { 64 } else { 0 }).collect();
    for (policy, seed) in POLICIES.into_iter().flat_map(|policy| (0..60).map(move |seed| (policy, seed))) {
        let found = run("", &format!("{zero} {body}"), 128, options(policy, seed, false)).unwrap();
        assert_eq!(found, expected, "{policy:?}, seed {seed}");
    }
}

#[test]
fn lanes_may_meet_at_different_warp_barriers() {
    // Both halves store, meet, and read what the other half has stored.
    let body = |sync: &str| {
        format!(
            "mov.u32 %r3, tile; shl.b32 %r4, %tid, 2; add.u32 %r4, %r4, %r3; xor.b32 %r5, %r4, 64;
            @%p1 bra LOW;
            st.shared.u32 [%r4], %tid; {sync} ld.shared.u32 %r2, [%r5]; bra END;
            LOW: mov.u32 %r6, %tid; st.shared.u32 [%r4], %r6; bar.warp.sync -1; ld.shared.u32 %r2, [%r5];
            END:"
        )
    };
    for policy in POLICIES {
        let found = run("", &body("mov.u32 %r7, -1; bar.warp.sync %r7;"), 32, options(policy, 1, true));
        assert_eq!(found.unwrap(), (0..32).map(|lane| lane ^ 16).collect::<Vec<_>>());
        // With a mask of their own they do not meet.
        let race = run("", &body("bar.warp.sync 0xffff0000;"), 32, options(policy, 1, true));
        let divergent = matches!(cause(race), Cause::Divergent { .. } | Cause::Memory(_));
        assert!(divergent);
    }
}

#[test]
fn a_shuffle_from_a_lane_that_is_not_there_gives_no_old_value() {
    // Lanes 8 to 15 name lanes 16 to 23, which hold their number and do not take part.
    let body = "mov.u32 %r3, %tid; @!%p1 bra END; shfl.sync.down.b32 %r2, %r3, 8, 31, 0xffff; END:";
    for policy in POLICIES {
        let found = run("", body, 32, options(policy, 1, false)).unwrap();
        assert_eq!(found[..8], (8..16).collect::<Vec<_>>());
        assert!((8..16).all(|lane| found[lane] != lane as u32 + 8 && f32::from_bits(found[lane]).is_nan()));
    }
}

#[test]
fn only_the_lanes_that_wait_for_the_grid_before_come_after_it() {
    let source = |guard: &str| {
        format!(
            ".visible .entry first(.param .u64 at) {{
              .reg .b64 %rd<2>; ld.param.u64 %rd1, [at]; griddepcontrol.launch_dependents;
              st.global.u32 [%rd1], 5; ret;
            }}
            .visible .entry second(.param .u64 at) {{
              .reg .b64 %rd<2>; .reg .b32 %r<4>; .reg .pred %p; ld.param.u64 %rd1, [at]; mov.u32 %r1, %tid.x;
              setp.eq.u32 %p, %r1, 0; {guard} griddepcontrol.wait; ld.global.u32 %r1, [%rd1]; ret;
            }}"
        )
    };
    let run = |guard: &str, policy| {
        let mut rig = Rig::of(&source(guard), options(policy, 1, true));
        let at = rig.upload(&[0; 4], "at");
        for name in ["first", "second"] {
            let kernel = rig.machine.kernel(rig.module, name).unwrap();
            let block = [if name == "first" { 1 } else { 2 }, 1, 1];
            let params = params(&[at], &[]);
            let (grid, programmatic) = ([1; 3], true);
            let launch = Launch { programmatic, ..Launch::new(kernel, grid, block, params) };
            rig.machine.launch(rig.stream, &launch).unwrap();
        }
        rig.machine.run()
    };
    for policy in POLICIES {
        run("", policy).unwrap_or_else(|error| panic!("{error}"));
        let error = run("@%p", policy).unwrap_err();
        let RunError::Fault(report) = &error else { panic!("{error}") };
        assert_eq!(report.place.thread, [1, 0, 0], "{error}");
    }
}

#[test]
fn variables_of_a_call_end_with_it() {
    let function = "
        .func (.param .b64 out) f() {
          .local .align 4 .b8 array[1024]; .reg .b64 %rd<2>;
          mov.u64 %rd1, array; cvta.local.u64 %rd1, %rd1; st.u32 [%rd1+512], 5; st.param.b64 [out], %rd1; ret;
        }";
    let call = "{ .param .b64 r; call (r), f; ld.param.b64 %rd3, [r]; }";
    let run = |body: &str| run(function, &format!("{call} {body}"), 1, options(Policy::RoundRobin, 1, false));
    assert_eq!(run("").unwrap(), [99]);
    assert!(matches!(cause(run("ld.u32 %r2, [%rd3+512];")), Cause::PrivateBounds { .. }));
    assert!(matches!(cause(run("st.u32 [%rd3+512], 7;")), Cause::PrivateBounds { .. }));
}

#[test]
fn instructions_for_global_memory_take_no_address_of_shared_memory() {
    let shared = "mov.u64 %rd3, tile; cvta.shared.u64 %rd3, %rd3; st.u32 [%rd3], 5;";
    let run = |body: &str| run("", &format!("{shared} {body}"), 1, options(Policy::RoundRobin, 1, false));
    assert_eq!(run("ld.u32 %r2, [%rd3];").unwrap(), [5]);
    for wrong in [
        "ld.global.u32 %r2, [%rd3];",
        "ld.const.u32 %r2, [%rd3];",
        "st.global.u32 [%rd3], %r2;",
        "red.global.add.u32 [%rd3], 1;",
        "mov.u32 %r4, tile; cp.async.ca.shared.global [%r4+16], [%rd3], 4;",
    ] {
        assert!(matches!(cause(run(wrong)), Cause::WrongSpace { .. }), "{wrong}");
    }
}

#[test]
fn a_flag_that_was_never_zeroed_is_found_behind_its_first_store() {
    // The first block may see the flag as of before the store, which nobody has written.
    let source = "
        .visible .entry k(.param .u64 flag) {
          .reg .b64 %rd<2>; .reg .b32 %r<4>; .reg .pred %p<2>; ld.param.u64 %rd1, [flag]; mov.u32 %r1, %ctaid.x;
          setp.eq.u32 %p1, %r1, 0; @%p1 bra WAIT; st.relaxed.gpu.global.u32 [%rd1], 1; ret;
          WAIT: ld.relaxed.gpu.global.u32 %r2, [%rd1]; setp.eq.u32 %p1, %r2, 0; @%p1 bra WAIT; ret;
        }";
    let run = |seed, zeroed: bool| {
        let memory = MemoryOptions { weak: Some(seed), ..MemoryOptions::default() };
        // Round robin begins with the second block, whose store comes before every load.
        let mut rig =
            Rig::of(source, MachineOptions { memory, seed, ..options(Policy::RoundRobin, 0, false) });
        let flag = if zeroed { rig.upload(&[0; 4], "flag") } else { rig.empty(4, "flag") };
        rig.run("k", [2, 1, 1], [1, 1, 1], 0, &params(&[flag], &[]))
    };
    let mut found = 0;
    for seed in 0..100 {
        run(seed, true).unwrap_or_else(|error| panic!("{error}"));
        match run(seed, false) {
            Ok(()) => {}
            Err(RunError::Fault(report)) => {
                let uninitialised = matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::Uninitialised { .. }));
                assert!(uninitialised, "{report}");
                found += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(found > 30, "found under {found} of 100 seeds");
}
