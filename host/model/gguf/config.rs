//! The `llama.*` metadata as a [`Config`].

use super::{Gguf, GgufType};
use crate::model::config::{MAX_CONTEXT, MAX_LAYERS, MAX_SIZE, RopeScaling, check_size, implied_head_dim};
use crate::model::{Config, ModelError};

/// One divisor per rotary pair; llama.cpp's converter writes it for Llama 3.1 and later.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

impl Config {
    /// Reads the configuration of a GGUF file of architecture `llama`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        check_architecture(gguf)?;
        let metadata = &gguf.metadata;
        let hidden = size(gguf, "llama.embedding_length", MAX_SIZE)?;
        let n_heads = size(gguf, "llama.attention.head_count", MAX_SIZE)?;
        let head_dim = match optional_size(gguf, "llama.attention.key_length", MAX_SIZE)? {
            Some(head_dim) => head_dim,
            None => implied_head_dim(gguf.path(), hidden, n_heads)?,
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(other) = optional_size(gguf, key, MAX_SIZE)?.filter(|&n| n != head_dim) {
                return gguf.refuse(format!("{key} {other}"), format!("the head width, {head_dim}"));
            }
        }
        let eps_key = "llama.attention.layer_norm_rms_epsilon";
        let config = Self {
            hidden,
            ffn: size(gguf, "llama.feed_forward_length", MAX_SIZE)?,
            n_layers: size(gguf, "llama.block_count", MAX_LAYERS)?,
            n_heads,
            n_kv_heads: optional_size(gguf, "llama.attention.head_count_kv", MAX_SIZE)?.unwrap_or(n_heads),
            head_dim,
            vocab: vocab(gguf)?,
            context: size(gguf, "llama.context_length", MAX_CONTEXT)?,
            rms_eps: metadata.require(eps_key, metadata.f32(eps_key))?,
            rope_base: metadata.f32("llama.rope.freq_base")?.unwrap_or(10_000.0),
            rope_scaling: rope_scaling(gguf)?,
            tied: !gguf.has_tensor("output.weight"),
            bos: metadata.u32("tokenizer.ggml.bos_token_id")?,
            eos: end_tokens(gguf)?,
        };
        config.validate(gguf.path())?;
        Ok(config)
    }
}

/// Refuses what shares the file format, or even the architecture's name, but computes something else.
fn check_architecture(gguf: &Gguf) -> Result<(), ModelError> {
    let metadata = &gguf.metadata;
    let architecture = metadata.require("general.architecture", metadata.str("general.architecture"))?;
    if architecture != "llama" {
        return gguf.refuse(format!("architecture '{architecture}'"), "llama");
    }
    if let Some(n) = metadata.u32("split.count")?.filter(|&n| n > 1) {
        return gguf
            .refuse(format!("a model split into {n} GGUF files"), "one file (llama-gguf-split --merge)");
    }
    if let Some(n) = metadata.u32("llama.expert_count")?.filter(|&n| n > 0) {
        return gguf.refuse(format!("llama.expert_count {n}"), "dense models");
    }
    if let Some(kind) = metadata.str("llama.rope.scaling.type")?.filter(|&kind| kind != "none") {
        return gguf
            .refuse(format!("llama.rope.scaling.type '{kind}'"), "none, or a tensor rope_freqs.weight");
    }
    if let Some(factor) = metadata.f32("llama.rope.scale_linear")?.filter(|&factor| factor != 1.0) {
        return gguf
            .refuse(format!("llama.rope.scale_linear {factor}"), "none, or a tensor rope_freqs.weight");
    }
    match gguf.tensor_names().filter(|name| name.ends_with(".bias")).min() {
        Some(name) => gguf.refuse(format!("tensor '{name}'"), "linear layers without biases"),
        None => Ok(()),
    }
}

fn optional_size(gguf: &Gguf, key: &str, limit: usize) -> Result<Option<usize>, ModelError> {
    let Some(value) = gguf.metadata.u32(key)? else { return Ok(None) };
    check_size(gguf.path(), key, value as usize, limit)?;
    Ok(Some(value as usize))
}

fn size(gguf: &Gguf, key: &str, limit: usize) -> Result<usize, ModelError> {
    gguf.metadata.require(key, optional_size(gguf, key, limit))
}

/// Length of the token list or, in a file without a tokenizer, rows of the embedding. That both agree
/// is checked with the tensors' shapes.
fn vocab(gguf: &Gguf) -> Result<usize, ModelError> {
    match gguf.metadata.strings("tokenizer.ggml.tokens")? {
        Some(tokens) => Ok(tokens.len()),
        None => match *gguf.dimensions("token_embd.weight")? {
            [_, rows] => Ok(usize::try_from(rows).unwrap_or(usize::MAX)),
            _ => Err(ModelError::corrupt(gguf.path(), "the tensor 'token_embd.weight' is not a matrix")),
        },
    }
}

fn rope_scaling(gguf: &Gguf) -> Result<RopeScaling, ModelError> {
    if !gguf.has_tensor(ROPE_DIVISORS) {
        return Ok(RopeScaling::None);
    }
    let (kind, bytes) = gguf.tensor_bytes(ROPE_DIVISORS)?;
    if kind != GgufType::F32 {
        return gguf.refuse(format!("tensor '{ROPE_DIVISORS}' of type {kind}"), "F32");
    }
    let (values, _) = bytes.as_chunks::<4>();
    Ok(RopeScaling::Divisors(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
}

/// End of sequence, of turn and of message, each once.
fn end_tokens(gguf: &Gguf) -> Result<Vec<u32>, ModelError> {
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let id = gguf.metadata.u32(&format!("tokenizer.ggml.{name}_token_id"))?;
        ends.extend(id.filter(|id| !ends.contains(id)));
    }
    Ok(ends)
}
