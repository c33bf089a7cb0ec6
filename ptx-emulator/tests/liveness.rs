//! What is a deadlock and what only takes long: streams that wait for each other, lanes that wait for a lane at
//! work, barriers that a guard divides.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Rig, params};
use ptx_emulator::memory::{DeviceId, MemoryOptions, Owner, Thread};
use ptx_emulator::{Launch, Machine, MachineOptions, Module, Outcome, Policy, RunError, StreamId};

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

fn options(policy: Policy) -> MachineOptions {
    MachineOptions { policy, max_instructions: Some(20_000_000), ..MachineOptions::default() }
}

fn module(source: &str) -> Arc<Module> {
    let text = format!(".version 8.0\n.target sm_90\n.address_size 64\n{source}");
    Arc::new(Module::new("test.ptx", &text).unwrap_or_else(|error| panic!("{error}")))
}

const FLAG: &str = "
    .visible .entry spin(.param .u64 flag) {
      .reg .b64 %rd<2>; .reg .b32 %r<2>; .reg .pred %p; ld.param.u64 %rd1, [flag];
      L: ld.relaxed.sys.global.u32 %r1, [%rd1]; setp.eq.u32 %p, %r1, 0; @%p bra L; ret;
    }
    .visible .entry set(.param .u64 flag) {
      .reg .b64 %rd<2>; ld.param.u64 %rd1, [flag]; st.relaxed.sys.global.u32 [%rd1], 1; ret;
    }
    .visible .entry nothing(.param .u64 flag) { ret; }";

/// A machine with a word of zeros, and a way to launch the kernels of `FLAG` on it.
fn flag_machine(policy: Policy) -> (Machine, u64, impl Fn(&mut Machine, StreamId, &str)) {
    let mut machine = Machine::new(options(policy));
    let loaded = machine.load(DeviceId(0), &module(FLAG)).unwrap();
    let flag = machine.memory().allocate(Owner::Device(DeviceId(0)), 4, "flag").unwrap();
    machine.memory().fill(Thread::HOST, flag, 4, &[0]).unwrap();
    let launch = move |machine: &mut Machine, stream, kernel: &str| {
        let kernel = machine.kernel(loaded, kernel).unwrap();
        let params = params(&[flag], &[]);
        let (grid, block) = ([1; 3], [1; 3]);
        let launch = Launch::new(kernel, grid, block, params);
        machine.launch(stream, &launch).unwrap();
    };
    (machine, flag, launch)
}

