//! Causality order: who knows of which operations, by fences, barriers, streams and observed stores.
//!
//! Every thread has a clock that advances when it releases, and the set of operations that precede its next one.
//! A *release* is that set at some point, with the scope and the block that it was made with: stores carry it,
//! loads that observe them collect it, and an acquire takes from it what both scopes allow.

mod agents;
mod order;
mod proxies;
mod questions;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use order::Domain;
use proxies::ProxyFence;

use super::clock::{Finished, Grids, VectorClock};
use super::{BlockId, Clock, DeviceId, GridId, Scope, Thread};

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
    /// What precedes its grid.
    began: Arc<VectorClock>,
    /// Agents of its `mbarrier.init`.
    inits: Vec<Thread>,
}

impl ThreadState {
    fn new(known: Arc<VectorClock>) -> Self {
        Self {
            clock: 1,
            known,
            n_learned: 0,
            fences: Vec::new(),
            observed: Vec::new(),
            began: Arc::default(),
            inits: Vec::new(),
        }
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
    /// Asynchronous copies under way.
    copies: Vec<Copy>,
    n_copies: u32,
    /// By thread, in time's order.
    proxy_fences: BTreeMap<u32, Vec<ProxyFence>>,
}

/// An asynchronous copy under way.
#[derive(Debug)]
struct Copy {
    number: u32,
    issuer: Thread,
    /// What precedes it.
    known: Arc<VectorClock>,
}

impl BlockState {
    fn new(grid: GridId, cluster: BlockId, threads: Vec<ThreadState>) -> Self {
        Self { grid, cluster, threads, copies: Vec::new(), n_copies: 0, proxy_fences: BTreeMap::new() }
    }
}

#[derive(Debug)]
struct GridState {
    device: Option<DeviceId>,
    /// What precedes the grid, and from ended blocks what precedes their end.
    gathered: Arc<VectorClock>,
    start: Arc<VectorClock>,
    finished: Option<Finished>,
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
        let block = BlockState::new(grid_id, cluster, threads);
        let states = States { grids: vec![grid], blocks: vec![block] };
        Self { states, chains: Vec::new(), sc_fences: HashMap::new() }
    }

    pub(super) fn begin_grid(&mut self, device: Option<DeviceId>, after: &Clock) {
        let (start, gathered) = (after.0.clone(), after.0.clone());
        self.states.grids.push(GridState { device, gathered, start, finished: None });
    }

    pub(super) fn begin_block(&mut self, grid: GridId, n_threads: u32) {
        let start = &self.states.grids[grid.0 as usize].start;
        let cluster = BlockId(self.states.blocks.len() as u32);
        let thread = || ThreadState {
            // What precedes a grid precedes whatever a later store of it tells others of.
            fences: vec![Release { known: start.clone(), scope: Scope::Sys, block: cluster }],
            began: start.clone(),
            ..ThreadState::new(start.clone())
        };
        let threads = (0..n_threads).map(|_| thread()).collect();
        self.states.blocks.push(BlockState::new(grid, cluster, threads));
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
        block.proxy_fences = BTreeMap::new();
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

/// The state of threads.
impl Causality {
    #[inline]
    fn thread(&self, thread: Thread) -> Option<&ThreadState> {
        self.states.blocks[thread.block.0 as usize].threads.get(thread.state_index())
    }

    fn thread_mut(&mut self, thread: Thread) -> Option<&mut ThreadState> {
        self.states.blocks[thread.block.0 as usize].threads.get_mut(thread.state_index())
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
