//! Asynchronous copies and stores under way: their groups, the mbarriers that they signal, and what is known once they
//! arrive.

use std::collections::{BTreeMap, VecDeque};

use super::context::{Cause, Done};
use super::mbarrier::{self, PhaseClocks};
use super::products::Products;
use crate::memory::{Access, BlockId, Clock, Memory, Moment, Order, Site, Thread, Width};

/// A copy whose destination is not yet written.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Who writes, and reads where there is no `reader`.
    pub(crate) agent: Thread,
    /// Who has read the source, for those that wait for that alone.
    pub(crate) reader: Option<Thread>,
    pub(crate) site: Site,
    /// The index of the thread that issued it, and its place among the copies of the block.
    pub(crate) thread: u32,
    pub(crate) number: u64,
    pub(crate) to: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Pending {
    fn write(&self, memory: &mut Memory) -> Result<(), Late> {
        self.store(memory).map_err(|cause| self.late(cause))
    }

    fn late(&self, cause: Cause) -> Late {
        Late { cause, site: self.site, block: self.agent.block, thread: self.thread }
    }

    fn store(&self, memory: &mut Memory) -> Done {
        let access = Access::weak(self.agent, self.site);
        if self.bytes.len() > 16 {
            return Ok(memory.write_by(&access, self.to, &self.bytes)?);
        }
        let mut at = 0;
        while at < self.bytes.len() {
            let step = if self.bytes.len() - at >= 8 { Width::B8 } else { Width::B4 };
            let mut value = [0; 8];
            let size = step.bytes() as usize;
            value[..size].copy_from_slice(&self.bytes[at..at + size]);
            memory.store(&access, self.to + at as u64, step, u64::from_le_bytes(value))?;
            at += size;
        }
        Ok(())
    }
}

/// What went wrong when a copy arrived: the fault of the instruction that issued it.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) cause: Cause,
    pub(crate) site: Site,
    /// The block and the index in it of the thread.
    pub(crate) block: BlockId,
    pub(crate) thread: u32,
}

/// A store to another block of the cluster, on its way there.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// The block's rank.
    pub(crate) rank: u32,
    /// The mbarrier that it signals.
    pub(crate) barrier: u64,
    pub(crate) store: Pending,
}

impl Parcel {
    /// Arrives at a block that has ended, which memory refuses.
    pub(crate) fn come_too_late(&self, memory: &mut Memory) -> Result<(), Late> {
        self.store.write(memory)
    }
}

/// Copies that are waited for together.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) copies: Vec<Pending>,
    /// The end of copies of the group that have arrived before it is waited for.
    arrived: Clock,
}

/// Copies of one thread: the open group, then closed ones, oldest first.
#[derive(Debug, Default)]
pub(super) struct Groups {
    pub(super) open: Group,
    /// The agent of the copies that the thread has started since a moment.
    pub(super) agent: Option<(Thread, Moment)>,
    pub(super) closed: VecDeque<Group>,
}

/// Something that an mbarrier is still to be told.
#[derive(Debug)]
struct Signal {
    barrier: u64,
    site: Site,
    thread: u32,
    event: Event,
}

#[derive(Debug)]
enum Event {
    /// The bytes of a bulk copy have been written.
    Bytes(Pending),
    /// Those of a store of a block of the cluster have been.
    Parcel(Pending),
    /// The `cp.async` of the thread up to that number have been: an arrival, by an agent, with the end of those that
    /// have arrived so far.
    Copies { before: u64, agent: Thread, ended: Clock },
}

/// Copies of a block that have not arrived.
#[derive(Debug, Default)]
pub(crate) struct AsyncState {
    /// By thread, and whether they are bulk copies.
    groups: BTreeMap<(u32, bool), Groups>,
    signals: VecDeque<Signal>,
    issued: u64,
    pub(crate) phases: PhaseClocks,
    /// Of `wgmma`.
    pub(crate) products: Products,
}

/// Starting copies.
impl AsyncState {
    /// The number of the next copy.
    pub(super) fn next_number(&mut self) -> u64 {
        self.issued += 1;
        self.issued - 1
    }

