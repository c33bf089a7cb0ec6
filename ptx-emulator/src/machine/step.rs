//! Execution of one warp, until it waits, ends, gives way or has used up its turn.

use super::shared::{Failure, Next, Shared, Turn};
use super::warp::{Fragment, Frame, Spin, State, Warp};
use crate::exec::barrier;
use crate::exec::context::lanes;
use crate::exec::control::GridControl;
use crate::exec::rows::{Mask, Slot};
use crate::exec::warp::Kind as CollectiveKind;
use crate::exec::{
    Cause, access, address, asynchronous, atomic, atomic128, cluster, matrix, mbarrier, mma, registers,
    special, subbyte, tensor, warp, wgmma, wmma,
};
use crate::external;
use crate::program::{Inst, NOWHERE, Op, Pc, Program};

/// A fragment that spins this long while lanes wait for it lets them go on.
const PATIENCE: u64 = 20_000;

impl Warp {
    /// Runs up to `budget` instructions.
    pub(crate) fn run(&mut self, shared: &mut Shared<'_>, budget: u64) -> Result<Turn, Failure> {
        let end = shared.warp_instructions + budget;
        loop {
            if self.is_finished() {
                return Ok(Turn::Finished);
            }
            let Some(index) = self.runnable(shared) else {
                if self.fragments.iter().all(|fragment| matches!(fragment.state, State::Members { .. })) {
                    if self.release_joins() {
                        continue;
                    }
                    return Err(self.divergent());
                }
                return Ok(Turn::Blocked);
            };
            let fragment = self.fragments.remove(index);
            if !self.run_fragment(fragment, shared, end)? {
                return Ok(if self.is_finished() { Turn::Finished } else { Turn::Ready });
            }
        }
    }

    /// True if other fragments may run in this turn.
    fn run_fragment(
        &mut self,
        mut fragment: Fragment,
        shared: &mut Shared<'_>,
        end: u64,
    ) -> Result<bool, Failure> {
        let code: &[Inst] = &shared.program.code;
        loop {
            if shared.warp_instructions >= end {
                self.fragments.push(fragment);
                return Ok(false);
            }
            let pc = fragment.pc;
            let inst = &code[pc as usize];
            let frame = fragment.frame();
            let mut active = fragment.mask;
            if let Some(guard) = inst.guard {
                let bits = self.registers.preds[(frame.registers.preds + guard.slot.0) as usize];
                if shared.check_registers {
                    self.check_guard(&fragment, guard.slot, pc)?;
                }
                active &= if guard.negated { !bits } else { bits };
            }
            if !self.deferred.is_empty() && self.catch_up(&fragment, active, shared)? {
                self.fragments.push(fragment);
                return Ok(false);
            }
            shared.warp_instructions += 1;
            shared.thread_instructions += u64::from(active.count_ones());
            if shared.check_registers {
                self.check_accumulators(&fragment, active, shared)?;
                self.check_registers(shared.program, frame, pc, active)?;
            }
            if let Op::Row { run, slots } = &inst.op {
                if active != 0 {
                    run(&mut self.registers.frame(frame.registers, shared.constants, active), slots);
                }
                fragment.pc = pc + 1;
            } else {
                shared.culprit = None;
                let next = self.execute(inst, fragment, active, shared);
                let lanes = shared.culprit.map_or(active, |lane| 1 << lane);
                match next.map_err(|cause| Failure { cause, pc, mask: lanes })? {
                    Next::Same(same) => fragment = same,
                    Next::Other => return Ok(true),
                    Next::Yield(same) => {
                        self.fragments.push(same);
                        return Ok(false);
                    }
                }
            }
            if fragment.join.is_some() {
                match self.settle(fragment) {
                    Some(same) => fragment = same,
                    None => return Ok(true),
                }
                fragment.alone += 1;
                if fragment.alone > PATIENCE {
                    fragment.alone = 0;
                    self.release_joins();
                    self.fragments.push(fragment);
                    return Ok(true);
                }
            }
        }
    }

    fn check_guard(&self, fragment: &Fragment, slot: Slot, pc: Pc) -> Result<(), Failure> {
        let written = self.registers.written[0][(fragment.frame().registers.preds + slot.0) as usize];
        unwritten(fragment.mask & !written, pc)
    }

    fn check_registers(
        &mut self,
        program: &Program,
        frame: Frame,
        pc: Pc,
        active: Mask,
    ) -> Result<(), Failure> {
        let uses = &program.uses[pc as usize];
        let base = [frame.registers.preds, frame.registers.words, frame.registers.doubles];
        for typed in &uses.reads {
            let class = typed.class as usize;
            unwritten(active & !self.registers.written[class][(base[class] + typed.slot.0) as usize], pc)?;
        }
        for typed in &uses.writes {
            let class = typed.class as usize;
            self.registers.written[class][(base[class] + typed.slot.0) as usize] |= active;
        }
        Ok(())
    }

