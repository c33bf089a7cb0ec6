//! Fetching models from a hub: a small HTTP server on this machine that answers as the hub does.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::hub::{COMMIT, REPO, State, serve_repo};
use fewsync::model::ModelError;
use fewsync::model::hub::{HubOptions, download};
use sha2::{Digest, Sha256};

struct Hub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    cache: tempfile::TempDir,
}

impl Hub {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let (address, state) = serve_repo(files);
        Self { address, state, cache: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> HubOptions {
        let endpoint = format!("http://{}", self.address);
        HubOptions {
            endpoint,
            cache: self.cache.path().join("hub"),
            token: None,
            answer_limit: Duration::from_secs(30),
        }
    }

    fn fetch(&self) -> Result<PathBuf, ModelError> {
        download(REPO, &self.options())
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn error(&self) -> String {
        let error = self.fetch().unwrap_err();
        assert!(matches!(error, ModelError::Fetch { .. }), "{error}");
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    /// The same cache, with nobody at the other end.
    fn offline(&self) -> HubOptions {
        let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        HubOptions { endpoint: format!("http://{unused}"), ..self.options() }
    }

    fn blobs(&self) -> PathBuf {
        self.cache.path().join("hub/models--org--tiny/blobs")
    }
}

const CONFIG: (&str, &[u8]) = ("config.json", b"{\"model_type\": \"llama\"}");
const TOKENIZER: (&str, &[u8]) = ("tokenizer.json", b"{\"version\": \"1.0\"}");
const WEIGHTS: (&str, &[u8]) = ("model.safetensors", b"sixteen bytes of weights, or a few more");

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_whole_model_is_fetched_once() {
    let chat = ("tokenizer_config.json", &b"{}"[..]);
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS, chat, ("README.md", b"no"), ("model.onnx", b"no")]);
    let dir = hub.fetch().unwrap();
    assert_eq!(names(&dir), ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    for (name, bytes) in [CONFIG, TOKENIZER, WEIGHTS, chat] {
        assert_eq!(fs::read(dir.join(name)).unwrap(), bytes, "{name}");
    }
    assert!(
        dir.ends_with(format!("hub/models--org--tiny/snapshots/{COMMIT}")),
        "the layout of the hub's tools"
    );
    assert!(!hub.requests().is_empty());
    assert_eq!(hub.fetch().unwrap(), dir);
    assert_eq!(hub.requests(), [""; 0], "the second start asks nothing");
}

#[test]
fn shards_are_taken_from_the_index() {
    let index =
        br#"{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let mut files = vec![CONFIG, TOKENIZER, ("model.safetensors.index.json", &index[..])];
    files.extend([("model-1.safetensors", &b"first"[..]), ("model-2.safetensors", b"second")]);
    files.push(("model-3.safetensors", b"of no use"));
    let hub = Hub::new(&files);
    let dir = hub.fetch().unwrap();
    assert_eq!(fs::read(dir.join("model-2.safetensors")).unwrap(), b"second");
    assert!(!dir.join("model-3.safetensors").exists());

    let hub = Hub::new(&files[..4]);
    let text = hub.error();
    assert!(text.contains("model-2.safetensors, which it does not have"), "{text}");
}

#[test]
fn an_unknown_model_is_named() {
    let hub = Hub::new(&[]);
    let text = download("org/other", &hub.options()).unwrap_err().to_string();
    assert!(text.contains("org/other") && text.contains("404"), "{text}");
    let error = download("not-an-id", &hub.options()).unwrap_err();
    assert!(matches!(error, ModelError::NotFound { .. }), "{error}");
}

#[test]
fn a_gated_model_asks_for_a_token() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    hub.set(|state| state.token = Some("good".into()));
    let text = hub.error();
    assert!(
        text.contains("401") && text.contains("HF_TOKEN") && text.contains("no token was sent"),
        "{text}"
    );
    let with = |token: &str| HubOptions { token: Some(token.into()), ..hub.options() };
    let text = download(REPO, &with("bad")).unwrap_err().to_string();
    assert!(text.contains("this token may not read it"), "{text}");
    download(REPO, &with("good")).unwrap();
}

#[test]
fn what_is_missing_is_named_before_anything_is_fetched() {
    for (files, words) in [
        (vec![CONFIG, WEIGHTS], vec!["no tokenizer.json"]),
        (vec![TOKENIZER, WEIGHTS], vec!["no config.json"]),
        (
            vec![CONFIG, TOKENIZER, ("pytorch_model.bin", b"x")],
            vec!["model.safetensors", "only pytorch_model.bin"],
        ),
    ] {
        let hub = Hub::new(&files);
        let text = hub.error();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert_eq!(hub.requests().len(), 1);
    }
}

#[test]
fn a_cut_connection_is_resumed_at_once() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    hub.set(|state| state.cuts = 1);
    let dir = hub.fetch().unwrap();
    assert_eq!(fs::read(dir.join(WEIGHTS.0)).unwrap(), WEIGHTS.1);
    let resumed = format!("bytes={}-", WEIGHTS.1.len() / 2);
    assert!(hub.requests().iter().any(|request| request.ends_with(&resumed)), "went on where it ended");
}

