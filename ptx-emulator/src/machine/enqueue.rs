//! Streams and events as the host makes and fills them.

use super::stream::{Command, Stream};
use super::{EventId, Launch, LaunchError, Machine, StreamId, grid};
use crate::memory::{Clock, DeviceId, Thread};

impl Machine {
    /// A new stream of a device.
    pub fn stream(&mut self, device: DeviceId) -> StreamId {
        if let Some(at) = self.spare_streams.iter().position(|spare| self.streams[spare.0].device == device) {
            let spare = self.spare_streams.swap_remove(at);
            self.streams[spare.0] = Stream::new(device);
            return spare;
        }
        self.streams.push(Stream::new(device));
        StreamId(self.streams.len() - 1)
    }

    /// Hands back a stream whose work has ended; [`Machine::stream`] may give it out again, as new. Nothing happens while
    /// it still has something to do.
    pub fn retire_stream(&mut self, stream: StreamId) {
        let Stream { device, ref end, .. } = self.streams[stream.0];
        if self.is_idle(stream) && !self.spare_streams.contains(&stream) {
            self.memory.join(self.spare_ends.entry(device).or_default(), end);
            self.spare_streams.push(stream);
        }
    }

    /// A new event, not yet recorded.
    pub fn event(&mut self) -> EventId {
        self.events.push(None);
        EventId(self.events.len() - 1)
    }

    /// Queues a launch. It runs in [`Machine::run`] or [`Machine::advance`].
    ///
    /// # Errors
    /// What a device would refuse.
    pub fn launch(&mut self, stream: StreamId, launch: &Launch) -> Result<(), LaunchError> {
        let image = &self.images[launch.kernel.0];
        grid::check(image.kernel(), launch, &self.options.device)?;
        let device = self.streams[stream.0].device;
        if image.device != device {
            let kernel = image.kernel().name.clone();
            return Err(LaunchError::Device { kernel, loaded: image.device.0, stream: device.0 });
        }
        self.enqueue(stream, Command::Launch(launch.clone()));
        Ok(())
    }

    /// Queues a copy between any two places of memory.
    pub fn copy(&mut self, stream: StreamId, to: u64, from: u64, bytes: u64) {
        self.enqueue(stream, Command::Copy { to, from, bytes });
    }

    /// Queues a fill with copies of `pattern`.
    pub fn fill(&mut self, stream: StreamId, to: u64, bytes: u64, pattern: &[u8]) {
        self.enqueue(stream, Command::Fill { to, bytes, pattern: pattern.into() });
    }

    /// Queues the recording of an event.
    pub fn record(&mut self, stream: StreamId, event: EventId) {
        self.events[event.0] = None;
        self.enqueue(stream, Command::Record(event));
    }

    /// Queues a wait for an event. One that was never recorded holds the stream until it is.
    pub fn wait(&mut self, stream: StreamId, event: EventId) {
        self.enqueue(stream, Command::Wait(event));
    }

    /// Whether an event has been recorded and reached.
    pub fn is_reached(&self, event: EventId) -> bool {
        self.events[event.0].is_some()
    }

    /// Whether a stream has nothing left to do.
    pub fn is_idle(&self, stream: StreamId) -> bool {
        self.streams[stream.0].is_idle()
    }

    fn enqueue(&mut self, stream: StreamId, command: Command) {
        // What the host did so far happens before.
        let mut since = Clock::default();
        self.memory.release(Thread::HOST, &mut since);
        self.streams[stream.0].queue.push_back((command, since));
    }
}
