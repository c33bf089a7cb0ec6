//! A launch, and why a device would refuse it.

use super::KernelId;

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What to run.
    pub kernel: KernelId,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Blocks of a cluster in x, y and z; they start together. `[1; 3]` for none.
    pub cluster: [u32; 3],
    /// Beyond the kernel's static shared memory.
    pub dynamic_shared_bytes: u32,
    /// The parameters as they lie in `.param` space.
    pub params: Vec<u8>,
    /// Programmatic dependent launch: it may start before the kernel before it in the stream has ended.
    pub programmatic: bool,
}

impl Launch {
    /// Without clusters, dynamic shared memory or programmatic dependence.
    pub fn new(kernel: KernelId, grid: [u32; 3], block: [u32; 3], params: Vec<u8>) -> Self {
        Self { kernel, grid, block, cluster: [1; 3], dynamic_shared_bytes: 0, params, programmatic: false }
    }
}

/// A launch that a device would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Too many threads, none, or against `.maxntid` or `.reqntid`.
    #[error(
        "kernel {kernel} cannot run with blocks of {block:?} threads (1024 at most; the kernel's bound is {bound:?})"
    )]
    BlockSize {
        /// The kernel.
        kernel: String,
        /// As launched.
        block: [u32; 3],
        /// The kernel's own bound.
        bound: Option<[u32; 3]>,
    },
    /// No blocks, or too many.
    #[error("kernel {kernel} cannot run as a grid of {grid:?} blocks")]
    GridSize {
        /// The kernel.
        kernel: String,
        /// As launched.
        grid: [u32; 3],
    },
    /// Clusters that are too large, or do not divide the grid.
    #[error(
        "kernel {kernel} cannot run as a grid of {grid:?} blocks in clusters of {cluster:?} (each divides the grid; \
         {limit} blocks at most)"
    )]
    ClusterSize {
        /// The kernel.
        kernel: String,
        /// As launched.
        grid: [u32; 3],
        /// As launched.
        cluster: [u32; 3],
        /// Of a device: what is portable, or resident at once if that is less.
        limit: usize,
    },
    /// Not the kernel's parameters.
    #[error("kernel {kernel} takes {expected} bytes of parameters, not {found}")]
    Params {
        /// The kernel.
        kernel: String,
        /// Of the declaration.
        expected: u32,
        /// As launched.
        found: usize,
    },
    /// More than a block can have.
    #[error("kernel {kernel} would need {bytes} bytes of shared memory per block; a device has {limit}")]
    SharedMemory {
        /// The kernel.
        kernel: String,
        /// Static and dynamic.
        bytes: u64,
        /// Of a block.
        limit: u32,
    },
    /// The stream is another device's.
    #[error("kernel {kernel} was loaded on device {loaded}, the stream is of device {stream}")]
    Device {
        /// The kernel.
        kernel: String,
        /// Where it is.
        loaded: u32,
        /// Where it was to run.
        stream: u32,
    },
}
