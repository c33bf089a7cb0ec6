//! Faults planted into small kernels: each is found and reported, and its sound twin passes.
//!
//! A file of this folder is the sound kernel. In the planted one, lines that end in `//-` are missing and those
//! that begin with `//+` are there.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../common/mod.rs"]
mod common;

mod memory;
mod messages;
mod proxies;
mod waiting;

use std::sync::Arc;

use common::Rig;
use ptx_emulator::memory::MemoryOptions;
use ptx_emulator::{Cause, MachineOptions, Module, Policy, Report, RunError};

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

/// A kernel with and without its fault.
struct Plant {
    sound: Arc<Module>,
    planted: Arc<Module>,
}

impl Plant {
    fn new(name: &str) -> Self {
        let path = format!("{}/tests/planted/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let module = |text: &str| {
            let module = Module::new(&format!("{name}.ptx"), text);
            Arc::new(module.unwrap_or_else(|error| panic!("{error}")))
        };
        let planted = |line: &str| {
            let line = if line.trim_end().ends_with("//-") { "" } else { line };
            line.replacen("//+", "", 1)
        };
        let lines: Vec<String> = text.lines().map(planted).collect();
        Self { sound: module(&text), planted: module(&lines.join("\n")) }
    }

    /// Runs the sound kernel under every schedule, suspiciously: `test` judges what `run` gave.
    fn is_sound<T>(
        &self,
        seeds: u64,
        run: impl Fn(&Arc<Module>, MachineOptions) -> Result<T, RunError>,
        test: impl Fn(T),
    ) {
        for (policy, seed) in
            POLICIES.into_iter().flat_map(|policy| (0..seeds).map(move |seed| (policy, seed)))
        {
            match run(&self.sound, options(policy, seed, Mode::RaceAndWeak)) {
                Ok(result) => test(result),
                Err(error) => panic!("the sound kernel fails: {error}"),
            }
        }
    }

    /// The report of the planted kernel under every schedule, in a mode.
    fn reports<T: std::fmt::Debug>(
        &self,
        mode: Mode,
        run: impl Fn(&Arc<Module>, MachineOptions) -> Result<T, RunError>,
    ) -> Vec<RunError> {
        let found = POLICIES.map(|policy| run(&self.planted, options(policy, 1, mode)).unwrap_err());
        found.into()
    }
}

/// What memory does besides the checks that are always on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Race,
    Weak,
    RaceAndWeak,
}

fn options(policy: Policy, seed: u64, mode: Mode) -> MachineOptions {
    let race = matches!(mode, Mode::Race | Mode::RaceAndWeak);
    let weak = matches!(mode, Mode::Weak | Mode::RaceAndWeak).then_some(seed);
    MachineOptions {
        devices: 2,
        memory: MemoryOptions { race, weak, check_initialised: true },
        policy,
        seed,
        max_instructions: Some(2_000_000),
        ..MachineOptions::default()
    }
}

fn fault(error: &RunError) -> &Report {
    match error {
        RunError::Fault(report) => report,
        other => panic!("not a fault: {other}"),
    }
}

/// The fault of memory in a report.
fn memory_fault(error: &RunError) -> &ptx_emulator::memory::Fault {
    match &fault(error).cause {
        Cause::Memory(fault) => fault,
        other => panic!("not a fault of memory: {other}"),
    }
}

/// One block of `threads` of the only kernel: `buffers` are uploaded (`None`: left unwritten) and passed, then
/// `words`. Returns the words of the last buffer.
fn run_block(
    module: &Arc<Module>,
    options: MachineOptions,
    threads: u32,
    buffers: &[(&str, u64, Option<u32>)],
    words: &[u32],
) -> Result<Vec<u32>, RunError> {
    let mut rig = Rig::new(module, options);
    let mut addresses = Vec::new();
    for &(name, bytes, first) in buffers {
        addresses.push(match first {
            None => rig.empty(bytes, name),
            Some(first) => {
                let data: Vec<u8> = (first..).flat_map(u32::to_le_bytes).take(bytes as usize).collect();
                rig.upload(&data, name)
            }
        });
    }
    rig.run("k", [1, 1, 1], [threads, 1, 1], 0, &common::params(&addresses, words))?;
    let (_, bytes, _) = buffers.last().unwrap();
    Ok(rig.words(*addresses.last().unwrap(), *bytes as usize / 4))
}
