//! Values handed over behind a flag: within a device, and between two with peer memory.

use std::sync::Arc;

use ptx_emulator::memory::Fault;
use ptx_emulator::{MachineOptions, Module, RunError};

use crate::common::hand_over;
use crate::{Mode, POLICIES, Plant, fault, memory_fault, options};

fn on_one_device(module: &Arc<Module>, options: MachineOptions) -> Result<u32, RunError> {
    hand_over(0, module, options)
}

fn on_two_devices(module: &Arc<Module>, options: MachineOptions) -> Result<u32, RunError> {
    hand_over(1, module, options)
}

type Run = fn(&Arc<Module>, MachineOptions) -> Result<u32, RunError>;

/// The value that every message carries.
const VALUE: u32 = 42;
/// For each schedule; with the race detector on and memory weak.
const SOUND_SEEDS: u64 = 500;

/// The sound twin passes; in weak memory alone, without the race detector, the planted one shows another value
/// within `seeds` seeds of each schedule, and the seed shows it again.
fn assert_shows(name: &str, run: Run, seeds: u64) -> Plant {
    let plant = Plant::new(name);
    plant.is_sound(SOUND_SEEDS, run, |found| assert_eq!(found, VALUE));
    for policy in POLICIES {
        let wrong = |seed: &u64| {
            let found = run(&plant.planted, options(policy, *seed, Mode::Weak));
            matches!(found, Ok(found) if found != VALUE)
        };
        let seed = (0..seeds).find(wrong);
        let seed = seed.unwrap_or_else(|| panic!("{name}: right under {seeds} seeds of {policy:?}"));
        let again = || run(&plant.planted, options(policy, seed, Mode::Weak));
        assert_eq!(again(), again());
        println!("{name}: {policy:?}, seed {seed}: {:?}", again());
    }
    plant
}

/// The race detector finds the planted fault in every run, and names both sides.
fn assert_races(plant: &Plant, run: Run, [first, second]: [&str; 2]) {
    for error in plant.reports(Mode::Race, run) {
        assert!(matches!(memory_fault(&error), Fault::Race { .. }), "{error}");
        let report = fault(&error);
        let other = report.other.as_ref().expect("the other access of the race");
        let found = [&report.place, other];
        assert!(
            found.iter().any(|place| place.kernel == "produce" && place.text.starts_with(first)),
            "{error}"
        );
        assert!(
            found.iter().any(|place| place.kernel == "consume" && place.text.starts_with(second)),
            "{error}"
        );
    }
}

#[test]
fn a_flag_without_a_fence() {
    for run in [on_one_device as Run, on_two_devices] {
        let plant = assert_shows("missing_fence", run, 32);
        assert_races(&plant, run, ["st.global.u32 [%rd1]", "ld.global.u32 %r2"]);
    }
}

#[test]
fn a_flag_that_is_not_acquired() {
    for run in [on_one_device as Run, on_two_devices] {
        let plant = assert_shows("missing_acquire", run, 32);
        assert_races(&plant, run, ["st.global.u32 [%rd1]", "ld.global.u32 %r2"]);
    }
}

#[test]
fn a_fence_for_the_own_block_only() {
    let plant = assert_shows("narrow_fence", on_one_device, 32);
    assert_races(&plant, on_one_device, ["st.global.u32 [%rd1]", "ld.global.u32 %r2"]);
}

#[test]
fn a_fence_for_the_own_device_only() {
    let plant = assert_shows("narrow_fence_of_peer", on_two_devices, 32);
    assert_races(&plant, on_two_devices, ["st.global.u32 [%rd1]", "ld.global.u32 %r2"]);
    // Between blocks of one device the same fence is wide enough.
    for (policy, seed) in POLICIES.into_iter().flat_map(|policy| (0..100).map(move |seed| (policy, seed))) {
        let found = on_one_device(&plant.planted, options(policy, seed, Mode::RaceAndWeak));
        assert_eq!(found, Ok(VALUE));
    }
}

#[test]
fn a_flag_and_its_value_loaded_apart() {
    assert_shows("flag_apart", on_two_devices, 32);
}

#[test]
fn a_vector_that_tears() {
    assert_shows("torn_vector", on_two_devices, 32);
}

#[test]
fn a_seed_reproduces_a_report() {
    let plant = Plant::new("missing_fence");
    for policy in POLICIES {
        let report =
            |seed| on_two_devices(&plant.planted, options(policy, seed, Mode::RaceAndWeak)).unwrap_err();
        let first = report(77);
        let text = first.to_string();
        assert!(text.contains(&format!("schedule: {policy:?}, seed 77")), "{text}");
        // The report says all that the second run needs.
        let RunError::Fault(fault) = &first else { panic!("{text}") };
        let again = on_two_devices(&plant.planted, options(fault.policy, fault.seed, Mode::RaceAndWeak));
        assert_eq!(again.unwrap_err(), first);
    }
}
