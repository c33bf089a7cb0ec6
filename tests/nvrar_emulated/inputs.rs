//! What ranks bring, and what they must end with.

use fewsync::comm::{DType, Element};
use half::{bf16, f16};

use crate::model;
use crate::run::{Found, NormOfRank};
use crate::scenario::{Call, Kind, Scenario};
use crate::seeds::Random;

/// Added to the mean of squares.
pub(crate) const EPS: f32 = 1e-5;
/// What lies where nobody has put anything yet: finite as any type.
const BACKGROUND: u8 = 0x3c;
/// bf16 rounding of a result, and as much again for approximate instructions.
const NORM_TOLERANCE: f64 = 1.0 / 128.0;

/// What ranks bring to all calls of a scenario.
pub(crate) struct Inputs {
    /// Of every buffer on every rank.
    pub(crate) background: Vec<u8>,
    /// By call and rank; no ranks where the call takes what is there.
    pub(crate) fresh: Vec<Vec<Vec<u8>>>,
    /// By call.
    pub(crate) slices: Vec<GivenSlices>,
}

/// The operands of a sum beside the buffer; empty where it has none.
#[derive(Default)]
pub(crate) struct GivenSlices {
    /// By rank.
    pub(crate) addend: Vec<Vec<bf16>>,
    /// By rank, alike.
    pub(crate) residual: Vec<Vec<bf16>>,
    pub(crate) gain: Vec<bf16>,
}

impl Inputs {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut random = Random(!scenario.seed);
        let world = scenario.shape.world();
        let nans = scenario.nans;
        let fresh = scenario.calls.iter().map(|call| {
            let ranks = if call.fresh { world } else { 0 };
            (0..ranks).map(|_| elements(&mut random, call, nans)).collect()
        });
        let fresh = fresh.collect();
        let slices = scenario.calls.iter().map(|call| given(&mut random, call, world)).collect();
        Self { background: vec![BACKGROUND; scenario.bytes()], fresh, slices }
    }
}

/// In [-2, 2), in steps that bf16 has not all of.
fn value(random: &mut Random) -> f32 {
    random.below(1 << 14) as f32 / (1 << 12) as f32 - 2.0
}

fn tensor<T: Element>(random: &mut Random, numel: usize) -> Vec<T> {
    (0..numel).map(|_| T::from_f32(value(random))).collect()
}

/// A rank's elements, as bytes. Among NaNs are those that stand for an empty place of the words format.
fn elements(random: &mut Random, call: &Call, nans: bool) -> Vec<u8> {
    let mut bytes = match call.dtype {
        DType::F32 => bytemuck::cast_slice(&tensor::<f32>(random, call.numel)).to_vec(),
        DType::F16 => bytemuck::cast_slice(&tensor::<f16>(random, call.numel)).to_vec(),
        DType::Bf16 => bytemuck::cast_slice(&tensor::<bf16>(random, call.numel)).to_vec(),
    };
    if nans {
        for word in bytes.chunks_mut(4).filter(|_| random.once_in(16)) {
            word.fill(u8::MAX);
        }
    }
    bytes
}

fn given(random: &mut Random, call: &Call, world: usize) -> GivenSlices {
    let Kind::Sum { addend, hidden } = call.kind else { return GivenSlices::default() };
    let addend = (0..world).map(|_| if addend { tensor(random, call.numel) } else { Vec::new() }).collect();
    let residual = if hidden.is_some() { tensor(random, call.numel) } else { Vec::new() };
    GivenSlices { addend, residual: vec![residual; world], gain: tensor(random, hidden.unwrap_or_default()) }
}

/// Whether a run left what the model leaves, on every rank; if not, where.
pub(crate) fn judge(scenario: &Scenario, inputs: &Inputs, found: &Found) -> Result<(), String> {
    let world = scenario.shape.world();
    let mut state = vec![vec![inputs.background.clone(); world]; scenario.buffers()];
    let mut dtypes = vec![DType::F32; scenario.buffers()];
    for (i, call) in scenario.calls.iter().enumerate() {
        let of_rank = &mut state[call.buf];
        for (own, fresh) in of_rank.iter_mut().zip(&inputs.fresh[i]) {
            own[..fresh.len()].copy_from_slice(fresh);
        }
        dtypes[call.buf] = call.dtype;
        let brought = of_rank.clone();
        match call.dtype {
            DType::F32 => apply::<f32>(scenario, call, &inputs.slices[i], of_rank),
            DType::F16 => apply::<f16>(scenario, call, &inputs.slices[i], of_rank),
            DType::Bf16 => apply::<bf16>(scenario, call, &inputs.slices[i], of_rank),
        }
        if let Kind::Sum { hidden: Some(hidden), .. } = call.kind {
            let sums = if scenario.adds_wide_sums(hidden) {
                fp32_sums(call, &inputs.slices[i], &brought)
            } else {
                decode::<bf16>(&of_rank[0], call.numel).into_iter().map(bf16::to_f32).collect()
            };
            norms(&inputs.slices[i], &sums, hidden, &found.norms[i])
                .map_err(|it| format!("call {i}: {it}"))?;
        }
    }
    for (buf, (expected, found)) in state.iter().zip(&found.buffers).enumerate() {
        for (rank, (expected, found)) in expected.iter().zip(found).enumerate() {
            let wrong = match dtypes[buf] {
                DType::F32 => first_wrong::<f32>(expected, found),
                DType::F16 => first_wrong::<f16>(expected, found),
                DType::Bf16 => first_wrong::<bf16>(expected, found),
            };
            wrong.map_or(Ok(()), |wrong| Err(format!("buffer {buf} of rank {rank}: {wrong}")))?;
        }
    }
    match found.untaken_words {
        0 => Ok(()),
        words => Err(format!("{words} words were left in slots by messages that nobody took")),
    }
}

