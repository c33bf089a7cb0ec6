//! Tensor maps: what `cuTensorMapEncodeTiled` makes on a GPU, in an encoding of the emulator's own.

/// Bytes of a map.
pub const TENSOR_MAP_BYTES: usize = 128;
/// Where a map lies in memory, and in parameters.
pub(crate) const TENSOR_MAP_ALIGN: u64 = 64;
/// The most dimensions.
const MAX_RANK: usize = 5;
const MAX_DIM: u64 = 1 << 32;
const MAX_STRIDE_BYTES: u64 = 1 << 40;
const MAX_BOX: u32 = 256;
/// In the first word of a map.
const MARK: u64 = 0x50616d_726f736e;
const WORDS: usize = TENSOR_MAP_BYTES / 8;

/// How 16-byte units are permuted in shared memory (PTX ISA, "Swizzling modes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes, by bits 7 to 9 of the address.
    B128,
}

/// A tensor in global memory, and the boxes of it that `cp.async.bulk.tensor` copies. The innermost dimension is first
/// everywhere; element strides are 1, elements are not interleaved, and what lies outside is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Of the first element.
    pub address: u64,
    /// 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Elements in each dimension, one to five of them.
    pub dims: Vec<u64>,
    /// From one element to the next, of all dimensions but the innermost.
    pub strides_bytes: Vec<u64>,
    /// Elements of a box in each dimension.
    pub box_dims: Vec<u32>,
    /// How a box lies in shared memory.
    pub swizzle: Swizzle,
}

/// What `cuTensorMapEncodeTiled` answers with `CUDA_ERROR_INVALID_VALUE`, or what is not emulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum TensorMapError {
    #[error(
        "a tensor map has 1 to 5 dimensions, each with a box and all but the innermost with a stride, not {dims}, {boxes} \
         and {strides}"
    )]
    Rank { dims: usize, boxes: usize, strides: usize },
    #[error("elements of a tensor map have 1, 2, 4 or 8 bytes, not {0}")]
    Element(u32),
    #[error("the address {0:#x} of a tensor map is not a multiple of 16")]
    Address(u64),
    #[error("dimension {index} of a tensor map has {elements} elements, not 1 to 2^32")]
    Dimension { index: usize, elements: u64 },
    #[error(
        "the stride of dimension {index} of a tensor map is {bytes} bytes, not a multiple of 16 below 2^40"
    )]
    Stride { index: usize, bytes: u64 },
    #[error("boxes of a tensor map have {elements} elements in dimension {index}, not 1 to 256")]
    Box { index: usize, elements: u32 },
    #[error("rows of a box have {bytes} bytes, not a multiple of 16 up to the {most} that its swizzle takes")]
    Row { bytes: u32, most: u32 },
    #[error(
        "boxes are not emulated in the swizzle {swizzle:?} with rows of {bytes} bytes: None, and B128 with 128, are"
    )]
    Swizzle { swizzle: Swizzle, bytes: u32 },
}

impl TensorMap {
    /// The map as kernels take it, at a multiple of 64 bytes.
    ///
    /// # Errors
    /// What the driver documents of the arguments, and what is not emulated.
    pub fn encode(&self) -> Result<[u8; TENSOR_MAP_BYTES], TensorMapError> {
        self.check()?;
        let mut words = [0; WORDS];
        words[0] = MARK;
        words[1] = self.address;
        let swizzle = u64::from(self.swizzle == Swizzle::B128);
        words[2] = self.dims.len() as u64 | u64::from(self.element_bytes) << 8 | swizzle << 16;
        words[3..][..self.dims.len()].copy_from_slice(&self.dims);
        words[8..][..self.strides_bytes.len()].copy_from_slice(&self.strides_bytes);
        for (index, &elements) in self.box_dims.iter().enumerate() {
            words[12 + index / 4] |= u64::from(elements) << (16 * (index % 4));
        }
        words[WORDS - 1] = digest(&words);
        let mut bytes = [0; TENSOR_MAP_BYTES];
        bytes
            .chunks_exact_mut(8)
            .zip(words)
            .for_each(|(chunk, word)| chunk.copy_from_slice(&word.to_le_bytes()));
        Ok(bytes)
    }

    /// The map that [`TensorMap::encode`] has made these words of, if it has.
    pub(crate) fn decode(words: &[u64; WORDS]) -> Option<Self> {
        if words[0] != MARK || words[WORDS - 1] != digest(words) {
            return None;
        }
        let rank = (words[2] & 0xff) as usize;
        let box_of = |index: usize| (words[12 + index / 4] >> (16 * (index % 4))) as u32 & 0xffff;
        Some(Self {
            address: words[1],
            element_bytes: (words[2] >> 8 & 0xff) as u32,
            dims: words[3..][..rank].to_vec(),
            strides_bytes: words[8..][..rank - 1].to_vec(),
            box_dims: (0..rank).map(box_of).collect(),
            swizzle: if words[2] >> 16 & 1 == 1 { Swizzle::B128 } else { Swizzle::None },
        })
    }

