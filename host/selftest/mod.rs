//! Every kernel of the embedded PTX on a device, real or emulated, against plain f64 arithmetic on the CPU.
//!
//! A case runs its kernel over many shapes, odd ones too. Inputs are seeded random numbers followed by NaN;
//! outputs and scratch are poisoned first and lie between guard regions that are looked at afterwards; kernels
//! that keep counters run twice without a reset, as a replayed graph would. [`case_of`] knows every entry: one
//! without a case fails. Kernels that put between GPUs run over a network within the one device.

mod attention;
pub mod bounds;
mod collective;
mod group;
mod matrix;
mod paging;
mod pointwise;
mod puts;
pub mod record;
pub mod reference;
mod rig;
mod rope;
mod sampling;
mod tally;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use serde::Serialize;

use crate::driver::{Device, GpuError, KernelLibrary, Result};
use crate::kernels::{Entry, HeadDim, NVSHMEM_PTX, Ptx};

use record::{Agreement, Recording, StoredOutput};
pub use rig::Extent;
use rig::Rig;
use tally::Tally;
pub use tally::error;

/// How one kernel is judged.
pub struct Case {
    /// Largest [`error`] that passes; 0 asks for equal bits.
    pub bound: f64,
    run: Box<Run>,
}

/// Runs all shapes of a kernel.
type Run = dyn Fn(&Rig<'_>, &mut Tally<'_>) -> Result<()>;

impl Case {
    fn new(bound: f64, run: impl Fn(&Rig<'_>, &mut Tally<'_>) -> Result<()> + 'static) -> Self {
        Self { bound, run: Box::new(run) }
    }
}

/// What became of one kernel.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The entry's name.
    pub kernel: &'static str,
    /// The PTX file.
    pub arch: &'static str,
    /// Shapes that were run.
    pub shapes: usize,
    /// The worst [`error`] of all shapes and outputs.
    pub worst_error: f64,
    /// What it may be.
    pub bound: f64,
    /// One sentence for each thing that is wrong; none if the kernel passed.
    pub failures: Vec<String>,
    /// With a recording of another run: how they compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// What was read, to be recorded.
    #[serde(skip)]
    pub outputs: Vec<StoredOutput>,
}

/// The case of an entry, none if nobody wrote one.
pub fn case_of(entry: &str) -> Option<Case> {
    use HeadDim::{D64, D128};
    let case = match entry {
        "add_bf16" => Case::new(0.0, collective::add),
        "embedding_bf16" => Case::new(0.0, pointwise::embedding),
        "rmsnorm_bf16" => Case::new(bounds::ROUNDED, pointwise::rmsnorm),
        "add_rmsnorm_bf16" => Case::new(bounds::ROUNDED, pointwise::add_rmsnorm),
        "rope_kv_write_bf16_d64" => Case::new(bounds::ROUNDED, |rig, tally| rope::run(D64, rig, tally)),
        "rope_kv_write_bf16_d128" => Case::new(bounds::ROUNDED, |rig, tally| rope::run(D128, rig, tally)),
        "attn_decode_bf16_d64" => Case::new(bounds::ATTENTION, |r, t| attention::decode(D64, r, t)),
        "attn_decode_bf16_d128" => Case::new(bounds::ATTENTION, |r, t| attention::decode(D128, r, t)),
        "attn_prefill_bf16_d64" => Case::new(bounds::ATTENTION, |r, t| attention::prefill(D64, r, t)),
        "attn_prefill_bf16_d128" => Case::new(bounds::ATTENTION, |r, t| attention::prefill(D128, r, t)),
        "argmax_f32" => Case::new(0.0, sampling::argmax),
        "sample_f32" => Case::new(bounds::DRAW, sampling::sample),
        "advance_positions_u32" => Case::new(0.0, sampling::advance_positions),
        _ => match collective::Kernel::named(entry) {
            Some(kernel) => Case::new(kernel.bound(), move |rig, tally| kernel.run(rig, tally)),
            None => {
                let kernel = matrix::Kernel::named(entry)?;
                Case::new(kernel.bound(), move |rig, tally| kernel.run(rig, tally))
            }
        },
    };
    Some(case)
}

/// What to run, and on how many devices.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Only kernels whose name begins like this.
    pub prefix: &'a str,
    /// How large the shapes are.
    pub extent: Extent,
    /// Threads that each run kernels on a device of their own.
    pub workers: usize,
    /// A run to compare with.
    pub recording: Option<&'a Recording>,
}

