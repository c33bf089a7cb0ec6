use std::fs;

use half::bf16;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::testing::{SmallLlama, encode};
use crate::model::{Checkpoint, Storage, TensorKind};

fn written(encoding: Encoding, n_shards: usize) -> (SmallLlama, TempDir) {
    let model = SmallLlama::new(5);
    let folder = tempfile::tempdir().unwrap();
    model.write_safetensors(folder.path(), encoding, n_shards);
    (model, folder)
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
fn refused(path: &Path, needles: &[&str]) {
    let message = Checkpoint::open(path).err().unwrap().to_string();
    for needle in needles {
        assert!(message.contains(needle), "{message}");
    }
}

#[test]
fn values_survive_every_dtype_and_sharding() {
    for (encoding, storage) in
        [(Encoding::Bf16, Storage::Bf16), (Encoding::F16, Storage::F32), (Encoding::F32, Storage::F32)]
    {
        for n_shards in [1, 3] {
            let (model, folder) = written(encoding, n_shards);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(checkpoint.config, model.config);
            assert_eq!(checkpoint.folder.as_deref(), Some(folder.path()));
            for (tensor, values) in read_all(&checkpoint) {
                let want = match encoding {
                    Encoding::F16 => {
                        model.weights[&tensor].iter().map(|&v| half::f16::from_f32(v).to_f32()).collect()
                    }
                    _ => model.weights[&tensor].clone(),
                };
                assert_eq!(values, want, "{tensor:?} as {encoding:?}");
                assert_eq!(checkpoint.source.storage(tensor), storage);
            }
        }
    }
}

#[test]
fn a_rectangle_is_cut_in_both_precisions() {
    let (model, folder) = written(Encoding::F32, 1);
    let source = Checkpoint::open(folder.path()).unwrap().source;
    let tensor = Tensor::block(TensorKind::Down, 1);
    let mut out = [bf16::ZERO; 6];
    source.read_bf16(tensor, 3..5, 90..93, &mut out);
    let want = [3 * 96 + 90, 3 * 96 + 91, 3 * 96 + 92, 4 * 96 + 90, 4 * 96 + 91, 4 * 96 + 92];
    assert_eq!(out.map(f32::from), want.map(|at| model.weights[&tensor][at]));
}

#[test]
fn a_tied_model_reads_its_embedding_as_head() {
    let mut model = SmallLlama::new(5);
    model.config.tied = true;
    for keep_head in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        if !keep_head {
            model.weights.remove(&Tensor::global(TensorKind::LmHead));
        }
        model.write_safetensors(folder.path(), Encoding::Bf16, 1);
        let source = Checkpoint::open(folder.path()).unwrap().source;
        let mut head = [0.0; 64];
        source.read_f32(Tensor::global(TensorKind::LmHead), 7..8, 0..64, &mut head);
        assert_eq!(head[..], model.weights[&Tensor::global(TensorKind::Embedding)][7 * 64..8 * 64]);
    }
    model.config.tied = false;
    let folder = tempfile::tempdir().unwrap();
    model.write_safetensors(folder.path(), Encoding::Bf16, 1);
    refused(folder.path(), &["'lm_head.weight' is missing"]);
}

#[test]
fn a_truncated_file_names_both_lengths() {
    let (_, folder) = written(Encoding::Bf16, 1);
    let path = folder.path().join(SINGLE_FILE);
    let bytes = fs::read(&path).unwrap();
    for n in [0, 5, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..n]).unwrap();
        refused(folder.path(), &[&format!("truncated: {n} bytes of")]);
    }
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    refused(folder.path(), &[&format!("of {}", bytes.len())]);
    fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
    refused(folder.path(), &["accounts for"]);
    fs::write(&path, vec![0xff; 1000]).unwrap();
    refused(folder.path(), &["not a safetensors file"]);
}

