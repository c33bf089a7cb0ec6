//! Causality order: who knows of which operations, by fences, barriers, streams and observed stores.
//!
//! Every thread has a clock that advances when it releases, and the set of operations that precede its next one.
//! A *release* is that set at some point, with the scope and the block that it was made with: stores carry it,
//! loads that observe them collect it, and an acquire takes from it what both scopes allow.

use std::collections::HashMap;
use std::sync::Arc;

use super::clock::{Finished, Grids, VectorClock};
use super::view::View;
use super::{Access, BlockId, Clock, DeviceId, GridId, Order, Scope, Thread};

/// The first half of a synchronisation.
#[derive(Debug, Clone)]
pub(super) struct Release {
    known: Arc<VectorClock>,
    scope: Scope,
    block: BlockId,
}

#[derive(Debug)]
struct ThreadState {
    /// Of its next operations; from 1.
    clock: u32,
    /// What precedes them, its own operations apart.
    known: Arc<VectorClock>,
    /// How often it has learned something; barriers count in `clock`.
    n_learned: u32,
    /// Its last release fence, and earlier ones of wider scope after it.
    fences: Vec<Release>,
    /// Observed by relaxed loads, for the next acquire fence.
    observed: Vec<Release>,
}

impl ThreadState {
    fn new(known: Arc<VectorClock>) -> Self {
        Self { clock: 1, known, n_learned: 0, fences: Vec::new(), observed: Vec::new() }
    }
}

/// A time in a thread's life between two at which it released or learned something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    clock: u32,
    n_learned: u32,
}

#[derive(Debug)]
struct BlockState {
    grid: GridId,
    /// The first block of its cluster.
    cluster: BlockId,
    /// By index; empty once the block has ended.
    threads: Vec<ThreadState>,
    /// Asynchronous copies under way: what precedes them.
    copies: Vec<(u32, Arc<VectorClock>)>,
    n_copies: u32,
}

#[derive(Debug)]
struct GridState {
    device: Option<DeviceId>,
    /// What precedes the grid, and from ended blocks what precedes their end.
    gathered: Arc<VectorClock>,
    start: Arc<VectorClock>,
    finished: Option<Finished>,
}

/// Whom an `sc` fence speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Domain {
    Everybody,
    Device(Option<DeviceId>),
    Cluster(BlockId),
    Block(BlockId),
}

/// All grids and blocks since the start.
#[derive(Debug, Default)]
pub(super) struct States {
    grids: Vec<GridState>,
    blocks: Vec<BlockState>,
}

impl Grids for States {
    #[inline]
    fn finished(&self, block: BlockId) -> Option<Finished> {
        self.grids[self.blocks[block.0 as usize].grid.0 as usize].finished
    }
}

/// What precedes the next operation of every thread.
#[derive(Debug)]
pub(super) struct Causality {
    states: States,
    /// The last place given in each chain of finished grids.
    chains: Vec<u32>,
    /// What the `sc` fences of each scope, by threads of each domain, have released so far.
    sc_fences: HashMap<(Scope, Domain), Arc<VectorClock>>,
}

/// Grids and blocks.
impl Causality {
    /// The host alone, as block 0 of grid 0.
    pub(super) fn new() -> Self {
        let known = Arc::<VectorClock>::default();
        let grid = GridState { device: None, gathered: known.clone(), start: known.clone(), finished: None };
        let threads = vec![ThreadState::new(known)];
        let (grid_id, cluster) = (GridId(0), BlockId(0));
        let block = BlockState { grid: grid_id, cluster, threads, copies: Vec::new(), n_copies: 0 };
        let states = States { grids: vec![grid], blocks: vec![block] };
        Self { states, chains: Vec::new(), sc_fences: HashMap::new() }
    }

    pub(super) fn begin_grid(&mut self, device: DeviceId, after: &Clock) {
        let (start, gathered) = (after.0.clone(), after.0.clone());
        self.states.grids.push(GridState { device: Some(device), gathered, start, finished: None });
    }

