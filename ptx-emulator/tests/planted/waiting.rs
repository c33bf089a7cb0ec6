//! Barriers, mbarriers and spins that wait for what does not come.

use std::sync::Arc;

use ptx_emulator::memory::Fault;
use ptx_emulator::{Cause, Deadlock, DeviceOptions, MachineOptions, Module, RunError};

use crate::common::{Rig, params};
use crate::memory::assert_race;
use crate::{Mode, Plant, fault, memory_fault, run_block};

fn deadlock(error: &RunError) -> &Deadlock {
    match error {
        RunError::Deadlock(deadlock) => deadlock,
        other => panic!("no deadlock: {other}"),
    }
}

#[test]
fn a_barrier_in_a_divergent_branch() {
    let plant = Plant::new("divergent_barrier");
    let run = |module: &_, options| run_block(module, options, 32, &[("out", 4, Some(0))], &[]);
    plant.is_sound(3, run, |_| {});
    for error in plant.reports(Mode::Plain, run) {
        let report = fault(&error);
        assert!(matches!(report.cause, Cause::Divergent { .. }), "{error}");
        assert_eq!(report.place.text, "bar.sync 0", "{error}");
    }
}

fn run_bulk(module: &Arc<Module>, options: MachineOptions) -> Result<Vec<u32>, RunError> {
    run_block(module, options, 128, &[("from", 512, Some(0)), ("out", 512, None)], &[])
}

#[test]
fn a_wait_for_the_wrong_parity() {
    let plant = Plant::new("wrong_parity");
    plant.is_sound(50, run_bulk, |found| assert_eq!(found, (0..128).collect::<Vec<_>>()));
    for error in plant.reports(Mode::Race, run_bulk) {
        // What is not there yet, or what nothing orders: whichever comes first.
        match memory_fault(&error) {
            Fault::Uninitialised { .. } => {
                assert!(fault(&error).place.text.starts_with("ld.shared"), "{error}")
            }
            _ => assert_race(&error, ["ld.shared.u32 %r6", "cp.async.bulk"]),
        }
    }
}

#[test]
fn bytes_that_an_mbarrier_expects_and_nobody_brings() {
    let plant = Plant::new("lost_bytes");
    plant.is_sound(50, run_bulk, |found| assert_eq!(found, (0..128).collect::<Vec<_>>()));
    for error in plant.reports(Mode::Plain, run_bulk) {
        let deadlock = deadlock(&error);
        assert!(
            deadlock.waiters.iter().all(
                |waiter| waiter.place.text.contains("try_wait") || waiter.place.text.contains("bra WAIT")
            ),
            "{error}"
        );
        assert!(error.to_string().contains("0 arrivals and 16 bytes are missing"), "{error}");
    }
}

#[test]
fn a_grid_that_waits_for_a_block_that_is_not_resident() {
    let plant = Plant::new("grid_barrier");
    let run = |blocks: u32, mut options: MachineOptions| -> Result<u32, RunError> {
        options.device = DeviceOptions { max_resident_blocks: 4, ..DeviceOptions::default() };
        let mut rig = Rig::new(&plant.sound, options);
        let counter = rig.upload(&[0; 4], "counter");
        rig.run("k", [blocks, 1, 1], [1, 1, 1], 0, &params(&[counter], &[]))?;
        Ok(rig.words(counter, 1)[0])
    };
    plant.is_sound(50, |_, options| run(4, options), |found| assert_eq!(found, 4));
    for error in plant.reports(Mode::Plain, |_, options| run(5, options)) {
        let deadlock = deadlock(&error);
        let mut blocks: Vec<u32> = deadlock.waiters.iter().map(|waiter| waiter.place.block[0]).collect();
        blocks.sort_unstable();
        assert_eq!(blocks, [0, 1, 2, 3], "{error}");
        assert!(error.to_string().contains("spins"), "{error}");
    }
}

#[test]
fn blocks_that_wait_for_each_other() {
    let plant = Plant::new("crossed_flags");
    let run = |module: &Arc<Module>, options| -> Result<Vec<u32>, RunError> {
        let mut rig = Rig::new(module, options);
        let flags = rig.upload(&[0; 8], "flags");
        rig.run("k", [2, 1, 1], [1, 1, 1], 0, &params(&[flags], &[]))?;
        Ok(rig.words(flags, 2))
    };
    plant.is_sound(50, run, |found| assert_eq!(found, [1, 1]));
    for mode in [Mode::Plain, Mode::RaceAndWeak] {
        for error in plant.reports(mode, run) {
            let deadlock = deadlock(&error);
            assert_eq!((deadlock.waiters.len(), deadlock.more), (2, 0), "{error}");
            assert_ne!(deadlock.waiters[0].place.block, deadlock.waiters[1].place.block, "{error}");
            let spins = |waiter: &ptx_emulator::Waiter| waiter.waits_for.contains("spins");
            assert!(deadlock.waiters.iter().all(spins), "{error}");
        }
    }
}
