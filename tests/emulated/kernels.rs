//! The shipped kernels: all of them, and one of each kind under race check in every order.

use fewsync::driver::{Device, EmulatorOptions, Schedule};
use fewsync::kernels::{NVSHMEM_PTX, PTX};
use fewsync::selftest::record::{Recording, StoredKernel};
use fewsync::selftest::{self, Extent, Plan};

/// One of each kind: counters left for the next launch, shared memory, asynchronous copies, tensor cores, paging,
/// products of warpgroups in clusters and between warps with roles, that hand registers to each other.
const KINDS: [&str; 9] = [
    "argmax",
    "add_rmsnorm",
    "gemv_bf16_m8_f32",
    "gemm_bf16_16x32_add",
    "attn_decode_bf16_d64",
    "attn_prefill_bf16_d64",
    "rope",
    "wgmma_bf16_32x128_add",
    "wgmma_bf16_128x128_add",
];

#[test]
fn every_kernel_of_every_file_computes_what_it_should() {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let open = || Ok(Device::emulated(&EmulatorOptions::default()).swap_remove(0));
    for ptx in &PTX {
        let plan = Plan { prefix: "", extent: Extent::Small, workers, recording: None };
        let outcomes = selftest::run(&open, ptx, plan, |_| ()).unwrap();
        let names: Vec<_> = outcomes.iter().map(|outcome| outcome.kernel).collect();
        let files = PTX.iter().chain(&NVSHMEM_PTX).filter(|file| file.arch == ptx.arch);
        let shipped: Vec<_> = files.flat_map(|file| file.entries).map(|entry| entry.name).collect();
        assert_eq!(names, shipped);
        for outcome in outcomes {
            assert_eq!(outcome.failures, [""; 0], "{} of {}", outcome.kernel, ptx.arch);
        }
    }
}

fn plan(prefix: &str) -> Plan<'_> {
    Plan { prefix, extent: Extent::Smallest, workers: 1, recording: None }
}

#[test]
fn no_order_of_warps_reveals_a_race() {
    for (schedule, ptx) in Schedule::ALL.into_iter().zip(PTX.iter().cycle()) {
        let options = EmulatorOptions { schedule, race: true, seed: 7, ..EmulatorOptions::default() };
        for kind in KINDS {
            let open = || Ok(Device::emulated(&options).swap_remove(0));
            for outcome in selftest::run(&open, ptx, plan(kind), |_| ()).unwrap() {
                assert_eq!(outcome.failures, [""; 0], "{} of {} with {options}", outcome.kernel, ptx.arch);
                assert!(outcome.shapes > 0);
            }
        }
    }
}

#[test]
fn a_recorded_run_is_the_same_again_whatever_the_schedule() {
    let ptx = &PTX[0];
    let run = |schedule, recording: Option<&Recording>| {
        let options = EmulatorOptions { schedule, ..EmulatorOptions::default() };
        let open = || Ok(Device::emulated(&options).swap_remove(0));
        selftest::run(&open, ptx, Plan { recording, ..plan("rmsnorm") }, |_| ()).unwrap()
    };
    let kernels = run(Schedule::RoundRobin, None).into_iter();
    let kernels = kernels.map(|it| StoredKernel::new(it.kernel, it.arch, it.outputs)).collect();
    let recording = Recording { device: "emulate".into(), driver: "here".into(), kernels };
    for outcome in run(Schedule::Random, Some(&recording)) {
        assert_eq!(outcome.failures, [""; 0]);
        let agreement = outcome.agreement.unwrap();
        assert!(agreement.outputs > 0 && agreement.identical == agreement.outputs, "{agreement:?}");
    }
}
