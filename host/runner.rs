//! What every back end offers: feed tokens, get logits. The CLI, SPD and the benchmarks know only this.

pub(crate) mod chunk;
pub mod profile;

use profile::StepProfile;

use std::ops::Range;

use crate::comm::CommError;
use crate::driver::Device;
use crate::engine::EngineError;
use crate::generate::Sampler;
use crate::model::{Config, ModelError};
use crate::spd::{Plan, PlanError};

/// New tokens of one sequence, appended behind what its KV cache holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Sequence number; sequences exist from their first use.
    pub sequence: usize,
    /// At least one token.
    pub tokens: Vec<u32>,
}

/// For which of a batch's rows logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// The last row of every span: one row a sequence, in the batch's order.
    Last,
    /// Every row, in the batch's order.
    All,
}

/// One call's work. One span of many tokens is a prefill; many spans of one token a decode step.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The spans; every sequence at most once.
    pub spans: Vec<Span>,
    /// Which logits to return.
    pub logits: LogitRows,
    /// Also return the hidden states, the embedding and the output of every block, and check that all
    /// ranks hold the same bits.
    pub hidden_states: bool,
}

impl Batch {
    /// Appends `tokens` to one sequence and asks for the logits behind the last.
    pub fn prefill(sequence: usize, tokens: &[u32]) -> Self {
        let spans = vec![Span { sequence, tokens: tokens.to_vec() }];
        Self { spans, logits: LogitRows::Last, hidden_states: false }
    }

    /// Appends `tokens[i]` to sequence `i` and asks for the logits behind each.
    pub fn decode(tokens: &[u32]) -> Self {
        let spans = tokens.iter().enumerate().map(|(sequence, &t)| Span { sequence, tokens: vec![t] });
        Self { spans: spans.collect(), logits: LogitRows::Last, hidden_states: false }
    }

    /// The number of tokens in all spans.
    pub fn n_tokens(&self) -> usize {
        self.spans.iter().map(|s| s.tokens.len()).sum()
    }
}

/// What a call returned.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// `[rows, vocab]`, row-major.
    pub logits: Vec<f32>,
    /// When asked for: `n_layers + 1` tensors `[n_tokens, hidden]`.
    pub hidden_states: Vec<Vec<f32>>,
}

/// Some of the decoder blocks over one sequence that stands alone: KV caches are neither read nor changed. No block
/// and the head is the head alone.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The blocks to run, in order.
    pub blocks: Range<usize>,
    /// Hidden states at the input of the first, at positions 0, 1, …: `[n_tokens, hidden]`, row-major.
    pub input: Vec<f32>,
    /// Whether the final norm and the head follow; the blocks then end with the last.
    pub head: bool,
}

impl Segment {
    /// Hidden states through blocks.
    pub fn blocks(blocks: Range<usize>, input: &[f32]) -> Self {
        Self { blocks, input: input.to_vec(), head: false }
    }

    /// Hidden states behind the last of `n_layers` blocks to logits.
    pub fn head(n_layers: usize, input: &[f32]) -> Self {
        Self { blocks: n_layers..n_layers, input: input.to_vec(), head: true }
    }

    /// Refuses what no rank could compute, before any rank sees it.
    pub(crate) fn check(&self, config: &Config) -> Result<(), RunError> {
        let Range { start, end } = self.blocks;
        if start > end || end > config.n_layers || (self.head && end != config.n_layers) {
            return Err(RunError::BadCall(
                "a segment's blocks are of the model, and before the head the last",
            ));
        }
        if self.input.is_empty() || !self.input.len().is_multiple_of(config.hidden) {
            return Err(RunError::BadCall(
                "a segment takes at least one row of hidden states, and whole rows",
            ));
        }
        let (needed, context) = (self.input.len() / config.hidden, config.context);
        if !self.blocks.is_empty() && needed > context {
            return Err(RunError::ContextExceeded { sequence: 0, needed, context });
        }
        Ok(())
    }
}

/// Collectives that a runner has executed, counted on one rank. A group of one synchronises nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncCounts {
    /// Passes through the model: one a decode step or prefill chunk.
    pub passes: u64,
    /// All-reduces inside the decoder blocks: two a block, one where SPD dropped the first.
    pub block_all_reduces: u64,
    /// Every collective, the gathering of the logits included.
    pub sync_points: u64,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A sequence would outgrow the model's context.
    #[error(
        "sequence {sequence} would hold {needed} tokens, but the model's context is {context}: shorten the prompt or ask for fewer tokens"
    )]
    ContextExceeded {
        /// The sequence.
        sequence: usize,
        /// Tokens it would hold.
        needed: usize,
        /// The model's limit.
        context: usize,
    },
    /// A token that the embedding table does not have.
    #[error(
        "token {token} is outside the model's vocabulary of {vocab}: does the tokenizer belong to this model?"
    )]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Rows of the embedding table.
        vocab: usize,
    },
    /// Infinite or undefined logits, from which nothing can be chosen.
    #[error(
        "the model's logits are not finite numbers: its weights are damaged, so fetch or convert the model again"
    )]
    NotFinite,
    /// A call that makes no sense: an empty batch or span, a sequence named twice, a plan of another shape.
    #[error("bad call: {0}")]
    BadCall(&'static str),
    /// A back end without [`Runner::run_segment`].
    #[error("{device} runs whole models only, and this looks into single blocks: give --device cpu")]
    NoSegments {
        /// The runner's device.
        device: String,
    },
    /// A rank's thread ended.
    #[error("rank {rank} died: its thread ended in the middle of a call; its message stands above")]
    RankDied {
        /// The rank.
        rank: usize,
    },
    /// The system lends no thread to a rank or to the thread pool that ranks share.
    #[error(
        "no thread to be had for {what} ({source}), where {ranks} ranks take one each and share a pool of {pool}: \
         raise the limit of processes (ulimit -u) or use fewer ranks"
    )]
    Threads {
        /// Whose thread was refused.
        what: String,
        /// Ranks of the group.
        ranks: usize,
        /// Threads of the pool.
        pool: usize,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Two ranks hold different bits behind a block: a fault of the back end.
    #[error(
        "rank {rank} left block {block} (0 is the embedding) with other bits than rank 0: please report this"
    )]
    RanksDisagree {
        /// The rank that differs from the first.
        rank: usize,
        /// The hidden state's number.
        block: usize,
    },
    /// Two ranks chose different tokens from the same logits: a fault of the back end.
    #[error("rank {rank} chose other tokens than rank 0: please report this")]
    TokensDiffer {
        /// The first rank that differs.
        rank: usize,
    },
    /// An earlier call failed, and the ranks ended with it.
    #[error("the model cannot be used any more, load it again: {first}")]
    Failed {
        /// That call's error.
        first: String,
    },
    /// A collective failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The plan does not fit.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The weights could not be read.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The GPU cannot run the model, or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Ranks leave every block with the same bits; whoever asks for hidden states has it checked.
