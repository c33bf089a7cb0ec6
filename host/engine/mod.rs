//! The model on GPUs: bf16 weights, f32 sums, a paged KV cache, and decode steps as captured graphs that sample
//! on the device.
//!
//! One engine over whatever implements [`crate::driver::Gpu`]. A rank is a GPU and a thread of this process. Ranks
//! have the reference's structure (`host/reference/rank.rs`) and synchronise through [`crate::comm::Communicator`]
//! alone. What is refused: head widths other than 64 and 128.
//!
//! What takes or frees device memory (a graph, a larger array) happens on all ranks before the pass that needs it
//! begins on any: while one rank's kernel waits for a peer, the driver may hold up a peer that asks for memory.

mod budget;
mod buffers;
mod error;
mod forward;
mod logits;
mod pages;
mod profile;
mod rank;
mod ranks;
mod step;
mod weights;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

pub(crate) use budget::MAX_ROWS;
use budget::{LANES, RankShape};
pub use error::EngineError;
use rank::{Blueprint, Rank, Seed};
use ranks::Ranks;
use step::Choice;

use crate::comm::bootstrap::Bootstrap;
use crate::comm::gpu::{GpuComm, GroupOptions};
use crate::comm::{CommError, Shape};
use crate::driver::{Device, GpuError, KernelLibrary};
use crate::generate::{Sampler, Sampling};
use crate::kernels::PageSize;
use crate::model::sharding::Sharding;
use crate::model::{Config, TensorSource};
use crate::runner::chunk::Chunk;
use crate::runner::profile::StepProfile;
use crate::runner::{Batch, Output, RunError, Runner, SyncCounts, check_agreement};
use crate::spd::{Plan, PlanError};

/// How the engine uses its GPUs.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Tokens of a page of the KV cache: a power of two.
    pub page_size: usize,
    /// Tokens that the KV cache holds, of all sequences together. None: sixteen contexts, or what fits.
    pub kv_tokens: Option<usize>,
    /// Decode steps are captured graphs; else every kernel is launched by itself.
    pub graphs: bool,
    /// With one rank and few rows, products add to the residual stream and normalise their input themselves,
    /// so that no kernel stands between them. Off: on an H200 the norm costs the products more than its own
    /// kernel does (a step of Llama 3 8B takes 4.35 ms with it, 4.23 ms without).
    pub fuse_norms: bool,
    /// A rank that is alone, and so has nothing to drop, still takes the path of dropped blocks. For tests.
    pub drop_alone: bool,
    /// How the ranks are laid out; none is one node.
    pub shape: Option<Shape>,
    /// The other processes, where each is a rank with a GPU: this one then loads its own rank alone. None: all ranks
    /// are threads of this process.
    pub processes: Option<Arc<dyn Bootstrap>>,
    /// How the ranks reach each other's memory and how long they wait for each other; also whether kernels use
    /// programmatic dependent launch.
    pub comm: GroupOptions,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            page_size: 64,
            kv_tokens: None,
            graphs: true,
            fuse_norms: false,
            drop_alone: false,
            shape: None,
            processes: None,
            comm: GroupOptions::default(),
        }
    }
}

/// A model on one GPU or split over several.
pub struct Engine {
    config: Config,
    /// Ranks of the model, in this process and others.
    tp: usize,
    devices: Vec<Device>,
    ranks: Ranks<Rank>,
}

impl Engine {
    /// Loads the model, rank r on `devices[r]`, all at the same time; where ranks are processes, this process's rank
    /// on the only device, which is collective. `loaded_bytes` grows to [`Engine::weight_bytes`] while it goes.
    ///
    /// # Errors
    /// Too few GPUs, GPUs that do not reach each other, a shape without kernels, too little memory (all found before
    /// anything is loaded), or what a GPU's driver reports.
    pub fn load(
        config: &Config,
        source: &Arc<dyn TensorSource>,
        plan: &Plan,
        devices: &[Device],
        options: &EngineOptions,
        loaded_bytes: &Arc<AtomicU64>,
    ) -> Result<Self, RunError> {
        let tp = plan.tp();
        plan.check(config, tp)?;
        let page_size = PageSize::try_from(options.page_size).map_err(EngineError::from)?;
        let sharding = Sharding::new(config, tp).map_err(PlanError::from)?;
        let shapes = rank_shapes(config, &sharding, plan)?;
        let here = options.processes.as_ref().map_or(0..tp, |world| world.rank()..world.rank() + 1);
        let Some(devices) = devices.get(..here.len()) else {
            return Err(EngineError::TooFewGpus { tp: here.len(), found: devices.len() }.into());
        };
        let shape = options.shape.unwrap_or(Shape { nodes: 1, gpus_per_node: tp });
        if shape.world() != tp {
            return Err(EngineError::OtherShape { shape, tp }.into());
        }
        let Some(shapes) = shapes.get(here) else {
            return Err(EngineError::OtherShape { shape, tp }.into());
        };
        let kv_tokens = kv_tokens(shapes, devices, options.kv_tokens)?;
        let kv_tokens = agree(options.processes.as_deref(), kv_tokens)?;
        let kernels = load_kernels(devices, options.comm.dependent_launch)?;
        let comms = communicators(&kernels, shape, options);
        let comms = comms.map_err(|e| EngineError::of_group(&e).map_or_else(|| e.into(), RunError::from))?;
        let seeds = comms.into_iter().zip(kernels).map(|(comm, kernels)| Seed { comm, kernels }).collect();
        let blueprint = Blueprint {
            config: config.clone(),
            source: Arc::clone(source),
            plan: plan.clone(),
            sharding,
            options: options.clone(),
            page_size,
            kv_tokens,
            loaded_bytes: Arc::clone(loaded_bytes),
        };
        let ranks = Ranks::make(seeds, move |seed| Rank::load(seed, &blueprint))?;
        Ok(Self { config: config.clone(), tp, devices: devices.to_vec(), ranks })
    }

