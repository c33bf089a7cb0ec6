//! Which page of the KV cache belongs to which sequence. Host arithmetic only.

use super::EngineError;

/// The pages of a KV cache and the sequences that hold them.
#[derive(Debug)]
pub(crate) struct Pages {
    page_size: usize,
    total: usize,
    free: Vec<u32>,
    sequences: Vec<Sequence>,
}

/// What one sequence holds.
#[derive(Debug, Default, Clone)]
struct Sequence {
    len: usize,
    pages: Vec<u32>,
}

impl Pages {
    /// `total` free pages of `page_size` tokens.
    pub(crate) fn new(total: usize, page_size: usize) -> Self {
        Self { page_size, total, free: free_list(total), sequences: Vec::new() }
    }

    /// Tokens of a sequence.
    pub(crate) fn len(&self, sequence: usize) -> usize {
        self.sequences.get(sequence).map_or(0, |s| s.len)
    }

    /// Tokens of every sequence.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.sequences.iter().map(|s| s.len).collect()
    }

    /// The pages of a sequence, in the order of its positions.
    pub(crate) fn of(&self, sequence: usize) -> &[u32] {
        self.sequences.get(sequence).map_or(&[], |s| &s.pages)
    }

    /// Makes a sequence longer by `n_tokens`, taking the pages that they need.
    pub(crate) fn grow(&mut self, sequence: usize, n_tokens: usize) -> Result<(), EngineError> {
        if self.sequences.len() <= sequence {
            self.sequences.resize(sequence + 1, Sequence::default());
        }
        let own = &mut self.sequences[sequence];
        let wanted = (own.len + n_tokens).div_ceil(self.page_size);
        let needed = wanted.saturating_sub(own.pages.len());
        if needed > self.free.len() {
            let (free, total, page_size) = (self.free.len(), self.total, self.page_size);
            return Err(EngineError::KvCacheFull { sequence, needed, free, total, page_size });
        }
        own.pages.extend(self.free.drain(self.free.len() - needed..).rev());
        own.len += n_tokens;
        Ok(())
    }

    /// Keeps the first `len` tokens of a sequence and gives its other pages back.
    pub(crate) fn truncate(&mut self, sequence: usize, len: usize) {
        if let Some(own) = self.sequences.get_mut(sequence) {
            own.len = own.len.min(len);
            let kept = own.len.div_ceil(self.page_size).min(own.pages.len());
            self.free.extend(own.pages.drain(kept..).rev());
        }
    }

    /// Forgets every sequence.
    pub(crate) fn clear(&mut self) {
        self.sequences.clear();
        self.free = free_list(self.total);
    }
}

/// The lowest page is taken first.
fn free_list(total: usize) -> Vec<u32> {
    (0..total as u32).rev().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_cache_says_what_is_missing() {
        let mut pages = Pages::new(3, 16);
        pages.grow(0, 17).unwrap();
        assert_eq!(pages.of(0), [0, 1]);
        let error = pages.grow(1, 40).unwrap_err();
        let expected = EngineError::KvCacheFull { sequence: 1, needed: 3, free: 1, total: 3, page_size: 16 };
        assert_eq!(error, expected);
        assert_eq!((pages.len(1), pages.of(1)), (0, &[][..]));
        pages.truncate(0, 16);
        pages.grow(1, 32).unwrap();
        assert_eq!(pages.of(1), [1, 2]);
    }

    proptest! {
        #[test]
        fn no_page_is_lost_or_held_twice(
            page_size in 1usize..20, calls in prop::collection::vec((0usize..4, 0usize..60, any::<bool>()), 1..60),
        ) {
            let total = 12;
            let mut pages = Pages::new(total, page_size);
            for (sequence, n, grow) in calls {
                let before = pages.len(sequence);
                match grow {
                    true if pages.grow(sequence, n).is_ok() => prop_assert_eq!(pages.len(sequence), before + n),
                    true => prop_assert_eq!(pages.len(sequence), before),
                    false => {
                        pages.truncate(sequence, n);
                        prop_assert_eq!(pages.len(sequence), before.min(n));
                    }
                }
                let mut all: Vec<u32> = (0..4).flat_map(|s| pages.of(s).to_vec()).chain(pages.free.clone()).collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..total as u32).collect::<Vec<_>>());
                for s in 0..4 {
                    prop_assert_eq!(pages.of(s).len(), pages.len(s).div_ceil(page_size));
                }
            }
        }
    }
}
