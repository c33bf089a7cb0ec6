//! Model files that are cut, damaged, or of a kind that is not run.

use std::fs;
use std::path::{Path, PathBuf};

use fewsync::model::encoding::Encoding;
use fewsync::model::gguf::{GgufType, Value};
use fewsync::model::testing::GgufWriter;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::common::small::{gguf, small, tokenizer_json, write_folder, write_gguf};
use crate::common::{fails_with, json};

fn generate(model: &Path) -> [&str; 7] {
    ["generate", "--model", model.to_str().unwrap(), "--prompt", "abc", "--max-tokens", "2"]
}

#[track_caller]
fn refused(model: &Path, needles: &[&str]) {
    fails_with(&generate(model), needles);
}

/// What makes a sound thing wrong.
type Change<T> = fn(&mut T);

/// A sound model folder.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new(n_shards: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_folder(&small(1), dir.path(), Encoding::Bf16, n_shards);
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    #[track_caller]
    fn refused(&self, needles: &[&str]) {
        refused(self.dir.path(), needles);
    }

    /// Rewrites a JSON file.
    fn change(&self, name: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.at(name)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.at(name), value.to_string()).unwrap();
    }
}

/// Every kind of place where a file of `len` bytes can end.
fn cuts(len: usize) -> [usize; 7] {
    [0, 3, 7, 12, 200, len / 2, len - 1]
}

#[test]
fn a_cut_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    write_gguf(&small(1), &path, Encoding::Q8_0);
    json(&[&generate(&path)[..], &["--json"]].concat());
    let whole = fs::read(&path).unwrap();
    for len in cuts(whole.len()) {
        fs::write(&path, &whole[..len]).unwrap();
        refused(&path, &[path.to_str().unwrap(), "fetch or convert the file again"]);
    }
}

#[test]
fn a_cut_safetensors_file() {
    let folder = Folder::new(1);
    json(&[&generate(folder.dir.path())[..], &["--json"]].concat());
    let path = folder.at("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for len in cuts(whole.len()) {
        fs::write(&path, &whole[..len]).unwrap();
        folder.refused(&[path.to_str().unwrap(), "truncated", "fetch or convert the file again"]);
    }
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    folder.refused(&["where its header accounts for"]);
    let mut broken = whole.clone();
    broken[20] ^= 0xff;
    fs::write(&path, &broken).unwrap();
    folder.refused(&["its header is damaged"]);
    fs::write(&path, "<!DOCTYPE html>").unwrap();
    folder.refused(&["not a safetensors file"]);
}

#[test]
fn files_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    for (contents, needle) in [
        (&b""[..], "the file is empty"),
        (b"PK\x03\x04 and so on", "a PyTorch checkpoint"),
        (b"hello", "a file that starts with \"hell\""),
        (b"GGUF", "truncated"),
    ] {
        fs::write(&path, contents).unwrap();
        refused(&path, &[path.to_str().unwrap(), needle]);
    }
    fs::remove_file(&path).unwrap();
    refused(dir.path(), &["the folder is empty"]);
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    refused(dir.path(), &["a PyTorch checkpoint is not supported"]);
}

#[test]
fn shards_and_their_index() {
    let folder = Folder::new(3);
    let shard = folder.at("model-00002-of-00003.safetensors");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    folder.refused(&[shard.to_str().unwrap(), "truncated"]);
    fs::remove_file(&shard).unwrap();
    folder.refused(&[shard.to_str().unwrap(), "No such file"]);
    fs::write(folder.at("model.safetensors.index.json"), "{").unwrap();
    folder.refused(&["not an index of shards"]);
}

