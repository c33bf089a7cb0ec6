//! Instructions that lanes execute together: fragments wait at them until all members are there.

use super::shared::{Failure, Next, Shared};
use super::warp::{Fragment, State, Warp};
use crate::exec::Cause;
use crate::exec::barrier::{self, Barrier};
use crate::exec::cluster::Operation;
use crate::exec::context::lanes;
use crate::exec::rows::Mask;
use crate::program::{Inst, Op};

impl Warp {
    /// Executes an instruction once all `members` that have not exited are at it.
    pub(super) fn together(
        &mut self,
        inst: &Inst,
        mut fragment: Fragment,
        active: Mask,
        members: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<Next, Cause> {
        let pc = fragment.pc;
        if let Some(lane) = lanes(active & !members).next() {
            return Err(Cause::NotMember { lane: lane as u32, members });
        }
        if members & self.live & !active == 0 {
            return match &inst.op {
                Op::Barrier(op) => self.barrier(op, vec![fragment], active, shared),
                op => {
                    self.simple(op, &fragment, active, shared)?;
                    if let Some(state) = waits_behind(op) {
                        fragment.state = state;
                        self.fragments.push(fragment);
                        return Ok(Next::Other);
                    }
                    fragment.pc += 1;
                    Ok(Next::Same(fragment))
                }
            };
        }
        fragment.state = State::Members { active, members };
        let frame = fragment.frame();
        self.fragments.push(fragment);
        let gathered = self.gathered(shared.program, pc, frame, members);
        if members & self.live & !gathered != 0 {
            return Ok(Next::Other);
        }
        let waits =
            |other: &Fragment| matches!(other.state, State::Members { members: same, .. } if same == members);
        let (mut come, rest) = std::mem::take(&mut self.fragments)
            .into_iter()
            .partition::<Vec<_>, _>(|other| other.is_met_at(shared.program, pc, frame) && waits(other));
        self.fragments = rest;
        if let Op::Barrier(op) = &inst.op {
            return self.barrier(op, come, gathered, shared);
        }
        if let Some(state) = waits_behind(&inst.op) {
            self.simple(&inst.op, &come[0], gathered, shared)?;
            come.iter_mut().for_each(|member| member.state = state);
            self.fragments.extend(come);
            return Ok(Next::Other);
        }
        if inst.op.is_warp_barrier() {
            let first = self.first_thread;
            shared.memory.barrier(shared.block, lanes(gathered).map(move |lane| first + lane as u32));
        } else {
            self.simple(&inst.op, &come[0], gathered, shared)?;
        }
        for member in &mut come {
            member.state = State::Ready;
            member.pc += 1;
        }
        for member in come {
            let member = self.settle(member);
            self.fragments.extend(member);
        }
        Ok(Next::Other)
    }

    fn barrier(
        &mut self,
        op: &Barrier,
        members: Vec<Fragment>,
        mask: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<Next, Cause> {
        let Fragment { pc, .. } = members[0];
        let mut context = shared.context(self, members[0].frame(), pc, mask);
        let (id, generation) = barrier::arrive(&mut context, op)?;
        for mut member in members {
            if op.kind == barrier::Kind::Arrive {
                member.state = State::Ready;
                member.pc += 1;
                let member = self.settle(member);
                self.fragments.extend(member);
            } else {
                member.state = State::Barrier { id, generation };
                self.fragments.push(member);
            }
        }
        Ok(Next::Other)
    }

    /// No fragment can move, and all of them wait for lanes of their own warp.
    pub(super) fn divergent(&self) -> Failure {
        let fragment = &self.fragments[0];
        let State::Members { active, members } = fragment.state else {
            return Failure { cause: Cause::Trap, pc: fragment.pc, mask: fragment.mask };
        };
        let missing = members & !active & self.live;
        let why = if self.fragments.len() > 1 {
            "they wait at another instruction, and only `bar.warp.sync` may be several"
        } else {
            "a guard keeps them out"
        };
        Failure { cause: Cause::Divergent { waiting: active, missing, why }, pc: fragment.pc, mask: active }
    }
}

/// What lanes wait for once they have executed an instruction together.
fn waits_behind(op: &Op) -> Option<State> {
    match op {
        Op::Cluster(Operation::Wait { .. }) => Some(State::Cluster),
        Op::Registers(change) if change.increases => Some(State::Registers),
        _ => None,
    }
}
