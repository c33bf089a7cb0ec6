//! Models of random weights: any shape, no files.
//!
//! A value is a pure function of (seed, tensor, row, column), so ranks that each make their own shard
//! see one model, and a GPU kernel can make the same weights in place. In 32-bit wrapping arithmetic:
//!
//! ```text
//! mix(x)    = x ^= x >> 16;  x *= 0x21f0aaad;  x ^= x >> 15;  x *= 0x735a2d97;  x ^ x >> 15
//! t0, t1    = the two keys of the tensor                        (host, `TensorKey::new`)
//! k0, k1    = mix(row ^ t0), mix(row ^ t1)                      (once per row)
//! x         = col + k0;  x ^= x >> 16;  x *= 0x21f0aaad;  x ^= x >> 15;  x ^= k1;  x *= 0x735a2d97
//! u         = f32(i32(x) >> 8)                                  (24 bits, exact)
//! value     = bf16_nearest_even(offset + u * scale)             (product rounded to f32, no fma)
//! ```
//!
//! A linear layer and the embedding have `offset` 0 and variance 1/columns (`scale` = √(3/columns)·2⁻²³);
//! a norm's gain has `offset` 1 and lies within 0.1 of it. Two keys per row keep rows apart: with 32
//! bits alone, a vocabulary of 128 k rows would hold equal ones.

use std::ops::Range;
use std::path::Path;

use half::bf16;

use super::fingerprint::Fingerprint;
use super::stored::{canonical, check_rectangle};
use super::{Config, ModelError, Storage, Tensor, TensorSource, shapes};

/// What starts a specification.
pub const PREFIX: &str = "random:";

/// Of the 32-bit mixing function with the least known bias (Wellons' hash-prospector).
const MULTIPLIERS: (u32, u32) = (0x21f0_aaad, 0x735a_2d97);
/// Brings 24 signed bits to [-1, 1).
const UNIT: f32 = 1.0 / (1 << 23) as f32;
/// Half-width of the norms' gains.
const GAIN_SPREAD: f32 = 0.1;

/// A [`TensorSource`] that computes its values.
#[derive(Debug, Clone)]
pub struct RandomModel {
    config: Config,
    seed: u64,
}

impl RandomModel {
    /// A model of this configuration.
    pub fn new(config: Config, seed: u64) -> Self {
        Self { config, seed }
    }

    /// Reads `random:SHAPE[,layers=L][,seed=S]`, with a shape of [`shapes::NAMES`].
    pub fn from_spec(spec: &str) -> Result<Self, ModelError> {
        let form = "use random:SHAPE[,layers=L][,seed=S]";
        let wrong = |what: String| ModelError::not_found(spec, format!("{what}; {form}"));
        let mut parts = spec.strip_prefix(PREFIX).unwrap_or(spec).split(',');
        let name = parts.next().unwrap_or_default();
        let known = || wrong(format!("the known shapes are {}", shapes::NAMES.join(", ")));
        let mut model = Self::new(shapes::named(name).ok_or_else(known)?, 0);
        for option in parts {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let number = || value.parse().map_err(|_| wrong(format!("'{option}' is not a whole number")));
            match key {
                "layers" => model.config.n_layers = usize::try_from(number()?).unwrap_or(usize::MAX),
                "seed" => model.seed = number()?,
                _ => return Err(wrong(format!("'{option}' is not an option"))),
            }
        }
        model.config.validate(Path::new(spec))?;
        Ok(model)
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn fill<T>(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        cols: Range<usize>,
        out: &mut [T],
        convert: impl Fn(u32) -> T + Copy,
    ) {
        let tensor = canonical(&self.config, tensor);
        let shape = tensor.shape(&self.config);
        check_rectangle(shape, &rows, &cols, out.len());
        if out.is_empty() {
            return;
        }
        let key = TensorKey::new(self.seed, tensor);
        let (offset, scale) = match tensor.is_norm() {
            true => (1.0, GAIN_SPREAD * UNIT),
            false => (0.0, (3.0 / shape.1 as f32).sqrt() * UNIT),
        };
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.len())) {
            let row = key.row(row as u32);
            let first = cols.start as u32;
            pulp::Arch::new().dispatch(|| {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = convert(row.value_bits(first.wrapping_add(i as u32), offset, scale));
                }
            });
        }
    }
}

/// The two 32-bit keys of a tensor.
#[derive(Debug, Clone, Copy)]
struct TensorKey(u32, u32);

#[derive(Debug, Clone, Copy)]
struct RowKey(u32, u32);

impl TensorKey {
    /// Two rounds of splitmix64 (Steele, Lea and Flood, 2014) over seed, role and layer.
    fn new(seed: u64, tensor: Tensor) -> Self {
        let role = (tensor.layer as u64) << 8 | tensor.kind as u64;
        let key = splitmix64(splitmix64(seed) ^ role);
        Self(key as u32, (key >> 32) as u32)
    }

    fn row(self, row: u32) -> RowKey {
        RowKey(mix(row ^ self.0), mix(row ^ self.1))
    }
}

impl RowKey {
    /// The bits of a value, as an f32 that is exactly a bf16.
    #[inline(always)]
    fn value_bits(self, col: u32, offset: f32, scale: f32) -> u32 {
        let mut x = col.wrapping_add(self.0);
        x = (x ^ x >> 16).wrapping_mul(MULTIPLIERS.0);
        x = (x ^ x >> 15 ^ self.1).wrapping_mul(MULTIPLIERS.1);
        let bits = (offset + (x as i32 >> 8) as f32 * scale).to_bits();
        // To nearest even; no value is infinite or NaN.
        (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000
    }
}

fn mix(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(MULTIPLIERS.0);
    x = (x ^ x >> 15).wrapping_mul(MULTIPLIERS.1);
    x ^ x >> 15
}

fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl TensorSource for RandomModel {
    fn storage(&self, _: Tensor) -> Storage {
        Storage::Bf16
    }

    fn read_f32(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        self.fill(tensor, rows, cols, out, f32::from_bits);
    }

    fn read_bf16(&self, tensor: Tensor, rows: Range<usize>, cols: Range<usize>, out: &mut [bf16]) {
        self.fill(tensor, rows, cols, out, |bits| bf16::from_bits((bits >> 16) as u16));
    }

    fn fingerprint(&self) -> Result<String, ModelError> {
        let mut fingerprint = Fingerprint::new(&self.config);
        fingerprint.field(format!("random weights 1, seed {}", self.seed).as_bytes());
        Ok(fingerprint.finish())
    }
}

#[cfg(test)]
#[path = "random_tests.rs"]
mod tests;
