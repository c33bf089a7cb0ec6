//! Who waits for what when nothing can move, and where a failure happened.

use super::Machine;
use super::report::{Deadlock, Place, Report, RunError, Waiter};
use super::run::Address;
use super::shared::Failure;
use super::warp::State;
use crate::exec::Cause;
use crate::memory::{Fault, Site, Thread};
use crate::program::Op;

/// How many waiters a report lists.
const LISTED: usize = 16;

impl Machine {
    pub(super) fn deadlock(&self) -> Deadlock {
        let mut waiters = Vec::new();
        let mut more = 0;
        for at in self.warps() {
            let block = self.block(at);
            for fragment in &block.warps[at.warp].fragments {
                if waiters.len() == LISTED {
                    more += 1;
                    continue;
                }
                let waits_for = self.wish(at, fragment.state, fragment.pc);
                let place = self.place(at, fragment.pc, fragment.mask.trailing_zeros());
                waiters.push(Waiter { place, lanes: fragment.mask, waits_for });
            }
        }
        for (index, stream) in self.streams.iter().enumerate().filter(|(_, stream)| stream.grids.is_empty()) {
            if let Some((super::stream::Command::Wait(event), _)) = stream.queue.front() {
                more += 1;
                let place = Place {
                    device: stream.device.0,
                    kernel: format!("(stream {index})"),
                    block: [0; 3],
                    thread: [0; 3],
                    file: String::new(),
                    line: 0,
                    text: String::new(),
                };
                let waits_for = format!("event {}, which nobody records", event.0);
                waiters.push(Waiter { place, lanes: 0, waits_for });
            }
        }
        Deadlock { waiters, more, seed: self.options.seed, policy: self.options.policy }
    }

    fn wish(&self, at: Address, state: State, pc: u32) -> String {
        match state {
            State::Barrier { id, .. } => {
                let (arrived, expected) = self.block(at).barriers.state(id);
                format!("barrier {id}, where {arrived} of {expected} threads are")
            }
            State::Members { members, .. } => format!("lanes {members:#010x} of their warp"),
            State::Cluster => {
                let grid = &self.streams[at.stream].grids[at.grid];
                let (arrived, expected) = grid.clusters[self.block(at).cluster].state();
                format!("the barrier of its cluster, where {arrived} of {expected} threads are")
            }
            State::Registers => {
                let block = self.block(at);
                let (has, free) = block.registers.state(block.warps[at.warp].first_thread);
                format!("registers: its threads have {has} each, and {free} of the block are free")
            }
            State::Grid => "the end of the grid before".to_owned(),
            State::Sleeping { until_ns } => format!("time {until_ns} ns"),
            State::Ready => {
                let grid = &self.streams[at.stream].grids[at.grid];
                let code = &grid.image.kernel().program.code;
                let from = code[..=pc as usize].len().saturating_sub(16);
                let polls_mbarrier = code[from..=pc as usize]
                    .iter()
                    .any(|inst| matches!(&inst.op, Op::Mbarrier(op) if op.is_test()));
                match polls_mbarrier {
                    true => {
                        let missing = self.block(at).asynchronous.phases.missing();
                        format!("the phase of an mbarrier that nothing completes (it spins; {missing})")
                    }
                    false => "a value in memory that nothing changes (it spins)".to_owned(),
                }
            }
        }
    }

    fn place(&self, at: Address, pc: u32, lane: u32) -> Place {
        let grid = &self.streams[at.stream].grids[at.grid];
        let block = self.block(at);
        let thread = block.warps[at.warp].first_thread + lane.min(31);
        let mut place = place_of(&grid.image, pc);
        place.block = block.environment.block;
        place.thread = coordinates(thread, grid.launch.block);
        place
    }

    /// The place of a thread of any block that runs or ran, at an instruction of any image.
    pub(super) fn place_of_site(&self, thread: Thread, site: Site) -> Option<Place> {
        let image = self.images.iter().rev().find(|image| image.site_base <= site.0)?;
        let pc = site.0 - image.site_base;
        if site == Site::NONE || pc as usize >= image.kernel().program.code.len() {
            return None;
        }
        let mut place = place_of(image, pc);
        let info = self.memory.block(thread.block);
        let grids = self.streams.iter().flat_map(|stream| &stream.grids);
        if let Some(grid) = grids.into_iter().find(|grid| grid.id == info.grid) {
            let index = u32::try_from(info.index).unwrap_or(u32::MAX);
            place.block = coordinates(index, grid.launch.grid);
            if thread.async_copy().is_none() {
                place.thread = coordinates(thread.index, grid.launch.block);
            }
        }
        Some(place)
    }

    pub(super) fn report(&self, at: Address, failure: Failure) -> RunError {
        let mut place = self.place(at, failure.pc, failure.mask.trailing_zeros());
        let (found, other) = self.places_of(&failure.cause);
        if let Some(mut found) = found {
            if is_by_copy(&failure.cause) {
                // The thread that issued the copy.
                found.thread = place.thread;
            }
            place = found;
        }
        RunError::Fault(Box::new(Report {
            cause: failure.cause,
            place,
            other,
            seed: self.options.seed,
            policy: self.options.policy,
        }))
    }

    /// The instructions that a fault about memory names: the one that revealed it, and of a race the other one.
    pub(super) fn places_of(&self, cause: &Cause) -> (Option<Place>, Option<Place>) {
        let fault = match cause {
            Cause::Memory(fault) => fault,
            Cause::OutOfStep { first, site, .. } => return (None, self.place_of_site(*first, *site)),
            _ => return (None, None),
        };
        let place = accused(fault).and_then(|(thread, site)| self.place_of_site(thread, site));
        let other = match &**fault {
            Fault::Race { first, .. } | Fault::Proxy { first, .. } => {
                self.place_of_site(first.thread, first.site)
            }
            _ => None,
        };
        (place, other)
    }
}

fn is_by_copy(cause: &Cause) -> bool {
    let Cause::Memory(fault) = cause else { return false };
    accused(fault).is_some_and(|(thread, _)| thread.async_copy().is_some())
}

fn place_of(image: &super::Image, pc: u32) -> Place {
    let kernel = image.kernel();
    let extent = kernel.program.extents.get(pc as usize).copied().unwrap_or_default();
    let (line, text) = image.module.line(extent);
    Place {
        device: image.device.0,
        kernel: kernel.name.clone(),
        block: [0; 3],
        thread: [0; 3],
        file: image.module.file.clone(),
        line,
        text: text.to_owned(),
    }
}

/// x, y and z of a linear index.
fn coordinates(index: u32, size: [u32; 3]) -> [u32; 3] {
    let [x, y, _] = size.map(|size| size.max(1));
    [index % x, index / x % y, index / (x * y)]
}

/// Who did what a fault is about.
fn accused(fault: &Fault) -> Option<(Thread, Site)> {
    match fault {
        Fault::Unmapped { access }
        | Fault::OutOfBounds { access, .. }
        | Fault::UseAfterFree { access, .. }
        | Fault::Misaligned { access, .. }
        | Fault::Uninitialised { access, .. }
        | Fault::NoPeerAccess { access, .. } => Some((access.thread, access.site)),
        Fault::Race { second, .. } | Fault::Proxy { second, .. } => Some((second.thread, second.site)),
        _ => None,
    }
}