    pub(super) fn begin_block(&mut self, grid: GridId, n_threads: u32) {
        let start = &self.states.grids[grid.0 as usize].start;
        let cluster = BlockId(self.states.blocks.len() as u32);
        let thread = || ThreadState {
            // What precedes a grid precedes whatever a later store of it tells others of.
            fences: vec![Release { known: start.clone(), scope: Scope::Sys, block: cluster }],
            ..ThreadState::new(start.clone())
        };
        let threads = (0..n_threads).map(|_| thread()).collect();
        self.states.blocks.push(BlockState { grid, cluster, threads, copies: Vec::new(), n_copies: 0 });
    }

    pub(super) fn join_cluster(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            self.states.blocks[block.0 as usize].cluster = blocks[0];
        }
    }

    /// What the threads have learned from others becomes the grid's.
    pub(super) fn end_block(&mut self, id: BlockId) {
        let block = &mut self.states.blocks[id.0 as usize];
        // Its copies stay: a store to another block may still be on its way.
        let threads = std::mem::take(&mut block.threads);
        let grid = block.grid.0 as usize;
        let mut gathered = std::mem::take(&mut self.states.grids[grid].gathered);
        let mut last: Option<Arc<VectorClock>> = None;
        for thread in threads {
            // The end of a grid is a fence: what its threads have observed precedes what follows it.
            for release in thread.observed.iter().filter(|it| self.synchronises(it, Scope::Sys, id)) {
                join(&mut gathered, &release.known, &self.states);
            }
            if !last.is_some_and(|last| Arc::ptr_eq(&last, &thread.known)) {
                join(&mut gathered, &thread.known, &self.states);
            }
            last = Some(thread.known);
        }
        self.states.grids[grid].gathered = gathered;
    }

    /// Gives the grid its place behind a grid that it knows to be finished and that nobody followed yet, or in a
    /// new chain.
    pub(super) fn end_grid(&mut self, id: GridId) -> Clock {
        let mut known = self.states.grids[id.0 as usize].gathered.clone();
        let behind = known.chains().find(|last| self.chains[last.chain as usize] == last.place);
        let chain = behind.map_or(self.chains.len() as u32, |last| last.chain);
        if behind.is_none() {
            self.chains.push(0);
        }
        self.chains[chain as usize] += 1;
        let finished = Finished { chain, place: self.chains[chain as usize] };
        let grid = &mut self.states.grids[id.0 as usize];
        (grid.finished, grid.gathered, grid.start) = (Some(finished), Arc::default(), Arc::default());
        Arc::make_mut(&mut known).insert_finished(finished, &self.states);
        Clock(known)
    }
}

/// Synchronisation.
impl Causality {
    /// Adds everything up to now to `clock`.
    pub(super) fn release(&mut self, thread: Thread, clock: &mut Clock) {
        let known = self.advance(thread);
        join(&mut clock.0, &known, &self.states);
    }

    pub(super) fn join(&self, clock: &mut Clock, more: &Clock) {
        join(&mut clock.0, &more.0, &self.states);
    }

    pub(super) fn acquire(&mut self, thread: Thread, clock: &Clock) {
        self.learn(thread, &clock.0);
    }

    pub(super) fn barrier(&mut self, block: BlockId, indices: impl Iterator<Item = u32> + Clone) {
        let threads = &self.states.blocks[block.0 as usize].threads;
        let (mut known, mut last, mut count) = (None::<Arc<VectorClock>>, None::<&Arc<VectorClock>>, 0);
        let mut clock = 0;
        for index in indices.clone() {
            let thread = &threads[index as usize];
            if !last.is_some_and(|last| Arc::ptr_eq(last, &thread.known)) {
                match &mut known {
                    Some(known) => join(known, &thread.known, &self.states),
                    None => known = Some(thread.known.clone()),
                }
            }
            last = Some(&thread.known);
            clock = clock.max(thread.clock);
            count += 1;
        }
        let Some(mut known) = known else { return };
        let all = Arc::make_mut(&mut known);
        if count == threads.len() {
            all.raise_floor(block, clock);
        } else {
            for index in indices.clone() {
                all.insert(Thread::new(block, index), threads[index as usize].clock);
            }
        }
        let threads = &mut self.states.blocks[block.0 as usize].threads;
        for index in indices {
            let thread = &mut threads[index as usize];
            (thread.clock, thread.known) = (clock + 1, known.clone());
        }
    }

