//! Where logits lie between the output head and whoever chooses a token.
//!
//! Each rank computes its columns of the vocabulary for all rows at once, and an all-gather moves contiguous
//! pieces; so behind the gather lie `[rows, width]` of rank 0, then of rank 1, and so on. One row of that is a
//! row of logits already. Several are brought into order by a gather of units, runs of columns that no piece
//! cuts.

use crate::model::sharding::{GRANULE, Sharding};

/// Granules of a unit at most: 8 KiB for one block of the kernel that copies it.
const MAX_UNIT_GRANULES: usize = 32;

/// The pieces of the vocabulary, each widened to whole granules, so that every row is aligned for vector access.
/// The columns beyond the vocabulary hold nothing.
#[derive(Debug, Clone)]
pub(crate) struct LogitLayout {
    /// The first column of each rank, and the end.
    starts: Vec<usize>,
    vocab: usize,
}

impl LogitLayout {
    pub(crate) fn new(sharding: &Sharding, vocab: usize) -> Self {
        let ends = (0..sharding.tp()).map(|rank| sharding.vocab(rank).end.next_multiple_of(GRANULE));
        Self { starts: std::iter::once(0).chain(ends).collect(), vocab }
    }

    /// Elements from one row to the next, where rows are in order.
    pub(crate) fn stride(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Elements from one row to the next in a rank's piece.
    pub(crate) fn width(&self, rank: usize) -> usize {
        self.starts[rank + 1] - self.starts[rank]
    }

    /// Where the ranks' pieces begin for `n_rows` rows, and where the last one ends.
    pub(crate) fn offsets(&self, n_rows: usize) -> Vec<usize> {
        self.starts.iter().map(|start| n_rows * start).collect()
    }

    /// Whether gathered rows are in order as they are.
    pub(crate) fn in_order(&self, n_rows: usize) -> bool {
        n_rows == 1 || self.starts.len() == 2
    }

    /// Elements of a unit: divides every piece's width.
    pub(crate) fn unit(&self) -> usize {
        let granules = (0..self.starts.len() - 1).map(|rank| self.width(rank) / GRANULE).fold(0, gcd);
        let divides = |n: &usize| granules.is_multiple_of(*n);
        GRANULE * (1..=MAX_UNIT_GRANULES).rev().find(divides).unwrap_or(1)
    }

    /// For every unit of rows in order, its number among the gathered units.
    pub(crate) fn order(&self, n_rows: usize) -> Vec<u32> {
        let unit = self.unit();
        let mut order = Vec::with_capacity(n_rows * self.stride() / unit);
        for row in 0..n_rows {
            for rank in 0..self.starts.len() - 1 {
                let first = (n_rows * self.starts[rank] + row * self.width(rank)) / unit;
                order.extend((first..).take(self.width(rank) / unit).map(|number| number as u32));
            }
        }
        order
    }

    /// Appends rows over the whole vocabulary, without gaps, from what the gather left.
    pub(crate) fn append(&self, gathered: &[f32], n_rows: usize, rows: &mut Vec<f32>) {
        rows.reserve(n_rows * self.vocab);
        for row in 0..n_rows {
            for rank in 0..self.starts.len() - 1 {
                let first = n_rows * self.starts[rank] + row * self.width(rank);
                let columns = self.width(rank).min(self.vocab.saturating_sub(self.starts[rank]));
                rows.extend_from_slice(&gathered[first..first + columns]);
            }
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::shapes;

    fn layout(vocab: usize, tp: usize) -> LogitLayout {
        let config =
            crate::model::Config { vocab, n_heads: 64, n_kv_heads: 8, ..shapes::named("tiny").unwrap() };
        LogitLayout::new(&Sharding::new(&config, tp).unwrap(), vocab)
    }

    #[test]
    fn units_are_large_where_pieces_are_equal() {
        // 2004 granules: 2 × 1002, or four times 251 and four times 250.
        assert_eq!(layout(128_256, 2).unit(), 6 * GRANULE);
        assert_eq!(layout(128_256, 8).unit(), GRANULE);
        assert_eq!(layout(49_152, 2).unit(), 32 * GRANULE);
    }

    #[test]
    fn a_partial_granule_is_widened() {
        let layout = layout(500, 3);
        assert_eq!(layout.offsets(2), [0, 384, 768, 1024]);
        assert_eq!((layout.stride(), layout.width(2)), (512, 128));
        assert!(layout.in_order(1) && !layout.in_order(2));
    }

    proptest! {
        /// The units in order, cut to the vocabulary, are the rows, and each row is what its columns say.
        #[test]
        fn rows_come_out_in_order(vocab in 1usize..900, tp in 1usize..20, n_rows in 1usize..5) {
            let layout = layout(vocab, tp);
            let offsets = layout.offsets(n_rows);
            let value = |row: usize, column: usize| (row * 1000 + column) as f32;
            let mut gathered = vec![f32::NAN; offsets[tp]];
            for rank in 0..tp {
                for row in 0..n_rows {
                    for i in 0..layout.width(rank) {
                        gathered[offsets[rank] + row * layout.width(rank) + i] = value(row, layout.starts[rank] + i);
                    }
                }
            }
            let expected: Vec<f32> =
                (0..n_rows).flat_map(|row| (0..vocab).map(move |column| value(row, column))).collect();
            let mut rows = vec![f32::NAN; 3];
            layout.append(&gathered, n_rows, &mut rows);
            prop_assert_eq!(&rows[3..], &expected[..]);
            let unit = layout.unit();
            let order = layout.order(n_rows);
            let ordered: Vec<f32> =
                order.iter().flat_map(|&u| gathered[u as usize * unit..][..unit].to_vec()).collect();
            let cut: Vec<f32> =
                ordered.chunks(layout.stride()).flat_map(|row| row[..vocab].to_vec()).collect();
            prop_assert_eq!(cut, expected);
            if layout.in_order(n_rows) {
                prop_assert_eq!(ordered, gathered);
            }
        }
    }
}
