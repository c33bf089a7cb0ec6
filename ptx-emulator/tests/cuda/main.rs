//! PTX that we did not write: CUDA C++ of this folder, compiled by nvcc, against arithmetic of the CPU.
//!
//! Every sample runs as Ampere and as Hopper code, optimised and as for a debugger, each under another schedule,
//! with races looked for and memory weak.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../common/mod.rs"]
mod common;

mod atomics;
mod copies;
mod language;
mod math;
mod sums;
mod tensor;
mod tiles;
mod toolkit;
mod warps;

use bytemuck::{AnyBitPattern, NoUninit};
use common::Rig;
use ptx_emulator::memory::MemoryOptions;
use ptx_emulator::{MachineOptions, Policy, RunError};

/// A machine with one variant of a sample on it.
struct Sample {
    rig: Rig,
    /// For messages.
    variant: &'static str,
}

/// Runs `test` on every variant of `source` for at least the architecture `least`, or says why it skips.
fn each_variant(source: &'static str, least: u32, test: impl Fn(&mut Sample)) {
    let nvcc = match toolkit::nvcc() {
        Ok(nvcc) => nvcc,
        Err(reason) if std::env::var_os("CI").is_some() => panic!("nvcc cannot be had: {reason}"),
        Err(reason) => return eprintln!("{source}: skipped, nvcc cannot be had: {reason}"),
    };
    for (index, variant) in toolkit::VARIANTS.iter().enumerate().filter(|(_, variant)| variant.sm >= least) {
        let module = toolkit::module(nvcc, source, variant);
        let seed = index as u64;
        let options = MachineOptions {
            policy: [Policy::RoundRobin, Policy::Random, Policy::Adversarial][index],
            seed,
            memory: MemoryOptions { race: true, weak: Some(seed), check_initialised: !variant.debug },
            // Code for a debugger copies empty objects and sets bits of new ones, which nobody wrote.
            check_registers: !variant.debug,
            max_instructions: Some(100_000_000),
            ..MachineOptions::default()
        };
        test(&mut Sample { rig: Rig::new(&module, options), variant: variant.name });
    }
}

impl Sample {
    fn upload<T: NoUninit>(&mut self, values: &[T], name: &str) -> u64 {
        self.rig.upload(bytemuck::cast_slice(values), name)
    }

    /// Memory for `count` values that nobody has written.
    fn room<T>(&mut self, count: usize, name: &str) -> u64 {
        self.rig.empty((count * size_of::<T>()) as u64, name)
    }

    fn download<T: AnyBitPattern>(&mut self, address: u64, count: usize) -> Vec<T> {
        let bytes = self.rig.download(address, count * size_of::<T>());
        bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }

    fn try_run(
        &mut self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        params: Params,
    ) -> Result<(), RunError> {
        self.rig.run(kernel, grid, block, 0, &params.0)
    }

    fn run(&mut self, kernel: &str, grid: [u32; 3], block: [u32; 3], params: Params) {
        let variant = self.variant;
        let done = self.try_run(kernel, grid, block, params);
        done.unwrap_or_else(|error| panic!("{kernel}, {variant}: {error}"));
    }

    /// Compares and names the kernel and variant.
    fn assert_equal<T: PartialEq + std::fmt::Debug>(&self, kernel: &str, found: &[T], expected: &[T]) {
        assert_eq!(found.len(), expected.len());
        if let Some(index) = (0..found.len()).find(|&index| found[index] != expected[index]) {
            let (found, expected) = (&found[index], &expected[index]);
            panic!("{kernel}, {}: element {index} is {found:?}, not {expected:?}", self.variant);
        }
    }
}

/// Parameters of a kernel, each at a multiple of its alignment.
#[derive(Default)]
struct Params(Vec<u8>);

impl Params {
    fn and<T: NoUninit>(mut self, value: T) -> Self {
        self.0.resize(self.0.len().next_multiple_of(align_of::<T>()), 0);
        self.0.extend_from_slice(bytemuck::bytes_of(&value));
        self
    }
}

/// Addresses first, as most kernels take them.
fn addresses<const N: usize>(addresses: [u64; N]) -> Params {
    addresses.into_iter().fold(Params::default(), Params::and)
}

/// SplitMix64, for inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) >> 7
    }

    fn below(&mut self, bound: u32) -> u32 {
        (self.next() % u64::from(bound)) as u32
    }

    /// Between `-bound` and `bound`.
    fn within(&mut self, bound: f64) -> f64 {
        bound * (self.below(1 << 24) as f64 / f64::from(1 << 23) - 1.0)
    }

    fn many<T>(&mut self, count: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..count).map(|_| make(self)).collect()
    }
}
