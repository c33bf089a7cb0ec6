//! The Llama hyper-parameters, whatever file they came from.

use serde::Serialize;

/// A Llama-architecture decoder: RMSNorm, rotary embeddings, grouped-query attention, SwiGLU, no biases.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Inner width of the MLP.
    pub ffn: usize,
    /// Number of decoder blocks.
    pub n_layers: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Epsilon of every RMSNorm.
    pub rms_eps: f32,
    /// Base (theta) of the rotary embedding.
    pub rope_base: f32,
    /// Frequency scaling of the rotary embedding.
    pub rope_scaling: RopeScaling,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Beginning-of-sequence token, where the model has one.
    pub bos: Option<u32>,
    /// Tokens that end generation.
    pub eos: Vec<u32>,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum RopeScaling {
    /// As in Llama 2 and 3.
    None,
    /// Llama 3.1 and later (`rope_type: "llama3"`).
    Llama3 {
        /// Divisor of the lowest frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are divided by `factor`.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length of pre-training, in tokens.
        original_context: usize,
    },
    /// One divisor per frequency (`rope_freqs.weight` of a GGUF file): `head_dim / 2` values.
    Divisors(Vec<f32>),
}
