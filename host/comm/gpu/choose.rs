//! How a call is executed: algorithm, format, passes, grid. Pure functions of size, topology and tuning, so that
//! all ranks come to the same result by themselves.

use std::fmt;

use super::layout::Layout;
use crate::comm::{Shape, schedule};
use crate::kernels::nvrar::{Algorithm, Execution, Far, Format};
use crate::kernels::params::{GRANULE_UNITS, UNIT_BYTES};

/// Overrides parts of the measured choice; equal on all ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tuning {
    /// How ranks of one node share the work; several nodes always do it in two shots.
    pub algorithm: Option<Algorithm>,
    /// How messages travel.
    pub format: Option<Format>,
    /// Blocks of the grid, per rank.
    pub blocks: Option<u32>,
    /// Threads of a block that move data, whole warps.
    pub workers: Option<u32>,
    /// Blocks that share a row to be normalised in the launch that sums it, however long the tensor is.
    pub row_blocks: Option<u32>,
    /// Most units of 16 bytes that a pass has; longer tensors take more passes than the slots ask for.
    pub pass_units: Option<u32>,
}

impl fmt::Display for Tuning {
    /// What it names, in the order of its fields; `auto` if that is nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { algorithm, format, blocks, workers, row_blocks, pass_units } = self;
        let mut parts: Vec<String> = algorithm.map(|it| it.name().to_owned()).into_iter().collect();
        parts.extend(format.map(|it| it.name().to_owned()));
        let counts = [
            (blocks, "blocks"),
            (workers, "workers"),
            (row_blocks, "row blocks"),
            (pass_units, "units a pass"),
        ];
        parts.extend(counts.into_iter().filter_map(|(n, what)| Some(format!("{} {what}", n?))));
        f.write_str(&if parts.is_empty() { "auto".into() } else { parts.join(" ") })
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Task {
    /// A sum of so many units; with rows of so many where they are normalised.
    Sum { units: u32, row_units: Option<u32> },
    /// One phase of a sum of so many units; a launch per pass.
    Phase { units: u32 },
    /// A gather whose longest piece has so many units; a launch per pass.
    Gather { units: u32 },
}

/// Where it is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    /// The group.
    pub(super) shape: Shape,
    /// Most blocks per rank.
    pub(super) max_blocks: u32,
    /// How messages get to other nodes.
    pub(super) far: Far,
    /// Most blocks that can share a row to be normalised.
    pub(super) max_row_blocks: u32,
}

const WARP: u32 = 32;
/// Most workers of a block; its clerk comes to them.
const MAX_WORKERS: u32 = 384;
const MAX_WORKERS_NORM: u32 = 256;
/// The same where messages are put: their couriers come to them.
const MAX_WORKERS_PUT: u32 = 256;
/// Fewest workers of a block of a sum: more blocks send faster than larger ones.
const MIN_WORKERS: u32 = 128;
/// The same where messages are put, in calls of any kind, and what they are at most for that, in units, 64 KiB: 2 to 7 %
/// faster in a plain sum than more workers (`tuned` in `bench/results/h200x2-tuned.csv`).
const MIN_WORKERS_PUT: u32 = 64;
const SHORT_UNITS_PUT: u32 = 4 << 10;
/// Workers from which on only long messages gain by more, and in two shots those that threads then have done sooner.
const MANY_WORKERS: u32 = 256;
/// Units of a long message: more than 2 MiB.
const LONG_UNITS: u32 = 128 << 10;
/// Blocks at which blocks are made larger instead: a power of two deals the usual sizes evenly.
const MANY_BLOCKS: u32 = 128;
/// Fewest units of a row that a block takes: the more blocks share it, the faster it is sent.
const ROW_SHARE_UNITS: u32 = 64;
/// Largest message that travels in cells, in units, 8 KiB: between two ranks they are as fast up to there, and each
/// carries the call's number. Between more, messages of several ranks are awaited together, which words do faster.
const CELLS_UNITS: u32 = 512;
/// What the wire carries in the time of one more hop, in units: 1.2 µs at 380 GB/s.
const HOP_UNITS: u64 = 456_000 / UNIT_BYTES;
/// Most units that are normalised in the launch that sums them in two shots, 1 MiB: beyond, threads have more than two of
/// them, which they take in turn, and a launch of its own is as fast.
const SHARED_UNITS: u32 = 64 << 10;
/// Cells lie in groups of so many units.
const CELL_GROUP_UNITS: u32 = 32;

