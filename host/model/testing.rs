//! Small checkpoints for tests: one model, written in every supported format from the same f32 values.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;
use half::{bf16, f16};
use serde_json::json;

use super::encoding::{Encoding, QUANT_BLOCK};
use super::gguf::{Array, GgufType, Value, gguf_name};
use super::random::RandomModel;
use super::{Config, RopeScaling, Tensor, TensorKind, TensorSource, safetensors};

/// A small Llama with its weights in memory.
#[derive(Debug, Clone)]
pub struct SmallLlama {
    /// Its configuration; write it as you like before writing files.
    pub config: Config,
    /// Row-major, in the Hugging Face orientation and row order; all values are exactly bf16.
    pub weights: HashMap<Tensor, Vec<f32>>,
}

impl SmallLlama {
    /// Two blocks, grouped-query attention, query width unlike the hidden size, untied head.
    pub fn new(seed: u64) -> Self {
        Self::with_config(
            Config {
                hidden: 64,
                ffn: 96,
                n_layers: 2,
                n_heads: 4,
                n_kv_heads: 2,
                head_dim: 32,
                vocab: 40,
                context: 128,
                rms_eps: 1e-5,
                rope_base: 10_000.0,
                rope_scaling: RopeScaling::None,
                tied: false,
                bos: Some(1),
                eos: vec![2],
            },
            seed,
        )
    }

    /// Random weights for a configuration.
    pub fn with_config(config: Config, seed: u64) -> Self {
        let model = RandomModel::new(config.clone(), seed);
        let read = |tensor: Tensor| {
            let (rows, cols) = tensor.shape(&config);
            let mut values = vec![0.0; rows * cols];
            model.read_f32(tensor, 0..rows, 0..cols, &mut values);
            (tensor, values)
        };
        let weights = Tensor::all(&config).into_iter().map(read).collect();
        Self { config, weights }
    }

