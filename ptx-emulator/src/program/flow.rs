//! Where lanes that took different ways meet again: the immediate post-dominator of their branch.
//!
//! Computed over instructions' basic blocks with the iterative algorithm of Cooper, Harvey and Kennedy ("A
//! Simple, Fast Dominance Algorithm") on the reversed graph. A guarded `ret` or `exit` counts as falling
//! through, since lanes that leave meet nobody; `trap` has no successor, so that assertions divide no region.

use super::{Inst, NOWHERE, Op, Pc};

/// Sets `reconverge` of all branches in `code`, whose first instruction has number `base`.
pub(crate) fn set_reconvergence(code: &mut [Inst], base: Pc) {
    let graph = Graph::new(code, base);
    let meeting = graph.immediate_post_dominators();
    for (block, meeting) in meeting.into_iter().enumerate() {
        let last = graph.end(block) - 1;
        let place = match meeting {
            Some(next) if next < graph.starts.len() => base + graph.starts[next] as Pc,
            _ => NOWHERE,
        };
        if let Op::Branch { reconverge, .. } | Op::BranchTable { reconverge, .. } = &mut code[last].op {
            *reconverge = place;
        }
    }
}

struct Graph {
    /// First instruction of each block.
    starts: Vec<usize>,
    length: usize,
    /// Successors; the number of blocks is the exit.
    successors: Vec<Vec<usize>>,
}

impl Graph {
    fn new(code: &[Inst], base: Pc) -> Self {
        let mut leads = vec![false; code.len() + 1];
        leads[0] = true;
        for (index, inst) in code.iter().enumerate() {
            let targets: &[Pc] = match &inst.op {
                Op::Branch { target, .. } => std::slice::from_ref(target),
                Op::BranchTable { targets, .. } => targets,
                Op::Return | Op::Exit | Op::Trap => &[],
                _ => continue,
            };
            leads[index + 1] = true;
            for &target in targets {
                leads[(target - base) as usize] = true;
            }
        }
        let starts: Vec<usize> = (0..code.len()).filter(|&index| leads[index]).collect();
        let mut graph = Self { starts, length: code.len(), successors: Vec::new() };
        graph.successors = (0..graph.starts.len()).map(|block| graph.leaving(code, base, block)).collect();
        graph
    }

    fn end(&self, block: usize) -> usize {
        self.starts.get(block + 1).copied().unwrap_or(self.length)
    }

    fn block_of(&self, index: usize) -> usize {
        self.starts.binary_search(&index).unwrap_or(self.starts.len())
    }

    fn leaving(&self, code: &[Inst], base: Pc, block: usize) -> Vec<usize> {
        let last = &code[self.end(block) - 1];
        let exit = self.starts.len();
        let mut out: Vec<usize> = match &last.op {
            Op::Branch { target, .. } => vec![self.block_of((target - base) as usize)],
            Op::BranchTable { targets, .. } => {
                targets.iter().map(|target| self.block_of((target - base) as usize)).collect()
            }
            Op::Return | Op::Exit if last.guard.is_none() => return vec![exit],
            Op::Trap if last.guard.is_none() => return Vec::new(),
            _ => Vec::new(),
        };
        let jumps = matches!(last.op, Op::Branch { .. } | Op::BranchTable { .. }) && last.guard.is_none();
        if !jumps {
            out.push(if block + 1 < exit { block + 1 } else { exit });
        }
        out
    }

    fn immediate_post_dominators(&self) -> Vec<Option<usize>> {
        let exit = self.starts.len();
        let mut predecessors = vec![Vec::new(); exit + 1];
        for (block, successors) in self.successors.iter().enumerate() {
            for &next in successors {
                predecessors[next].push(block);
            }
        }
        let order = post_order(&predecessors, exit);
        let mut rank = vec![usize::MAX; exit + 1];
        for (position, &block) in order.iter().enumerate() {
            rank[block] = position;
        }
        let mut dominator = vec![None; exit + 1];
        dominator[exit] = Some(exit);
        let mut changed = true;
        while changed {
            changed = false;
            for &block in order.iter().rev().filter(|&&block| block != exit) {
                let known = self.successors[block].iter().filter(|&&next| dominator[next].is_some());
                let meet = known.copied().reduce(|a, b| intersect(&dominator, &rank, a, b));
                if meet.is_some() && meet != dominator[block] {
                    dominator[block] = meet;
                    changed = true;
                }
            }
        }
        dominator.truncate(exit);
        dominator
    }
}

fn intersect(dominator: &[Option<usize>], rank: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while rank[a] < rank[b] {
            a = dominator[a].unwrap_or(b);
        }
        while rank[b] < rank[a] {
            b = dominator[b].unwrap_or(a);
        }
    }
    a
}

fn post_order(edges: &[Vec<usize>], root: usize) -> Vec<usize> {
    let mut seen = vec![false; edges.len()];
    let mut order = Vec::with_capacity(edges.len());
    let mut stack = vec![(root, 0)];
    seen[root] = true;
    while let Some((block, next)) = stack.pop() {
        match edges[block].get(next) {
            Some(&to) => {
                stack.push((block, next + 1));
                if !seen[to] {
                    seen[to] = true;
                    stack.push((to, 0));
                }
            }
            None => order.push(block),
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::rows::Slot;
    use crate::program::Guard;

    fn inst(op: Op, guarded: bool) -> Inst {
        Inst { guard: guarded.then_some(Guard { slot: Slot(0), negated: false }), op }
    }

    fn branch(target: Pc, guarded: bool) -> Inst {
        inst(Op::Branch { target, reconverge: NOWHERE }, guarded)
    }

    fn reconvergence(code: &[Inst]) -> Vec<Pc> {
        code.iter()
            .filter_map(
                |inst| if let Op::Branch { reconverge, .. } = inst.op { Some(reconverge) } else { None },
            )
            .collect()
    }

    #[test]
    fn a_diamond_meets_at_its_end() {
        // 0: @p bra 3; 1: nop; 2: bra 4; 3: nop; 4: ret
        let mut code = vec![
            branch(103, true),
            inst(Op::Nop, false),
            branch(104, false),
            inst(Op::Nop, false),
            inst(Op::Return, false),
        ];
        set_reconvergence(&mut code, 100);
        assert_eq!(reconvergence(&code), [104, 104]);
    }

    #[test]
    fn a_loop_meets_behind_it_and_a_trap_divides_nothing() {
        // 0: nop; 1: @p bra 4 (trap); 2: @p bra 0; 3: ret; 4: trap
        let mut code = vec![
            inst(Op::Nop, false),
            branch(4, true),
            branch(0, true),
            inst(Op::Return, false),
            inst(Op::Trap, false),
        ];
        set_reconvergence(&mut code, 0);
        assert_eq!(reconvergence(&code), [2, 3]);
    }

    #[test]
    fn lanes_that_leave_meet_nobody() {
        // 0: @p bra 3; 1: @p ret; 2: nop; 3: ret   and   4 would be the exit
        let mut code =
            vec![branch(3, true), inst(Op::Return, true), inst(Op::Nop, false), inst(Op::Return, false)];
        set_reconvergence(&mut code, 0);
        assert_eq!(reconvergence(&code), [3]);
    }
}
