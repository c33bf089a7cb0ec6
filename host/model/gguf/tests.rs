use std::fs;

use half::bf16;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::config::RopeScaling;
use crate::model::encoding::{Encoding, QUANT_BLOCK};
use crate::model::testing::{GgufWriter, SmallLlama, block_error};
use crate::model::{Checkpoint, Storage, shapes};

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn open(bytes: &[u8]) -> Result<Checkpoint, ModelError> {
    let (_folder, path) = written(bytes);
    Checkpoint::open(&path)
}

fn read_all(checkpoint: &Checkpoint) -> Vec<(Tensor, Vec<f32>)> {
    let read = |tensor: Tensor| {
        let (rows, cols) = tensor.shape(&checkpoint.config);
        let mut values = vec![0.0; rows * cols];
        checkpoint.source.read_f32(tensor, 0..rows, 0..cols, &mut values);
        (tensor, values)
    };
    Tensor::all(&checkpoint.config).into_iter().map(read).collect()
}

#[track_caller]
fn refused(bytes: &[u8], needles: &[&str]) {
    let message = open(bytes).err().unwrap().to_string();
    for needle in needles {
        assert!(message.contains(needle), "{message}");
    }
}

/// A change to the F32 file and what the error must say.
#[track_caller]
fn refused_with(change: impl FnOnce(&mut GgufWriter), needles: &[&str]) {
    let mut writer = SmallLlama::new(9).gguf(Encoding::F32);
    change(&mut writer);
    refused(&writer.bytes(), needles);
}

#[test]
fn every_encoding_gives_the_weights_back() {
    let model = SmallLlama::new(9);
    for encoding in
        [Encoding::F32, Encoding::F16, Encoding::Bf16, Encoding::Q8_0, Encoding::Q4_0, Encoding::Q4_1]
    {
        let checkpoint = open(&model.gguf(encoding).bytes()).unwrap();
        assert_eq!(checkpoint.config, model.config);
        let q = Tensor::block(TensorKind::Q, 0);
        let want = if encoding == Encoding::Bf16 { Storage::Bf16 } else { Storage::F32 };
        assert_eq!(checkpoint.source.storage(q), want);
        for (tensor, values) in read_all(&checkpoint) {
            let want = &model.weights[&tensor];
            for (got, want) in values.chunks(QUANT_BLOCK).zip(want.chunks(QUANT_BLOCK)) {
                let limit = if tensor.is_norm() { 0.0 } else { block_error(encoding, want) };
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() <= limit, "{tensor:?} as {encoding:?}: {got} for {want}");
                }
            }
        }
    }
}

/// Rows of query heads, columns that begin and end inside blocks, both precisions.
#[test]
fn a_shard_is_a_rectangle_of_the_whole() {
    let model = SmallLlama::new(9);
    let checkpoint = open(&model.gguf(Encoding::Q4_1).bytes()).unwrap();
    for (tensor, whole) in read_all(&checkpoint) {
        let (n_rows, n_cols) = tensor.shape(&checkpoint.config);
        let (rows, cols) = (n_rows / 3..n_rows - n_rows / 5, 5..n_cols - 7);
        let mut part = vec![bf16::ZERO; rows.len() * cols.len()];
        checkpoint.source.read_bf16(tensor, rows.clone(), cols.clone(), &mut part);
        let want = rows.flat_map(|row| whole[row * n_cols..][cols.clone()].to_vec());
        assert!(part.into_iter().eq(want.map(bf16::from_f32)), "{tensor:?}");
    }
}