fn decode<T: Element>(bytes: &[u8], numel: usize) -> Vec<T> {
    bytes[..numel * size_of::<T>()].chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// In rank order.
fn fp32_sums(call: &Call, given: &GivenSlices, brought: &[Vec<u8>]) -> Vec<f32> {
    let mut sums = vec![0.0; call.numel];
    for (rank, bytes) in brought.iter().enumerate() {
        for (i, x) in decode::<bf16>(bytes, call.numel).into_iter().enumerate() {
            let more = given.addend[rank].get(i).map(|more| bf16::from_f32(x.to_f32() + more.to_f32()));
            let own = more.unwrap_or(x).to_f32();
            sums[i] = if rank == 0 { own } else { sums[i] + own };
        }
    }
    sums
}

/// The call's effect on the buffer.
fn apply<T: Element>(scenario: &Scenario, call: &Call, given: &GivenSlices, state: &mut [Vec<u8>]) {
    let mut of_rank: Vec<Vec<T>> = state.iter().map(|bytes| decode(bytes, call.numel)).collect();
    for (own, addend) in of_rank.iter_mut().zip(&given.addend) {
        for (x, more) in own.iter_mut().zip(addend) {
            *x = T::from_f32(bf16::from_f32(x.to_f32() + more.to_f32()).to_f32());
        }
    }
    match &call.kind {
        Kind::Sum { .. } => model::all_reduce(scenario.shape, &mut of_rank, None),
        Kind::Phase(phase) => model::all_reduce(scenario.shape, &mut of_rank, Some(*phase)),
        Kind::Gather { offsets } => model::all_gather(scenario.shape, &mut of_rank, offsets),
    }
    for (bytes, own) in state.iter_mut().zip(&of_rank) {
        bytes[..call.bytes()].copy_from_slice(bytemuck::cast_slice(own));
    }
}

/// Residuals to the bit, norms within their tolerance, and alike on all ranks.
fn norms(given: &GivenSlices, sums: &[f32], hidden: usize, found: &[NormOfRank]) -> Result<(), String> {
    let after = given.residual[0].iter().zip(sums).map(|(a, b)| bf16::from_f32(a.to_f32() + b));
    let residual: Vec<bf16> = after.collect();
    let wide = |x: &bf16| f64::from(*x);
    for (rank, (after, out)) in found.iter().enumerate() {
        if let Some(wrong) = first_wrong::<bf16>(bytemuck::cast_slice(&residual), bytemuck::cast_slice(after))
        {
            return Err(format!("the residual of rank {rank}: {wrong}"));
        }
        if let Some(wrong) = first_wrong::<bf16>(bytemuck::cast_slice(&found[0].1), bytemuck::cast_slice(out))
        {
            return Err(format!("ranks 0 and {rank} do not have the same norms: {wrong}"));
        }
        for (row, out) in residual.chunks(hidden).zip(out.chunks(hidden)) {
            let squares: f64 = row.iter().map(|x| wide(x) * wide(x)).sum();
            let scale = (squares / hidden as f64 + f64::from(EPS)).sqrt().recip();
            for (i, (x, found)) in row.iter().zip(out).enumerate() {
                let expected = wide(x) * scale * wide(&given.gain[i]);
                let error = (expected - wide(found)).abs();
                if error > NORM_TOLERANCE * expected.abs() || expected.is_nan() != found.is_nan() {
                    return Err(format!(
                        "the norm of rank {rank}, column {i}: {found} instead of {expected}"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Where two buffers differ by more than the bits of a NaN.
fn first_wrong<T: Element>(expected: &[u8], found: &[u8]) -> Option<String> {
    let whole = expected.len() / size_of::<T>();
    let (left, right) = (decode::<T>(expected, whole), decode::<T>(found, whole));
    let alike = |a: &T, b: &T| {
        bytemuck::bytes_of(a) == bytemuck::bytes_of(b) || (a.to_f32().is_nan() && b.to_f32().is_nan())
    };
    let at = left.iter().zip(&right).position(|(a, b)| !alike(a, b))?;
    Some(format!("element {at} is {} instead of {}", right[at].to_f32(), left[at].to_f32()))
}
