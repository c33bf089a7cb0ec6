//! Thread instructions per second of one core: arithmetic, streaming, a reduction in shared memory, tensor cores;
//! with the standing checks, with the race detector, and with weak memory.
//!
//! `cargo bench -p ptx-emulator`; Criterion's `elem/s` are thread instructions per second.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ptx_emulator::memory::{DeviceId, MemoryOptions, Owner, Thread};
use ptx_emulator::{Launch, Machine, MachineOptions, Module};

const THREADS: u32 = 256;

/// Kernels, with rounds that make about a million thread instructions.
const KERNELS: [(&str, u32); 4] =
    [("arithmetic", 400), ("streaming", 400), ("reduction", 40), ("tensor", 400)];

/// A mode of memory, and by how much rounds are cut where it is slow.
fn modes() -> [(&'static str, MemoryOptions, u32); 4] {
    let checked = MemoryOptions::default();
    [
        ("checked", checked, 1),
        ("race", MemoryOptions { race: true, ..checked }, 4),
        ("weak", MemoryOptions { weak: Some(1), ..checked }, 4),
        ("race+weak", MemoryOptions { race: true, weak: Some(1), ..checked }, 4),
    ]
}

/// A machine with one block of a kernel about to run.
fn machine(module: &Arc<Module>, kernel: &str, rounds: u32, memory: MemoryOptions) -> Machine {
    let mut machine = Machine::new(MachineOptions { memory, ..MachineOptions::default() });
    let loaded = machine.load(DeviceId(0), module).expect("room for the module");
    let bytes = 16 * THREADS as usize * rounds as usize;
    let data = machine.memory().allocate(Owner::Device(DeviceId(0)), bytes as u64, "data").expect("room");
    machine.memory().write(Thread::HOST, data, &vec![0; bytes]).expect("in bounds");
    let stream = machine.stream(DeviceId(0));
    let mut params = data.to_le_bytes().to_vec();
    params.extend(rounds.to_le_bytes());
    let launch = Launch::new(
        machine.kernel(loaded, kernel).expect("a kernel of the file"),
        [1, 1, 1],
        [THREADS, 1, 1],
        params,
    );
    machine.launch(stream, &launch).expect("a launch within limits");
    machine
}

fn run(mut machine: Machine) -> Machine {
    machine.run().unwrap_or_else(|error| panic!("{error}"));
    machine
}

fn throughput(criterion: &mut Criterion) {
    let module = Module::new("kernels.ptx", include_str!("kernels.ptx"));
    let module = Arc::new(module.unwrap_or_else(|error| panic!("{error}")));
    let mut group = criterion.benchmark_group("thread instructions");
    for (kernel, rounds) in KERNELS {
        for (mode, memory, cut) in modes() {
            let setup = || machine(&module, kernel, rounds / cut, memory);
            let instructions = run(setup()).counters().thread_instructions;
            group.throughput(Throughput::Elements(instructions));
            group.bench_function(BenchmarkId::new(kernel, mode), |bencher| {
                bencher.iter_batched(setup, |machine| black_box(run(machine)), BatchSize::LargeInput);
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = throughput
}
criterion_main!(benches);