#[test]
fn metadata_of_every_type_can_be_read() {
    let mut writer = SmallLlama::new(9).gguf(Encoding::F32);
    let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::String(vec!["a".into(), String::new()])]);
    let values = [
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-3)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-300)),
        ("u32", Value::U32(u32::MAX)),
        ("i32", Value::I32(-1)),
        ("f32", Value::F32(0.1)),
        ("bool", Value::Bool(true)),
        ("string", Value::String("ünï".into())),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(7)),
        ("f64", Value::F64(0.5)),
        ("nested", Value::Array(nested)),
        ("u8s", Value::Array(Array::U8(vec![1]))),
        ("i8s", Value::Array(Array::I8(vec![-1]))),
        ("u16s", Value::Array(Array::U16(vec![300, 1]))),
        ("i16s", Value::Array(Array::I16(vec![-300]))),
        ("u32s", Value::Array(Array::U32(vec![70_000]))),
        ("i32s", Value::Array(Array::I32(vec![-70_000, 3]))),
        ("f32s", Value::Array(Array::F32(vec![0.25, -1.0]))),
        ("bools", Value::Array(Array::Bool(vec![true, false]))),
        ("u64s", Value::Array(Array::U64(vec![u64::MAX]))),
        ("i64s", Value::Array(Array::I64(vec![i64::MIN]))),
        ("f64s", Value::Array(Array::F64(vec![]))),
    ];
    values.iter().for_each(|(key, value)| writer.value(key, value.clone()));
    let (_folder, path) = written(&writer.bytes());
    let metadata = Gguf::open(&path).unwrap().metadata;
    for (key, value) in &values {
        assert_eq!(metadata.get(key), Some(value), "{key}");
    }
    assert_eq!(metadata.u32("u8").unwrap(), Some(200));
    assert_eq!(metadata.u32("i64").unwrap(), Some(7));
    assert_eq!(metadata.f32("f64").unwrap(), Some(0.5));
    assert_eq!(metadata.bool("bool").unwrap(), Some(true));
    assert_eq!(metadata.str("string").unwrap(), Some("ünï"));
    assert_eq!(metadata.i32s("i32s").unwrap(), Some(&[-70_000, 3][..]));
    assert_eq!(metadata.f32s("f32s").unwrap(), Some(&[0.25, -1.0][..]));
    assert_eq!(metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 40);
    assert_eq!(metadata.u32("absent").unwrap(), None);
    for wrong in ["i32", "u64", "string", "nested"] {
        let message = metadata.u32(wrong).unwrap_err().to_string();
        assert!(message.contains(&format!("'{wrong}' is")), "{message}");
    }
    let message = metadata.require("absent", metadata.str("absent")).unwrap_err().to_string();
    assert!(message.contains("'absent' is missing"), "{message}");
}

#[test]
fn versions_and_alignments_that_are_read() {
    let mut writer = SmallLlama::new(9).gguf(Encoding::Q8_0);
    (writer.version, writer.alignment) = (2, 256);
    let other = open(&writer.bytes()).unwrap();
    let usual = open(&SmallLlama::new(9).gguf(Encoding::Q8_0).bytes()).unwrap();
    assert_eq!(read_all(&other), read_all(&usual));
}

#[test]
fn defaults_ties_and_ends_are_taken_from_the_metadata() {
    let mut model = SmallLlama::new(9);
    model.config.tied = true;
    model.config.eos = vec![2, 3, 4];
    let mut writer = model.gguf(Encoding::F32);
    writer.value("llama.rope.scaling.type", Value::String("none".into()));
    ["llama.rope.freq_base", "tokenizer.ggml.tokens"].iter().for_each(|key| writer.remove_value(key));
    assert_eq!(open(&writer.bytes()).unwrap().config, model.config);
}

#[test]
fn rotary_divisors_mean_llama3_scaling() {
    let mut model = SmallLlama::new(9);
    let scaled = shapes::named("llama3.2-1b").unwrap();
    model.config.rope_base = scaled.rope_base;
    model.config.rope_scaling = scaled.rope_scaling;
    let want = model.config.rope_inv_freq();
    model.config.rope_scaling = RopeScaling::None;
    let divisors = model.config.rope_inv_freq().iter().zip(&want).map(|(a, b)| a / b).collect();
    model.config.rope_scaling = RopeScaling::Divisors(divisors);
    let config = open(&model.gguf(Encoding::F32).bytes()).unwrap().config;
    for (got, want) in config.rope_inv_freq().iter().zip(&want) {
        assert!((got - want).abs() <= 1e-6 * want, "{got} for {want}");
    }
}

#[test]
fn what_is_not_a_plain_llama_is_refused() {
    let text = |s: &str| Value::String(s.into());
    refused_with(|w| w.value("general.architecture", text("qwen2")), &["architecture 'qwen2'", "llama"]);
    refused_with(|w| w.remove_value("general.architecture"), &["'general.architecture' is missing"]);
    refused_with(|w| w.remove_value("llama.block_count"), &["'llama.block_count' is missing"]);
    refused_with(|w| w.value("llama.block_count", Value::U32(0)), &["llama.block_count 0"]);
    refused_with(|w| w.value("llama.block_count", text("2")), &["'llama.block_count' is \"2\""]);
    refused_with(|w| w.value("llama.expert_count", Value::U32(8)), &["llama.expert_count 8", "dense"]);
    refused_with(|w| w.value("split.count", Value::U16(4)), &["split into 4"]);
    refused_with(|w| w.value("llama.rope.scaling.type", text("yarn")), &["'yarn'", "rope_freqs.weight"]);
    refused_with(|w| w.value("llama.rope.dimension_count", Value::U32(16)), &["dimension_count 16", "32"]);
    refused_with(
        |w| w.tensor("blk.0.attn_q.bias", &[128], Encoding::F32, &[0.0; 128]),
        &["'blk.0.attn_q.bias'", "without biases"],
    );
}

