//! `bar` and `barrier`: the sixteen named barriers of a block.

use super::context::{Cause, Context, Done};
use super::rows::{LANES, Slot};
use super::warp::Collective;
use crate::memory::{Clock, Thread};
use crate::program::{Decoded, Line, Op, Typed, class_of};
use crate::text::ScalarType as T;

pub(crate) const NAMES: &[&str] = &["bar", "barrier"];

/// Named barriers of a block.
pub(crate) const BARRIERS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Arrive and wait.
    Sync,
    /// Arrive only.
    Arrive,
    /// Arrive, wait, and combine a predicate: how many, all, any.
    Count,
    And,
    Or,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Barrier {
    pub(crate) kind: Kind,
    /// All lanes of the warp execute it together.
    pub(crate) aligned: bool,
    id: Slot,
    /// Threads that take part; all of the block if none is given.
    count: Slot,
    d: Typed,
    predicate: Slot,
    negated: bool,
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if line.flag("cluster") {
        return super::cluster::decode_barrier(line);
    }
    line.flag("cta");
    if line.flag("warp") {
        if !line.flag("sync") {
            return line.refuse();
        }
        line.exactly(1)?;
        return Ok(Op::Warp(Box::new(Collective::barrier(line.source(0, T::B32)?))));
    }
    let aligned = line.flag("aligned") || line.name == "bar";
    let reduces = line.flag("red");
    let kinds: &[(&str, Kind)] = if reduces {
        &[("popc", Kind::Count), ("and", Kind::And), ("or", Kind::Or)]
    } else {
        &[("sync", Kind::Sync), ("arrive", Kind::Arrive)]
    };
    let Some(kind) = line.choice(kinds) else { return line.refuse() };
    let none = Typed { slot: Slot::NONE, class: super::rows::Class::Word };
    let mut op = Barrier {
        kind,
        aligned,
        id: Slot::NONE,
        count: Slot::NONE,
        d: none,
        predicate: Slot::NONE,
        negated: false,
    };
    if !reduces {
        line.between(1, 2)?;
        op.id = line.source(0, T::U32)?;
        if line.count() == 2 {
            op.count = line.source(1, T::U32)?;
        }
        return if kind == Kind::Arrive && op.count == Slot::NONE {
            line.refuse()
        } else {
            Ok(Op::Barrier(op))
        };
    }
    let ty = line.ty()?;
    if ty != if kind == Kind::Count { T::U32 } else { T::Pred } {
        return line.refuse();
    }
    line.between(3, 4)?;
    op.d = Typed { slot: line.destination(0, ty)?, class: class_of(ty) };
    op.id = line.source(1, T::U32)?;
    let last = line.count() - 1;
    if last == 3 {
        op.count = line.source(2, T::U32)?;
    }
    (op.predicate, op.negated) = line.predicate(last)?;
    Ok(Op::Barrier(op))
}

/// One phase of a barrier.
#[derive(Debug, Clone, Default)]
struct Phase {
    /// Threads that end the phase; none while nobody has arrived. 0 stands for all live threads.
    expected: Option<u32>,
    arrived: u32,
    waiting: Vec<u32>,
    arrivals_without_wait: bool,
    clock: Clock,
    holding: u32,
}

/// The result of a finished phase, kept until all that waited for it have it: others may finish the next phase
/// before.
#[derive(Debug, Clone, Copy)]
struct Ended {
    id: u32,
    generation: u64,
    /// Threads of the phase, and those of them whose predicate held.
    arrived: u32,
    holding: u32,
    /// Threads that still wait.
    waiting: u32,
}

/// All barriers of a block.
#[derive(Debug, Default)]
pub(crate) struct Barriers {
    phases: [Phase; BARRIERS],
    generations: [u64; BARRIERS],
    ended: Vec<Ended>,
    /// Threads that have not exited.
    pub(crate) live: u32,
    threads: u32,
}

impl Barriers {
    pub(crate) fn new(threads: u32) -> Self {
        Self { live: threads, threads, ..Self::default() }
    }

    /// The number of the phase that an arrival now belongs to.
    pub(crate) fn generation(&self, id: u32) -> u64 {
        self.generations[id as usize]
    }

    /// Arrived and expected threads.
    pub(crate) fn state(&self, id: u32) -> (u32, u32) {
        let phase = &self.phases[id as usize];
        (phase.arrived, self.target(phase))
    }

    fn target(&self, phase: &Phase) -> u32 {
        match phase.expected {
            Some(0) | None => self.live,
            Some(count) => count,
        }
    }

