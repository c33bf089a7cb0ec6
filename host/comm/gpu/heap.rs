//! Memory that every rank of a world of processes has at the same place of a heap, and who has what of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::comm::CommError;
use crate::driver::KernelLibrary;

/// A symmetric heap: device memory of one size on every rank, into which other ranks' kernels write, by stores where
/// there is a path and by puts.
pub trait SymmetricHeap: fmt::Debug + Send + Sync {
    /// This rank's heap, for its own kernels; 256-byte aligned.
    fn address(&self) -> u64;

    /// Its size, equal on all ranks.
    fn bytes(&self) -> usize;

    /// Another rank's heap as kernels of this one store into it; none where there is no path for stores.
    fn peer(&self, rank: usize) -> Option<u64>;

    /// The kernels of [`NVSHMEM_PTX`](crate::kernels::NVSHMEM_PTX), ready to put to any rank by its number in the world.
    ///
    /// # Errors
    /// Why there are none, and what to do.
    fn puts(&self) -> Result<Arc<KernelLibrary>, CommError>;

    /// The world has failed: from here on nothing that needs another rank is done, the heap's end included.
    fn abandon(&self);
}

/// What of a heap is taken.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) heap: Arc<dyn SymmetricHeap>,
    /// End of each taken part, by its begin.
    taken: Mutex<BTreeMap<usize, usize>>,
}

/// A part of the heap, free again when dropped. That its owner has run all that was enqueued is enough: what others
/// send to a rank they send in calls that this rank takes part in, and a call ends only with all it is sent.
#[derive(Debug)]
pub(super) struct Place {
    arena: Arc<Arena>,
    pub(super) offset: usize,
}

/// Places begin at multiples of it.
const ALIGN_BYTES: usize = 4096;

impl Arena {
    pub(super) fn new(heap: Arc<dyn SymmetricHeap>) -> Arc<Self> {
        Arc::new(Self { heap, taken: Mutex::default() })
    }

    /// What is free, as begins and ends, for the other ranks.
    pub(super) fn gaps(&self) -> Vec<[usize; 2]> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = std::iter::once(0).chain(taken.values().copied());
        let ends = taken.keys().copied().chain(std::iter::once(self.heap.bytes()));
        begins.zip(ends).filter(|(begin, end)| begin < end).map(|(begin, end)| [begin, end]).collect()
    }

    /// Takes `bytes` from `offset` on, which are free.
    pub(super) fn take(self: &Arc<Self>, offset: usize, bytes: usize) -> Place {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(offset, offset + bytes.next_multiple_of(ALIGN_BYTES));
        drop(taken);
        Place { arena: Arc::clone(self), offset }
    }
}

impl Place {
    /// Its address on this rank.
    pub(super) fn address(&self) -> u64 {
        self.arena.heap.address() + self.offset as u64
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.arena.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.offset);
    }
}

/// The first place of `bytes` that is free on all ranks, whose gaps these are.
pub(super) fn common_gap(ranks: &[Vec<[usize; 2]>], bytes: usize) -> Option<usize> {
    let bytes = bytes.next_multiple_of(ALIGN_BYTES);
    let fits = |gaps: &Vec<[usize; 2]>, begin: usize| {
        gaps.iter().any(|&[from, to]| from <= begin && begin.checked_add(bytes).is_some_and(|end| end <= to))
    };
    let begins = ranks.iter().flatten().map(|&[begin, _]| begin.next_multiple_of(ALIGN_BYTES));
    begins.filter(|&begin| ranks.iter().all(|gaps| fits(gaps, begin))).min()
}

/// Gaps as bytes for a meeting.
pub(super) fn pack(gaps: &[[usize; 2]]) -> Vec<u8> {
    gaps.iter().flatten().flat_map(|&at| (at as u64).to_le_bytes()).collect()
}

/// Gaps out of a meeting.
pub(super) fn unpack(bytes: &[u8]) -> Vec<[usize; 2]> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte));
    bytes.chunks_exact(16).map(|pair| [number(&pair[..8]), number(&pair[8..])]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Numbers(usize);

    impl SymmetricHeap for Numbers {
        fn address(&self) -> u64 {
            1 << 20
        }

        fn bytes(&self) -> usize {
            self.0
        }

        fn peer(&self, _: usize) -> Option<u64> {
            None
        }

        fn puts(&self) -> Result<Arc<KernelLibrary>, CommError> {
            Err(CommError::Unsupported { what: "kernels" })
        }

        fn abandon(&self) {}
    }

    #[test]
    fn what_is_dropped_is_free_again_and_what_does_not_fit_is_refused() {
        let arena = Arena::new(Arc::new(Numbers(4 * ALIGN_BYTES)));
        let gap = |bytes| common_gap(&[arena.gaps()], bytes);
        let first = arena.take(gap(1).unwrap(), 1);
        let second = arena.take(gap(ALIGN_BYTES + 1).unwrap(), ALIGN_BYTES + 1);
        assert_eq!((first.offset, second.offset), (0, ALIGN_BYTES));
        assert_eq!(second.address(), (1 << 20) + ALIGN_BYTES as u64);
        assert_eq!((gap(2 * ALIGN_BYTES), gap(1)), (None, Some(3 * ALIGN_BYTES)));
        drop(first);
        assert_eq!((gap(2 * ALIGN_BYTES), gap(1)), (None, Some(0)));
        drop(second);
        assert_eq!(gap(4 * ALIGN_BYTES), Some(0));
        assert_eq!((gap(4 * ALIGN_BYTES + 1), gap(usize::MAX - ALIGN_BYTES)), (None, None));
    }

    proptest! {
        /// Groups that overlap, registering and dropping in any order: all members of a group get one offset, at which
        /// nobody of them has anything else.
        #[test]
        fn members_agree_on_a_place_that_all_have_free(
            steps in prop::collection::vec((1_u8..8, 1_usize..5, 0_usize..6), 1..40)
        ) {
            let arenas: [_; 3] = std::array::from_fn(|_| Arena::new(Arc::new(Numbers(16 * ALIGN_BYTES))));
            let mut groups: Vec<Vec<Place>> = Vec::new();
            for (members, pages, dropped) in steps {
                let members: Vec<_> = (0..3).filter(|r| members & 1 << r != 0).map(|r| &arenas[r]).collect();
                let lists: Vec<_> = members.iter().map(|arena| unpack(&pack(&arena.gaps()))).collect();
                let free = |gaps: &Vec<[usize; 2]>| gaps.iter().map(|[from, to]| to - from).sum::<usize>();
                let before: Vec<_> = lists.iter().map(free).collect();
                if let Some(offset) = common_gap(&lists, pages * ALIGN_BYTES) {
                    groups.push(members.iter().map(|arena| arena.take(offset, pages * ALIGN_BYTES)).collect());
                    for (arena, before) in members.iter().zip(before) {
                        prop_assert_eq!(free(&arena.gaps()), before - pages * ALIGN_BYTES);
                    }
                }
                if dropped < groups.len() {
                    groups.swap_remove(dropped);
                }
            }
            drop(groups);
            for arena in &arenas {
                prop_assert_eq!(arena.gaps(), vec![[0, 16 * ALIGN_BYTES]]);
            }
        }
    }
}