/// The units that hold `bytes`, if they can be counted.
pub(super) fn units(bytes: usize) -> Option<u32> {
    // Halves are counted in 32 bits, too.
    u32::try_from(bytes / 2).ok()?;
    u32::try_from(bytes.div_ceil(UNIT_BYTES as usize)).ok()
}

impl Site {
    /// The choice; none for rows that do not fit a pass, or in two shots all of them, for rows that are put, and for those
    /// that a launch of its own normalises as fast.
    pub(super) fn execution(&self, task: Task, layout: &Layout, tuning: Tuning) -> Option<Execution> {
        let algorithm = self.algorithm(task, tuning);
        let row_units = match task {
            Task::Sum { row_units, .. } => row_units,
            _ => None,
        };
        let longest = self.longest(task, algorithm);
        let short = row_units.is_none() && longest <= CELLS_UNITS && self.shape.world() <= 2;
        let far = if self.shape.nodes > 1 { self.far } else { Far::Stores };
        let format = match far {
            Far::Puts => Format::Words,
            Far::Stores => tuning.format.unwrap_or(if short { Format::Cells } else { Format::Words }),
        };
        let area = layout.area(format);
        let slot_units = area.bytes / self.slots(task, algorithm) / format.unit_bytes();
        let slot_units = slot_units as u32 / CELL_GROUP_UNITS * CELL_GROUP_UNITS;
        let step = row_units.map_or(GRANULE_UNITS, |row| self.of_row(row, algorithm));
        let most = slot_units.min(tuning.pass_units.unwrap_or(slot_units)) / step * step;
        if most == 0 {
            return None;
        }
        // Passes of nearly equal size, so that every thread has work in the last one, too.
        let even = longest.div_ceil(longest.div_ceil(most).max(1));
        let pass_units = even.next_multiple_of(step).clamp(step, most);
        let passes = longest.div_ceil(pass_units).max(1);
        let is_shared = row_units.is_some() && algorithm == Algorithm::TwoShot;
        let is_long = matches!(task, Task::Sum { units, .. } if units > SHARED_UNITS);
        if is_shared && (passes > 1 || far == Far::Puts || is_long && tuning.row_blocks.is_none()) {
            return None;
        }
        let (mut blocks, workers, row_blocks) = match (row_units, task) {
            (Some(row), Task::Sum { units, .. }) if is_shared => self.rows_grid(units, row, tuning),
            (Some(row), _) => self.rows_grid(longest.min(pass_units), row, tuning),
            (None, _) => self.grid(longest.min(pass_units), algorithm, far, tuning),
        };
        if passes > 1 && far == Far::Stores && matches!(task, Task::Sum { .. }) {
            let last = self.last_pass(task, algorithm, pass_units, passes);
            blocks = blocks.min(last / row_units.unwrap_or(workers) * row_blocks);
        }
        (blocks > 0).then_some(Execution {
            algorithm,
            format,
            slots: area.offset as u64,
            parity_stride: area.bytes as u64,
            slot_stride: (slot_units as usize * format.unit_bytes()) as u64,
            pass_units,
            passes,
            blocks,
            workers,
            row_blocks,
            far,
        })
    }

    /// Units of the longest message.
    fn longest(&self, task: Task, algorithm: Algorithm) -> u32 {
        match (task, algorithm) {
            (Task::Sum { units, row_units: Some(row) }, _) => units / row * self.of_row(row, algorithm),
            (Task::Sum { units, .. } | Task::Phase { units }, Algorithm::TwoShot) => self.shard(units, 0),
            (Task::Sum { units, .. } | Task::Phase { units } | Task::Gather { units }, _) => units,
        }
    }

    /// Most units of a row that a message has: in two shots each rank of a node has a part of every row.
    fn of_row(&self, row_units: u32, algorithm: Algorithm) -> u32 {
        match algorithm {
            Algorithm::OneShot => row_units,
            Algorithm::TwoShot => row_units.div_ceil(self.shape.gpus_per_node as u32),
        }
    }

    /// One shot as long as what it sends more takes less time than a second hop.
    fn algorithm(&self, task: Task, tuning: Tuning) -> Algorithm {
        let Task::Sum { units, .. } = task else { return Algorithm::TwoShot };
        if self.shape.nodes > 1 {
            return Algorithm::TwoShot;
        }
        let world = self.shape.world() as u64;
        let more = u64::from(units) * (world - 1) * world.saturating_sub(2) / world;
        let measured = if more <= HOP_UNITS { Algorithm::OneShot } else { Algorithm::TwoShot };
        tuning.algorithm.unwrap_or(measured)
    }

