//! GGUF files, versions 2 and 3, little-endian: metadata, and tensors as a [`TensorSource`].
//!
//! Supported tensor types: F32, F16, BF16, Q8_0, Q4_0, Q4_1. A model is one file.
//!
//! The reader is our own. Of the crates for this format, `ggus` panics on a corrupt length, and
//! `gguf-rs` turns metadata into JSON values without their types and brings an argument parser and a
//! logger along. Here nothing is allocated before its bytes are known to be in the file.

mod config;
mod cursor;
mod metadata;
mod types;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use self::cursor::Cursor;
pub use self::metadata::{Array, Metadata, Value};
pub use self::types::GgufType;
use super::stored::{FileSource, RowOrder, StoredTensor, map_file};
use super::{Config, ModelError, Tensor, TensorKind, TensorSource};

/// The first four bytes of a file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensors where `general.alignment` gives none, in bytes.
const DEFAULT_ALIGNMENT: u32 = 32;
/// Most dimensions a tensor may have.
const MAX_DIMENSIONS: u32 = 4;

/// An opened file: its metadata, and a directory of its tensors.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// The key/value part.
    pub metadata: Metadata,
    path: PathBuf,
    map: Arc<Mmap>,
    tensors: HashMap<String, Info>,
}

/// One entry of the tensor directory.
#[derive(Debug, Clone)]
struct Info {
    /// Fastest-varying first: a linear layer is `[in, out]`.
    dimensions: Vec<u64>,
    kind: GgufType,
    /// From the start of the tensor data.
    offset: u64,
    /// Where the bytes lie in the file; none where the type's size is not known here.
    bytes: Option<Range<usize>>,
}

