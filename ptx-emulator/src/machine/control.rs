//! Control flow of fragments: branches, calls, returns and exits.

use super::step::{Next, Shared};
use super::warp::{Fragment, Frame, Warp};
use crate::exec::context::{self, PrivateBase, lanes};
use crate::exec::rows::{Counts, Mask, Slot};
use crate::exec::{Cause, call};
use crate::external::{Bound, Callers};
use crate::program::{FunctionInfo, Inst, NOWHERE, Op, Pc};

impl Warp {
    pub(super) fn branch(
        &mut self,
        mut fragment: Fragment,
        taken: Mask,
        target: Pc,
        reconverge: Pc,
        shared: &mut Shared<'_>,
    ) -> Next {
        // Where lanes part, those that go back are a fragment of their own from then on.
        let back = taken == fragment.mask && target <= fragment.pc;
        if back && shared.find_spins {
            let counts = shared.program.functions[fragment.frame().function as usize].registers;
            if self.note_repetition(&mut fragment, counts) {
                fragment.pc = target;
                return Next::Yield(fragment);
            }
        }
        if taken == fragment.mask {
            fragment.pc = target;
        } else if taken == 0 {
            fragment.pc += 1;
        } else {
            return self.split(fragment, taken, target, reconverge).map_or(Next::Other, Next::Same);
        }
        Next::Same(fragment)
    }

    /// One target at a time; lanes for other targets stay at the branch.
    pub(super) fn branch_table(
        &mut self,
        mut fragment: Fragment,
        active: Mask,
        index: Slot,
        targets: &[Pc],
        reconverge: Pc,
        shared: &mut Shared<'_>,
    ) -> Result<Next, Cause> {
        let row = *self.registers.frame(fragment.frame().registers, shared.constants, active).word(index);
        let chosen = row[active.trailing_zeros() as usize & 31];
        let Some(&target) = targets.get(chosen as usize) else {
            return Err(Cause::BranchIndex { index: chosen, entries: targets.len() });
        };
        let taken = lanes(active).filter(|&lane| row[lane] == chosen).fold(0, |bits, lane| bits | 1 << lane);
        if taken == fragment.mask {
            fragment.pc = target;
            return Ok(Next::Same(fragment));
        }
        // What is not taken executes the branch again: `split` moves it on by one.
        fragment.pc = fragment.pc.wrapping_sub(1);
        Ok(self.split(fragment, taken, target, reconverge).map_or(Next::Other, Next::Same))
    }

    pub(super) fn leave(&mut self, mut fragment: Fragment, lanes: Mask, shared: &mut Shared<'_>) -> Next {
        fragment.mask &= !lanes;
        fragment.pc += 1;
        shared.barriers.live -= lanes.count_ones();
        let threads = context::lanes(lanes).map(|lane| self.first_thread + lane as u32);
        shared.cluster.leave(shared.environment.cluster_rank(), threads);
        *shared.progress += 1;
        shared.barriers.complete(shared.memory, shared.block);
        self.retire(lanes);
        // Those that gather now wait for fewer.
        if fragment.mask == 0 { Next::Other } else { Next::Same(fragment) }
    }

