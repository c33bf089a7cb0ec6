//! Divergence, calls, barriers and their failures.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, params};
use ptx_emulator::memory::MemoryOptions;
use ptx_emulator::{Cause, Launch, MachineOptions, Outcome, Policy, RunError};

fn options(policy: Policy) -> MachineOptions {
    MachineOptions { policy, seed: 3, max_instructions: Some(50_000_000), ..MachineOptions::default() }
}

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

/// A kernel `k` with an output array and the thread's slot of it in %rd3.
fn kernel(declarations: &str, body: &str) -> String {
    format!(
        "{declarations}
        .visible .entry k(.param .u64 out) {{
          .reg .pred %p<8>; .reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .f32 %f<8>; .reg .b16 %h<8>;
          ld.param.u64 %rd1, [out];
          mov.u32 %r1, %tid.x;
          mul.wide.u32 %rd2, %r1, 4;
          add.s64 %rd3, %rd1, %rd2;
          {body}
        }}"
    )
}

fn words(source: &str, threads: u32, policy: Policy) -> Vec<u32> {
    let mut rig = Rig::of(source, options(policy));
    let out = rig.empty(4 * u64::from(threads), "out");
    rig.run("k", [1, 1, 1], [threads, 1, 1], 0, &params(&[out], &[]))
        .unwrap_or_else(|error| panic!("{error}"));
    rig.words(out, threads as usize)
}

fn failure(source: &str, threads: u32, policy: Policy) -> RunError {
    let mut rig = Rig::of(source, options(policy));
    let out = rig.empty(4 * u64::from(threads), "out");
    rig.run("k", [1, 1, 1], [threads, 1, 1], 0, &params(&[out], &[])).unwrap_err()
}

#[test]
fn lanes_of_a_loop_meet_behind_it() {
    // Lane i goes round i times; behind the loop all lanes vote.
    let body = "mov.u32 %r2, 0;
        LOOP: setp.ge.u32 %p1, %r2, %r1; @%p1 bra DONE; add.s32 %r2, %r2, 1; bra LOOP;
        DONE: activemask.b32 %r3; st.global.u32 [%rd3], %r3; ret;";
    for policy in POLICIES {
        assert_eq!(words(&kernel("", body), 32, policy), [u32::MAX; 32]);
    }
}

#[test]
fn nested_branches_meet_inside_out() {
    let body = "and.b32 %r2, %r1, 1; and.b32 %r3, %r1, 2; setp.eq.u32 %p1, %r2, 0; setp.eq.u32 %p2, %r3, 0;
        mov.u32 %r4, 100;
        @%p1 bra EVEN; add.s32 %r4, %r4, 1; bra JOIN;
        EVEN: @%p2 bra ZERO; add.s32 %r4, %r4, 2; bra INNER;
        ZERO: add.s32 %r4, %r4, 3;
        INNER: activemask.b32 %r5; popc.b32 %r5, %r5; mul.lo.s32 %r5, %r5, 1000; add.s32 %r4, %r4, %r5;
        JOIN: activemask.b32 %r6; popc.b32 %r6, %r6; mul.lo.s32 %r6, %r6, 100000; add.s32 %r4, %r4, %r6;
        st.global.u32 [%rd3], %r4; ret;";
    let expected: Vec<u32> = (0..32)
        .map(|lane| 3_200_100 + if lane % 2 == 1 { 1 } else { 16_000 + if lane & 2 == 0 { 3 } else { 2 } })
        .collect();
    for policy in POLICIES {
        assert_eq!(words(&kernel("", body), 32, policy), expected);
    }
}

