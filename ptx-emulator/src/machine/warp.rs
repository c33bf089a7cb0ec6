//! A warp: fragments of lanes that are at one place, and the places where they wait for each other.
//!
//! Lanes diverge at a branch into two fragments and meet at its immediate post-dominator, where the first to
//! come wait (a *join*). Joins are soft: when no other fragment of the warp can move, or one has spun for long,
//! those that wait go on alone. So lanes progress independently, as from Volta on, and a lane that spins on
//! another of its warp ends. Instructions that need lanes together (`.sync`, `.aligned`) gather them by mask.

use super::deferred::Deferred;
use crate::exec::context::{PrivateBase, Privates, lanes};
use crate::exec::rows::{Counts, LANES, Mask, Registers};
use crate::program::{NOWHERE, Pc, Program};

/// A call in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) function: u32,
    /// The call instruction; the callee returns behind it.
    pub(crate) call: Pc,
    pub(crate) registers: Counts,
    pub(crate) private: PrivateBase,
}

/// Why a fragment does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At a named barrier, in the phase of that number.
    Barrier {
        id: u32,
        generation: u64,
    },
    /// At an instruction that more lanes must reach: those that execute it, and all that must unless they exit.
    Members {
        active: Mask,
        members: Mask,
    },
    Sleeping {
        until_ns: u64,
    },
    /// At `barrier.cluster.wait`.
    Cluster,
    /// At `setmaxnreg.inc`.
    Registers,
    /// At `griddepcontrol.wait`.
    Grid,
}

/// Lanes that are at one place.
#[derive(Debug, Clone)]
pub(crate) struct Fragment {
    pub(crate) mask: Mask,
    pub(crate) pc: Pc,
    pub(crate) frames: Vec<Frame>,
    pub(crate) join: Option<usize>,
    pub(crate) state: State,
    /// Instructions since lanes began to wait for this fragment.
    pub(crate) alone: u64,
    pub(crate) spin: Spin,
}

impl Fragment {
    /// Whether lanes at `pc` of a call meet this fragment: at the same instruction, or both at a `bar.warp.sync`, which
    /// need not be the same.
    pub(crate) fn is_met_at(&self, program: &Program, pc: Pc, frame: Frame) -> bool {
        let syncs = |pc: Pc| program.code[pc as usize].op.is_warp_barrier();
        self.pc == pc && self.frame() == frame || syncs(self.pc) && syncs(pc)
    }

    pub(crate) fn frame(&self) -> Frame {
        self.frames[self.frames.len() - 1]
    }
}

/// A place where lanes meet after a branch.
#[derive(Debug, Clone)]
pub(crate) struct Join {
    pub(crate) pc: Pc,
    /// Calls deep.
    pub(crate) depth: usize,
    /// Lanes still to come, those that wait included.
    pub(crate) expected: Mask,
    pub(crate) arrived: Mask,
    pub(crate) parent: Option<usize>,
    frames: Vec<Frame>,
}

/// A repeated state at a backward branch, from which a fragment cannot escape by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spin {
    /// Backward branches taken.
    visits: u64,
    saved: Option<(Pc, u64)>,
    /// The visit at which the saved state was seen last, and the visits from the time before to that.
    since: u64,
    period: u64,
    pub(crate) is_spinning: bool,
}

/// 32 lanes or fewer.
#[derive(Debug)]
pub(crate) struct Warp {
    pub(crate) registers: Registers,
    pub(crate) privates: Privates,
    pub(crate) fragments: Vec<Fragment>,
    pub(crate) joins: Vec<Option<Join>>,
    /// Linear index of lane 0 in the block.
    pub(crate) first_thread: u32,
    pub(crate) live: Mask,
    /// Loads that weak memory has put off, in program order.
    pub(super) deferred: Vec<Deferred>,
}

