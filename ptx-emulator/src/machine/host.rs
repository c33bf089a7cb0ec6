//! The host's side of streams and time: copies of its own, and what it knows to have happened.

use super::run::Stall;
use super::{EventId, Machine, RunError, StreamId};
use crate::memory::{self, Clock, DeviceId, Memory, Thread};

/// A recorded event.
#[derive(Debug, Clone)]
pub(super) struct Reached {
    pub(super) clock: Clock,
    pub(super) time_ns: u64,
}

impl Machine {
    /// Runs `work` now, as a copy by the host in the order of an idle stream. `work` accesses memory as the agent
    /// that it is given.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn host(
        &mut self,
        stream: StreamId,
        work: impl FnOnce(&mut Memory, Thread) -> memory::Result<()>,
    ) -> Result<(), RunError> {
        let mut since = Clock::default();
        self.memory.release(Thread::HOST, &mut since);
        self.as_agent(stream.0, &since, |machine, agent| Ok(work(&mut machine.memory, agent)?))
    }

    /// What an idle stream has done happens before what the host does next.
    pub fn synchronise(&mut self, stream: StreamId) {
        self.memory.acquire(Thread::HOST, &self.streams[stream.0].end);
    }

    /// What all streams of an idle device have done happens before what the host does next.
    pub fn synchronise_device(&mut self, device: DeviceId) {
        for stream in self.streams.iter().filter(|stream| stream.device == device) {
            self.memory.acquire(Thread::HOST, &stream.end);
        }
        if let Some(end) = self.spare_ends.get(&device) {
            self.memory.acquire(Thread::HOST, end);
        }
    }

    /// What precedes an event that has been reached happens before what the host does next.
    pub fn synchronise_event(&mut self, event: EventId) {
        if let Some(reached) = &self.events[event.0] {
            self.memory.acquire(Thread::HOST, &reached.clock);
        }
    }

    /// Emulated time: that of `%globaltimer`.
    pub fn time_ns(&self) -> u64 {
        self.time_ns
    }

    /// When an event was reached.
    pub fn reached_at_ns(&self, event: EventId) -> Option<u64> {
        self.events[event.0].as_ref().map(|reached| reached.time_ns)
    }

    /// Whether nothing but time has changed for long, so that it passes ever faster. A host with several threads may
    /// hold the machine then, until all of them have enqueued what kernels could be waiting for.
    pub fn is_quiet(&self) -> bool {
        self.stall.is_quiet()
    }
}

/// Turns without a change from which on the machine counts as quiet: time passes at eight times its usual pace.
const LONG: u64 = 192;

impl Stall {
    fn is_quiet(&self) -> bool {
        self.turns >= LONG
    }
}
