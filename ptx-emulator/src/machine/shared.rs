//! What a warp shares with its block, grid and machine while it runs, and how a turn ends.

use super::warp::{Fragment, Frame, Warp};
use crate::exec::Cause;
use crate::exec::asynchronous::AsyncState;
use crate::exec::barrier::Barriers;
use crate::exec::cluster::Cluster;
use crate::exec::context::{Context, Environment};
use crate::exec::registers::Pool;
use crate::exec::rows::{Constants, Mask};
use crate::external::{Bound, Library};
use crate::memory::{BlockId, Clock, Memory, Site, Thread};
use crate::program::{Pc, Program};

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It could go on at once.
    Ready,
    /// Every fragment waits.
    Blocked,
    /// All lanes have exited.
    Finished,
}

/// What a warp shares with its block, grid and machine.
pub(crate) struct Shared<'a> {
    pub(crate) program: &'a Program,
    pub(crate) constants: &'a Constants,
    pub(crate) site_base: u32,
    pub(crate) block: BlockId,
    pub(crate) memory: &'a mut Memory,
    pub(crate) environment: &'a Environment,
    pub(crate) barriers: &'a mut Barriers,
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) asynchronous: &'a mut AsyncState,
    pub(crate) registers: &'a mut Pool,
    pub(crate) bound: &'a [Bound],
    pub(crate) libraries: &'a mut Vec<Box<dyn Library>>,
    pub(crate) output: &'a mut String,
    pub(crate) progress: &'a mut u64,
    /// Whether grids before this one have ended, and what `griddepcontrol.wait` then acquires.
    pub(crate) predecessors: Option<&'a Clock>,
    /// Set by `griddepcontrol.launch_dependents`.
    pub(crate) triggered: &'a mut bool,
    pub(crate) check_registers: bool,
    pub(crate) find_spins: bool,
    pub(crate) warp_instructions: u64,
    pub(crate) thread_instructions: u64,
    /// The lane that an instruction worked on when it failed.
    pub(crate) culprit: Option<usize>,
}

/// A failure, and where.
pub(crate) struct Failure {
    pub(crate) cause: Cause,
    pub(crate) pc: Pc,
    /// Lanes that executed the instruction.
    pub(crate) mask: Mask,
}

pub(super) enum Next {
    /// Go on with this fragment.
    Same(Fragment),
    /// It was put away: waits, ended, or merged.
    Other,
    /// Go on, but let other warps run first.
    Yield(Fragment),
}

impl Shared<'_> {
    pub(super) fn context<'c>(
        &'c mut self,
        warp: &'c mut Warp,
        frame: Frame,
        pc: Pc,
        mask: Mask,
    ) -> Context<'c> {
        Context {
            rows: warp.registers.frame(frame.registers, self.constants, mask),
            memory: self.memory,
            privates: &mut warp.privates,
            base: frame.private,
            environment: self.environment,
            barriers: self.barriers,
            cluster: self.cluster,
            asynchronous: self.asynchronous,
            registers: self.registers,
            first: Thread::new(self.block, warp.first_thread),
            site: Site(self.site_base + pc),
            output: self.output,
            progress: self.progress,
            bound: self.bound,
            libraries: self.libraries,
            culprit: &mut self.culprit,
        }
    }
}
