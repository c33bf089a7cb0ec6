//! What orders threads: clocks, barriers, fences, and stores that loads have observed.

use std::sync::Arc;

use super::{Causality, Moment, Release, join};
use crate::memory::clock::VectorClock;
use crate::memory::{Access, BlockId, Clock, DeviceId, Order, Scope, Thread};

/// Whom an `sc` fence speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Domain {
    Everybody,
    Device(Option<DeviceId>),
    Cluster(BlockId),
    Block(BlockId),
}

impl Causality {
    /// Adds everything up to now to `clock`.
    pub(in crate::memory) fn release(&mut self, thread: Thread, clock: &mut Clock) {
        let known = self.advance(thread);
        join(&mut clock.0, &known, &self.states);
    }

    pub(in crate::memory) fn join(&self, clock: &mut Clock, more: &Clock) {
        join(&mut clock.0, &more.0, &self.states);
    }

    pub(in crate::memory) fn acquire(&mut self, thread: Thread, clock: &Clock) {
        self.learn(thread, &clock.0);
    }

    /// What `clock` has precedes the thread's grid as much as what that began after: stream order with programmatic
    /// dependent launch.
    pub(in crate::memory) fn begin_after(&mut self, thread: Thread, clock: &Clock) {
        self.learn(thread, &clock.0);
        self.fence(thread, Order::Release, Scope::Sys);
        let Some(mut began) = self.thread_mut(thread).map(|state| std::mem::take(&mut state.began)) else {
            return;
        };
        join(&mut began, &clock.0, &self.states);
        if let Some(state) = self.thread_mut(thread) {
            state.began = began;
        }
    }

    pub(in crate::memory) fn barrier(&mut self, block: BlockId, indices: impl Iterator<Item = u32> + Clone) {
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

    pub(in crate::memory) fn fence(&mut self, thread: Thread, order: Order, scope: Scope) {
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

    /// Adds to `clock` what the thread has fenced for threads of `scope`: what a relaxed signal carries.
    pub(in crate::memory) fn release_fenced(&mut self, thread: Thread, scope: Scope, clock: &mut Clock) {
        let Some(state) = self.thread_mut(thread) else { return };
        let fences: Vec<_> = state.fences.iter().filter(|it| it.scope >= scope).cloned().collect();
        for fence in fences {
            join(&mut clock.0, &fence.known, &self.states);
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
    pub(in crate::memory) fn releases(&mut self, access: &Access) -> Vec<Release> {
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
    pub(in crate::memory) fn merge_release(&self, releases: &mut Vec<Release>, release: &Release) {
        match releases.binary_search_by_key(&(release.block, release.scope), |it| (it.block, it.scope)) {
            Ok(at) => join(&mut releases[at].known, &release.known, &self.states),
            Err(at) => releases.insert(at, release.clone()),
        }
    }

    /// Whether an atomic that observes `release` takes it over: what it releases itself contains it.
    pub(in crate::memory) fn takes_over(&self, access: &Access, release: &Release) -> bool {
        let both = access.order.acquires() && access.order.releases();
        both && access.scope >= release.scope && self.synchronises(release, access.scope, access.thread.block)
    }

    /// A load has observed a store that is morally strong with it, and with it what the store carries.
    pub(in crate::memory) fn observe(&mut self, access: &Access, releases: &[Release]) {
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

    pub(in crate::memory) fn moment(&self, thread: Thread) -> Moment {
        let state = self.thread(thread);
        state.map_or_else(Moment::default, |it| Moment { clock: it.clock, n_learned: it.n_learned })
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
