//! Letters, the sums over a row that the blocks of a cluster send each other (`st.async` and mbarriers): schedules of
//! them, and faults planted in the shipped PTX.

use fewsync::comm::gpu::{Algorithm, Format, Tuning};
use fewsync::comm::{DType, Shape};

use crate::mutations::Mutation;
use crate::scenario::{Call, Home, Kind, Scenario};
use crate::schedules::{attempt, keep_loaded, shipped, try_all};
use crate::seeds::{Random, number, search};

/// Tried by a run of continuous integration.
const SCHEDULES: u64 = 100;
/// Within so many each fault has to show.
const SCHEDULES_OF_A_FAULT: u64 = 40;
const WORKERS: u32 = 32;
/// For three blocks, of which the last one has a single unit.
const ROW_UNITS: usize = 65;
/// Of one cluster: both sets of letters are used in both phases of their mbarriers.
const ROWS: usize = 5;

/// One cluster of two or three blocks for all rows.
fn scenario(seed: u64) -> Scenario {
    let mut random = Random(seed ^ 0x1e77);
    let mut scenario = Scenario::new(seed);
    let row_blocks = 2 + random.below(2) as u32;
    scenario.options.tuning = Some(Tuning {
        algorithm: Some(random.pick(&[Algorithm::OneShot, Algorithm::TwoShot])),
        format: Some(random.pick(&[Format::Cells, Format::Words])),
        blocks: Some(row_blocks),
        workers: Some(WORKERS),
        row_blocks: Some(row_blocks),
        pass_units: None,
    });
    scenario.options.in_flight = 1;
    let hidden = 8 * ROW_UNITS;
    let kind = Kind::Sum { addend: random.once_in(2), hidden: Some(hidden) };
    let call = Call { kind, dtype: DType::Bf16, numel: hidden * ROWS, buf: 0, fresh: true };
    scenario.calls = vec![call; 1 + random.below(2)];
    let shape = Shape { nodes: 1, gpus_per_node: 2 };
    let gpus = 1 + random.below(2);
    scenario.machine.devices = gpus as u32;
    Scenario { shape, home: Home::Loopback { gpus }, arch: "sm_90a", ..scenario }
}

/// As all schedules, of rows that clusters share.
#[test]
fn schedules_of_letters() {
    let _loaded = keep_loaded(&[shipped("sm_90a")]);
    try_all("schedules_of_letters", SCHEDULES, scenario, |scenario| shipped(scenario.arch));
}

/// How a fault shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    Race,
    /// A letter is read, or an mbarrier told of one, that nobody has written.
    Unwritten,
    Deadlock,
    /// A block arrives for a row while its mbarrier still counts an earlier one.
    Miscounted,
    /// The machine finds nothing, and what the ranks end with is wrong.
    WrongResult,
}
use Evidence::{Deadlock, Miscounted, Race, Unwritten, WrongResult};

/// Where nothing is checked, what becomes of a block that goes on before all letters of a row are there.
const TOO_EARLY: &[Evidence] = &[Unwritten, Miscounted, WrongResult];

impl Evidence {
    /// What a failure is evidence of, if of any of them.
    fn of(reason: &str) -> Option<Self> {
        let told = [
            ("data race", Race),
            ("has never been written", Unwritten),
            ("more arrivals than the phase expects", Miscounted),
            ("deadlock: no thread can move", Deadlock),
        ];
        let told = told.into_iter().find(|(text, _)| reason.contains(text)).map(|(_, evidence)| evidence);
        let is_of_machine = reason.contains("has stopped");
        told.or((!is_of_machine).then_some(WrongResult))
    }
}

/// A fault, and what must become of it under the race check, and without that where memory is weak.
struct Fault {
    what: &'static str,
    /// See [`Mutation::edit`]; every schedule could show it.
    edit: fn(&[&str], &str) -> Option<String>,
    checked: &'static [Evidence],
    unchecked: &'static [Evidence],
}

const EXPECT: &str = "mbarrier.arrive.expect_tx.shared::cta.b64";
const WAIT: &str = "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64";
const SEND: &str = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32";

/// The operands of an instruction, all but the last and that one.
fn operands<'a>(line: &'a str, instruction: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(instruction)?.strip_suffix(';')?.rsplit_once(", ")
}

/// The instruction with another last operand, which `compute` makes, in `%other`, of the one that is there.
fn with_last(line: &str, instruction: &str, compute: fn(&str) -> String) -> Option<String> {
    let (others, last) = operands(line, instruction)?;
    Some(format!("{{ .reg .b32 %other; {} {instruction}{others}, %other; }}", compute(last)))
}

