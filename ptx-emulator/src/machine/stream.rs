//! Streams: commands in order, each after what the stream did before.

use std::collections::VecDeque;
use std::sync::Arc;

use super::grid::Grid;
use super::{Launch, Machine, RunError};
use crate::memory::{BlockSpec, Clock, DeviceId, Thread};

/// A stream of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamId(pub(super) usize);

/// A point in a stream that others can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub(super) usize);

#[derive(Debug)]
pub(super) enum Command {
    Launch(Launch),
    Copy { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, bytes: u64, pattern: Box<[u8]> },
    Record(EventId),
    Wait(EventId),
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) device: DeviceId,
    /// With what the host had done when it enqueued them.
    pub(super) queue: VecDeque<(Command, Clock)>,
    /// Grids that run: more than one only with programmatic dependent launch, oldest first.
    pub(super) grids: Vec<Grid>,
    /// The end of all that the stream has done.
    pub(super) end: Clock,
    /// What the last launch began after, unless another command came behind it.
    began: Option<Clock>,
}

impl Stream {
    pub(super) fn new(device: DeviceId) -> Self {
        Self { device, queue: VecDeque::new(), grids: Vec::new(), end: Clock::default(), began: None }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.grids.is_empty()
    }

    /// Whether the next command may start.
    fn is_ready(&self) -> bool {
        let Some((command, _)) = self.queue.front() else { return false };
        match (command, self.grids.last()) {
            (_, None) => true,
            (Command::Launch(launch), Some(before)) => launch.programmatic && before.all_triggered(),
            _ => false,
        }
    }
}

impl Machine {
    /// Starts every command that can start; true if any did.
    pub(super) fn start_commands(&mut self) -> Result<bool, RunError> {
        let mut any = false;
        for index in 0..self.streams.len() {
            while self.streams[index].is_ready() && self.start_command(index)? {
                any = true;
            }
        }
        Ok(any)
    }

    fn start_command(&mut self, index: usize) -> Result<bool, RunError> {
        if let Some((Command::Wait(event), _)) = self.streams[index].queue.front() {
            let Some(clock) = self.events[event.0].as_ref().map(|reached| reached.clock.clone()) else {
                return Ok(false);
            };
            self.streams[index].queue.pop_front();
            let (end, _) = self.joined(index, &clock);
            self.streams[index].end = end;
            return Ok(true);
        }
        let Some((command, since)) = self.streams[index].queue.pop_front() else { return Ok(false) };
        if !matches!(command, Command::Launch(_)) {
            self.streams[index].began = None;
        }
        match command {
            Command::Launch(launch) => self.start_grid(index, launch, &since),
            Command::Record(event) => {
                let (clock, time_ns) = (self.streams[index].end.clone(), self.time_ns);
                self.events[event.0] = Some(super::host::Reached { clock, time_ns });
            }
            Command::Copy { to, from, bytes } => {
                self.as_agent(index, &since, |machine, agent| {
                    machine.memory.check_range(agent, from, bytes)?;
                    let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
                    machine.memory.read(agent, from, &mut buffer)?;
                    Ok(machine.memory.write(agent, to, &buffer)?)
                })?;
            }
            Command::Fill { to, bytes, pattern } => {
                self.as_agent(index, &since, |machine, agent| {
                    Ok(machine.memory.fill(agent, to, bytes, &pattern)?)
                })?;
            }
            Command::Wait(_) => {}
        }
        Ok(true)
    }

    fn start_grid(&mut self, index: usize, launch: Launch, since: &Clock) {
        let image = Arc::clone(&self.images[launch.kernel.0]);
        // Even where the launch before has ended by now, a dependent may not rely on it before its wait.
        let before = match &self.streams[index].began {
            Some(began) if launch.programmatic => began.clone(),
            _ => self.streams[index].end.clone(),
        };
        let began = self.merged(index, &[&before, since]);
        self.streams[index].began = Some(began.clone());
        self.launches += 1;
        let grid = Grid::new(image, launch, &began, self.launches, &mut self.memory);
        self.streams[index].grids.push(grid);
    }

    /// Runs a copy or fill as the only thread of a grid of its own.
    pub(super) fn as_agent(
        &mut self,
        index: usize,
        since: &Clock,
        work: impl FnOnce(&mut Self, Thread) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let end = self.streams[index].end.clone();
        let began = self.merged(index, &[&end, since]);
        let grid = self.memory.begin_grid(self.streams[index].device, &began);
        let block = self.memory.begin_block(&BlockSpec { grid, index: 0, n_threads: 1, shared_bytes: 0 });
        let result = work(self, Thread::new(block, 0));
        self.memory.end_block(block);
        self.streams[index].end = self.memory.end_grid(grid);
        self.progress += 1;
        result
    }

    fn joined(&mut self, index: usize, clock: &Clock) -> (Clock, ()) {
        let end = self.streams[index].end.clone();
        (self.merged(index, &[&end, clock]), ())
    }

    /// A clock after all of these, by way of an agent that acquires them.
    fn merged(&mut self, index: usize, clocks: &[&Clock]) -> Clock {
        let grid = self.memory.begin_grid(self.streams[index].device, clocks[0]);
        let block = self.memory.begin_block(&BlockSpec { grid, index: 0, n_threads: 1, shared_bytes: 0 });
        let agent = Thread::new(block, 0);
        for clock in &clocks[1..] {
            self.memory.acquire(agent, clock);
        }
        let mut out = Clock::default();
        self.memory.release(agent, &mut out);
        self.memory.end_block(block);
        self.memory.end_grid(grid);
        out
    }

    /// Ends finished grids from the front of each stream; true if any ended.
    pub(super) fn end_grids(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.streams.len() {
            while self.streams[index].grids.first().is_some_and(Grid::is_finished) {
                let grid = self.streams[index].grids.remove(0);
                let ended = self.memory.end_grid(grid.id);
                self.streams[index].end = self.joined(index, &ended).0;
                self.progress += 1;
                any = true;
            }
        }
        any
    }

    /// Starts blocks of running grids up to the device's limit; true if any started.
    pub(super) fn start_blocks(&mut self) -> bool {
        let mut any = false;
        for device in 0..self.options.devices {
            let here = |stream: &Stream| stream.device.0 == device;
            let resident = self.streams.iter().filter(|stream| here(stream)).flat_map(|stream| &stream.grids);
            let mut room = self
                .options
                .device
                .max_resident_blocks
                .saturating_sub(resident.map(|grid| grid.blocks.len()).sum());
            for stream in self.streams.iter_mut().filter(|stream| stream.device.0 == device) {
                for grid in &mut stream.grids {
                    while room >= grid.cluster_blocks() && grid.may_start_cluster(&self.options.device) {
                        grid.start_cluster(&mut self.memory, &self.options);
                        room -= grid.cluster_blocks();
                        any = true;
                    }
                }
            }
        }
        any
    }
}
