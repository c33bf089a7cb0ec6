//! Cases of the collectives: many ranks on the one GPU, to the bit.

use std::sync::Arc;
use std::time::Duration;

use half::{bf16, f16};

use super::pointwise::norm_rows;
use super::record::Freedom;
use super::reference::{fp32_sum_of_ranks, sum_of_ranks, widen};
use super::rig::Rig;
use super::tally::Tally;
use crate::comm::gpu::{Algorithm, Format, GroupOptions, Loopback, LoopbackBuffer, LoopbackSlices, Tuning};
use crate::comm::{CommError, DType, Element, Phase, Shape};
use crate::driver::{GpuError, Result, Stream};
use crate::kernels::nvrar::NormAfter;

/// Topologies of several nodes, or of one that sums in shards.
const TWO_SHOT_SHAPES: [(usize, usize); 7] = [(2, 2), (4, 2), (3, 3), (2, 4), (1, 8), (5, 1), (1, 3)];
const ONE_SHOT_SHAPES: [(usize, usize); 4] = [(1, 2), (1, 3), (1, 5), (1, 8)];
/// None, one, primes, whole units, more than one unit for a thread.
const NUMELS: [usize; 9] = [4096, 0, 1, 7, 63, 300_007, 8, 1009, 65_536];
/// Rows of fewer and more units than threads, over one block and several.
const ROWS: [(usize, usize); 7] =
    [(8, 1), (576, 3), (4096, 1), (4096, 17), (8192, 2), (16_384, 1), (65_536, 2)];
/// A limit that only a fault reaches.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Numbers that wrap within a case.
const FIRST_SEQUENCE: u64 = (1 << 32) - 10;
const EPS: f32 = 1e-5;

/// What a collective's name says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kernel {
    AllReduce(DType, Algorithm, Format),
    Norm(Algorithm, Format),
    AllGather(Format),
}

impl Kernel {
    pub(super) fn named(entry: &str) -> Option<Self> {
        let format = |name| match name {
            "cells" => Some(Format::Cells),
            "words" => Some(Format::Words),
            _ => None,
        };
        let algorithm = |name| match name {
            "oneshot" => Some(Algorithm::OneShot),
            "twoshot" => Some(Algorithm::TwoShot),
            _ => None,
        };
        let parts: Vec<&str> = entry.split('_').collect();
        match parts[..] {
            ["allgather", name] => Some(Self::AllGather(format(name)?)),
            ["allreduce", "bf16", hops, name, "norm"] => Some(Self::Norm(algorithm(hops)?, format(name)?)),
            ["allreduce", dtype, hops, name] => {
                let dtype =
                    [DType::Bf16, DType::F16, DType::F32].into_iter().find(|d| d.to_string() == dtype)?;
                Some(Self::AllReduce(dtype, algorithm(hops)?, format(name)?))
            }
            _ => None,
        }
    }

    pub(super) fn bound(self) -> f64 {
        if matches!(self, Self::Norm(..)) { super::bounds::ROUNDED } else { 0.0 }
    }

    pub(super) fn run(self, rig: &Rig<'_>, tally: &mut Tally) -> Result<()> {
        let done = match self {
            Self::AllReduce(DType::Bf16, algorithm, format) => sums::<bf16>(rig, tally, algorithm, format),
            Self::AllReduce(DType::F16, algorithm, format) => sums::<f16>(rig, tally, algorithm, format),
            Self::AllReduce(DType::F32, algorithm, format) => sums::<f32>(rig, tally, algorithm, format),
            Self::Norm(algorithm, format) => norms(rig, tally, algorithm, format),
            Self::AllGather(format) => gathers(rig, tally, format),
        };
        match done {
            Ok(()) => Ok(()),
            Err(CommError::Gpu(error)) => Err(error),
            Err(error) => {
                tally.fail(error.to_string());
                Ok(())
            }
        }
    }
}

