//! The ranks of a group that live on one GPU and share its launches: usually one.

use std::sync::Arc;

use half::bf16;

use super::choose::{self, Site, Task, Tuning};
use super::failure::{Alarms, Meta};
use super::layout::Layout;
use super::options::{GroupOptions, PeerMemory};
use super::region::{Region, Regions};
use crate::comm::{Collective, CommError, DType, Phase, Shape, sequence};
use crate::driver::{Device, DeviceBuffer, GpuError, KernelLibrary, Stream};
use crate::kernels::nvrar::{self, Elements, Execution, Far, Format, NormAfter, Ranks, Slices};
use crate::kernels::{AddRmsNorm, Addr, Launch, params};

/// bf16 in a unit of 16 bytes.
const BF16_PER_UNIT: u32 = 8;
/// Buffers are readable up to a multiple of it.
const DATA_ALIGN: usize = 256;

/// Some ranks of a group, consecutive ones, on one GPU.
#[derive(Debug, Clone)]
pub(super) struct Crew {
    pub(super) kernels: Arc<KernelLibrary>,
    pub(super) alarms: Arc<Alarms>,
    /// Place of the first rank among the alarms.
    pub(super) first_alarm: usize,
    /// The first rank.
    pub(super) first: usize,
    pub(super) count: usize,
    /// Most blocks of a rank, equal on all: see [`max_blocks`].
    pub(super) max_blocks: u32,
    /// The group's shape and number.
    pub(super) shape: Shape,
    pub(super) group: u32,
    /// The kernels that put between nodes, where messages go that way.
    pub(super) puts: Option<Arc<KernelLibrary>>,
}

/// A buffer as a crew has it.
#[derive(Debug)]
pub(super) struct Part {
    /// The tensors, `stride` bytes apart.
    pub(super) data: DeviceBuffer<u8>,
    pub(super) stride: usize,
    rows: DeviceBuffer<u8>,
    layout: Layout,
    /// All ranks' regions: none is freed while one rank's kernels may write into it.
    regions: Arc<[Arc<Region>]>,
}

/// A sum to be enqueued; addresses are the first rank's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum {
    pub(super) numel: usize,
    pub(super) dtype: DType,
    pub(super) addend: Addr<bf16>,
    pub(super) norm: Option<NormAfter>,
    /// In place of what the group's options say.
    pub(super) tuning: Option<Tuning>,
    /// Elements from one rank's slices to the next one's.
    pub(super) slice_stride: usize,
}

impl Part {
    /// Ranks that it belongs to.
    pub(super) fn count(&self) -> usize {
        self.rows.len() / params::ROW_BYTES as usize
    }

    /// Words of 4 bytes that nobody has taken from the region of `rank`, of the group.
    pub(super) fn untaken_words(&self, rank: usize, stream: &Stream) -> Result<usize, GpuError> {
        let mut bytes = vec![0; self.layout.bytes];
        match &*self.regions[rank] {
            Region::Device(region) => region.download_at(0, &mut bytes, stream)?,
            Region::Pinned(region) => bytes.copy_from_slice(region),
            Region::Slice(memory, at) => memory.download_at(*at, &mut bytes, stream)?,
            Region::Symmetric(_) => unreachable!("the ranks of a loopback are of one process"),
        }
        let words = self.layout.area(Format::Words);
        let words = words.offset..words.offset + 2 * words.bytes;
        let is_untaken = |(index, word): (usize, &[u8])| {
            word.iter().any(|&byte| byte != if words.contains(&(4 * index)) { u8::MAX } else { 0 })
        };
        Ok(bytes.chunks_exact(4).enumerate().filter(|&word| is_untaken(word)).count())
    }
}

impl Crew {
    pub(super) fn device(&self) -> &Device {
        self.kernels.device()
    }

