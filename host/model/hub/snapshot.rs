//! Which files make a model, and whether the cache has them all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use hf_hub::{Cache, Repo};
use serde::{Deserialize, Serialize};

use crate::model::{ModelError, cache};

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Fetched where the repository has them.
pub(super) const OPTIONAL: [&str; 3] =
    ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

/// Our note beside the snapshots of a repository: what a whole one consists of.
const STAMP: &str = "fewsync-complete.json";

/// The files of one commit.
#[derive(Serialize, Deserialize)]
pub(super) struct Snapshot {
    commit: String,
    /// Size in bytes by name.
    files: BTreeMap<String, u64>,
    #[serde(skip)]
    dir: PathBuf,
}

impl Snapshot {
    /// A snapshot with no files yet.
    pub(super) fn new(cache: &Cache, repo: &Repo, commit: &str) -> Self {
        let dir = cache.repo(repo.clone()).pointer_path(commit);
        Self { commit: commit.into(), files: BTreeMap::new(), dir }
    }

    /// `name` is in the cache, whole.
    pub(super) fn add(&mut self, name: &str, bytes: u64) {
        self.files.insert(name.into(), bytes);
    }

    /// Notes that the snapshot is whole and current, and returns its folder.
    pub(super) fn write_stamp(self, cache: &Cache, repo: &str) -> Result<PathBuf, ModelError> {
        let refused = |e| cache::refused(cache.path(), &e);
        cache.model(repo.into()).create_ref(&self.commit).map_err(refused)?;
        let stamp = serde_json::to_string(&self).map_err(|e| refused(e.into()))?;
        fs::write(stamp_path(cache, repo), stamp).map_err(refused)?;
        Ok(self.dir)
    }

    /// The current snapshot, if it was once fetched whole and every file still has its size.
    pub(super) fn verified(cache: &Cache, repo: &str) -> Option<PathBuf> {
        let stamp: Self = serde_json::from_slice(&fs::read(stamp_path(cache, repo)).ok()?).ok()?;
        let dir = current(cache, repo)?;
        let whole = |(name, &bytes): (&String, &u64)| {
            fs::metadata(dir.join(name)).is_ok_and(|metadata| metadata.len() == bytes)
        };
        (dir.ends_with(&stamp.commit) && stamp.files.iter().all(whole)).then_some(dir)
    }

    /// The current snapshot, whoever fetched it, if it has what a model needs.
    pub(super) fn offline(cache: &Cache, repo: &str) -> Option<PathBuf> {
        let dir = current(cache, repo)?;
        let has = |name: &str| dir.join(name).is_file();
        let sharded = || shards(&dir).is_ok_and(|shards| shards.iter().all(|shard| has(shard)));
        (has(CONFIG) && has(TOKENIZER) && (has(WEIGHTS) || sharded())).then_some(dir)
    }
}

fn stamp_path(cache: &Cache, repo: &str) -> PathBuf {
    cache.path().join(Repo::model(repo.into()).folder_name()).join(STAMP)
}

/// The folder of the commit that `main` stood at when a snapshot was last fetched.
fn current(cache: &Cache, repo: &str) -> Option<PathBuf> {
    let config = cache.model(repo.into()).get(CONFIG)?;
    config.parent().map(Path::to_path_buf)
}

/// The shards that the index in `dir` names, in order.
pub(super) fn shards(dir: &Path) -> Result<BTreeSet<String>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = dir.join(INDEX);
    let text = fs::read_to_string(&path).map_err(|e| ModelError::io(&path, "read", e))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| ModelError::corrupt(&path, format!("not an index of safetensors shards: {e}")))?;
    let shards = BTreeSet::from_iter(index.weight_map.into_values());
    let inside =
        |name: &String| Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    match shards.iter().find(|name| !inside(name)) {
        Some(name) => Err(ModelError::corrupt(&path, format!("'{name}' lies outside the model's folder"))),
        None => Ok(shards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_its_shards_once_and_inside() {
        let dir = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(dir.path().join(INDEX), text).unwrap();
        write(r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#);
        assert_eq!(Vec::from_iter(shards(dir.path()).unwrap()), ["1.safetensors", "2.safetensors"]);
        for outside in ["../x", "/etc/x"] {
            write(&format!(r#"{{"weight_map": {{"a": "{outside}"}}}}"#));
            assert!(shards(dir.path()).unwrap_err().to_string().contains(outside));
        }
        write("[]");
        assert!(matches!(shards(dir.path()), Err(ModelError::Corrupt { .. })));
    }
}