#[test]
fn an_event_recorded_late_lets_an_earlier_stream_go_on() {
    for policy in POLICIES {
        let (mut machine, _, launch) = flag_machine(policy);
        let [spinning, waiting, recording] = [0; 3].map(|_| machine.stream(DeviceId(0)));
        let event = machine.event();
        launch(&mut machine, spinning, "spin");
        machine.wait(waiting, event);
        launch(&mut machine, waiting, "set");
        launch(&mut machine, recording, "nothing");
        machine.record(recording, event);
        machine.run().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// One lane sums `n` words while the others of its warp wait for the flag that it sets behind them.
const SUM_AND_SPIN: &str = "
    .visible .entry k(.param .u64 words, .param .u64 flag, .param .u32 n) {
      .reg .b64 %rd<4>; .reg .b32 %r<8>; .reg .pred %p<4>;
      ld.param.u64 %rd1, [words]; ld.param.u64 %rd2, [flag]; ld.param.u32 %r1, [n];
      mov.u32 %r2, %tid.x; setp.eq.u32 %p1, %r2, 0; @%p1 bra WORK;
      SPIN: ld.relaxed.gpu.global.u32 %r3, [%rd2]; setp.eq.u32 %p2, %r3, 0; @%p2 bra SPIN; ret;
      WORK: mov.u32 %r4, 0; mov.u32 %r5, 0;
      NEXT: ld.global.u32 %r6, [%rd1]; add.u32 %r4, %r4, %r6; add.u32 %r5, %r5, 1;
      setp.lt.u32 %p3, %r5, %r1; @%p3 bra NEXT;
      st.relaxed.gpu.global.u32 [%rd2], %r4; ret;
    }";

#[test]
fn lanes_may_wait_for_a_lane_that_works_long() {
    for policy in POLICIES {
        let mut rig = Rig::new(&module(SUM_AND_SPIN), options(policy));
        let (words, flag) = (rig.upload(&[1, 0, 0, 0], "words"), rig.upload(&[0; 4], "flag"));
        let run = rig.run("k", [1, 1, 1], [32, 1, 1], 0, &params(&[words, flag], &[50_000]));
        run.unwrap_or_else(|error| panic!("{policy:?}: {error}"));
        assert_eq!(rig.words(flag, 1), [50_000]);
    }
}

#[test]
fn a_caller_that_counts_is_no_spin() {
    // The callee's registers are the same in every call.
    let source = "
        .func (.param .b32 out) f(.param .b64 at) {
          .reg .b64 %rd<2>; .reg .b32 %r<4>; .reg .pred %p; ld.param.u64 %rd1, [at]; mov.u32 %r1, 0;
          L: ld.global.u32 %r2, [%rd1]; add.u32 %r1, %r1, %r2; setp.lt.u32 %p, %r1, 4; @%p bra L;
          st.param.b32 [out], %r1; ret;
        }
        .visible .entry k(.param .u64 one, .param .u64 sum) {
          .reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .pred %p;
          ld.param.u64 %rd1, [one]; ld.param.u64 %rd2, [sum]; mov.u32 %r1, 0;
          L: { .param .b64 a; .param .b32 r; st.param.b64 [a], %rd1; call (r), f, (a); ld.param.b32 %r2, [r]; }
          add.u32 %r1, %r1, %r2; setp.lt.u32 %p, %r1, 80000; @%p bra L;
          st.global.u32 [%rd2], %r1; ret;
        }";
    for policy in POLICIES {
        let mut rig = Rig::new(&module(source), options(policy));
        let (one, sum) = (rig.upload(&[1, 0, 0, 0], "one"), rig.upload(&[0; 4], "sum"));
        let run = rig.run("k", [1, 1, 1], [32, 1, 1], 0, &params(&[one, sum], &[]));
        run.unwrap_or_else(|error| panic!("{policy:?}: {error}"));
    }
}

#[test]
fn a_spin_that_the_host_ends_may_be_followed_by_long_work() {
    let source =
        SUM_AND_SPIN.replace("SPIN; ret;", "SPIN; bra WORK;").replace("%p1 bra WORK;", "%p1 bra SPIN;");
    for policy in POLICIES {
        let mut rig = Rig::new(&module(&source), options(policy));
        let (words, flag) = (rig.upload(&[1, 0, 0, 0], "words"), rig.upload(&[0; 4], "flag"));
        let kernel = rig.machine.kernel(rig.module, "k").unwrap();
        let launch = Launch::new(kernel, [1; 3], [1; 3], params(&[words, flag], &[50_000]));
        rig.machine.launch(rig.stream, &launch).unwrap();
        while !matches!(rig.machine.advance(10_000).unwrap(), Outcome::Stalled(_)) {}
        rig.machine.memory().write(Thread::HOST, flag, &[1]).unwrap();
        let run = rig.machine.run();
        run.unwrap_or_else(|error| panic!("{policy:?}: {error}"));
        assert_eq!(rig.words(flag, 1), [50_000]);
    }
}

#[test]
fn a_spin_that_stores_is_found() {
    // The same heartbeat again and again, and a counter in local memory that comes back to where it was.
    let source = "
        .visible .entry k(.param .u64 flag, .param .u64 beat) {
          .local .align 4 .b8 count[4];
          .reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .pred %p;
          ld.param.u64 %rd1, [flag]; ld.param.u64 %rd2, [beat]; mov.u32 %r1, 0; st.local.u32 [count], %r1;
          L: st.relaxed.gpu.global.u32 [%rd2], 7;
          ld.local.u32 %r1, [count]; xor.b32 %r1, %r1, 1; st.local.u32 [count], %r1; mov.u32 %r1, 0;
          ld.relaxed.gpu.global.u32 %r2, [%rd1]; setp.eq.u32 %p, %r2, 0; @%p bra L; ret;
        }";
    for policy in POLICIES {
        let mut rig = Rig::new(&module(source), options(policy));
        let (flag, beat) = (rig.upload(&[0; 4], "flag"), rig.upload(&[0; 4], "beat"));
        let error = rig.run("k", [1, 1, 1], [32, 1, 1], 0, &params(&[flag, beat], &[])).unwrap_err();
        assert!(matches!(error, RunError::Deadlock(_)), "{policy:?}: {error}");
    }
}

#[test]
fn a_counter_in_local_memory_is_no_spin() {
    let source = "
        .visible .entry k() {
          .local .align 4 .b8 count[4]; .reg .b32 %r<4>; .reg .pred %p;
          mov.u32 %r1, 0; st.local.u32 [count], %r1;
          L: ld.local.u32 %r1, [count]; add.u32 %r1, %r1, 1; st.local.u32 [count], %r1;
          setp.lt.u32 %p, %r1, 50000; mov.u32 %r1, 0; @%p bra L; ret;
        }";
    for policy in POLICIES {
        let mut rig = Rig::new(&module(source), options(policy));
        let run = rig.run("k", [1, 1, 1], [32, 1, 1], 0, &[]);
        run.unwrap_or_else(|error| panic!("{policy:?}: {error}"));
    }
}

#[test]
fn a_stream_that_was_handed_back_is_given_out_as_new() {
    let mut machine = Machine::new(MachineOptions {
        memory: MemoryOptions { race: true, ..MemoryOptions::default() },
        ..options(Policy::RoundRobin)
    });
    let at = machine.memory().allocate(Owner::Device(DeviceId(0)), 16, "x").unwrap();
    machine.memory().fill(Thread::HOST, at, 16, &[0]).unwrap();
    let [first, other] = [0; 2].map(|_| machine.stream(DeviceId(0)));
    machine.fill(first, at, 8, &[1]);
    machine.retire_stream(first);
    assert_ne!(machine.stream(DeviceId(0)), first, "it still has something to do");
    while !matches!(machine.advance(1000).unwrap(), Outcome::Idle) {}
    machine.retire_stream(first);
    let second = machine.stream(DeviceId(0));
    assert_eq!(second, first);
    // Nothing orders its new work behind the old, but for whoever waits for the device.
    machine.synchronise(other);
    machine.fill(second, at, 8, &[2]);
    assert!(machine.run().is_err());
}
