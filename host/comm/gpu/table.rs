//! Measured choices: what [`choose`](super::choose) would otherwise derive, by size.

use super::choose::Tuning;
use crate::comm::DType;

/// What was found best for one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Type of its elements.
    pub dtype: DType,
    /// Elements of a row where residual and norm follow the sum.
    pub hidden: Option<usize>,
    /// Its size.
    pub bytes: usize,
    /// The choice.
    pub tuning: Tuning,
}

/// Choices by size, for one topology.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TuningTable {
    /// By dtype and row, then by size.
    entries: Vec<Measured>,
}

impl TuningTable {
    /// From entries in any order; of two for the same tensor the first counts.
    pub fn new(mut entries: Vec<Measured>) -> Self {
        let key = |entry: &Measured| (entry.dtype as u8, entry.hidden, entry.bytes);
        entries.sort_by_key(key);
        entries.dedup_by_key(|entry| key(entry));
        Self { entries }
    }

    /// The choice for a tensor: that of the measured size that is nearest to its own, as a ratio. Sizes far beyond
    /// the largest one, rows of a length that was not measured and other types have none.
    pub fn lookup(&self, dtype: DType, hidden: Option<usize>, bytes: usize) -> Option<Tuning> {
        let alike: Vec<&Measured> =
            self.entries.iter().filter(|entry| entry.dtype == dtype && entry.hidden == hidden).collect();
        let sizes: Vec<usize> = alike.iter().map(|entry| entry.bytes).collect();
        nearest(&sizes, bytes).map(|index| alike[index].tuning)
    }
}

/// The index of the size (ascending, not 0) that is nearest to `bytes` as a ratio, the smaller one of two. Below the
/// first one that is the first; beyond √2 times the last there is none.
fn nearest(sizes: &[usize], bytes: usize) -> Option<usize> {
    let square = |bytes: usize| (bytes as u128).pow(2);
    let last = sizes.len().checked_sub(1)?;
    let above = sizes.partition_point(|&size| size < bytes);
    if above > last {
        return (square(bytes) <= 2 * square(sizes[last])).then_some(last);
    }
    let Some(below) = above.checked_sub(1) else { return Some(0) };
    let middle = sizes[below] as u128 * sizes[above] as u128;
    Some(if square(bytes) <= middle { below } else { above })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(n: u32) -> Tuning {
        Tuning { blocks: Some(n), ..Tuning::default() }
    }

    #[test]
    fn a_size_gets_the_choice_of_the_nearest_one() {
        let entry = |hidden, bytes, n| Measured { dtype: DType::Bf16, hidden, bytes, tuning: blocks(n) };
        let table = TuningTable::new(vec![
            entry(None, 4096, 4),
            entry(None, 1024, 1),
            entry(Some(4096), 8192, 8),
            entry(None, 1024, 9),
        ]);
        let found = |hidden, bytes| table.lookup(DType::Bf16, hidden, bytes).and_then(|t| t.blocks);
        assert_eq!([0, 1, 1024, 2048, 2049, 4096, 5792].map(|bytes| found(None, bytes)), {
            [Some(1), Some(1), Some(1), Some(1), Some(4), Some(4), Some(4)]
        });
        assert_eq!(found(None, 5793), None, "beyond the measured sizes");
        assert_eq!((found(Some(4096), 8192), found(Some(2048), 8192)), (Some(8), None));
        assert_eq!(table.lookup(DType::F32, None, 1024), None);
        assert_eq!(TuningTable::default().lookup(DType::Bf16, None, 1024), None);
    }

    proptest! {
        /// No other size is nearer.
        #[test]
        fn the_nearest_size_has_the_smallest_ratio(
            sizes in prop::collection::btree_set(1usize..1 << 40, 1..8),
            bytes in 1usize..1 << 40,
        ) {
            let sizes: Vec<usize> = sizes.into_iter().collect();
            let distance = |size: usize| (size as f64 / bytes as f64).ln().abs();
            match nearest(&sizes, bytes) {
                Some(found) => {
                    let least = sizes.iter().map(|&size| distance(size)).fold(f64::INFINITY, f64::min);
                    prop_assert!(distance(sizes[found]) <= least + 1e-9);
                }
                None => prop_assert!(bytes as f64 > sizes[sizes.len() - 1] as f64 * 1.414),
            }
        }
    }
}