/// A group on the GPU, its stream and a buffer.
struct Setup {
    ranks: Loopback,
    stream: Stream,
    buf: LoopbackBuffer,
    world: usize,
}

impl Setup {
    fn new(rig: &Rig<'_>, shape: Shape, bytes: usize, tuning: Tuning) -> Result<Self, CommError> {
        let options = GroupOptions {
            time_limit: TIME_LIMIT,
            first_sequence: FIRST_SEQUENCE,
            tuning: Some(tuning),
            ..GroupOptions::default()
        };
        let ranks = Loopback::new(&[Arc::clone(rig.library())], shape, options)?;
        let buf = ranks.register(bytes)?;
        Ok(Self { ranks, stream: rig.device().stream()?, buf, world: shape.world() })
    }

    /// Writes each rank's elements, and behind them a mark.
    fn write<T: Element>(&mut self, of_rank: &[Vec<T>]) -> Result<(), CommError> {
        for (rank, elements) in of_rank.iter().enumerate() {
            let mut bytes = bytemuck::cast_slice::<T, u8>(elements).to_vec();
            bytes.extend(MARK);
            self.buf.write(rank, &bytes, &self.stream)?;
        }
        Ok(())
    }

    /// Waits, and reads each rank's elements; notes a failure if a mark was overwritten.
    fn read<T: Element>(&self, numel: usize, tally: &mut Tally) -> Result<Vec<Vec<T>>, CommError> {
        self.stream.synchronize()?;
        self.ranks.check()?;
        let (mut all, mut of_rank) = (Vec::new(), Vec::new());
        for rank in 0..self.world {
            let mut bytes = vec![0; numel * size_of::<T>() + MARK.len()];
            self.buf.read(rank, &mut bytes, &self.stream)?;
            let (elements, mark) = bytes.split_at(numel * size_of::<T>());
            if mark != MARK {
                tally.fail(format!("rank {rank} wrote behind the tensor"));
            }
            all.extend_from_slice(elements);
            of_rank.push(elements.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect());
        }
        tally.keep("tensors", &all, &Freedom::None);
        Ok(of_rank)
    }
}

/// What lies behind a tensor: no element that a sum could leave.
const MARK: [u8; 12] = [0xa5; 12];

fn random<T: Element>(rig: &Rig<'_>, world: usize, numel: usize) -> Vec<Vec<T>> {
    (0..world).map(|_| rig.random(numel, 1.0).into_iter().map(T::from_f32).collect()).collect()
}

fn equal_bits<T: Element>(tally: &mut Tally, what: &str, expected: &[T], of_rank: &[Vec<T>]) {
    for (rank, found) in of_rank.iter().enumerate() {
        let what = format!("{what} of rank {rank}");
        let bits = |x: &[T]| x.iter().map(|x| bytemuck::bytes_of(x).to_vec()).collect::<Vec<_>>();
        if bytemuck::cast_slice::<T, u8>(expected) != bytemuck::cast_slice::<T, u8>(found) {
            tally.equal(&what, &bits(expected), &bits(found));
        }
    }
}

fn shapes(algorithm: Algorithm) -> &'static [(usize, usize)] {
    match algorithm {
        Algorithm::OneShot => &ONE_SHOT_SHAPES,
        Algorithm::TwoShot => &TWO_SHOT_SHAPES,
    }
}