#[test]
fn a_lane_may_spin_on_another_of_its_warp() {
    // A lock taken by one lane at a time: without independent progress the winner would wait at the join for ever.
    let body = "mov.u32 %r5, lock; setp.ne.u32 %p3, %r1, 0; @%p3 bra READY; st.shared.u32 [%r5], 0;
        st.shared.u32 [%r5+4], 0; READY: bar.sync 0;
        AGAIN: atom.shared.cas.b32 %r2, [%r5], 0, 1; setp.ne.u32 %p1, %r2, 0; @%p1 bra AGAIN;
        ld.volatile.shared.u32 %r3, [%r5+4]; add.s32 %r4, %r3, 1; st.volatile.shared.u32 [%r5+4], %r4;
        membar.cta; atom.shared.exch.b32 %r2, [%r5], 0;
        bar.sync 0; ld.volatile.shared.u32 %r6, [%r5+4]; st.global.u32 [%rd3], %r6; ret;";
    for policy in POLICIES {
        assert_eq!(words(&kernel(".shared .align 4 .b8 lock[8];", body), 64, policy), [64; 64]);
    }
}

#[test]
fn functions_with_results_recursion_and_pointers() {
    let declarations = "
        .func (.param .b32 r) fib(.param .b32 n) {
          .reg .pred %p; .reg .b32 %a<8>;
          ld.param.b32 %a1, [n];
          setp.gt.u32 %p, %a1, 1; @%p bra MORE; st.param.b32 [r], %a1; ret;
          MORE: sub.s32 %a2, %a1, 1;
          { .param .b32 x; .param .b32 y; st.param.b32 [x], %a2; call.uni (y), fib, (x); ld.param.b32 %a3, [y]; }
          sub.s32 %a2, %a1, 2;
          { .param .b32 x; .param .b32 y; st.param.b32 [x], %a2; call.uni (y), fib, (x); ld.param.b32 %a4, [y]; }
          add.s32 %a5, %a3, %a4; st.param.b32 [r], %a5; ret;
        }
        .func bump(.param .b64 at) {
          .reg .b64 %d; .reg .b32 %v; ld.param.b64 %d, [at]; ld.u32 %v, [%d]; add.s32 %v, %v, 1000; st.u32 [%d], %v; ret;
        }";
    let body = ".local .align 8 .b8 depot[16]; .reg .b64 %SP; .reg .b64 %SPL;
        mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL;
        and.b32 %r2, %r1, 7;
        { .param .b32 a; .param .b32 b; st.param.b32 [a], %r2; call (b), fib, (a); ld.param.b32 %r3, [b]; }
        st.local.u32 [%SPL+8], %r3; add.s64 %rd4, %SP, 8;
        mov.u64 %rd5, bump;
        { .param .b64 a; st.param.b64 [a], %rd4; proto: .callprototype () _ (.param .b64 _); call %rd5, (a), proto; }
        ld.local.u32 %r4, [%SPL+8]; st.global.u32 [%rd3], %r4; ret;";
    let fib = [0, 1, 1, 2, 3, 5, 8, 13];
    let expected: Vec<u32> = (0..32).map(|lane| 1000 + fib[lane % 8]).collect();
    assert_eq!(words(&kernel(declarations, body), 32, Policy::RoundRobin), expected);
}

#[test]
fn tables_of_branches_and_partial_warps() {
    let body = "and.b32 %r2, %r1, 3; ts: .branchtargets A, B, C, D; brx.idx %r2, ts;
        A: mov.u32 %r3, 10; bra.uni E; B: mov.u32 %r3, 20; bra.uni E; C: mov.u32 %r3, 30; bra.uni E;
        D: mov.u32 %r3, 40; E: bar.sync 0; activemask.b32 %r4; popc.b32 %r4, %r4; add.s32 %r3, %r3, %r4;
        st.global.u32 [%rd3], %r3; ret;";
    let expected: Vec<u32> =
        (0..45).map(|thread| 10 * (thread % 4 + 1) + if thread < 32 { 32 } else { 13 }).collect();
    for policy in POLICIES {
        assert_eq!(words(&kernel("", body), 45, policy), expected);
    }
}