#[test]
fn configurations_that_cannot_be_run() {
    let changes: [(Change<serde_json::Value>, &str); 6] = [
        (|c| (c["architectures"], c["model_type"]) = (json!(["GPT2LMHeadModel"]), json!("gpt2")), "gpt2"),
        (|c| c["hidden_size"] = json!(null), "hidden_size"),
        (|c| c["hidden_size"] = json!(32), "shape"),
        (|c| c["num_hidden_layers"] = json!(3), "model.layers.2"),
        (|c| c["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0}), "yarn"),
        (|c| c["vocab_size"] = json!(0), "vocab"),
    ];
    for (change, needle) in changes {
        let folder = Folder::new(1);
        folder.change("config.json", change);
        folder.refused(&[needle]);
    }
    let folder = Folder::new(1);
    fs::write(folder.at("config.json"), "{\"model_type\":\n\"llama\",,}").unwrap();
    folder.refused(&["config.json"]);
    fs::remove_file(folder.at("config.json")).unwrap();
    folder.refused(&["config.json: there is no such file"]);
}

#[test]
fn tokenizers_that_are_missing_or_broken() {
    let folder = Folder::new(1);
    let path = folder.at("tokenizer.json");
    let path_text = path.to_str().unwrap();
    fails_with(
        &[&generate(folder.dir.path())[..], &["--chat"]].concat(),
        &["chat template", "leave out --chat"],
    );
    fs::write(&path, "{\"version\": \"1.0\"}").unwrap();
    folder.refused(&[path_text, "not a tokenizer.json"]);
    fs::write(&path, b"\xff").unwrap();
    folder.refused(&[path_text, "not a tokenizer.json"]);
    fs::remove_file(&path).unwrap();
    folder.refused(&[path_text, "there is no such file", "beside it"]);
    let mut larger = tokenizer_json();
    larger["model"]["vocab"]["ab"] = json!(40);
    fs::write(&path, larger.to_string()).unwrap();
    folder.refused(&["41 tokens", "embeds only 40"]);
}

#[test]
fn dtypes_that_are_not_run() {
    for (dtype, bytes) in [(Dtype::I64, 8), (Dtype::F8_E4M3, 1), (Dtype::U8, 1)] {
        let folder = Folder::new(1);
        let path = folder.at("model.safetensors");
        let whole = fs::read(&path).unwrap();
        let sound = SafeTensors::deserialize(&whole).unwrap();
        let zeros = vec![0; 64 * 96 * bytes];
        let name = "model.layers.1.mlp.down_proj.weight";
        let other = TensorView::new(dtype, vec![64, 96], &zeros).unwrap();
        let tensors = sound.tensors().into_iter().filter(|(n, _)| n != name).chain([(name.into(), other)]);
        let bytes = safetensors::serialize(tensors, None).unwrap();
        fs::write(&path, bytes).unwrap();
        folder.refused(&[name, &format!("{dtype:?}"), "supported: BF16, F16, F32"]);
    }
}

#[test]
fn gguf_files_of_another_kind() {
    fn string(text: &str) -> Value {
        Value::String(text.into())
    }
    let changes: [(Change<GgufWriter>, &[&str]); 9] = [
        (|w| w.tensors[5].2 = GgufType(14), &["Q6_K", "supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1"]),
        (|w| w.tensors[5].2 = GgufType(99), &["99", "supported: F32"]),
        (|w| w.value("general.architecture", string("mamba")), &["architecture 'mamba'", "supported: llama"]),
        (|w| w.version = 1, &["GGUF version 1", "versions 2 and 3"]),
        (|w| w.version = 3u32.swap_bytes(), &["big-endian"]),
        (|w| w.remove_value("llama.block_count"), &["llama.block_count"]),
        (|w| w.remove_value("tokenizer.ggml.model"), &["tokenizer.ggml.model"]),
        (|w| w.value("tokenizer.ggml.pre", string("deepseek")), &["pre-tokenizer 'deepseek'", "llama-bpe"]),
        (|w| drop(w.tensors.remove(7)), &["is missing"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for (change, needles) in changes {
        let mut writer = gguf(&small(1), Encoding::Bf16);
        change(&mut writer);
        fs::write(&path, writer.bytes()).unwrap();
        refused(&path, needles);
    }
}

#[test]
fn weights_that_are_no_numbers() {
    let mut model = small(1);
    let mut norms = model.weights.iter_mut().filter(|(tensor, _)| tensor.is_norm());
    norms.next().unwrap().1[0] = f32::NAN;
    let dir = tempfile::tempdir().unwrap();
    write_folder(&model, dir.path(), Encoding::F32, 1);
    refused(dir.path(), &["not finite numbers", "fetch or convert the model again"]);
    let text = dir.path().join("text");
    fs::write(&text, "abc def").unwrap();
    let model = dir.path().to_str().unwrap();
    fails_with(
        &["eval", "--model", model, "--text", text.to_str().unwrap(), "--context", "4", "--chunks", "1"],
        &["not finite numbers"],
    );
}