/// Whole sums, and with shards the phases one after the other, of alternating sizes on one buffer.
fn sums<T: Element>(
    rig: &Rig<'_>,
    tally: &mut Tally,
    algorithm: Algorithm,
    format: Format,
) -> Result<(), CommError> {
    let tuning = Tuning { algorithm: Some(algorithm), format: Some(format), ..Tuning::default() };
    for &(nodes, gpus_per_node) in shapes(algorithm) {
        let shape = Shape { nodes, gpus_per_node };
        let most = NUMELS.into_iter().max().unwrap_or_default() * size_of::<T>() + MARK.len();
        let mut setup = Setup::new(rig, shape, most, tuning)?;
        for numel in NUMELS.into_iter().filter(|&numel| rig.wants(numel * 64)) {
            let of_rank = random::<T>(rig, shape.world(), numel);
            let expected = sum_of_ranks(shape, &of_rank);
            tally.shape(format_args!("{shape}, {numel} elements"));
            setup.write(&of_rank)?;
            let call = (numel, T::DTYPE);
            // SAFETY: no slices.
            unsafe { setup.ranks.all_reduce(0, &setup.stream, &mut setup.buf, call, LoopbackSlices::NONE)? };
            let found = setup.read::<T>(numel, tally)?;
            equal_bits(tally, "the sum", &expected, &found);
            if algorithm == Algorithm::TwoShot {
                tally.shape(format_args!("{shape}, {numel} elements, phase by phase"));
                setup.write(&of_rank)?;
                for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
                    setup.ranks.phase(0, &setup.stream, &mut setup.buf, phase, call)?;
                }
                let found = setup.read::<T>(numel, tally)?;
                equal_bits(tally, "the sum", &expected, &found);
            }
        }
    }
    Ok(())
}

/// Sum, residual and norm with an addend: sums and residuals to the bit, norms up to the bound.
fn norms(rig: &Rig<'_>, tally: &mut Tally, algorithm: Algorithm, format: Format) -> Result<(), CommError> {
    let tuning = Tuning { algorithm: Some(algorithm), format: Some(format), ..Tuning::default() };
    for &(nodes, gpus_per_node) in shapes(algorithm) {
        let shape = Shape { nodes, gpus_per_node };
        let most = ROWS.iter().map(|&(hidden, rows)| hidden * rows).max().unwrap_or_default();
        let mut setup = Setup::new(rig, shape, most * 2 + MARK.len(), tuning)?;
        for (hidden, rows) in ROWS.into_iter().filter(|&(hidden, rows)| rig.wants(hidden * rows * 64)) {
            let numel = hidden * rows;
            tally.shape(format_args!("{shape}, {rows} rows of {hidden}"));
            let (own, addend) =
                (random::<bf16>(rig, shape.world(), numel), rig.random_bf16(shape.world() * numel, 1.0));
            let (residual, gain) =
                (rig.random_bf16(shape.world() * numel, 1.0), rig.random_bf16(hidden, 1.0));
            let (d_addend, d_residual, d_gain) =
                (rig.holding(&addend)?, rig.holding(&residual)?, rig.holding(&gain)?);
            let out = rig.poisoned(shape.world() * numel)?;
            setup.write(&own)?;
            let norm = NormAfter {
                residual: d_residual.addr(),
                gain: d_gain.addr(),
                out: out.addr(),
                hidden: hidden as u32,
                eps: EPS,
            };
            let slices = LoopbackSlices { addend: d_addend.addr(), norm: Some(norm), stride: numel };
            let call = (numel, DType::Bf16);
            // SAFETY: the slices have a tensor for each rank and live until the sum has been waited for.
            unsafe { setup.ranks.all_reduce(0, &setup.stream, &mut setup.buf, call, slices)? };
            let add = |a: &bf16, b: &bf16| bf16::from_f32(a.to_f32() + b.to_f32());
            let brought = own.iter().zip(addend.chunks(numel));
            let brought: Vec<Vec<bf16>> =
                brought.map(|(own, more)| own.iter().zip(more).map(|(a, b)| add(a, b)).collect()).collect();
            let sum = sum_of_ranks(shape, &brought);
            let found = setup.read::<bf16>(numel, tally)?;
            equal_bits(tally, "the sum", &sum, &found);
            // In one shot the residual gets the sum before it is rounded, in two shots what travels.
            let wide = match algorithm {
                Algorithm::OneShot => fp32_sum_of_ranks(&brought),
                Algorithm::TwoShot => sum.iter().map(|x| x.to_f32()).collect(),
            };
            let after: Vec<bf16> = residual
                .chunks(numel)
                .flat_map(|own| own.iter().zip(&wide).map(|(a, b)| bf16::from_f32(a.to_f32() + b)))
                .collect();
            let found = tally.read(rig, "residual", &d_residual)?;
            equal_bits(tally, "the residual", &after, &[found]);
            tally.close_bf16(rig, "out", &norm_rows(&widen(&after), &gain, hidden), &out, hidden)?;
        }
    }
    Ok(())
}