    pub(super) fn groups_of(&mut self, thread: u32, bulk: bool) -> &mut Groups {
        self.groups.entry((thread, bulk)).or_default()
    }

    /// `copy` signals its bytes to `barrier`.
    pub(super) fn signal_bytes(&mut self, barrier: u64, copy: Pending) {
        let (site, thread) = (copy.site, copy.thread);
        self.signals.push_back(Signal { barrier, site, thread, event: Event::Bytes(copy) });
    }

    /// A store of a block of the cluster is on its way to an mbarrier of this one.
    pub(crate) fn take_in(&mut self, parcel: Parcel) {
        let Parcel { barrier, store, .. } = parcel;
        let (site, thread) = (store.site, store.thread);
        self.signals.push_back(Signal { barrier, site, thread, event: Event::Parcel(store) });
    }

    /// All `cp.async` that `thread` has issued signal their end to `barrier`, by `agent`.
    pub(super) fn signal_copies(&mut self, barrier: u64, thread: u32, agent: Thread, site: Site) {
        let event = Event::Copies { before: self.issued, agent, ended: Clock::default() };
        self.signals.push_back(Signal { barrier, site, thread, event });
        self.groups_of(thread, false).agent = None;
    }
}

/// Waiting for them.
impl AsyncState {
    /// `thread` waits for all but the newest `left` groups, or for all copies.
    pub(super) fn wait(
        &mut self,
        memory: &mut Memory,
        thread: Thread,
        bulk: bool,
        left: Option<u32>,
    ) -> Result<(), Late> {
        let Some(groups) = self.groups.get_mut(&(thread.index, bulk)) else { return Ok(()) };
        let mut ended = Vec::new();
        while groups.closed.len() > left.unwrap_or(0) as usize {
            ended.extend(groups.closed.pop_front());
        }
        if left.is_none() {
            ended.push(std::mem::take(&mut groups.open));
            groups.agent = None;
        }
        let mut clock = Clock::default();
        for group in ended {
            memory.join(&mut clock, &group.arrived);
            retire(memory, &mut self.signals, group.copies, &mut clock)?;
        }
        memory.acquire(thread, &clock);
        Ok(())
    }

    /// `thread` waits until the sources of all but the newest `left` bulk groups have been read.
    pub(super) fn wait_for_reads(&mut self, memory: &mut Memory, thread: Thread, left: u32) {
        let Some(groups) = self.groups.get_mut(&(thread.index, true)) else { return };
        let count = groups.closed.len().saturating_sub(left as usize);
        let mut clock = Clock::default();
        for copy in groups.closed.iter_mut().take(count).flat_map(|group| &mut group.copies) {
            if let Some(reader) = copy.reader.take() {
                memory.end_async(reader, &mut clock);
            }
        }
        memory.acquire(thread, &clock);
    }

    /// Whether a copy that signals an mbarrier is under way.
    pub(crate) fn is_pending(&self) -> bool {
        !self.signals.is_empty()
    }

    /// Tells an mbarrier of `block`, which these are the copies of: the `pick`-th thing that one is still to be told.
    pub(crate) fn arrive(&mut self, memory: &mut Memory, block: BlockId, pick: usize) -> Result<(), Late> {
        let index = pick % self.signals.len().max(1);
        let Some(Signal { barrier, site, thread, event }) = self.signals.remove(index) else { return Ok(()) };
        let access = |agent| Access { thread: agent, site, order: Order::Relaxed, scope: mbarrier::OBJECT };
        let (copy, from_cluster) = match event {
            Event::Bytes(copy) => (copy, false),
            Event::Parcel(copy) => (copy, true),
            Event::Copies { before, agent, mut ended } => {
                self.finish_copies(memory, thread, before, &mut ended)?;
                return mbarrier::arrive_behind(memory, &mut self.phases, &access(agent), barrier, &ended)
                    .map_err(|cause| Late { cause, site, block, thread });
            }
        };
        copy.write(memory)?;
        let (bytes, access) = (copy.bytes.len() as u64, access(copy.agent));
        mbarrier::complete_bytes(memory, &mut self.phases, &access, barrier, bytes, from_cluster)
            .map_err(|cause| copy.late(cause))
    }

