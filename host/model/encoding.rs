//! How weights lie in files, and their conversion to the two working precisions.
//!
//! A quantised row is a sequence of blocks of 32 values `x_i`, little-endian:
//!
//! | encoding | block | value |
//! |---|---|---|
//! | `Q8_0` | f16 d, 32 × i8 q | d·q |
//! | `Q4_0` | f16 d, 16 bytes | d·(q − 8) |
//! | `Q4_1` | f16 d, f16 m, 16 bytes | d·q + m |
//!
//! where the low nibbles of the 16 bytes are q₀…q₁₅ and the high nibbles q₁₆…q₃₁.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Storage;

/// Values in one quantised block.
pub(crate) const QUANT_BLOCK: usize = 32;

/// The supported encodings of a tensor in a file; all little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Encoding {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
}

/// One of the two working precisions, as the target of a conversion.
pub(crate) trait Element: Copy {
    fn from_f32(value: f32) -> Self;
    fn from_bf16(value: bf16) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn from_bf16(value: bf16) -> Self {
        f32::from_bits(u32::from(value.to_bits()) << 16)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }

    #[inline(always)]
    fn from_bf16(value: bf16) -> Self {
        value
    }
}

impl Encoding {
    /// Values that are stored together.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 => QUANT_BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
        }
    }

    /// Bytes of `cols` values; none where they are no whole number of blocks or overflow.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// The working precision in which the values are exact.
    pub const fn storage(self) -> Storage {
        match self {
            Self::Bf16 => Storage::Bf16,
            _ => Storage::F32,
        }
    }

    /// Converts the values `cols` of one row; `row` is the whole row's bytes and
    /// `out.len() == cols.len()`. Only the blocks that hold `cols` are touched.
    pub(crate) fn decode<T: Element>(self, row: &[u8], cols: Range<usize>, out: &mut [T]) {
        match self {
            Self::F32 => plain(row, cols, out, |b| T::from_f32(f32::from_le_bytes(b))),
            Self::Bf16 => plain(row, cols, out, |b| T::from_bf16(bf16::from_le_bytes(b))),
            Self::F16 => halves(row, cols, out),
            Self::Q8_0 => blocks(row, cols, out, q8_0),
            Self::Q4_0 => blocks(row, cols, out, q4_0),
            Self::Q4_1 => blocks(row, cols, out, q4_1),
        }
    }
}

#[inline(always)]
fn plain<const BYTES: usize, T>(
    row: &[u8],
    cols: Range<usize>,
    out: &mut [T],
    value: impl Fn([u8; BYTES]) -> T,
) {
    let (values, _) = row[cols.start * BYTES..cols.end * BYTES].as_chunks::<BYTES>();
    for (out, &bytes) in out.iter_mut().zip(values) {
        *out = value(bytes);
    }
}

/// f16 goes through `half`'s slice conversion, which uses the processor's instruction where there is
/// one.
fn halves<T: Element>(row: &[u8], cols: Range<usize>, out: &mut [T]) {
    const CHUNK: usize = 128;
    let (mut narrow, mut wide) = ([f16::ZERO; CHUNK], [0.0; CHUNK]);
    let (values, _) = row[cols.start * 2..cols.end * 2].as_chunks::<2>();
    for (out, values) in out.chunks_mut(CHUNK).zip(values.chunks(CHUNK)) {
        let (narrow, wide) = (&mut narrow[..values.len()], &mut wide[..values.len()]);
        for (half, &bytes) in narrow.iter_mut().zip(values) {
            *half = f16::from_le_bytes(bytes);
        }
        narrow.convert_to_f32_slice(wide);
        for (out, &value) in out.iter_mut().zip(&*wide) {
            *out = T::from_f32(value);
        }
    }
}

#[inline(always)]
fn blocks<const BYTES: usize, T: Element>(
    row: &[u8],
    cols: Range<usize>,
    mut out: &mut [T],
    dequantise: impl Fn(&[u8; BYTES]) -> [f32; QUANT_BLOCK],
) {
    let (blocks, _) = row.as_chunks::<BYTES>();
    let mut col = cols.start;
    while !out.is_empty() {
        let values = dequantise(&blocks[col / QUANT_BLOCK]);
        let first = col % QUANT_BLOCK;
        let n = (QUANT_BLOCK - first).min(out.len());
        let (part, rest) = out.split_at_mut(n);
        // A whole block has a fixed length, so its loop is unrolled.
        match <&mut [T; QUANT_BLOCK]>::try_from(&mut *part) {
            Ok(whole) => *whole = values.map(T::from_f32),
            Err(_) => part.iter_mut().zip(&values[first..]).for_each(|(out, &v)| *out = T::from_f32(v)),
        }
        (out, col) = (rest, col + n);
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34]) -> [f32; QUANT_BLOCK] {
    let [d0, d1, quants @ ..] = block;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    quants.map(|q| d * f32::from(q as i8))
}

