//! Sets of past operations, kept small by how programs synchronise.
//!
//! Plain vector clocks hold one number per thread: too much for grids of thousands. Here a set is made of
//! finished grids (one number per chain of grids that follow each other), and, for blocks whose grid still runs,
//! of a *floor* (every thread of the block up to that clock: all that a `bar.sync` of the whole block leaves
//! behind), single threads beyond the floor, and ranges of asynchronous copies.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{BlockId, Thread};

/// A point in the execution: everything that was released into it happens before whoever acquires it.
///
/// Whatever synchronises keeps one: a phase of a barrier or an mbarrier, the end of a stream, an event.
#[derive(Debug, Clone, Default)]
pub struct Clock(pub(super) Arc<VectorClock>);

/// Where a finished grid stands: a chain, and its place in it. All grids before it in the chain are known with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) chain: u32,
    pub(super) place: u32,
}

/// Tells of a block whether, and as what, its grid has finished.
pub(super) trait Grids {
    fn finished(&self, block: BlockId) -> Option<Finished>;
}

/// A set of past operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct VectorClock {
    /// By chain, sorted.
    finished: Vec<(u32, u32)>,
    /// By block, sorted.
    blocks: Vec<(BlockId, Arc<Known>)>,
}

/// What is known of one block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// Of every thread, all operations up to this clock.
    floor: u32,
    /// Of single threads, operations up to a later clock; by index, sorted.
    threads: Vec<(u32, u32)>,
    /// Asynchronous copies: inclusive ranges of their numbers, sorted, with gaps between.
    copies: Vec<(u32, u32)>,
}

impl VectorClock {
    /// Whether the operation of `who` at `clock` is in the set.
    pub(super) fn contains(&self, who: Thread, clock: u32, grids: &impl Grids) -> bool {
        if let Ok(at) = self.blocks.binary_search_by_key(&who.block, |entry| entry.0) {
            let known = &self.blocks[at].1;
            let found = match who.async_copy() {
                Some(number) => known.knows_copy(number),
                None => known.floor >= clock || known.thread(who.index) >= clock,
            };
            if found {
                return true;
            }
        }
        grids.finished(who.block).is_some_and(|finished| self.place(finished.chain) >= finished.place)
    }

    /// Whether all threads of a block are known up to `clock`.
    pub(super) fn floor(&self, block: BlockId) -> u32 {
        self.blocks.binary_search_by_key(&block, |entry| entry.0).map_or(0, |at| self.blocks[at].1.floor)
    }

    /// The last known place of a chain; places count from 1.
    pub(super) fn place(&self, chain: u32) -> u32 {
        self.finished.binary_search_by_key(&chain, |entry| entry.0).map_or(0, |at| self.finished[at].1)
    }

    /// The chains of which something is known, with the last known place.
    pub(super) fn chains(&self) -> impl Iterator<Item = Finished> {
        self.finished.iter().map(|&(chain, place)| Finished { chain, place })
    }

    /// Adds the operations of `who` up to `clock`; of an asynchronous copy, the copy.
    pub(super) fn insert(&mut self, who: Thread, clock: u32) {
        let known = self.known_mut(who.block);
        match who.async_copy() {
            Some(number) => known.copies = union(&known.copies, &[(number, number)]),
            None if known.floor >= clock => {}
            None => match known.threads.binary_search_by_key(&who.index, |entry| entry.0) {
                Ok(at) => known.threads[at].1 = known.threads[at].1.max(clock),
                Err(at) => known.threads.insert(at, (who.index, clock)),
            },
        }
    }

    /// Adds the operations of all threads of `block` up to `clock`.
    pub(super) fn raise_floor(&mut self, block: BlockId, clock: u32) {
        let known = self.known_mut(block);
        known.floor = known.floor.max(clock);
        known.forget_below_floor();
    }

    /// Adds a finished grid, and with it what precedes it in its chain.
    pub(super) fn insert_finished(&mut self, finished: Finished, grids: &impl Grids) {
        self.finished = merge(&self.finished, &[(finished.chain, finished.place)], |a, b| *a.max(b));
        self.forget_finished(grids);
    }

