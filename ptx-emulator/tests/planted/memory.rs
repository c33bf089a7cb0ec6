//! Bounds, alignment, initialisation, lifetime, and accesses that nothing orders within a device.

use ptx_emulator::memory::{AccessKind, Fault, Owner};
use ptx_emulator::{Cause, RunError};

use crate::common::{Rig, params};
use crate::{Mode, Plant, fault, memory_fault, run_block};

#[test]
fn out_of_bounds_by_one_in_global_memory() {
    let plant = Plant::new("bounds_global");
    let run = |module: &_, options| run_block(module, options, 96, &[("out", 256, None)], &[64]);
    plant.is_sound(3, run, |found| assert_eq!(found, (0..64).collect::<Vec<_>>()));
    for error in plant.reports(Mode::Plain, run) {
        let Fault::OutOfBounds { allocation, offset, access } = memory_fault(&error) else {
            panic!("{error}")
        };
        assert_eq!((allocation.name.as_str(), *offset, access.kind), ("out", 256, AccessKind::Store));
        let report = fault(&error);
        assert_eq!(report.place.thread, [64, 0, 0]);
        assert_eq!(report.place.text, "st.global.u32 [%rd3], %r2");
        assert!(error.to_string().contains("bounds_global.ptx:16: `st.global.u32"), "{error}");
    }
}

#[test]
fn out_of_bounds_by_one_in_shared_memory() {
    let plant = Plant::new("bounds_shared");
    let run = |module: &_, options| run_block(module, options, 64, &[("out", 256, None)], &[]);
    plant.is_sound(3, run, |found| assert_eq!(found[..3], [1, 2, 3]));
    for error in plant.reports(Mode::Plain, run) {
        let Fault::OutOfBounds { allocation, offset, .. } = memory_fault(&error) else { panic!("{error}") };
        assert_eq!((allocation.owner, allocation.bytes, *offset), (Owner::Shared, 256, 256));
        assert_eq!(fault(&error).place.thread, [63, 0, 0], "{error}");
    }
}

#[test]
fn out_of_bounds_by_one_in_local_memory() {
    let plant = Plant::new("bounds_local");
    let run = |module: &_, options| run_block(module, options, 1, &[("out", 4, None)], &[]);
    plant.is_sound(3, run, |found| assert_eq!(found, [7]));
    for error in plant.reports(Mode::Plain, run) {
        assert_eq!(fault(&error).cause, Cause::PrivateBounds { offset: 32, bytes: 4, size: 32 }, "{error}");
    }
}

#[test]
fn a_vector_beside_its_alignment() {
    let plant = Plant::new("misaligned_vector");
    let run =
        |module: &_, options| run_block(module, options, 1, &[("data", 64, Some(5)), ("out", 4, None)], &[]);
    plant.is_sound(3, run, |found| assert_eq!(found, [9]));
    for error in plant.reports(Mode::Plain, run) {
        assert!(matches!(fault(&error).cause, Cause::Misaligned { bytes: 16, .. }), "{error}");
    }
}

#[test]
fn shared_memory_that_nobody_wrote() {
    let plant = Plant::new("uninitialised_shared");
    let run = |module: &_, options| run_block(module, options, 64, &[("out", 256, None)], &[]);
    plant.is_sound(3, run, |found| assert_eq!(found, [0; 64]));
    for error in plant.reports(Mode::Plain, run) {
        let Fault::Uninitialised { allocation, offset, .. } = memory_fault(&error) else { panic!("{error}") };
        assert_eq!((allocation.owner, *offset), (Owner::Shared, 2), "{error}");
    }
}

#[test]
fn global_memory_that_nobody_wrote() {
    let plant = Plant::new("uninitialised_global");
    let run = |module: &_, options| run_block(module, options, 64, &[("out", 4, None)], &[]);
    plant.is_sound(3, run, |found| assert_eq!(found, [63 * 64 / 2]));
    for error in plant.reports(Mode::Plain, run) {
        let Fault::Uninitialised { allocation, offset, .. } = memory_fault(&error) else { panic!("{error}") };
        assert_eq!((allocation.name.as_str(), *offset), ("out", 0), "{error}");
        assert!(fault(&error).place.text.starts_with("red."), "{error}");
    }
}

