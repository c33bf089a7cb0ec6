//! Ranks that are threads of one process, exchanging through its memory.
//!
//! The schedule is executed literally: a message is copied into the peer's slot with its header, and a rank that
//! has nothing to read is parked, never spinning, so that many ranks work well on few cores. There is no stream:
//! `enqueue` does the work.

pub(super) mod countdown;
mod epilogue;
mod execute;
mod group;
mod meeting;
mod slot;
#[cfg(test)]
mod tests;
mod words;

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

#[cfg(feature = "model")]
pub(crate) use epilogue::rms_norm;
use group::Group;
use half::{bf16, f16};
use meeting::{Outcome, Proposal};
use slot::SlotTable;
use words::Words;

use super::{
    AllGather, AllReduce, Collective, CommError, Communicator, Counts, DType, Element, Phase, Shape, Stage,
    Topology,
    schedule::{Step, gather_schedule, schedule},
    sequence,
};

/// How a group behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest wait for one message. Time in which the whole process was stopped does not count.
    pub timeout: Duration,
    /// Longest wait for all ranks to meet in `register` or `split`, counted likewise; none is for as long as all of
    /// them live.
    pub meeting_timeout: Option<Duration>,
    /// Whether each rank records its transfers ([`MemoryComm::take_log`]).
    pub log: bool,
    /// Sequence number of a buffer's first call.
    pub first_sequence: u64,
    /// Elements that the all-reduce never splits between ranks.
    pub granule: usize,
}

impl Default for Options {
    /// Two minutes for either wait, no log, the usual first sequence, a granule of one cache line of fp32.
    fn default() -> Self {
        let timeout = Duration::from_secs(120);
        let meeting_timeout = Some(timeout);
        Self { timeout, meeting_timeout, log: false, first_sequence: sequence::FIRST, granule: 16 }
    }
}

/// One communicator per rank, in rank order; each goes to the thread that is to be that rank.
pub fn group(shape: Shape, options: Options) -> Vec<MemoryComm> {
    let world = shape.world();
    let group = Group::new(shape, (0..world).collect(), options, Arc::default());
    (0..world).map(|rank| MemoryComm::new(Arc::clone(&group), rank)).collect()
}

/// A rank of a group of threads.
///
/// Dropping it leaves the group: who then still waits for this rank gets [`CommError::PeerFailed`] at once, and
/// if the drop is part of a panic, so does every rank of the world.
#[derive(Debug)]
pub struct MemoryComm {
    group: Arc<Group>,
    topology: Topology,
    meetings: Cell<u64>,
    counts: Cell<Counts>,
    error: RefCell<Option<CommError>>,
    /// The fp32 sum of the round at hand.
    sum: RefCell<Vec<f32>>,
    log: RefCell<Vec<Transfer>>,
    waits_for_free_slot: Cell<u64>,
}

/// Symmetric memory of a [`MemoryComm`].
#[derive(Debug)]
pub struct MemoryBuffer {
    data: Words,
    slots: Arc<SlotTable>,
    owner: Weak<Group>,
    rank: usize,
    sequence: u64,
    plan: Plan,
}

/// One end of a message, as it happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The call's number on its buffer.
    pub sequence: u64,
    /// The phase.
    pub phase: Phase,
    /// The round within the phase.
    pub round: usize,
    /// Who sent it.
    pub from: usize,
    /// Who received it.
    pub to: usize,
    /// Which elements.
    pub range: Range<usize>,
    /// The receiver's slot.
    pub slot: usize,
}

/// The schedule of a buffer's last call: decoding repeats one size for ever.
#[derive(Debug, Default)]
struct Plan {
    of: Option<PlanKey>,
    steps: Vec<Step>,
}

#[derive(Debug, PartialEq, Eq)]
enum PlanKey {
    AllReduce { numel: usize },
    AllGather { offsets: Vec<usize> },
}

impl Plan {
    fn all_reduce(&mut self, topology: &Topology, numel: usize, granule: usize) {
        if self.of != Some(PlanKey::AllReduce { numel }) {
            *self =
                Self { of: Some(PlanKey::AllReduce { numel }), steps: schedule(topology, numel, granule) };
        }
    }

    fn all_gather(&mut self, topology: &Topology, offsets: &[usize]) {
        if !matches!(&self.of, Some(PlanKey::AllGather { offsets: known }) if known == offsets) {
            let steps = gather_schedule(topology, offsets);
            *self = Self { of: Some(PlanKey::AllGather { offsets: offsets.to_vec() }), steps };
        }
    }
}

impl MemoryBuffer {
    /// The memory as whole elements of type `T`.
    pub fn as_slice<T: Element>(&self) -> &[T] {
        self.data.as_slice()
    }

    /// The memory as whole elements of type `T`, to write this rank's contribution.
    pub fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        self.data.as_mut_slice()
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// The number that its next call will have.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl MemoryComm {
    fn new(group: Arc<Group>, rank: usize) -> Self {
        let Shape { nodes, gpus_per_node } = group.shape;
        Self {
            topology: Topology { nodes, gpus_per_node, rank },
            group,
            meetings: Cell::default(),
            counts: Cell::default(),
            error: RefCell::default(),
            sum: RefCell::default(),
            log: RefCell::default(),
            waits_for_free_slot: Cell::default(),
        }
    }

    /// The transfers since the last call of this, each message once at its sender (when posted) and once at its
    /// receiver (when taken); empty unless [`Options::log`].
    pub fn take_log(&self) -> Vec<Transfer> {
        self.log.take()
    }

    /// How often a message had to wait for the one before it in its slot to be taken: 0 as long as only whole
    /// collectives are called, whatever the ranks' speeds.
    pub fn waits_for_free_slot(&self) -> u64 {
        self.waits_for_free_slot.get()
    }

