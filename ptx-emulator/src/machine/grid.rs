//! Grids that run, their blocks, and the images of kernels that they run.

use std::sync::Arc;

use super::shared::{Failure, Shared, Turn};
use super::warp::Warp;
use super::{DeviceOptions, Launch, LaunchError, MachineOptions, Policy};
use crate::exec::asynchronous::AsyncState;
use crate::exec::barrier::Barriers;
use crate::exec::cluster::Cluster;
use crate::exec::context::Environment;
use crate::exec::registers::Pool;
use crate::exec::rows::{Constants, LANES};
use crate::external::{Bound, Library};
use crate::memory::{BlockId, BlockSpec, Clock, DeviceId, GridId, Memory};
use crate::program::{Constant, Kernel, Module, Relocation};

/// The most shared memory of a block on the devices of `ptx/`: 227 KiB.
pub(super) const MAX_SHARED_BYTES: u32 = 227 * 1024;
/// The shared memory of their multiprocessors, and what the system takes of it for each block.
const MULTIPROCESSOR_SHARED_BYTES: u64 = 228 * 1024;
const RESERVED_SHARED_BYTES: u64 = 1024;
/// The largest cluster that every device with clusters takes.
const MAX_CLUSTER_BLOCKS: usize = 8;

/// A kernel with the addresses of one device.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) module: Arc<Module>,
    pub(super) kernel: usize,
    pub(super) device: DeviceId,
    pub(super) constants: Constants,
    /// The functions of libraries that it calls.
    pub(super) bound: Box<[Bound]>,
    /// Number of its first instruction among those of all images.
    pub(super) site_base: u32,
}

impl Image {
    pub(super) fn new(
        module: Arc<Module>,
        kernel: usize,
        device: DeviceId,
        addresses: &[u64],
        bound: Box<[Bound]>,
        site_base: u32,
    ) -> Self {
        let program = &module.kernels[kernel].program;
        let value = |constant: &Constant| match constant.relocation {
            Relocation::Variable(index) => constant.value.wrapping_add(addresses[index as usize]),
            Relocation::None | Relocation::DynamicShared(_) => constant.value,
        };
        let constants = Constants {
            words: program.words.iter().map(|constant| [value(constant) as u32; LANES]).collect(),
            doubles: program.doubles.iter().map(|constant| [value(constant); LANES]).collect(),
        };
        Self { module, kernel, device, constants, bound, site_base }
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.module.kernels[self.kernel]
    }
}

/// A block that runs.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) id: BlockId,
    pub(super) environment: Environment,
    pub(super) barriers: Barriers,
    /// Its cluster among those of the grid.
    pub(super) cluster: usize,
    pub(super) asynchronous: AsyncState,
    pub(super) registers: Pool,
    pub(super) warps: Vec<Warp>,
    pub(super) triggered: bool,
}

impl Block {
    pub(super) fn is_finished(&self) -> bool {
        self.warps.iter().all(Warp::is_finished)
    }
}

/// A launch that runs.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) image: Arc<Image>,
    pub(super) launch: Launch,
    pub(super) id: GridId,
    /// The number of the launch, for `%gridid`.
    number: u64,
    /// The next cluster to start.
    next_cluster: u64,
    pub(super) blocks: Vec<Block>,
    /// All that have started.
    pub(super) clusters: Vec<Cluster>,
}

/// Static and dynamic shared memory of each block.
fn shared_bytes(kernel: &Kernel, launch: &Launch) -> u64 {
    u64::from(kernel.program.shared_bytes) + u64::from(launch.dynamic_shared_bytes)
}

/// How many blocks of a launch a device holds at a time, by their shared memory.
fn resident_blocks(kernel: &Kernel, launch: &Launch, device: &DeviceOptions) -> usize {
    let on_each = MULTIPROCESSOR_SHARED_BYTES / (shared_bytes(kernel, launch) + RESERVED_SHARED_BYTES);
    let all = usize::try_from(on_each * u64::from(device.multiprocessors)).unwrap_or(usize::MAX);
    all.min(device.max_resident_blocks)
}

