//! Many schedules of the shipped kernels.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use fewsync::driver::{Device, EmulatorOptions, KernelLibrary, PutUnit};
use fewsync::kernels::{PTX, Ptx};

use crate::inputs::{Inputs, judge};
use crate::run::run;
use crate::scenario::{Home, Kind, Scenario};
use crate::seeds::{number, search};

/// Tried by a run of continuous integration.
pub(crate) const SCHEDULES: u64 = 3000;

/// The committed file for an architecture.
pub(crate) fn shipped(arch: &str) -> &'static Ptx {
    PTX.iter().find(|ptx| ptx.arch == arch).expect("a committed architecture")
}

/// Machines share the modules that one has loaded: as long as these live, no file is read twice.
pub(crate) fn keep_loaded(files: &[&'static Ptx]) -> Vec<KernelLibrary> {
    let pes = Device::emulated_pes(&EmulatorOptions::default(), 4096, PutUnit::default());
    let (device, _) = pes.expect("a small heap").swap_remove(0);
    files.iter().map(|ptx| KernelLibrary::load_file(&device, ptx).expect("an emulator takes it")).collect()
}

/// Runs and judges one scenario; the error says what went wrong.
pub(crate) fn attempt(scenario: &Scenario, ptx: &'static Ptx) -> Result<(), String> {
    let inputs = Inputs::new(scenario);
    let found = run(scenario, &inputs, ptx).map_err(|error| error.to_string())?;
    judge(scenario, &inputs, &found)
}

/// What the schedules had in common, counted.
#[derive(Default)]
pub(crate) struct Coverage(Mutex<BTreeMap<String, u64>>);

impl Coverage {
    pub(crate) fn note(&self, scenario: &Scenario) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut note = |what: String| *counts.entry(what).or_default() += 1;
        note(format!("schedules, {:?}", scenario.machine.schedule));
        note(format!("schedules, race {}, weak {}", scenario.machine.race, scenario.machine.weak));
        note(format!("schedules, {}", scenario.shape));
        note(format!("schedules, {:?}", scenario.options.memory));
        let has_own = scenario.home == Home::Loopback { gpus: scenario.shape.world() };
        note(match scenario.home {
            Home::Group => "schedules, a thread per rank".into(),
            Home::Pes { .. } => "schedules, PEs".into(),
            Home::LoopbackPuts => "schedules, puts within a GPU".into(),
            _ if has_own => "schedules, a launch per rank".into(),
            _ => "schedules, ranks that share launches".into(),
        });
        let format = scenario.format().map_or_else(|| "measured".into(), |format| format!("{format:?}"));
        let passes = if scenario.has_passes() { ", several passes" } else { "" };
        for call in &scenario.calls {
            let kind = match &call.kind {
                Kind::Sum { hidden: Some(hidden), .. } if scenario.adds_wide_sums(*hidden) => {
                    "sum and norm in one shot"
                }
                Kind::Sum { hidden: Some(hidden), .. } if hidden.is_multiple_of(8) => {
                    "sum and norm in two shots"
                }
                Kind::Sum { hidden: Some(_), .. } => "sum, then norm",
                Kind::Sum { addend: true, .. } => "sum with addend",
                Kind::Sum { .. } => "sum",
                Kind::Phase(_) => "phase alone",
                Kind::Gather { .. } => "gather",
            };
            note(format!("calls, {kind}{passes}"));
            note(format!("calls, {}", call.dtype));
            note(format!("calls, {format}"));
        }
    }
}

/// Tries scenarios, and says what they had in common; panics at the first that fails.
pub(crate) fn try_all(
    test: &str,
    count: u64,
    scenario: impl Fn(u64) -> Scenario + Sync,
    ptx: impl Fn(&Scenario) -> &'static Ptx + Sync,
) {
    let (first, count) = (number("FEWSYNC_SEED", 0), number("FEWSYNC_SCHEDULES", count));
    let (start, coverage) = (Instant::now(), Coverage::default());
    let (failure, tried) = search(first, count, |seed| {
        let scenario = scenario(seed);
        let reason = attempt(&scenario, ptx(&scenario)).err()?;
        Some((scenario, reason))
    });
    (first..first + tried).for_each(|seed| coverage.note(&scenario(seed)));
    println!("{tried} schedules from seed {first} on in {:.0} s:", start.elapsed().as_secs_f64());
    for (what, count) in coverage.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
        println!("{count:6} {what}");
    }
    if let Some((scenario, reason)) = failure {
        panic!(
            "{reason}\n{scenario}\nto see it again: FEWSYNC_SEED={} FEWSYNC_SCHEDULES=1 cargo test --release \
             --test nvrar_emulated {test}",
            scenario.seed
        );
    }
    assert_eq!(tried, count);
}

/// Every rank ends with the bits that the model has, nobody races, nobody waits for ever, no slot keeps anything.
#[test]
fn schedules() {
    let _loaded = keep_loaded(&PTX.each_ref());
    try_all("schedules::", SCHEDULES, Scenario::new, |scenario| shipped(scenario.arch));
}
