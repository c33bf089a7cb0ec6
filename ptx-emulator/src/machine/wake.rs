//! Fragments that wait, and what wakes them.

use super::shared::Shared;
use super::warp::{Fragment, Frame, State, Warp};
use crate::exec::barrier;
use crate::exec::context::lanes;
use crate::exec::rows::Mask;
use crate::memory::Thread;
use crate::program::{Op, Pc, Program};

impl Warp {
    /// The first fragment that can run, after those whose wait has ended were woken.
    pub(super) fn runnable(&mut self, shared: &mut Shared<'_>) -> Option<usize> {
        let mut index = 0;
        while index < self.fragments.len() {
            let before = self.fragments.len();
            if self.wake(index, shared) {
                return Some(index);
            }
            // One that was woken may have gone to wait at a join.
            index += usize::from(self.fragments.len() == before);
        }
        None
    }

    /// Lanes that wait for others of `members` where the fragment does.
    pub(super) fn gathered(&self, program: &Program, pc: Pc, frame: Frame, members: Mask) -> Mask {
        let here = self.fragments.iter().filter(|other| other.is_met_at(program, pc, frame));
        here.fold(0, |bits, other| match other.state {
            State::Members { active, members: same } if same == members => bits | active,
            _ => bits,
        })
    }

    fn wake(&mut self, index: usize, shared: &mut Shared<'_>) -> bool {
        let Fragment { pc, mask, .. } = self.fragments[index];
        let frame = self.fragments[index].frame();
        match self.fragments[index].state {
            State::Ready => return true,
            State::Members { members, .. } => {
                // Lanes may have exited since.
                let gathered = self.gathered(shared.program, pc, frame, members);
                let complete = members & self.live & !gathered == 0;
                if complete {
                    self.fragments[index].state = State::Ready;
                }
                return complete;
            }
            State::Barrier { id, generation } => {
                if shared.barriers.generation(id) == generation {
                    return false;
                }
                if let Op::Barrier(op) = &shared.program.code[pc as usize].op {
                    barrier::finish(&mut shared.context(self, frame, pc, mask), op, id, generation);
                }
            }
            State::Sleeping { until_ns } => {
                if shared.environment.time_ns < until_ns {
                    return false;
                }
            }
            State::Cluster => {
                let rank = shared.environment.cluster_rank();
                let threads = || lanes(mask).map(|lane| self.first_thread + lane as u32);
                if threads().any(|thread| shared.cluster.holds(rank, thread)) {
                    return false;
                }
                for thread in threads() {
                    shared.cluster.go_on(rank, Thread::new(shared.block, thread), shared.memory);
                }
            }
            State::Registers => {
                let Op::Registers(change) = shared.program.code[pc as usize].op else { return false };
                if !shared.registers.take(self.first_thread, change) {
                    return false;
                }
            }
            State::Grid => {
                let Some(clock) = shared.predecessors else { return false };
                for lane in lanes(mask) {
                    let thread = Thread::new(shared.block, self.first_thread + lane as u32);
                    shared.memory.begin_after(thread, clock);
                }
            }
        }
        // Lanes that a guard had kept out went along.
        let fragment = &mut self.fragments[index];
        fragment.state = State::Ready;
        fragment.pc += 1;
        let fragment = self.fragments.remove(index);
        match self.settle(fragment) {
            Some(fragment) => {
                self.fragments.insert(index, fragment);
                true
            }
            None => false,
        }
    }
}