/// Checks a launch against the kernel and the limits of a device.
pub(super) fn check(kernel: &Kernel, launch: &Launch, device: &DeviceOptions) -> Result<(), LaunchError> {
    let name = || kernel.name.clone();
    let threads = launch.block.iter().map(|&size| u64::from(size)).product::<u64>();
    let fits = (1..=1024).contains(&threads) && launch.block[2] <= 64;
    let bounded = |limit: [u32; 3]| threads <= limit.iter().map(|&size| u64::from(size)).product();
    if !fits || !kernel.max_threads.is_none_or(bounded) {
        return Err(LaunchError::BlockSize {
            kernel: name(),
            block: launch.block,
            bound: kernel.max_threads,
        });
    }
    if kernel.required_threads.is_some_and(|required| required != launch.block) {
        return Err(LaunchError::BlockSize {
            kernel: name(),
            block: launch.block,
            bound: kernel.required_threads,
        });
    }
    if launch.grid.contains(&0)
        || launch.grid[0] > i32::MAX as u32
        || launch.grid[1].max(launch.grid[2]) > 65535
    {
        return Err(LaunchError::GridSize { kernel: name(), grid: launch.grid });
    }
    let shared = shared_bytes(kernel, launch);
    if shared > u64::from(MAX_SHARED_BYTES) {
        return Err(LaunchError::SharedMemory { kernel: name(), bytes: shared, limit: MAX_SHARED_BYTES });
    }
    let limit = MAX_CLUSTER_BLOCKS.min(resident_blocks(kernel, launch, device));
    let divides = |(grid, cluster): (&u32, &u32)| *cluster > 0 && grid.is_multiple_of(*cluster);
    let blocks = launch.cluster.iter().map(|&size| size as usize).product::<usize>();
    if blocks > limit || !launch.grid.iter().zip(&launch.cluster).all(divides) {
        let (grid, cluster) = (launch.grid, launch.cluster);
        return Err(LaunchError::ClusterSize { kernel: name(), grid, cluster, limit });
    }
    if launch.params.len() != kernel.param_bytes as usize {
        return Err(LaunchError::Params {
            kernel: name(),
            expected: kernel.param_bytes,
            found: launch.params.len(),
        });
    }
    Ok(())
}

impl Grid {
    pub(super) fn new(
        image: Arc<Image>,
        launch: Launch,
        began: &Clock,
        number: u64,
        memory: &mut Memory,
    ) -> Self {
        let id = memory.begin_grid(image.device, began);
        Self { image, launch, id, number, next_cluster: 0, blocks: Vec::new(), clusters: Vec::new() }
    }

    /// Blocks of a cluster.
    pub(super) fn cluster_blocks(&self) -> usize {
        self.launch.cluster.iter().map(|&size| size as usize).product()
    }

    /// Clusters in x, y and z.
    fn clusters_of_grid(&self) -> [u64; 3] {
        std::array::from_fn(|axis| u64::from(self.launch.grid[axis] / self.launch.cluster[axis]))
    }

    /// Whether one more cluster is to start and the multiprocessors have room for it, as far as this grid fills them.
    pub(super) fn may_start_cluster(&self, device: &DeviceOptions) -> bool {
        let resident = resident_blocks(self.image.kernel(), &self.launch, device);
        self.has_more_blocks() && self.blocks.len() + self.cluster_blocks() <= resident
    }

    pub(super) fn has_more_blocks(&self) -> bool {
        self.next_cluster < self.clusters_of_grid().iter().product()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.blocks.is_empty() && !self.has_more_blocks()
    }

    /// Whether dependents that were launched for it may start.
    pub(super) fn all_triggered(&self) -> bool {
        !self.has_more_blocks() && self.blocks.iter().all(|block| block.triggered)
    }

    /// Starts the blocks of the next cluster, by rank.
    pub(super) fn start_cluster(&mut self, memory: &mut Memory, options: &MachineOptions) {
        let [x, y, _] = self.clusters_of_grid();
        let number = self.next_cluster;
        self.next_cluster += 1;
        let cluster = [number % x, number / x % y, number / (x * y)];
        let size = self.launch.cluster;
        let ids: Vec<BlockId> = (0..self.cluster_blocks() as u32)
            .map(|rank| {
                let inside = [rank % size[0], rank / size[0] % size[1], rank / (size[0] * size[1])];
                let block = std::array::from_fn(|axis| cluster[axis] as u32 * size[axis] + inside[axis]);
                self.start_block(block, memory, options)
            })
            .collect();
        if ids.len() > 1 {
            memory.join_cluster(&ids);
        }
        let threads = self.launch.block.iter().map(|&size| size as usize).product();
        self.clusters.push(Cluster::new(ids.len(), threads));
    }

