//! The Llama hyper-parameters, whatever file they came from.

use std::path::Path;

use serde::Serialize;

use super::ModelError;

mod hf;
mod rope;

pub(crate) use hf::implied_head_dim;

/// Largest width or row count accepted: products of two still fit 48 bits.
pub(crate) const MAX_SIZE: usize = 1 << 24;
/// Most decoder blocks accepted.
pub(crate) const MAX_LAYERS: usize = 1 << 12;
/// Longest context accepted, in tokens: positions are 32-bit.
pub(crate) const MAX_CONTEXT: usize = i32::MAX as usize;

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

impl Config {
    /// Checks what every format must satisfy: sizes in range, heads in whole groups, an even head
    /// width, usable rotary parameters, and token ids inside the vocabulary. `path` is only for the
    /// message.
    pub fn validate(&self, path: &Path) -> Result<(), ModelError> {
        let refuse = |what: String, supported: &str| Err(ModelError::unsupported(path, what, supported));
        let sizes = [
            ("hidden size", self.hidden, MAX_SIZE),
            ("MLP width", self.ffn, MAX_SIZE),
            ("number of layers", self.n_layers, MAX_LAYERS),
            ("number of query heads", self.n_heads, MAX_SIZE),
            ("number of key/value heads", self.n_kv_heads, MAX_SIZE),
            ("head width", self.head_dim, MAX_SIZE),
            ("vocabulary size", self.vocab, MAX_SIZE),
            ("context length", self.context, MAX_CONTEXT),
        ];
        for (name, value, limit) in sizes {
            check_size(path, name, value, limit)?;
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let what = format!("{} query heads over {} key/value heads", self.n_heads, self.n_kv_heads);
            return refuse(what, "a number of key/value heads that divides the query heads");
        }
        if !self.head_dim.is_multiple_of(2) {
            return refuse(format!("head width {}", self.head_dim), "an even one (rotary pairs)");
        }
        check_size(path, "width of all query heads", self.n_heads * self.head_dim, MAX_SIZE)?;
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return refuse(format!("RMSNorm epsilon {}", self.rms_eps), "one between 0 and 1");
        }
        self.validate_rope(path)?;
        if let Some(token) = self.bos.iter().chain(&self.eos).find(|&&id| id as usize >= self.vocab) {
            let what = format!("special token {token} in a vocabulary of {}", self.vocab);
            return refuse(what, "token ids inside the vocabulary");
        }
        Ok(())
    }
}

/// Refuses a size of zero or above `limit`, by name.
pub(crate) fn check_size(path: &Path, name: &str, value: usize, limit: usize) -> Result<(), ModelError> {
    if (1..=limit).contains(&value) {
        return Ok(());
    }
    Err(ModelError::unsupported(path, format!("{name} {value}"), format!("1 to {limit}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Config), needle: &str) {
        let mut config = shapes::named("tiny").unwrap();
        change(&mut config);
        let message = config.validate(Path::new("m")).unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
    }

    #[test]
    fn impossible_configurations_are_refused_by_name() {
        refused(|c| c.hidden = 0, "hidden size 0");
        refused(|c| c.ffn = usize::MAX, "MLP width 18446744073709551615");
        refused(|c| c.n_layers = MAX_LAYERS + 1, "number of layers 4097");
        refused(|c| c.n_kv_heads = 3, "4 query heads over 3 key/value heads");
        refused(|c| c.head_dim = 33, "head width 33");
        refused(|c| (c.n_heads, c.n_kv_heads) = (MAX_SIZE, 1), "width of all query heads");
        refused(|c| c.rms_eps = f32::NAN, "epsilon NaN");
        refused(|c| c.rope_base = 0.0, "rotary base 0");
        refused(|c| c.rope_scaling = RopeScaling::Divisors(vec![1.0; 15]), "15 rotary divisors");
        refused(|c| c.eos = vec![1, 512], "special token 512");
    }
}