pub(crate) fn check_agreement(rank: usize, first: &[Vec<f32>], other: &[Vec<f32>]) -> Result<(), RunError> {
    let same_bits =
        |(a, b): (&Vec<f32>, &Vec<f32>)| a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()));
    match first.iter().zip(other).position(|pair| !same_bits(pair)) {
        Some(block) => Err(RunError::RanksDisagree { rank, block }),
        None => Ok(()),
    }
}

/// A loaded model on some device, split over some ranks.
pub trait Runner {
    /// The model's hyper-parameters.
    fn config(&self) -> &Config;

    /// The number of ranks.
    fn tp(&self) -> usize;

    /// Where it runs, for people: `cpu (2 threads)`.
    fn device(&self) -> String;

    /// Appends the batch's tokens to their sequences and returns what it asks for. Batches of any
    /// length are taken; a long one runs in chunks. On an error no sequence may be used further.
    fn forward(&mut self, batch: &Batch) -> Result<Output, RunError>;

    /// One decode step: appends `tokens[i]` to sequence `i` and returns the token behind each, drawn by
    /// `samplers[i]`.
    ///
    /// Provided: [`Runner::forward`] and the samplers on the host. A back end that draws where the logits are
    /// overrides it; then the same seed gives the same text on that back end, not on every one.
    fn decode_sampled(&mut self, tokens: &[u32], samplers: &mut [Sampler]) -> Result<Vec<u32>, RunError> {
        if tokens.len() != samplers.len() {
            return Err(RunError::BadCall("a decode step needs one sampler for every token"));
        }
        let logits = self.forward(&Batch::decode(tokens))?.logits;
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(RunError::NotFinite);
        }
        let rows = logits.chunks_exact(self.config().vocab);
        Ok(samplers.iter_mut().zip(rows).map(|(sampler, logits)| sampler.sample(logits)).collect())
    }

    /// Hidden states through some blocks, and on request to logits: `[n_tokens, hidden]` behind the last block of
    /// the segment, or `[n_tokens, vocab]`. No pass is counted.
    ///
    /// Provided: a refusal. Analyses (which blocks bear what) need it, generation does not.
    fn run_segment(&mut self, _segment: Segment) -> Result<Vec<f32>, RunError> {
        Err(RunError::NoSegments { device: self.device() })
    }

    /// Shortens a sequence to its first `len` tokens; 0 frees it.
    fn truncate(&mut self, sequence: usize, len: usize) -> Result<(), RunError>;

    /// Switches the blocks to `plan` and forgets all sequences.
    fn set_plan(&mut self, plan: &Plan) -> Result<(), RunError>;

    /// Collectives since the runner was made.
    fn sync_counts(&self) -> SyncCounts;

    /// The GPUs that it runs on; none on the CPU.
    fn gpus(&self) -> Vec<Device> {
        Vec::new()
    }

    /// Times the kernels of a decode step by class, behind what the sequences hold. They are left as they were;
    /// each must have room for [`profile::STEPS_AHEAD`] tokens.
    ///
    /// Provided: nothing, which is what a back end without kernels can tell apart.
    fn profile_step(&mut self, _tokens: &[u32]) -> Result<Option<StepProfile>, RunError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    /// A back end that implements what it must and no more.
    struct Least(Config);

    impl Runner for Least {
        fn config(&self) -> &Config {
            &self.0
        }

        fn tp(&self) -> usize {
            1
        }

        fn device(&self) -> String {
            "cuda:0 (a GPU)".into()
        }

        fn forward(&mut self, _: &Batch) -> Result<Output, RunError> {
            Ok(Output::default())
        }

        fn truncate(&mut self, _: usize, _: usize) -> Result<(), RunError> {
            Ok(())
        }

        fn set_plan(&mut self, _: &Plan) -> Result<(), RunError> {
            Ok(())
        }

        fn sync_counts(&self) -> SyncCounts {
            SyncCounts::default()
        }
    }

    #[test]
    fn a_back_end_without_segments_says_what_to_do() {
        let mut least = Least(shapes::named("tiny").unwrap());
        let refusal = least.run_segment(Segment::blocks(0..1, &[0.0; 128])).unwrap_err().to_string();
        assert!(refusal.contains("cuda:0 (a GPU) runs whole models only"), "{refusal}");
        assert!(refusal.ends_with("give --device cpu"), "{refusal}");
    }
}
