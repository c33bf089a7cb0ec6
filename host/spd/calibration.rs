//! The text that blocks are judged on: chunks of a file, or what the model itself writes.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::eval::{EvalError, chunks};
use crate::generate::{Sampler, Sampling};
use crate::runner::{RunError, Runner};

/// Which text something was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextId {
    /// Where it came from, for people: `file`, `generated, seed 3`.
    pub source: String,
    /// SHA-256 of the chunks' token numbers.
    pub digest: String,
    /// Chunks, each standing alone.
    pub chunks: usize,
    /// Tokens of a chunk.
    pub chunk_len: usize,
}

/// A text in chunks of equal length.
#[derive(Debug, Clone)]
pub struct Calibration {
    chunks: Vec<Vec<u32>>,
    source: String,
}

impl Calibration {
    /// Chunk `i` of `n_chunks` starts at token `i · ⌊(n_tokens − chunk_len) / n_chunks⌋` of a text.
    ///
    /// # Errors
    /// A text too short for that.
    pub fn of_text(tokens: &[u32], n_chunks: usize, chunk_len: usize) -> Result<Self, EvalError> {
        let chunks = chunks(tokens, n_chunks, chunk_len)?.into_iter().map(<[u32]>::to_vec).collect();
        Ok(Self { chunks, source: "file".into() })
    }

    /// What the model writes, drawn at temperature 1 from its own distribution, each chunk behind one random token:
    /// no data needed. The same seed gives the same text on the same device. `progress` is called after every token
    /// of all chunks.
    ///
    /// # Errors
    /// What the runner reports.
    pub fn generated(
        runner: &mut dyn Runner,
        n_chunks: usize,
        chunk_len: usize,
        seed: u64,
        mut progress: impl FnMut(),
    ) -> Result<Self, RunError> {
        let drawn = |i| Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: mix(seed, i) };
        let mut samplers: Vec<Sampler> = (0..n_chunks as u64).map(|i| Sampler::new(drawn(i))).collect();
        let flat = vec![0.0; runner.config().vocab];
        let mut next: Vec<u32> = samplers.iter_mut().map(|sampler| sampler.sample(&flat)).collect();
        let mut chunks: Vec<Vec<u32>> = next.iter().map(|&token| vec![token]).collect();
        for sequence in 0..n_chunks {
            runner.truncate(sequence, 0)?;
        }
        for _ in 1..chunk_len {
            next = runner.decode_sampled(&next, &mut samplers)?;
            chunks.iter_mut().zip(&next).for_each(|(chunk, &token)| chunk.push(token));
            progress();
        }
        for sequence in 0..n_chunks {
            runner.truncate(sequence, 0)?;
        }
        Ok(Self { chunks, source: format!("generated, seed {seed}") })
    }

    /// The chunks' tokens.
    pub fn chunks(&self) -> &[Vec<u32>] {
        &self.chunks
    }

    /// Tokens of all chunks.
    pub fn n_tokens(&self) -> usize {
        self.chunks.iter().map(Vec::len).sum()
    }

    /// What the text is known by.
    pub fn id(&self) -> TextId {
        let mut hasher = Sha256::new();
        self.chunks.iter().flatten().for_each(|token| hasher.update(token.to_le_bytes()));
        let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        TextId {
            source: self.source.clone(),
            digest: format!("sha256:{hex}"),
            chunks: self.chunks.len(),
            chunk_len: self.chunks.first().map_or(0, Vec::len),
        }
    }
}

/// Seeds that lie far apart for numbers that do not (the finaliser of SplitMix64).
fn mix(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
