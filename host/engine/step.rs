//! The decode step: one token for each of some sequences, captured once per number of sequences and replayed.
//!
//! The device keeps tokens, positions and lengths by itself: a step leaves the drawn tokens where the next one
//! reads them and advances the positions. The host only lists new pages and writes what differs from what it
//! knows the device to have.

use std::sync::Arc;

use super::budget::LANES;
use super::forward::{Attention, Pass};
use super::rank::Rank;
use crate::comm::Communicator;
use crate::driver::Graph;
use crate::generate::Sampling;
use crate::kernels::{Addr, AdvancePositions, Argmax, Rows, Sample};
use crate::runner::profile::KernelClass;
use crate::runner::{RunError, SyncCounts};

/// What becomes of a step's logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Choice {
    /// They stay for the host to read.
    Logits,
    /// The likeliest token is fed next.
    Greedy,
    /// A drawn token is fed next.
    Sample,
}

/// A step as a graph, and the collectives that each replay runs.
pub(super) struct CapturedStep {
    pub(super) graph: Graph,
    syncs: SyncCounts,
}

impl Rank {
    /// A step whose tokens are chosen on the device; returns them. `fed` pairs sequences with tokens.
    pub(super) fn sampled_step(
        &mut self,
        fed: &[(usize, u32)],
        choice: Choice,
        samplings: &[Sampling],
    ) -> Result<Vec<u32>, RunError> {
        self.step(fed, choice, samplings)?;
        self.stream.synchronize()?;
        self.comm.check()?;
        let next = self.lanes.next[..fed.len()].to_vec();
        self.lanes.tokens.note(next.iter().copied());
        Ok(next)
    }

    /// Whether a step of `n` sequences needs no memory and no graph that is not there yet.
    pub(super) fn is_step_ready(&self, n: usize, choice: Choice) -> bool {
        let ordered = choice == Choice::Logits || self.ordered.is_ready(&self.layout, n);
        ordered && (!self.options.graphs || self.graphs.contains_key(&(n, choice)))
    }

    /// Takes the memory and the graph that a step needs.
    pub(super) fn prepare_step(&mut self, n: usize, choice: Choice) -> Result<(), RunError> {
        if choice != Choice::Logits {
            self.ordered.prepare(&self.layout, n, &self.stream)?;
        }
        if self.options.graphs && !self.graphs.contains_key(&(n, choice)) {
            let captured = self.capture(n, choice)?;
            self.graphs.insert((n, choice), captured);
        }
        Ok(())
    }

    /// Enqueues one step, which is ready. `samplings` has one entry per sequence for [`Choice::Sample`].
    pub(super) fn step(
        &mut self,
        fed: &[(usize, u32)],
        choice: Choice,
        samplings: &[Sampling],
    ) -> Result<(), RunError> {
        for &(sequence, _) in fed {
            self.pages.grow(sequence, 1)?;
        }
        self.set_lanes(fed)?;
        if choice == Choice::Sample {
            self.set_samplings(samplings)?;
        }
        let n = fed.len();
        if let Some(CapturedStep { graph, syncs }) = self.graphs.get(&(n, choice)) {
            // SAFETY: what the graph refers to is this rank's and stays until `set_plan` or the end, which drop
            // the graphs; only this stream uses it.
            unsafe { graph.launch(&self.stream)? };
            self.syncs.block_all_reduces += syncs.block_all_reduces;
            self.syncs.sync_points += syncs.sync_points;
        } else {
            self.enqueue_step(n, choice)?;
        }
        let position = |&(sequence, _): &(usize, u32)| self.pages.len(sequence) as u32;
        self.lanes.positions.note(fed.iter().map(position));
        self.lanes.kv_lens.note(fed.iter().map(|lane| position(lane) + 1));
        self.syncs.passes += 1;
        Ok(())
    }

    /// Tells the device which sequences and tokens the lanes have, where it does not know already.
    fn set_lanes(&mut self, fed: &[(usize, u32)]) -> Result<(), RunError> {
        let (lanes, pages, stream) = (&mut self.lanes, &self.pages, &*self.stream);
        let column = |value: &dyn Fn(&(usize, u32)) -> u32| fed.iter().map(value).collect::<Vec<u32>>();
        lanes.tokens.set(0, &column(&|&(_, token)| token), stream)?;
        lanes.positions.set(0, &column(&|&(sequence, _)| pages.len(sequence) as u32 - 1), stream)?;
        lanes.kv_lens.set(0, &column(&|&(sequence, _)| pages.len(sequence) as u32), stream)?;
        for (lane, &(sequence, _)) in fed.iter().enumerate() {
            lanes.block_table.set(lane * self.cache.max_pages, pages.of(sequence), stream)?;
        }
        Ok(())
    }

