//! What a block is trained on: its input, its attended heads and its synchronised output for every token of the
//! text, in files, so that memory does not grow with the text.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor as Matrix};
use memmap2::Mmap;

use super::DistillError;
use super::record::part_of;
use crate::model::stored::map_file;

/// Rows of `width` f32 values, one a token, in a mapped file.
pub(super) struct Rows {
    map: Arc<Mmap>,
    width: usize,
}

/// A file of rows that is being written; under its name it is not there before [`RowsWriter::finish`].
pub(super) struct RowsWriter {
    file: BufWriter<File>,
    path: PathBuf,
    width: usize,
}

impl RowsWriter {
    pub(super) fn create(path: &Path, width: usize) -> Result<Self, DistillError> {
        let file = File::create(part_of(path)).map_err(DistillError::io(path, "create"))?;
        Ok(Self { file: BufWriter::new(file), path: path.into(), width })
    }

    /// Appends whole rows.
    pub(super) fn append(&mut self, values: &[f32]) -> Result<(), DistillError> {
        self.file.write_all(bytemuck::cast_slice(values)).map_err(DistillError::io(&self.path, "write"))
    }

    /// Appends the rows of a tensor.
    pub(super) fn append_rows(&mut self, rows: &Matrix) -> Result<(), DistillError> {
        self.append(&rows.flatten_all()?.to_vec1::<f32>()?)
    }

    pub(super) fn finish(self) -> Result<Rows, DistillError> {
        let written = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let named = written.and_then(|_| fs::rename(part_of(&self.path), &self.path));
        named.map_err(DistillError::io(&self.path, "write"))?;
        Ok(Rows { map: map_file(&self.path)?, width: self.width })
    }
}

impl Rows {
    /// Opens a finished file of `rows` rows.
    pub(super) fn open(path: &Path, width: usize, rows: usize) -> Result<Self, DistillError> {
        let wanted_bytes = (rows * width * size_of::<f32>()) as u64;
        let bytes = File::open(path).and_then(|file| file.metadata()).map(|data| data.len());
        match bytes.map_err(DistillError::io(path, "read"))? {
            bytes if bytes == wanted_bytes => Ok(Self { map: map_file(path)?, width }),
            bytes => {
                let what = format!("it has {bytes} bytes, not {wanted_bytes}");
                Err(DistillError::Record { path: path.into(), what })
            }
        }
    }

    /// The rows of some chunks of `context` rows, `[chunks · context, width]`.
    pub(super) fn chunks(&self, chunks: &[usize], context: usize) -> Result<Matrix, DistillError> {
        let values: &[f32] = bytemuck::cast_slice(&self.map);
        let size = context * self.width;
        let picked: Vec<f32> =
            chunks.iter().flat_map(|chunk| &values[chunk * size..][..size]).copied().collect();
        Ok(Matrix::from_vec(picked, (chunks.len() * context, self.width), &Device::Cpu)?)
    }
}

/// The samples of one block.
pub(super) struct Samples<'a> {
    /// The block's input, `hidden` wide.
    pub(super) input: Rows,
    /// Its attended heads before the output projection, in dealt order.
    pub(super) attended: Rows,
    /// Its output where both all-reduces take place: the next block's input.
    pub(super) output: Rows,
    pub(super) context: usize,
    /// Chunks to train on.
    pub(super) train: &'a [usize],
    /// Chunks to judge by, never trained on.
    pub(super) held_out: &'a [usize],
}

/// Samples of some chunks, `[rows, …]` each.
pub(super) struct MiniBatch {
    pub(super) x: Matrix,
    pub(super) attended: Matrix,
    pub(super) target: Matrix,
    /// `[rows, 1]`: what a row's squared error counts.
    pub(super) weight: Matrix,
}

impl Samples<'_> {
    pub(super) fn batch(&self, chunks: &[usize]) -> Result<MiniBatch, DistillError> {
        let target = self.output.chunks(chunks, self.context)?;
        // A row counts by the inverse of its mean square. The next norm divides by it anyway, and the few tokens
        // with activations a thousand times larger than others' do not decide alone.
        let weight = (target.sqr()?.mean_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?.recip()?;
        Ok(MiniBatch {
            x: self.input.chunks(chunks, self.context)?,
            attended: self.attended.chunks(chunks, self.context)?,
            target,
            weight,
        })
    }
}

/// Every so manieth chunk is held out, at least one and never all.
pub(super) fn split(chunks: usize, share: f64) -> (Vec<usize>, Vec<usize>) {
    let wanted = ((chunks as f64 * share).round() as usize).clamp(1, chunks - 1);
    // The middle of each of `wanted` equal parts.
    let held_out: Vec<usize> = (0..wanted).map(|i| (2 * i + 1) * chunks / (2 * wanted)).collect();
    ((0..chunks).filter(|chunk| !held_out.contains(chunk)).collect(), held_out)
}