    /// Bytes of weights that a model takes on all GPUs together.
    ///
    /// # Errors
    /// A shape without kernels, more ranks than heads: what no GPU would change.
    pub fn weight_bytes(config: &Config, plan: &Plan) -> Result<u64, RunError> {
        let sharding = Sharding::new(config, plan.tp()).map_err(PlanError::from)?;
        Ok(rank_shapes(config, &sharding, plan)?.iter().map(RankShape::weight_bytes).sum())
    }

    /// Tokens that the KV cache holds, of all sequences together.
    pub fn kv_tokens(&self) -> usize {
        self.ranks.first().kv_tokens()
    }

    /// One pass on all ranks.
    fn pass(&mut self, chunk: Chunk) -> Result<Output, RunError> {
        let chunk = Arc::new(chunk);
        if !self.ranks.first().is_ready(&chunk) {
            let chunk = Arc::clone(&chunk);
            self.ranks.all(move |rank| rank.prepare(&chunk))?;
        }
        let mut outputs = self.ranks.all(move |rank| rank.forward(&chunk))?.into_iter();
        let first = outputs.next().expect("there is a first rank");
        for (rank, other) in outputs.enumerate() {
            check_agreement(rank + 1, &first.hidden_states, &other.hidden_states)?;
        }
        Ok(first)
    }

    /// One step on all ranks, whose tokens are chosen on the devices.
    fn sampled_step(
        &mut self,
        fed: Vec<(usize, u32)>,
        choice: Choice,
        samplings: Vec<Sampling>,
    ) -> Result<Vec<u32>, RunError> {
        let n = fed.len();
        if !self.ranks.first().is_step_ready(n, choice) {
            self.ranks.all(move |rank| rank.prepare_step(n, choice))?;
        }
        let mut drawn = self.ranks.all(move |rank| rank.sampled_step(&fed, choice, &samplings))?.into_iter();
        let first = drawn.next().expect("there is a first rank");
        match drawn.position(|other| other != first) {
            Some(other) => Err(RunError::TokensDiffer { rank: other + 1 }),
            None => Ok(first),
        }
    }
}

/// The kernels on every device, compiled for all at the same time.
fn load_kernels(devices: &[Device], dependent_launch: bool) -> Result<Vec<Arc<KernelLibrary>>, EngineError> {
    let load = |device| Ok(Arc::new(KernelLibrary::load(device)?.programmatic(dependent_launch)));
    let (first, others) = devices.split_first().expect("a model has at least one rank");
    std::thread::scope(|scope| {
        let others: Vec<_> = others.iter().map(|device| scope.spawn(move || load(device))).collect();
        let first = load(first);
        let others = others.into_iter().map(|other| other.join().expect("loading a module does not panic"));
        std::iter::once(first).chain(others).collect()
    })
}

/// This process's ends of the communicator, in rank order.
fn communicators(
    kernels: &[Arc<KernelLibrary>],
    shape: Shape,
    options: &EngineOptions,
) -> Result<Vec<GpuComm>, CommError> {
    let comm = options.comm.clone();
    match &options.processes {
        None => GpuComm::group_with(kernels, shape, comm),
        #[cfg(feature = "nvshmem")]
        Some(world) => Ok(vec![GpuComm::over_nvshmem(&kernels[0], shape, comm, Arc::clone(world))?]),
        #[cfg(not(feature = "nvshmem"))]
        Some(_) => {
            Err(CommError::Unsupported { what: "GPUs of several processes without the feature nvshmem" })
        }
    }
}