impl Gguf {
    /// Reads the header and checks that every tensor of a known type lies inside the file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map = map_file(path)?;
        let mut cursor = Cursor::new(path, &map);
        check_version(path, &map, &mut cursor)?;
        // A directory entry takes at least name length, dimension count, type and offset; a key/value
        // pair at least key length, type and one byte.
        let n_tensors = cursor.count("tensors", 8 + 4 + 4 + 8)?;
        let n_values = cursor.count("metadata values", 8 + 4 + 1)?;
        let metadata = read_metadata(path, &mut cursor, n_values)?;
        let mut tensors = read_directory(path, &mut cursor, n_tensors)?;
        locate(path, &map, alignment(&metadata)?, cursor.position(), &mut tensors)?;
        Ok(Self { metadata, path: path.into(), map, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The weights, each checked against `config` for presence, shape and type.
    pub fn source(&self, config: &Config) -> Result<Arc<dyn TensorSource>, ModelError> {
        Ok(Arc::new(FileSource::new(config, |tensor| self.find(tensor, config))?))
    }

    fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn dimensions(&self, name: &str) -> Result<&[u64], ModelError> {
        Ok(&self.info(name)?.dimensions)
    }

    fn tensor_bytes(&self, name: &str) -> Result<(GgufType, &[u8]), ModelError> {
        let info = self.info(name)?;
        Ok((info.kind, info.bytes.clone().map_or(&[], |range| &self.map[range])))
    }

    fn info(&self, name: &str) -> Result<&Info, ModelError> {
        let missing = || ModelError::corrupt(&self.path, format!("the tensor '{name}' is missing"));
        self.tensors.get(name).ok_or_else(missing)
    }

    /// The error for something sound that is not run here.
    fn refuse<T>(&self, what: String, supported: impl Into<String>) -> Result<T, ModelError> {
        Err(ModelError::unsupported(&self.path, what, supported))
    }

    fn find(&self, tensor: Tensor, config: &Config) -> Result<StoredTensor, ModelError> {
        let name = gguf_name(tensor);
        let info = self.info(&name)?;
        let (Some(encoding), Some(bytes)) = (info.kind.encoding(), info.bytes.clone()) else {
            return self.refuse(format!("tensor '{name}' of type {}", info.kind), GgufType::SUPPORTED);
        };
        let (rows, cols) = tensor.shape(config);
        let want = if tensor.is_norm() { vec![cols as u64] } else { vec![cols as u64, rows as u64] };
        if info.dimensions != want {
            let what =
                format!("tensor '{name}' has shape {:?}, the metadata asks for {want:?}", info.dimensions);
            return Err(ModelError::corrupt(&self.path, what));
        }
        let row_order = match tensor.kind {
            TensorKind::Q | TensorKind::K => RowOrder::PairsAdjacent { head_dim: config.head_dim },
            _ => RowOrder::Same,
        };
        Ok(StoredTensor { name, map: Arc::clone(&self.map), bytes, encoding, rows, cols, row_order })
    }
}

/// The name of a tensor in GGUF files of architecture `llama`.
pub(crate) fn gguf_name(tensor: Tensor) -> String {
    let part = match tensor.kind {
        TensorKind::Embedding => return "token_embd.weight".into(),
        TensorKind::FinalNorm => return "output_norm.weight".into(),
        TensorKind::LmHead => return "output.weight".into(),
        TensorKind::AttentionNorm => "attn_norm",
        TensorKind::Q => "attn_q",
        TensorKind::K => "attn_k",
        TensorKind::V => "attn_v",
        TensorKind::O => "attn_output",
        TensorKind::MlpNorm => "ffn_norm",
        TensorKind::Gate => "ffn_gate",
        TensorKind::Up => "ffn_up",
        TensorKind::Down => "ffn_down",
    };
    format!("blk.{}.{part}.weight", tensor.layer)
}

fn check_version(path: &Path, map: &Mmap, cursor: &mut Cursor) -> Result<(), ModelError> {
    let magic = cursor.u32()?.to_le_bytes();
    if magic != MAGIC {
        let what = format!("not a GGUF file: it starts with {:?}", String::from_utf8_lossy(&map[..4]));
        return Err(ModelError::corrupt(path, what));
    }
    match cursor.u32()? {
        2 | 3 => Ok(()),
        // A version this large is a small one with its bytes reversed.
        version if (1..=0xffff).contains(&version.swap_bytes()) => {
            Err(ModelError::unsupported(path, "a big-endian GGUF file", "little-endian files"))
        }
        version => Err(ModelError::unsupported(path, format!("GGUF version {version}"), "versions 2 and 3")),
    }
}

fn read_metadata(path: &Path, cursor: &mut Cursor, n: u64) -> Result<Metadata, ModelError> {
    let mut metadata = Metadata::new(path);
    for _ in 0..n {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        let value = cursor.value(kind)?;
        if metadata.get(&key).is_some() || !metadata.insert(key.clone(), value) {
            return Err(ModelError::corrupt(path, format!("the metadata key '{key}' occurs twice")));
        }
    }
    Ok(metadata)
}

fn read_directory(path: &Path, cursor: &mut Cursor, n: u64) -> Result<HashMap<String, Info>, ModelError> {
    let mut tensors = HashMap::new();
    for _ in 0..n {
        let name = cursor.string()?;
        let n_dimensions = cursor.u32()?;
        if n_dimensions > MAX_DIMENSIONS {
            let what = format!("tensor '{name}' has {n_dimensions} dimensions, more than {MAX_DIMENSIONS}");
            return Err(ModelError::corrupt(path, what));
        }
        let dimensions = (0..n_dimensions).map(|_| cursor.u64()).collect::<Result<_, _>>()?;
        let kind = GgufType(cursor.u32()?);
        let info = Info { dimensions, kind, offset: cursor.u64()?, bytes: None };
        if tensors.insert(name.clone(), info).is_some() {
            return Err(ModelError::corrupt(path, format!("the tensor '{name}' occurs twice")));
        }
    }
    Ok(tensors)
}

fn alignment(metadata: &Metadata) -> Result<usize, ModelError> {
    let alignment = metadata.u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() {
        return Ok(alignment as usize);
    }
    let what = format!("'general.alignment' is {alignment}, not a power of two");
    Err(ModelError::corrupt(metadata.path(), what))
}

/// Fills in where each tensor's bytes lie. The data begin at the first multiple of `alignment` behind
/// the header, which ends at `header_bytes`.
fn locate(
    path: &Path,
    map: &Mmap,
    alignment: usize,
    header_bytes: usize,
    tensors: &mut HashMap<String, Info>,
) -> Result<(), ModelError> {
    let data_start = header_bytes.next_multiple_of(alignment) as u128;
    let mut expected_bytes = 0;
    for (name, info) in tensors.iter_mut() {
        let Some(encoding) = info.kind.encoding() else { continue };
        let corrupt = |what: &str| ModelError::corrupt(path, format!("tensor '{name}' {what}"));
        if !info.offset.is_multiple_of(alignment as u64) {
            return Err(corrupt(&format!("at offset {} is not aligned to {alignment}", info.offset)));
        }
        let (&row, rest) = info.dimensions.split_first().ok_or_else(|| corrupt("has no dimensions"))?;
        let row_bytes = usize::try_from(row).ok().and_then(|cols| encoding.row_bytes(cols));
        let row_bytes = row_bytes.ok_or_else(|| {
            corrupt(&format!("has rows of {row} values, no whole number of {} blocks", info.kind))
        })?;
        let n_bytes = rest
            .iter()
            .try_fold(row_bytes as u64, |bytes, &n| bytes.checked_mul(n))
            .ok_or_else(|| corrupt(&format!("has an impossible shape {:?}", info.dimensions)))?;
        let start = data_start + u128::from(info.offset);
        let end = start + u128::from(n_bytes);
        expected_bytes = expected_bytes.max(end);
        if end <= map.len() as u128 {
            info.bytes = Some(start as usize..end as usize);
        }
    }
    if expected_bytes > map.len() as u128 {
        let what = format!("truncated: {} bytes of at least {expected_bytes}", map.len());
        return Err(ModelError::corrupt(path, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
