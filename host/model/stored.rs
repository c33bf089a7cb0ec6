//! The tensor source over memory-mapped files, common to safetensors and GGUF.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use memmap2::Mmap;

use super::encoding::{Element, Encoding};
use super::fingerprint::Fingerprint;
use super::{Config, ModelError, Storage, Tensor, TensorKind, TensorSource};

/// Maps a whole file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Arc<Mmap>, ModelError> {
    let file = File::open(path).map_err(|e| ModelError::io(path, "read", e))?;
    // SAFETY: the mapping is private and read-only. A file that another program rewrites or shortens
    // while it is mapped is outside what this process can guard against (as for every memory-mapped
    // loader): weights are files that are written once.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| ModelError::io(path, "map", e))?;
    Ok(Arc::new(map))
}

/// One tensor inside a mapped file.
#[derive(Debug, Clone)]
pub(crate) struct StoredTensor {
    /// Its name in the file.
    pub(crate) name: String,
    pub(crate) map: Arc<Mmap>,
    /// Where its bytes lie in `map`; `rows * row_bytes(cols)` of them.
    pub(crate) bytes: Range<usize>,
    pub(crate) encoding: Encoding,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_order: RowOrder,
}

/// The order of a head's rows in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As asked for.
    Same,
    /// GGUF's query and key heads: rotary pairs are neighbours `(2i, 2i + 1)` in the file, and
    /// `(i, i + head_dim / 2)` as asked for.
    PairsAdjacent {
        /// Rows of one head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that holds `row`.
    fn file_row(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::PairsAdjacent { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

impl StoredTensor {
    fn data(&self) -> &[u8] {
        &self.map[self.bytes.clone()]
    }

    pub(crate) fn add_to(&self, fingerprint: &mut Fingerprint) {
        let encoding = format!("{:?}", self.encoding);
        fingerprint.tensor(&self.name, (self.rows, self.cols), &encoding, self.data());
    }

    /// Its precision in memory.
    pub(crate) fn storage(&self) -> Storage {
        self.encoding.storage()
    }

    pub(crate) fn read<T: Element>(&self, rows: Range<usize>, cols: Range<usize>, out: &mut [T]) {
        check_rectangle((self.rows, self.cols), &rows, &cols, out.len());
        if out.is_empty() {
            return;
        }
        let data = self.data();
        let row_bytes = data.len() / self.rows;
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.len())) {
            let at = self.row_order.file_row(row) * row_bytes;
            self.encoding.decode(&data[at..at + row_bytes], cols.clone(), out);
        }
    }
}

/// Panics where a caller asks for values outside a tensor or gives a buffer of another size.
pub(crate) fn check_rectangle(shape: (usize, usize), rows: &Range<usize>, cols: &Range<usize>, len: usize) {
    assert!(
        rows.start <= rows.end && rows.end <= shape.0 && cols.start <= cols.end && cols.end <= shape.1,
        "rectangle [{rows:?}, {cols:?}] outside a tensor of shape {shape:?}"
    );
    assert_eq!(len, rows.len() * cols.len(), "buffer for the rectangle [{rows:?}, {cols:?}]");
}

/// The role under which a tensor is kept: a tied head is the embedding, global tensors have no layer.
pub(crate) fn canonical(config: &Config, tensor: Tensor) -> Tensor {
    match tensor.kind {
        TensorKind::LmHead if config.tied => Tensor::global(TensorKind::Embedding),
        kind @ (TensorKind::LmHead | TensorKind::Embedding | TensorKind::FinalNorm) => Tensor::global(kind),
        _ => tensor,
    }
}

/// A checkpoint on disk, whatever its format.
#[derive(Debug)]
pub(crate) struct FileSource {
    config: Config,
    tensors: HashMap<Tensor, StoredTensor>,
}

impl FileSource {
    /// Finds every tensor of the model with `find`, which has to check presence and bounds.
    pub(crate) fn new(
        config: &Config,
        find: impl Fn(Tensor) -> Result<StoredTensor, ModelError>,
    ) -> Result<Self, ModelError> {
        let tensors = Tensor::all(config).into_iter().map(|t| find(t).map(|stored| (t, stored)));
        Ok(Self { config: config.clone(), tensors: tensors.collect::<Result<_, _>>()? })
    }

    fn stored(&self, tensor: Tensor) -> &StoredTensor {
        let tensor = canonical(&self.config, tensor);
        self.tensors.get(&tensor).unwrap_or_else(|| panic!("{tensor:?} is not part of this model"))
    }
}

impl TensorSource for FileSource {
    fn storage(&self, tensor: Tensor) -> Storage {
        self.stored(tensor).encoding.storage()
    }

    fn read_f32(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        self.stored(tensor).read(rows, cols, out);
    }

    fn read_bf16(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [bf16]) {
        self.stored(tensor).read(rows, cols, out);
    }

    fn fingerprint(&self) -> Result<String, ModelError> {
        let mut fingerprint = Fingerprint::new(&self.config);
        for tensor in Tensor::all(&self.config) {
            self.stored(tensor).add_to(&mut fingerprint);
        }
        Ok(fingerprint.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_pairs_are_found_from_half_rotated_rows() {
        let order = RowOrder::PairsAdjacent { head_dim: 6 };
        let rows: Vec<usize> = (0..12).map(|row| order.file_row(row)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }

    #[test]
    fn a_tied_head_is_the_embedding() {
        let mut config = crate::model::shapes::named("smollm2").unwrap();
        let head = Tensor { kind: TensorKind::LmHead, layer: 7 };
        assert_eq!(canonical(&config, head), Tensor::global(TensorKind::Embedding));
        config.tied = false;
        assert_eq!(canonical(&config, head), Tensor::global(TensorKind::LmHead));
    }

    #[test]
    #[should_panic(expected = "outside a tensor")]
    fn a_rectangle_outside_the_tensor_is_the_callers_mistake() {
        check_rectangle((2, 3), &(1..3), &(0..3), 6);
    }
}
