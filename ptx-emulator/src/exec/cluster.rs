//! Clusters: `mapa`, and the barrier of all blocks of a cluster (PTX ISA, "barrier.cluster").

use super::context::{Cause, Context, Done};
use super::pending::Parcel;
use super::rows::{Row, Slot};
use crate::memory::{Clock, Memory, Scope, Thread, cluster_address, cluster_offset};
use crate::program::{Decoded, Line, Op, Refusal};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["mapa"];

/// An operation of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// `mapa.shared::cluster.u32 d, a, rank`
    Map { d: Slot, a: Slot, rank: Slot },
    /// `barrier.cluster.arrive`
    Arrive { releases: bool, aligned: bool },
    /// `barrier.cluster.wait`
    Wait { aligned: bool },
}

impl Operation {
    /// Whether all lanes of the warp execute it together.
    pub(crate) fn is_aligned(self) -> bool {
        matches!(self, Self::Arrive { aligned: true, .. } | Self::Wait { aligned: true })
    }
}

/// `mapa`, in the 32-bit form of `.shared::cluster`.
pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let space = line.space();
    let ty = line.ty()?;
    line.exactly(3)?;
    if space != Space::SharedCluster || ty != T::U32 {
        return Err(Refusal::Cluster("generic and 64-bit addresses of `mapa`"));
    }
    let (d, a, rank) = (line.destination(0, ty)?, line.source(1, ty)?, line.source(2, T::U32)?);
    Ok(Op::Cluster(Operation::Map { d, a, rank }))
}

/// `barrier.cluster`, whose name and `.cluster` are taken.
pub(crate) fn decode_barrier(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let arrives = line.choice(&[("arrive", true), ("wait", false)]);
    let aligned = line.flag("aligned");
    line.exactly(0)?;
    let operation = match arrives {
        Some(true) => {
            let releases = line.choice(&[("release", true), ("relaxed", false)]).unwrap_or(true);
            Operation::Arrive { releases, aligned }
        }
        Some(false) => {
            line.flag("acquire");
            Operation::Wait { aligned }
        }
        None => return line.refuse(),
    };
    Ok(Op::Cluster(operation))
}

/// Where a thread is in the phases of the barrier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    /// It has not arrived since it last waited.
    #[default]
    Before,
    /// It has arrived in the phase of this number.
    Arrived(u64),
    Exited,
}

/// The barrier of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    /// By block in the cluster, then by thread.
    places: Vec<Place>,
    threads_per_block: usize,
    /// Phases that have ended.
    ended: u64,
    arrived: usize,
    live: usize,
    /// What the present phase and the last one have released.
    released: Clock,
    last: Clock,
    /// Stores that have just been issued to blocks of the cluster.
    pub(crate) parcels: Vec<Parcel>,
}

impl Cluster {
    pub(crate) fn new(blocks: usize, threads_per_block: usize) -> Self {
        let live = blocks * threads_per_block;
        Self { places: vec![Place::Before; live], threads_per_block, live, ..Self::default() }
    }

    /// Arrived and expected threads.
    pub(crate) fn state(&self) -> (usize, usize) {
        (self.arrived, self.live)
    }

    fn index(&self, rank: u32, thread: u32) -> usize {
        rank as usize * self.threads_per_block + thread as usize
    }

    /// Threads exit: nobody waits for them any more.
    pub(crate) fn leave(&mut self, rank: u32, threads: impl Iterator<Item = u32>) {
        for thread in threads {
            let index = self.index(rank, thread);
            self.arrived -= usize::from(self.places[index] == Place::Arrived(self.ended));
            self.places[index] = Place::Exited;
            self.live -= 1;
        }
        self.complete();
    }

    fn complete(&mut self) {
        if self.arrived > 0 && self.arrived == self.live {
            self.ended += 1;
            self.arrived = 0;
            self.last = std::mem::take(&mut self.released);
        }
    }

    /// Whether a thread has arrived in a phase that has not ended.
    pub(crate) fn holds(&self, rank: u32, thread: u32) -> bool {
        self.places[self.index(rank, thread)] == Place::Arrived(self.ended)
    }

    /// A thread whose phase has ended goes on.
    pub(crate) fn go_on(&mut self, rank: u32, who: Thread, memory: &mut Memory) {
        let index = self.index(rank, who.index);
        if self.places[index] != Place::Before {
            self.places[index] = Place::Before;
            memory.acquire(who, &self.last);
        }
    }
}

pub(crate) fn execute(context: &mut Context<'_>, operation: Operation) -> Done {
    match operation {
        Operation::Map { d, a, rank } => map(context, d, a, rank),
        Operation::Arrive { releases, .. } => arrive(context, releases),
        Operation::Wait { .. } => may_wait(context),
    }
}

fn map(context: &mut Context<'_>, d: Slot, a: Slot, rank: Slot) -> Done {
    let (places, ranks) = (*context.rows.word(a), *context.rows.word(rank));
    let blocks = context.environment.cluster_size.iter().product::<u32>();
    let mut mapped: Row<u32> = places;
    for lane in context.active() {
        if ranks[lane] >= blocks {
            *context.culprit = Some(lane);
            return Err(Cause::ClusterRank { rank: ranks[lane], blocks });
        }
        let (_, offset) = cluster_offset(u64::from(places[lane]));
        mapped[lane] = cluster_address(ranks[lane], offset) as u32;
    }
    context.rows.put_word(d, &mapped);
    Ok(())
}

fn arrive(context: &mut Context<'_>, releases: bool) -> Done {
    let rank = context.environment.cluster_rank();
    for lane in context.active() {
        let who = context.thread(lane);
        let index = context.cluster.index(rank, who.index);
        if context.cluster.places[index] != Place::Before {
            *context.culprit = Some(lane);
            return Err(Cause::ClusterBarrier("arrives again without having waited"));
        }
        context.cluster.places[index] = Place::Arrived(context.cluster.ended);
        context.cluster.arrived += 1;
        if releases {
            context.memory.release(who, &mut context.cluster.released);
        } else {
            context.memory.release_fenced(who, Scope::Cluster, &mut context.cluster.released);
        }
    }
    *context.progress += 1;
    context.cluster.complete();
    Ok(())
}

fn may_wait(context: &mut Context<'_>) -> Done {
    let rank = context.environment.cluster_rank();
    for lane in context.active() {
        let index = context.cluster.index(rank, context.thread(lane).index);
        if context.cluster.places[index] == Place::Before {
            *context.culprit = Some(lane);
            return Err(Cause::ClusterBarrier("waits without having arrived"));
        }
    }
    Ok(())
}
