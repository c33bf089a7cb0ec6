//! A rank that is alone: nothing to exchange.

use half::bf16;

use super::crew::{Crew, Sum, add_norm};
use crate::comm::CommError;
use crate::driver::Stream;
use crate::kernels::{Add, Addr};

/// Addend and epilogue of a sum over one rank.
pub(super) fn finish(crew: &Crew, stream: &Stream, data: Addr<bf16>, sum: &Sum) -> Result<(), CommError> {
    if sum.numel == 0 {
        return Ok(());
    }
    if sum.addend != Addr::NULL {
        let n = sum.numel as u32;
        crew.launch(stream, &Add { x: sum.addend, out: data, n }.launch())?;
    }
    let Some(norm) = sum.norm else { return Ok(()) };
    crew.launch(stream, &add_norm(data, sum.numel, &norm).launch())
}