impl Warp {
    pub(crate) fn new(program: &Program, first_thread: u32, threads: u32, params: &[u8]) -> Self {
        let entry = &program.functions[0];
        let mask = if threads >= LANES as u32 { Mask::MAX } else { (1 << threads) - 1 };
        let mut registers = Registers::default();
        registers.grow(entry.registers);
        let mut privates = Privates::default();
        for lane in 0..LANES {
            privates.local[lane].resize(entry.local_bytes as usize);
            privates.params[lane].resize(entry.param_bytes as usize);
            privates.params[lane].fill(params);
        }
        let frame = Frame {
            function: 0,
            call: NOWHERE,
            registers: Counts::default(),
            private: PrivateBase::default(),
        };
        let first = Fragment {
            mask,
            pc: entry.entry,
            frames: vec![frame],
            join: None,
            state: State::Ready,
            alone: 0,
            spin: Spin::default(),
        };
        Self {
            registers,
            privates,
            fragments: vec![first],
            joins: Vec::new(),
            first_thread,
            live: mask,
            deferred: Vec::new(),
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.live == 0
    }

    /// Divides a fragment: `taken` goes to `target`, the rest on; they meet at `reconverge`. Returns what goes on
    /// running.
    pub(crate) fn split(
        &mut self,
        mut fragment: Fragment,
        taken: Mask,
        target: Pc,
        reconverge: Pc,
    ) -> Option<Fragment> {
        if reconverge != NOWHERE {
            let depth = fragment.frames.len();
            let same = fragment.join.and_then(|index| self.joins[index].as_ref());
            if !same.is_some_and(|join| join.pc == reconverge && join.depth == depth) {
                let join = Join {
                    pc: reconverge,
                    depth,
                    expected: fragment.mask,
                    arrived: 0,
                    parent: fragment.join,
                    frames: fragment.frames.clone(),
                };
                fragment.join = Some(self.add_join(join));
            }
        }
        let mut other = fragment.clone();
        other.mask = taken;
        other.pc = target;
        fragment.mask &= !taken;
        fragment.pc = fragment.pc.wrapping_add(1);
        let other = self.settle(other);
        let fragment = self.settle(fragment);
        match (fragment, other) {
            (Some(fragment), other) => {
                self.fragments.extend(other);
                Some(fragment)
            }
            (None, other) => other,
        }
    }

    fn add_join(&mut self, join: Join) -> usize {
        match self.joins.iter().position(Option::is_none) {
            Some(index) => {
                self.joins[index] = Some(join);
                index
            }
            None => {
                self.joins.push(Some(join));
                self.joins.len() - 1
            }
        }
    }

    /// Lets a fragment wait if it has come to its join; whoever completes the join goes on with all its lanes.
    pub(crate) fn settle(&mut self, mut fragment: Fragment) -> Option<Fragment> {
        loop {
            let Some(index) = fragment.join else { return Some(fragment) };
            let Some(join) = self.joins[index].as_mut() else { return Some(fragment) };
            if join.pc != fragment.pc || join.depth != fragment.frames.len() {
                return Some(fragment);
            }
            join.arrived |= fragment.mask;
            if join.arrived != join.expected {
                return None;
            }
            fragment.mask = join.arrived;
            fragment.join = join.parent;
            fragment.alone = 0;
            self.joins[index] = None;
        }
    }

    /// Lanes exit: no join waits for them any more.
    pub(crate) fn retire(&mut self, lanes: Mask) {
        self.live &= !lanes;
        for join in self.joins.iter_mut().flatten() {
            join.expected &= !lanes;
        }
        self.resume_complete_joins();
    }

    /// Fragments whose missing lanes have left go on.
    fn resume_complete_joins(&mut self) {
        for index in 0..self.joins.len() {
            let complete = self.joins[index].as_ref().is_some_and(|join| join.arrived == join.expected);
            if !complete {
                continue;
            }
            if let Some(join) = self.joins[index].take().filter(|join| join.arrived != 0) {
                self.resume(join.arrived, &join);
            }
        }
    }

    fn resume(&mut self, mask: Mask, join: &Join) {
        let fragment = Fragment {
            mask,
            pc: join.pc,
            frames: join.frames.clone(),
            join: join.parent,
            state: State::Ready,
            alone: 0,
            spin: Spin::default(),
        };
        let fragment = self.settle(fragment);
        self.fragments.extend(fragment);
    }

    /// Lets lanes that wait at joins go on alone; false if there are none.
    pub(crate) fn release_joins(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.joins.len() {
            let Some(join) = self.joins[index].as_mut().filter(|join| join.arrived != 0) else { continue };
            let arrived = join.arrived;
            join.arrived = 0;
            join.expected &= !arrived;
            let join = join.clone();
            self.resume(arrived, &join);
            any = true;
        }
        any
    }

    /// Notes a backward branch; true if the fragment repeats itself: it has been in this state before, or is between
    /// two visits of such a state.
    pub(crate) fn note_repetition(&self, fragment: &mut Fragment, counts: Counts) -> bool {
        fragment.spin.visits += 1;
        // Long computations are looked at now and then; a cycle shows at every stride.
        if !self.deferred.is_empty() {
            fragment.spin = Spin::default();
            return false;
        }
        if fragment.spin.visits > 256 && !fragment.spin.visits.is_multiple_of(64) {
            return fragment.spin.is_spinning;
        }
        let state = (fragment.pc, self.hash(fragment, counts));
        fragment.spin.note(state);
        fragment.spin.is_spinning
    }

    /// FNV-1a over all that decides what the fragment does next, memory that others see apart: its place, and the
    /// registers and private memory of its lanes, of all calls in progress.
    fn hash(&self, fragment: &Fragment, counts: Counts) -> u64 {
        let top = fragment.frame().registers.plus(counts);
        let mut hash = 0xCBF2_9CE4_8422_2325u64;
        let mut add = |value: u64| hash = (hash ^ value).wrapping_mul(0x100_0000_01B3).rotate_left(17);
        add(u64::from(fragment.pc) << 32 | u64::from(fragment.mask));
        for &bits in &self.registers.preds[..top.preds as usize] {
            add((bits & fragment.mask).into());
        }
        for lane in lanes(fragment.mask) {
            self.registers.words[..top.words as usize].iter().for_each(|row| add(row[lane].into()));
            self.registers.doubles[..top.doubles as usize].iter().for_each(|row| add(row[lane]));
            self.privates.local[lane].words().chain(self.privates.params[lane].words()).for_each(&mut add);
        }
        hash
    }
}

impl Spin {
    fn note(&mut self, state: (Pc, u64)) {
        if self.saved == Some(state) {
            (self.period, self.since) = (self.visits - self.since, self.visits);
            self.is_spinning = true;
            return;
        }
        // A cycle that it leaves was none.
        self.is_spinning &= self.visits - self.since <= self.period;
        if !self.is_spinning && self.visits.is_power_of_two() {
            // Brent: a saved state of growing age finds cycles of any length.
            (self.saved, self.since) = (Some(state), self.visits);
        }
    }
}
