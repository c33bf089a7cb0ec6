//! What is measured of whom, in which order.

#[cfg(feature = "nvshmem")]
use std::sync::Arc;

use super::AllReduceBenchError as Error;
#[cfg(feature = "nvshmem")]
use super::nvshmem;
use super::race::{Contestant, Effort, Task, time, verify};
use super::record::{Call, Launching, Measurement};
#[cfg(feature = "nvshmem")]
use super::tune::{Found, Tuned, tune_in_processes};
use super::{nccl, ours};
use crate::comm::bootstrap::Bootstrap;
#[cfg(feature = "nvshmem")]
use crate::comm::gpu::GpuComm;
use crate::comm::gpu::GroupOptions;
#[cfg(feature = "nvshmem")]
use crate::comm::gpu::nvshmem::{HEAP_BYTES, NvshmemHeap};
use crate::comm::{DType, Shape};
use crate::driver::Device;
#[cfg(feature = "nvshmem")]
use crate::driver::KernelLibrary;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// How the ranks are laid out; one GPU each.
    pub shape: Shape,
    /// Type of the elements.
    pub dtype: DType,
    /// Bytes of the tensors; rounded down to whole elements.
    pub sizes: Vec<usize>,
    /// Which calls.
    pub calls: Vec<Call>,
    /// How they are launched; phases alone only as graphs.
    pub launching: Vec<Launching>,
    /// Elements of a row of fused calls.
    pub hidden: Vec<usize>,
    /// Rows of fused calls.
    pub tokens: Vec<usize>,
}

impl Sweep {
    /// All measurements of this crate's communicator: sums by size, fused calls beside the plain ones of their
    /// tensors, then phases.
    pub fn tasks(&self) -> Vec<(Task, Launching)> {
        let mut tasks = self.plain_tasks();
        let dtype = self.dtype;
        for &launching in &self.launching {
            for call in self.calls.iter().copied().filter(|call| *call != Call::Plain) {
                match call {
                    // Epilogues are in bf16, as activations are.
                    Call::Fused | Call::Norm if dtype == DType::Bf16 => {
                        for (numel, hidden) in self.rows() {
                            tasks.push((Task { call, numel, dtype, hidden }, launching));
                        }
                    }
                    Call::Plain | Call::Fused | Call::Norm => {}
                    // Between nodes there is nothing to put where there is one, in nodes of one nothing to reduce.
                    Call::Put if self.shape.nodes == 1 => {}
                    Call::Reduce | Call::Broadcast if self.shape.gpus_per_node == 1 => {}
                    _ if launching == Launching::Eager => {}
                    _ => {
                        for numel in self.sizes.iter().map(|bytes| bytes / dtype.size_bytes()) {
                            tasks.push((Task { call, numel, dtype, hidden: 0 }, launching));
                        }
                    }
                }
            }
        }
        tasks
    }

    /// The sums alone, of every size that is asked for or belongs to a fused call.
    pub fn plain_tasks(&self) -> Vec<(Task, Launching)> {
        let mut tensors: Vec<usize> = Vec::new();
        if self.calls.contains(&Call::Plain) {
            tensors.extend(self.sizes.iter().map(|bytes| bytes / self.dtype.size_bytes()));
        }
        if self.calls.contains(&Call::Fused) && self.dtype == DType::Bf16 {
            tensors.extend(self.rows().map(|(numel, _)| numel));
        }
        tensors.sort_unstable();
        tensors.dedup();
        let task = |numel| Task { call: Call::Plain, numel, dtype: self.dtype, hidden: 0 };
        let launched = |&launching| tensors.iter().map(move |&numel| (task(numel), launching));
        self.launching.iter().flat_map(launched).collect()
    }

    /// Elements and row length of the fused calls.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.hidden.iter().flat_map(|&hidden| self.tokens.iter().map(move |&n| (n * hidden, hidden)))
    }
}

/// Measures this crate's communicator, telling `done` of each measurement.
///
/// # Errors
/// Devices that cannot form a group; a wrong sum; what the devices report.
pub fn run_ours(
    devices: &[Device],
    sweep: &Sweep,
    options: &GroupOptions,
    variant: &str,
    done: impl FnMut(&Measurement),
) -> Result<Vec<Measurement>, Error> {
    let tasks = sweep.tasks();
    let all: Vec<Task> = tasks.iter().map(|(task, _)| *task).collect();
    let mut ranks = ours::ranks_for(devices, sweep, options, &all)?;
    run(&mut ranks, variant, sweep, &tasks, None, done)
}

/// This process's rank among others, with NVSHMEM between them.
#[cfg(feature = "nvshmem")]
#[derive(Debug)]
pub struct Process {
    kernels: Arc<KernelLibrary>,
    heap: Arc<NvshmemHeap>,
    bootstrap: Arc<dyn Bootstrap>,
}

#[cfg(feature = "nvshmem")]
impl Process {
    /// Collective: brings NVSHMEM up on the device.
    ///
    /// # Errors
    /// As [`NvshmemHeap::new`].
    pub fn start(
        device: &Device,
        options: &GroupOptions,
        bootstrap: Arc<dyn Bootstrap>,
    ) -> Result<Self, Error> {
        let kernels = Arc::new(KernelLibrary::load(device)?.programmatic(options.dependent_launch));
        let heap = NvshmemHeap::new(device, &*bootstrap, HEAP_BYTES, options.meeting_limit)?;
        Ok(Self { kernels, heap: Arc::new(heap), bootstrap })
    }