    /// The `config.json`.
    pub fn config_json(&self) -> serde_json::Value {
        let c = &self.config;
        let rope_scaling = match c.rope_scaling {
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context,
            }),
            RopeScaling::None => json!(null),
            RopeScaling::Divisors(_) => panic!("config.json has no form for rotary divisors"),
        };
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": c.hidden, "intermediate_size": c.ffn, "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim,
            "vocab_size": c.vocab, "max_position_embeddings": c.context, "rms_norm_eps": c.rms_eps,
            "rope_theta": c.rope_base, "rope_scaling": rope_scaling, "tie_word_embeddings": c.tied,
            "bos_token_id": c.bos, "eos_token_id": c.eos,
        })
    }

    /// Writes `config.json` and `n_shards` safetensors files (one: no index) of BF16, F16 or F32.
    pub fn write_safetensors(&self, folder: &Path, encoding: Encoding, n_shards: usize) {
        fs::write(folder.join("config.json"), self.config_json().to_string()).expect("a writable folder");
        let mut tensors: Vec<_> = self.weights.keys().copied().collect();
        tensors.sort_by_key(Tensor::hf_name);
        let mut weight_map = serde_json::Map::new();
        for (shard, tensors) in tensors.chunks(tensors.len().div_ceil(n_shards)).enumerate() {
            let file = match n_shards {
                1 => safetensors::SINGLE_FILE.to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
            };
            self.write_shard(&folder.join(&file), tensors, encoding);
            weight_map.extend(tensors.iter().map(|t| (t.hf_name(), json!(file))));
        }
        if n_shards > 1 {
            let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
            fs::write(folder.join(safetensors::INDEX_FILE), index).expect("a writable folder");
        }
    }

    fn write_shard(&self, path: &Path, tensors: &[Tensor], encoding: Encoding) {
        let dtype = match encoding {
            Encoding::Bf16 => Dtype::BF16,
            Encoding::F16 => Dtype::F16,
            Encoding::F32 => Dtype::F32,
            other => panic!("{other:?} is no safetensors dtype"),
        };
        let bytes: Vec<_> = tensors.iter().map(|t| encode(encoding, &self.weights[t])).collect();
        let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
            let (rows, cols) = tensor.shape(&self.config);
            let shape = if tensor.is_norm() { vec![cols] } else { vec![rows, cols] };
            (tensor.hf_name(), TensorView::new(dtype, shape, bytes).expect("bytes of that shape"))
        });
        ::safetensors::serialize_to_file(views, None, path).expect("a writable folder");
    }

    /// The GGUF file with linear layers of `encoding` and F32 norms, ready to be changed or written.
    pub fn gguf(&self, encoding: Encoding) -> GgufWriter {
        let c = &self.config;
        let mut writer = GgufWriter::default();
        let size = |n: usize| Value::U32(n as u32);
        writer.value("general.architecture", Value::String("llama".into()));
        writer.value("llama.block_count", size(c.n_layers));
        writer.value("llama.context_length", size(c.context));
        writer.value("llama.embedding_length", size(c.hidden));
        writer.value("llama.feed_forward_length", size(c.ffn));
        writer.value("llama.attention.head_count", size(c.n_heads));
        writer.value("llama.attention.head_count_kv", size(c.n_kv_heads));
        writer.value("llama.attention.key_length", size(c.head_dim));
        writer.value("llama.rope.dimension_count", size(c.head_dim));
        writer.value("llama.rope.freq_base", Value::F32(c.rope_base));
        writer.value("llama.attention.layer_norm_rms_epsilon", Value::F32(c.rms_eps));
        let tokens = (0..c.vocab).map(|i| format!("<{i}>")).collect();
        writer.value("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
        if let Some(bos) = c.bos {
            writer.value("tokenizer.ggml.bos_token_id", Value::U32(bos));
        }
        for (name, &id) in ["eos", "eot", "eom"].iter().zip(&c.eos) {
            writer.value(&format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
        }
        if let RopeScaling::Divisors(divisors) = &c.rope_scaling {
            writer.tensor("rope_freqs.weight", &[divisors.len()], Encoding::F32, divisors);
        }
        for tensor in Tensor::all(c) {
            let (rows, cols) = tensor.shape(c);
            let values = &self.weights[&tensor];
            match tensor.kind {
                _ if tensor.is_norm() => writer.tensor(&gguf_name(tensor), &[cols], Encoding::F32, values),
                TensorKind::Q | TensorKind::K => {
                    let permuted = interleave_rotary_rows(values, cols, c.head_dim);
                    writer.tensor(&gguf_name(tensor), &[cols, rows], encoding, &permuted);
                }
                _ => writer.tensor(&gguf_name(tensor), &[cols, rows], encoding, values),
            }
        }
        writer
    }
}

/// Within each head, row `j * head_dim / 2 + i` goes to `2 * i + j`, as llama.cpp's converter does.
pub fn interleave_rotary_rows(values: &[f32], cols: usize, head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2 * cols;
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * cols) {
        let (first, second) = head.split_at(half);
        for (a, b) in first.chunks_exact(cols).zip(second.chunks_exact(cols)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

/// The bytes of `values` in an encoding, rows being whole numbers of blocks.
pub fn encode(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    let blocks = values.chunks_exact(QUANT_BLOCK);
    match encoding {
        Encoding::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Encoding::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Encoding::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Encoding::Q8_0 => blocks.flat_map(encode_q8_0).collect(),
        Encoding::Q4_0 => blocks.flat_map(encode_q4_0).collect(),
        Encoding::Q4_1 => blocks.flat_map(encode_q4_1).collect(),
    }
}

/// The largest error of a quantised block: half a step, and what rounding scale and offset to f16 adds
/// over the whole range.
pub fn block_error(encoding: Encoding, block: &[f32]) -> f32 {
    let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
    let (lowest, highest) = bounds(block);
    let (step, reach) = match encoding {
        Encoding::F32 | Encoding::Bf16 => return 0.0,
        Encoding::F16 => (0.0, largest),
        Encoding::Q8_0 => (largest / 127.0, largest),
        // The positive end clips at 7 of 8 steps.
        Encoding::Q4_0 => (2.0 * largest / 8.0, largest),
        Encoding::Q4_1 => ((highest - lowest) / 15.0, largest + (highest - lowest)),
    };
    step / 2.0 + reach / 1024.0
}

fn bounds(block: &[f32]) -> (f32, f32) {
    block.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)))
}

fn encode_q8_0(block: &[f32]) -> Vec<u8> {
    let d = f16::from_f32(block.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0);
    let quant = |v: &f32| (v / d.to_f32()).round().clamp(-128.0, 127.0) as i8 as u8;
    d.to_le_bytes().into_iter().chain(block.iter().map(quant)).collect()
}

fn encode_q4_0(block: &[f32]) -> Vec<u8> {
    let largest = block.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let d = f16::from_f32(largest / -8.0);
    let nibbles = pack(block, |v| v / d.to_f32() + 8.0);
    d.to_le_bytes().into_iter().chain(nibbles).collect()
}

fn encode_q4_1(block: &[f32]) -> Vec<u8> {
    let (lowest, highest) = bounds(block);
    let (d, m) = (f16::from_f32((highest - lowest) / 15.0), f16::from_f32(lowest));
    let nibbles = pack(block, |v| (v - m.to_f32()) / d.to_f32());
    d.to_le_bytes().into_iter().chain(m.to_le_bytes()).chain(nibbles).collect()
}