    /// Slots of one parity.
    fn slots(&self, task: Task, algorithm: Algorithm) -> usize {
        let Shape { nodes, gpus_per_node } = self.shape;
        match (task, algorithm) {
            (Task::Gather { .. }, _) => nodes + self.shape.world(),
            (_, Algorithm::OneShot) => self.shape.world(),
            (_, Algorithm::TwoShot) => {
                2 * gpus_per_node + if nodes == 1 { 0 } else { nodes.ilog2() as usize + 2 }
            }
        }
    }

    /// Units of the shard of a local rank; the first one's is the longest, the last one's the shortest.
    fn shard(&self, units: u32, local: usize) -> u32 {
        let parts = self.shape.gpus_per_node;
        schedule::shard(units as usize, GRANULE_UNITS as usize, parts, local).len() as u32
    }

    /// Units of the shortest last pass of any shard.
    fn last_pass(&self, task: Task, algorithm: Algorithm, pass_units: u32, passes: u32) -> u32 {
        let shortest = match task {
            Task::Sum { units, .. } | Task::Phase { units } if algorithm == Algorithm::TwoShot => {
                self.shard(units, self.shape.gpus_per_node - 1)
            }
            Task::Sum { units, .. } | Task::Phase { units } | Task::Gather { units } => units,
        };
        shortest.saturating_sub((passes - 1) * pass_units)
    }

    /// Blocks and workers for so many units.
    fn grid(&self, units: u32, algorithm: Algorithm, far: Far, tuning: Tuning) -> (u32, u32, u32) {
        let there_are = if far == Far::Puts { MAX_WORKERS_PUT } else { MAX_WORKERS };
        let many = MANY_BLOCKS.min(self.max_blocks);
        let rounds = |workers| units.div_ceil(many * workers);
        let is_long = match algorithm {
            Algorithm::OneShot => units > LONG_UNITS,
            Algorithm::TwoShot => rounds(there_are) < rounds(MANY_WORKERS),
        };
        let most = if is_long { there_are } else { MANY_WORKERS };
        let is_short_put = far == Far::Puts && units <= SHORT_UNITS_PUT;
        let fewest = if is_short_put { MIN_WORKERS_PUT } else { MIN_WORKERS };
        let measured = units.div_ceil(many).next_multiple_of(WARP).clamp(fewest, most);
        let workers = tuning.workers.unwrap_or(measured).clamp(WARP, there_are) / WARP * WARP;
        let workers = workers.min(units.max(1).next_multiple_of(WARP));
        let blocks = units.div_ceil(workers).max(1);
        (tuning.blocks.unwrap_or(blocks.min(many)).clamp(1, blocks.min(self.max_blocks)), workers, 1)
    }

