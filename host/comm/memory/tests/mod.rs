//! Groups of threads against plain arithmetic, against the schedule, and against misfortune.

mod collectives;
mod failures;
mod order;
mod stages;

use std::{thread, time::Duration};

use half::{bf16, f16};

use super::*;
use crate::comm::{
    AllGather, AllReduce, Communicator, Counts, DType, Phase, Stage, Topology, schedule::Step, sequence,
};

/// Every kind: alone, one node, one rank per node, both, not powers of two.
const SHAPES: [&str; 8] = ["1x1", "1x5", "2x2", "3x1", "2x3", "3x3", "5x1", "1x9"];

/// Runs `body` as every rank of a fresh group and returns what each gave, in rank order.
fn on_ranks<R: Send>(shape: &str, options: Options, body: impl Fn(MemoryComm) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let ranks: Vec<_> = group(shape.parse().unwrap(), options)
            .into_iter()
            .map(|comm| scope.spawn(|| body(comm)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Numbers in [-1, 1) that depend on all of `seeds` (SplitMix64).
fn random(seeds: [usize; 3], numel: usize) -> Vec<f32> {
    let mut state = seeds.iter().fold(0u64, |h, &s| (h ^ s as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    (0..numel)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn fill<T: Element>(buf: &mut MemoryBuffer, values: &[f32]) {
    buf.as_mut_slice::<T>().iter_mut().zip(values).for_each(|(to, &value)| *to = T::from_f32(value));
}

fn read<T: Element>(buf: &MemoryBuffer, numel: usize) -> Vec<f32> {
    buf.as_slice::<T>()[..numel].iter().map(|&element| element.to_f32()).collect()
}

/// A plain sum.
fn all_reduce(
    comm: &MemoryComm,
    buf: &mut MemoryBuffer,
    numel: usize,
    dtype: DType,
) -> Result<(), CommError> {
    comm.enqueue(&(), AllReduce { buf, numel, dtype, addend: None, epilogue: super::super::Epilogue::None })
}
