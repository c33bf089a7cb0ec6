//! Puts over the emulated network: what a program may rely on, and what becomes of one that relies on more.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use std::sync::Arc;

use common::params;
use ptx_emulator::memory::{DeviceId, Fault, MemoryOptions, Owner, Thread};
use ptx_emulator::nvshmem::{Heap, Nvshmem, Unit};
use ptx_emulator::{Cause, Launch, Machine, MachineOptions, Module, Policy, Report, RunError};

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];
const SEEDS: u64 = 150;
const HEAP_BYTES: u64 = 4096;

/// What PE 0 executes with 32 threads, and PE 1 with one: both have `%data`, `%flag` and `%stage` in their heaps.
fn program(sender: &str, receiver: &str) -> Result<Arc<Module>, String> {
    program_behind("", sender, receiver)
}

/// The same, behind another kernel of PE 0.
fn program_behind(before: &str, sender: &str, receiver: &str) -> Result<Arc<Module>, String> {
    let source = format!(
        ".version 8.0\n.target sm_80\n.address_size 64
.extern .func (.param .b32 r) nvshmem_my_pe ();
.extern .func nvshmem_putmem_nbi (.param .b64 d, .param .b64 s, .param .b64 n, .param .b32 pe);
.extern .func nvshmemx_putmem_nbi_warp (.param .b64 d, .param .b64 s, .param .b64 n, .param .b32 pe);
.extern .func nvshmem_fence ();
.extern .func nvshmem_quiet ();
.visible .entry before(.param .u64 heap, .param .u64 peer) {{ {HEAD} {before} ret; }}
.visible .entry sender(.param .u64 heap, .param .u64 peer) {{ {HEAD} {sender} ret; }}
.visible .entry receiver(.param .u64 heap, .param .u64 peer) {{ {HEAD} {receiver} ret; }}"
    );
    Module::new("puts.ptx", &source).map(Arc::new).map_err(|error| error.to_string())
}

const HEAD: &str = ".reg .b64 %heap, %data, %flag, %stage, %out, %w<8>; .reg .b32 %r<8>, %tid, %pe; .reg .pred %p<4>;
    .param .b64 p0; .param .b64 p1; .param .b64 p2; .param .b32 p3; .param .b32 r0;
    ld.param.u64 %heap, [heap]; mov.u32 %tid, %tid.x; setp.ne.u32 %p0, %tid, 0;
    mov.u64 %data, %heap; add.u64 %flag, %heap, 1024; add.u64 %stage, %heap, 2048; add.u64 %out, %heap, 3072;";

fn put(function: &str, to: &str, from: &str, bytes: u32, pe: i32) -> String {
    format!(
        "st.param.b64 [p0], {to}; st.param.b64 [p1], {from}; st.param.b64 [p2], {bytes}; st.param.b32 [p3], {pe};
        call.uni {function}, (p0, p1, p2, p3);"
    )
}

fn options(policy: Policy, seed: u64, race: bool, weak: bool) -> MachineOptions {
    let memory = MemoryOptions { race, weak: weak.then_some(seed), ..MemoryOptions::default() };
    let max_instructions = Some(1_000_000);
    MachineOptions { devices: 2, policy, seed, memory, max_instructions, ..MachineOptions::default() }
}

/// All policies with all seeds.
fn schedules() -> impl Iterator<Item = (Policy, u64)> {
    POLICIES.into_iter().flat_map(|policy| (0..SEEDS).map(move |seed| (policy, seed)))
}

/// The first word that the receiver has left at `%out`.
fn run(module: &Arc<Module>, options: MachineOptions, unit: Unit) -> Result<u32, RunError> {
    let mut machine = Machine::new(options);
    let heap = |device| {
        let address = machine.memory().allocate(Owner::Device(device), HEAP_BYTES, "heap").unwrap();
        machine.memory().fill(Thread::HOST, address, HEAP_BYTES, &[0]).unwrap();
        Heap { device, address }
    };
    let heaps: Vec<Heap> = [DeviceId(0), DeviceId(1)].map(heap).into();
    machine.provide(Box::new(Nvshmem::new(heaps.clone(), HEAP_BYTES, unit)));
    machine.memory().enable_peer(DeviceId(1), DeviceId(0));
    let kernels: [(&[&str], u32); 2] = [(&["before", "sender"], 32), (&["receiver"], 1)];
    for (pe, (kernels, threads)) in kernels.into_iter().enumerate() {
        let (heap, peer) = (heaps[pe], heaps[1 - pe]);
        let loaded = machine.load(heap.device, module)?;
        let stream = machine.stream(heap.device);
        for kernel in kernels {
            let kernel = machine.kernel(loaded, kernel).unwrap();
            let params = params(&[heap.address, peer.address], &[]);
            machine.launch(stream, &Launch::new(kernel, [1; 3], [threads, 1, 1], params)).unwrap();
        }
    }
    machine.run()?;
    let mut word = [0; 4];
    machine.memory().read(Thread::HOST, heaps[1].address + 3072, &mut word).unwrap();
    Ok(u32::from_le_bytes(word))
}