    /// Blocks, workers and blocks of a row for rows of `row` units: a unit for each worker, as long as there are
    /// blocks.
    fn rows_grid(&self, units: u32, row: u32, tuning: Tuning) -> (u32, u32, u32) {
        let rows = units.div_ceil(row).max(1);
        let room = self.max_row_blocks.min(self.max_blocks);
        let measured = row.div_ceil(ROW_SHARE_UNITS).clamp(1, (self.max_blocks / rows).max(1));
        let row_blocks = tuning.row_blocks.unwrap_or(measured).clamp(1, room);
        let share = row.div_ceil(row_blocks).next_multiple_of(WARP);
        let workers = tuning.workers.unwrap_or(share).min(share).clamp(WARP, MAX_WORKERS_NORM) / WARP * WARP;
        // Each of them has a unit.
        let row_blocks = row_blocks.min(row.div_ceil(workers));
        let clusters = rows.min(self.max_blocks / row_blocks);
        let wanted = tuning.blocks.map_or(clusters, |blocks| blocks / row_blocks);
        (wanted.clamp(1, clusters) * row_blocks, workers, row_blocks)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn site(nodes: usize, gpus_per_node: usize, max_blocks: u32) -> Site {
        Site { shape: Shape { nodes, gpus_per_node }, max_blocks, max_row_blocks: 8, far: Far::Stores }
    }

    #[test]
    fn two_ranks_never_need_a_second_hop_and_many_do_above_a_size() {
        let algorithm = |world, kib: u32| {
            let task = Task::Sum { units: kib * 64, row_units: None };
            site(1, world, 132).algorithm(task, Tuning::default())
        };
        assert!([1, 64, 1 << 16].iter().all(|&kib| algorithm(2, kib) == Algorithm::OneShot));
        assert_eq!([128, 256, 512].map(|kib| algorithm(4, kib)), {
            use Algorithm::{OneShot, TwoShot};
            [OneShot, OneShot, TwoShot]
        });
        assert_eq!(algorithm(8, 64), Algorithm::OneShot);
        assert_eq!(algorithm(8, 128), Algorithm::TwoShot);
        let task = Task::Sum { units: 1, row_units: None };
        let forced = Tuning { algorithm: Some(Algorithm::OneShot), ..Tuning::default() };
        assert_eq!(site(2, 2, 132).algorithm(task, forced), Algorithm::TwoShot);
    }

    #[test]
    fn grids_are_those_that_were_measured() {
        let site = site(1, 2, 132);
        let layout = Layout::new(site.shape, 64 << 20);
        let grid = |kib: u32, row_units| {
            let task = Task::Sum { units: kib * 64, row_units };
            let e = site.execution(task, &layout, Tuning::default()).unwrap();
            (e.format, e.blocks, e.workers, e.row_blocks, e.passes)
        };
        use Format::{Cells, Words};
        assert_eq!(grid(8, None), (Cells, 4, 128, 1, 1));
        assert_eq!(grid(64, None), (Words, 32, 128, 1, 1));
        assert_eq!(grid(256, None), (Words, 128, 128, 1, 1));
        assert_eq!(grid(2048, None), (Words, 128, 256, 1, 1));
        assert_eq!(grid(16 << 10, None), (Words, 128, 384, 1, 1));
        assert_eq!(grid(64 << 10, None), (Words, 128, 384, 1, 4));
        // Rows of 4096 and 8192, one of them and many.
        assert_eq!(grid(8, Some(512)), (Words, 8, 64, 8, 1));
        assert_eq!(grid(128, Some(512)), (Words, 128, 64, 8, 1));
        assert_eq!(grid(256, Some(512)), (Words, 128, 128, 4, 1));
        assert_eq!(grid(16, Some(1024)), (Words, 8, 128, 8, 1));
        assert_eq!(grid(256, Some(1024)), (Words, 128, 128, 8, 1));
        assert_eq!(grid(16 << 10, Some(1024)), (Words, 132, 256, 1, 1));
    }

    #[test]
    fn short_puts_take_small_blocks() {
        let site = Site { far: Far::Puts, ..self::site(2, 1, 132) };
        let layout = Layout::new(site.shape, 64 << 20);
        let grid = |kib: u32| {
            let task = Task::Sum { units: kib * 64, row_units: None };
            site.execution(task, &layout, Tuning::default()).map(|e| (e.blocks, e.workers)).unwrap()
        };
        assert_eq!([1, 2, 16, 64].map(grid), [(1, 64), (2, 64), (16, 64), (64, 64)]);
        assert_eq!([128, 256, 512].map(grid), [(64, 128), (128, 128), (128, 256)]);
    }

    #[test]
    fn rows_are_normalised_where_they_are_summed_up_to_a_size() {
        let fused = |(nodes, gpus), far, kib: u32, tuning| {
            let site = Site { far, ..site(nodes, gpus, 132) };
            let layout = Layout::new(site.shape, 64 << 20);
            let task = Task::Sum { units: kib * 64, row_units: Some(1024) };
            site.execution(task, &layout, tuning)
        };
        let algorithm = |shape, kib| {
            fused(shape, Far::Stores, kib, Tuning::default()).map(|execution| execution.algorithm)
        };
        use Algorithm::{OneShot, TwoShot};
        assert_eq!([256, 512, 1024, 2048].map(|kib| algorithm((1, 4), kib)), {
            [Some(OneShot), Some(TwoShot), Some(TwoShot), None]
        });
        assert_eq!([16, 1024, 2048].map(|kib| algorithm((2, 2), kib)), [Some(TwoShot), Some(TwoShot), None]);
        assert_eq!([2048, 16 << 10].map(|kib| algorithm((1, 2), kib)), [Some(OneShot); 2]);
        // Each rank of a node owns half of every row.
        let execution = fused((2, 2), Far::Stores, 64, Tuning::default()).unwrap();
        assert_eq!((execution.pass_units, execution.passes), (4 * 512, 1));
        assert_eq!((execution.blocks, execution.workers, execution.row_blocks), (32, 128, 8));
        let forced = Tuning { row_blocks: Some(2), ..Tuning::default() };
        assert!(fused((1, 4), Far::Stores, 2048, forced).is_some());
        assert!(fused((1, 4), Far::Stores, 32 << 10, forced).is_none(), "more than one pass");
        assert!(fused((2, 2), Far::Puts, 16, Tuning::default()).is_none());
    }

    #[test]
    fn a_registered_tensor_fits_one_pass() {
        for (nodes, gpus) in [(1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (5, 3)] {
            let site = site(nodes, gpus, 132);
            for units in 1..600 {
                let layout = Layout::new(site.shape, units as usize * 16);
                let task = Task::Sum { units, row_units: None };
                let execution = site.execution(task, &layout, Tuning::default()).expect("it fits");
                assert_eq!(execution.passes, 1, "{units} units on {}", site.shape);
            }
        }
    }

    proptest! {
        /// What the protocol asks for: messages fit their slots, slots their area, passes cover the tensor, and in
        /// a call of several passes every thread has work in the last one.
        #[test]
        fn an_execution_keeps_the_protocols_terms(
            nodes in 1usize..5,
            gpus in 1usize..9,
            units in prop_oneof![0u32..2000, 0u32..20_000_000],
            registered in 0u32..20_000_000,
            row in prop_oneof![Just(None), (1u32..4096).prop_map(Some)],
            kind in 0..3,
            max_blocks in 4u32..133,
            algorithm in prop_oneof![Just(Algorithm::OneShot), Just(Algorithm::TwoShot)],
            forced in prop_oneof![Just(None), Just(Some(Format::Cells)), Just(Some(Format::Words))],
            far in prop_oneof![Just(Far::Stores), Just(Far::Puts)],
            (blocks, workers, row_blocks) in (
                prop::option::of(0u32..200),
                prop::option::of(0u32..2000),
                prop::option::of(0u32..20),
            ),
        ) {
            let site = Site { far, ..site(nodes, gpus, max_blocks) };
            let row = row.filter(|_| kind == 0);
            let units = row.map_or(units, |row| units / row * row);
            let layout = Layout::new(site.shape, registered.max(units) as usize * 16);
            let task = match kind {
                0 => Task::Sum { units, row_units: row },
                1 => Task::Phase { units },
                _ => Task::Gather { units },
            };
            let algorithm = row.map(|_| algorithm);
            let tuning = Tuning { format: forced, algorithm, blocks, workers, row_blocks, pass_units: None };
            let found = site.execution(task, &layout, tuning);
            prop_assert!(found.is_some() || row.is_some());
            let Some(e) = found else { return Ok(()) };
            let unit = e.format.unit_bytes() as u64;
            prop_assert!(u64::from(e.pass_units.next_multiple_of(CELL_GROUP_UNITS)) * unit <= e.slot_stride);
            prop_assert!(e.slot_stride * site.slots(task, e.algorithm) as u64 <= e.parity_stride);
            prop_assert!(e.slots + 2 * e.parity_stride <= layout.bytes as u64);
            prop_assert!(e.slots % 1024 == 0 && e.parity_stride % 1024 == 0 && e.slot_stride % 512 == 0);
            prop_assert!((1..=max_blocks).contains(&e.blocks) && e.workers.is_multiple_of(WARP));
            prop_assert!((1..=MAX_WORKERS).contains(&e.workers) && e.blocks.is_multiple_of(e.row_blocks));
            let longest = site.longest(task, e.algorithm);
            prop_assert!(row.is_none() || e.algorithm == Algorithm::OneShot || e.passes == 1);
            prop_assert!(u64::from(e.pass_units) * u64::from(e.passes) >= u64::from(longest));
            let puts = far == Far::Puts && nodes > 1;
            prop_assert_eq!(e.far == Far::Puts, puts);
            prop_assert!(!puts || e.format == Format::Words && e.workers <= MAX_WORKERS_PUT);
            if e.passes > 1 && kind == 0 && !puts {
                let last = site.last_pass(task, e.algorithm, e.pass_units, e.passes);
                prop_assert!(last >= e.blocks / e.row_blocks * row.unwrap_or(e.workers));
            }
            // What is written down as the choice of a tensor is executed the same.
            let named = Tuning {
                algorithm: Some(e.algorithm),
                format: Some(e.format),
                blocks: Some(e.blocks),
                workers: Some(e.workers),
                row_blocks: row.map(|_| e.row_blocks),
                pass_units: None,
            };
            prop_assert_eq!(site.execution(task, &layout, named), Some(e));
            if let Some(row) = row {
                prop_assert!((1..=8).contains(&e.row_blocks), "a cluster");
                prop_assert!((e.row_blocks - 1) * e.workers < row, "each of its blocks has units");
            }
        }
    }
}
