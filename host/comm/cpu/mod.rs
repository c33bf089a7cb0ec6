//! Ranks on CPUs: the schedule, executed literally over whatever carries messages ([`Link`]).
//!
//! A rank that has nothing to read is parked, never spinning, so that many ranks work well on few cores. There is no
//! stream: `enqueue` does the work.

mod countdown;
mod epilogue;
mod execute;
mod link;
mod plan;
mod words;

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    time::Duration,
};

pub(in crate::comm) use countdown::Countdown;
#[cfg(feature = "model")]
pub(crate) use epilogue::rms_norm;
use half::{bf16, f16};
pub(crate) use link::{Link, Place, Stop};
use plan::Plan;
pub(in crate::comm) use words::Words;

use super::{
    AllGather, AllReduce, Collective, CommError, Communicator, Counts, DType, Element, Phase, Shape, Stage,
    Topology, sequence,
};

/// How a group behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Longest wait for one message. Time in which the whole process was stopped does not count.
    pub timeout: Duration,
    /// Longest wait for all ranks to meet in `register` or `split`, counted likewise; none is for as long as all of
    /// them live.
    pub meeting_timeout: Option<Duration>,
    /// Whether each rank records its transfers (`take_log`).
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

/// A rank on a CPU, and its link to the others.
///
/// Dropping it leaves the group.
#[derive(Debug)]
pub struct CpuComm<L: Link> {
    link: L,
    topology: Topology,
    counts: Cell<Counts>,
    error: RefCell<Option<CommError>>,
    /// The fp32 sum of the round at hand.
    sum: RefCell<Vec<f32>>,
    log: RefCell<Vec<Transfer>>,
    waits_for_free_slot: Cell<u64>,
}

/// Symmetric memory of a [`CpuComm`].
#[derive(Debug)]
pub struct CpuBuffer<L: Link> {
    data: Words,
    slots: L::Slots,
    sequence: u64,
    /// The steps of its last call.
    pub(in crate::comm) plan: Plan,
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

impl<L: Link> CpuBuffer<L> {
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

impl<L: Link> CpuComm<L> {
    pub(super) fn new(link: L) -> Self {
        let Shape { nodes, gpus_per_node } = link.shape();
        Self {
            topology: Topology { nodes, gpus_per_node, rank: link.rank() },
            link,
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
        self.link.fail(&error);
        self.error.replace(Some(error.clone()));
        error
    }

    fn check_tensor(&self, buf: &CpuBuffer<L>, numel: usize, dtype: DType) -> Result<(), CommError> {
        self.check()?;
        if !self.link.owns(&buf.slots) {
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
        buf: &mut CpuBuffer<L>,
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

impl<L: Link> Communicator for CpuComm<L> {
    type Stream = ();
    type Slice = [f32];
    type Buffer = CpuBuffer<L>;

    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn register(&self, bytes: usize) -> Result<CpuBuffer<L>, CommError> {
        self.check()?;
        let slots = self.link.register(bytes).map_err(|error| self.fail(error))?;
        let sequence = sequence::valid(self.link.options().first_sequence);
        Ok(CpuBuffer { data: Words::zeroed(bytes), slots, sequence, plan: Plan::default() })
    }

    fn enqueue(&self, (): &(), op: AllReduce<'_, Self>) -> Result<(), CommError> {
        let AllReduce { buf, numel, dtype, addend, epilogue } = op;
        self.check_tensor(buf, numel, dtype)?;
        epilogue::check(numel, addend, &epilogue)?;
        if let Some(addend) = addend {
            epilogue::contribute(buf, dtype, addend);
        }
        if self.topology.world() > 1 {
            buf.plan.all_reduce(&self.topology, numel, self.link.options().granule);
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
            buf.plan.all_reduce(&self.topology, numel, self.link.options().granule);
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
        self.check()?;
        self.link.split(colour, key).map(Self::new).map_err(|error| self.fail(error))
    }

    fn check(&self) -> Result<(), CommError> {
        let mut error = self.error.borrow_mut();
        if error.is_none() {
            *error = self.link.failure();
        }
        error.clone().map_or(Ok(()), Err)
    }

    fn counts(&self) -> Counts {
        self.counts.get()
    }
}
