//! What a machine is, and how it goes about it.

use crate::memory::MemoryOptions;

/// In which order warps get their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// One after the other, 64 instructions each.
    #[default]
    RoundRobin,
    /// Any warp, for any short time.
    Random,
    /// One warp as far as it goes: until it waits, or has changed nothing for a thousand instructions.
    Adversarial,
}

/// The hardware that kernels see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    /// `%nsmid`. Each has 228 KiB of shared memory for the blocks that run at a time.
    pub multiprocessors: u32,
    /// Blocks that run at a time, at most; others wait until one ends.
    pub max_resident_blocks: usize,
}

impl Default for DeviceOptions {
    /// 132 multiprocessors, 132 resident blocks.
    fn default() -> Self {
        Self { multiprocessors: 132, max_resident_blocks: 132 }
    }
}

/// The most devices of a machine.
pub const MAX_DEVICES: u32 = 64;

/// A machine to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineOptions {
    /// How many devices it has, up to [`MAX_DEVICES`].
    pub devices: u32,
    /// What each of them is.
    pub device: DeviceOptions,
    /// What memory checks, and whether it is weak.
    pub memory: MemoryOptions,
    /// Reading a register that the lane has not written is a fault.
    pub check_registers: bool,
    /// The schedule.
    pub policy: Policy,
    /// Of the schedule.
    pub seed: u64,
    /// Warp instructions after which a run stops; `None` for no limit.
    pub max_instructions: Option<u64>,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self {
            devices: 1,
            device: DeviceOptions::default(),
            memory: MemoryOptions::default(),
            check_registers: true,
            policy: Policy::default(),
            seed: 0,
            max_instructions: None,
        }
    }
}
