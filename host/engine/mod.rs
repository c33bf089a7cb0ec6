//! The model on a GPU: bf16 weights, f32 sums, a paged KV cache, and decode steps as captured graphs that sample
//! on the device.
//!
//! One engine over whatever implements [`crate::driver::Gpu`]. It has the reference's structure (`host/reference/
//! rank.rs`) and synchronises through [`crate::comm::Communicator`] alone. What is refused: head widths other
//! than 64 and 128, and more than one rank, which arrives with NVRAR between GPUs.

mod budget;
mod buffers;
mod error;
mod forward;
mod pages;
mod profile;
mod rank;
mod step;
mod weights;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use budget::{LANES, MAX_ROWS, RankShape};
pub use error::EngineError;
use rank::Rank;
use step::Choice;

use crate::driver::{Device, GpuError};
use crate::generate::{Sampler, Sampling};
use crate::model::sharding::Sharding;
use crate::model::{Config, TensorSource};
use crate::runner::profile::StepProfile;
use crate::runner::{Batch, Output, RunError, Runner, SyncCounts};
use crate::spd::Plan;

/// How the engine uses its GPU.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Tokens of a page of the KV cache: a power of two.
    pub page_size: usize,
    /// Tokens that the KV cache holds, of all sequences together. None: sixteen contexts, or what fits.
    pub kv_tokens: Option<usize>,
    /// Decode steps are captured graphs; else every kernel is launched by itself.
    pub graphs: bool,
    /// Programmatic dependent launch, where the GPU has it.
    pub dependent_launch: bool,
    /// With one rank and few rows, products add to the residual stream and normalise their input themselves,
    /// so that no kernel stands between them. Off: on an H200 the norm costs the products more than its own
    /// kernel does (a step of Llama 3 8B takes 4.35 ms with it, 4.23 ms without).
    pub fuse_norms: bool,
    /// A rank that is alone, and so has nothing to drop, still takes the path of dropped blocks. For tests.
    pub drop_alone: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            page_size: 64,
            kv_tokens: None,
            graphs: true,
            dependent_launch: true,
            fuse_norms: false,
            drop_alone: false,
        }
    }
}

/// A model on one GPU.
pub struct Engine {
    config: Config,
    device: Device,
    rank: Rank,
}

impl Engine {
    /// Loads the model. `loaded_bytes` grows to [`Engine::weight_bytes`] while it goes.
    ///
    /// # Errors
    /// A plan for several ranks, a shape without kernels, too little memory (found before anything is
    /// allocated), or what the GPU's driver reports.
    pub fn load(
        config: &Config,
        source: &Arc<dyn TensorSource>,
        plan: &Plan,
        device: &Device,
        options: &EngineOptions,
        loaded_bytes: &Arc<AtomicU64>,
    ) -> Result<Self, RunError> {
        Self::weight_bytes(config, plan.tp())?;
        let rank = Rank::load(config, source, plan, device, options, loaded_bytes)?;
        Ok(Self { config: config.clone(), device: device.clone(), rank })
    }

    /// Bytes of weights that a model takes on each GPU.
    ///
    /// # Errors
    /// More than one rank, a shape without kernels: what no GPU would change.
    pub fn weight_bytes(config: &Config, tp: usize) -> Result<u64, RunError> {
        if tp != 1 {
            return Err(EngineError::OneGpuOnly { tp }.into());
        }
        let sharding = Sharding::new(config, tp).map_err(crate::spd::PlanError::from)?;
        Ok(RankShape::new(config, &sharding, 0)?.weight_bytes())
    }

    /// Tokens that the KV cache holds, of all sequences together.
    pub fn kv_tokens(&self) -> usize {
        self.rank.kv_tokens()
    }
}

impl Runner for Engine {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tp(&self) -> usize {
        1
    }

    fn device(&self) -> String {
        self.device.label().to_owned()
    }

    fn forward(&mut self, batch: &Batch) -> Result<Output, RunError> {
        batch.check(&self.config, &self.rank.lengths())?;
        let mut output = Output::default();
        for chunk in batch.chunks(MAX_ROWS) {
            let part = self.rank.forward(&chunk)?;
            output.logits.extend(part.logits);
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
        Batch::decode(tokens).check(&self.config, &self.rank.lengths())?;
        let mut next = Vec::with_capacity(tokens.len());
        for (part, (tokens, samplers)) in tokens.chunks(LANES).zip(samplers.chunks(LANES)).enumerate() {
            let fed: Vec<_> =
                tokens.iter().enumerate().map(|(i, &token)| (part * LANES + i, token)).collect();
            let samplings: Vec<Sampling> = samplers.iter().map(|sampler| *sampler.sampling()).collect();
            let greedy = samplings.iter().all(Sampling::is_greedy);
            let choice = if greedy { Choice::Greedy } else { Choice::Sample };
            next.extend(self.rank.sampled_step(&fed, choice, &samplings)?);
        }
        Ok(next)
    }

    fn truncate(&mut self, sequence: usize, len: usize) -> Result<(), RunError> {
        self.rank.truncate(sequence, len);
        Ok(())
    }

    fn set_plan(&mut self, plan: &Plan) -> Result<(), RunError> {
        if plan.tp() != self.tp() || plan.blocks().len() != self.config.n_layers {
            return Err(RunError::BadCall("the plan is for another number of ranks or blocks"));
        }
        self.rank.set_plan(plan)
    }

    fn sync_counts(&self) -> SyncCounts {
        self.rank.sync_counts()
    }

    fn gpus(&self) -> Vec<Device> {
        vec![self.device.clone()]
    }

    fn profile_step(&mut self, tokens: &[u32]) -> Result<Option<StepProfile>, RunError> {
        Batch::decode(tokens).check(&self.config, &self.rank.lengths())?;
        self.rank.prepare_profile(tokens.len())?;
        let fed: Vec<_> = tokens.iter().copied().enumerate().collect();
        self.rank.profile(&fed).map(Some)
    }
}

impl From<GpuError> for RunError {
    fn from(error: GpuError) -> Self {
        Self::Engine(error.into())
    }
}