fn fault(error: RunError) -> Report {
    match error {
        RunError::Fault(report) => *report,
        other => panic!("no fault: {other}"),
    }
}

/// Thread 0 puts a word, and then another one as its flag.
fn two_puts(between: &str) -> (String, &'static str) {
    let (data, flag) = ("%data", "%flag");
    let (first, second) =
        (put("nvshmem_putmem_nbi", data, "%stage", 4, 1), put("nvshmem_putmem_nbi", flag, "%w0", 4, 1));
    let sender = format!(
        "@%p0 bra END; mov.u32 %r0, 42; add.u64 %w0, %stage, 64;
        st.global.u32 [%stage], %r0; st.global.u32 [%w0], %r0; {first} {between} {second} END:"
    );
    let receiver = "WAIT: ld.relaxed.sys.global.u32 %r0, [%flag]; setp.ne.u32 %p1, %r0, 42; @%p1 bra WAIT;
        fence.acq_rel.sys; ld.relaxed.sys.global.u32 %r1, [%data]; st.global.u32 [%out], %r1;";
    (sender, receiver)
}

#[test]
fn only_a_fence_orders_puts() {
    let (sender, receiver) = two_puts("call.uni nvshmem_fence;");
    let module = program(&sender, receiver).unwrap();
    for (policy, seed) in schedules() {
        for (race, weak) in [(false, false), (true, false), (false, true), (true, true)] {
            let found = run(&module, options(policy, seed, race, weak), Unit::B8);
            assert_eq!(found.unwrap_or_else(|error| panic!("{error}")), 42);
        }
    }
    let (sender, receiver) = two_puts("fence.acq_rel.sys;");
    let module = program(&sender, receiver).unwrap();
    for policy in POLICIES {
        let wrong = |&seed: &u64| run(&module, options(policy, seed, false, false), Unit::B8) == Ok(0);
        assert!((0..SEEDS).any(|seed| wrong(&seed)), "{policy:?}: always in order");
    }
}

/// Whoever hears of a put knows what precedes the sender's kernel, and of that kernel nothing, whatever it fences.
#[test]
fn a_put_tells_of_earlier_kernels_alone() {
    let store = "mov.u32 %r0, 42; st.global.u32 [%data], %r0;";
    let flag = format!(
        "@%p0 bra END; mov.u32 %r1, 1; st.global.u32 [%stage], %r1; {} END:",
        put("nvshmem_putmem_nbi", "%flag", "%stage", 4, 1)
    );
    let receiver = "WAIT: ld.acquire.sys.global.u32 %r0, [%flag]; setp.eq.u32 %p1, %r0, 0; @%p1 bra WAIT;
        ld.param.u64 %w0, [peer]; ld.global.u32 %r1, [%w0]; st.global.u32 [%out], %r1;";
    let sound = program_behind(&format!("@%p0 bra END; {store} END:"), &flag, receiver).unwrap();
    let planted =
        program(&format!("@%p0 bra OVER; {store} fence.acq_rel.sys; OVER: {flag}"), receiver).unwrap();
    for (policy, seed) in schedules() {
        assert_eq!(run(&sound, options(policy, seed, true, true), Unit::B8), Ok(42));
        let report = fault(run(&planted, options(policy, seed, true, false), Unit::B8).unwrap_err());
        assert!(
            matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })),
            "{report}"
        );
    }
}

/// A warp's put of 256 bytes, of which the receiver awaits each word.
fn long_put(behind: &str) -> Arc<Module> {
    let call = put("nvshmemx_putmem_nbi_warp", "%data", "%stage", 256, 1);
    let sender = format!(
        "mul.wide.u32 %w0, %tid, 8; add.u64 %w0, %w0, %stage; mov.u64 %w1, 0x0000000700000007;
        st.global.u64 [%w0], %w1; bar.warp.sync 0xffffffff; {call} {behind} mov.u64 %w1, 0x0000000900000009;
        st.global.u64 [%w0], %w1;"
    );
    let receiver = "mov.u32 %r3, 0; mov.u32 %r2, 0;
        NEXT: mul.wide.u32 %w0, %r2, 4; add.u64 %w0, %w0, %data;
        WAIT: ld.relaxed.sys.global.u32 %r0, [%w0]; setp.eq.u32 %p1, %r0, 0; @%p1 bra WAIT;
        max.u32 %r3, %r3, %r0; add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 64; @%p1 bra NEXT;
        st.global.u32 [%out], %r3;";
    program(&sender, receiver).unwrap()
}

