//! Cases of the collectives: many ranks on the one GPU, to the bit.

use half::{bf16, f16};

use super::group::{Group, random};
use super::puts;
use super::rig::Rig;
use super::tally::Tally;
use crate::comm::gpu::{Algorithm, Format, Tuning};
use crate::comm::{CommError, DType, Element, Shape};
use crate::driver::{GpuError, Result};
use crate::kernels::nvrar::Far;

/// Topologies of several nodes, or of one that sums in shards.
const TWO_SHOT_SHAPES: [(usize, usize); 7] = [(2, 2), (4, 2), (3, 3), (2, 4), (1, 8), (5, 1), (1, 3)];
const ONE_SHOT_SHAPES: [(usize, usize); 4] = [(1, 2), (1, 3), (1, 5), (1, 8)];
/// None, one, primes, whole units, more than one unit for a thread.
pub(super) const NUMELS: [usize; 9] = [4096, 0, 1, 7, 63, 300_007, 8, 1009, 65_536];
/// Rows of fewer and more units than threads, over one block and several.
pub(super) const ROWS: [(usize, usize); 7] =
    [(8, 1), (576, 3), (4096, 1), (4096, 17), (8192, 2), (16_384, 1), (65_536, 2)];

/// What a collective's name says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kernel {
    AllReduce(DType, Algorithm, Format),
    Norm(Algorithm, Format),
    AllGather(Format),
    AllReducePut(DType),
    AllGatherPut,
}

impl Kernel {
    pub(super) fn named(entry: &str) -> Option<Self> {
        let dtype = |name| [DType::Bf16, DType::F16, DType::F32].into_iter().find(|d| d.to_string() == name);
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
            ["allgather", "put"] => Some(Self::AllGatherPut),
            ["allgather", name] => Some(Self::AllGather(format(name)?)),
            ["allreduce", name, "put"] => Some(Self::AllReducePut(dtype(name)?)),
            ["allreduce", "bf16", hops, name, "norm"] => Some(Self::Norm(algorithm(hops)?, format(name)?)),
            ["allreduce", of, hops, name] => {
                Some(Self::AllReduce(dtype(of)?, algorithm(hops)?, format(name)?))
            }
            _ => None,
        }
    }

    /// Residual and norm follow the sum of bf16, in its launch or in one of their own.
    pub(super) fn bound(self) -> f64 {
        match self {
            Self::Norm(..) | Self::AllReducePut(DType::Bf16) => super::bounds::ROUNDED,
            _ => 0.0,
        }
    }

    pub(super) fn run(self, rig: &Rig<'_>, tally: &mut Tally) -> Result<()> {
        let done = match self {
            Self::AllReduce(DType::Bf16, algorithm, format) => sums::<bf16>(rig, tally, algorithm, format),
            Self::AllReduce(DType::F16, algorithm, format) => sums::<f16>(rig, tally, algorithm, format),
            Self::AllReduce(DType::F32, algorithm, format) => sums::<f32>(rig, tally, algorithm, format),
            Self::Norm(algorithm, format) => norms(rig, tally, algorithm, format),
            Self::AllGather(format) => gathers(rig, tally, format),
            Self::AllReducePut(DType::Bf16) => puts::sums_and_norms(rig, tally),
            Self::AllReducePut(DType::F16) => puts::sums::<f16>(rig, tally),
            Self::AllReducePut(DType::F32) => puts::sums::<f32>(rig, tally),
            Self::AllGatherPut => puts::gathers(rig, tally),
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

fn shapes(algorithm: Algorithm) -> impl Iterator<Item = Shape> {
    let shapes: &[_] = match algorithm {
        Algorithm::OneShot => &ONE_SHOT_SHAPES,
        Algorithm::TwoShot => &TWO_SHOT_SHAPES,
    };
    shapes.iter().map(|&(nodes, gpus_per_node)| Shape { nodes, gpus_per_node })
}

/// Whole sums, and with shards the phases one after the other, of alternating sizes on one buffer.
fn sums<T: Element>(
    rig: &Rig<'_>,
    tally: &mut Tally,
    algorithm: Algorithm,
    format: Format,
) -> Result<(), CommError> {
    let tuning = Tuning { algorithm: Some(algorithm), format: Some(format), ..Tuning::default() };
    for shape in shapes(algorithm) {
        let most = NUMELS.into_iter().max().unwrap_or_default() * size_of::<T>();
        let mut group = Group::new(rig, shape, most, Far::Stores, tuning)?;
        for numel in NUMELS.into_iter().filter(|&numel| rig.wants(numel * 64)) {
            let of_rank = random::<T>(rig, shape, numel);
            tally.shape(format_args!("{shape}, {numel} elements"));
            group.sum(tally, &of_rank)?;
            if algorithm == Algorithm::TwoShot {
                tally.shape(format_args!("{shape}, {numel} elements, phase by phase"));
                group.sum_by_phases(tally, &of_rank)?;
            }
        }
    }
    Ok(())
}

/// Sum, residual and norm with an addend.
fn norms(rig: &Rig<'_>, tally: &mut Tally, algorithm: Algorithm, format: Format) -> Result<(), CommError> {
    let tuning = Tuning { algorithm: Some(algorithm), format: Some(format), ..Tuning::default() };
    for shape in shapes(algorithm) {
        let most = ROWS.iter().map(|&(hidden, rows)| hidden * rows).max().unwrap_or_default();
        let mut group = Group::new(rig, shape, most * 2, Far::Stores, tuning)?;
        for (hidden, rows) in ROWS.into_iter().filter(|&(hidden, rows)| rig.wants(hidden * rows * 64)) {
            tally.shape(format_args!("{shape}, {rows} rows of {hidden}"));
            group.norm(rig, tally, (hidden, rows), algorithm == Algorithm::OneShot)?;
        }
    }
    Ok(())
}

/// Pieces of uneven sizes, empty ones and such that no unit is aligned among them.
fn gathers(rig: &Rig<'_>, tally: &mut Tally, format: Format) -> Result<(), CommError> {
    let tuning = Tuning { format: Some(format), ..Tuning::default() };
    for shape in shapes(Algorithm::TwoShot).chain(shapes(Algorithm::OneShot)) {
        gathers_of::<f32>(rig, tally, shape, Far::Stores, tuning)?;
    }
    for shape in shapes(Algorithm::TwoShot).chain(shapes(Algorithm::OneShot)) {
        gathers_of::<bf16>(rig, tally, shape, Far::Stores, tuning)?;
    }
    Ok(())
}

pub(super) fn gathers_of<T: Element>(
    rig: &Rig<'_>,
    tally: &mut Tally,
    shape: Shape,
    far: Far,
    tuning: Tuning,
) -> Result<(), CommError> {
    let world = shape.world();
    let equal = |piece: usize| vec![piece; world];
    let uneven: Vec<usize> = (0..world).map(|rank| (rank * 1237 + 5) % 2048).collect();
    let some: Vec<usize> = (0..world).map(|rank| rank % 2 * 777).collect();
    let lists = [equal(64), uneven, equal(0), some, equal(20_000), equal(3)];
    let most = lists.iter().map(|sizes| sizes.iter().sum::<usize>()).max().unwrap_or_default();
    let mut group = Group::new(rig, shape, most * size_of::<T>(), far, tuning)?;
    for sizes in lists {
        tally.shape(format_args!("{shape}, {} pieces of {sizes:?}", T::DTYPE));
        group.gather::<T>(rig, tally, &sizes)?;
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
