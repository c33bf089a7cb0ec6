//! What surrounds the sum on each rank: the addend before it, residual and norm after it.

use half::{bf16, f16};

use super::{CpuBuffer, CpuComm, Link};
use crate::comm::{CommError, DType, Element, Epilogue};

/// Checks the lengths of everything that goes with a tensor of `numel` elements.
pub(super) fn check<L: Link>(
    numel: usize,
    addend: Option<&[f32]>,
    epilogue: &Epilogue<'_, CpuComm<L>>,
) -> Result<(), CommError> {
    let length = |what, slice: &[f32]| match slice.len() {
        found if found == numel => Ok(()),
        found => Err(CommError::Length { what, expected: numel, found }),
    };
    if let Some(addend) = addend {
        length("the addend", addend)?;
    }
    if let Epilogue::ResidualRmsNorm { residual, gain, out, .. } = epilogue {
        length("the residual", residual)?;
        length("the norm's output", out)?;
        if !numel.is_multiple_of(gain.len()) {
            return Err(CommError::Rows { numel, hidden: gain.len() });
        }
    }
    Ok(())
}

/// Adds `addend` to the front of the buffer, rounded to its dtype: what other ranks receive of it is what this
/// rank sums itself.
pub(super) fn contribute<L: Link>(buf: &mut CpuBuffer<L>, dtype: DType, addend: &[f32]) {
    fn add<T: Element>(to: &mut [T], addend: &[f32]) {
        to.iter_mut().zip(addend).for_each(|(to, &value)| *to = T::from_f32(to.to_f32() + value));
    }
    match dtype {
        DType::F32 => add::<f32>(buf.as_mut_slice(), addend),
        DType::F16 => add::<f16>(buf.as_mut_slice(), addend),
        DType::Bf16 => add::<bf16>(buf.as_mut_slice(), addend),
    }
}

/// Runs the epilogue over the sum in the buffer.
pub(super) fn apply<L: Link>(buf: &CpuBuffer<L>, dtype: DType, epilogue: Epilogue<'_, CpuComm<L>>) {
    let Epilogue::ResidualRmsNorm { residual, gain, eps, out } = epilogue else { return };
    match dtype {
        DType::F32 => add_to::<f32>(residual, buf.as_slice()),
        DType::F16 => add_to::<f16>(residual, buf.as_slice()),
        DType::Bf16 => add_to::<bf16>(residual, buf.as_slice()),
    }
    rms_norm(residual, gain, eps, out);
}

fn add_to<T: Element>(residual: &mut [f32], sum: &[T]) {
    residual.iter_mut().zip(sum).for_each(|(residual, element)| *residual += element.to_f32());
}

/// `row / sqrt(mean(row²) + eps) · gain` for each row of `gain.len()`; the squares are summed in f64.
pub(crate) fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    if gain.is_empty() {
        return;
    }
    for (row, out) in x.chunks_exact(gain.len()).zip(out.chunks_exact_mut(gain.len())) {
        let mean_square = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / row.len() as f64;
        let scale = (mean_square + f64::from(eps)).sqrt().recip() as f32;
        for ((out, &x), &gain) in out.iter_mut().zip(row).zip(gain) {
            *out = x * scale * gain;
        }
    }
}