    /// The `cp.async` of a thread up to a number are written, and their end is added to `ended`.
    fn finish_copies(
        &mut self,
        memory: &mut Memory,
        thread: u32,
        before: u64,
        ended: &mut Clock,
    ) -> Result<(), Late> {
        let Some(groups) = self.groups.get_mut(&(thread, false)) else { return Ok(()) };
        for group in groups.closed.iter_mut().chain([&mut groups.open]) {
            let count = group.copies.iter().take_while(|copy| copy.number < before).count();
            let copies = group.copies.drain(..count).collect();
            let mut arrived = Clock::default();
            retire(memory, &mut self.signals, copies, &mut arrived)?;
            memory.join(&mut group.arrived, &arrived);
            memory.join(ended, &arrived);
        }
        Ok(())
    }

    /// The block ends: bulk copies whose sources have been waited for are written, before whatever comes after the grid.
    /// None may still use shared memory of the block: that a thread exits completes no copy.
    pub(crate) fn finish(&mut self, memory: &mut Memory, block: BlockId) -> Result<(), Late> {
        for Signal { event, .. } in &self.signals {
            if let Event::Parcel(store) = event {
                return Err(store.late(Cause::LateStore { bytes: store.bytes.len() as u64, to: store.to }));
            }
        }
        if let Some((thread, site)) = self.products.out_of_step() {
            let cause = Cause::Wgmma("not all warps of the group have executed it when the block ends");
            return Err(Late { cause, site, block, thread: thread.index });
        }
        if let Some(copy) = self.unfinished().min_by_key(|copy| copy.number) {
            return Err(copy.late(Cause::LateCopy { bytes: copy.bytes.len() as u64, to: copy.to }));
        }
        for ((index, _), groups) in std::mem::take(&mut self.groups) {
            let mut clock = Clock::default();
            for group in groups.closed.into_iter().chain([groups.open]) {
                retire(memory, &mut self.signals, group.copies, &mut clock)?;
            }
            memory.acquire(Thread::new(block, index), &clock);
        }
        Ok(())
    }

    /// Copies to shared memory that have not arrived, and those from there whose sources nobody has waited for.
    fn unfinished(&self) -> impl Iterator<Item = &Pending> {
        let signalled = self.signals.iter().filter_map(|signal| match &signal.event {
            Event::Bytes(copy) => Some(copy),
            Event::Parcel(_) | Event::Copies { .. } => None,
        });
        let grouped = self.groups.iter().flat_map(|((_, bulk), groups)| {
            let copies = groups.closed.iter().chain([&groups.open]).flat_map(|group| &group.copies);
            copies.filter(move |copy| !bulk || copy.reader.is_some())
        });
        signalled.chain(grouped)
    }
}

/// Copies are written; their end is added to `clock`, and to the signals that stand for them.
fn retire(
    memory: &mut Memory,
    signals: &mut VecDeque<Signal>,
    copies: Vec<Pending>,
    clock: &mut Clock,
) -> Result<(), Late> {
    for (index, copy) in copies.iter().enumerate() {
        copy.write(memory)?;
        // An agent ends with the last of its copies.
        if copies.get(index + 1).is_some_and(|next| next.agent == copy.agent) {
            continue;
        }
        let mut ended = Clock::default();
        memory.end_async(copy.agent, &mut ended);
        if let Some(reader) = copy.reader {
            memory.end_async(reader, &mut ended);
        }
        for signal in signals.iter_mut().filter(|signal| signal.thread == copy.thread) {
            if let Event::Copies { before, ended: theirs, .. } = &mut signal.event
                && copy.number < *before
            {
                memory.join(theirs, &ended);
            }
        }
        memory.join(clock, &ended);
    }
    Ok(())
}