    /// Collective: [`run_ours`] with ranks that are processes; the variant's name also says whether messages to other
    /// nodes are stored or put.
    ///
    /// # Errors
    /// As [`run_ours`].
    pub fn run_ours(
        &self,
        sweep: &Sweep,
        options: &GroupOptions,
        variant: &str,
        done: impl FnMut(&Measurement),
    ) -> Result<Vec<Measurement>, Error> {
        let tasks = sweep.tasks();
        let comm = self.communicator(sweep, options)?;
        let variant = format!("{variant} {}", if comm.puts_between_nodes() { "puts" } else { "stores" });
        let all: Vec<Task> = tasks.iter().map(|(task, _)| *task).collect();
        let kernels = Arc::clone(&self.kernels);
        let rank = ours::rank(comm, kernels, sweep.dtype, ours::room_for(&all))?;
        run(&mut [rank], &variant, sweep, &tasks, Some(&*self.bootstrap), done)
    }

    fn communicator(&self, sweep: &Sweep, options: &GroupOptions) -> Result<GpuComm, Error> {
        let (heap, others) = (Arc::clone(&self.heap), Arc::clone(&self.bootstrap));
        Ok(GpuComm::in_processes(&self.kernels, sweep.shape, options.clone(), others, heap)?)
    }

    /// Collective: [`tune`](super::tune::tune) with ranks that are processes.
    ///
    /// # Errors
    /// As [`tune_in_processes`].
    pub fn tune(
        &self,
        sweep: &Sweep,
        options: &GroupOptions,
        effort: Effort,
        done: impl FnMut(&Tuned),
    ) -> Result<Found, Error> {
        let comm = self.communicator(sweep, options)?;
        tune_in_processes(comm, &self.kernels, sweep, effort, &*self.bootstrap, done)
    }

    /// Collective: NVSHMEM's own sum on a stream.
    ///
    /// # Errors
    /// A wrong sum; what NVSHMEM and the devices report.
    pub fn run_nvshmem(&self, sweep: &Sweep) -> Result<Vec<Measurement>, Error> {
        let tasks = sweep.plain_tasks();
        let heap = Arc::clone(&self.heap);
        let mut ranks = [nvshmem::rank(self.kernels.device(), heap, sweep.dtype, largest(&tasks))?];
        let release = self.heap.nvshmem().library().release().to_string();
        run(&mut ranks, &release, sweep, &tasks, Some(&*self.bootstrap), |_| {})
    }
}

/// Measures NCCL in this process, with what its environment says; also returns its version.
///
/// # Errors
/// No NCCL; a wrong sum; what NCCL and the devices report.
pub fn run_nccl(
    devices: &[Device],
    sweep: &Sweep,
    variant: &str,
) -> Result<(Vec<Measurement>, String), Error> {
    let tasks = sweep.plain_tasks();
    let (mut ranks, version) = nccl::ranks(devices, sweep.dtype, largest(&tasks))?;
    Ok((run(&mut ranks, variant, sweep, &tasks, None, |_| {})?, version))
}

fn largest(tasks: &[(Task, Launching)]) -> usize {
    tasks.iter().map(|(task, _)| task.bytes()).max().unwrap_or(0)
}

fn run<C: Contestant>(
    ranks: &mut [C],
    variant: &str,
    sweep: &Sweep,
    tasks: &[(Task, Launching)],
    others: Option<&dyn Bootstrap>,
    mut done: impl FnMut(&Measurement),
) -> Result<Vec<Measurement>, Error> {
    let mut lines = Vec::with_capacity(tasks.len());
    for (task, launching) in tasks {
        verify(ranks, task)?;
        let us = time(ranks, task, *launching, Effort::FULL, others)?;
        let (tp, topology) = (sweep.shape.world(), sweep.shape.to_string());
        let line = Measurement::new(
            (C::NAME, variant),
            task.call,
            *launching,
            task.dtype,
            tp,
            topology,
            task.bytes(),
            task.hidden,
            us,
        );
        done(&line);
        lines.push(line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(shape: &str) -> Sweep {
        Sweep {
            shape: shape.parse().unwrap(),
            dtype: DType::Bf16,
            sizes: vec![1024, 8192],
            calls: Call::ALL.to_vec(),
            launching: Launching::ALL.to_vec(),
            hidden: vec![4096],
            tokens: vec![1, 3],
        }
    }

    fn count(sweep: &Sweep, call: Call, launching: Launching) -> usize {
        sweep.tasks().iter().filter(|(task, l)| task.call == call && *l == launching).count()
    }

    #[test]
    fn fused_calls_have_their_plain_ones_beside_them_once() {
        let plain: Vec<_> = sweep("1x2").plain_tasks().iter().map(|(task, _)| task.bytes()).collect();
        assert_eq!(plain, [1024, 8192, 3 * 8192, 1024, 8192, 3 * 8192]);
        assert_eq!(count(&sweep("1x2"), Call::Fused, Launching::Graph), 2);
        assert_eq!(count(&sweep("1x2"), Call::Norm, Launching::Graph), 2);
        let f32 = Sweep { dtype: DType::F32, ..sweep("1x2") };
        assert_eq!(count(&f32, Call::Fused, Launching::Graph), 0);
        assert_eq!(f32.plain_tasks().len(), 4);
    }

    #[test]
    fn phases_that_do_nothing_are_left_out() {
        let phases = |shape| {
            [Call::Reduce, Call::Put, Call::Broadcast]
                .map(|call| count(&sweep(shape), call, Launching::Graph))
        };
        assert_eq!(phases("1x2"), [2, 0, 2]);
        assert_eq!(phases("2x1"), [0, 2, 0]);
        assert_eq!(phases("2x2"), [2, 2, 2]);
        assert_eq!(count(&sweep("2x2"), Call::Put, Launching::Eager), 0);
    }
}
