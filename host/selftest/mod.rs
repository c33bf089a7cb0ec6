//! Every kernel of the embedded PTX on a real device against plain f64 arithmetic on the CPU.
//!
//! A case runs its kernel over many shapes, odd ones too. Inputs are seeded random numbers followed by NaN;
//! outputs and scratch are poisoned first and lie between guard regions that are looked at afterwards; kernels
//! that keep counters run twice without a reset, as a replayed graph would. [`case_of`] knows every entry: one
//! without a case fails.

mod attention;
pub mod bounds;
mod collective;
mod matrix;
mod paging;
mod pointwise;
pub mod reference;
mod rig;
mod rope;
mod sampling;
mod tally;

use std::sync::Arc;

use serde::Serialize;

use crate::driver::{Device, KernelLibrary, Result};
use crate::kernels::{Entry, HeadDim, Ptx};

use rig::Rig;
use tally::Tally;
pub use tally::error;

/// How one kernel is judged.
pub struct Case {
    /// Largest [`error`] that passes; 0 asks for equal bits.
    pub bound: f64,
    run: Box<Run>,
}

/// Runs all shapes of a kernel.
type Run = dyn Fn(&Rig<'_>, &mut Tally) -> Result<()>;

impl Case {
    fn new(bound: f64, run: impl Fn(&Rig<'_>, &mut Tally) -> Result<()> + 'static) -> Self {
        Self { bound, run: Box::new(run) }
    }
}

/// What became of one kernel.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The entry's name.
    pub kernel: &'static str,
    /// The PTX file.
    pub arch: &'static str,
    /// Shapes that were run.
    pub shapes: usize,
    /// The worst [`error`] of all shapes and outputs.
    pub worst_error: f64,
    /// What it may be.
    pub bound: f64,
    /// One sentence for each thing that is wrong; none if the kernel passed.
    pub failures: Vec<String>,
}

/// The case of an entry, none if nobody wrote one.
pub fn case_of(entry: &str) -> Option<Case> {
    use HeadDim::{D64, D128};
    let case = match entry {
        "add_bf16" => Case::new(0.0, collective::add),
        "embedding_bf16" => Case::new(0.0, pointwise::embedding),
        "rmsnorm_bf16" => Case::new(bounds::ROUNDED, pointwise::rmsnorm),
        "add_rmsnorm_bf16" => Case::new(bounds::ROUNDED, pointwise::add_rmsnorm),
        "rope_kv_write_bf16_d64" => Case::new(bounds::ROUNDED, |rig, tally| rope::run(D64, rig, tally)),
        "rope_kv_write_bf16_d128" => Case::new(bounds::ROUNDED, |rig, tally| rope::run(D128, rig, tally)),
        "attn_decode_bf16_d64" => Case::new(bounds::ATTENTION, |r, t| attention::decode(D64, r, t)),
        "attn_decode_bf16_d128" => Case::new(bounds::ATTENTION, |r, t| attention::decode(D128, r, t)),
        "attn_prefill_bf16_d64" => Case::new(bounds::ATTENTION, |r, t| attention::prefill(D64, r, t)),
        "attn_prefill_bf16_d128" => Case::new(bounds::ATTENTION, |r, t| attention::prefill(D128, r, t)),
        "argmax_f32" => Case::new(0.0, sampling::argmax),
        "sample_f32" => Case::new(bounds::DRAW, sampling::sample),
        "advance_positions_u32" => Case::new(0.0, sampling::advance_positions),
        _ => match collective::Kernel::named(entry) {
            Some(kernel) => Case::new(kernel.bound(), move |rig, tally| kernel.run(rig, tally)),
            None => {
                let kernel = matrix::Kernel::named(entry)?;
                Case::new(kernel.bound(), move |rig, tally| kernel.run(rig, tally))
            }
        },
    };
    Some(case)
}

/// Runs the cases of the kernels in `ptx` whose name begins with `prefix`, telling `done` of each. `quick`
/// leaves the larger shapes out, for tools that slow kernels down a hundredfold.
///
/// # Errors
/// What the device itself refuses or breaks on; wrong results are in the outcomes.
pub fn run(
    device: &Device,
    ptx: &'static Ptx,
    prefix: &str,
    quick: bool,
    mut done: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    let library = Arc::new(KernelLibrary::load_file(device, ptx)?);
    let rig = Rig::new(device, &library, quick)?;
    let mut outcomes = Vec::new();
    for entry in ptx.entries.iter().filter(|entry| entry.name.starts_with(prefix)) {
        let outcome = run_entry(&rig, ptx, entry)?;
        done(&outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn run_entry(rig: &Rig<'_>, ptx: &Ptx, entry: &Entry) -> Result<Outcome> {
    let Some(case) = case_of(entry.name) else {
        let failures = vec!["there is no case for it in host/selftest".to_owned()];
        let (kernel, arch) = (entry.name, ptx.arch);
        return Ok(Outcome { kernel, arch, shapes: 0, worst_error: f64::INFINITY, bound: 0.0, failures });
    };
    rig.restart_inputs();
    let mut tally = Tally::new(entry.name, case.bound);
    (case.run)(rig, &mut tally)?;
    Ok(tally.finish(ptx.arch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::PTX;

    #[test]
    fn every_kernel_has_a_case() {
        for (ptx, entry) in PTX.iter().flat_map(|ptx| ptx.entries.iter().map(move |entry| (ptx, entry))) {
            assert!(case_of(entry.name).is_some(), "{}.ptx: {} has no case", ptx.arch, entry.name);
        }
        for unknown in [
            "gemm_bf16_16x32",
            "gemm_bf16_32x32_add",
            "gemv_bf16_m1_relu",
            "argmax",
            "allreduce_bf16_oneshot",
        ] {
            assert!(case_of(unknown).is_none(), "{unknown}");
        }
    }
}
