//! Small random Llamas with a tokenizer of single characters, in every format.

use std::fs;
use std::path::Path;

use fewsync::model::encoding::Encoding;
use fewsync::model::gguf::{Array, Value};
use fewsync::model::testing::{GgufWriter, SmallLlama};
use half::f16;
use serde_json::{Map, json};

/// Special tokens, letters, space (as byte-level BPE spells it) and digits: the 40 tokens of the model.
pub fn tokens() -> Vec<String> {
    let special = ["<unk>", "<s>", "</s>"].map(String::from);
    let characters = ('a'..='z').chain(['Ġ']).chain('0'..='9').map(String::from);
    special.into_iter().chain(characters).collect()
}

/// A model whose weights BF16 and F16 hold exactly.
pub fn small(seed: u64) -> SmallLlama {
    let mut model = SmallLlama::new(seed);
    assert_eq!(model.config.vocab, tokens().len());
    make_exact(&mut model);
    model
}

/// Rounds the weights, all exactly bf16, to values that are exactly f16 too.
pub fn make_exact(model: &mut SmallLlama) {
    for value in model.weights.values_mut().flatten() {
        *value = f16::from_f32(*value).to_f32();
    }
}

/// Writes `config.json`, weights and `tokenizer.json`.
pub fn write_folder(model: &SmallLlama, folder: &Path, encoding: Encoding, n_shards: usize) {
    fs::create_dir_all(folder).unwrap();
    model.write_safetensors(folder, encoding, n_shards);
    fs::write(folder.join("tokenizer.json"), tokenizer_json().to_string()).unwrap();
}

pub fn tokenizer_json() -> serde_json::Value {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let vocab: Map<String, _> = tokens().into_iter().zip(0..).map(|(t, id)| (t, json!(id))).collect();
    let added = tokens().into_iter().take(3).zip(0..).map(|(token, id)| {
        json!({"id": id, "content": token, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    });
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// The GGUF file of the model, with the same tokenizer.
pub fn gguf(model: &SmallLlama, encoding: Encoding) -> GgufWriter {
    let mut writer = model.gguf(encoding);
    let types = (0..model.config.vocab).map(|id| if id < 3 { 3 } else { 1 }).collect();
    writer.value("tokenizer.ggml.model", Value::String("gpt2".into()));
    writer.value("tokenizer.ggml.pre", Value::String("gpt-2".into()));
    writer.value("tokenizer.ggml.tokens", Value::Array(Array::String(tokens())));
    writer.value("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    writer.value("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
    writer.value("tokenizer.ggml.add_bos_token", Value::Bool(false));
    writer
}

/// Writes [`gguf`] to `path`.
pub fn write_gguf(model: &SmallLlama, path: &Path, encoding: Encoding) {
    fs::write(path, gguf(model, encoding).bytes()).unwrap();
}