#[test]
fn named_barriers_hand_over_between_producer_and_consumer() {
    // Warp 0 writes and arrives; warp 1 waits and reads.
    let body = "mov.u32 %r5, box; setp.lt.u32 %p1, %r1, 32; @%p1 bra PRODUCE;
        bar.sync 1, 64; sub.s32 %r6, %r1, 32; shl.b32 %r6, %r6, 2; add.s32 %r6, %r6, %r5; ld.shared.u32 %r7, [%r6];
        st.global.u32 [%rd3], %r7; ret;
        PRODUCE: shl.b32 %r6, %r1, 2; add.s32 %r6, %r6, %r5; mul.lo.s32 %r7, %r1, 3; st.shared.u32 [%r6], %r7;
        bar.arrive 1, 64; st.global.u32 [%rd3], 0; ret;";
    let expected: Vec<u32> = (0..64).map(|thread| if thread < 32 { 0 } else { 3 * (thread - 32) }).collect();
    for policy in POLICIES {
        assert_eq!(words(&kernel(".shared .align 4 .b8 box[128];", body), 64, policy), expected);
    }
}

#[test]
fn a_reduction_over_a_barrier() {
    let body = "setp.lt.u32 %p1, %r1, 40; bar.red.popc.u32 %r2, 0, %p1; bar.red.or.pred %p2, 0, %p1;
        bar.red.and.pred %p3, 0, !%p1; selp.u32 %r3, 1000, 0, %p2; selp.u32 %r4, 1, 5000, %p3;
        add.s32 %r2, %r2, %r3; add.s32 %r2, %r2, %r4; st.global.u32 [%rd3], %r2; ret;";
    assert_eq!(words(&kernel("", body), 64, Policy::Random), [40 + 1000 + 5000; 64]);
}

#[test]
fn a_barrier_in_a_divergent_branch_is_found() {
    let body =
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra SKIP; bar.sync 0; SKIP: bar.warp.sync -1; bar.sync 0; ret;";
    for policy in POLICIES {
        let RunError::Fault(report) = failure(&kernel("", body), 32, policy) else { panic!("no fault") };
        assert!(matches!(report.cause, Cause::Divergent { .. }), "{report}");
        assert!(report.place.text.contains("bar."), "{report}");
    }
}

#[test]
fn a_barrier_that_cannot_be_reached_is_reported_with_who_waits() {
    let body = "setp.lt.u32 %p1, %r1, 32; @%p1 bra ONE; bar.sync 1; ret; ONE: bar.sync 2; ret;";
    for policy in POLICIES {
        let RunError::Deadlock(deadlock) = failure(&kernel("", body), 64, policy) else {
            panic!("no deadlock")
        };
        let text = deadlock.to_string();
        assert_eq!(deadlock.waiters.len(), 2, "{text}");
        assert!(
            text.contains("barrier 1, where 32 of 64") && text.contains("barrier 2, where 32 of 64"),
            "{text}"
        );
    }
}

#[test]
fn a_spin_that_nothing_ends_is_a_deadlock_and_a_long_computation_is_not() {
    let declarations = ".global .align 4 .u32 flag;";
    let spin = "mov.u64 %rd5, flag; L: ld.relaxed.gpu.global.u32 %r2, [%rd5]; setp.eq.u32 %p1, %r2, 0; @%p1 bra L; ret;";
    let long = "mov.u32 %r2, 0; L: add.s32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 500000; @%p1 bra L;
        st.global.u32 [%rd3], %r2; ret;";
    for policy in POLICIES {
        let RunError::Deadlock(deadlock) = failure(&kernel(declarations, spin), 64, policy) else {
            panic!("none")
        };
        assert!(deadlock.to_string().contains("it spins"), "{deadlock}");
        assert_eq!(words(&kernel("", long), 32, policy), [500_000; 32]);
    }
}

#[test]
fn time_limits_expire() {
    let body = "mov.u64 %rd4, %globaltimer; add.s64 %rd5, %rd4, 2000000000;
        L: nanosleep.u32 100; mov.u64 %rd6, %globaltimer; setp.lt.u64 %p1, %rd6, %rd5; @%p1 bra L;
        st.global.u32 [%rd3], 1; ret;";
    for policy in POLICIES {
        assert_eq!(words(&kernel("", body), 64, policy), [1; 64]);
    }
}

