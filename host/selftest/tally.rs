//! Comparing results, and keeping count.

use std::fmt::{Debug, Display};

use bytemuck::Pod;
use half::bf16;

use super::Outcome;
use super::bounds;
use super::record::{Freedom, Outputs, StoredOutput, freedom_of};
use super::rig::{Guarded, Rig};
use crate::driver::Result;
use crate::kernels::Launch;

/// Sentences of a kernel's failures that are kept.
const MAX_FAILURES: usize = 8;

/// The largest deviation in units of what the value's row is like: |found − expected| / max(|expected|, root
/// mean square of the row), over all elements of all rows of `width`. Infinite where something is not a number.
///
/// A maximum, so that one wrong element in a million shows; per row, so that rows of small numbers count as
/// much as others; against the root mean square, so that an element which cancels to nearly nothing does not.
pub fn error(expected: &[f64], found: &[f64], width: usize) -> f64 {
    assert_eq!(expected.len(), found.len(), "as many results as expected");
    let rows = expected.chunks(width.max(1)).zip(found.chunks(width.max(1)));
    rows.map(|(expected, found)| row_error(expected, found)).fold(0.0, f64::max)
}

/// The sum over all elements of how much too large their magnitudes are, in the same units.
///
/// Rounding errs both ways and cancels; what truncates, or drops a small term everywhere, does not.
fn excess(expected: &[f64], found: &[f64], width: usize) -> f64 {
    let rows = expected.chunks(width.max(1)).zip(found.chunks(width.max(1)));
    let row = |(expected, found): (&[f64], &[f64])| {
        let floor = floor(expected);
        let element = |(e, f): (&f64, &f64)| (f - e) * e.signum() / e.abs().max(floor);
        expected.iter().zip(found).map(element).sum::<f64>()
    };
    rows.map(row).sum()
}

/// The root mean square of a row, below which no element counts as smaller.
fn floor(expected: &[f64]) -> f64 {
    let mean_square = expected.iter().map(|e| e * e).sum::<f64>() / expected.len() as f64;
    mean_square.sqrt().max(f64::MIN_POSITIVE)
}

fn row_error(expected: &[f64], found: &[f64]) -> f64 {
    let floor = floor(expected);
    let element = |(e, f): (&f64, &f64)| if e == f { 0.0 } else { (f - e).abs() / e.abs().max(floor) };
    // `f64::max` would drop a NaN.
    let worst = |worst: f64, error: f64| if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    expected.iter().zip(found).map(element).fold(0.0, worst)
}

/// What is known of one kernel so far.
pub(super) struct Tally<'a> {
    kernel: &'static str,
    bound: f64,
    shapes: usize,
    shape: String,
    worst_error: f64,
    compared: usize,
    excess: f64,
    failures: Vec<String>,
    outputs: Outputs<'a>,
    /// Of the next output, where the kernel's name does not say it.
    freedom: Option<Freedom>,
}

impl<'a> Tally<'a> {
    /// `recorded` are the outputs of another run to compare with.
    pub(super) fn new(kernel: &'static str, bound: f64, recorded: Option<&'a [StoredOutput]>) -> Self {
        Self {
            kernel,
            bound,
            shapes: 0,
            shape: String::new(),
            worst_error: 0.0,
            compared: 0,
            excess: 0.0,
            failures: Vec::new(),
            outputs: Outputs::new(recorded),
            freedom: None,
        }
    }

    pub(super) fn finish(self, arch: &'static str) -> Outcome {
        let Self { kernel, bound, shapes, worst_error, mut failures, outputs, .. } = self;
        if shapes == 0 {
            failures.push("its case ran no shape".to_owned());
        }
        let bias = self.excess / self.compared.max(1) as f64;
        if self.compared >= bounds::BIAS_MIN_VALUES && bias.abs() > bounds::BIAS {
            let bound = bounds::BIAS;
            failures.push(format!(
                "its magnitudes are off by {bias:+.2e} on average, allowed is {bound:.2e}: something truncates"
            ));
        }
        let (outputs, agreement) = outputs.finish();
        Outcome { kernel, arch, shapes, worst_error, bound, failures, agreement, outputs }
    }

    /// Whether outputs are compared with recorded ones.
    pub(super) fn is_comparing(&self) -> bool {
        self.outputs.is_comparing()
    }

    /// By what the output that is read next may differ between devices.
    pub(super) fn may_differ(&mut self, freedom: Freedom) {
        self.freedom = Some(freedom);
    }

    /// What follows belongs to this shape.
    pub(super) fn shape(&mut self, shape: impl Display) {
        self.shapes += 1;
        self.shape = shape.to_string();
    }

    /// Notes a failure unless the launch is of the kernel that this is about.
    pub(super) fn launches(&mut self, launch: &Launch) {
        if launch.entry != self.kernel {
            self.fail(format!("the case launched {} instead", launch.entry));
        }
    }

    /// Compares an output with what it should be, up to the kernel's bound.
    pub(super) fn close(&mut self, what: &str, expected: &[f64], found: &[f64], width: usize) {
        let error = error(expected, found, width);
        self.worst_error = self.worst_error.max(error);
        self.compared += expected.len();
        self.excess += excess(expected, found, width);
        if error > self.bound {
            let bound = self.bound;
            self.fail(format!("{what} is off by {error:.2e}, allowed is {bound:.2e}"));
        }
    }

