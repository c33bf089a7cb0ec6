//! A decode step taken apart: the same kernels, order and data, but only some classes of them.
//!
//! A graph with one class alone says what its kernels take one behind another; one without it says what the step
//! would take if they cost nothing. With dependent launch kernels overlap, so the two differ. What is left out
//! leaves stale activations behind, which change no kernel's work: shapes, addresses and lengths are the step's.

use super::budget::LANES;
use super::rank::Rank;
use super::step::Choice;
use crate::comm::Communicator;
use crate::driver::{Event, Graph};
use crate::runner::RunError;
use crate::runner::profile::{ClassProfile, KernelClass, STEPS_AHEAD, StepProfile};

/// Series of replays whose times are kept, behind one that warms up.
const SERIES: usize = 10;
/// Replays of a series that are timed together: behind a first one, so that the device's work hides the host's.
const TIMED: usize = STEPS_AHEAD - 1;

/// A set of kernel classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Classes(u8);

impl Classes {
    pub(super) const ALL: Self = Self((1 << KernelClass::ALL.len()) - 1);

    fn only(class: KernelClass) -> Self {
        Self(1 << class as u8)
    }

    fn without(class: KernelClass) -> Self {
        Self(Self::ALL.0 & !Self::only(class).0)
    }

    pub(super) fn contains(self, class: KernelClass) -> bool {
        self.0 & Self::only(class).0 != 0
    }
}

/// The class of a kernel that the engine itself launches, by the kernel's name.
pub(super) fn class_of(entry: &str) -> KernelClass {
    match entry.split('_').next() {
        // Logits alone leave a product as f32.
        Some("gemm" | "gemv" | "wgmma") if entry.ends_with("_f32") => KernelClass::Head,
        Some("gemm" | "gemv" | "wgmma") => KernelClass::Gemm,
        Some("attn") => KernelClass::Attention,
        Some("argmax" | "sample" | "advance") => KernelClass::Head,
        _ => KernelClass::Pointwise,
    }
}

/// Graphs of the greedy step of `n` sequences.
pub(super) struct ProfileGraphs {
    n: usize,
    whole: Graph,
    classes: Vec<ClassGraphs>,
}

struct ClassGraphs {
    class: KernelClass,
    alone: Graph,
    without: Graph,
}

impl Rank {
    /// Whether kernels of this class are enqueued now: all are, unless a part of a step is being captured.
    pub(super) fn enqueues(&self, class: KernelClass) -> bool {
        self.enqueued.contains(class)
    }

    /// Captures the graphs of a profile of `n` sequences. On several GPUs all ranks do so before any replays.
    pub(super) fn prepare_profile(&mut self, n: usize) -> Result<(), RunError> {
        if n > LANES {
            const { assert!(LANES == 128) };
            return Err(RunError::BadCall(
                "a step of more than 128 sequences is several graphs: profile fewer",
            ));
        }
        self.ordered.prepare(&self.layout, n, &self.stream)?;
        let mut classes = Vec::with_capacity(KernelClass::ALL.len());
        for class in KernelClass::ALL {
            let alone = self.capture_part(n, Classes::only(class))?;
            let without = self.capture_part(n, Classes::without(class))?;
            classes.push(ClassGraphs { class, alone, without });
        }
        let whole = self.capture_part(n, Classes::ALL)?;
        self.profile_graphs = Some(ProfileGraphs { n, whole, classes });
        Ok(())
    }

    fn capture_part(&mut self, n: usize, part: Classes) -> Result<Graph, RunError> {
        self.enqueued = part;
        let captured = self.capture(n, Choice::Greedy);
        self.enqueued = Classes::ALL;
        Ok(captured?.graph)
    }

    /// Replays the prepared graphs behind what the sequences hold, which is left as it was. `fed` pairs sequences
    /// with tokens.
    pub(super) fn profile(&mut self, fed: &[(usize, u32)]) -> Result<StepProfile, RunError> {
        let graphs = self.profile_graphs.take().filter(|graphs| graphs.n == fed.len());
        let graphs = graphs.ok_or(RunError::BadCall("a profile that was not prepared"))?;
        let lens: Vec<usize> = fed.iter().map(|&(sequence, _)| self.pages.len(sequence)).collect();
        for &(sequence, _) in fed {
            self.pages.grow(sequence, STEPS_AHEAD)?;
        }
        let clock = [self.stream.device().timing_event()?, self.stream.device().timing_event()?];
        let mut time = |graph| self.time_part(graph, fed, &lens, &clock);
        let whole_us = time(&graphs.whole)?;
        let mut classes = Vec::with_capacity(graphs.classes.len());
        for ClassGraphs { class, alone, without } in &graphs.classes {
            let (alone_us, without_us) = (time(alone)?, time(without)?);
            classes.push(ClassProfile { class: *class, kernels: alone.node_count(), alone_us, without_us });
        }
        for (&(sequence, _), len) in fed.iter().zip(lens) {
            self.pages.truncate(sequence, len);
        }
        self.forget_lanes(fed.len());
        self.comm.check()?;
        Ok(StepProfile { whole_us, classes })
    }