    /// A call of a library's function: no frame is made.
    pub(super) fn call_library(
        &mut self,
        inst: &Inst,
        bound: Bound,
        mut fragment: Fragment,
        active: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<Next, Cause> {
        if bound.function(shared.libraries).callers == Callers::Warp {
            return self.together(inst, fragment, active, Mask::MAX, shared);
        }
        self.simple(&inst.op, &fragment, active, shared)?;
        fragment.pc += 1;
        Ok(Next::Same(fragment))
    }

    pub(super) fn call(
        &mut self,
        inst: &Inst,
        op: &call::Call,
        mut fragment: Fragment,
        active: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<Next, Cause> {
        let (frame, pc) = (fragment.frame(), fragment.pc);
        let program = shared.program;
        let (function, lanes) = match op.target {
            call::Target::Function(index) => (index, active),
            call::Target::Register(slot) => {
                call::resolve(&shared.context(self, frame, pc, active), slot, &program.functions)?
            }
            call::Target::External(index) => {
                let bound = shared.bound[index as usize];
                return self.call_library(inst, bound, fragment, active, shared);
            }
            call::Target::Print | call::Target::Malloc | call::Target::Free => {
                call::provided(&mut shared.context(self, frame, pc, active), op)?;
                fragment.pc += 1;
                return Ok(Next::Same(fragment));
            }
            call::Target::Assert => {
                return Err(call::assertion(&mut shared.context(self, frame, pc, active), op));
            }
        };
        if fragment.frames.len() >= call::MAX_DEPTH {
            return Err(Cause::CallDepth(call::MAX_DEPTH));
        }
        let (caller, callee) =
            (&program.functions[frame.function as usize], &program.functions[function as usize]);
        let private = PrivateBase {
            local: (frame.private.local + caller.local_bytes).next_multiple_of(16),
            params: (frame.private.params + caller.param_bytes).next_multiple_of(16),
        };
        let registers = frame.registers.plus(caller.registers);
        self.open_frame(registers, callee, private, lanes);
        call::pass(&mut shared.context(self, frame, pc, lanes), op, callee, private.params);
        let entry = callee.entry;
        let enter = |fragment: &mut Fragment| {
            fragment.frames.push(Frame { function, call: pc, registers, private });
            fragment.pc = entry;
        };
        if lanes == fragment.mask {
            enter(&mut fragment);
            return Ok(Next::Same(fragment));
        }
        // Other lanes wait behind the call, or, for another callee, come back to it.
        let behind = if lanes == active { pc } else { pc.wrapping_sub(1) };
        fragment.pc = behind;
        let Some(rest) = self.split(fragment, lanes, NOWHERE, pc + 1) else { return Ok(Next::Other) };
        let position = self.fragments.iter().position(|other| other.pc == NOWHERE);
        let mut callers = match position {
            Some(position) => self.fragments.remove(position),
            None => return Ok(self.enter_alone(rest, enter)),
        };
        self.fragments.push(rest);
        enter(&mut callers);
        Ok(Next::Same(callers))
    }

    fn enter_alone(&mut self, mut fragment: Fragment, enter: impl Fn(&mut Fragment)) -> Next {
        enter(&mut fragment);
        Next::Same(fragment)
    }

    /// Makes room for a call of `callee` by `called`, with nothing in it.
    fn open_frame(&mut self, base: Counts, callee: &FunctionInfo, private: PrivateBase, called: Mask) {
        self.registers.grow(base.plus(callee.registers));
        self.registers.forget(base, called);
        for lane in lanes(called) {
            let (local, params) = (&mut self.privates.local[lane], &mut self.privates.params[lane]);
            local.open(private.local, callee.local_bytes);
            params.open(private.params, callee.param_bytes);
        }
    }

    /// Takes the variables of a call that ends from `returning` lanes, which are back in `caller`.
    fn close_frame(&mut self, caller: &FunctionInfo, private: PrivateBase, returning: Mask) {
        for lane in lanes(returning) {
            self.privates.local[lane].resize((private.local + caller.local_bytes) as usize);
            self.privates.params[lane].resize((private.params + caller.param_bytes) as usize);
        }
    }

    /// `ret`: from an entry, an exit.
    pub(super) fn give_back(
        &mut self,
        mut fragment: Fragment,
        active: Mask,
        shared: &mut Shared<'_>,
    ) -> Result<Next, Cause> {
        let frame = fragment.frame();
        if frame.call == NOWHERE {
            return Ok(self.leave(fragment, active, shared));
        }
        let program = shared.program;
        let caller = fragment.frames[fragment.frames.len() - 2];
        if let Op::Call(op) = &program.code[frame.call as usize].op {
            let callee = &program.functions[frame.function as usize];
            let mut context = shared.context(self, frame, fragment.pc, active);
            call::give_back(&mut context, op, callee, caller.private.params);
        }
        self.close_frame(&program.functions[caller.function as usize], caller.private, active);
        let mut back = fragment.clone();
        back.mask = active;
        back.frames.pop();
        back.pc = frame.call + 1;
        if active == fragment.mask {
            return Ok(Next::Same(back));
        }
        // Lanes that return early go on alone until a join of the caller.
        fragment.mask &= !active;
        fragment.pc += 1;
        let back = self.settle(back);
        self.fragments.extend(back);
        Ok(Next::Same(fragment))
    }
}
