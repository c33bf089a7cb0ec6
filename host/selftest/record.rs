//! Outputs of a run on one device, kept in a file, and compared with those of another device.
//!
//! Every output is kept as a digest of all of its bytes and as some of its elements, spread evenly. Equal digests are
//! equal bits; where they differ, the elements say by how much, and [`Agreement`] how much may be.

use std::any::TypeId;

use bytemuck::Pod;
use half::bf16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::bounds;

/// Elements of an output that are kept.
const SAMPLES: usize = 160;
/// One rounding in f32.
const EPSILON: f64 = 1.0 / (1 << 24) as f64;
/// What the approximate instructions of PTX may err by, generously, in units of the values that they end up in:
/// `rsqrt` 2^-22.9, `ex2` 2^-22, `rcp` 2^-23 (relative), `sin` and `cos` 2^-20.5 (absolute, of factors at most 1).
const APPROXIMATE: f64 = 1.0 / (1 << 18) as f64;

/// What PTX leaves open of an output.
#[derive(Debug, Clone)]
pub(super) enum Freedom {
    /// Nothing: the same bits.
    None,
    /// Approximate instructions, then a rounding to the output's type.
    Approximate,
    /// The order and the roundings of sums of `k` products in tensor cores, with Σ|a·b| of every element: 16 products
    /// are added at a time, and each addition may lose two roundings (tensor cores truncate). Then approximate
    /// instructions, if there are any.
    Products { magnitudes: Vec<f64>, k: usize, approximate: bool },
    /// What the kernel may err by at all, in units of the output's root mean square.
    Bound(f64),
    /// Either side's value has been judged by itself, such as a drawn token.
    Judged,
}

/// One output of one kernel at one shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredOutput {
    shape: String,
    what: String,
    len: usize,
    /// Of all bytes, SHA-256, its first half.
    digest: String,
    /// The bits of up to 160 elements, hexadecimal, of equal width.
    samples: String,
}

/// All outputs of one kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKernel {
    /// The entry's name.
    pub kernel: String,
    /// The PTX file.
    pub arch: String,
    outputs: Vec<StoredOutput>,
}

impl StoredKernel {
    /// What a run of the self test has read of one kernel.
    pub fn new(kernel: &str, arch: &str, outputs: Vec<StoredOutput>) -> Self {
        Self { kernel: kernel.to_owned(), arch: arch.to_owned(), outputs }
    }
}

/// A run of the self test, kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    /// The device that ran it.
    pub device: String,
    /// Its driver.
    pub driver: String,
    /// By kernel.
    pub kernels: Vec<StoredKernel>,
}

impl Recording {
    pub(super) fn of(&self, kernel: &str, arch: &str) -> Option<&[StoredOutput]> {
        self.kernels.iter().find(|it| it.kernel == kernel && it.arch == arch).map(|it| &it.outputs[..])
    }
}

/// How a kernel's outputs compare with recorded ones.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Agreement {
    /// Outputs that were compared.
    pub outputs: usize,
    /// Those whose bits are all the same.
    pub identical: usize,
    /// Elements of the others that were compared.
    pub elements: usize,
    /// Those of them that differ.
    pub different: usize,
    /// The largest difference, in units of what is allowed for its element.
    pub worst: f64,
    /// The largest difference of a sum of products beyond its last rounding, in units of 2^-24 · Σ|a·b|.
    pub worst_c: f64,
}

/// How the elements of a type are read as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Bf16,
    F32,
    Whole,
}

impl Element {
    fn of<T: Pod>() -> Self {
        match TypeId::of::<T>() {
            id if id == TypeId::of::<bf16>() => Self::Bf16,
            id if id == TypeId::of::<f32>() => Self::F32,
            _ => Self::Whole,
        }
    }

    fn number(self, bits: u64) -> f64 {
        match self {
            Self::Bf16 => bf16::from_bits(bits as u16).to_f64(),
            Self::F32 => f32::from_bits(bits as u32).into(),
            Self::Whole => bits as f64,
        }
    }

    /// The distance to the next number of the type, at most.
    fn ulp(self, value: f64) -> f64 {
        let bits = match self {
            Self::Bf16 => 7,
            Self::F32 => 23,
            Self::Whole => return 0.0,
        };
        if value == 0.0 {
            f64::from(f32::MIN_POSITIVE)
        } else {
            2f64.powi(value.abs().log2().floor() as i32 - bits)
        }
    }
}