    /// The time of one replay, from series of them.
    fn time_part(
        &mut self,
        graph: &Graph,
        fed: &[(usize, u32)],
        lens: &[usize],
        [start, end]: &[Event; 2],
    ) -> Result<Vec<f64>, RunError> {
        if graph.node_count() == 0 {
            return Ok(vec![0.0; SERIES]);
        }
        let mut us = Vec::with_capacity(SERIES);
        for series in 0..=SERIES {
            self.place_lanes(fed, lens)?;
            for replay in 0..STEPS_AHEAD {
                if replay == 1 {
                    start.record(&self.stream)?;
                }
                // SAFETY: as in `step`; the pages that the series advances into were taken by `profile`.
                unsafe { graph.launch(&self.stream)? };
            }
            end.record(&self.stream)?;
            end.synchronize()?;
            if series > 0 {
                us.push(end.elapsed_us(start)? / TIMED as f64);
            }
        }
        Ok(us)
    }

    /// Puts the lanes at the sequences' ends, wherever the last series has left them.
    fn place_lanes(&mut self, fed: &[(usize, u32)], lens: &[usize]) -> Result<(), RunError> {
        self.forget_lanes(fed.len());
        let (lanes, stream) = (&mut self.lanes, &*self.stream);
        let words = |offset: usize| lens.iter().map(|len| (len + offset) as u32).collect::<Vec<_>>();
        lanes.tokens.set(0, &fed.iter().map(|&(_, token)| token).collect::<Vec<_>>(), stream)?;
        lanes.positions.set(0, &words(0), stream)?;
        lanes.kv_lens.set(0, &words(1), stream)?;
        for (lane, &(sequence, _)) in fed.iter().enumerate() {
            lanes.block_table.set(lane * self.cache.max_pages, self.pages.of(sequence), stream)?;
        }
        Ok(())
    }

    /// Whatever the next step needs on the device is written anew.
    fn forget_lanes(&mut self, n: usize) {
        for advanced in [&mut self.lanes.tokens, &mut self.lanes.positions, &mut self.lanes.kv_lens] {
            advanced.note(std::iter::repeat_n(u32::MAX, n));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::PTX;

    #[test]
    fn classes_are_sets() {
        for class in KernelClass::ALL {
            assert!(Classes::ALL.contains(class));
            for other in KernelClass::ALL {
                assert_eq!(Classes::only(class).contains(other), class == other);
                assert_eq!(Classes::without(class).contains(other), class != other);
            }
        }
    }

    /// Every kernel that the engine launches, so that a new one is given its class here.
    #[test]
    fn kernels_have_the_class_of_their_purpose() {
        let names = |class| {
            let entries = PTX.iter().flat_map(|file| file.entries).map(|entry| entry.name);
            let names =
                entries.filter(|name| !name.starts_with("all")).filter(|name| class_of(name) == class);
            names.map(|name| name.split('_').next().unwrap()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(KernelClass::Gemm).into_iter().collect::<Vec<_>>(), ["gemm", "gemv", "wgmma"]);
        assert_eq!(names(KernelClass::Attention).into_iter().collect::<Vec<_>>(), ["attn"]);
        let head = names(KernelClass::Head).into_iter().collect::<Vec<_>>();
        assert_eq!(head, ["advance", "argmax", "gemm", "gemv", "sample", "wgmma"]);
        assert_eq!(class_of("gemv_bf16_m1_f32"), KernelClass::Head);
        assert_eq!(class_of("gemv_bf16_m1_add"), KernelClass::Gemm);
        let pointwise = names(KernelClass::Pointwise).into_iter().collect::<Vec<_>>();
        assert_eq!(pointwise, ["add", "embedding", "rmsnorm", "rope"]);
    }
}
