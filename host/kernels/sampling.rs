//! From logits to the next step: argmax, sampling, and the step counter.

use super::{Addr, Launch, Rows, params};

pub(super) const ARGMAX: [&str; 1] = ["argmax_f32"];
pub(super) const SAMPLE: [&str; 1] = ["sample_f32"];
pub(super) const ADVANCE_POSITIONS: [&str; 1] = ["advance_positions_u32"];

const ARGMAX_THREADS: u32 = 256;
/// Logits of one block: few enough that the blocks of one row fill a GPU.
const ARGMAX_PER_BLOCK: u32 = 4096;
const SAMPLE_THREADS: u32 = 1024;
const ADVANCE_THREADS: u32 = 128;

/// Index (and value) of each row's largest logit.
#[derive(Debug, Clone, Copy)]
pub struct Argmax {
    /// `[n_rows, len]`.
    pub logits: Rows<f32>,
    /// Logits of a row.
    pub len: u32,
    /// Rows, at least one.
    pub n_rows: u32,
    /// `[n_rows]`, written.
    pub indices: Addr<u32>,
    /// `[n_rows]`, written; or [`Addr::NULL`].
    pub values: Addr<f32>,
    /// `[n_rows]`, zero before the first launch; launches leave zeros.
    pub best: Addr<u64>,
    /// `[n_rows]`, zero before the first launch; launches leave zeros.
    pub counters: Addr<u32>,
}

impl Argmax {
    /// Several blocks a row.
    pub fn launch(&self) -> Launch {
        let &Self { logits, len, n_rows, indices, values, best, counters } = self;
        let params = params::Argmax {
            logits: logits.at.raw(),
            indices: indices.raw(),
            values: values.raw(),
            best: best.raw(),
            counters: counters.raw(),
            len,
            ld_logits: logits.stride,
        };
        let blocks = len.div_ceil(ARGMAX_PER_BLOCK).max(1);
        Launch::new(ARGMAX[0], [blocks, n_rows, 1], ARGMAX_THREADS, 0, &params)
    }
}

/// One token a row by temperature, top-k and top-p; a temperature of 0 is greedy.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// `[n_rows, len]`.
    pub logits: Rows<f32>,
    /// Logits of a row.
    pub len: u32,
    /// Rows, at least one.
    pub n_rows: u32,
    /// `[n_rows]`, written.
    pub tokens: Addr<u32>,
    /// `[n_rows]`.
    pub temperatures: Addr<f32>,
    /// `[n_rows]`; 0 keeps all.
    pub top_ks: Addr<u32>,
    /// `[n_rows]`; 1 keeps all.
    pub top_ps: Addr<f32>,
    /// `[n_rows]`.
    pub seeds: Addr<u64>,
    /// `[n_rows]`: the draw's number, such as the position; equal (seed, counter) draw alike.
    pub counters: Addr<u32>,
}

impl Sample {
    /// One block a row.
    pub fn launch(&self) -> Launch {
        let &Self { logits, len, n_rows, tokens, temperatures, top_ks, top_ps, seeds, counters } = self;
        let params = params::Sample {
            logits: logits.at.raw(),
            tokens: tokens.raw(),
            temperatures: temperatures.raw(),
            top_ks: top_ks.raw(),
            top_ps: top_ps.raw(),
            seeds: seeds.raw(),
            counters: counters.raw(),
            len,
            ld_logits: logits.stride,
        };
        Launch::new(SAMPLE[0], [n_rows, 1, 1], SAMPLE_THREADS, 0, &params)
    }
}

/// Adds one to positions and lengths, so that a captured decode step can be replayed.
#[derive(Debug, Clone, Copy)]
pub struct AdvancePositions {
    /// `[n_sequences]`.
    pub positions: Addr<u32>,
    /// `[n_sequences]`.
    pub kv_lens: Addr<u32>,
    /// Sequences, at least one.
    pub n_sequences: u32,
}

impl AdvancePositions {
    /// One thread a sequence.
    pub fn launch(&self) -> Launch {
        let &Self { positions, kv_lens, n_sequences } = self;
        let params = params::AdvancePositions {
            positions: positions.raw(),
            kv_lens: kv_lens.raw(),
            n_sequences,
            reserved: 0,
        };
        let blocks = n_sequences.div_ceil(ADVANCE_THREADS);
        Launch::new(ADVANCE_POSITIONS[0], [blocks, 1, 1], ADVANCE_THREADS, 0, &params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_is_shared_among_blocks() {
        let argmax = |len, n_rows| {
            let logits = Rows::new(Addr::new(16), len);
            let (indices, values, best, counters) = (Addr::new(1), Addr::NULL, Addr::new(2), Addr::new(3));
            Argmax { logits, len, n_rows, indices, values, best, counters }.launch().grid
        };
        assert_eq!(argmax(128_256, 2), [32, 2, 1]);
        assert_eq!(argmax(512, 1), [1, 1, 1]);
    }
}
