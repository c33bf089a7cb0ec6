//! Safetensors checkpoints: one file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use ::safetensors::Dtype;
use ::safetensors::tensor::Metadata;
use memmap2::Mmap;
use serde::Deserialize;

use super::encoding::Encoding;
use super::stored::{FileSource, RowOrder, StoredTensor, map_file};
use super::{Config, ModelError, Tensor, TensorSource};

/// The file of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The list of which tensor lies in which shard.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Bytes of the header's length, at the start of a file.
const PREFIX_BYTES: usize = 8;

/// Opens one file that holds the whole model.
pub fn open_file(path: &Path, config: &Config) -> Result<Arc<dyn TensorSource>, ModelError> {
    let file = SafetensorsFile::open(path)?;
    refuse_biases(path, file.header.tensors().keys())?;
    Ok(Arc::new(FileSource::new(config, |tensor| file.find(tensor, config))?))
}

/// Opens the shards that an index lists; they lie in its folder.
pub fn open_index(path: &Path, config: &Config) -> Result<Arc<dyn TensorSource>, ModelError> {
    let index = read_index(path)?;
    refuse_biases(path, index.keys())?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let shards: BTreeSet<&str> = index.values().map(String::as_str).collect();
    let shards: HashMap<&str, SafetensorsFile> = shards
        .into_iter()
        .map(|name| Ok((name, SafetensorsFile::open(&folder.join(name))?)))
        .collect::<Result<_, ModelError>>()?;
    let source = FileSource::new(config, |tensor| {
        let name = tensor.hf_name();
        let shard = index.get(&name).ok_or_else(|| missing(path, &name))?;
        shards[shard.as_str()].find(tensor, config)
    })?;
    Ok(Arc::new(source))
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(path).map_err(|e| ModelError::io(path, "read", e))?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|e| ModelError::corrupt(path, format!("not an index of shards ({e})")))?;
    match index.weight_map.values().find(|name| !is_plain_name(name)) {
        Some(name) => Err(ModelError::corrupt(path, format!("'{name}' is not a file name in the folder"))),
        None => Ok(index.weight_map),
    }
}

/// Only a name in the index's own folder: an index must not make us read elsewhere.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first_is_name = matches!(components.next(), Some(Component::Normal(n)) if n == OsStr::new(name));
    first_is_name && components.next().is_none() && !name.contains(['\\', '\0'])
}

/// A bias would be left out silently otherwise.
fn refuse_biases<'a>(path: &Path, mut names: impl Iterator<Item = &'a String>) -> Result<(), ModelError> {
    match names.find(|name| name.ends_with(".bias")) {
        Some(name) => {
            Err(ModelError::unsupported(path, format!("tensor '{name}'"), "linear layers without biases"))
        }
        None => Ok(()),
    }
}

fn missing(path: &Path, name: &str) -> ModelError {
    ModelError::corrupt(path, format!("the tensor '{name}' is missing"))
}

/// A mapped file and its header.
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    map: Arc<Mmap>,
    header: Metadata,
    /// Where the tensors' bytes begin.
    data_start: usize,
}

impl SafetensorsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let map = map_file(path)?;
        let truncated = |expected: u128| {
            ModelError::corrupt(path, format!("truncated: {} bytes of {expected}", map.len()))
        };
        let Some((prefix, rest)) = map.split_first_chunk::<PREFIX_BYTES>() else {
            return Err(truncated(PREFIX_BYTES as u128));
        };
        let header_bytes = u64::from_le_bytes(*prefix);
        let data_start = u128::from(header_bytes) + PREFIX_BYTES as u128;
        if rest.first().is_some_and(|&byte| byte != b'{') {
            return Err(ModelError::corrupt(path, "not a safetensors file: no JSON header"));
        }
        if data_start > map.len() as u128 {
            return Err(truncated(data_start));
        }
        let data_start = data_start as usize;
        let header: Metadata = serde_json::from_slice(&map[PREFIX_BYTES..data_start])
            .map_err(|e| ModelError::corrupt(path, format!("its header is damaged ({e})")))?;
        let expected = data_start as u128 + header.data_len() as u128;
        if (map.len() as u128) < expected {
            return Err(truncated(expected));
        }
        if (map.len() as u128) > expected {
            let what = format!("{} bytes where its header accounts for {expected}", map.len());
            return Err(ModelError::corrupt(path, what));
        }
        Ok(Self { path: path.into(), map, header, data_start })
    }

    /// The tensor under its Hugging Face name, with the shape that the configuration asks for. Its
    /// byte range was checked against shape, dtype and file when the header was read.
    fn find(&self, tensor: Tensor, config: &Config) -> Result<StoredTensor, ModelError> {
        self.find_as(&tensor.hf_name(), tensor, config)
    }

    /// Every tensor's name.
    pub(crate) fn names(&self) -> Vec<String> {
        self.header.tensors().into_keys().collect()
    }

    /// What the header says under a name of its own, beside the tensors.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// As [`Self::find`], of a tensor that the file has under another name.
    pub(crate) fn find_as(
        &self,
        name: &str,
        tensor: Tensor,
        config: &Config,
    ) -> Result<StoredTensor, ModelError> {
        let name = name.to_string();
        let info = self.header.info(&name).ok_or_else(|| missing(&self.path, &name))?;
        let encoding = match info.dtype {
            Dtype::BF16 => Encoding::Bf16,
            Dtype::F16 => Encoding::F16,
            Dtype::F32 => Encoding::F32,
            other => {
                let what = format!("tensor '{name}' of dtype {other:?}");
                return Err(ModelError::unsupported(&self.path, what, "BF16, F16, F32"));
            }
        };
        let (rows, cols) = tensor.shape(config);
        let want = if tensor.is_norm() { vec![cols] } else { vec![rows, cols] };
        if info.shape != want {
            let what =
                format!("tensor '{name}' has shape {:?}, the configuration asks for {want:?}", info.shape);
            return Err(ModelError::corrupt(&self.path, what));
        }
        let (start, end) = info.data_offsets;
        let bytes = self.data_start + start..self.data_start + end;
        let map = Arc::clone(&self.map);
        Ok(StoredTensor { name, map, bytes, encoding, rows, cols, row_order: RowOrder::Same })
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