#[test]
fn failures_name_the_place_and_the_seed() {
    let RunError::Fault(report) =
        failure(&kernel("", "setp.eq.u32 %p1, %r1, 37; @%p1 trap; ret;"), 64, Policy::Random)
    else {
        panic!("no fault")
    };
    assert_eq!((report.cause.clone(), report.place.thread, report.place.line), (Cause::Trap, [37, 0, 0], 11));
    assert!(report.to_string().contains("test.ptx:11: `@%p1 trap`") && report.to_string().contains("seed 3"));

    let RunError::Fault(report) = failure(&kernel("", "add.s32 %r3, %r2, 1; ret;"), 32, Policy::Random)
    else {
        panic!("no fault")
    };
    assert_eq!(report.cause, Cause::UninitialisedRegister { lane: 0 });

    let body = "st.global.v2.u32 [%rd3], {%r1, %r1}; ret;";
    let RunError::Fault(report) = failure(&kernel("", body), 32, Policy::Random) else { panic!("no fault") };
    assert!(
        matches!(report.cause, Cause::Misaligned { bytes: 8, .. }) && report.place.thread[0] == 1,
        "{report}"
    );

    let body = "mov.u32 %r2, tile; ld.shared.u32 %r3, [%r2+4]; ret;";
    let source = kernel(".shared .align 4 .b8 tile[8];", body);
    let RunError::Fault(report) = failure(&source, 32, Policy::Random) else { panic!("no fault") };
    assert!(report.to_string().contains("never been written"), "{report}");
}

#[test]
fn assertions_and_prints() {
    let declarations = "
        .extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);
        .extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 c);
        .global .align 1 .b8 fmt[16] = {120, 61, 37, 48, 51, 100, 32, 37, 46, 50, 102, 32, 37, 115, 10, 0};
        .global .align 1 .b8 text[4] = {97, 32, 98, 0};";
    let print = ".local .align 8 .b8 args[24]; setp.ne.u32 %p1, %r1, 1; @%p1 ret;
        mov.u64 %rd4, args; cvta.local.u64 %rd5, %rd4; st.local.u32 [%rd4], 7; mov.f64 %d1, 0d3FF8000000000000;
        st.local.f64 [%rd4+8], %d1; mov.u64 %rd6, text; cvta.global.u64 %rd6, %rd6; st.local.u64 [%rd4+16], %rd6;
        mov.u64 %rd7, fmt; cvta.global.u64 %rd7, %rd7;
        { .param .b64 a; .param .b64 b; .param .b32 r; st.param.b64 [a], %rd7; st.param.b64 [b], %rd5;
          call.uni (r), vprintf, (a, b); ld.param.b32 %r9, [r]; }
        ret;";
    let print = format!(".reg .f64 %d<4>; {print}");
    let mut rig = Rig::of(&kernel(declarations, &print), options(Policy::RoundRobin));
    let out = rig.empty(128, "out");
    rig.run("k", [1, 1, 1], [32, 1, 1], 0, &params(&[out], &[])).unwrap();
    assert_eq!(rig.machine.take_output(), "x=007 1.50 a b\n");

    let assertion = "mov.u64 %rd6, text; cvta.global.u64 %rd6, %rd6;
        { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;
          st.param.b64 [a], %rd6; st.param.b64 [b], %rd6; st.param.b32 [c], 12; st.param.b64 [d], %rd6;
          st.param.b64 [e], 1; call.uni __assertfail, (a, b, c, d, e); }
        ret;";
    let RunError::Fault(report) = failure(&kernel(declarations, assertion), 1, Policy::RoundRobin) else {
        panic!()
    };
    assert_eq!(report.cause, Cause::Assertion("a b:12: a b: a b".to_owned()));
}

#[test]
fn unsupported_instructions_are_refused_by_name() {
    use ptx_emulator::Module;
    let refused = |body: &str| {
        let text = format!(".version 8.0\n.target sm_90a\n.address_size 64\n{}", kernel("", body));
        Module::new("k.ptx", &text).unwrap_err().to_string()
    };
    for (body, message) in [
        ("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%r1}, %rd1, %rd2;", "modifier `.sp`"),
        ("setmaxnreg.inc.sync.aligned.u32 20;", "this form of the instruction is not supported"),
        ("mapa.u64 %rd1, %rd2, %r1;", "clusters"),
        ("add.rn.s32 %r1, %r1, %r2;", "modifier `.rn`"),
        ("add.s32 %r1, %r1, %rd1;", "`%rd1` is not an operand as wide as the type"),
        ("mov.u32 %r1, %clusterid.x;", "special register `%clusterid.x`"),
        ("bra NOWHERE;", "label `NOWHERE`"),
        ("ld.global.u32 %r99, [%rd1];", "`%r99` is not a register"),
    ] {
        let error = refused(body);
        assert!(error.contains(message) && error.starts_with("k.ptx:11:"), "{error}");
    }
}

