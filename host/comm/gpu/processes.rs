//! A rank that is a process by itself: it meets its peers over a [`Bootstrap`], and their regions lie in a
//! [`SymmetricHeap`].

use std::sync::Arc;

use super::crew::Crew;
use super::failure::Alarms;
use super::group::{Group, Wish, World};
use super::heap::{Arena, SymmetricHeap, common_gap, pack, unpack};
use super::layout::Layout;
use super::region::{Region, Regions, View};
use super::{GpuComm, GroupOptions, MAX_RANKS, PeerMemory, check_in_flight};
use crate::comm::bootstrap::Bootstrap;
use crate::comm::{CommError, Shape};
use crate::driver::KernelLibrary;

/// The other ranks, from one of them.
#[derive(Debug)]
pub(super) struct Processes {
    bootstrap: Arc<dyn Bootstrap>,
    arena: Arc<Arena>,
    /// The kernels that put between nodes, where messages go that way.
    puts: Option<Arc<KernelLibrary>>,
    /// Of the smallest GPU.
    multiprocessors: u32,
}

impl Processes {
    /// Collective: agrees on how messages get to other nodes. They are stored where every rank can store to every
    /// other one and `direct` allows it, and put otherwise.
    pub(super) fn new(
        bootstrap: Arc<dyn Bootstrap>,
        heap: Arc<dyn SymmetricHeap>,
        shape: Shape,
        direct: bool,
        multiprocessors: u32,
    ) -> Result<Self, CommError> {
        let (rank, world) = (bootstrap.rank(), bootstrap.world());
        let reaches = |peer: usize| peer == rank || heap.peer(peer).is_some();
        let node = rank / shape.gpus_per_node;
        let neighbours = node * shape.gpus_per_node..(node + 1) * shape.gpus_per_node;
        if !neighbours.clone().all(reaches) {
            let what =
                "ranks of one node whose GPUs have no path to each other; make each rank a node of its own";
            return Err(CommError::Unsupported { what });
        }
        let stores = direct && (0..world).all(reaches);
        let mine = [[0, usize::from(stores)], [0, multiprocessors as usize]];
        let all = bootstrap.all_gather("the GPUs and paths between them", &pack(&mine))?;
        let all: Vec<_> = all.iter().map(|bytes| unpack(bytes)).collect();
        let smallest = |place: usize| all.iter().filter_map(|one| Some(one.get(place)?[1])).min();
        let puts = shape.nodes > 1 && smallest(0) != Some(1);
        let multiprocessors = smallest(1).map_or(multiprocessors, |smallest| smallest as u32);
        let puts = if puts { Some(heap.puts()?) } else { None };
        Ok(Self { bootstrap, arena: Arena::new(heap), puts, multiprocessors })
    }

    pub(super) fn rank(&self) -> usize {
        self.bootstrap.rank()
    }

    pub(super) fn puts(&self) -> Option<&Arc<KernelLibrary>> {
        self.puts.as_ref()
    }

    /// The failure of another process.
    pub(super) fn failure(&self) -> Option<(usize, String)> {
        self.bootstrap.failure()
    }

    /// Makes this rank's failure known.
    pub(super) fn tell(&self, error: &CommError) {
        self.bootstrap.fail_with(error);
    }

    /// The heap's end is collective: a world that failed does without.
    pub(super) fn end(&self, failed: bool) {
        let alone = failed || std::thread::panicking() || self.failure().is_some();
        if alone || self.bootstrap.all_gather("the communicator's end", &[]).is_err() {
            self.arena.heap.abandon();
        }
    }

    /// Where each rank of a group wants to be after a split.
    pub(super) fn wishes(&self, group: &Group, mine: Wish) -> Result<Vec<Wish>, CommError> {
        let packed = pack(&[[mine.colour, mine.key]]);
        let all = self.meet(group, "split", &packed)?;
        let wish = |bytes: &Vec<u8>| unpack(bytes).first().map(|&[colour, key]| Wish { colour, key });
        let wishes: Option<Vec<_>> = all.iter().map(wish).collect();
        wishes.ok_or(CommError::Unsupported { what: "a peer of another version in a split" })
    }