    /// Ends every phase whose threads are all here; true if one ended.
    pub(crate) fn complete(
        &mut self,
        memory: &mut crate::memory::Memory,
        block: crate::memory::BlockId,
    ) -> bool {
        let mut any = false;
        for id in 0..BARRIERS {
            let target = self.target(&self.phases[id]);
            if self.phases[id].expected.is_none() || self.phases[id].arrived < target {
                continue;
            }
            let phase = std::mem::take(&mut self.phases[id]);
            if phase.arrivals_without_wait {
                for &thread in &phase.waiting {
                    memory.acquire(Thread::new(block, thread), &phase.clock);
                }
            } else {
                memory.barrier(block, phase.waiting.iter().copied());
            }
            let Phase { arrived, holding, .. } = phase;
            let (generation, waiting) = (self.generations[id], phase.waiting.len() as u32);
            self.generations[id] += 1;
            if waiting > 0 {
                self.ended.push(Ended { id: id as u32, generation, arrived, holding, waiting });
            }
            any = true;
        }
        any
    }
}

/// The barrier that lanes execute; they must agree on it.
pub(crate) fn identify(context: &Context<'_>, op: &Barrier) -> Done<(u32, u32)> {
    let lane = context.rows.mask.trailing_zeros() as usize & 31;
    let id = context.rows.word(op.id)[lane];
    let limit = context.barriers.threads.next_multiple_of(LANES as u32);
    let count = if op.count == Slot::NONE { 0 } else { context.rows.word(op.count)[lane] };
    if id as usize >= BARRIERS {
        return Err(Cause::BarrierId { id });
    }
    if op.count != Slot::NONE && (count == 0 || count % LANES as u32 != 0 || count > limit) {
        return Err(Cause::BarrierCount { id, count, limit });
    }
    Ok((id, count))
}

/// Lanes arrive. Those of a partial last warp count as the threads that they are.
pub(crate) fn arrive(context: &mut Context<'_>, op: &Barrier) -> Done<(u32, u64)> {
    let (id, count) = identify(context, op)?;
    // A warp that is not full counts as 32 threads where a count is given (PTX ISA: warp granularity).
    let full = count != 0 && op.aligned;
    let mask = context.rows.mask;
    let threads = if full { LANES as u32 } else { mask.count_ones() };
    let holds = match op.predicate {
        Slot::NONE => 0,
        slot => (context.rows.pred(slot) ^ if op.negated { u32::MAX } else { 0 }) & mask,
    };
    let first = context.first;
    let generation = context.barriers.generation(id);
    let phase = &mut context.barriers.phases[id as usize];
    match phase.expected {
        Some(expected) if expected != count => {
            return Err(Cause::BarrierMismatch { id, first: expected, second: count });
        }
        _ => phase.expected = Some(count),
    }
    phase.arrived += threads;
    phase.holding += holds.count_ones();
    let indices = super::context::lanes(mask).map(|lane| first.index + lane as u32);
    if op.kind == Kind::Arrive {
        phase.arrivals_without_wait = true;
    } else {
        phase.waiting.extend(indices.clone());
    }
    if count != 0 {
        // Only some may wait: what each did is kept in a clock of the phase.
        phase.arrivals_without_wait = true;
        for index in indices {
            context.memory.release(Thread::new(first.block, index), &mut phase.clock);
        }
    }
    *context.progress += 1;
    context.barriers.complete(context.memory, first.block);
    Ok((id, generation))
}

/// Writes the result of a reduction once its phase, of that number, has ended.
pub(crate) fn finish(context: &mut Context<'_>, op: &Barrier, id: u32, generation: u64) {
    let mut phases = context.barriers.ended.iter_mut();
    let Some(ended) = phases.find(|it| it.id == id && it.generation == generation) else { return };
    ended.waiting -= context.rows.mask.count_ones();
    let ended = *ended;
    context.barriers.ended.retain(|it| it.waiting > 0);
    match op.kind {
        Kind::Sync | Kind::Arrive => {}
        Kind::Count => {
            context.rows.put_wide(op.d.slot, op.d.class, &[u64::from(ended.holding); LANES]);
        }
        Kind::And | Kind::Or => {
            let holds = if op.kind == Kind::And { ended.holding == ended.arrived } else { ended.holding > 0 };
            context.rows.put_pred(op.d.slot, if holds { u32::MAX } else { 0 });
        }
    }
}
