//! Part of a pass: hidden states through some blocks, on request to logits.

use super::attention::KvCache;
use super::rank::{MAX_ROWS, Rank, Sequence};
use crate::comm::CommError;
use crate::comm::cpu::{Link, rms_norm};
use crate::runner::{Output, RunError, Segment};

impl<L: Link> Rank<L> {
    /// Runs the segment. The output has logits (on a rank that hands them out), or the hidden states behind the last block.
    pub(crate) fn segment(&mut self, segment: &Segment) -> Result<Output, RunError> {
        let hidden = self.config.hidden;
        let mut output = Output::default();
        let mut states = Vec::new();
        self.alone(|rank, sequence| {
            for (pass, input) in segment.input.chunks(MAX_ROWS * hidden).enumerate() {
                let first = pass * MAX_ROWS;
                let rows: Vec<_> = (first..first + input.len() / hidden).map(|at| (sequence, at)).collect();
                let mut x = input.to_vec();
                let mut h = vec![0.0; x.len()];
                let gain = rank.blocks.get(segment.blocks.start).map(|block| &block.attention_norm);
                rms_norm(&x, gain.unwrap_or(&rank.final_norm), rank.config.rms_eps, &mut h);
                for layer in segment.blocks.clone() {
                    rank.block(layer, &rows, &mut x, &mut h)?;
                }
                if segment.head {
                    output.logits.extend(rank.logits(&h)?);
                } else {
                    states.extend(x);
                }
            }
            Ok(())
        })?;
        output.hidden_states.push(states);
        Ok(output)
    }

    /// Lends a sequence of its own, which ends with the call.
    pub(super) fn alone(
        &mut self,
        run: impl FnOnce(&mut Self, usize) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let sequence = self.sequences.len();
        let blocks = vec![KvCache::default(); self.blocks.len()];
        self.sequences.push(Sequence { len: 0, blocks });
        let result = run(self, sequence);
        self.sequences.pop();
        result
    }
}