    /// Remembers a failure and tells everybody.
    fn fail(&self, error: CommError) -> CommError {
        self.group.family.fail(self.group.world_rank(self.topology.rank), error.to_string());
        self.error.replace(Some(error.clone()));
        error
    }

    fn meet(&self, proposal: Proposal) -> Result<Outcome, CommError> {
        self.check()?;
        let turn = self.meetings.replace(self.meetings.get() + 1);
        match self.group.meet(self.topology.rank, turn, proposal) {
            Ok(Outcome::Refused(error)) | Err(error) => Err(self.fail(error)),
            Ok(outcome) => Ok(outcome),
        }
    }

    fn check_tensor(&self, buf: &MemoryBuffer, numel: usize, dtype: DType) -> Result<(), CommError> {
        self.check()?;
        if buf.rank != self.topology.rank || !std::ptr::eq(buf.owner.as_ptr(), Arc::as_ptr(&self.group)) {
            return Err(CommError::ForeignBuffer);
        }
        if buf.bytes() / dtype.size_bytes() < numel {
            return Err(CommError::TooLarge { numel, dtype, bytes: buf.bytes() });
        }
        Ok(())
    }

    /// Executes the buffer's plan, or one phase of it, as the next call on the buffer.
    fn run(
        &self,
        collective: Collective,
        buf: &mut MemoryBuffer,
        numel: usize,
        dtype: DType,
    ) -> Result<(), CommError> {
        let call = execute::Call { collective, numel, dtype, sequence: buf.sequence };
        buf.sequence = sequence::next(buf.sequence);
        let done = match dtype {
            DType::F32 => self.execute::<f32>(&call, buf),
            DType::F16 => self.execute::<f16>(&call, buf),
            DType::Bf16 => self.execute::<bf16>(&call, buf),
        };
        done.map_err(|error| self.fail(error))
    }

    fn count(&self, add: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        add(&mut counts);
        self.counts.set(counts);
    }
}

impl Communicator for MemoryComm {
    type Stream = ();
    type Slice = [f32];
    type Buffer = MemoryBuffer;

    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn register(&self, bytes: usize) -> Result<MemoryBuffer, CommError> {
        match self.meet(Proposal::Register { bytes })? {
            Outcome::Registered(slots) => Ok(MemoryBuffer {
                data: Words::zeroed(bytes),
                slots,
                owner: Arc::downgrade(&self.group),
                rank: self.topology.rank,
                sequence: sequence::valid(self.group.options.first_sequence),
                plan: Plan::default(),
            }),
            outcome => unreachable!("ranks agreed to register, not on {outcome:?}"),
        }
    }

    fn enqueue(&self, (): &(), op: AllReduce<'_, Self>) -> Result<(), CommError> {
        let AllReduce { buf, numel, dtype, addend, epilogue } = op;
        self.check_tensor(buf, numel, dtype)?;
        epilogue::check(numel, addend, &epilogue)?;
        if let Some(addend) = addend {
            epilogue::contribute(buf, dtype, addend);
        }
        if self.topology.world() > 1 {
            buf.plan.all_reduce(&self.topology, numel, self.group.options.granule);
            self.run(Collective::AllReduce, buf, numel, dtype)?;
            self.count(|counts| counts.all_reduces += 1);
        }
        epilogue::apply(buf, dtype, epilogue);
        Ok(())
    }

    fn enqueue_stage(&self, (): &(), op: Stage<'_, Self>) -> Result<(), CommError> {
        let Stage { phase, buf, numel, dtype } = op;
        self.check_tensor(buf, numel, dtype)?;
        if self.topology.world() > 1 {
            buf.plan.all_reduce(&self.topology, numel, self.group.options.granule);
            self.run(Collective::Stage(phase), buf, numel, dtype)?;
            self.count(|counts| counts.stages += 1);
        }
        Ok(())
    }

    fn enqueue_gather(&self, (): &(), op: AllGather<'_, Self>) -> Result<(), CommError> {
        let AllGather { buf, offsets, dtype } = op;
        let world = self.topology.world();
        let numel = match offsets.last() {
            Some(&end) if offsets.len() == world + 1 && offsets.is_sorted() => end,
            _ => return Err(CommError::Offsets { offsets: offsets.to_vec(), world }),
        };
        self.check_tensor(buf, numel, dtype)?;
        if world > 1 {
            buf.plan.all_gather(&self.topology, offsets);
            self.run(Collective::AllGather, buf, numel, dtype)?;
            self.count(|counts| counts.all_gathers += 1);
        }
        Ok(())
    }

    fn split(&self, colour: usize, key: usize) -> Result<Self, CommError> {
        match self.meet(Proposal::Split { colour, key })? {
            Outcome::Split(places) => {
                let (group, rank) = &places[self.topology.rank];
                Ok(Self::new(Arc::clone(group), *rank))
            }
            outcome => unreachable!("ranks agreed to split, not on {outcome:?}"),
        }
    }

    fn check(&self) -> Result<(), CommError> {
        let mut error = self.error.borrow_mut();
        if error.is_none() && self.group.family.failure().is_some() {
            *error = Some(self.group.interruption(self.topology.rank, self.topology.rank));
        }
        error.clone().map_or(Ok(()), Err)
    }

    fn counts(&self) -> Counts {
        self.counts.get()
    }
}

impl Drop for MemoryComm {
    fn drop(&mut self) {
        let Self { group, topology, .. } = self;
        if std::thread::panicking() {
            group.family.fail(group.world_rank(topology.rank), "its thread panicked".to_owned());
        }
        group.leave(topology.rank);
    }
}