    /// Collective: an empty region for a new buffer at the same place of all heaps.
    pub(super) fn regions(
        &self,
        group: &Group,
        rank: usize,
        crew: &Crew,
        layout: &Layout,
        bytes: usize,
    ) -> Result<Regions, CommError> {
        let call = format!("register({bytes} bytes)");
        let copies = if self.puts.is_some() { 2 } else { 1 };
        let gaps = self.meet(group, &call, &pack(&self.arena.gaps()))?;
        let gaps: Vec<_> = gaps.iter().map(|gaps| unpack(gaps)).collect();
        let (needed, heap) = (copies * layout.bytes, &self.arena.heap);
        let full = || CommError::HeapFull { needed_bytes: needed, heap_bytes: heap.bytes() };
        let place = self.arena.take(common_gap(&gaps, needed).ok_or_else(full)?, needed);
        let (offset, staging) = (place.offset as u64, place.address() + layout.bytes as u64);
        let (device, region) = (crew.device(), Region::Symmetric(place));
        let region = region.emptied(device, layout, &device.stream()?)?;
        let node = |rank: usize| rank / group.shape.gpus_per_node;
        let name = |(peer, &number): (usize, &usize)| {
            if peer == rank {
                return Ok(region.address());
            }
            if self.puts.is_some() && node(peer) != node(rank) {
                return Ok(number as u64);
            }
            let what = "a rank of the same node without a path to its GPU";
            heap.peer(number).map(|heap| heap + offset).ok_or(CommError::Unsupported { what })
        };
        let names = group.members.iter().enumerate().map(name).collect::<Result<_, _>>()?;
        let staging = if self.puts.is_some() { staging } else { 0 };
        Ok(Regions { views: vec![View { names, staging }], kept: Arc::new([Arc::new(region)]) })
    }

    /// Collective: which rank could not make its part of a new buffer, if there is one.
    pub(super) fn first_without_part(
        &self,
        group: &Group,
        is_made: bool,
        bytes: usize,
    ) -> Result<Option<usize>, CommError> {
        let made = self.meet(group, &format!("register({bytes} bytes), made"), &[u8::from(is_made)])?;
        Ok(made.iter().position(|made| **made != [1]))
    }

    fn meet(&self, group: &Group, call: &str, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let met = self.bootstrap.meet(&group.members, call, mine, group.world.options.meeting_limit);
        met.inspect_err(|error| self.tell(error))
    }
}

impl GpuComm {
    /// Collective: this process's rank of a world of processes, each with a GPU, on kernels that are loaded already.
    /// Peers' messages arrive in `heap`; `options.memory` says whether ranks of other nodes are stored to.
    ///
    /// # Errors
    /// Another number of processes than the shape has ranks, what the meetings report, neighbours without a path to
    /// each other's heap, missing kernels where messages have to be put, and what the driver refuses.
    pub fn in_processes(
        kernels: &Arc<KernelLibrary>,
        shape: Shape,
        options: GroupOptions,
        bootstrap: Arc<dyn Bootstrap>,
        heap: Arc<dyn SymmetricHeap>,
    ) -> Result<Self, CommError> {
        check_world(&*bootstrap, shape)?;
        if shape.world() > MAX_RANKS {
            return Err(CommError::Unsupported { what: "more than 32 ranks in one group" });
        }
        check_in_flight(std::slice::from_ref(kernels), &options)?;
        let stream = kernels.device().stream()?;
        let alarms = Arc::new(Alarms::new(kernels.device(), 1, &stream)?);
        stream.synchronize()?;
        let direct = is_direct(&options);
        let rank = bootstrap.rank();
        let multiprocessors = kernels.device().properties().multiprocessors;
        let others = Processes::new(bootstrap, heap, shape, direct, multiprocessors)?;
        let max_blocks = (others.multiprocessors / options.in_flight.max(1)).max(1);
        let world = World::of_processes(options, Arc::clone(&alarms), others);
        let group = Group::new(&world, shape, (0..shape.world()).collect());
        Ok(Self::new(&group, rank, kernels, alarms, max_blocks))
    }
}

/// Refuses a world of another size than the shape's.
fn check_world(bootstrap: &dyn Bootstrap, shape: Shape) -> Result<(), CommError> {
    let processes = bootstrap.world();
    if processes == shape.world() { Ok(()) } else { Err(CommError::WrongWorld { shape, processes }) }
}

/// What of the options concerns the way between processes.
fn is_direct(options: &GroupOptions) -> bool {
    !matches!(options.memory, PeerMemory::Nvshmem { direct: false })
}