    fn set_samplings(&mut self, samplings: &[Sampling]) -> Result<(), RunError> {
        let (lanes, stream) = (&mut self.lanes, &*self.stream);
        let column = |value: &dyn Fn(&Sampling) -> f32| samplings.iter().map(value).collect::<Vec<f32>>();
        lanes.temperatures.set(0, &column(&|s| s.temperature), stream)?;
        lanes.top_ps.set(0, &column(&|s| s.top_p), stream)?;
        let top_k = |s: &Sampling| u32::try_from(s.top_k).unwrap_or(0);
        lanes.top_ks.set(0, &samplings.iter().map(top_k).collect::<Vec<_>>(), stream)?;
        lanes.seeds.set(0, &samplings.iter().map(|s| s.seed).collect::<Vec<_>>(), stream)?;
        Ok(())
    }

    pub(super) fn capture(&mut self, n: usize, choice: Choice) -> Result<CapturedStep, RunError> {
        let stream = Arc::clone(&self.stream);
        let before = std::mem::take(&mut self.syncs);
        let graph = stream.capture(|| self.enqueue_step(n, choice));
        let syncs = std::mem::replace(&mut self.syncs, before);
        Ok(CapturedStep { graph: graph?, syncs })
    }

    /// The step's kernels, for `n` ≤ LANES sequences.
    fn enqueue_step(&mut self, n: usize, choice: Choice) -> Result<(), RunError> {
        assert!(n <= LANES, "{n} sequences, more than {LANES} lanes");
        let lanes = &self.lanes;
        let pass = Pass {
            n,
            ids: lanes.tokens.addr(),
            positions: lanes.positions.addr(),
            sequences: lanes.numbers.addr(),
            block_table: lanes.block_table.addr(),
            kv_lens: lanes.kv_lens.addr(),
            attention: Attention::Decode,
        };
        let input = self.pass(&pass, None)?;
        self.head(input, n)?;
        self.choose(n, choice)?;
        let (positions, kv_lens) = (self.lanes.positions.addr(), self.lanes.kv_lens.addr());
        self.launch(&AdvancePositions { positions, kv_lens, n_sequences: n as u32 }.launch())?;
        if choice != Choice::Logits && self.enqueues(KernelClass::Head) {
            // SAFETY: the host reads `next` only after it has waited for the stream, before the next step.
            unsafe { self.lanes.tokens.device().download_async(&mut self.lanes.next, &self.stream)? };
        }
        Ok(())
    }

    /// From logits to the tokens that are fed next. Every rank has all logits and the same seeds, so each draws
    /// the same tokens by itself: choosing on one rank would save nothing and cost a broadcast.
    fn choose(&self, n: usize, choice: Choice) -> Result<(), RunError> {
        if choice == Choice::Logits {
            return Ok(());
        }
        let (copy, at) = self.ordered.launch(&self.layout, n, self.logits.addr());
        if let Some(copy) = copy {
            self.launch(&copy)?;
        }
        let (lanes, len) = (&self.lanes, self.shape.vocab as u32);
        let (logits, n_rows) = (Rows::new(at, self.layout.stride() as u32), n as u32);
        match choice {
            Choice::Logits => Ok(()),
            Choice::Greedy => self.launch(
                &Argmax {
                    logits,
                    len,
                    n_rows,
                    indices: lanes.tokens.addr(),
                    values: Addr::NULL,
                    best: lanes.best.addr(),
                    counters: lanes.counters.addr(),
                }
                .launch(),
            ),
            Choice::Sample => self.launch(
                &Sample {
                    logits,
                    len,
                    n_rows,
                    tokens: lanes.tokens.addr(),
                    temperatures: lanes.temperatures.addr(),
                    top_ks: lanes.top_ks.addr(),
                    top_ps: lanes.top_ps.addr(),
                    seeds: lanes.seeds.addr(),
                    counters: lanes.positions.addr(),
                }
                .launch(),
            ),
        }
    }
}
