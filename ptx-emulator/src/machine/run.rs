//! The scheduler: who gets the next turn, when nothing can move, and what is reported.

use super::grid::{Block, Executed, Surroundings, budget};
use super::report::RunError;
use super::shared::{Failure, Turn};
use super::stream::Command;
use super::warp::{Spin, State};
use super::{Counters, Machine, Outcome, Policy};
use crate::exec::asynchronous::Late;
use crate::memory::DeviceId;

/// A warp among all that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) stream: usize,
    pub(super) grid: usize,
    pub(super) block: usize,
    pub(super) warp: usize,
}

/// What is known about standing still.
#[derive(Debug, Clone, Default)]
pub(super) struct Stall {
    /// `Machine::progress` when it was last seen to change, and the turns since.
    progress: u64,
    pub(super) turns: u64,
    /// The warp of the last turn, for round robin.
    cursor: usize,
    /// The warp that the adversarial policy prefers.
    favourite: usize,
}

/// Turns per resident warp without progress after which spins are looked for.
const QUIET_TURNS: u64 = 64;

/// Turns without progress after which stores that are under way move on one tick more in each turn.
const QUIET_TICKS: u64 = 16;

/// Turns without progress after which warps that repeat themselves give way at once: the long turns of the
/// adversarial policy are enough by themselves.
fn patience(policy: Policy) -> u64 {
    if policy == Policy::Adversarial { 0 } else { QUIET_TURNS }
}

impl Machine {
    /// Runs until every stream is empty; all of it happens before what the host does next.
    ///
    /// # Errors
    /// The first failure; the machine is then left as it was at that moment and should be dropped.
    pub fn run(&mut self) -> Result<(), RunError> {
        match self.advance(u64::MAX)? {
            Outcome::Stalled(deadlock) => Err(RunError::Deadlock(deadlock)),
            Outcome::Idle | Outcome::Running => {
                (0..self.options.devices).for_each(|device| self.synchronise_device(DeviceId(device)));
                Ok(())
            }
        }
    }

    /// Runs about `instructions` warp instructions, or until nothing is left or can move. What of it happens before the
    /// host's next accesses is for [`Machine::synchronise`] and its like to say.
    ///
    /// # Errors
    /// As of [`Machine::run`].
    pub fn advance(&mut self, instructions: u64) -> Result<Outcome, RunError> {
        let limit = self.options.max_instructions.unwrap_or(u64::MAX);
        let end = self.counters.warp_instructions.saturating_add(instructions).min(limit);
        while self.counters.warp_instructions < end {
            // One stream's record may be what a stream before it waits for.
            while self.start_commands()? {}
            self.start_blocks();
            let warps = self.warps();
            if warps.is_empty() {
                if self.end_grids() || self.start_commands()? {
                    continue;
                }
                let idle = self.streams.iter().all(super::stream::Stream::is_idle);
                return Ok(if idle { Outcome::Idle } else { Outcome::Stalled(Box::new(self.deadlock())) });
            }
            if let Some(outcome) = self.round(&warps, end)? {
                return Ok(outcome);
            }
            self.end_grids();
        }
        if self.counters.warp_instructions >= limit {
            let Counters { warp_instructions: executed, .. } = self.counters;
            return Err(RunError::Budget { executed, policy: self.options.policy, seed: self.options.seed });
        }
        Ok(Outcome::Running)
    }

    pub(super) fn warps(&self) -> Vec<Address> {
        let mut out = Vec::new();
        for (stream, found) in self.streams.iter().enumerate() {
            for (grid, found) in found.grids.iter().enumerate() {
                for (block, found) in found.blocks.iter().enumerate() {
                    let live = found.warps.iter().enumerate().filter(|(_, warp)| !warp.is_finished());
                    out.extend(live.map(|(warp, _)| Address { stream, grid, block, warp }));
                }
            }
        }
        out
    }

    /// Turns until a block or grid ends, or the budget does; `Some` if nothing can move.
    fn round(&mut self, warps: &[Address], end: u64) -> Result<Option<Outcome>, RunError> {
        let mut blocked = vec![false; warps.len()];
        let mut n_blocked = 0;
        let mut seen = self.progress();
        loop {
            if n_blocked == warps.len() {
                if self.unblock(warps)? {
                    return Ok(None);
                }
                return Ok(Some(Outcome::Stalled(Box::new(self.deadlock()))));
            }
            let chosen = self.choose(&blocked);
            self.let_copies_arrive(warps[chosen])?;
            self.let_libraries_work()?;
            let turn = self.turn(warps[chosen])?;
            if self.progress() != seen {
                // Whatever changed may be what others wait for.
                seen = self.progress();
                blocked.fill(false);
                n_blocked = 0;
            }
            match turn {
                Turn::Finished => {
                    self.end_block(warps[chosen])?;
                    return Ok(None);
                }
                Turn::Blocked if !blocked[chosen] => {
                    blocked[chosen] = true;
                    n_blocked += 1;
                }
                _ => {}
            }
            // Behind the end of a block, which must not be missed.
            if self.counters.warp_instructions >= end {
                return Ok(None);
            }
            if self.has_new_dependents() {
                return Ok(None);
            }
            if self.only_spins(warps) {
                return Ok(Some(Outcome::Stalled(Box::new(self.deadlock()))));
            }
        }
    }