#[inline(always)]
fn q4_0(block: &[u8; 18]) -> [f32; QUANT_BLOCK] {
    let [d0, d1, nibbles @ ..] = block;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    unpack(nibbles, |q| d * (f32::from(q) - 8.0))
}

#[inline(always)]
fn q4_1(block: &[u8; 20]) -> [f32; QUANT_BLOCK] {
    let [d0, d1, m0, m1, nibbles @ ..] = block;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    let m = f16::from_le_bytes([*m0, *m1]).to_f32();
    unpack(nibbles, |q| d * f32::from(q) + m)
}

#[inline(always)]
fn unpack(nibbles: &[u8; QUANT_BLOCK / 2], value: impl Fn(u8) -> f32) -> [f32; QUANT_BLOCK] {
    let mut values = [0.0; QUANT_BLOCK];
    for (i, byte) in nibbles.iter().enumerate() {
        values[i] = value(byte & 15);
        values[i + QUANT_BLOCK / 2] = value(byte >> 4);
    }
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Encoding; 6] =
        [Encoding::F32, Encoding::F16, Encoding::Bf16, Encoding::Q8_0, Encoding::Q4_0, Encoding::Q4_1];

    #[test]
    fn blocks_worked_by_hand() {
        let mut out = [0f32; 32];
        let mut q8 = [0u8; 34];
        q8[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        (q8[2], q8[33]) = (3, (-128i8) as u8);
        Encoding::Q8_0.decode(&q8, 0..32, &mut out);
        assert_eq!((out[0], out[1], out[31]), (1.5, 0.0, -64.0));

        let mut q4 = [0u8; 18];
        q4[..2].copy_from_slice(&f16::from_f32(2.0).to_le_bytes());
        (q4[2], q4[17]) = (0xf1, 0x08);
        Encoding::Q4_0.decode(&q4, 0..32, &mut out);
        assert_eq!((out[0], out[16], out[15], out[31]), (-14.0, 14.0, 0.0, -16.0));

        let mut q4 = [0u8; 20];
        q4[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        q4[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        (q4[4], q4[19]) = (0x2f, 0xe4);
        Encoding::Q4_1.decode(&q4, 0..32, &mut out);
        assert_eq!((out[0], out[16], out[15], out[31]), (2.75, -0.5, 0.0, 2.5));
    }

    #[test]
    fn partial_blocks_do_not_make_rows() {
        assert_eq!(Encoding::Q4_0.row_bytes(33), None);
        assert_eq!(Encoding::Q4_0.row_bytes(64), Some(36));
        assert_eq!(Encoding::F32.row_bytes(usize::MAX), None);
    }

    proptest! {
        /// Any column range of any bytes equals that range of the whole row, in both precisions.
        #[test]
        fn ranges_are_slices_of_the_row(
            encoding in prop::sample::select(&ALL[..]),
            n_blocks in 1usize..6,
            seed in any::<u64>(),
            (a, b) in (0usize..=1000, 0usize..=1000),
        ) {
            let cols = n_blocks * QUANT_BLOCK;
            let mut state = seed;
            let row: Vec<u8> = (0..encoding.row_bytes(cols).unwrap())
                .map(|_| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (state >> 56) as u8
                })
                .collect();
            let (start, end) = (a.min(b) * cols / 1000, a.max(b) * cols / 1000);
            let mut whole = vec![0f32; cols];
            encoding.decode(&row, 0..cols, &mut whole);
            let mut part = vec![0f32; end - start];
            encoding.decode(&row, start..end, &mut part);
            let mut rounded = vec![bf16::ZERO; end - start];
            encoding.decode(&row, start..end, &mut rounded);
            for ((whole, part), rounded) in whole[start..end].iter().zip(&part).zip(&rounded) {
                prop_assert_eq!(whole.to_bits(), part.to_bits());
                prop_assert!(rounded.to_f32() == bf16::from_f32(*whole).to_f32() || whole.is_nan());
            }
        }
    }
}
