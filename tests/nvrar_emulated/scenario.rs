//! One schedule to be tried: machine, group, calls, all of it a function of a seed.

use std::fmt;
use std::time::Duration;

use fewsync::comm::gpu::{Algorithm, Format, GroupOptions, PeerMemory, Tuning};
use fewsync::comm::{DType, Phase, Shape};
use fewsync::driver::{EmulatorOptions, PutUnit, Schedule};

use crate::seeds::Random;

const SHAPES: [(usize, usize); 9] = [(1, 2), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (2, 2), (3, 2), (2, 3)];
/// Where numbers begin: at the first one, and shortly before the low half wraps.
const FIRST_SEQUENCES: [u64; 5] = [2, (1 << 32) - 1, (1 << 32) - 2, (1 << 32) - 5, (7 << 32) - 3];
/// Lengths of one pass, mostly primes and edges of units, granules and warps.
const SHORT: [usize; 16] = [0, 1, 2, 7, 8, 9, 31, 63, 64, 65, 127, 251, 256, 257, 509, 777];
/// Units of a pass where a call has several.
const PASS_UNITS: u32 = 96;
/// Rows to be normalised: hidden, and how many.
const ROWS: [(usize, usize); 8] = [(8, 1), (8, 5), (24, 3), (64, 4), (256, 1), (264, 2), (520, 1), (12, 3)];
/// Far beyond what a wait takes in emulated time.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(1);

/// How ranks and GPUs go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// A GPU and a thread of the host per rank, through `GpuComm`.
    Group,
    /// The ranks dealt to so many GPUs, each GPU's in one launch.
    Loopback { gpus: usize },
    /// All ranks in one GPU's launches; messages to other nodes are put within it.
    LoopbackPuts,
    /// A GPU per rank, a PE of NVSHMEM: messages to other nodes are puts, of which so much arrives whole.
    Pes { unit: PutUnit },
}

/// A kind of call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With an addend, and with residual and RMSNorm over rows of so many.
    Sum {
        addend: bool,
        hidden: Option<usize>,
    },
    Phase(Phase),
    /// Of pieces between these elements.
    Gather {
        offsets: Vec<usize>,
    },
}

/// One collective.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    pub(crate) dtype: DType,
    pub(crate) numel: usize,
    /// On which buffer, and on the stream that goes with it.
    pub(crate) buf: usize,
    /// New elements are put into the buffer before; else it takes what the call before has left.
    pub(crate) fresh: bool,
}

impl Call {
    pub(crate) fn bytes(&self) -> usize {
        self.numel * self.dtype.size_bytes()
    }
}

