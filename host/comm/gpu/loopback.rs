//! Many ranks on one GPU, or dealt to a few: the whole protocol on real hardware without many GPUs.
//!
//! The ranks of one GPU share each launch, since separate ones could wait for each other's multiprocessors for
//! ever. Kernels, regions, numbers and failures are those of [`super::GpuComm`]; only the host's side of a rank is
//! missing. For tests and measurement.
//!
//! Between nodes ranks store, or, on one GPU, put ([`LoopbackPuts`]).

mod puts;

use std::sync::Arc;

use half::bf16;

pub use self::puts::LoopbackPuts;
use super::crew::{Crew, Part, Sum, max_blocks};
use super::failure::Alarms;
use super::group::{Group, World};
use super::layout::Layout;
use super::region::Regions;
use super::{GroupOptions, MAX_RANKS, PeerMemory, open_paths};
use crate::comm::{CommError, DType, Phase, Shape};
use crate::driver::{KernelLibrary, Stream};
use crate::kernels::Addr;
use crate::kernels::nvrar::NormAfter;

/// All ranks of a group, on the GPUs of this process.
#[derive(Debug)]
pub struct Loopback {
    crews: Vec<Crew>,
    group: Arc<Group>,
}

/// Symmetric memory of all ranks.
#[derive(Debug)]
pub struct LoopbackBuffer {
    /// The group that registered it.
    owner: Arc<Group>,
    parts: Vec<Part>,
    bytes: usize,
}

/// What the ranks of one GPU bring to a sum beside the buffer; addresses are the first rank's.
#[derive(Debug, Clone, Copy)]
pub struct LoopbackSlices {
    /// `[ranks, stride]` of which `numel` are added to each rank's contribution, or null.
    pub addend: Addr<bf16>,
    /// Residuals and outputs `[ranks, stride]`, one gain.
    pub norm: Option<NormAfter>,
    /// Elements from one rank's slices to the next one's, a multiple of 8.
    pub stride: usize,
}

impl LoopbackSlices {
    /// Nothing.
    pub const NONE: Self = Self { addend: Addr::NULL, norm: None, stride: 0 };
}

impl Loopback {
    /// The ranks of `shape`, dealt to the GPUs of `kernels` in equal runs.
    ///
    /// # Errors
    /// Ranks that cannot be dealt equally, a GPU twice, GPUs without a path to each other, and what the driver
    /// refuses.
    pub fn new(
        kernels: &[Arc<KernelLibrary>],
        shape: Shape,
        options: GroupOptions,
    ) -> Result<Self, CommError> {
        let (world, gpus) = (shape.world(), kernels.len());
        if gpus == 0 || !world.is_multiple_of(gpus) {
            return Err(CommError::WrongDevices { shape, devices: gpus });
        }
        if world > MAX_RANKS {
            return Err(CommError::Unsupported { what: "more than 32 ranks in one process" });
        }
        super::check_distinct(kernels)?;
        super::check_in_flight(kernels, &options)?;
        if options.memory == PeerMemory::Direct {
            open_paths(kernels)?;
        }
        let count = world / gpus;
        let alarms = kernels.iter().map(|kernels| {
            let stream = kernels.device().stream()?;
            let alarms = Alarms::new(kernels.device(), count, &stream)?;
            stream.synchronize()?;
            Ok(Arc::new(alarms))
        });
        let alarms = alarms.collect::<Result<Vec<_>, CommError>>()?;
        let of_rank = (0..world).map(|rank| (Arc::clone(&alarms[rank / count]), rank % count)).collect();
        let group = Group::new(&World::of_threads(options, of_rank), shape, (0..world).collect());
        let max_blocks = max_blocks(kernels, count, group.world.options.in_flight);
        let crew = |(gpu, (kernels, alarms)): (usize, (&Arc<KernelLibrary>, Arc<Alarms>))| Crew {
            kernels: Arc::clone(kernels),
            alarms,
            first_alarm: 0,
            first: gpu * count,
            count,
            max_blocks,
            shape,
            group: group.number,
            puts: None,
        };
        let crews = kernels.iter().zip(alarms).enumerate().map(crew).collect();
        Ok(Self { crews, group })
    }

    /// The ranks of `shape` on the GPU of `kernels`, which store to their neighbours and put to other nodes.
    ///
    /// # Errors
    /// `puts` of another GPU, regions in host memory, more ranks than there can be, and what the driver refuses.
    pub fn over_puts(
        kernels: &Arc<KernelLibrary>,
        puts: &LoopbackPuts,
        shape: Shape,
        options: GroupOptions,
    ) -> Result<Self, CommError> {
        kernels.device().expect_same(puts.0.device(), "the kernels that put")?;
        if options.memory == PeerMemory::HostStaged {
            return Err(CommError::Unsupported { what: "puts into host memory between ranks of one GPU" });
        }
        let mut ranks = Self::new(std::slice::from_ref(kernels), shape, options)?;
        ranks.crews[0].puts = Some(Arc::clone(&puts.0));
        Ok(ranks)
    }

    fn options(&self) -> &GroupOptions {
        &self.group.world.options
    }

    /// Ranks on one GPU; rank r is on GPU `r / ranks_per_gpu`.
    pub fn ranks_per_gpu(&self) -> usize {
        self.crews[0].count
    }