    pub(super) fn fence(&mut self, thread: Thread, order: Order, scope: Scope) {
        let Some(state) = self.thread_mut(thread) else { return };
        if order.acquires() {
            let observed = std::mem::take(&mut state.observed);
            let (now, later) =
                observed.into_iter().partition(|it| self.synchronises(it, scope, thread.block));
            let now: Vec<Release> = now;
            for release in now {
                self.learn(thread, &release.known);
            }
            if let Some(state) = self.thread_mut(thread) {
                state.observed = later;
            }
        }
        if order == Order::Sc {
            self.sc_fence(thread, scope);
        }
        if order.releases() {
            let known = self.advance(thread);
            if let Some(state) = self.thread_mut(thread) {
                state.fences.retain(|fence| fence.scope > scope);
                state.fences.insert(0, Release { known, scope, block: thread.block });
            }
        }
    }

    /// Joins the order of `sc` fences: after all that are morally strong with this one.
    fn sc_fence(&mut self, thread: Thread, scope: Scope) {
        let block = thread.block;
        let device = Domain::Device(self.device(block));
        let domains = [Domain::Everybody, device, Domain::Cluster(self.cluster(block)), Domain::Block(block)];
        for theirs in [Scope::Cta, Scope::Cluster, Scope::Gpu, Scope::Sys] {
            // Both scopes have to include the other thread.
            if let Some(earlier) = self.sc_fences.get(&(theirs, domains[reach(theirs.min(scope))])).cloned() {
                self.learn(thread, &earlier);
            }
        }
        let known = self.advance(thread);
        for domain in domains {
            join(self.sc_fences.entry((scope, domain)).or_default(), &known, &self.states);
        }
    }

    /// What a strong store carries, its own release included.
    pub(super) fn releases(&mut self, access: &Access) -> Vec<Release> {
        let Some(state) = self.thread_mut(access.thread) else { return Vec::new() };
        let mut releases = state.fences.clone();
        if access.order.releases() {
            let known = self.advance(access.thread);
            let release = Release { known, scope: access.scope, block: access.thread.block };
            self.merge_release(&mut releases, &release);
        }
        releases
    }

    /// Adds a release to others, which are sorted by block and scope.
    pub(super) fn merge_release(&self, releases: &mut Vec<Release>, release: &Release) {
        match releases.binary_search_by_key(&(release.block, release.scope), |it| (it.block, it.scope)) {
            Ok(at) => join(&mut releases[at].known, &release.known, &self.states),
            Err(at) => releases.insert(at, release.clone()),
        }
    }

    /// Whether an atomic that observes `release` takes it over: what it releases itself contains it.
    pub(super) fn takes_over(&self, access: &Access, release: &Release) -> bool {
        let both = access.order.acquires() && access.order.releases();
        both && access.scope >= release.scope && self.synchronises(release, access.scope, access.thread.block)
    }

    /// A load has observed a store that is morally strong with it, and with it what the store carries.
    pub(super) fn observe(&mut self, access: &Access, releases: &[Release]) {
        for release in releases {
            if access.order.acquires() && self.synchronises(release, access.scope, access.thread.block) {
                self.learn(access.thread, &release.known);
            } else if let Some(state) = self.thread_mut(access.thread) {
                let mut observed = std::mem::take(&mut state.observed);
                self.merge_release(&mut observed, release);
                if let Some(state) = self.thread_mut(access.thread) {
                    state.observed = observed;
                }
            }
        }
    }

    pub(super) fn moment(&self, thread: Thread) -> Moment {
        let threads = &self.states.blocks[thread.block.0 as usize].threads;
        threads
            .get(thread.index as usize)
            .map_or_else(Moment::default, |it| Moment { clock: it.clock, n_learned: it.n_learned })
    }