    fn has_new_dependents(&self) -> bool {
        self.streams.iter().any(|stream| {
            let waiting = stream.queue.front().is_some_and(
                |(command, _)| matches!(command, Command::Launch(launch) if launch.programmatic),
            );
            waiting && stream.grids.last().is_some_and(super::grid::Grid::all_triggered)
        })
    }

    fn choose(&mut self, blocked: &[bool]) -> usize {
        let from = match self.options.policy {
            Policy::RoundRobin => {
                self.stall.cursor += 1;
                self.stall.cursor % blocked.len()
            }
            Policy::Random => self.random.below(blocked.len()),
            Policy::Adversarial => {
                let favourite = self.stall.favourite % blocked.len();
                let has_changed_nothing = self.stall.progress == self.progress();
                if blocked[favourite] || has_changed_nothing || self.random.below(64) == 0 {
                    self.stall.favourite = self.random.below(blocked.len());
                }
                self.stall.favourite % blocked.len()
            }
        };
        let chosen = (from..blocked.len()).chain(0..from).find(|&index| !blocked[index]).unwrap_or(from);
        if self.options.policy != Policy::Random {
            self.stall.cursor = chosen;
            self.stall.favourite = chosen;
        }
        chosen
    }

    /// Copies that signal an mbarrier arrive now and then.
    fn let_copies_arrive(&mut self, at: Address) -> Result<(), RunError> {
        let block = &mut self.streams[at.stream].grids[at.grid].blocks[at.block];
        if block.asynchronous.is_pending() && self.random.below(4) == 0 {
            self.arrive(at)?;
        }
        Ok(())
    }

    fn arrive(&mut self, at: Address) -> Result<(), RunError> {
        let pick = self.random.below(1 << 16);
        let block = &mut self.streams[at.stream].grids[at.grid].blocks[at.block];
        self.progress += 1;
        let id = block.id;
        block.asynchronous.arrive(&mut self.memory, id, pick).map_err(|late| self.report_late(at, late))
    }

    /// The report of an asynchronous copy that went wrong when it arrived.
    fn report_late(&self, at: Address, Late { cause, site, block, thread }: Late) -> RunError {
        let grid = &self.streams[at.stream].grids[at.grid];
        let pc = site.0 - grid.image.site_base;
        // Of a block that has ended since, the one where it arrives stands in.
        let block = grid.blocks.iter().position(|other| other.id == block).unwrap_or(at.block);
        let at = Address { block, ..at };
        let (warp, lane) = ((thread / 32) as usize, thread % 32);
        self.report(Address { warp, ..at }, Failure { cause, pc, mask: 1 << lane })
    }

    fn turn(&mut self, at: Address) -> Result<Turn, RunError> {
        let budget = budget(self.options.policy, self.random.next());
        let quiet = self.stall.quiet_turns(self.progress());
        let stream = &mut self.streams[at.stream];
        let grid = &mut stream.grids[at.grid];
        let around = Surroundings {
            memory: &mut self.memory,
            output: &mut self.output,
            progress: &mut self.progress,
            libraries: &mut self.libraries,
            predecessors: (at.grid == 0).then_some(&stream.end),
            time_ns: self.time_ns,
            check_registers: self.options.check_registers,
            find_spins: quiet > patience(self.options.policy),
        };
        let block = &mut grid.blocks[at.block];
        let cluster = &mut grid.clusters[block.cluster];
        let (turn, executed) = block.turn(&grid.image, at.warp, budget, cluster, around);
        self.account(executed, quiet);
        // Whoever waits for a store has looked in vain by now: what is under way arrives sooner.
        (0..1 + (quiet / QUIET_TICKS).min(64)).for_each(|_| self.memory.tick());
        let turn = turn.map_err(|failure| self.report(at, failure))?;
        self.hand_over(at)?;
        Ok(turn)
    }