const FAULTS: [Fault; 11] = [
    Fault {
        what: "a letter less is expected",
        edit: |_, line| with_last(line, EXPECT, |bytes| format!("sub.u32 %other, {bytes}, 4;")),
        checked: &[Race, Unwritten],
        unchecked: TOO_EARLY,
    },
    Fault {
        what: "a letter more is expected",
        edit: |_, line| with_last(line, EXPECT, |bytes| format!("add.u32 %other, {bytes}, 4;")),
        checked: &[Deadlock],
        unchecked: &[Deadlock],
    },
    Fault {
        what: "no letters are expected",
        edit: |_, line| {
            let (place, _) = operands(line, EXPECT)?;
            Some(format!("mbarrier.arrive.shared::cta.b64 {place};"))
        },
        checked: &[Race, Unwritten],
        unchecked: TOO_EARLY,
    },
    Fault {
        what: "the phase before is awaited",
        edit: |_, line| with_last(line, WAIT, |parity| format!("xor.b32 %other, {parity}, 1;")),
        checked: &[Race, Unwritten],
        unchecked: TOO_EARLY,
    },
    Fault {
        what: "the first phase is awaited for all rows",
        edit: |_, line| with_last(line, WAIT, |_| "mov.b32 %other, 0;".to_owned()),
        checked: &[Race, Miscounted],
        // A phase that is passed over may also leave its mbarrier where no row awaits it.
        unchecked: &[Unwritten, Miscounted, WrongResult, Deadlock],
    },
    Fault {
        what: "letters are not awaited",
        edit: |_, line| line.starts_with(WAIT).then(|| "setp.eq.u32 %ended, 0, 0;".to_owned()),
        checked: &[Race, Unwritten],
        unchecked: TOO_EARLY,
    },
    Fault {
        what: "the wait acquires what the own block has released",
        edit: |_, line| line.starts_with(WAIT).then(|| line.replacen(".cluster", ".cta", 1)),
        checked: &[Race],
        unchecked: TOO_EARLY,
    },
    Fault {
        what: "the first letter does not wait for the cluster",
        edit: |_, line| line.starts_with("barrier.cluster.").then(String::new),
        checked: &[Race, Unwritten],
        unchecked: &[Unwritten],
    },
    Fault {
        what: "the others are not told that mbarriers are ready",
        edit: |_, line| (line == "fence.mbarrier_init.release.cluster;").then(String::new),
        checked: &[Race],
        unchecked: &[Unwritten],
    },
    Fault {
        what: "letters are stored and nobody is told",
        edit: |_, line| Some(format!("st.shared::cluster.b32{};", operands(line, SEND)?.0)),
        checked: &[Deadlock],
        unchecked: &[Deadlock],
    },
    Fault {
        what: "all letters go to one place",
        edit: |_, line| {
            let (letter, mbarrier) = operands(line, SEND)?;
            let (_, sum) = letter.split_once(", ")?;
            // The letters lie right before the mbarrier.
            let place = mbarrier.replace(']', "-4]");
            Some(format!("{SEND} {place}, {sum}, {mbarrier};"))
        },
        checked: &[Race, Unwritten],
        unchecked: &[Unwritten],
    },
];

impl Fault {
    fn assert_caught(&self) {
        let &Self { what, edit, checked, unchecked } = self;
        let mutation = Mutation { what, edit, concerns: |_| true };
        let (mutant, places) = mutation.of(shipped("sm_90a"), |entry| entry.ends_with("_norm"));
        assert!(places >= 4, "the PTX has {places} places for the fault '{}'", what);
        let _loaded = keep_loaded(&[mutant]);
        for (race, evidence) in [(true, checked), (false, unchecked)] {
            let (caught, _) = search(number("FEWSYNC_SEED", 0), SCHEDULES_OF_A_FAULT, |seed| {
                let mut scenario = scenario(seed);
                scenario.machine.race = race;
                scenario.machine.weak |= !race;
                Some((seed, attempt(&scenario, mutant).err()?))
            });
            let Some((seed, reason)) = caught else { panic!("'{}', race {race}: not caught", what) };
            let found = Evidence::of(&reason).filter(|found| evidence.contains(found));
            let Some(found) = found else {
                panic!("'{}', race {race}, seed {seed}: {evidence:?} was expected: {reason}", what)
            };
            println!("{} ({places} places), race {race}: {found:?} in seed {seed}", what);
        }
    }
}

#[test]
fn faults_in_letters_are_caught() {
    FAULTS.iter().for_each(Fault::assert_caught);
}