fn pack(block: &[f32], scaled: impl Fn(f32) -> f32) -> Vec<u8> {
    let nibble = |v: f32| scaled(v).round().clamp(0.0, 15.0) as u8;
    let (low, high) = block.split_at(QUANT_BLOCK / 2);
    low.iter().zip(high).map(|(&a, &b)| nibble(a) | nibble(b) << 4).collect()
}

/// Builds GGUF files, right or deliberately wrong.
#[derive(Debug, Clone)]
pub struct GgufWriter {
    /// The version written; its bytes may be swapped.
    pub version: u32,
    /// Alignment of the tensor data; written as metadata where it is not 32.
    pub alignment: usize,
    /// The metadata in file order.
    pub values: Vec<(String, Value)>,
    /// Name, dimensions (fastest first), type and bytes.
    pub tensors: Vec<(String, Vec<usize>, GgufType, Vec<u8>)>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self { version: 3, alignment: 32, values: Vec::new(), tensors: Vec::new() }
    }
}

impl GgufWriter {
    /// Sets a metadata value, replacing one of that key.
    pub fn value(&mut self, key: &str, value: Value) {
        self.remove_value(key);
        self.values.push((key.to_owned(), value));
    }

    /// Removes a metadata value.
    pub fn remove_value(&mut self, key: &str) {
        self.values.retain(|(k, _)| k != key);
    }

    /// Appends a tensor.
    pub fn tensor(&mut self, name: &str, dimensions: &[usize], encoding: Encoding, values: &[f32]) {
        let bytes = encode(encoding, values);
        self.tensors.push((name.to_owned(), dimensions.to_vec(), GgufType::of(encoding), bytes));
    }

    /// The header up to the tensor data, without the padding between them.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        let mut values = self.values.clone();
        if self.alignment != 32 {
            values.push(("general.alignment".into(), Value::U32(self.alignment as u32)));
        }
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        for (key, value) in &values {
            put_string(&mut out, key);
            put_value(&mut out, value);
        }
        let mut offset = 0;
        for (name, dimensions, kind, bytes) in &self.tensors {
            put_string(&mut out, name);
            out.extend((dimensions.len() as u32).to_le_bytes());
            out.extend(dimensions.iter().flat_map(|&n| (n as u64).to_le_bytes()));
            out.extend(kind.0.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(self.alignment);
        }
        out
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        for (_, _, _, bytes) in &self.tensors {
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => scalar(0, &v.to_le_bytes()),
        Value::I8(v) => scalar(1, &v.to_le_bytes()),
        Value::U16(v) => scalar(2, &v.to_le_bytes()),
        Value::I16(v) => scalar(3, &v.to_le_bytes()),
        Value::U32(v) => scalar(4, &v.to_le_bytes()),
        Value::I32(v) => scalar(5, &v.to_le_bytes()),
        Value::F32(v) => scalar(6, &v.to_le_bytes()),
        Value::Bool(v) => scalar(7, &[u8::from(*v)]),
        Value::U64(v) => scalar(10, &v.to_le_bytes()),
        Value::I64(v) => scalar(11, &v.to_le_bytes()),
        Value::F64(v) => scalar(12, &v.to_le_bytes()),
        Value::String(text) => {
            scalar(8, &[]);
            put_string(out, text);
        }
        Value::Array(array) => {
            scalar(9, &[]);
            put_array(out, array);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let mut list = |kind: u32, n: usize, bytes: Vec<u8>| {
        out.extend(kind.to_le_bytes());
        out.extend((n as u64).to_le_bytes());
        out.extend(bytes);
    };
    macro_rules! numbers {
        ($kind:expr, $values:expr) => {
            list($kind, $values.len(), $values.iter().flat_map(|v| v.to_le_bytes()).collect())
        };
    }
    match array {
        Array::U8(v) => numbers!(0, v),
        Array::I8(v) => numbers!(1, v),
        Array::U16(v) => numbers!(2, v),
        Array::I16(v) => numbers!(3, v),
        Array::U32(v) => numbers!(4, v),
        Array::I32(v) => numbers!(5, v),
        Array::F32(v) => numbers!(6, v),
        Array::Bool(v) => list(7, v.len(), v.iter().map(|&b| u8::from(b)).collect()),
        Array::U64(v) => numbers!(10, v),
        Array::I64(v) => numbers!(11, v),
        Array::F64(v) => numbers!(12, v),
        Array::String(v) => {
            list(8, v.len(), Vec::new());
            v.iter().for_each(|text| put_string(out, text));
        }
        Array::Array(v) => {
            list(9, v.len(), Vec::new());
            v.iter().for_each(|inner| put_array(out, inner));
        }
    }
}