fn bits<T: Pod>(value: &T) -> u64 {
    let mut word = [0; 8];
    word[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(value));
    u64::from_le_bytes(word)
}

/// Which elements of an output are kept.
fn sampled(len: usize) -> impl Iterator<Item = usize> {
    let count = len.min(SAMPLES);
    (0..count).map(move |i| i * len / count)
}

/// Outputs as they are read, kept or compared.
pub(super) struct Outputs<'a> {
    kept: Vec<StoredOutput>,
    recorded: Option<&'a [StoredOutput]>,
    pub(super) agreement: Agreement,
}

impl<'a> Outputs<'a> {
    /// To be kept, and compared with what was recorded.
    pub(super) fn new(recorded: Option<&'a [StoredOutput]>) -> Self {
        Self { kept: Vec::new(), recorded, agreement: Agreement::default() }
    }

    pub(super) fn is_comparing(&self) -> bool {
        self.recorded.is_some()
    }

    pub(super) fn finish(self) -> (Vec<StoredOutput>, Option<Agreement>) {
        (self.kept, self.recorded.map(|_| self.agreement))
    }

    /// Takes note of an output; says what is wrong with it compared with the recorded one.
    pub(super) fn add<T: Pod>(
        &mut self,
        shape: &str,
        what: &str,
        data: &[T],
        freedom: &Freedom,
    ) -> Option<String> {
        let digest = Sha256::digest(bytemuck::cast_slice::<T, u8>(data));
        let digest = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let width = 2 * size_of::<T>();
        let samples = sampled(data.len()).map(|i| format!("{:0width$x}", bits(&data[i]))).collect();
        let (shape, what) = (shape.to_owned(), what.to_owned());
        let output = StoredOutput { shape, what, len: data.len(), digest, samples };
        let failure = self.recorded.and_then(|recorded| match recorded.get(self.kept.len()) {
            Some(then)
                if (&then.shape, &then.what, then.len) == (&output.shape, &output.what, output.len) =>
            {
                self.compare(&output, then, data, freedom)
            }
            _ => Some(format!("{} is not what was recorded in its place: record again", output.what)),
        });
        self.kept.push(output);
        failure
    }

    fn compare<T: Pod>(
        &mut self,
        now: &StoredOutput,
        then: &StoredOutput,
        data: &[T],
        freedom: &Freedom,
    ) -> Option<String> {
        self.agreement.outputs += 1;
        if now.digest == then.digest {
            self.agreement.identical += 1;
            return None;
        }
        let (element, width) = (Element::of::<T>(), 2 * size_of::<T>());
        let mut failure = matches!(freedom, Freedom::None)
            .then(|| format!("{}: its bits differ from the recorded ones, which PTX defines", now.what));
        let square = |value: f64| if value.is_finite() { value * value } else { 0.0 };
        let squares: f64 = data.iter().map(|value| square(element.number(bits(value)))).sum();
        let rms = (squares / data.len().max(1) as f64).sqrt();
        for (i, then) in sampled(data.len()).zip(then.samples.as_bytes().chunks(width)) {
            self.agreement.elements += 1;
            let then = std::str::from_utf8(then).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let Some(then) = then else { return Some(format!("{}: the recording is damaged", now.what)) };
            let (a, b) = (element.number(bits(&data[i])), element.number(then));
            if bits(&data[i]) == then || a.is_nan() && b.is_nan() {
                continue;
            }
            self.agreement.different += 1;
            let last_bit = element.ulp(a.abs().max(b.abs()));
            let allowed = match freedom {
                Freedom::None => 0.0,
                Freedom::Approximate => last_bit + APPROXIMATE * a.abs().max(rms),
                Freedom::Products { magnitudes, k, approximate } => {
                    let unit = EPSILON * magnitudes[i];
                    let approximate = if *approximate { APPROXIMATE * a.abs().max(rms) } else { 0.0 };
                    let beyond = ((a - b).abs() - last_bit - approximate).max(0.0);
                    self.agreement.worst_c = self.agreement.worst_c.max(beyond / unit);
                    last_bit + approximate + 2.0 * (1 + k.div_ceil(16)) as f64 * unit
                }
                Freedom::Bound(bound) => last_bit + bound * a.abs().max(rms),
                Freedom::Judged => continue,
            };
            let ratio = (a - b).abs() / allowed;
            let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
            self.agreement.worst = self.agreement.worst.max(ratio);
            if ratio > 1.0 {
                failure.get_or_insert_with(|| {
                    format!("{}[{i}] is {a:e} and was {b:e}: {ratio:.1} times what PTX leaves open", now.what)
                });
            }
        }
        failure
    }
}