    /// As [`Tally::close`], of a buffer of bf16 whose guards must be intact.
    pub(super) fn close_bf16(
        &mut self,
        rig: &Rig<'_>,
        what: &str,
        expected: &[f64],
        buffer: &Guarded<bf16>,
        width: usize,
    ) -> Result<()> {
        let found: Vec<f64> = self.read(rig, what, buffer)?.into_iter().map(f64::from).collect();
        self.close(what, expected, &found, width);
        Ok(())
    }

    /// Judges drawn tokens by how far each lies from where it may.
    pub(super) fn draws(&mut self, tokens: &[u32], errors: &[f64]) {
        for (row, (token, &error)) in tokens.iter().zip(errors).enumerate() {
            self.worst_error = self.worst_error.max(error);
            if error > self.bound {
                let bound = self.bound;
                self.fail(format!(
                    "draw {row} gave token {token}, {error:.2e} from its interval, allowed is {bound:.2e}"
                ));
            }
        }
    }

    /// Compares an output with what it should be to the bit.
    pub(super) fn equal<T: PartialEq + Debug>(&mut self, what: &str, expected: &[T], found: &[T]) {
        let different = expected.iter().zip(found).position(|(e, f)| e != f);
        if let Some(i) = different {
            self.worst_error = f64::INFINITY;
            self.fail(format!("{what}[{i}] is {:?} and should be {:?}", found[i], expected[i]));
        }
    }

    /// A buffer's elements; notes a failure if its guards were written.
    pub(super) fn read<T: Pod>(&mut self, rig: &Rig<'_>, what: &str, buffer: &Guarded<T>) -> Result<Vec<T>> {
        let (data, intact) = rig.read(buffer)?;
        if !intact {
            self.fail(format!("it wrote outside of {what}"));
        }
        let freedom = self.freedom.take().unwrap_or_else(|| freedom_of(self.kernel, what));
        self.keep(what, &data, &freedom);
        Ok(data)
    }

    /// Takes note of an output, and compares it with the recorded one.
    pub(super) fn keep<T: Pod>(&mut self, what: &str, data: &[T], freedom: &Freedom) {
        if let Some(failure) = self.outputs.add(&self.shape, what, data, freedom) {
            self.fail(failure);
        }
    }

    pub(super) fn fail(&mut self, what: String) {
        if self.failures.len() < MAX_FAILURES {
            self.failures.push(format!("{}: {what}", self.shape));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_no_scale_and_hides_in_no_crowd() {
        let expected: Vec<f64> = (0..1000).map(|i| f64::from(i % 7) - 3.0).collect();
        let mut found = expected.clone();
        assert_eq!(error(&expected, &found, 10), 0.0);
        found[777] += 0.5;
        let one_wrong = error(&expected, &found, 10);
        assert!(one_wrong > 0.1, "{one_wrong}");
        let scaled = |v: &[f64]| v.iter().map(|x| x * 1e-9).collect::<Vec<_>>();
        assert!((error(&scaled(&expected), &scaled(&found), 10) - one_wrong).abs() < 1e-9);
    }

    #[test]
    fn rows_are_judged_by_themselves() {
        assert!(error(&[1e6, 1e6, 1.0, 1.0], &[1e6, 1e6, 1.0, 1.1], 2) > 0.09);
    }

    #[test]
    fn what_is_no_number_is_infinitely_wrong() {
        assert_eq!(error(&[1.0, 2.0], &[1.0, f64::NAN], 2), f64::INFINITY);
        assert!(error(&[0.0, 0.0], &[0.0, 1e-3], 2) > 1e100);
        assert_eq!(error(&[0.0], &[-0.0], 1), 0.0);
    }

    #[test]
    fn truncation_shows_where_rounding_passes() {
        let expected: Vec<f64> = (0..20_000).map(|i| (f64::from(i) * 0.37).sin()).collect();
        let judge = |found: Vec<f64>| {
            let mut tally = Tally::new("k", bounds::ATTENTION, None);
            tally.shape("n=20000");
            tally.close("out", &expected, &found, 100);
            tally.finish("sm_80").failures
        };
        let rounded = expected.iter().map(|&x| bf16::from_f64(x).to_f64());
        assert_eq!(judge(rounded.collect()), [""; 0]);
        let truncated =
            expected.iter().map(|&x| f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000)));
        let failures = judge(truncated.collect());
        assert!(failures.len() == 1 && failures[0].contains("truncates"), "{failures:?}");
    }

    #[test]
    fn failures_name_their_shape_and_a_case_without_shapes_fails() {
        let mut tally = Tally::new("k", 1e-3, None);
        tally.shape("m=1");
        tally.close("out", &[1.0], &[1.01], 1);
        tally.equal("ids", &[1, 2], &[1, 3]);
        let outcome = tally.finish("sm_80");
        assert_eq!(
            outcome.failures,
            ["m=1: out is off by 1.00e-2, allowed is 1.00e-3", "m=1: ids[1] is 3 and should be 2"]
        );
        assert_eq!(Tally::new("k", 0.0, None).finish("sm_80").failures.len(), 1);
    }
}