#[test]
fn a_source_is_read_until_the_put_has_arrived() {
    let sound = long_put("call.uni nvshmem_quiet; bar.warp.sync 0xffffffff;");
    let planted = long_put("");
    for policy in POLICIES {
        for seed in 0..SEEDS {
            assert_eq!(run(&sound, options(policy, seed, true, true), Unit::B8), Ok(7));
        }
        let report = fault(run(&planted, options(policy, 1, true, false), Unit::B8).unwrap_err());
        assert!(
            matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })),
            "{report}"
        );
        let texts = [&report.place.text, &report.other.as_ref().unwrap().text];
        assert!(texts.iter().any(|text| text.contains("nvshmemx_putmem_nbi_warp")), "{report}");
        assert!(texts.iter().any(|text| text.starts_with("st.global.u64")), "{report}");
        // Without the race check, what arrives is wrong.
        let wrong = |seed| run(&planted, options(policy, seed, false, true), Unit::B8) == Ok(9);
        assert!((0..SEEDS).any(wrong), "{policy:?}");
    }
}

#[test]
fn cells_arrive_whole_unless_units_are_smaller() {
    let cell = put("nvshmem_putmem_nbi", "%data", "%stage", 8, 1);
    let sender =
        format!("@%p0 bra END; mov.u64 %w1, 0x0000000700000009; st.global.u64 [%stage], %w1; {cell} END:");
    let receiver = "WAIT: ld.relaxed.sys.global.u64 %w0, [%data]; mov.b64 {%r0, %r1}, %w0;
        setp.ne.u32 %p1, %r1, 7; @%p1 bra WAIT; st.global.u32 [%out], %r0;";
    let module = program(&sender, receiver).unwrap();
    for (policy, seed) in schedules() {
        assert_eq!(run(&module, options(policy, seed, true, true), Unit::B8), Ok(9));
    }
    for policy in POLICIES {
        let torn = |seed| run(&module, options(policy, seed, false, true), Unit::B4) == Ok(0);
        assert!((0..SEEDS).any(torn), "{policy:?}");
        let report = fault(run(&module, options(policy, 0, true, false), Unit::B4).unwrap_err());
        assert!(
            matches!(&report.cause, Cause::Memory(fault) if matches!(**fault, Fault::Race { .. })),
            "{report}"
        );
    }
}

#[test]
fn wrong_calls_name_their_line() {
    let wrong = |sender: &str, why: &str| {
        let module = program(sender, "").unwrap();
        let report = fault(run(&module, options(Policy::RoundRobin, 0, false, false), Unit::B8).unwrap_err());
        assert!(report.cause.to_string().contains(why), "{report}");
        assert!(report.place.text.starts_with("call.uni nvshmem"), "{report}");
    };
    let plain = |to, from, pe| format!("@%p0 bra END; {} END:", put("nvshmem_putmem_nbi", to, from, 64, pe));
    wrong(&plain("%data", "%stage", 2), "PE 2 is none of 2");
    wrong(&plain("%data", "%stage", -1), "PE -1 is none of 2");
    let beyond = format!("add.u64 %w0, %heap, 4040; {}", plain("%w0", "%stage", 1));
    wrong(&beyond, "the destination, 64 bytes at");
    wrong(&plain("%data", "0", 1), "the source, 64 bytes at 0x0, does not lie in the symmetric heap of PE 0");
    let own = format!("cvt.u64.u32 %w0, %tid; {}", put("nvshmemx_putmem_nbi_warp", "%data", "%w0", 0, 1));
    wrong(&own, "argument 1 is not the same in all lanes");
}

#[test]
fn a_warp_calls_together() {
    let call = put("nvshmemx_putmem_nbi_warp", "%data", "%stage", 64, 1);
    let module = program(
        &format!(
            "setp.lt.u32 %p1, %tid, 16; @!%p1 bra END; {call} bar.warp.sync 0xffff; WAIT: bra WAIT; END: bar.warp.sync 0xffff0000; LOOP: bra LOOP;"
        ),
        "",
    );
    let error = run(&module.unwrap(), options(Policy::RoundRobin, 0, false, false), Unit::B8).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("nvshmemx_putmem_nbi_warp") && text.contains("0xffff"), "{text}");
}

#[test]
fn what_nobody_provides_is_named() {
    let source = ".version 8.0\n.target sm_80\n.address_size 64
.extern .func nvshmem_barrier_all ();
.extern .func nvshmem_quiet (.param .b32 n);
.visible .entry a() {
  call.uni nvshmem_barrier_all;
  ret; }";
    let load = |source: &str, provide: bool| {
        let module = Arc::new(Module::new("open.ptx", source).unwrap());
        let mut machine = Machine::new(MachineOptions::default());
        if provide {
            machine.provide(Box::new(Nvshmem::new(Vec::new(), 0, Unit::B8)));
        }
        machine.load(DeviceId(0), &module).unwrap_err().to_string()
    };
    for provide in [false, true] {
        let error = load(source, provide);
        assert!(error.contains("open.ptx:7") && error.contains("`nvshmem_barrier_all`"), "{error}");
    }
    let other = source.replace(
        "call.uni nvshmem_barrier_all;",
        ".param .b32 n; st.param.b32 [n], 1; call.uni nvshmem_quiet, (n);",
    );
    let error = load(&other, true);
    assert!(error.contains("`nvshmem_quiet` is declared with other parameters"), "{error}");
}
