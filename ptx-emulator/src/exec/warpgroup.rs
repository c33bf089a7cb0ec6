//! Warpgroups in step: the warps of one execute the same instructions of `wgmma`, one after the other, with the same
//! matrices (PTX ISA, "wgmma.mma_async": `.aligned`, and the contents of descriptors). Here they come to them at
//! different times, so each is compared with the first that came.

use std::collections::{BTreeMap, VecDeque};

use super::context::{Cause, Done};
use crate::memory::{Site, Thread};

/// Threads of a warpgroup.
pub(super) const GROUP_THREADS: u32 = 128;
const WARP_THREADS: u32 = 32;
const WARPS: usize = (GROUP_THREADS / WARP_THREADS) as usize;

/// An instruction as a warp has executed it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// Lane 0.
    pub(super) thread: Thread,
    pub(super) site: Site,
    /// Of a product: both descriptors, and whether it adds to D.
    pub(super) operands: Option<([u64; 2], bool)>,
}

/// The steps that some warps of a group have executed, and others not yet.
#[derive(Debug, Default)]
struct Group {
    steps: VecDeque<Step>,
    /// Steps before those.
    dropped: usize,
    /// By warp.
    executed: [usize; WARPS],
}

impl Group {
    fn note(&mut self, warp: usize, step: Step) -> Done {
        let number = self.executed[warp] - self.dropped;
        self.executed[warp] += 1;
        let Some(first) = self.steps.get(number) else {
            self.steps.push_back(step);
            return Ok(());
        };
        let differs = |what| Err(Cause::OutOfStep { what, first: first.thread, site: first.site });
        if first.site != step.site {
            return differs("another instruction in the place of this one");
        }
        if let (Some((theirs, they_add)), Some((ours, adds))) = (first.operands, step.operands) {
            if theirs != ours {
                return differs("this with other descriptors");
            }
            if they_add != adds {
                return differs("this with another scale-d");
            }
        }
        if self.executed.iter().all(|&executed| executed > self.dropped) {
            self.steps.pop_front();
            self.dropped += 1;
        }
        Ok(())
    }
}

/// The warpgroups of a block.
#[derive(Debug, Default)]
pub(super) struct Warpgroups(BTreeMap<u32, Group>);

impl Warpgroups {
    /// The warp that begins with thread `first_thread` executes its next instruction.
    pub(super) fn note(&mut self, first_thread: u32, step: Step) -> Done {
        let group = self.0.entry(first_thread / GROUP_THREADS).or_default();
        group.note((first_thread % GROUP_THREADS / WARP_THREADS) as usize, step)
    }

    /// What only some warps of a group have executed.
    pub(super) fn unfinished(&self) -> Option<Step> {
        self.0.values().find_map(|group| group.steps.front()).copied()
    }
}