/// The kernels for the architecture of `ptx`: those of that file, then those that put between GPUs.
pub fn entries(ptx: &Ptx) -> impl Iterator<Item = &'static Entry> {
    let arch = ptx.arch;
    let puts = NVSHMEM_PTX.iter().filter(move |puts| puts.arch == arch);
    ptx.entries.iter().chain(puts.flat_map(|puts| puts.entries))
}

/// Runs the cases of the [`entries`] of `ptx`, telling `done` of each in the file's order. Every worker opens a device,
/// and another one when an emulated one has stopped, which is its kernel's failure.
///
/// # Errors
/// What a real device itself refuses or breaks on; wrong results are in the outcomes.
pub fn run(
    open: &(dyn Fn() -> Result<Device> + Sync),
    ptx: &'static Ptx,
    plan: Plan<'_>,
    mut done: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    let entries: Vec<_> = entries(ptx).filter(|entry| entry.name.starts_with(plan.prefix)).collect();
    let queue = Queue { ptx, entries: &entries, next: AtomicUsize::new(0), plan };
    let mut outcomes = Vec::new();
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..plan.workers.clamp(1, entries.len().max(1)) {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                if let Err(error) = queue.work(open, &sender) {
                    // Only a receiver that has met another error is gone.
                    let _ = sender.send(Err(error));
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        for finished in receiver {
            let (index, outcome) = finished?;
            early.insert(index, outcome);
            while let Some(outcome) = early.remove(&outcomes.len()) {
                done(&outcome);
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    })
}

/// Kernels that workers take one after the other.
struct Queue<'a> {
    ptx: &'static Ptx,
    entries: &'a [&'static Entry],
    next: AtomicUsize,
    plan: Plan<'a>,
}

impl Queue<'_> {
    fn work(
        &self,
        open: &(dyn Fn() -> Result<Device> + Sync),
        finished: &mpsc::Sender<Result<(usize, Outcome)>>,
    ) -> Result<()> {
        loop {
            let device = open()?;
            let library = Arc::new(KernelLibrary::load_file(&device, self.ptx)?);
            let rig = Rig::new(&device, &library, self.plan.extent)?;
            loop {
                let index = self.next.fetch_add(1, Ordering::Relaxed);
                let Some(entry) = self.entries.get(index) else { return Ok(()) };
                let (outcome, is_alive) = run_entry(&rig, self.ptx, entry, self.plan.recording)?;
                if finished.send(Ok((index, outcome))).is_err() {
                    return Ok(());
                }
                if !is_alive {
                    break;
                }
            }
        }
    }
}

/// The outcome, and whether the device is good for more.
fn run_entry(
    rig: &Rig<'_>,
    ptx: &Ptx,
    entry: &Entry,
    recording: Option<&Recording>,
) -> Result<(Outcome, bool)> {
    let none: &[StoredOutput] = &[];
    let recorded = recording.map(|recording| recording.of(entry.name, ptx.arch).unwrap_or(none));
    let Some(case) = case_of(entry.name) else {
        let mut tally = Tally::new(entry.name, 0.0, recorded);
        tally.fail("there is no case for it in host/selftest".to_owned());
        return Ok((tally.finish(ptx.arch), true));
    };
    rig.restart_inputs();
    let mut tally = Tally::new(entry.name, case.bound, recorded);
    match (case.run)(rig, &mut tally) {
        Ok(()) => Ok((tally.finish(ptx.arch), true)),
        Err(GpuError::Emulated { report, .. }) => {
            tally.fail(report);
            Ok((tally.finish(ptx.arch), false))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::PTX;

    #[test]
    fn every_kernel_has_a_case() {
        for ptx in &PTX {
            let found: Vec<_> = entries(ptx).map(|entry| entry.name).collect();
            for file in PTX.iter().chain(&NVSHMEM_PTX).filter(|file| file.arch == ptx.arch) {
                for Entry { name, .. } in file.entries {
                    assert!(found.contains(name), "{}: {name} is not run", ptx.arch);
                    assert!(case_of(name).is_some(), "{}: {name} has no case", ptx.arch);
                }
            }
        }
        for unknown in [
            "gemm_bf16_16x32",
            "gemm_bf16_32x32_add",
            "gemv_bf16_m1_relu",
            "argmax",
            "allreduce_bf16_oneshot",
            "allreduce_put",
            "allreduce_f64_put",
            "allgather_puts",
        ] {
            assert!(case_of(unknown).is_none(), "{unknown}");
        }
    }
}