    /// An asynchronous copy by `thread`, which is not waited for by anybody yet.
    pub(super) fn begin_async(&mut self, thread: Thread) -> Thread {
        let known = self.advance(thread);
        let block = &mut self.states.blocks[thread.block.0 as usize];
        let copy = Thread::copy(thread.block, block.n_copies);
        block.copies.push((block.n_copies, known));
        block.n_copies += 1;
        copy
    }

    /// Adds the copy, and what precedes it, to `clock`.
    pub(super) fn end_async(&mut self, copy: Thread, clock: &mut Clock) {
        let Some(number) = copy.async_copy() else { return };
        let copies = &mut self.states.blocks[copy.block.0 as usize].copies;
        if let Some(at) = copies.iter().position(|it| it.0 == number) {
            let mut known = copies.remove(at).1;
            Arc::make_mut(&mut known).insert(copy, 0);
            join(&mut clock.0, &known, &self.states);
        }
    }
}

/// Questions.
impl Causality {
    /// What `thread` knows, to ask it more than once.
    #[inline]
    pub(super) fn view(&self, thread: Thread) -> View<'_> {
        let block = &self.states.blocks[thread.block.0 as usize];
        let (known, clock) = match thread.async_copy() {
            Some(number) => (block.copies.iter().find(|it| it.0 == number).map(|it| &it.1), 0),
            None => (block.threads.get(thread.index as usize).map(|it| &it.known), self.clock(thread)),
        };
        View::new(&self.states, thread, clock, known.map(Arc::as_ref))
    }

    #[inline]
    fn clock(&self, thread: Thread) -> u32 {
        self.states.blocks[thread.block.0 as usize]
            .threads
            .get(thread.index as usize)
            .map_or(0, |it| it.clock)
    }

    /// Whether an operation of `scope` in `from` speaks to threads of `to`.
    #[inline]
    pub(super) fn includes(&self, scope: Scope, from: BlockId, to: BlockId) -> bool {
        match scope {
            Scope::Sys => true,
            Scope::Gpu => self.device(from) == self.device(to),
            Scope::Cluster => self.cluster(from) == self.cluster(to),
            Scope::Cta => from == to,
        }
    }

    fn cluster(&self, block: BlockId) -> BlockId {
        self.states.blocks[block.0 as usize].cluster
    }

    fn device(&self, block: BlockId) -> Option<DeviceId> {
        self.states.grids[self.states.blocks[block.0 as usize].grid.0 as usize].device
    }

    /// Whether an acquire of `scope` in `block` pairs with `release`: each has to speak to the other.
    fn synchronises(&self, release: &Release, scope: Scope, block: BlockId) -> bool {
        self.includes(release.scope, release.block, block) && self.includes(scope, block, release.block)
    }

    fn thread_mut(&mut self, thread: Thread) -> Option<&mut ThreadState> {
        self.states.blocks[thread.block.0 as usize].threads.get_mut(thread.index as usize)
    }

    /// Everything up to now; what `thread` does next is later.
    fn advance(&mut self, thread: Thread) -> Arc<VectorClock> {
        let Some(state) = self.thread_mut(thread) else { return Arc::default() };
        let mut known = state.known.clone();
        Arc::make_mut(&mut known).insert(thread, state.clock);
        state.clock += 1;
        known
    }

    fn learn(&mut self, thread: Thread, more: &Arc<VectorClock>) {
        let Some(state) = self.thread_mut(thread) else { return };
        let mut known = std::mem::take(&mut state.known);
        join(&mut known, more, &self.states);
        if let Some(state) = self.thread_mut(thread) {
            state.known = known;
            state.n_learned += 1;
        }
    }
}

/// Adds `more` to `known`, which stays shared if that adds nothing.
fn join(known: &mut Arc<VectorClock>, more: &Arc<VectorClock>, states: &States) {
    if Arc::ptr_eq(known, more) || known.includes(more, states) {
        return;
    }
    if more.includes(known, states) {
        *known = more.clone();
    } else {
        Arc::make_mut(known).join(more, states);
    }
}

/// The domain that a scope speaks to, as an index into those of a thread.
fn reach(scope: Scope) -> usize {
    match scope {
        Scope::Sys => 0,
        Scope::Gpu => 1,
        Scope::Cluster => 2,
        Scope::Cta => 3,
    }
}
