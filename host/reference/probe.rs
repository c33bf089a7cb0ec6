//! A look into one block, for head grouping: what each head attends to, and how much each rank's MLP says.

use std::sync::Arc;
use std::sync::mpsc::channel;

use super::rank::Rank;
use super::{Command, Reference};
use crate::comm::cpu::Link;
use crate::runner::{RunError, Segment};

/// What one rank did in one block.
#[derive(Debug, Clone, Default)]
pub struct RankProbe {
    /// The rank's query heads, by their number in the checkpoint.
    pub heads: Vec<usize>,
    /// For each of `heads`, the attention probabilities of all tokens, `[rows, positions]` pass by pass.
    pub scores: Vec<Vec<f32>>,
    /// Σ over tokens of ‖Z‖₂, where Z is the output of the rank's part of the MLP before any sum.
    pub mlp_norm: f64,
}

impl RankProbe {
    /// Adds the norms of rows `[n, hidden]` of the MLP's output.
    pub(super) fn add_mlp(&mut self, rows: &[f32], hidden: usize) {
        let norm = |row: &[f32]| row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        self.mlp_norm += rows.chunks_exact(hidden).map(norm).sum::<f64>();
    }
}

impl Reference {
    /// Runs one block, as the plan has it, over hidden states at its input, `[n_tokens, hidden]`, and returns what
    /// each rank of this process did. Memory: n_heads · n_tokens² scores in f32, of all ranks together.
    pub fn probe(&mut self, block: usize, input: &[f32]) -> Result<Vec<RankProbe>, RunError> {
        if block >= self.config.n_layers {
            return Err(RunError::BadCall("the block to look into is beyond the model"));
        }
        let segment = Segment::blocks(block..block + 1, input);
        segment.check(&self.config)?;
        let segment = Arc::new(segment);
        let (outbox, inbox) = channel();
        self.broadcast(|| Command::Probe { segment: segment.clone(), outbox: outbox.clone() })?;
        let mut by_rank: Vec<(usize, RankProbe)> = inbox.try_iter().collect();
        by_rank.sort_by_key(|(rank, _)| *rank);
        Ok(by_rank.into_iter().map(|(_, probe)| probe).collect())
    }
}

impl<L: Link> Rank<L> {
    /// Runs the segment of one block and returns what was seen in it.
    pub(super) fn probe(&mut self, segment: &Segment) -> Result<RankProbe, RunError> {
        let layer = segment.blocks.start;
        let heads = self.blocks[layer].heads.heads.clone();
        self.probe = Some(RankProbe { scores: vec![Vec::new(); heads.len()], heads, mlp_norm: 0.0 });
        let result = self.segment(segment);
        let probe = self.probe.take().unwrap_or_default();
        result.map(|_| probe)
    }
}
