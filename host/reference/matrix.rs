//! A rank's weight matrices: assembled from rectangles of the checkpoint, held in bf16 or f32.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::model::{Storage, Tensor, TensorSource};

/// Row-major `[rows, cols]`, in whichever precision holds the checkpoint's values exactly.
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) values: Values,
}

pub(crate) enum Values {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

/// Rows that one task of the thread pool reads: enough to amortise the task, few enough to share out.
const ROWS_PER_TASK: usize = 64;

impl Matrix {
    /// Stacks row ranges of checkpoint tensors, keeping of each row the columns of `cols` side by side.
    pub(crate) fn load(
        source: &dyn TensorSource,
        rows: &[(Tensor, Range<usize>)],
        cols: &[Range<usize>],
    ) -> Self {
        let n_rows = rows.iter().map(|(_, r)| r.len()).sum();
        let n_cols = cols.iter().map(Range::len).sum();
        let exact_in_bf16 = rows.iter().all(|&(tensor, _)| source.storage(tensor) == Storage::Bf16);
        let values = if exact_in_bf16 {
            Values::Bf16(gather(rows, cols, n_rows * n_cols, |t, r, c, out| source.read_bf16(t, r, c, out)))
        } else {
            Values::F32(gather(rows, cols, n_rows * n_cols, |t, r, c, out| source.read_f32(t, r, c, out)))
        };
        Self { rows: n_rows, cols: n_cols, values }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        match &self.values {
            Values::Bf16(v) => size_of_val(v.as_slice()),
            Values::F32(v) => size_of_val(v.as_slice()),
        }
    }
}

fn gather<T: Copy + Default + Send + Sync>(
    rows: &[(Tensor, Range<usize>)],
    cols: &[Range<usize>],
    n_values: usize,
    read: impl Fn(Tensor, Range<usize>, Range<usize>, &mut [T]) + Sync,
) -> Vec<T> {
    let n_cols: usize = cols.iter().map(Range::len).sum();
    let mut values = vec![T::default(); n_values];
    if values.is_empty() {
        return values;
    }
    let mut rest = values.as_mut_slice();
    for (tensor, range) in rows {
        let (block, behind) = rest.split_at_mut(range.len() * n_cols);
        rest = behind;
        block.par_chunks_mut(ROWS_PER_TASK * n_cols).enumerate().for_each(|(task, out)| {
            let first = range.start + task * ROWS_PER_TASK;
            let task_rows = first..first + out.len() / n_cols;
            if let [run] = cols {
                return read(*tensor, task_rows, run.clone(), out);
            }
            let mut at = 0;
            for run in cols {
                let mut part = vec![T::default(); task_rows.len() * run.len()];
                read(*tensor, task_rows.clone(), run.clone(), &mut part);
                for (row, part) in out.chunks_exact_mut(n_cols).zip(part.chunks_exact(run.len())) {
                    row[at..at + run.len()].copy_from_slice(part);
                }
                at += run.len();
            }
        });
    }
    values
}
