use super::super::encoding::Encoding;
use super::super::testing::SmallLlama;
use super::*;

#[track_caller]
fn refused(path: &Path, needles: &[&str]) {
    let message = Checkpoint::open(path).err().unwrap().to_string();
    for needle in needles {
        assert!(message.contains(needle), "{message}");
    }
}

fn folder_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn a_gguf_file_opens_by_path_by_folder_and_under_any_name() {
    let bytes = SmallLlama::new(1).gguf(Encoding::Q8_0).bytes();
    let folder = folder_with(&[("a.gguf", &bytes)]);
    let by_folder = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(by_folder.folder.as_deref(), Some(folder.path()));
    assert!(by_folder.gguf.unwrap().strings("tokenizer.ggml.tokens").unwrap().is_some());
    fs::rename(folder.path().join("a.gguf"), folder.path().join("blob")).unwrap();
    let by_magic = Checkpoint::open(&folder.path().join("blob")).unwrap();
    assert_eq!(by_magic.config, by_folder.config);
}

#[test]
fn safetensors_open_by_folder_file_and_index() {
    let folder = folder_with(&[("generation_config.json", br#"{"eos_token_id": [3, 4]}"#)]);
    let model = SmallLlama::new(1);
    model.write_safetensors(folder.path(), Encoding::Bf16, 1);
    for path in [folder.path().to_owned(), folder.path().join("model.safetensors")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.config.eos, [3, 4]);
        assert!(checkpoint.gguf.is_none());
    }
    let sharded = tempfile::tempdir().unwrap();
    model.write_safetensors(sharded.path(), Encoding::Bf16, 2);
    Checkpoint::open(&sharded.path().join("model.safetensors.index.json")).unwrap();
}

#[test]
fn random_models_open_by_specification() {
    let checkpoint = Checkpoint::random("random:tiny,layers=1").unwrap();
    assert_eq!(checkpoint.config.n_layers, 1);
    assert!(checkpoint.folder.is_none() && checkpoint.gguf.is_none());
}

#[test]
fn folders_without_a_model_say_what_is_missing() {
    refused(Path::new("/no/such/model"), &["/no/such/model", "nothing is there", ".gguf"]);
    refused(folder_with(&[]).path(), &["the folder is empty"]);
    refused(folder_with(&[("notes.txt", b"x")]).path(), &["holds no weights"]);
    refused(folder_with(&[("config.json", b"{}")]).path(), &["holds no weights"]);
    refused(
        folder_with(&[("model.safetensors", b"")]).path(),
        &["config.json: there is no such file", "need the model's config.json"],
    );
    refused(folder_with(&[("a.gguf", b""), ("b.gguf", b"")]).path(), &["several .gguf files", "a.gguf"]);
    refused(folder_with(&[("pytorch_model.bin", b"PK")]).path(), &["PyTorch checkpoint", "safetensors"]);
    let part = folder_with(&[("model-00001-of-00002.safetensors", b"")]);
    refused(part.path(), &["model-00001-of-00002.safetensors, but neither"]);
}

#[test]
fn files_that_are_no_model_are_recognised() {
    for (bytes, needle) in [
        (&b"PK\x03\x04zip"[..], "a PyTorch checkpoint"),
        (b"\x80\x02pickle", "a PyTorch checkpoint"),
        (b"tjgg....", "from before GGUF"),
        (b"lmgg....", "from before GGUF"),
        (b"hello", "starts with \"hell\""),
        (b"", "the file is empty"),
    ] {
        let folder = folder_with(&[("model.bin", bytes)]);
        refused(&folder.path().join("model.bin"), &[needle, "model.bin"]);
    }
    let folder = folder_with(&[("m.gguf", b"<html>not found</html>")]);
    refused(folder.path(), &["not a GGUF file", "<htm"]);
}