#[test]
fn a_wrong_tensor_is_named() {
    let (mut model, folder) = written(Encoding::Bf16, 1);
    model.config.vocab = 41;
    fs::write(folder.path().join("config.json"), model.config_json().to_string()).unwrap();
    refused(folder.path(), &["'model.embed_tokens.weight' has shape [40, 64]", "[41, 64]"]);
    model.config.vocab = 40;
    model.config.n_layers = 3;
    fs::write(folder.path().join("config.json"), model.config_json().to_string()).unwrap();
    refused(folder.path(), &["'model.layers.2.input_layernorm.weight' is missing"]);
}

/// Rewrites one occurrence of `from` in a file; both have the same length.
fn patch(path: &Path, from: &str, to: &str) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn other_dtypes_and_biases_are_unsupported() {
    let (_, folder) = written(Encoding::Bf16, 1);
    let path = folder.path().join(SINGLE_FILE);
    patch(&path, r#""BF16""#, r#""I16" "#);
    refused(folder.path(), &["of dtype I16 is not supported", "BF16, F16, F32"]);
    patch(&path, r#""I16" "#, r#""BF16""#);
    patch(&path, "q_proj.weight", "q_projwx.bias");
    refused(folder.path(), &["q_projwx.bias", "without biases"]);
}

#[test]
fn an_index_stays_in_its_folder() {
    let (_, folder) = written(Encoding::Bf16, 2);
    let path = folder.path().join(INDEX_FILE);
    let text = fs::read_to_string(&path).unwrap();
    for name in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\\\b"] {
        fs::write(&path, text.replace("model-00001-of-00002.safetensors", name)).unwrap();
        refused(folder.path(), &["is not a file name in the folder"]);
    }
    fs::write(&path, text.replace("model-00001-of-00002", "gone")).unwrap();
    refused(folder.path(), &["gone.safetensors: cannot read"]);
    fs::write(&path, "{}").unwrap();
    refused(folder.path(), &["not an index of shards", "weight_map"]);
}

#[test]
fn the_fingerprint_follows_the_weights_and_not_the_folder() {
    let (model, folder) = written(Encoding::F32, 1);
    let digest = |folder: &TempDir| Checkpoint::open(folder.path()).unwrap().source.fingerprint().unwrap();
    let base = digest(&folder);
    let (_, elsewhere) = written(Encoding::F32, 1);
    assert_eq!(base, digest(&elsewhere));
    // Sharding moves bytes, not weights.
    assert_eq!(base, digest(&written(Encoding::F32, 3).1));
    assert_ne!(base, digest(&written(Encoding::Bf16, 1).1));

    let tensor = Tensor::block(TensorKind::Up, 1);
    for at in [0, model.weights[&tensor].len() - 1] {
        let mut changed = model.clone();
        changed.weights.get_mut(&tensor).unwrap()[at] += 1.0;
        changed.write_safetensors(elsewhere.path(), Encoding::F32, 1);
        assert_ne!(base, digest(&elsewhere), "value {at}");
    }
    let mut changed = model.clone();
    changed.config.rope_base = 20_000.0;
    changed.write_safetensors(elsewhere.path(), Encoding::F32, 1);
    assert_ne!(base, digest(&elsewhere));
}

#[test]
fn a_file_from_the_writers_is_what_the_library_reads() {
    let (model, folder) = written(Encoding::F16, 1);
    let bytes = fs::read(folder.path().join(SINGLE_FILE)).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = Tensor::block(TensorKind::K, 0);
    let view = file.tensor(&tensor.hf_name()).unwrap();
    assert_eq!(view.data(), encode(Encoding::F16, &model.weights[&tensor]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Damage anywhere gives an error or a model whose every tensor can be read.
    #[test]
    fn damage_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
        in_header in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (_, folder) = written(Encoding::Bf16, 1);
        let path = folder.path().join(SINGLE_FILE);
        let mut bytes = fs::read(&path).unwrap();
        let reach = if in_header { 1500 } else { bytes.len() };
        for (at, bits) in flips {
            bytes[at.index(reach)] ^= bits;
        }
        let n_bytes = cut.map_or(bytes.len(), |cut| cut.index(bytes.len()));
        fs::write(&path, &bytes[..n_bytes]).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            read_all(&checkpoint);
        }
    }
}
