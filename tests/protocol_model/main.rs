//! The wire protocol between GPUs as a small model: ranks, threads, places, numbers, and stores that arrive late.
//!
//! Nothing of the kernels is here but their rules (`docs/sync.md`): so a million schedules take a minute, and rules
//! can be broken one by one to see that each is needed. `FEWSYNC_SCHEDULES=N` tries N schedules, `FEWSYNC_SEED=S`
//! begins with seed S.

mod plan;
#[path = "../common/seeds.rs"]
mod seeds;
mod world;

use std::time::Instant;

use seeds::{Random, number, search};
use world::{Fault, World};

/// Tried by a run of continuous integration.
const SCHEDULES: u64 = 1_000_000;

fn attempt(seed: u64, fault: Fault) -> Option<String> {
    let mut random = Random(seed);
    let mut world = World::new(&mut random, fault);
    world.run(&mut random).err().map(|reason| format!("seed {seed}: {reason}"))
}

/// Every message is taken by whom it is for, nothing is overwritten or lost, and all calls end, or none after one
/// that a stopped rank is in.
#[test]
fn the_protocol_holds() {
    let (first, count) = (number("FEWSYNC_SEED", 0), number("FEWSYNC_SCHEDULES", SCHEDULES));
    let start = Instant::now();
    let (failure, tried) = search(first, count, |seed| attempt(seed, Fault::None));
    println!("{tried} schedules of the model in {:.0} s", start.elapsed().as_secs_f64());
    assert_eq!(failure, None);
}

/// Without any one of its rules it does not.
#[test]
fn every_broken_rule_shows() {
    for fault in [
        Fault::NoGreetings,
        Fault::OneSlot,
        Fault::OneNumberSkipped,
        Fault::NoFence,
        Fault::GreetingsByNumber,
        Fault::PhasesOfSeveralPasses,
        Fault::NotCleared,
    ] {
        let (failure, tried) = search(0, SCHEDULES, |seed| attempt(seed, fault));
        let failure = failure.unwrap_or_else(|| panic!("{fault:?} did not show in {tried} schedules"));
        println!("{fault:?}: {failure}");
    }
}