/// Pieces of uneven sizes, empty ones and such that no unit is aligned among them.
fn gathers(rig: &Rig<'_>, tally: &mut Tally, format: Format) -> Result<(), CommError> {
    gathers_of::<f32>(rig, tally, format)?;
    gathers_of::<bf16>(rig, tally, format)
}

fn gathers_of<T: Element>(rig: &Rig<'_>, tally: &mut Tally, format: Format) -> Result<(), CommError> {
    let tuning = Tuning { format: Some(format), ..Tuning::default() };
    for (nodes, gpus_per_node) in TWO_SHOT_SHAPES.into_iter().chain(ONE_SHOT_SHAPES) {
        let shape = Shape { nodes, gpus_per_node };
        let world = shape.world();
        let equal = |piece: usize| vec![piece; world];
        let uneven: Vec<usize> = (0..world).map(|rank| (rank * 1237 + 5) % 2048).collect();
        let some: Vec<usize> = (0..world).map(|rank| rank % 2 * 777).collect();
        let lists = [equal(64), uneven, equal(0), some, equal(20_000), equal(3)];
        let most = lists.iter().map(|sizes| sizes.iter().sum::<usize>()).max().unwrap_or_default();
        let mut setup = Setup::new(rig, shape, most * size_of::<T>() + MARK.len(), tuning)?;
        for sizes in lists {
            let offsets: Vec<usize> = std::iter::once(0)
                .chain(sizes.iter().scan(0, |end, size| {
                    *end += size;
                    Some(*end)
                }))
                .collect();
            let numel = offsets[world];
            tally.shape(format_args!("{shape}, {} pieces of {sizes:?}", T::DTYPE));
            let expected: Vec<T> = rig.random(numel, 1.0).into_iter().map(T::from_f32).collect();
            let of_rank: Vec<Vec<T>> = (0..world)
                .map(|rank| {
                    let mut own = vec![T::from_f32(-7.0); numel];
                    own[offsets[rank]..offsets[rank + 1]]
                        .copy_from_slice(&expected[offsets[rank]..offsets[rank + 1]]);
                    own
                })
                .collect();
            setup.write(&of_rank)?;
            setup.ranks.all_gather(0, &setup.stream, &mut setup.buf, &offsets, T::DTYPE)?;
            let found = setup.read::<T>(numel, tally)?;
            equal_bits(tally, "the pieces", &expected, &found);
        }
    }
    Ok(())
}

/// `out += x`, rounded once.
pub(super) fn add(rig: &Rig<'_>, tally: &mut Tally) -> Result<(), GpuError> {
    for n in [1, 7, 8, 9, 4096, 100_003] {
        tally.shape(format_args!("{n} elements"));
        let (x, out) = (rig.random_bf16(n, 1.0), rig.random_bf16(n, 1.0));
        let (d_x, d_out) = (rig.holding(&x)?, rig.holding(&out)?);
        let launch = crate::kernels::Add { x: d_x.addr(), out: d_out.addr(), n: n as u32 }.launch();
        tally.launches(&launch);
        // SAFETY: the buffers have `n` elements and live until the launch has been waited for.
        unsafe { rig.launch(&launch)? };
        let expected: Vec<bf16> =
            x.iter().zip(&out).map(|(a, b)| bf16::from_f32(b.to_f32() + a.to_f32())).collect();
        let found = tally.read(rig, "out", &d_out)?;
        tally.equal("out", &expected, &found);
    }
    Ok(())
}