/// One schedule.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) machine: EmulatorOptions,
    pub(crate) shape: Shape,
    pub(crate) home: Home,
    /// Of the PTX file.
    pub(crate) arch: &'static str,
    pub(crate) options: GroupOptions,
    pub(crate) calls: Vec<Call>,
    /// Some elements are NaNs with all bits set, which the words format cannot send as they are.
    pub(crate) nans: bool,
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let (nodes, gpus_per_node) = random.pick(&SHAPES);
        let shape = Shape { nodes, gpus_per_node };
        let world = shape.world();
        let divisors: Vec<usize> = (1..=world).filter(|gpus| world.is_multiple_of(*gpus)).collect();
        let home = match random.below(8) {
            0 => Home::Group,
            1..4 => Home::Loopback { gpus: random.pick(&divisors) },
            _ => Home::Loopback { gpus: world },
        };
        let arch = random.pick(&["sm_80", "sm_90a"]);
        let mut options = options(&mut random, nodes);
        let calls = calls(&mut random, shape, &options.tuning.unwrap_or_default());
        options.in_flight = calls.iter().map(|call| call.buf as u32 + 1).max().unwrap_or(1);
        options.dependent_launch &= options.in_flight == 1;
        let nans = random.once_in(8);
        let machine = machine(&mut random, if let Home::Loopback { gpus } = home { gpus } else { world });
        Self { seed, machine, shape, home, arch, options, calls, nans }
    }

    /// Of ranks that are PEs: up to five nodes of up to three.
    pub(crate) fn of_puts(seed: u64) -> Self {
        let mut scenario = Self::new(seed);
        let mut random = Random(seed ^ 0xbeef);
        // Large worlds are the slow ones.
        let (most_nodes, most_gpus) = random.pick(&[(3, 1), (3, 2), (4, 2), (5, 3)]);
        let shape =
            Shape { nodes: 2 + random.below(most_nodes - 1), gpus_per_node: 1 + random.below(most_gpus) };
        let mut options = options(&mut random, shape.nodes);
        if shape.world() > 4 {
            // What takes long shows on few ranks as well.
            options.tuning = options.tuning.map(|it| Tuning { pass_units: None, ..it });
        }
        options.memory = PeerMemory::Nvshmem { direct: random.once_in(2) };
        let tuning = options.tuning.unwrap_or_default();
        // Several passes are several launches.
        let most_calls = if shape.world() > 6 || tuning.pass_units.is_some() { 2 } else { 4 };
        let (count, buffers) = (1 + random.below(most_calls), 1 + usize::from(random.once_in(4)));
        scenario.calls = sequence_of_calls(&mut random, shape, &tuning, buffers, count);
        options.in_flight = scenario.buffers() as u32;
        options.dependent_launch &= options.in_flight == 1;
        scenario.machine.devices = shape.world() as u32;
        Self { shape, options, home: Home::Pes { unit: PutUnit::B8 }, ..scenario }
    }

    /// With so many short calls on two buffers, the numbers of both wrapping on the way.
    pub(crate) fn of_many_calls(seed: u64, shape: Shape, count: usize) -> Self {
        let mut scenario = Self::new(seed);
        let mut random = Random(seed ^ 0xca11);
        scenario.options.tuning = scenario.options.tuning.map(|it| Tuning { pass_units: None, ..it });
        scenario.options.first_sequence = (1 << 32) - count as u64 / 4;
        scenario.calls = sequence_of_calls(&mut random, shape, &Tuning::default(), 2, count);
        (scenario.options.in_flight, scenario.options.dependent_launch) = (2, false);
        Self { shape, ..scenario }
    }

    /// The same between PEs of NVSHMEM.
    pub(crate) fn between_pes(mut self) -> Self {
        self.home = Home::Pes { unit: PutUnit::B8 };
        self.machine.devices = self.shape.world() as u32;
        self.options.memory = PeerMemory::Nvshmem { direct: true };
        self
    }

    /// The same with all ranks on one GPU.
    pub(crate) fn within_a_gpu(mut self) -> Self {
        self.home = Home::LoopbackPuts;
        self.machine.devices = 1;
        self.options.memory = PeerMemory::Direct;
        self
    }

    pub(crate) fn buffers(&self) -> usize {
        self.calls.iter().map(|call| call.buf + 1).max().unwrap_or(1)
    }

    /// What every buffer is registered with: some bytes more than the longest tensor.
    pub(crate) fn bytes(&self) -> usize {
        let longest = self.calls.iter().map(Call::bytes).max().unwrap_or_default();
        longest.next_multiple_of(4) + 4 * (self.seed % 8 + 1) as usize
    }

    /// Whether the residual gets the sum before it is rounded, where rows of `hidden` are normalised: one shot, in whole
    /// units.
    pub(crate) fn adds_wide_sums(&self, hidden: usize) -> bool {
        let algorithm = self.options.tuning.and_then(|tuning| tuning.algorithm);
        self.shape.nodes == 1 && hidden.is_multiple_of(8) && algorithm != Some(Algorithm::TwoShot)
    }

    /// Whether rows are normalised in the launch that sums them in two shots.
    pub(crate) fn has_shared_rows(&self) -> bool {
        let is_shared = |call: &Call| {
            let Kind::Sum { hidden: Some(hidden), .. } = call.kind else { return false };
            hidden.is_multiple_of(8) && call.numel > 0 && !self.adds_wide_sums(hidden)
        };
        self.calls.iter().any(is_shared)
    }

    pub(crate) fn has_passes(&self) -> bool {
        self.options.tuning.is_some_and(|tuning| tuning.pass_units.is_some())
    }

    pub(crate) fn format(&self) -> Option<Format> {
        self.options.tuning.and_then(|tuning| tuning.format)
    }
}

fn machine(random: &mut Random, devices: usize) -> EmulatorOptions {
    let suspicion = random.below(10);
    EmulatorOptions {
        devices: devices as u32,
        seed: random.next(),
        schedule: random.pick(&Schedule::ALL),
        weak: !matches!(suspicion, 0..3),
        race: matches!(suspicion, 1..4),
        // Ranks of one GPU share them: each may have four blocks.
        multiprocessors: 24,
        ..EmulatorOptions::default()
    }
}

