//! Tensors that replace a block's own (distilled for life without the first all-reduce).
//!
//! A safetensors file with Hugging Face names and *full* shapes: `model.layers.7.mlp.up_proj.weight`
//! serves every rank, each reading its shard of it; `rank1.model.layers.7.input_layernorm.weight` serves
//! rank 1 alone, for what ranks hold in common (norms, replicated KV heads) and may now hold apart.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::model::safetensors::SafetensorsFile;
use crate::model::stored::StoredTensor;
use crate::model::tensor::BLOCK_TENSORS;
use crate::model::{Config, ModelError, Storage, Tensor, TensorSource};

/// What a block's tensors were fitted for. It stands in their file's header as JSON, under [`MadeFor::KEY`]; files of
/// other programs need not have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeFor {
    /// Fingerprint of the model.
    pub(crate) model: String,
    /// Number of ranks.
    pub(crate) tp: usize,
    /// The order in which heads are dealt; none is as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) heads: Option<Vec<usize>>,
}

impl MadeFor {
    /// Its name in the header.
    pub(crate) const KEY: &str = "fewsync-spd";

    /// Why the tensors do not belong into a block whose heads are dealt in the order `heads`, as a sentence's end.
    pub(crate) fn check(&self, model: &str, tp: usize, heads: Option<&[usize]>) -> Result<(), String> {
        if self.model != model {
            return Err(format!("was distilled from another model ({}): distil this one", self.model));
        }
        if self.tp != tp {
            return Err(format!("was distilled for {} ranks, not {tp}: distil for {tp}", self.tp));
        }
        let as_they_are = |heads: &[usize]| heads.iter().copied().eq(0..heads.len());
        let moved =
            |heads: Option<&[usize]>| heads.filter(|heads| !as_they_are(heads)).map(<[usize]>::to_vec);
        let (own, here) = (moved(self.heads.as_deref()), moved(heads));
        let name = |heads: &Option<Vec<usize>>| {
            heads.as_ref().map_or_else(|| "as they are".into(), |heads| format!("as {heads:?}"))
        };
        match own == here {
            true => Ok(()),
            false => Err(format!(
                "was distilled with heads dealt {}, but the plan deals them {}: give the block that order or distil it anew",
                name(&own),
                name(&here)
            )),
        }
    }
}

/// A file of replacement tensors, every one of them known and of the model's shape.
#[derive(Debug)]
pub(crate) struct ReplacementFile {
    for_all: HashMap<Tensor, StoredTensor>,
    for_rank: HashMap<(usize, Tensor), StoredTensor>,
    /// What it was fitted for, if the file says.
    pub(crate) made_for: Option<MadeFor>,
}

impl ReplacementFile {
    /// Opens and checks a file for a model on `tp` ranks.
    pub(crate) fn open(path: &Path, config: &Config, tp: usize) -> Result<Self, ModelError> {
        let file = SafetensorsFile::open(path)?;
        let known: HashMap<String, Tensor> = (0..config.n_layers)
            .flat_map(|layer| BLOCK_TENSORS.map(|kind| Tensor::block(kind, layer)))
            .map(|tensor| (tensor.hf_name(), tensor))
            .collect();
        let (mut for_all, mut for_rank) = (HashMap::new(), HashMap::new());
        for name in file.names() {
            let (rank, hf_name) = match split_rank(&name) {
                Some((rank, _)) if rank >= tp => {
                    let what = format!("the replacement '{name}' in a plan for {tp} ranks");
                    return Err(ModelError::unsupported(path, what, format!("rank0 to rank{}", tp - 1)));
                }
                Some((rank, hf_name)) => (Some(rank), hf_name),
                None => (None, name.as_str()),
            };
            let Some(&tensor) = known.get(hf_name) else {
                let what = format!("the replacement '{name}', which names no tensor of the model's blocks,");
                let form = "names such as model.layers.0.mlp.up_proj.weight";
                return Err(ModelError::unsupported(path, what, form));
            };
            let stored = file.find_as(&name, tensor, config)?;
            match rank {
                Some(rank) => drop(for_rank.insert((rank, tensor), stored)),
                None => drop(for_all.insert(tensor, stored)),
            }
        }
        let made_for = file.note(MadeFor::KEY).map(serde_json::from_str).transpose();
        let made_for = made_for.map_err(|e| {
            ModelError::corrupt(path, format!("its header's '{}' is damaged ({e})", MadeFor::KEY))
        })?;
        Ok(Self { for_all, for_rank, made_for })
    }

    /// All tensors, in the order of their names.
    #[cfg(feature = "cli")]
    pub(crate) fn add_to(&self, fingerprint: &mut crate::model::Fingerprint) {
        let mut tensors: Vec<_> = self.for_all.values().chain(self.for_rank.values()).collect();
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        tensors.iter().for_each(|tensor| tensor.add_to(fingerprint));
    }

    /// Whether the file replaces anything in a block.
    pub(crate) fn covers(&self, layer: usize) -> bool {
        self.for_all.keys().chain(self.for_rank.keys().map(|(_, t)| t)).any(|t| t.layer == layer)
    }
}

/// `rank3.name` → `(3, name)`.
fn split_rank(name: &str) -> Option<(usize, &str)> {
    let (rank, rest) = name.strip_prefix("rank")?.split_once('.')?;
    Some((rank.parse().ok()?, rest))
}

/// A model with one rank's replacements laid over it.
pub(crate) struct Replaced<'a> {
    pub(crate) base: &'a dyn TensorSource,
    pub(crate) file: &'a ReplacementFile,
    pub(crate) rank: usize,
}

impl Replaced<'_> {
    fn replacement(&self, tensor: Tensor) -> Option<&StoredTensor> {
        self.file.for_rank.get(&(self.rank, tensor)).or_else(|| self.file.for_all.get(&tensor))
    }
}

impl TensorSource for Replaced<'_> {
    fn storage(&self, tensor: Tensor) -> Storage {
        self.replacement(tensor).map_or_else(|| self.base.storage(tensor), StoredTensor::storage)
    }

    fn read_f32(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        match self.replacement(tensor) {
            Some(stored) => stored.read(rows, cols, out),
            None => self.base.read_f32(tensor, rows, cols, out),
        }
    }

    fn read_bf16(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [bf16]) {
        match self.replacement(tensor) {
            Some(stored) => stored.read(rows, cols, out),
            None => self.base.read_bf16(tensor, rows, cols, out),
        }
    }

    fn fingerprint(&self) -> Result<String, ModelError> {
        self.base.fingerprint()
    }
}