#[test]
fn wrong_tensors_are_named() {
    let at = |w: &GgufWriter, name: &str| w.tensors.iter().position(|t| t.0 == name).unwrap();
    refused_with(
        |w| {
            let i = at(w, "blk.1.ffn_up.weight");
            w.tensors[i].2 = GgufType(14);
        },
        &["'blk.1.ffn_up.weight' of type Q6_K is not supported", "Q8_0, Q4_0, Q4_1"],
    );
    refused_with(
        |w| {
            let i = at(w, "blk.1.ffn_up.weight");
            w.tensors.remove(i);
        },
        &["'blk.1.ffn_up.weight' is missing"],
    );
    refused_with(
        |w| {
            let i = at(w, "blk.0.ffn_down.weight");
            w.tensors[i].1 = vec![64, 96];
        },
        &["'blk.0.ffn_down.weight' has shape [64, 96]", "[96, 64]"],
    );
    refused_with(
        |w| {
            let i = at(w, "output.weight");
            w.tensors[i].1 = vec![1 << 40, 1 << 40];
        },
        &["'output.weight' has an impossible shape"],
    );
    refused_with(|w| w.tensors.push(w.tensors[0].clone()), &["'token_embd.weight' occurs twice"]);
    refused_with(|w| w.values.push(w.values[0].clone()), &["'general.architecture' occurs twice"]);
}

#[test]
fn damaged_headers_are_described() {
    let writer = SmallLlama::new(9).gguf(Encoding::Q4_0);
    let whole = writer.bytes();
    for n in [0, 3, 7, 20, writer.header().len() - 1, whole.len() - 64] {
        let message = open(&whole[..n]).err().unwrap().to_string();
        let named = message.contains("truncated") || message.contains("bytes follow");
        assert!(named, "{n}: {message}");
    }
    refused(&whole[..whole.len() - 64], &[&format!("truncated: {} bytes of at least", whole.len() - 64)]);
    let with = |at: usize, new: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    refused(&with(0, b"GGML"), &["not a GGUF file", "GGML"]);
    refused(&with(4, &[0, 0, 0, 3]), &["big-endian", "little-endian"]);
    refused(&with(4, &[1, 0, 0, 0]), &["GGUF version 1", "2 and 3"]);
    refused(&with(4, &[0; 4]), &["GGUF version 0", "2 and 3"]);
    refused(&with(8, &[0xff; 8]), &["announces 18446744073709551615 tensors"]);
    refused(&with(16, &[0xff; 7]), &["metadata values"]);
    refused(&with(24, &[0xff; 8]), &["truncated"]);
    refused_with(|w| w.value("general.alignment", Value::U32(24)), &["'general.alignment' is 24"]);
    let mut deep = Array::U8(vec![]);
    for _ in 0..5 {
        deep = Array::Array(vec![deep]);
    }
    refused_with(|w| w.value("deep", Value::Array(deep)), &["nested deeper"]);
}

#[test]
fn the_fingerprint_follows_the_weights() {
    let base = SmallLlama::new(9).gguf(Encoding::Q8_0);
    let digest = |w: &GgufWriter| open(&w.bytes()).unwrap().source.fingerprint().unwrap();
    assert_eq!(digest(&base), digest(&base));
    let last = base.tensors.len() - 1;
    let n_bytes = base.tensors[last].3.len();
    for at in [0, n_bytes - 1] {
        let mut changed = base.clone();
        changed.tensors[last].3[at] ^= 1;
        assert_ne!(digest(&base), digest(&changed), "byte {at}");
    }
    let mut changed = base.clone();
    changed.value("llama.context_length", Value::U32(64));
    assert_ne!(digest(&base), digest(&changed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    /// Damage anywhere gives an error or a model whose every tensor can be read.
    #[test]
    fn damage_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
        in_header in any::<bool>(),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        let writer = SmallLlama::new(9).gguf(Encoding::Q4_0);
        let (header_bytes, mut bytes) = (writer.header().len(), writer.bytes());
        let reach = if in_header { header_bytes } else { bytes.len() };
        for (at, bits) in flips {
            bytes[at.index(reach)] ^= bits;
        }
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(reach)));
        if let Ok(checkpoint) = open(&bytes) {
            read_all(&checkpoint);
        }
    }
}
