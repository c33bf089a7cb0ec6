//! The kernels that put, over an emulated network: what is put arrives late, in units of 8 bytes and in any order, and its
//! source is read as late.

use fewsync::comm::{CommError, Shape};
use fewsync::driver::{PutUnit, Schedule};
use fewsync::kernels::{NVSHMEM_PTX, PTX, Ptx};

use crate::inputs::Inputs;
use crate::mutations::{Mutation, ONE_WORD, WORDS_STAY, assert_caught};
use crate::pes::Pes;
use crate::scenario::{Home, Scenario, TIME_LIMIT};
use crate::schedules::{self, attempt, keep_loaded, try_all};
use crate::seeds::search;

/// Tried by a run of continuous integration.
const SCHEDULES: u64 = 400;
/// The same of ranks that share a GPU.
const SCHEDULES_WITHIN_A_GPU: u64 = 200;
/// Of calls that follow each other without the host.
const CALLS: usize = 24;

/// The committed file for an architecture.
pub(crate) fn shipped(arch: &str) -> &'static Ptx {
    NVSHMEM_PTX.iter().find(|ptx| ptx.arch == arch).expect("a committed architecture")
}

/// As long as it lives, no file is read twice.
pub(crate) fn keep_all_loaded() -> impl Sized {
    [keep_loaded(&PTX.each_ref()), keep_loaded(&NVSHMEM_PTX.each_ref())]
}

/// Every rank ends with the bits that the model has, whatever the order in which units arrive.
#[test]
fn schedules_of_puts() {
    let _loaded = keep_all_loaded();
    try_all("schedules_of_puts", SCHEDULES, Scenario::of_puts, |scenario| shipped(scenario.arch));
}

/// Nor where the ranks share launches and the network is a few lines of PTX, as in the self test; no slot keeps anything.
#[test]
fn schedules_of_puts_within_a_gpu() {
    let _loaded = keep_all_loaded();
    let scenario = |seed| Scenario::of_puts(seed).within_a_gpu();
    let ptx = |scenario: &Scenario| schedules::shipped(scenario.arch);
    try_all("schedules_of_puts_within_a_gpu", SCHEDULES_WITHIN_A_GPU, scenario, ptx);
}

/// Kinds, types and sizes alternate on two buffers and streams, over the wrap of the number.
#[test]
fn calls_follow_each_other() {
    let _loaded = keep_all_loaded();
    let shapes = [(2, 1), (3, 1), (2, 2)];
    let runs = shapes.len() * Schedule::ALL.len();
    let (failure, _) = search(0, runs as u64, |run| {
        let (nodes, gpus_per_node) = shapes[run as usize % shapes.len()];
        let mut scenario = Scenario::of_many_calls(run, Shape { nodes, gpus_per_node }, CALLS).between_pes();
        scenario.machine.schedule = Schedule::ALL[run as usize / shapes.len()];
        attempt(&scenario, shipped(scenario.arch)).err().map(|reason| format!("{reason}\n{scenario}"))
    });
    assert_eq!(failure, None);
}

/// The protocol needs cells that arrive whole: where they tear, greetings do.
#[test]
fn cells_that_tear_are_noticed() {
    let _loaded = keep_all_loaded();
    for race in [true, false] {
        let (caught, tried) = search(0, SCHEDULES, |seed| {
            let mut scenario = Scenario { home: Home::Pes { unit: PutUnit::B4 }, ..Scenario::of_puts(seed) };
            scenario.machine.race = race;
            let reason = attempt(&scenario, shipped(scenario.arch)).err()?;
            Some((seed, reason))
        });
        let (seed, reason) = caught.unwrap_or_else(|| panic!("race {race}: no harm in {tried} schedules"));
        println!("race {race}: caught by seed {seed}: {}", reason.lines().next().unwrap_or_default());
    }
}

const MUTATIONS: [Mutation; 7] = [
    Mutation {
        what: "greetings are not put",
        edit: |_, line| {
            let parameter = line.strip_prefix("st.param.b64")?.trim().strip_suffix(", 16;")?;
            Some(format!("st.param.b64 {parameter}, 0;"))
        },
        concerns: |_| true,
    },
    Mutation {
        what: "greetings are not awaited",
        edit: |before, line| {
            let (skips, _) = line.strip_prefix("not.pred")?.split_once(", ")?;
            let is_clerks = before.last()?.starts_with("mov.b16") && before.last()?.ends_with(", 2;");
            is_clerks.then(|| format!("setp.eq.u32 {skips}, 0, 0;"))
        },
        concerns: |it| it.calls.len() > 1,
    },
    Mutation {
        what: "greetings are staged where the last ones were",
        edit: |before, line| {
            let (to, from) = line.strip_prefix("or.b64")?.strip_suffix(';')?.split_once(", ")?;
            let (_, place) = from.split_once(", ")?;
            let of_rank = before.last()?.strip_prefix("mul.wide.u32")?.trim();
            (of_rank.starts_with(place) && of_rank.ends_with(", 16;"))
                .then(|| format!("mov.b64 {to}, {place};"))
        },
        concerns: |it| it.calls.len() > 1,
    },
    Mutation {
        what: "couriers do not wait for workers",
        edit: |_, line| line.strip_prefix("bar.sync")?.trim().starts_with("2,").then(String::new),
        concerns: |_| true,
    },
    Mutation {
        what: "one slot instead of two",
        edit: |before, line| {
            let (to, _) = line.strip_prefix("selp.b64")?.split_once(", ")?;
            let &[.., parity, tests] = before else { return None };
            let is_parity = parity.starts_with("and.b64") && parity.ends_with(", 1;");
            (is_parity && tests.starts_with("setp.ne.b64")).then(|| format!("mov.b64 {to}, 0;"))
        },
        concerns: |it| it.calls.len() > 1,
    },
    WORDS_STAY,
    ONE_WORD,
];

/// Each is caught by the race check, and without it by what arrives.
#[test]
fn mutations_of_puts_are_caught() {
    let _loaded = keep_loaded(&PTX.each_ref());
    for unchecked in [false, true] {
        let scenario = |seed, mutation: &Mutation| {
            let mut scenario = Scenario::of_puts(seed);
            scenario.machine.race = !unchecked;
            (mutation.concerns)(&scenario).then_some(scenario)
        };
        assert_caught(&MUTATIONS, shipped("sm_90a"), |_| true, SCHEDULES, scenario);
    }
}

/// The last rank makes fewer calls than the others: each of them says within the limit that it has waited.
#[test]
fn a_rank_that_stops_is_noticed_by_all() -> Result<(), CommError> {
    let _loaded = keep_all_loaded();
    for (seed, schedule) in Schedule::ALL.into_iter().enumerate() {
        for (nodes, gpus_per_node) in [(2, 1), (3, 1), (2, 2)] {
            let shape = Shape { nodes, gpus_per_node };
            let mut scenario = Scenario::of_many_calls(seed as u64, shape, 4).between_pes();
            scenario.machine.schedule = schedule;
            let inputs = Inputs::new(&scenario);
            let mut pes = Pes::new(&scenario, &inputs, shipped(scenario.arch), PutUnit::B8)?;
            let last = shape.world() - 1;
            pes.ranks[..last].iter_mut().try_for_each(|rank| rank.enqueue(&scenario))?;
            for rank in &pes.ranks[..last] {
                let Err(error) = rank.finish(&scenario) else { panic!("{shape}: a rank did not notice") };
                let CommError::Timeout { waited, .. } = error else { panic!("{shape}: {error}") };
                assert_eq!(waited, TIME_LIMIT);
            }
        }
    }
    Ok(())
}