    /// Empty regions of this crew's ranks.
    pub(super) fn regions(&self, layout: &Layout, memory: PeerMemory) -> Result<Vec<Arc<Region>>, GpuError> {
        let stream = self.device().stream()?;
        (0..self.count).map(|_| Ok(Arc::new(Region::new(self.device(), layout, memory, &stream)?))).collect()
    }

    /// Its part of a buffer of `bytes` whose regions are known.
    pub(super) fn part(
        &self,
        bytes: usize,
        layout: Layout,
        regions: Regions,
        options: &GroupOptions,
    ) -> Result<Part, GpuError> {
        let stream = self.device().stream()?;
        // Kernels read the first unit of a tensor whatever its length.
        let stride = bytes.next_multiple_of(DATA_ALIGN).max(DATA_ALIGN);
        let mut rows = vec![0_u8; self.count * params::ROW_BYTES as usize];
        let with_views = rows.chunks_exact_mut(params::ROW_BYTES as usize).zip(&regions.views);
        for (index, (row, view)) in with_views.enumerate() {
            let mut put = |at: u64, value: u64| {
                row[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
            };
            put(params::ROW_SEQUENCE, sequence::valid(options.first_sequence));
            put(params::ROW_RECORD, self.alarms.record(self.first_alarm + index));
            put(params::ROW_STAGING, view.staging);
            for (at, &name) in (params::ROW_REGIONS..).step_by(8).zip(&view.names) {
                put(at, name);
            }
        }
        let data = self.device().allocate_zeroed(self.count * stride, &stream)?;
        let rows = self.device().upload(&rows, &stream)?;
        Ok(Part { data, stride, rows, layout, regions: regions.kept })
    }

    fn ranks(&self, part: &Part, options: &GroupOptions) -> Ranks {
        Ranks {
            rows: part.rows.addr(),
            failed: self.alarms.failed(self.first_alarm),
            first: self.first as u32,
            count: self.count as u32,
            nodes: self.shape.nodes as u32,
            gpus_per_node: self.shape.gpus_per_node as u32,
            group: self.group,
            limit_ns: u64::try_from(options.time_limit.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    fn site(&self) -> Site {
        let max_row_blocks = if self.kernels.ptx().has_clusters() { params::MAX_ROW_BLOCKS } else { 1 };
        let far = if self.puts.is_some() { Far::Puts } else { Far::Stores };
        Site { shape: self.shape, max_blocks: self.max_blocks, max_row_blocks, far }
    }

    /// Enqueues a sum, and what follows it: in one launch where rows are whole units that fit a pass (in two shots all of
    /// them) and nothing is put, else in two.
    pub(super) fn all_reduce(
        &self,
        stream: &Stream,
        part: &Part,
        options: &GroupOptions,
        sum: Sum,
    ) -> Result<(), CommError> {
        let (execution, is_fused) = self.execution_of(part, options, &sum)?;
        if is_fused {
            let launch = self.sum_launch(part, options, &sum, execution, Collective::AllReduce, None);
            return self.launch(stream, &launch);
        }
        let plain = Sum { norm: None, ..sum };
        self.sum(stream, part, options, &plain, execution, Collective::AllReduce)?;
        let Some(norm) = sum.norm.filter(|_| sum.numel > 0) else { return Ok(()) };
        for rank in 0..self.count {
            let at = |slice: Addr<bf16>| slice.at(rank * sum.slice_stride);
            let data = Addr::new(part.data.ptr_at(rank * part.stride).0);
            let norm = NormAfter { residual: at(norm.residual), out: at(norm.out), ..norm };
            self.launch(stream, &add_norm(data, sum.numel, &norm).launch())?;
        }
        Ok(())
    }

    /// How a sum is executed, and whether residual and norm are part of its launch.
    pub(super) fn execution_of(
        &self,
        part: &Part,
        options: &GroupOptions,
        sum: &Sum,
    ) -> Result<(Execution, bool), CommError> {
        let (units, bytes) = (units(sum.numel, sum.dtype)?, sum.numel * sum.dtype.size_bytes());
        let tuning = |hidden| sum.tuning.or_else(|| options.tuning_of(sum.dtype, hidden, bytes));
        let execution = |row_units, tuning: Option<Tuning>| {
            let task = Task::Sum { units, row_units };
            self.site().execution(task, &part.layout, tuning.unwrap_or_default())
        };
        let rows = sum.norm.map(|norm| norm.hidden).filter(|hidden| hidden.is_multiple_of(BF16_PER_UNIT));
        let of_rows = rows.and_then(|hidden| tuning(Some(hidden as usize)));
        let fused = rows.and_then(|hidden| execution(Some(hidden / BF16_PER_UNIT), of_rows));
        match fused {
            Some(execution) => Ok((execution, true)),
            None => Ok((execution(None, of_rows.or_else(|| tuning(None))).ok_or(NO_PASS)?, false)),
        }
    }

    /// Enqueues one phase of a sum: a launch per pass, since not all ranks hear from each other in a phase.
    pub(super) fn phase(
        &self,
        stream: &Stream,
        part: &Part,
        options: &GroupOptions,
        phase: Phase,
        (numel, dtype): (usize, DType),
    ) -> Result<(), CommError> {
        let task = Task::Phase { units: units(numel, dtype)? };
        let tuning = options.tuning.unwrap_or_default();
        let execution = self.site().execution(task, &part.layout, tuning).ok_or(NO_PASS)?;
        let sum = Sum { numel, dtype, addend: Addr::NULL, norm: None, tuning: None, slice_stride: 0 };
        self.sum(stream, part, options, &sum, execution, Collective::Stage(phase))
    }

    /// Enqueues a gather of pieces that begin and end at `offsets`: a launch per pass.
    pub(super) fn all_gather(
        &self,
        stream: &Stream,
        part: &Part,
        options: &GroupOptions,
        offsets: &[usize],
        dtype: DType,
    ) -> Result<(), CommError> {
        let end = offsets.last().copied().unwrap_or_default();
        units(end, dtype)?;
        let longest = offsets.windows(2).map(|piece| piece[1] - piece[0]).max().unwrap_or_default();
        let task = Task::Gather { units: units(longest, dtype)? };
        let tuning = options.tuning.unwrap_or_default();
        let execution = self.site().execution(task, &part.layout, tuning).ok_or(NO_PASS)?;
        let mut alike: Vec<u64> = offsets.iter().map(|&offset| offset as u64).collect();
        alike.extend([execution.format as u64, execution.pass_units.into(), execution.far as u64]);
        let offsets: Vec<u32> = offsets.iter().map(|&offset| offset as u32).collect();
        for pass in 0..execution.passes {
            alike.push(pass.into());
            let launch = nvrar::AllGather {
                ranks: self.ranks(part, options),
                execution,
                data: part.data.addr(),
                data_stride: part.stride as u64,
                element_bytes: dtype.size_bytes() as u32,
                offsets: &offsets,
                first_unit: pass * execution.pass_units,
                meta: Meta::new(Collective::AllGather, dtype, &alike).bits(),
            };
            self.launch(stream, &launch.launch())?;
        }
        Ok(())
    }

    /// Enqueues a sum, or a phase of one: a launch, or one for each pass of a phase and of what is put.
    fn sum(
        &self,
        stream: &Stream,
        part: &Part,
        options: &GroupOptions,
        sum: &Sum,
        execution: Execution,
        collective: Collective,
    ) -> Result<(), CommError> {
        if collective == Collective::AllReduce && execution.far == Far::Stores {
            let launch = self.sum_launch(part, options, sum, execution, collective, None);
            return self.launch(stream, &launch);
        }
        (0..execution.passes).try_for_each(|pass| {
            self.launch(stream, &self.sum_launch(part, options, sum, execution, collective, Some(pass)))
        })
    }

    /// The launch of all passes, or of one.
    fn sum_launch(
        &self,
        part: &Part,
        options: &GroupOptions,
        sum: &Sum,
        execution: Execution,
        collective: Collective,
        only_pass: Option<u32>,
    ) -> Launch {
        let mut alike = vec![
            execution.algorithm as u64,
            execution.format as u64,
            execution.passes.into(),
            execution.pass_units.into(),
            execution.far as u64,
        ];
        let execution = Execution { passes: only_pass.map_or(execution.passes, |_| 1), ..execution };
        if execution.passes > 1 {
            alike.extend([execution.blocks, execution.workers].map(u64::from));
        }
        // The order in which a row's squares are added up.
        if let Some(norm) = sum.norm {
            alike.extend([norm.hidden, execution.row_blocks, execution.workers].map(u64::from));
        }
        let pass = only_pass.unwrap_or_default();
        alike.push(pass.into());
        let meta = Meta::new(collective, sum.dtype, &alike);
        let launch = nvrar::AllReduce {
            ranks: self.ranks(part, options),
            execution,
            elements: elements(sum),
            data: part.data.addr(),
            data_stride: part.stride as u64,
            numel: sum.numel as u32,
            meta: meta.bits(),
            phases: phases(collective),
            first_unit: pass * execution.pass_units,
        };
        launch.launch()
    }

    pub(super) fn launch(&self, stream: &Stream, launch: &Launch) -> Result<(), CommError> {
        let has_it = |kernels: &&Arc<KernelLibrary>| kernels.kernel(launch.entry).is_some();
        let kernels = self.puts.as_ref().filter(has_it).unwrap_or(&self.kernels);
        // SAFETY: the launches of this module touch only registered buffers and slices whose lengths were checked;
        // `DeviceSlice::new` promised that they stay. All blocks are resident: see `max_blocks`.
        Ok(unsafe { kernels.launch(stream, launch) }?)
    }
}

/// Most blocks of a rank: one per multiprocessor of the smallest GPU that `in_flight` collectives leave to each of
/// `ranks` on a GPU, so that all are resident whichever kernel they run.
pub(super) fn max_blocks(kernels: &[Arc<KernelLibrary>], ranks: usize, in_flight: u32) -> u32 {
    let smallest = kernels.iter().map(|kernels| kernels.device().properties().multiprocessors).min();
    (smallest.unwrap_or_default() / (ranks as u32 * in_flight.max(1))).max(1)
}

/// Residual and norm by a launch of their own.
pub(super) fn add_norm(data: Addr<bf16>, numel: usize, norm: &NormAfter) -> AddRmsNorm {
    let &NormAfter { residual, gain, out, hidden, eps } = norm;
    let n_tokens = (numel / hidden as usize) as u32;
    AddRmsNorm { x: data, residual, sum: residual, weight: gain, out, n_tokens, hidden, eps }
}

const NO_PASS: CommError =
    CommError::Unsupported { what: "a tensor whose smallest part does not fit the slots" };

fn units(numel: usize, dtype: DType) -> Result<u32, CommError> {
    let what = "a tensor of 8 GiB or more; sum it in parts";
    choose::units(numel * dtype.size_bytes()).ok_or(CommError::Unsupported { what })
}

/// The phases of a collective, as its kernels have them.
fn phases(collective: Collective) -> u32 {
    match collective {
        Collective::Stage(Phase::Reduce) => params::PHASE_REDUCE,
        Collective::Stage(Phase::Put) => params::PHASE_PUT,
        Collective::Stage(Phase::Broadcast) => params::PHASE_BROADCAST,
        Collective::AllReduce | Collective::AllGather => {
            params::PHASE_REDUCE | params::PHASE_PUT | params::PHASE_BROADCAST
        }
    }
}

fn elements(sum: &Sum) -> Elements {
    let stride = (sum.slice_stride * size_of::<bf16>()) as u64;
    match sum.dtype {
        DType::Bf16 => Elements::Bf16(Slices { addend: sum.addend, norm: sum.norm, stride }),
        DType::F16 => Elements::F16,
        DType::F32 => Elements::F32,
    }
}
