//! Ranks that are PEs of NVSHMEM on emulated devices, each node's joined by stores and the nodes by puts.

use std::sync::Arc;

use fewsync::comm::bootstrap::Bootstrap;
use fewsync::comm::gpu::{GpuComm, SymmetricHeap};
use fewsync::driver::{Device, DevicePtr, KernelLibrary, PutUnit};
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
struct Heap {
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

/// The ranks of a scenario.
pub(crate) struct Pes {
    /// None where a rank has ended.
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
        let made = Device::emulated_pes(&scenario.machine, HEAP_BYTES, unit)?;
        let (devices, heaps): (Vec<Device>, Vec<DevicePtr>) = made.into_iter().unzip();
        let gpus_per_node = scenario.shape.gpus_per_node;
        for node in devices.chunks(gpus_per_node) {
            for (a, b) in node.iter().flat_map(|a| node.iter().map(move |b| (a, b))) {
                a.gpu().enable_peer_access(b.properties().ordinal)?;
            }
        }
        let load = |device: &Device, ptx| {
            let library = KernelLibrary::load_file(device, ptx)?;
            Ok(Arc::new(library.programmatic(scenario.options.dependent_launch)))
        };
        let all = |ptx| devices.iter().map(|device| load(device, ptx)).collect::<Result<Vec<_>>>();
        let (libraries, puts) = (all(shipped(scenario.arch))?, all(puts)?);
        let (chairs, heaps): (_, Arc<[DevicePtr]>) = (Chair::all(devices.len()), heaps.into());
        let ranks = one_by_one(&chairs, |rank| {
            let (heaps, puts) = (Arc::clone(&heaps), Arc::clone(&puts[rank]));
            let heap = Arc::new(Heap { heaps, rank, gpus_per_node, puts });
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
        let ranks = std::sync::Mutex::new(self.ranks.drain(..).map(Some).collect::<Vec<_>>());
        if ranks.lock().is_ok_and(|ranks| ranks.len() == self.chairs.len()) {
            one_by_one(&self.chairs, |rank| {
                let own = ranks.lock().map(|mut ranks| ranks[rank].take());
                drop(own);
            });
        }
    }
}

/// Calls `f` for each rank in a thread of its own, one at a time.
fn one_by_one<T: Send>(chairs: &[Arc<Chair>], f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let one = |(rank, chair): (usize, &'_ Arc<Chair>)| {
            let (f, chair) = (&f, Arc::clone(chair));
            scope.spawn(move || {
                chair.sit_down();
                let made = f(rank);
                chair.leave();
                made
            })
        };
        let threads: Vec<_> = chairs.iter().enumerate().map(one).collect();
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