#[test]
fn a_download_cut_off_is_repaired_at_the_next_start() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    hub.set(|state| state.cuts = 3);
    let text = hub.error();
    assert!(text.contains("broke off"), "{text}");
    let snapshot = hub.cache.path().join("hub/models--org--tiny/snapshots").join(COMMIT);
    assert!(!snapshot.join(WEIGHTS.0).exists(), "no partial file under the final name");
    let dir = hub.fetch().unwrap();
    assert_eq!(fs::read(dir.join(WEIGHTS.0)).unwrap(), WEIGHTS.1);
}

#[test]
fn a_short_body_is_not_taken_for_whole() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    hub.set(|state| (state.cuts, state.hides_cuts) = (3, true));
    let text = hub.error();
    assert!(text.contains(&format!("instead of {}", WEIGHTS.1.len())), "{text}");
    let dir = hub.fetch().unwrap();
    assert_eq!(fs::read(dir.join(WEIGHTS.0)).unwrap(), WEIGHTS.1);
}

#[test]
fn parts_of_killed_runs_are_finished_or_thrown_away() {
    let etag: String = Sha256::digest(WEIGHTS.1).iter().map(|byte| format!("{byte:02x}")).collect();
    let too_long = [WEIGHTS.1, b"more"].concat();
    let other = WEIGHTS.1.to_ascii_uppercase();
    for part in [&WEIGHTS.1[..7], WEIGHTS.1, &too_long, &other[..7], &other] {
        let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
        fs::create_dir_all(hub.blobs()).unwrap();
        fs::write(hub.blobs().join(format!("{etag}.part")), part).unwrap();
        let dir = hub.fetch().unwrap();
        assert_eq!(fs::read(dir.join(WEIGHTS.0)).unwrap(), WEIGHTS.1);
    }
}

#[test]
fn a_truncated_file_in_the_cache_is_fetched_again() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    let dir = hub.fetch().unwrap();
    fs::write(dir.join(WEIGHTS.0), &WEIGHTS.1[..9]).unwrap();
    assert_eq!(hub.fetch().unwrap(), dir);
    assert_eq!(fs::read(dir.join(WEIGHTS.0)).unwrap(), WEIGHTS.1);
    fs::remove_file(fs::canonicalize(dir.join(CONFIG.0)).unwrap()).unwrap();
    hub.fetch().unwrap();
    assert_eq!(fs::read(dir.join(CONFIG.0)).unwrap(), CONFIG.1, "a link that points nowhere");
}

#[test]
fn a_whole_snapshot_works_without_the_hub() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    let text = download(REPO, &hub.offline()).unwrap_err().to_string();
    assert!(text.contains("cannot be reached"), "{text}");
    let dir = hub.fetch().unwrap();
    assert_eq!(download(REPO, &hub.offline()).unwrap(), dir);
    // As another tool of the hub would leave it: without our note.
    fs::remove_file(hub.cache.path().join("hub/models--org--tiny/fewsync-complete.json")).unwrap();
    assert_eq!(download(REPO, &hub.offline()).unwrap(), dir);
    fs::remove_file(dir.join(WEIGHTS.0)).unwrap();
    assert!(download(REPO, &hub.offline()).is_err(), "a snapshot with holes is of no use");
}

#[test]
fn a_hub_that_says_nothing_is_not_waited_for() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    // Connections are taken by the system, and answered by nobody.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let options = HubOptions { endpoint, answer_limit: Duration::from_millis(300), ..hub.options() };
    let text = download(REPO, &options).unwrap_err().to_string();
    assert!(text.contains("cannot be reached") && text.contains("timeout"), "{text}");
    let dir = hub.fetch().unwrap();
    fs::remove_file(hub.cache.path().join("hub/models--org--tiny/fewsync-complete.json")).unwrap();
    assert_eq!(download(REPO, &options).unwrap(), dir, "what is in the cache will do");
}

#[test]
fn a_file_in_place_of_the_cache_is_named() {
    let hub = Hub::new(&[CONFIG, TOKENIZER, WEIGHTS]);
    fs::write(hub.options().cache, "").unwrap();
    let error = hub.fetch().unwrap_err();
    assert!(matches!(&error, ModelError::Cache { path, .. } if *path == hub.options().cache), "{error}");
}
