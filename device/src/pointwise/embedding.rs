//! Rows of a table.

use crate::params::Embedding;
use crate::ptx::global::{ld_b16, ld_b32, ld_v4, st_b16, st_v4};
use crate::ptx::pdl;
use crate::ptx::special::{ctaid_x, ntid_x, tid_x};
use crate::tile::bf16::{BYTES, PER_VECTOR};

kernel! {
    /// Copies one row of a bf16 table per token: the embedding lookup, and any other gather of rows
    /// (the last token of every sequence before the output head).
    ///
    /// # Shape and layout
    /// `out[t] = table[ids[t]]`, rows of `width`. Ids beyond the table give zeros.
    ///
    /// # Thread mapping
    /// One block per token; threads stride over the row, 16 bytes each where rows are 16-byte aligned.
    ///
    /// # Safety
    /// The grid is `n_tokens` blocks; `ids` and `out` have `n_tokens` rows; `out` overlaps nothing.
    #[launch_bounds(1024, 1)]
    pub fn embedding_bf16(p: Embedding) {
        pdl::launch_dependents();
        pdl::wait();
        let token = u64::from(ctaid_x());
        let id = ld_b32(p.ids + token * 4);
        let known = id < p.rows;
        let row_bytes = u64::from(p.width) * BYTES;
        let from = p.table + u64::from(id) * row_bytes;
        let to = p.out + token * row_bytes;

        let aligned = p.width.is_multiple_of(PER_VECTOR);
        let n_vectors = if aligned { p.width / PER_VECTOR } else { 0 };
        let mut vector = tid_x();
        while vector < n_vectors {
            let offset = u64::from(vector) * 16;
            st_v4(to + offset, if known { ld_v4(from + offset) } else { [0; 4] });
            vector += ntid_x();
        }
        let mut i = n_vectors * PER_VECTOR + tid_x();
        while i < p.width {
            let offset = u64::from(i) * BYTES;
            st_b16(to + offset, if known { ld_b16(from + offset) } else { 0 });
            i += ntid_x();
        }
    }
}
