//! Two products of one shape compute the same, before their times stand side by side.

use half::bf16;

use super::operands::Operands;
use super::products::{Epilogue, Shape};
use super::{BenchError, Work};
use crate::driver::{KernelLibrary, Stream};

/// Rows that are compared.
const ROWS: usize = 4;
/// Of the largest value: sums of either order, rounded to bf16, and with SwiGLU rounded once more before it.
const TOLERANCE: f64 = 0.02;

/// Of the weights, so that they are not the activations, which would make a few values much larger than all
/// others.
const OFFSET_BYTES: usize = 37 * 4096;

/// Runs `theirs`, which takes the weights' offset, and our launch once each over zeros and compares their first rows.
///
/// # Errors
/// [`BenchError::Disagree`]; what the device reports.
pub(super) fn check(
    work: &Work<'_>,
    shape: &Shape,
    library: &KernelLibrary,
    operands: &Operands,
    theirs: impl FnOnce(&Stream, usize) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let launch = (work.launch)(OFFSET_BYTES);
    // SAFETY: the works' launches read the arena and write the output area within their bounds.
    let ours = |stream: &Stream| Ok(unsafe { library.launch(stream, &launch) }?);
    let ours = first_rows(shape, shape.epilogue, operands, ours)?;
    let plain = if shape.epilogue == Epilogue::SwiGlu { Epilogue::Store } else { shape.epilogue };
    let mut theirs = first_rows(shape, plain, operands, |stream| theirs(stream, OFFSET_BYTES))?;
    if shape.epilogue == Epilogue::SwiGlu {
        theirs = swiglu(&theirs);
    }
    let error = scaled_error(&ours, &theirs);
    if error <= TOLERANCE {
        return Ok(());
    }
    Err(BenchError::Disagree { op: work.op, kernel: launch.entry, error })
}

fn first_rows(
    shape: &Shape,
    epilogue: Epilogue,
    operands: &Operands,
    enqueue: impl FnOnce(&Stream) -> Result<(), BenchError>,
) -> Result<Vec<f32>, BenchError> {
    let (rows, stream) = (shape.m.min(ROWS), &operands.stream);
    let width = if epilogue == Epilogue::SwiGlu { shape.n / 2 } else { shape.n };
    operands.zero_out()?;
    enqueue(stream)?;
    let mut bytes = vec![0u8; rows * width * if epilogue == Epilogue::F32 { 4 } else { 2 }];
    operands.out.download_at(0, &mut bytes, stream)?;
    Ok(match epilogue {
        Epilogue::F32 => bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
        _ => {
            bytes.chunks_exact(2).map(|value| bytemuck::pod_read_unaligned::<bf16>(value).to_f32()).collect()
        }
    })
}

/// Gates and ups in turn, as the weights' rows lie.
fn swiglu(y: &[f32]) -> Vec<f32> {
    y.chunks_exact(2).map(|pair| pair[0] / (1.0 + (-pair[0]).exp()) * pair[1]).collect()
}

/// The largest difference over the largest value; infinite where anything is no number or all is zero.
fn scaled_error(ours: &[f32], theirs: &[f32]) -> f64 {
    if ours.len() != theirs.len() || ours.iter().chain(theirs).any(|value| !value.is_finite()) {
        return f64::INFINITY;
    }
    let largest =
        |values: &mut dyn Iterator<Item = f32>| f64::from(values.fold(0.0, |a: f32, b| a.max(b.abs())));
    let scale = largest(&mut theirs.iter().copied());
    let difference = largest(&mut ours.iter().zip(theirs).map(|(a, b)| a - b));
    if scale > 0.0 { difference / scale } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_of_the_largest_value() {
        assert_eq!(scaled_error(&[1.0, -4.0], &[1.5, -4.0]), 0.125);
        for (ours, theirs) in [(&[0.0][..], &[0.0][..]), (&[f32::NAN], &[1.0]), (&[1.0, 1.0], &[1.0])] {
            assert_eq!(scaled_error(ours, theirs), f64::INFINITY, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn swiglu_takes_gate_and_up_in_turn() {
        let halves = swiglu(&[0.0, 5.0, 20.0, 3.0]);
        assert_eq!(halves[0], 0.0);
        assert!((halves[1] - 60.0).abs() < 1e-4);
    }
}