#[test]
fn a_run_in_slices_is_the_run() {
    let body = "mov.u32 %r2, 0;
        LOOP: setp.ge.u32 %p1, %r2, %r1; @%p1 bra DONE; add.s32 %r2, %r2, 1; bra LOOP;
        DONE: bar.sync 0; st.global.u32 [%rd3], %r2; ret;";
    for (policy, slice) in POLICIES.into_iter().flat_map(|policy| [(policy, 1), (policy, 7), (policy, 100)]) {
        let mut rig = Rig::of(&kernel("", body), options(policy));
        let out = rig.empty(4 * 96, "out");
        let kernel = rig.machine.kernel(rig.module, "k").unwrap();
        let params = params(&[out], &[]);
        let launch = Launch::new(kernel, [5, 1, 1], [96, 1, 1], params);
        rig.machine.launch(rig.stream, &launch).unwrap();
        while rig.machine.advance(slice).unwrap() == Outcome::Running {}
        assert!(rig.machine.is_idle(rig.stream), "{policy:?}, {slice}");
        assert!(rig.words(out, 96).into_iter().eq(0..96), "{policy:?}, {slice}");
    }
}

/// Two copies in one group: of weights at once, of activations after what precedes the grid.
const DEPENDENT: &str = "
    .visible .entry write(.param .u64 x) {
      .reg .b32 %r<4>; .reg .b64 %rd<4>;
      ld.param.u64 %rd1, [x];
      griddepcontrol.launch_dependents;
      mov.u32 %r1, 41;
      st.global.v4.u32 [%rd1], {%r1, %r1, %r1, %r1};
      ret;
    }
    .visible .entry use(.param .u64 weights, .param .u64 x) {
      .shared .align 16 .b8 tile[32];
      .reg .b32 %r<4>; .reg .b64 %rd<4>;
      ld.param.u64 %rd1, [weights];
      ld.param.u64 %rd2, [x];
      mov.u32 %r1, tile;
      cp.async.cg.shared.global [%r1], [%rd1], 16;
      griddepcontrol.wait;
      cp.async.cg.shared.global [%r1+16], [%rd2], 16;
      cp.async.commit_group;
      cp.async.wait_group 0;
      ld.shared.u32 %r2, [%r1];
      ld.shared.u32 %r3, [%r1+16];
      add.u32 %r2, %r2, %r3;
      st.global.u32 [%rd1], %r2;
      ret;
    }";

#[test]
fn a_copy_behind_the_wait_for_the_grid_before_comes_after_that_grid() {
    for (policy, seed) in POLICIES.into_iter().flat_map(|policy| (0..20).map(move |seed| (policy, seed))) {
        let memory = MemoryOptions { race: true, weak: Some(seed), ..MemoryOptions::default() };
        let mut rig = Rig::of(DEPENDENT, MachineOptions { memory, seed, ..options(policy) });
        let (weights, x) = (rig.upload(&[1, 0, 0, 0].repeat(4), "weights"), rig.upload(&[0; 16], "x"));
        for (name, params) in [("write", params(&[x], &[])), ("use", params(&[weights, x], &[]))] {
            let kernel = rig.machine.kernel(rig.module, name).unwrap();
            let (grid, block) = ([1; 3], [1; 3]);
            let launch = Launch { programmatic: true, ..Launch::new(kernel, grid, block, params) };
            rig.machine.launch(rig.stream, &launch).unwrap();
        }
        rig.machine.run().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(rig.words(weights, 1), [42], "{policy:?}, {seed}");
    }
}
