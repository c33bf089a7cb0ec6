//! What is refused before anything is allocated or enqueued.

use std::sync::Arc;

use super::{DeviceSlice, GpuComm, GroupOptions, MAX_RANKS};
use crate::comm::{AllReduce, CommError, DType, Epilogue, Shape};
use crate::driver::KernelLibrary;

/// Refuses a number of GPUs that is not the shape's, and a GPU that is there twice.
pub(super) fn check_devices(kernels: &[Arc<KernelLibrary>], shape: Shape) -> Result<(), CommError> {
    if kernels.len() != shape.world() {
        return Err(CommError::WrongDevices { shape, devices: kernels.len() });
    }
    if kernels.len() > MAX_RANKS {
        return Err(CommError::Unsupported { what: "more than 32 ranks in one process" });
    }
    check_distinct(kernels)
}

/// Refuses dependent launch where several collectives may run at once: a kernel that is launched early and waits
/// for the one ahead of it takes the place that another rank's partner needs.
pub(super) fn check_in_flight(
    kernels: &[Arc<KernelLibrary>],
    options: &GroupOptions,
) -> Result<(), CommError> {
    if options.in_flight > 1 && kernels.iter().any(|kernels| kernels.is_programmatic()) {
        let what = "dependent launch with several collectives in flight; load the kernels with `programmatic(false)`";
        return Err(CommError::Unsupported { what });
    }
    Ok(())
}

/// Refuses a GPU that is there twice.
pub(super) fn check_distinct(kernels: &[Arc<KernelLibrary>]) -> Result<(), CommError> {
    let same = |a: &KernelLibrary, b: &KernelLibrary| a.device().same_as(b.device());
    if (0..kernels.len()).any(|i| kernels[..i].iter().any(|other| same(other, &kernels[i]))) {
        let what = "two ranks on one GPU, each with launches of its own; they share launches in a Loopback";
        return Err(CommError::Unsupported { what });
    }
    Ok(())
}

/// Lets every GPU write into every other one's memory.
pub(super) fn open_paths(kernels: &[Arc<KernelLibrary>]) -> Result<(), CommError> {
    for (i, one) in kernels.iter().enumerate() {
        for other in kernels.iter().enumerate().filter(|&(j, _)| j != i).map(|(_, other)| other) {
            one.device().enable_peer_access(other.device())?;
        }
    }
    Ok(())
}

/// Checks the slices of a sum; `dtype` other than bf16 has none.
pub(super) fn check_slices(op: &AllReduce<'_, GpuComm>) -> Result<(), CommError> {
    let length = |what, slice: &DeviceSlice| match slice.len {
        found if found == op.numel => Ok(()),
        found => Err(CommError::Length { what, expected: op.numel, found }),
    };
    if let Some(addend) = op.addend {
        length("the addend", addend)?;
    }
    let mut hidden = None;
    if let Epilogue::ResidualRmsNorm { residual, gain, out, .. } = &op.epilogue {
        length("the residual", residual)?;
        length("the norm's output", out)?;
        hidden = Some(gain.len);
    }
    check_rows((op.numel, op.dtype), op.addend.is_some(), hidden)
}

/// Refuses rows that do not make up the tensor, and what kernels do in bf16 alone.
pub(super) fn check_rows(
    (numel, dtype): (usize, DType),
    has_addend: bool,
    hidden: Option<usize>,
) -> Result<(), CommError> {
    if let Some(hidden) = hidden
        && (hidden == 0 || !numel.is_multiple_of(hidden))
    {
        return Err(CommError::Rows { numel, hidden });
    }
    if dtype != DType::Bf16 && (has_addend || hidden.is_some()) {
        let what = "an addend or an epilogue over other types than bf16 on a GPU";
        return Err(CommError::Unsupported { what });
    }
    Ok(())
}
