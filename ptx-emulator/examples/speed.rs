//! Thread-instructions per second of one core, on arithmetic, on shared memory and on a kernel of `ptx/`.
//!
//! `cargo run --release -p ptx-emulator --example speed`

use std::sync::Arc;
use std::time::Instant;

use ptx_emulator::memory::{DeviceId, Owner, Thread};
use ptx_emulator::{Launch, Machine, MachineOptions, Module};

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

const ARITHMETIC: &str = "
.visible .entry arithmetic(.param .u64 out, .param .u32 rounds) {
  .reg .pred %p; .reg .b32 %r<8>; .reg .f32 %f<8>; .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  ld.param.u32 %r1, [rounds];
  mov.u32 %r2, %tid.x;
  cvt.rn.f32.u32 %f1, %r2;
  mov.f32 %f2, 0f3F800001;
  mov.u32 %r3, 0;
LOOP:
  fma.rn.f32 %f1, %f1, %f2, 0f3DCCCCCD;
  mul.rn.f32 %f3, %f1, %f2;
  add.rn.f32 %f1, %f3, %f2;
  mad.lo.s32 %r2, %r2, 1664525, 1013904223;
  xor.b32 %r4, %r2, %r3;
  shl.b32 %r5, %r4, 3;
  add.s32 %r2, %r2, %r5;
  min.f32 %f1, %f1, 0f447A0000;
  add.s32 %r3, %r3, 1;
  setp.lt.u32 %p, %r3, %r1;
  @%p bra LOOP;
  mov.u32 %r6, %tid.x;
  mul.wide.u32 %rd2, %r6, 4;
  add.s64 %rd3, %rd1, %rd2;
  cvt.rn.f32.u32 %f4, %r2;
  add.rn.f32 %f1, %f1, %f4;
  st.global.f32 [%rd3], %f1;
  ret;
}";

const SHARED: &str = "
.visible .entry shared(.param .u64 out, .param .u32 rounds) {
  .shared .align 4 .b8 tile[1024];
  .reg .pred %p; .reg .b32 %r<12>; .reg .b64 %rd<4>;
  ld.param.u64 %rd1, [out];
  ld.param.u32 %r1, [rounds];
  mov.u32 %r2, %tid.x;
  mov.u32 %r3, tile;
  shl.b32 %r4, %r2, 2;
  add.s32 %r5, %r3, %r4;
  st.shared.u32 [%r5], %r2;
  xor.b32 %r6, %r4, 4;
  add.s32 %r6, %r6, %r3;
  mov.u32 %r7, 0;
LOOP:
  bar.sync 0;
  ld.shared.u32 %r8, [%r6];
  bar.sync 0;
  add.s32 %r8, %r8, 1;
  st.shared.u32 [%r5], %r8;
  add.s32 %r7, %r7, 1;
  setp.lt.u32 %p, %r7, %r1;
  @%p bra LOOP;
  mul.wide.u32 %rd2, %r2, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r8;
  ret;
}";

fn measure(name: &str, module: &Arc<Module>, kernel: &str, launch: impl Fn(&mut Machine) -> Launch) {
    let mut machine = Machine::new(MachineOptions::default());
    let loaded = machine.load(DeviceId(0), module).expect("room on the device");
    let stream = machine.stream(DeviceId(0));
    let id = machine.kernel(loaded, kernel).expect("the kernel of the module");
    let launch = Launch { kernel: id, ..launch(&mut machine) };
    machine.launch(stream, &launch).expect("a launch within limits");
    let start = Instant::now();
    machine.run().unwrap_or_else(|error| panic!("{error}"));
    let seconds = start.elapsed().as_secs_f64();
    let counters = machine.counters();
    let rate = counters.thread_instructions as f64 / seconds / 1e6;
    println!("{name:<28} {:>12} thread instructions  {rate:>8.0} M/s", counters.thread_instructions);
}

fn buffer(machine: &mut Machine, bytes: usize) -> u64 {
    let address =
        machine.memory().allocate(Owner::Device(DeviceId(0)), bytes as u64, "buffer").expect("room");
    machine.memory().write(Thread::HOST, address, &vec![0; bytes]).expect("in bounds");
    address
}

fn main() {
    let own = Arc::new(Module::new("speed.ptx", &format!("{HEAD}{ARITHMETIC}{SHARED}")).expect("own text"));
    for (kernel, rounds) in [("arithmetic", 20_000u32), ("shared", 4_000)] {
        measure(kernel, &own, kernel, |machine| {
            let mut params = buffer(machine, 1024).to_le_bytes().to_vec();
            params.extend(rounds.to_le_bytes());
            launch([4, 1, 1], [256, 1, 1], 0, params)
        });
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ptx/sm_80.ptx");
    let shipped =
        Arc::new(Module::new("sm_80.ptx", &std::fs::read_to_string(path).expect("ptx/")).expect("decodes"));
    measure("gemm 128x128x1024 (mma)", &shipped, "gemm_bf16_128x128_f32", |machine| {
        let (a, w, out) = (buffer(machine, 1 << 18), buffer(machine, 1 << 18), buffer(machine, 1 << 16));
        launch([1, 1, 1], [128, 1, 1], 96 << 10, gemm(&[a, w, out, 0], [128, 128, 1024]))
    });
    measure("gemv 512x1024", &shipped, "gemv_bf16_m1_f32", |machine| {
        let (a, w, out) = (buffer(machine, 1 << 11), buffer(machine, 1 << 20), buffer(machine, 1 << 11));
        launch([32, 1, 1], [256, 1, 1], 0, gemm(&[a, w, out, 0], [1, 512, 1024]))
    });
}

fn gemm(addresses: &[u64], [m, n, k]: [u32; 3]) -> Vec<u8> {
    let words = [m, n, k, k, n, 0];
    let addresses = addresses.iter().flat_map(|address| address.to_le_bytes());
    addresses.chain(words.iter().flat_map(|word| word.to_le_bytes())).collect()
}

fn launch(grid: [u32; 3], block: [u32; 3], dynamic_shared_bytes: u32, params: Vec<u8>) -> Launch {
    Launch {
        kernel: ptx_emulator::KernelId::default(),
        grid,
        block,
        dynamic_shared_bytes,
        params,
        programmatic: false,
    }
}