fn options(random: &mut Random, nodes: usize) -> GroupOptions {
    let has_passes = random.once_in(4);
    let tuning = Tuning {
        algorithm: (nodes == 1).then(|| random.pick(&[Algorithm::OneShot, Algorithm::TwoShot])),
        format: Some(random.pick(&[Format::Cells, Format::Words])),
        blocks: random.pick(&[None, Some(1), Some(2), Some(3)]),
        workers: Some(if has_passes { 32 } else { random.pick(&[32, 32, 64]) }),
        row_blocks: Some(1 + random.below(2) as u32),
        pass_units: has_passes.then_some(PASS_UNITS),
    };
    GroupOptions {
        memory: if random.once_in(8) { PeerMemory::HostStaged } else { PeerMemory::Direct },
        time_limit: TIME_LIMIT,
        first_sequence: random.pick(&FIRST_SEQUENCES),
        tuning: (has_passes || !random.once_in(8)).then_some(tuning),
        dependent_launch: random.once_in(2),
        ..GroupOptions::default()
    }
}

fn calls(random: &mut Random, shape: Shape, tuning: &Tuning) -> Vec<Call> {
    let buffers = 1 + usize::from(random.once_in(4));
    let count = 1 + random.below(if tuning.pass_units.is_some() { 2 } else { 5 });
    sequence_of_calls(random, shape, tuning, buffers, count)
}

fn sequence_of_calls(
    random: &mut Random,
    shape: Shape,
    tuning: &Tuning,
    buffers: usize,
    count: usize,
) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for _ in 0..count {
        let mut call = Call { buf: random.below(buffers), ..any_call(random, shape, tuning) };
        // What is summed again and again overflows.
        let of_buf = calls.iter().rev().filter(|earlier| earlier.buf == call.buf);
        let grown = of_buf.clone().take_while(|earlier| !earlier.fresh).count();
        let same = of_buf.clone().next().is_some_and(|last| last.dtype == call.dtype);
        // Elements of another type may have squares that no f32 holds.
        let is_normalised = matches!(call.kind, Kind::Sum { hidden: Some(_), .. });
        call.fresh = !same || grown > 1 || is_normalised || random.once_in(2);
        calls.push(call);
    }
    calls
}

fn any_call(random: &mut Random, shape: Shape, tuning: &Tuning) -> Call {
    let dtype = random.pick(&[DType::Bf16, DType::F16, DType::F32]);
    let (kind, dtype, numel) = match random.below(10) {
        0 | 1 => {
            let phase = random.pick(&[Phase::Reduce, Phase::Put, Phase::Broadcast]);
            (Kind::Phase(phase), dtype, length(random, shape, dtype, tuning))
        }
        2 | 3 => {
            let longest = if tuning.pass_units.is_some() { 1000 } else { 200 };
            let mut offsets = vec![0];
            for _ in 0..shape.world() {
                let piece = if random.once_in(4) { 0 } else { random.below(longest) };
                offsets.push(offsets[offsets.len() - 1] + piece);
            }
            let numel = offsets[shape.world()];
            (Kind::Gather { offsets }, dtype, numel)
        }
        4..7 => {
            let (hidden, rows) = random.pick(&ROWS);
            let hidden = if random.once_in(4) { None } else { Some(hidden) };
            let numel =
                hidden.map_or_else(|| length(random, shape, DType::Bf16, tuning), |hidden| hidden * rows);
            (Kind::Sum { addend: random.once_in(2), hidden }, DType::Bf16, numel)
        }
        _ => (Kind::Sum { addend: false, hidden: None }, dtype, length(random, shape, dtype, tuning)),
    };
    Call { kind, dtype, numel, buf: 0, fresh: true }
}

/// Where there are several passes, as many as two to four take of each shard.
fn length(random: &mut Random, shape: Shape, dtype: DType, tuning: &Tuning) -> usize {
    let Some(pass_units) = tuning.pass_units else { return random.pick(&SHORT) };
    let one_shot = tuning.algorithm == Some(Algorithm::OneShot);
    let shards = if one_shot { 1 } else { shape.gpus_per_node };
    let pass = pass_units as usize * shards * 16 / dtype.size_bytes();
    pass * (2 + random.below(2)) + random.below(pass)
}

/// What a person needs to know of it.
impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, machine, shape, home, arch, options, calls, .. } = self;
        write!(f, "seed {seed}: {shape} as {home:?}, {arch}, emulator {machine}, {:?}, ", options.memory)?;
        write!(f, "first sequence {}, {:?}", options.first_sequence, options.tuning)?;
        calls.iter().try_for_each(|call| write!(f, "\n    {call:?}"))
    }
}