/// What PTX leaves open of `what`, an output of `kernel` that is no plain product: those say it themselves.
pub(super) fn freedom_of(kernel: &str, what: &str) -> Freedom {
    // Counters, indices and copies are bits in every kernel.
    const EXACT: [&str; 8] =
        ["residual", "v cache", "counters", "indices", "values", "best", "positions", "kv_lens"];
    if EXACT.contains(&what) {
        return Freedom::None;
    }
    match kernel.split('_').next().unwrap_or_default() {
        "embedding" => Freedom::None,
        "rmsnorm" | "add" | "rope" => Freedom::Approximate,
        "sample" => Freedom::Judged,
        _ => Freedom::Bound(bounds::ATTENTION),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a run of one output with another one's, through a file's text.
    fn compare<T: Pod>(then: &[T], now: &[T], freedom: &Freedom) -> (Agreement, Option<String>) {
        let mut outputs = Outputs::new(None);
        assert_eq!(outputs.add("m=1", "out", then, freedom), None);
        let stored = vec![StoredKernel::new("k", "sm_80", outputs.finish().0)];
        let recording = Recording { device: "a".into(), driver: "b".into(), kernels: stored };
        let text = serde_json::to_string(&recording).unwrap();
        let recording: Recording = serde_json::from_str(&text).unwrap();
        let mut outputs = Outputs::new(recording.of("k", "sm_80"));
        let failure = outputs.add("m=1", "out", now, freedom);
        (outputs.finish().1.unwrap(), failure)
    }

    #[test]
    fn equal_bits_are_equal_whatever_is_allowed() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32).chain([f32::NAN]).collect();
        let (agreement, failure) = compare(&values, &values, &Freedom::None);
        assert_eq!((agreement.identical, agreement.elements, failure), (1, 0, None));
    }

    #[test]
    fn one_bit_is_much_where_ptx_defines_all_of_them() {
        let then = [bf16::ONE; 40];
        let mut now = then;
        now[7] = bf16::from_bits(bf16::ONE.to_bits() + 1);
        assert!(
            compare(&then, &now, &Freedom::None).1.is_some_and(|failure| failure.contains("bits differ"))
        );
        let (agreement, failure) = compare(&then, &now, &Freedom::Approximate);
        assert_eq!((agreement.different, agreement.elements, failure), (1, 40, None));
        now[7] = bf16::from_bits(bf16::ONE.to_bits() + 2);
        let failure = compare(&then, &now, &Freedom::Approximate).1;
        assert!(failure.is_some_and(|failure| failure.starts_with("out[7] is 1.015625e0 and was 1e0")));
    }

    #[test]
    fn sums_may_differ_by_their_own_size_and_not_by_their_results() {
        let freedom = Freedom::Products { magnitudes: vec![1000.0; 4], k: 64, approximate: false };
        let differ_by = |difference: f32| compare(&[1.0_f32; 4], &[1.0 + difference; 4], &freedom);
        let (agreement, failure) = differ_by(5e-4);
        assert!(failure.is_none() && agreement.worst > 0.5, "{agreement:?}");
        assert!((8.0..9.0).contains(&agreement.worst_c), "{agreement:?}");
        assert!(differ_by(1e-3).1.is_some());
    }

    #[test]
    fn another_shape_in_its_place_is_no_comparison() {
        let recorded = {
            let mut outputs = Outputs::new(None);
            outputs.add("m=2", "out", &[1_u32], &Freedom::None);
            outputs.finish().0
        };
        let mut outputs = Outputs::new(Some(&recorded));
        let failure = outputs.add("m=1", "out", &[1_u32], &Freedom::None);
        assert!(failure.is_some_and(|failure| failure.contains("record again")));
    }
}