    /// `bytes` of zeroed symmetric memory for every rank.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn register(&self, bytes: usize) -> Result<LoopbackBuffer, CommError> {
        let layout = Layout::new(self.group.shape, bytes);
        let parts = match &self.crews[..] {
            [crew] if crew.puts.is_some() => {
                vec![crew.part(bytes, layout, puts::regions(crew, &layout)?, self.options())?]
            }
            crews => {
                let regions = crews.iter().map(|crew| crew.regions(&layout, self.options().memory));
                let regions: Arc<[_]> = regions.collect::<Result<Vec<_>, _>>()?.concat().into();
                let seen_by = |crew: &Crew| Regions::of(Arc::clone(&regions), crew.count);
                let part = |crew: &Crew| crew.part(bytes, layout, seen_by(crew), self.options());
                crews.iter().map(part).collect::<Result<_, _>>()?
            }
        };
        Ok(LoopbackBuffer { owner: Arc::clone(&self.group), parts, bytes })
    }

    /// Enqueues the part of a sum that GPU `gpu` has; all GPUs' parts are to be enqueued before any is waited for.
    ///
    /// # Errors
    /// Wrong arguments, an earlier failure, and what the driver refuses.
    ///
    /// # Safety
    /// `slices` name device memory of that GPU, as long as they say, that stays until the stream has run this.
    pub unsafe fn all_reduce(
        &self,
        gpu: usize,
        stream: &Stream,
        buf: &mut LoopbackBuffer,
        (numel, dtype): (usize, DType),
        slices: LoopbackSlices,
    ) -> Result<(), CommError> {
        self.check_tensor(buf, numel, dtype)?;
        let LoopbackSlices { addend, norm, stride: slice_stride } = slices;
        let hidden = norm.as_ref().map(|norm| norm.hidden as usize);
        super::check_rows((numel, dtype), addend != Addr::NULL, hidden)?;
        let sum = Sum { numel, dtype, addend, norm, tuning: None, slice_stride };
        self.crews[gpu].all_reduce(stream, &buf.parts[gpu], self.options(), sum)
    }

    /// Enqueues the part of one phase of a sum that GPU `gpu` has.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce).
    pub fn phase(
        &self,
        gpu: usize,
        stream: &Stream,
        buf: &mut LoopbackBuffer,
        phase: Phase,
        (numel, dtype): (usize, DType),
    ) -> Result<(), CommError> {
        self.check_tensor(buf, numel, dtype)?;
        self.crews[gpu].phase(stream, &buf.parts[gpu], self.options(), phase, (numel, dtype))
    }

    /// Enqueues the part of a gather that GPU `gpu` has; rank r's piece is `offsets[r]..offsets[r + 1]`.
    ///
    /// # Errors
    /// As [`all_reduce`](Self::all_reduce), and offsets that are not `world + 1` ascending numbers.
    pub fn all_gather(
        &self,
        gpu: usize,
        stream: &Stream,
        buf: &mut LoopbackBuffer,
        offsets: &[usize],
        dtype: DType,
    ) -> Result<(), CommError> {
        let world = self.group.shape.world();
        let end = match offsets.last() {
            Some(&end) if offsets.len() == world + 1 && offsets.is_sorted() => end,
            _ => return Err(CommError::Offsets { offsets: offsets.to_vec(), world }),
        };
        self.check_tensor(buf, end, dtype)?;
        self.crews[gpu].all_gather(stream, &buf.parts[gpu], self.options(), offsets, dtype)
    }

    /// The first failure of any rank.
    ///
    /// # Errors
    /// That failure.
    pub fn check(&self) -> Result<(), CommError> {
        (0..self.group.shape.world()).try_for_each(|rank| self.group.world.check(rank))
    }

    fn check_tensor(&self, buf: &LoopbackBuffer, numel: usize, dtype: DType) -> Result<(), CommError> {
        self.check()?;
        if !Arc::ptr_eq(&buf.owner, &self.group) {
            return Err(CommError::ForeignBuffer);
        }
        if numel.checked_mul(dtype.size_bytes()).is_none_or(|needed| needed > buf.bytes) {
            return Err(CommError::TooLarge { numel, dtype, bytes: buf.bytes });
        }
        Ok(())
    }
}

impl LoopbackBuffer {
    /// The first element of a rank's memory, for kernels and copies that write what is to be summed.
    pub fn addr<T>(&self, rank: usize) -> Addr<T> {
        let count = self.parts[0].count();
        let part = &self.parts[rank / count];
        Addr::new(part.data.ptr_at(rank % count * part.stride).0)
    }

    /// How many 4-byte words lie in a rank's slots and greetings that nobody has taken. Once all calls have ended
    /// there are none: it is why nothing has to be cleared when the sequence number wraps.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn untaken_words(&self, rank: usize, stream: &Stream) -> Result<usize, CommError> {
        Ok(self.parts[rank / self.parts[0].count()].untaken_words(rank, stream)?)
    }

    /// Copies `bytes` to the begin of a rank's memory; returns when they are there.
    ///
    /// # Errors
    /// More bytes than there are, and what the driver refuses.
    pub fn write(&mut self, rank: usize, bytes: &[u8], stream: &Stream) -> Result<(), CommError> {
        let count = self.parts[0].count();
        self.check_len(bytes.len())?;
        let part = &mut self.parts[rank / count];
        let at = rank % count * part.stride;
        Ok(part.data.upload_at(at, bytes, stream)?)
    }

    fn check_len(&self, bytes: usize) -> Result<(), CommError> {
        let length =
            CommError::Length { what: "a rank's buffer, in bytes,", found: self.bytes, expected: bytes };
        if bytes <= self.bytes { Ok(()) } else { Err(length) }
    }

    /// Copies the begin of a rank's memory, after all earlier work of the stream.
    ///
    /// # Errors
    /// More bytes than there are, and what the driver refuses.
    pub fn read(&self, rank: usize, bytes: &mut [u8], stream: &Stream) -> Result<(), CommError> {
        let count = self.parts[0].count();
        self.check_len(bytes.len())?;
        let part = &self.parts[rank / count];
        Ok(part.data.download_at(rank % count * part.stride, bytes, stream)?)
    }
}
