//! Loads that are put off in weak memory: what PTX calls load buffering.
//!
//! A load may take its value after a later store of its own thread, to another place, is visible. So a warp goes on
//! behind a load without it, until an instruction needs what it loads, or must come after it: one that touches its
//! registers (an address, a value, a predicate made of it: dependencies hold by that), an access to the same bytes,
//! or anything but arithmetic, branches, plain and relaxed loads and stores. Nothing that a thread learns lies
//! between, so the put-off load reads what it could read at its place, and what has become visible since.

use super::shared::{Failure, Shared};
use super::warp::{Fragment, Frame, Warp};
use crate::exec::access;
use crate::exec::address::generic;
use crate::exec::context::lanes;
use crate::exec::rows::{Mask, Row, each};
use crate::memory::Order;
use crate::program::{Address, Op, Pc, Program};
use crate::text::Space;

/// Put-off loads of a warp, at most.
const MAX_DEFERRED: usize = 4;

/// A load whose turn is still to come.
#[derive(Debug)]
pub(super) struct Deferred {
    pc: Pc,
    frame: Frame,
    mask: Mask,
    reach: Reach,
    /// Instructions of the warp that it may still wait.
    left: u32,
    /// Whether it was put off once more when it was due, by letting other warps run first.
    gave_way: bool,
}

/// The bytes of an access: those of each lane from a generic address on.
#[derive(Debug)]
struct Reach {
    from: Row<u64>,
    bytes: u64,
}

impl Reach {
    fn new(warp: &mut Warp, shared: &mut Shared<'_>, frame: Frame, pc: Pc, op: &Op) -> Option<Self> {
        let (space, address, bytes): (Space, &Address, u64) = match op {
            Op::Load(op) => (op.space, &op.address, op.width.bytes() * op.elements.len() as u64),
            Op::Store(op) => (op.space, &op.address, op.width.bytes() * op.elements.len() as u64),
            _ => return None,
        };
        let mut from = shared.context(warp, frame, pc, Mask::MAX).addresses(address);
        if !matches!(space, Space::Generic | Space::Global) {
            from = each(&from, |at| generic(space, at));
        }
        Some(Self { from, bytes })
    }

    /// Whether a lane of `mask` may reach a byte of both.
    fn meets(&self, other: &Self, mask: Mask) -> bool {
        lanes(mask).any(|lane| {
            let (a, b) = (self.from[lane], other.from[lane]);
            a < b.wrapping_add(other.bytes) && b < a.wrapping_add(self.bytes)
        })
    }
}

impl Warp {
    /// Puts a load off, if memory is weak, chance says so, and it is one that may wait.
    pub(super) fn defer(&mut self, fragment: &Fragment, active: Mask, shared: &mut Shared<'_>) -> bool {
        let program: &Program = shared.program;
        let op = &program.code[fragment.pc as usize].op;
        let Op::Load(load) = op else { return false };
        let may_wait = matches!(load.order, Order::Weak | Order::Relaxed)
            && matches!(load.space, Space::Global | Space::Shared | Space::Generic);
        if !may_wait || self.deferred.len() == MAX_DEFERRED {
            return false;
        }
        let Some(left) = shared.memory.put_off() else { return false };
        let (pc, frame) = (fragment.pc, fragment.frame());
        let Some(reach) = Reach::new(self, shared, frame, pc, op) else { return false };
        self.deferred.push(Deferred { pc, frame, mask: active, reach, left, gave_way: false });
        true
    }

    /// Executes what was put off and can wait no longer: for the next instruction of a fragment, which its `active`
    /// lanes execute. True if other warps are to run before, which a load gets once.
    pub(super) fn catch_up(
        &mut self,
        fragment: &Fragment,
        active: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<bool, Failure> {
        let program: &Program = shared.program;
        let pc = fragment.pc;
        let op = &program.code[pc as usize].op;
        let reach = Reach::new(self, shared, fragment.frame(), pc, op);
        let is_due = |it: &mut Deferred| {
            it.left = it.left.saturating_sub(1);
            it.left == 0 || it.mask & fragment.mask != 0 && it.precedes(program, pc, active, reach.as_ref())
        };
        // In order: one that is due takes those before it along.
        let due = self.deferred.iter_mut().enumerate().filter_map(|(at, it)| is_due(it).then_some(at)).last();
        let due = due.map_or(0, |last| last + 1);
        let gives_way = self.deferred[..due].iter().any(|it| !it.gave_way);
        if gives_way {
            self.deferred[..due].iter_mut().for_each(|it| it.gave_way = true);
            return Ok(true);
        }
        for Deferred { pc, frame, mask, .. } in self.deferred.drain(..due).collect::<Vec<_>>() {
            let Op::Load(load) = &program.code[pc as usize].op else { continue };
            shared.culprit = None;
            let done = access::load(&mut shared.context(self, frame, pc, mask), load);
            let at = shared.culprit.map_or(mask, |lane| 1 << lane);
            done.map_err(|cause| Failure { cause, pc, mask: at })?;
        }
        Ok(false)
    }
}

impl Deferred {
    /// Whether the instruction at `next` must not be executed before the load.
    fn precedes(&self, program: &Program, next: Pc, active: Mask, reach: Option<&Reach>) -> bool {
        let (mine, theirs) = (&program.uses[self.pc as usize], &program.uses[next as usize]);
        let inst = &program.code[next as usize];
        let touches = |a: &[crate::program::Typed], b: &[crate::program::Typed]| {
            a.iter().any(|a| b.iter().any(|b| (a.class, a.slot) == (b.class, b.slot)))
        };
        let depends = touches(&mine.writes, &theirs.reads)
            || touches(&mine.writes, &theirs.writes)
            || touches(&mine.reads, &theirs.writes);
        let waits = match &inst.op {
            Op::Row { .. } | Op::Nop | Op::Special { .. } | Op::FrameAddress { .. } | Op::Branch { .. } => {
                false
            }
            Op::Load(load) => load.order.acquires(),
            Op::Store(store) => store.order.releases(),
            _ => true,
        };
        depends || waits || reach.is_some_and(|reach| reach.meets(&self.reach, self.mask & active))
    }
}
