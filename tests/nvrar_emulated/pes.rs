//! Ranks that are PEs of NVSHMEM on emulated devices, each node's joined by stores and the nodes by puts.

use std::sync::Arc;

use fewsync::comm::bootstrap::Bootstrap;
use fewsync::comm::gpu::{GpuComm, SymmetricHeap};
use fewsync::driver::{Device, DevicePtr, EmulatorOptions, KernelLibrary, PutUnit};
use fewsync::kernels::Ptx;

use crate::inputs::Inputs;
use crate::meeting::Chair;
use crate::run::{Found, Rank, Result, together};
use crate::scenario::Scenario;
use crate::schedules::shipped;

/// Of each PE: regions and staging of a few small buffers.
const HEAP_BYTES: usize = 16 << 20;

/// One rank's view of all heaps.
#[derive(Debug)]
pub(crate) struct Heap {
    heaps: Arc<[DevicePtr]>,
    rank: usize,
    gpus_per_node: usize,
    puts: Arc<KernelLibrary>,
}

impl SymmetricHeap for Heap {
    fn address(&self) -> u64 {
        self.heaps[self.rank].0
    }

    fn bytes(&self) -> usize {
        HEAP_BYTES
    }

    fn peer(&self, rank: usize) -> Option<u64> {
        let is_neighbour = rank / self.gpus_per_node == self.rank / self.gpus_per_node;
        is_neighbour.then_some(self.heaps[rank].0)
    }

    fn puts(&self) -> std::result::Result<Arc<KernelLibrary>, fewsync::comm::CommError> {
        Ok(Arc::clone(&self.puts))
    }

    fn abandon(&self) {}
}

/// The kernels and the heap of each PE of a new machine, whose devices store to those of their node. `files` are a
/// rank's: the one for stores and the one for puts.
pub(crate) fn machine(
    options: &EmulatorOptions,
    gpus_per_node: usize,
    files: impl Fn(usize) -> [&'static Ptx; 2],
    unit: PutUnit,
    dependent_launch: bool,
) -> Result<Vec<(Arc<KernelLibrary>, Arc<Heap>)>> {
    let made = Device::emulated_pes(options, HEAP_BYTES, unit)?;
    let (devices, heaps): (Vec<Device>, Vec<DevicePtr>) = made.into_iter().unzip();
    for node in devices.chunks(gpus_per_node) {
        for (a, b) in node.iter().flat_map(|a| node.iter().map(move |b| (a, b))) {
            a.gpu().enable_peer_access(b.properties().ordinal)?;
        }
    }
    let heaps: Arc<[DevicePtr]> = heaps.into();
    let pe = |(rank, device): (usize, &Device)| {
        let load = |ptx| -> Result<Arc<KernelLibrary>> {
            let library = KernelLibrary::load_file(device, ptx)?;
            Ok(Arc::new(library.programmatic(dependent_launch)))
        };
        let [kernels, puts] = files(rank).map(load);
        let (kernels, puts, heaps) = (kernels?, puts?, Arc::clone(&heaps));
        Ok((kernels, Arc::new(Heap { heaps, rank, gpus_per_node, puts })))
    };
    devices.iter().enumerate().map(pe).collect()
}

/// The ranks of a scenario.
pub(crate) struct Pes {
    pub(crate) ranks: Vec<Rank>,
    chairs: Vec<Arc<Chair>>,
}

impl Pes {
    /// On a new machine; `puts` is the file with the kernels that put.
    pub(crate) fn new(
        scenario: &Scenario,
        inputs: &Inputs,
        puts: &'static Ptx,
        unit: PutUnit,
    ) -> Result<Self> {
        let (files, dependent) = (|_| [shipped(scenario.arch), puts], scenario.options.dependent_launch);
        let pes = machine(&scenario.machine, scenario.shape.gpus_per_node, files, unit, dependent)?;
        let (libraries, heaps): (Vec<_>, Vec<_>) = pes.into_iter().unzip();
        let chairs = Chair::all(libraries.len());
        let ranks = one_by_one(&chairs, heaps, |rank, heap| {
            let chair = Arc::clone(&chairs[rank]) as Arc<dyn Bootstrap>;
            let (shape, options) = (scenario.shape, scenario.options.clone());
            let comm = GpuComm::in_processes(&libraries[rank], shape, options, chair, heap)?;
            Rank::new(scenario, inputs, comm, &libraries)
        });
        Ok(Self { ranks: ranks.into_iter().collect::<Result<_>>()?, chairs })
    }
}

impl Drop for Pes {
    fn drop(&mut self) {
        // The end of communicators is collective.
        one_by_one(&self.chairs, std::mem::take(&mut self.ranks), |_, rank| drop(rank));
    }
}

/// Calls `f` for each rank, with what belongs to it, in a thread of its own, one at a time.
fn one_by_one<T: Send, U: Send>(
    chairs: &[Arc<Chair>],
    of_rank: Vec<T>,
    f: impl Fn(usize, T) -> U + Sync,
) -> Vec<U> {
    let f = &f;
    chairs[0].open();
    std::thread::scope(|scope| {
        let one = |(rank, (chair, own)): (usize, (&Arc<Chair>, T))| {
            let chair = Arc::clone(chair);
            scope.spawn(move || {
                chair.sit_down();
                let made = f(rank, own);
                chair.leave();
                made
            })
        };
        let threads: Vec<_> = chairs.iter().zip(of_rank).enumerate().map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// Runs a scenario: all calls of all ranks are enqueued before any is waited for.
pub(crate) fn run(scenario: &Scenario, inputs: &Inputs, puts: &'static Ptx, unit: PutUnit) -> Result<Found> {
    let mut pes = Pes::new(scenario, inputs, puts, unit)?;
    pes.ranks.iter_mut().try_for_each(|rank| rank.enqueue(scenario))?;
    let found = pes.ranks.iter().map(|rank| rank.finish(scenario)).collect();
    together(scenario, found)
}
