//! A rank that is alone: nothing to exchange.

use half::bf16;

use super::crew::{Crew, Sum};
use crate::comm::CommError;
use crate::driver::Stream;
use crate::kernels::{AddRmsNorm, Addr};

/// Addend and epilogue of a sum over one rank.
pub(super) fn finish(crew: &Crew, stream: &Stream, data: Addr<bf16>, sum: &Sum) -> Result<(), CommError> {
    if sum.numel == 0 {
        return Ok(());
    }
    if sum.addend != Addr::NULL {
        let n = sum.numel as u32;
        crew.launch(stream, &crate::kernels::Add { x: sum.addend, out: data, n }.launch())?;
    }
    let Some(norm) = sum.norm else { return Ok(()) };
    let launch = AddRmsNorm {
        x: data,
        residual: norm.residual,
        weight: norm.gain,
        out: norm.out,
        n_tokens: sum.numel as u32 / norm.hidden,
        hidden: norm.hidden,
        eps: norm.eps,
    };
    crew.launch(stream, &launch.launch())
}