    /// Gives the stores that a warp has just sent to the blocks of its cluster.
    fn hand_over(&mut self, at: Address) -> Result<(), RunError> {
        let grid = &mut self.streams[at.stream].grids[at.grid];
        let cluster = grid.blocks[at.block].cluster;
        for parcel in std::mem::take(&mut grid.clusters[cluster].parcels) {
            let grid = &mut self.streams[at.stream].grids[at.grid];
            let is_there = |block: &&mut Block| {
                block.cluster == cluster && block.environment.cluster_rank() == parcel.rank
            };
            match grid.blocks.iter_mut().find(is_there) {
                Some(block) => block.asynchronous.take_in(parcel),
                None => {
                    let arrived = parcel.come_too_late(&mut self.memory);
                    arrived.map_err(|late| self.report_late(at, late))?;
                }
            }
        }
        Ok(())
    }

    fn account(&mut self, executed: Executed, quiet: u64) {
        self.counters.warp_instructions += executed.warp;
        self.counters.thread_instructions += executed.thread;
        // Up to a millisecond a turn, when nothing but time has changed for long.
        self.time_ns += executed.warp + (1 << (quiet / 64).min(20)) - 1;
    }

    /// Grows with every change that somebody may wait for.
    fn progress(&self) -> u64 {
        self.progress + self.memory.changes()
    }

    /// Whether every warp waits or repeats itself, and no store or copy is on its way.
    fn only_spins(&mut self, warps: &[Address]) -> bool {
        if self.stall.progress != self.progress() {
            self.forget_spins(warps);
            return false;
        }
        let quiet = self.stall.turns;
        if quiet <= QUIET_TURNS * warps.len() as u64 || !quiet.is_multiple_of(64) {
            return false;
        }
        let memory_moves = self.memory.pending() > 0 || self.libraries_are_busy();
        let copies_move = warps.iter().any(|&at| self.block(at).asynchronous.is_pending());
        let stuck = |at: &Address| {
            let warp = &self.block(*at).warps[at.warp];
            warp.fragments.iter().all(|fragment| {
                let waits = matches!(
                    fragment.state,
                    State::Barrier { .. } | State::Cluster | State::Grid | State::Members { .. }
                );
                waits || fragment.spin.is_spinning
            })
        };
        if memory_moves || copies_move || !warps.iter().all(stuck) {
            return false;
        }
        // Lanes that wait for a lane that spins may be what it spins on.
        let released = self.release_joins(warps);
        if released {
            self.progress += 1;
            self.forget_spins(warps);
        }
        !released
    }

    fn release_joins(&mut self, warps: &[Address]) -> bool {
        let mut any = false;
        for &at in warps {
            any |= self.block_mut(at).warps[at.warp].release_joins();
        }
        any
    }

    fn forget_spins(&mut self, warps: &[Address]) {
        for &at in warps {
            for fragment in &mut self.block_mut(at).warps[at.warp].fragments {
                fragment.spin = Spin::default();
            }
        }
    }

    pub(super) fn block(&self, at: Address) -> &super::grid::Block {
        &self.streams[at.stream].grids[at.grid].blocks[at.block]
    }

    fn block_mut(&mut self, at: Address) -> &mut super::grid::Block {
        &mut self.streams[at.stream].grids[at.grid].blocks[at.block]
    }

    /// Every warp waits: lets copies arrive, libraries work, time pass, grids end, or lanes leave their joins. False if
    /// nothing helps.
    fn unblock(&mut self, warps: &[Address]) -> Result<bool, RunError> {
        if let Some(&at) = warps.iter().find(|&&at| self.block(at).asynchronous.is_pending()) {
            self.arrive(at)?;
            return Ok(true);
        }
        if self.let_library_work()? || self.end_grids() {
            return Ok(true);
        }
        let fragments = warps.iter().flat_map(|&at| &self.block(at).warps[at.warp].fragments);
        let wakes = fragments.filter_map(|fragment| match fragment.state {
            State::Sleeping { until_ns } => Some(until_ns),
            _ => None,
        });
        if let Some(first) = wakes.min() {
            self.time_ns = self.time_ns.max(first);
            return Ok(true);
        }
        Ok(self.release_joins(warps))
    }

    fn end_block(&mut self, at: Address) -> Result<(), RunError> {
        if !self.block(at).is_finished() {
            return Ok(());
        }
        let ending = &mut self.streams[at.stream].grids[at.grid].blocks[at.block];
        let finished = ending.asynchronous.finish(&mut self.memory, ending.id);
        finished.map_err(|late| self.report_late(at, late))?;
        let block = self.streams[at.stream].grids[at.grid].blocks.remove(at.block);
        self.memory.end_block(block.id);
        self.progress += 1;
        Ok(())
    }
}

impl Stall {
    /// Turns since the last change; counts this call.
    fn quiet_turns(&mut self, progress: u64) -> u64 {
        if progress == self.progress {
            self.turns += 1;
        } else {
            (self.progress, self.turns) = (progress, 0);
        }
        self.turns
    }
}
