//! Text that is not right is refused with its line: nothing panics, and nothing is taken for something else.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Rig, params};
use ptx_emulator::memory::{DeviceId, Fault, Owner, Thread};
use ptx_emulator::{Machine, MachineOptions, Module, RunError};

const HEAD: &str = ".version 8.0\n.target sm_90\n.address_size 64\n";
const REGISTERS: &str = ".reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<4>; .reg .b64 %rd<16>;";

fn error(source: &str) -> String {
    Module::new("k.ptx", &format!("{HEAD}{source}")).unwrap_err().to_string()
}

#[test]
fn operands_of_another_width_are_refused() {
    for instruction in [
        "shfl.sync.bfly.b32 %r1, %rd9, 1, 31, -1;",
        "redux.sync.add.u32 %r1, %rd9, -1;",
        "activemask.b32 %rd9;",
        "barrier.red.and.pred %rd9, 0, %p1;",
        "isspacep.global %rd9, %rd1;",
        "mbarrier.test_wait.shared.b64 %rd9, [%r1], %rd2;",
        "ld.global.u8 %p1, [%rd1];",
        "atom.global.add.u64 %r1, [%rd1], %rd2;",
        "atom.global.add.u64 %rd2, [%rd1], %r2;",
        "atom.global.cas.b64 %rd2, [%rd1], %rd3, %r2;",
        "add.b32 %r1, %r2, %r3;",
        "neg.u32 %r1, %r2;",
        "and.u32 %r1, %r2, %r3;",
        "and.pred %p1, !%p2, %p3;",
        "cp.async.ca.shared.global [%r1], [%rd1], 4294967300;",
    ] {
        let kernel = format!(".entry k() {{ {REGISTERS}\n{instruction}\nret; }}");
        let error = error(&kernel);
        assert!(error.starts_with("k.ptx:5:"), "{instruction} {error}");
    }
}

#[test]
fn what_is_not_executed_is_refused_by_its_name() {
    let mma = |name: &str, types: &str, a: &str| {
        format!(
            "mma{name}.sync.aligned.{types} {{%r0, %r1, %r2, %r3}}, {a}, {{%r0, %r1}}, {{%r0, %r1, %r2, %r3}};"
        )
    };
    let tensor = |form: &str, at: &str| {
        format!("cp.async.bulk.tensor.{form}.mbarrier::complete_tx::bytes [%r1], [%rd1, {{{at}}}], [%r2];")
    };
    let (two, four) = ("{%r0, %r1}", "{%r0, %r1, %r2, %r3}");
    for (instruction, name) in [
        (mma(".sp", "m16n8k16.row.col.f32.f16.f16.f32", two).replace("};", "}, %r0, 0x0;"), "`.sp`"),
        (mma("", "m16n8k32.row.col.f32.e4m3.e4m3.f32", four), "`.e4m3`"),
        (mma("", "m16n8k64.row.col.s32.s4.b1.s32", four), "form"),
        (mma("", "m16n8k256.row.col.s32.b1.b1.s32.xor.popc.satfinite", four), "form"),
        ("cvt.rn.e4m3x2.f32 %h1, %r1, %r2;".to_owned(), "form"),
        ("cvt.rz.satfinite.e4m3x2.f32 %h1, %r1, %r2;".to_owned(), "form"),
        ("cvt.rn.satfinite.f16x2.e5m2x2 %r1, %h1;".to_owned(), "form"),
        ("ld.global.b128 %q1, [%rd1];".to_owned(), "form"),
        ("atom.global.add.b128 %q1, [%rd1], %q2;".to_owned(), "form"),
        ("atom.global.exch.b128 %rd1, [%rd1], %q2;".to_owned(), "a register of 128 bits"),
        ("mov.b64 %rd1, %q1;".to_owned(), "`%q1`"),
        ("fence.proxy.tensormap::generic.release.gpu;".to_owned(), "`.tensormap::generic`"),
        ("fence.mbarrier_init.release.gpu;".to_owned(), "form"),
        ("fence.mbarrier_init.acq_rel.cluster;".to_owned(), "`.acq_rel`"),
        (tensor("2d.shared::cluster.global.im2col", "%r1, %r2"), "`.im2col`"),
        (tensor("2d.shared::cluster.global.tile", "%r1"), "1 elements where 2 belong"),
        (tensor("1d.shared::cluster.global.tile", "%rd1"), "as wide as the type"),
        (tensor("1d.global.shared::cta.tile", "%r1"), "form"),
        (tensor("1d.shared::cluster.global.tile.multicast::cluster", "%r1"), "multicast"),
        ("call elsewhere, (%r1);".to_owned(), "`elsewhere` is neither defined nor declared"),
    ] {
        let kernel = format!(".entry k() {{ .reg .b128 %q<4>; {REGISTERS}\n{instruction}\nret; }}");
        let error = error(&kernel);
        assert!(error.starts_with("k.ptx:5:") && error.contains(name), "{instruction} {error}");
    }
}