    fn execute(
        &mut self,
        inst: &Inst,
        mut fragment: Fragment,
        active: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<Next, Cause> {
        let pc = fragment.pc;
        match &inst.op {
            Op::Branch { target, reconverge } => {
                Ok(self.branch(fragment, active, *target, *reconverge, shared))
            }
            _ if active == 0 => {
                fragment.pc += 1;
                Ok(Next::Same(fragment))
            }
            Op::BranchTable { index, targets, reconverge } => {
                self.branch_table(fragment, active, *index, targets, *reconverge, shared)
            }
            Op::Exit => Ok(self.leave(fragment, active, shared)),
            Op::Return => self.give_back(fragment, active, shared),
            Op::Trap => Err(Cause::Trap),
            Op::Call(op) => self.call(inst, op, fragment, active, shared),
            Op::Warp(op) if op.kind != CollectiveKind::ActiveMask => {
                let row = *self
                    .registers
                    .frame(fragment.frame().registers, shared.constants, active)
                    .word(op.members);
                let members = row[active.trailing_zeros() as usize & 31];
                let same =
                    lanes(active).filter(|&lane| row[lane] == members).fold(0, |bits, lane| bits | 1 << lane);
                if same == active {
                    return self.together(inst, fragment, active, members, shared);
                }
                if let Some(lane) = lanes(active & !same & members).next() {
                    return Err(Cause::MemberMask { first: members, second: row[lane] });
                }
                // Groups with masks of their own execute one after the other and meet behind.
                Ok(self.execute_apart(fragment, same, pc + 1))
            }
            Op::Mma(_)
            | Op::SubByteMma(_)
            | Op::Matrix(_)
            | Op::Wmma(_)
            | Op::Wgmma(_)
            | Op::Registers(_) => self.together(inst, fragment, active, Mask::MAX, shared),
            // Each thread counts for itself: those that the guard keeps out go on.
            Op::Barrier(op) if !op.aligned && active != fragment.mask => {
                let meet = if op.kind == barrier::Kind::Arrive { pc + 1 } else { NOWHERE };
                Ok(self.execute_apart(fragment, active, meet))
            }
            Op::Grid(GridControl::Wait) if active != fragment.mask => {
                Ok(self.execute_apart(fragment, active, pc + 1))
            }
            Op::Barrier(op) => {
                let members = if op.aligned { Mask::MAX } else { active };
                self.together(inst, fragment, active, members, shared)
            }
            Op::Cluster(op) => {
                let members = if op.is_aligned() { Mask::MAX } else { active };
                self.together(inst, fragment, active, members, shared)
            }
            Op::Grid(GridControl::LaunchDependents) => {
                *shared.triggered = true;
                fragment.pc = pc + 1;
                Ok(Next::Yield(fragment))
            }
            Op::Grid(GridControl::Wait) => {
                fragment.state = State::Grid;
                self.fragments.push(fragment);
                Ok(Next::Other)
            }
            Op::Sleep(slot) => {
                let rows = self.registers.frame(fragment.frame().registers, shared.constants, active);
                let longest = lanes(active).map(|lane| rows.word(*slot)[lane]).max().unwrap_or(0);
                fragment.state =
                    State::Sleeping { until_ns: shared.environment.time_ns + u64::from(longest) };
                self.fragments.push(fragment);
                Ok(Next::Other)
            }
            op => {
                let gives_way = matches!(op, Op::Mbarrier(op) if op.is_test());
                if matches!(op, Op::Special { which, .. } if which.shows_time()) {
                    fragment.spin = Spin::default();
                }
                if !self.defer(&fragment, active, shared) {
                    self.simple(op, &fragment, active, shared)?;
                }
                fragment.pc = pc + 1;
                Ok(if gives_way { Next::Yield(fragment) } else { Next::Same(fragment) })
            }
        }
    }

    /// Divides a fragment so that `lanes` come to its instruction by themselves, and the others after them; all meet at
    /// `meet`.
    fn execute_apart(&mut self, mut fragment: Fragment, lanes: Mask, meet: Pc) -> Next {
        let pc = fragment.pc;
        // `split` moves the others on by one.
        fragment.pc = pc.wrapping_sub(1);
        self.split(fragment, lanes, pc, meet).map_or(Next::Other, Next::Same)
    }

    /// Instructions that leave control flow alone.
    pub(super) fn simple(
        &mut self,
        op: &Op,
        fragment: &Fragment,
        active: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<(), Cause> {
        let mut context = shared.context(self, fragment.frame(), fragment.pc, active);
        match op {
            Op::Special { d, which } => special::read(&mut context, *d, *which),
            Op::Call(op) => external::execute(&mut context, op)?,
            Op::FrameAddress { d, offset, frame } => {
                let base = match frame {
                    crate::program::Frame::Params => context.base.params,
                    _ => context.base.local,
                };
                context.rows.put_wide(d.slot, d.class, &[u64::from(base + offset); 32]);
            }
            Op::Load(op) => access::load(&mut context, op)?,
            Op::Store(op) => access::store(&mut context, op)?,
            Op::Atomic(op) => atomic::execute(&mut context, op)?,
            Op::Atomic128(op) => atomic128::execute(&mut context, op)?,
            Op::Fence(op) => access::execute_fence(&mut context, op),
            Op::InitFence => access::execute_init_fence(&mut context),
            Op::ProxyFence => access::execute_proxy_fence(&mut context),
            Op::ConvertAddress(op) => address::execute(&mut context, op),
            Op::Async(op) => asynchronous::execute(&mut context, op)?,
            Op::TensorCopy(op) => tensor::execute(&mut context, op)?,
            Op::Mbarrier(op) => mbarrier::execute(&mut context, op)?,
            Op::Warp(op) => warp::execute(&mut context, op)?,
            Op::Mma(op) => mma::execute(&mut context, op),
            Op::SubByteMma(op) => subbyte::execute(&mut context, op),
            Op::Cluster(op) => cluster::execute(&mut context, *op)?,
            Op::Matrix(op) => matrix::execute(&mut context, op)?,
            Op::Wmma(op) => wmma::execute(&mut context, op)?,
            Op::Wgmma(op) => wgmma::execute(&mut context, op)?,
            Op::Registers(change) => registers::execute(&mut context, *change)?,
            _ => {}
        }
        Ok(())
    }
}

fn unwritten(lanes: Mask, pc: Pc) -> Result<(), Failure> {
    match lanes {
        0 => Ok(()),
        mask => {
            Err(Failure { cause: Cause::UninitialisedRegister { lane: mask.trailing_zeros() }, pc, mask })
        }
    }
}