/// The smallest KV cache of all processes: pages are dealt alike on all ranks.
fn agree(processes: Option<&dyn Bootstrap>, kv_tokens: usize) -> Result<usize, CommError> {
    let Some(processes) = processes else { return Ok(kv_tokens) };
    let all = processes.all_gather("the size of the KV cache", &(kv_tokens as u64).to_le_bytes())?;
    let number =
        |bytes: &Vec<u8>| bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte));
    Ok(all.iter().map(number).min().unwrap_or(kv_tokens))
}

fn rank_shapes(config: &Config, sharding: &Sharding, plan: &Plan) -> Result<Vec<RankShape>, EngineError> {
    (0..sharding.tp()).map(|rank| RankShape::new(config, sharding, plan, rank)).collect()
}

/// What the KV cache of every rank can hold: pages are dealt alike on all.
fn kv_tokens(shapes: &[RankShape], devices: &[Device], wanted: Option<usize>) -> Result<usize, EngineError> {
    let one = |(shape, device): (&RankShape, &Device)| {
        let sm_count = device.properties().multiprocessors;
        shape.kv_tokens(wanted, device.memory_info()?, device.label(), sm_count)
    };
    let each = shapes.iter().zip(devices).map(one).collect::<Result<Vec<_>, EngineError>>()?;
    Ok(each.into_iter().min().unwrap_or(0))
}

/// `cuda:0 (NVIDIA H200)`, and how many follow: `cuda:0-1 (2 × NVIDIA H200)`.
fn label(devices: &[Device]) -> String {
    let [first, .., last] = devices else { return devices[0].label().to_owned() };
    let (first, last) = (first.properties(), last.properties());
    let backend = devices[0].gpu().backend();
    format!("{backend}:{}-{} ({} × {})", first.ordinal, last.ordinal, devices.len(), first.name)
}

impl Runner for Engine {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tp(&self) -> usize {
        self.tp
    }

    fn device(&self) -> String {
        label(&self.devices)
    }

    fn forward(&mut self, batch: &Batch) -> Result<Output, RunError> {
        batch.check(&self.config, &self.ranks.first().lengths())?;
        let mut output = Output::default();
        for chunk in batch.chunks(MAX_ROWS) {
            let part = self.pass(chunk)?;
            if output.logits.is_empty() {
                output.logits = part.logits;
            } else {
                output.logits.extend(part.logits);
            }
            output.hidden_states.resize(part.hidden_states.len(), Vec::new());
            for (all, part) in output.hidden_states.iter_mut().zip(&part.hidden_states) {
                all.extend_from_slice(part);
            }
        }
        Ok(output)
    }

    fn decode_sampled(&mut self, tokens: &[u32], samplers: &mut [Sampler]) -> Result<Vec<u32>, RunError> {
        if tokens.len() != samplers.len() {
            return Err(RunError::BadCall("a decode step needs one sampler for every token"));
        }
        Batch::decode(tokens).check(&self.config, &self.ranks.first().lengths())?;
        let mut next = Vec::with_capacity(tokens.len());
        for (part, (tokens, samplers)) in tokens.chunks(LANES).zip(samplers.chunks(LANES)).enumerate() {
            let fed = tokens.iter().enumerate().map(|(i, &token)| (part * LANES + i, token)).collect();
            let samplings: Vec<Sampling> = samplers.iter().map(|sampler| *sampler.sampling()).collect();
            let greedy = samplings.iter().all(Sampling::is_greedy);
            let choice = if greedy { Choice::Greedy } else { Choice::Sample };
            next.extend(self.sampled_step(fed, choice, samplings)?);
        }
        Ok(next)
    }

    fn truncate(&mut self, sequence: usize, len: usize) -> Result<(), RunError> {
        let cut = move |rank: &mut Rank| {
            rank.truncate(sequence, len);
            Ok(())
        };
        self.ranks.all(cut).map(drop)
    }

    fn set_plan(&mut self, plan: &Plan) -> Result<(), RunError> {
        if plan.tp() != self.tp() || plan.blocks().len() != self.config.n_layers {
            return Err(RunError::BadCall("the plan is for another number of ranks or blocks"));
        }
        let plan = plan.clone();
        self.ranks.all(move |rank| rank.set_plan(&plan)).map(drop)
    }

    fn sync_counts(&self) -> SyncCounts {
        self.ranks.first().sync_counts()
    }

    fn gpus(&self) -> Vec<Device> {
        self.devices.clone()
    }

    fn profile_step(&mut self, tokens: &[u32]) -> Result<Option<StepProfile>, RunError> {
        Batch::decode(tokens).check(&self.config, &self.ranks.first().lengths())?;
        let n = tokens.len();
        self.ranks.all(move |rank| rank.prepare_profile(n))?;
        let fed: Vec<_> = tokens.iter().copied().enumerate().collect();
        let by_rank = self.ranks.all(move |rank| rank.profile(&fed))?;
        Ok(StepProfile::slowest(by_rank))
    }
}

impl From<GpuError> for RunError {
    fn from(error: GpuError) -> Self {
        Self::Engine(error.into())
    }
}