#[test]
fn declarations_that_cannot_be_are_refused() {
    for (declaration, message) in [
        (".global .b64 a; .global .b64 t[1] = {a, a, a};", "24 bytes, the variable 8"),
        (".global .b32 t[1] = {1, 2};", "8 bytes, the variable 4"),
        (".global .b64 a; .global .b32 t[2] = {a, 1};", "does not fit an element of 4"),
        (".shared .b64 t = 1;", "expected `;`"),
        (".extern .global .b32 elsewhere;", "defined in another file"),
        (".shared .b8 x[4294967312];", "a variable of at most"),
        (".global .b8 x[35184372088832];", "a variable of at most"),
        (".global .b8 x[4294967296][4294967296];", "a variable of at most"),
        (".global .align 4294967300 .b8 x[16];", "an alignment of at most"),
        (".global .align 3 .b8 x[16];", "a power of two"),
        (".entry f() { .reg .b32 %r<4000000000>; ret; }", "a number of registers of at most"),
        (".entry f() { .reg .b32 %a<200000>; .reg .b64 %b<200000>; ret; }", "400000 registers, more than"),
        (".entry f() { .local .b8 x[600000000]; ret; }", "bytes of local memory, more than"),
        (".entry f() .maxntid 4294967300, 1, 1 { ret; }", "of at most 4294967295"),
        ("/* no end\n.entry f() { ret; }", "a comment that ends with `*/`"),
    ] {
        let error = error(declaration);
        assert!(error.starts_with("k.ptx:4:") && error.contains(message), "{declaration}: {error}");
    }
    // A declaration beside the definition is none of those.
    Module::new("k.ptx", &format!("{HEAD}.extern .global .b32 x; .global .b32 x = 1;")).unwrap();
    // Each is small enough, all together are not: the launch is refused.
    let many: String = (0..8).map(|n| format!(".shared .b8 x{n}[1000000000]; ")).collect();
    let uses: String = (0..8).map(|n| format!("mov.u32 %r, x{n}; ")).collect();
    let module = Module::new("k.ptx", &format!("{HEAD}.entry k() {{ {many} .reg .b32 %r; {uses} ret; }}"));
    assert_eq!(module.unwrap().kernels()[0].static_shared_bytes(), u32::MAX);
}

#[test]
fn nesting_ends() {
    for body in ["{".repeat(200_000), format!("%r1{}", "|%r1".repeat(200_000)), "(".repeat(200_000)] {
        let text = format!(".entry k() {{ {REGISTERS} mov.b32 {body}; ret; }}");
        assert!(error(&text).contains("less nesting"));
    }
    assert!(error(&format!(".global .b32 x = {};", "{".repeat(200_000))).contains("less nesting"));
}

#[test]
fn calls_have_the_arguments_of_their_function() {
    let call = |call: &str| {
        format!(
            ".func (.param .b32 out) f(.param .b32 a) {{ .reg .b32 %r; ld.param.b32 %r, [a];
             st.param.b32 [out], %r; ret; }}
             .entry k() {{ .param .b32 a; .param .b64 wide; .param .b32 out; {call} ret; }}"
        )
    };
    for wrong in
        ["call (out), f, (a, a);", "call (out), f;", "call (out), f, (wide);", "call (out, a), f, (a);"]
    {
        assert!(error(&call(wrong)).contains("those of function `f`"), "{wrong}");
    }
    for right in ["call (out), f, (a);", "call f, (a);"] {
        Module::new("k.ptx", &format!("{HEAD}{}", call(right))).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn printed_text_may_be_anything() {
    for format in ["100 % \u{e9}", "%", "%\u{e9}", "%100000.70000f|", "%-99999d|", "%099999d|"] {
        let bytes: Vec<String> = format.bytes().chain([0]).map(|byte| byte.to_string()).collect();
        let source = format!(
            ".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
            .global .b8 text[{}] = {{{}}};
            .visible .entry k() {{
              .local .align 8 .b8 values[8]; .reg .b64 %rd<4>;
              mov.u64 %rd1, text; cvta.global.u64 %rd1, %rd1;
              mov.u64 %rd2, values; cvta.local.u64 %rd2, %rd2; st.local.u64 [values], 0;
              {{ .param .b64 a; .param .b64 b; .param .b32 r; st.param.b64 [a], %rd1; st.param.b64 [b], %rd2;
                 call (r), vprintf, (a, b); }}
              ret;
            }}",
            bytes.len(),
            bytes.join(", ")
        );
        let mut rig = Rig::of(&source, MachineOptions::default());
        rig.run("k", [1; 3], [1; 3], 0, &params(&[], &[])).unwrap_or_else(|error| panic!("{error}"));
        assert!(rig.machine.take_output().len() < 10_000);
    }
}

#[test]
fn requests_beyond_the_machine_are_errors() {
    let mut machine = Machine::new(MachineOptions::default());
    let owner = Owner::Device(DeviceId(0));
    for bytes in [40 << 40, u64::MAX] {
        let fault = machine.memory().allocate(owner, bytes, "all").unwrap_err();
        assert!(matches!(*fault, Fault::TooLarge { .. }), "{fault}");
    }
    let at = machine.memory().allocate(owner, 16, "x").unwrap();
    let fault = machine.memory().fill(Thread::HOST, at, 16, &[]).unwrap_err();
    assert!(matches!(*fault, Fault::EmptyPattern { .. }), "{fault}");
    let module = Arc::new(Module::new("k.ptx", HEAD).unwrap());
    assert!(matches!(machine.load(DeviceId(1), &module), Err(RunError::NoDevice { device: 1, devices: 1 })));
    let stream = machine.stream(DeviceId(0));
    machine.copy(stream, at, at, u64::MAX);
    assert!(matches!(machine.run(), Err(RunError::Memory(_))));
}