    /// Whether `other` adds nothing.
    pub(super) fn includes(&self, other: &Self, grids: &impl Grids) -> bool {
        other.finished.iter().all(|&(chain, place)| self.place(chain) >= place)
            && other.blocks.iter().all(|(block, theirs)| {
                match self.blocks.binary_search_by_key(block, |entry| entry.0) {
                    Ok(at)
                        if Arc::ptr_eq(&self.blocks[at].1, theirs) || self.blocks[at].1.includes(theirs) =>
                    {
                        true
                    }
                    _ => grids.finished(*block).is_some_and(|it| self.place(it.chain) >= it.place),
                }
            })
    }

    /// Adds everything in `other`.
    pub(super) fn join(&mut self, other: &Self, grids: &impl Grids) {
        if !other.finished.iter().all(|&(chain, place)| self.place(chain) >= place) {
            self.finished = merge(&self.finished, &other.finished, |a, b| *a.max(b));
            self.forget_finished(grids);
        }
        // A few blocks are put in their places; many are merged in one go.
        if other.blocks.len() * 8 < self.blocks.len() {
            for (block, theirs) in &other.blocks {
                match self.blocks.binary_search_by_key(block, |entry| entry.0) {
                    Ok(at) => self.blocks[at].1 = Known::either(&self.blocks[at].1, theirs),
                    Err(_) if grids.finished(*block).is_some_and(|it| self.place(it.chain) >= it.place) => {}
                    Err(at) => self.blocks.insert(at, (*block, theirs.clone())),
                }
            }
        } else {
            self.blocks = merge(&self.blocks, &other.blocks, Known::either);
            self.forget_finished(grids);
        }
    }

    /// Drops blocks that are known to be finished as a whole.
    fn forget_finished(&mut self, grids: &impl Grids) {
        let Self { finished, blocks } = self;
        blocks.retain(|entry| {
            let place =
                |chain| finished.binary_search_by_key(&chain, |entry| entry.0).map_or(0, |at| finished[at].1);
            grids.finished(entry.0).is_none_or(|it| place(it.chain) < it.place)
        });
    }

    fn known_mut(&mut self, block: BlockId) -> &mut Known {
        let at = match self.blocks.binary_search_by_key(&block, |entry| entry.0) {
            Ok(at) => at,
            Err(at) => {
                self.blocks.insert(at, (block, Arc::default()));
                at
            }
        };
        Arc::make_mut(&mut self.blocks[at].1)
    }
}

impl Known {
    fn thread(&self, index: u32) -> u32 {
        self.threads.binary_search_by_key(&index, |entry| entry.0).map_or(0, |at| self.threads[at].1)
    }

    fn knows_copy(&self, number: u32) -> bool {
        let at = self.copies.partition_point(|range| range.0 <= number);
        at > 0 && self.copies[at - 1].1 >= number
    }

    fn includes(&self, other: &Self) -> bool {
        self.floor >= other.floor
            && other.threads.iter().all(|&(index, clock)| self.floor >= clock || self.thread(index) >= clock)
            && other.copies.iter().all(|&(first, last)| {
                let at = self.copies.partition_point(|range| range.0 <= first);
                at > 0 && self.copies[at - 1].1 >= last
            })
    }

    /// Both together, shared with one of them if it has it all.
    fn either(a: &Arc<Self>, b: &Arc<Self>) -> Arc<Self> {
        if Arc::ptr_eq(a, b) || a.includes(b) {
            a.clone()
        } else if b.includes(a) {
            b.clone()
        } else {
            Arc::new(a.union(b))
        }
    }

    fn union(&self, other: &Self) -> Self {
        let threads = merge(&self.threads, &other.threads, |a, b| *a.max(b));
        let copies = union(&self.copies, &other.copies);
        let mut known = Self { floor: self.floor.max(other.floor), threads, copies };
        known.forget_below_floor();
        known
    }

    fn forget_below_floor(&mut self) {
        self.threads.retain(|entry| entry.1 > self.floor);
    }
}