#[test]
fn memory_that_was_freed() {
    let plant = Plant::new("use_after_free");
    let run = |early: bool, options| -> Result<Vec<u32>, RunError> {
        let mut rig = Rig::new(&plant.sound, options);
        let (from, out) = (rig.upload(&[7, 0, 0, 0], "from"), rig.empty(4, "out"));
        if early {
            rig.machine.memory().free(from).unwrap();
        }
        rig.run("k", [1, 1, 1], [1, 1, 1], 0, &params(&[from, out], &[]))?;
        rig.machine.memory().free(if early { out } else { from }).unwrap();
        Ok(rig.words(out, 1))
    };
    plant.is_sound(3, |_, options| run(false, options), |found| assert_eq!(found, [7]));
    for error in plant.reports(Mode::Plain, |_, options| run(true, options)) {
        let Fault::UseAfterFree { allocation, .. } = memory_fault(&error) else { panic!("{error}") };
        assert_eq!(allocation.name, "from");
    }
}

/// Both instructions of a race, in either order.
pub(super) fn assert_race(error: &RunError, instructions: [&str; 2]) {
    assert!(matches!(memory_fault(error), Fault::Race { .. }), "{error}");
    let report = fault(error);
    let other = report.other.as_ref().expect("the other access of the race");
    let found = [report.place.text.as_str(), other.text.as_str()];
    let matches = |[a, b]: [&str; 2]| found[0].starts_with(a) && found[1].starts_with(b);
    assert!(matches(instructions) || matches([instructions[1], instructions[0]]), "{error}");
}

#[test]
fn a_missing_barrier() {
    let plant = Plant::new("missing_barrier");
    let run = |module: &_, options| run_block(module, options, 64, &[("out", 256, None)], &[]);
    plant.is_sound(50, run, |found| assert_eq!(found, (0..64).rev().collect::<Vec<_>>()));
    for error in plant.reports(Mode::Race, run) {
        // Read before written, or unordered: whichever comes first.
        match memory_fault(&error) {
            Fault::Uninitialised { allocation, .. } => assert_eq!(allocation.owner, Owner::Shared),
            _ => assert_race(&error, ["st.shared", "ld.shared"]),
        }
    }
}

#[test]
fn a_barrier_missing_at_the_end_of_a_round() {
    let plant = Plant::new("missing_second_barrier");
    let run = |module: &_, options| run_block(module, options, 64, &[("out", 256, None)], &[]);
    plant.is_sound(50, run, |found| assert_eq!(found, (0..64).rev().collect::<Vec<_>>()));
    for error in plant.reports(Mode::Race, run) {
        assert_race(&error, ["ld.shared", "st.shared"]);
    }
}

#[test]
fn a_copy_that_is_read_before_it_was_waited_for() {
    let plant = Plant::new("early_read");
    let run = |module: &_, options| {
        run_block(module, options, 32, &[("from", 512, Some(0)), ("out", 128, None)], &[])
    };
    plant
        .is_sound(50, run, |found| assert_eq!(found, (0..32).rev().map(|lane| 4 * lane).collect::<Vec<_>>()));
    for mode in [Mode::Plain, Mode::Race, Mode::Weak] {
        for error in plant.reports(mode, run) {
            let Fault::Uninitialised { allocation, .. } = memory_fault(&error) else { panic!("{error}") };
            assert_eq!(allocation.owner, Owner::Shared, "{error}");
        }
    }
}

fn run_blocks(
    module: &std::sync::Arc<ptx_emulator::Module>,
    options: ptx_emulator::MachineOptions,
) -> Result<Vec<u32>, RunError> {
    let mut rig = Rig::new(module, options);
    let out = rig.upload(&[0; 32], "out");
    rig.run("k", [8, 1, 1], [1, 1, 1], 0, &params(&[out], &[]))?;
    Ok(rig.words(out, 8))
}

#[test]
fn blocks_that_write_to_the_same_word() {
    let plant = Plant::new("block_race");
    plant.is_sound(50, run_blocks, |found| assert_eq!(found, (0..8).collect::<Vec<_>>()));
    for error in plant.reports(Mode::Race, run_blocks) {
        assert_race(&error, ["st.global", "st.global"]);
        let report = fault(&error);
        assert_ne!(report.place.block, report.other.as_ref().unwrap().block);
    }
}

#[test]
fn an_atomic_of_too_narrow_scope() {
    let plant = Plant::new("narrow_atomic");
    plant.is_sound(50, run_blocks, |found| assert_eq!(found[0], 8));
    for error in plant.reports(Mode::Race, run_blocks) {
        assert_race(&error, ["red.relaxed.cta", "red.relaxed.cta"]);
    }
}
