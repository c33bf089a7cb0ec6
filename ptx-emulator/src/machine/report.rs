//! Failures in words: device, kernel, block, thread, line, instruction, seed.

use std::fmt;

use super::Policy;
use crate::exec::Cause;

/// A place in a kernel and who was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The device.
    pub device: u32,
    /// The kernel.
    pub kernel: String,
    /// `%ctaid`
    pub block: [u32; 3],
    /// `%tid`
    pub thread: [u32; 3],
    /// The PTX file.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// The instruction.
    pub text: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, kernel, block: [bx, by, bz], thread: [tx, ty, tz], file, line, text } = self;
        write!(
            f,
            "{file}:{line}: `{text}` (kernel {kernel}, device {device}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}))"
        )
    }
}

/// A kernel went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What went wrong.
    pub cause: Cause,
    /// The instruction that revealed it.
    pub place: Place,
    /// The other access of a race.
    pub other: Option<Place>,
    /// Reproduces the run, with the policy.
    pub seed: u64,
    /// The schedule.
    pub policy: Policy,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  at {}", self.cause, self.place)?;
        if let Some(other) = &self.other {
            write!(f, "\n  against {other}")?;
        }
        write!(f, "\n  schedule: {:?}, seed {}", self.policy, self.seed)
    }
}

/// A warp, or part of one, that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Its first lane and its instruction.
    pub place: Place,
    /// The lanes.
    pub lanes: u32,
    /// For what it waits.
    pub waits_for: String,
}

/// Nothing can move any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlock {
    /// The first of those that wait.
    pub waiters: Vec<Waiter>,
    /// How many more there are.
    pub more: usize,
    /// Reproduces the run, with the policy.
    pub seed: u64,
    /// The schedule.
    pub policy: Policy,
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deadlock: no thread can move")?;
        for Waiter { place, lanes, waits_for } in &self.waiters {
            write!(f, "\n  lanes {lanes:#010x} wait for {waits_for}\n    at {place}")?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        write!(f, "\n  schedule: {:?}, seed {}", self.policy, self.seed)
    }
}

/// Why a machine stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// An instruction failed.
    #[error("{0}")]
    Fault(Box<Report>),
    /// Nothing can move.
    #[error("{0}")]
    Deadlock(Box<Deadlock>),
    /// The budget of instructions is used up.
    #[error(
        "{executed} warp instructions were executed, the budget of the run (schedule: {policy:?}, seed {seed})"
    )]
    Budget {
        /// Instructions so far.
        executed: u64,
        /// The schedule.
        policy: Policy,
        /// Its seed.
        seed: u64,
    },
    /// The machine has no such device.
    #[error("device {device} does not exist: the machine has {devices}, from 0")]
    NoDevice {
        /// As asked for.
        device: u32,
        /// How many there are.
        devices: u32,
    },
    /// A function that a module calls and nobody provides as it is declared.
    #[error("{file}:{line}: function `{function}` {why}")]
    External {
        /// The file.
        file: String,
        /// Of the first call, from 1.
        line: u32,
        /// Its name.
        function: String,
        /// What is the matter with it.
        why: &'static str,
    },
    /// What a library has done went wrong, and no call can be made out that it belongs to.
    #[error("{0}")]
    Library(String),
    /// A copy or fill on a stream failed.
    #[error("{0}")]
    Memory(#[from] Box<crate::memory::Fault>),
}