/// Two sorted maps in one; `both` joins the values of a common key.
fn merge<K: Ord + Copy, V: Clone>(a: &[(K, V)], b: &[(K, V)], both: impl Fn(&V, &V) -> V) -> Vec<(K, V)> {
    let mut out = Vec::with_capacity(a.len().max(b.len()));
    let (mut a, mut b) = (a, b);
    while let ([first_a, rest_a @ ..], [first_b, rest_b @ ..]) = (a, b) {
        match first_a.0.cmp(&first_b.0) {
            Ordering::Less => {
                out.push(first_a.clone());
                a = rest_a;
            }
            Ordering::Greater => {
                out.push(first_b.clone());
                b = rest_b;
            }
            Ordering::Equal => {
                out.push((first_a.0, both(&first_a.1, &first_b.1)));
                (a, b) = (rest_a, rest_b);
            }
        }
    }
    out.extend_from_slice(a);
    out.extend_from_slice(b);
    out
}

/// Two sorted sets of inclusive ranges in one; ranges that touch become one.
fn union(a: &[(u32, u32)], b: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let mut all: Vec<_> = a.iter().chain(b).copied().collect();
    all.sort_unstable();
    let mut out: Vec<(u32, u32)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match out.last_mut() {
            Some(range) if first <= range.1.saturating_add(1) => range.1 = range.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// No grid has finished.
    struct Running;

    impl Grids for Running {
        fn finished(&self, _: BlockId) -> Option<Finished> {
            None
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Thread(u32, u32, u32),
        Copy(u32, u32),
        Floor(u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u32..20, 0u32..5, 1u32..6).prop_map(|(b, i, c)| Step::Thread(b, i, c)),
            (0u32..20, 0u32..8).prop_map(|(b, n)| Step::Copy(b, n)),
            (0u32..20, 1u32..4).prop_map(|(b, c)| Step::Floor(b, c)),
        ]
    }

    /// The clock, and the same set as single operations.
    fn build(steps: &[Step]) -> (VectorClock, BTreeSet<(Thread, u32)>) {
        let (mut clock, mut set) = (VectorClock::default(), BTreeSet::new());
        for step in steps {
            match *step {
                Step::Thread(block, index, at) => {
                    let who = Thread::new(BlockId(block), index);
                    clock.insert(who, at);
                    set.extend((1..=at).map(|at| (who, at)));
                }
                Step::Copy(block, number) => {
                    let who = Thread::copy(BlockId(block), number);
                    clock.insert(who, 0);
                    set.insert((who, 0));
                }
                Step::Floor(block, at) => {
                    clock.raise_floor(BlockId(block), at);
                    set.extend(
                        (0..5).flat_map(|i| (1..=at).map(move |at| (Thread::new(BlockId(block), i), at))),
                    );
                }
            }
        }
        (clock, set)
    }

    fn universe() -> impl Iterator<Item = (Thread, u32)> {
        (0..20).flat_map(|block| {
            let threads =
                (0..5).flat_map(move |i| (1..6).map(move |at| (Thread::new(BlockId(block), i), at)));
            threads.chain((0..8).map(move |n| (Thread::copy(BlockId(block), n), 0)))
        })
    }

    proptest! {
        #[test]
        fn clocks_are_sets(a in prop::collection::vec(step(), 0..60), b in prop::collection::vec(step(), 0..20)) {
            let ((mut clock, mut set), (other, other_set)) = (build(&a), build(&b));
            prop_assert_eq!(clock.includes(&other, &Running), set.is_superset(&other_set));
            clock.join(&other, &Running);
            set.extend(other_set);
            for (who, at) in universe() {
                prop_assert_eq!(clock.contains(who, at, &Running), set.contains(&(who, at)));
            }
            prop_assert!(clock.includes(&other, &Running));
        }
    }

    #[test]
    fn a_finished_grid_takes_its_blocks_with_it() {
        struct Odd;
        impl Grids for Odd {
            fn finished(&self, block: BlockId) -> Option<Finished> {
                (block.0 % 2 == 1).then_some(Finished { chain: 4, place: 7 })
            }
        }
        let mut clock = VectorClock::default();
        clock.insert(Thread::new(BlockId(1), 0), 3);
        clock.insert(Thread::new(BlockId(2), 0), 3);
        clock.insert_finished(Finished { chain: 4, place: 7 }, &Odd);
        assert_eq!(clock.blocks.len(), 1);
        assert!(clock.contains(Thread::new(BlockId(3), 9), 99, &Odd));
        assert!(!clock.contains(Thread::new(BlockId(4), 9), 1, &Odd));
    }
}