    fn start_block(&mut self, block: [u32; 3], memory: &mut Memory, options: &MachineOptions) -> BlockId {
        let multiprocessors = options.device.multiprocessors;
        let [x, y, _] = self.launch.grid.map(u64::from);
        let index = u64::from(block[0]) + x * (u64::from(block[1]) + y * u64::from(block[2]));
        let kernel = self.image.kernel();
        let threads: u32 = self.launch.block.iter().product();
        let dynamic = self.launch.dynamic_shared_bytes;
        let shared_bytes = match dynamic {
            0 => kernel.program.shared_bytes,
            _ => kernel.program.dynamic_offset + dynamic,
        };
        let spec =
            BlockSpec { grid: self.id, index, n_threads: threads, shared_bytes: u64::from(shared_bytes) };
        let id = memory.begin_block(&spec);
        let environment = Environment {
            block_size: self.launch.block,
            grid_size: self.launch.grid,
            block,
            cluster_size: self.launch.cluster,
            first_thread: 0,
            grid_id: self.number,
            multiprocessor: (index % u64::from(multiprocessors)) as u32,
            multiprocessors,
            shared_bytes,
            dynamic_shared_bytes: dynamic,
            time_ns: 0,
        };
        let warps = (0..threads).step_by(LANES).map(|first| {
            Warp::new(&kernel.program, first, (threads - first).min(LANES as u32), &self.launch.params)
        });
        let mut warps: Vec<Warp> = warps.collect();
        if !options.memory.check_initialised {
            warps.iter_mut().for_each(|warp| warp.privates.trust());
        }
        let (barriers, asynchronous) = (Barriers::new(threads), AsyncState::default());
        let registers = Pool::new(warps.len(), kernel.max_threads, kernel.min_blocks);
        let cluster = self.clusters.len();
        let triggered = false;
        self.blocks.push(Block {
            id,
            environment,
            barriers,
            cluster,
            asynchronous,
            registers,
            warps,
            triggered,
        });
        id
    }
}

/// What a turn needs of the machine besides the block.
pub(super) struct Surroundings<'a> {
    pub(super) memory: &'a mut Memory,
    pub(super) output: &'a mut String,
    pub(super) progress: &'a mut u64,
    pub(super) libraries: &'a mut Vec<Box<dyn Library>>,
    pub(super) predecessors: Option<&'a Clock>,
    pub(super) time_ns: u64,
    pub(super) check_registers: bool,
    pub(super) find_spins: bool,
}

/// Instructions of a turn, by warp and by thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Executed {
    pub(super) warp: u64,
    pub(super) thread: u64,
}

impl Block {
    /// Gives one warp a turn.
    pub(super) fn turn(
        &mut self,
        image: &Image,
        warp: usize,
        budget: u64,
        cluster: &mut Cluster,
        around: Surroundings<'_>,
    ) -> (Result<Turn, Failure>, Executed) {
        let warp = &mut self.warps[warp];
        self.environment.first_thread = warp.first_thread;
        self.environment.time_ns = around.time_ns;
        let mut shared = Shared {
            program: &image.kernel().program,
            constants: &image.constants,
            site_base: image.site_base,
            bound: &image.bound,
            libraries: around.libraries,
            block: self.id,
            memory: around.memory,
            environment: &self.environment,
            barriers: &mut self.barriers,
            cluster,
            asynchronous: &mut self.asynchronous,
            registers: &mut self.registers,
            output: around.output,
            progress: around.progress,
            predecessors: around.predecessors,
            triggered: &mut self.triggered,
            check_registers: around.check_registers,
            find_spins: around.find_spins,
            warp_instructions: 0,
            thread_instructions: 0,
            culprit: None,
        };
        let turn = warp.run(&mut shared, budget);
        (turn, Executed { warp: shared.warp_instructions, thread: shared.thread_instructions })
    }
}

/// How many instructions the next turn may take under a policy, given a random number.
pub(super) fn budget(policy: Policy, random: u64) -> u64 {
    match policy {
        Policy::RoundRobin => 64,
        Policy::Random => 1 + random % 128,
        // As long as it changes something, it gets the next turn as well.
        Policy::Adversarial => 1_000,
    }
}