    /// Bytes of a box's rows.
    pub(crate) fn row_bytes(&self) -> u32 {
        self.box_dims[0] * self.element_bytes
    }

    /// Rows of a box.
    pub(crate) fn rows(&self) -> u32 {
        self.box_dims[1..].iter().product()
    }

    fn check(&self) -> Result<(), TensorMapError> {
        let (dims, boxes, strides) = (self.dims.len(), self.box_dims.len(), self.strides_bytes.len());
        if !(1..=MAX_RANK).contains(&dims) || boxes != dims || strides != dims - 1 {
            return Err(TensorMapError::Rank { dims, boxes, strides });
        }
        if !matches!(self.element_bytes, 1 | 2 | 4 | 8) {
            return Err(TensorMapError::Element(self.element_bytes));
        }
        if !self.address.is_multiple_of(16) {
            return Err(TensorMapError::Address(self.address));
        }
        for (index, &elements) in self.dims.iter().enumerate() {
            if !(1..=MAX_DIM).contains(&elements) {
                return Err(TensorMapError::Dimension { index, elements });
            }
        }
        for (index, &bytes) in (1..).zip(&self.strides_bytes) {
            if !bytes.is_multiple_of(16) || bytes >= MAX_STRIDE_BYTES {
                return Err(TensorMapError::Stride { index, bytes });
            }
        }
        for (index, &elements) in self.box_dims.iter().enumerate() {
            if !(1..=MAX_BOX).contains(&elements) {
                return Err(TensorMapError::Box { index, elements });
            }
        }
        self.check_rows()
    }

    fn check_rows(&self) -> Result<(), TensorMapError> {
        let (swizzle, bytes) = (self.swizzle, self.row_bytes());
        let most = match swizzle {
            Swizzle::None => u32::MAX,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        };
        if !bytes.is_multiple_of(16) || bytes > most {
            return Err(TensorMapError::Row { bytes, most });
        }
        match swizzle {
            Swizzle::None => Ok(()),
            Swizzle::B128 if bytes == most => Ok(()),
            _ => Err(TensorMapError::Swizzle { swizzle, bytes }),
        }
    }
}

/// Of all words but the last, so that bytes which nobody encoded, or somebody changed, are found out (FNV-1a).
fn digest(words: &[u64; WORDS]) -> u64 {
    words[..WORDS - 1]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, word| (sum ^ word).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            address: 0x1000,
            element_bytes: 2,
            dims: vec![72, 2, 4, 4, 3],
            strides_bytes: vec![144, 1152, 288, 4608],
            box_dims: vec![64, 2, 4, 4, 2],
            swizzle: Swizzle::B128,
        }
    }

    fn words(bytes: &[u8]) -> [u64; WORDS] {
        std::array::from_fn(|i| u64::from_le_bytes(bytes[8 * i..][..8].try_into().unwrap()))
    }

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else() {
        let map = map();
        let mut bytes = map.encode().unwrap();
        assert_eq!(TensorMap::decode(&words(&bytes)), Some(map));
        for at in 0..bytes.len() {
            bytes[at] ^= 0x10;
            assert_eq!(TensorMap::decode(&words(&bytes)), None, "byte {at}");
            bytes[at] ^= 0x10;
        }
        assert_eq!(TensorMap::decode(&[0; WORDS]), None);
    }

    #[test]
    fn arguments_that_the_driver_refuses_are_refused() {
        let refusal = |change: &dyn Fn(&mut TensorMap)| {
            let mut map = map();
            change(&mut map);
            map.encode().expect_err("must be refused")
        };
        use TensorMapError as E;
        assert_eq!(refusal(&|map| map.address += 8), E::Address(0x1008));
        assert_eq!(refusal(&|map| map.element_bytes = 3), E::Element(3));
        assert_eq!(refusal(&|map| map.dims[4] = 0), E::Dimension { index: 4, elements: 0 });
        assert_eq!(refusal(&|map| map.strides_bytes[1] = 8), E::Stride { index: 2, bytes: 8 });
        assert_eq!(refusal(&|map| map.strides_bytes[0] = 1 << 40), E::Stride { index: 1, bytes: 1 << 40 });
        assert_eq!(refusal(&|map| map.box_dims[3] = 257), E::Box { index: 3, elements: 257 });
        assert_eq!(refusal(&|map| map.box_dims[0] = 72), E::Row { bytes: 144, most: 128 });
        assert_eq!(refusal(&|map| map.box_dims[0] = 4), E::Row { bytes: 8, most: 128 });
        let dims = |map: &mut TensorMap| {
            map.dims.pop();
        };
        assert_eq!(refusal(&dims), E::Rank { dims: 4, boxes: 5, strides: 4 });
        let swizzle = |map: &mut TensorMap| (map.swizzle, map.box_dims[0]) = (Swizzle::B64, 32);
        assert_eq!(refusal(&swizzle), E::Swizzle { swizzle: Swizzle::B64, bytes: 64 });
        assert_eq!(refusal(&|map| map.box_dims[0] = 32), E::Swizzle { swizzle: Swizzle::B128, bytes: 64 });
    }
}
