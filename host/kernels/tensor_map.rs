//! Matrices as tensor copies take them.

use half::bf16;

use super::{Addr, Rows};

/// The most dimensions of a map.
const MAX_RANK: usize = 5;
/// Columns of a box: 128 bytes, what the swizzle permutes.
const BOX_COLUMNS: u32 = 64;
/// Weight rows that are permuted among each other.
const PERMUTED: u32 = 32;
/// Of 8 elements: what TMA takes addresses and rows to be multiples of.
const ALIGN_BYTES: u64 = 16;

/// The arguments of `cuTensorMapEncodeTiled` for one matrix of a launch, the innermost dimension first.
///
/// What is not in here is the same for all: `CU_TENSOR_MAP_DATA_TYPE_BFLOAT16`, element strides of 1,
/// `CU_TENSOR_MAP_INTERLEAVE_NONE`, `CU_TENSOR_MAP_SWIZZLE_128B`, `CU_TENSOR_MAP_L2_PROMOTION_L2_256B` (the next stage's
/// columns come to L2 with this one's) and `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE` (zeros).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorMap {
    address: Addr<bf16>,
    rank: usize,
    dims: [u64; MAX_RANK],
    strides_bytes: [u64; MAX_RANK - 1],
    box_dims: [u32; MAX_RANK],
}

impl TensorMap {
    /// Bytes of an encoded map, which lies at a multiple of 64 of them.
    pub const BYTES: usize = 128;

    /// `a`, `[m, k]`, in boxes of so many rows; none where its rows are not 16-byte aligned.
    pub(super) fn of_tokens(a: Rows<bf16>, (m, k): (u32, u32), box_rows: u32) -> Option<Self> {
        Self::new(a.at, a.stride, k, [(m, 1, box_rows)])
    }

    /// `w`, `[n, k]`, in boxes of so many rows, a multiple of 32, of which row 8t + 2j + e comes to row 8j + 2t + e of each
    /// 32; none where its rows are not 16-byte aligned or not a multiple of 32.
    ///
    /// Its strides do not grow from one dimension to the next, which the driver's documentation suggests and the driver
    /// (of CUDA 13.0) does not ask for.
    pub(super) fn of_weights(w: Addr<bf16>, (n, k): (u32, u32), box_rows: u32) -> Option<Self> {
        let (e, t, j) = ((2, 1, 2), (4, 8, 4), (4, 2, 4));
        let q = (n / PERMUTED, PERMUTED, box_rows / PERMUTED);
        n.is_multiple_of(PERMUTED).then(|| Self::new(w, k, k, [e, t, j, q]))?
    }

    /// Rows `ld` elements apart, counted in dimensions of (size, rows from one to the next, size of a box).
    fn new<const N: usize>(
        address: Addr<bf16>,
        ld: u32,
        columns: u32,
        rows: [(u32, u32, u32); N],
    ) -> Option<Self> {
        let ld_bytes = u64::from(ld) * size_of::<bf16>() as u64;
        let columns_bytes = u64::from(columns) * size_of::<bf16>() as u64;
        let is_aligned =
            [address.raw(), ld_bytes, columns_bytes].iter().all(|bytes| bytes.is_multiple_of(ALIGN_BYTES));
        if columns == 0 || !is_aligned {
            return None;
        }
        let (mut dims, mut box_dims, mut strides_bytes) = ([0; MAX_RANK], [0; MAX_RANK], [0; MAX_RANK - 1]);
        (dims[0], box_dims[0]) = (columns.into(), BOX_COLUMNS);
        for (d, (size, stride, in_box)) in rows.into_iter().enumerate() {
            (dims[d + 1], box_dims[d + 1]) = (size.into(), in_box);
            strides_bytes[d] = u64::from(stride) * ld_bytes;
        }
        Some(Self { address, rank: N + 1, dims, strides_bytes, box_dims })
    }

    /// Of the first element.
    pub fn address(&self) -> Addr<bf16> {
        self.address
    }

    /// Elements in each dimension.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.rank]
    }

    /// From one element to the next, of all dimensions but the innermost.
    pub fn strides_bytes(&self) -> &[u64] {
        &self.strides_bytes[..self.rank - 1]
    }

    /// Elements of a box in each dimension.
    pub fn box_dims(&self) -> &[u32] {
        &self.box_dims[..self.rank]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_rows_of_64_columns() {
        let a = Rows::new(Addr::new(256), 80);
        let map = TensorMap::of_tokens(a, (7, 72), 128).unwrap();
        assert_eq!(
            (map.dims(), map.strides_bytes(), map.box_dims()),
            (&[72, 7][..], &[160][..], &[64, 128][..])
        );
        assert_eq!(TensorMap::of_tokens(Rows::new(Addr::new(256), 84), (7, 72), 128), None);
        assert_eq!(TensorMap::of_tokens(Rows::new(Addr::new(264), 80), (7, 72), 128), None);
        assert_eq!(TensorMap::of_tokens(a, (7, 73), 128), None);
        assert_eq!(TensorMap::of_tokens(a, (7, 0), 128), None);
    }

    /// The n-th row of a box is the one that the kernels expect there.
    #[test]
    fn weights_are_permuted_within_32_rows() {
        let (n, k) = (96, 64);
        let map = TensorMap::of_weights(Addr::new(0), (n, k), 192).unwrap();
        assert_eq!(map.box_dims()[1..].iter().product::<u32>(), 192);
        for row in 0..n {
            let (mut left, mut bytes) = (row, 0);
            for (size, stride_bytes) in map.box_dims()[1..].iter().zip(map.strides_bytes()) {
                bytes += u64::from(left % size) * stride_bytes;
                left /= size;
            }
            let (q, j, t, e) = (row / 32, row / 8 % 4, row / 2 % 4, row % 2);
            assert_eq!(bytes, u64::from(32 * q + 8 * t + 2 * j + e) * u64::from(k) * 2, "row {row}");
        }
        assert_eq!(TensorMap::of_weights(Addr::new(0), (95, k), 192), None);
        assert_eq!(TensorMap::of_weights(Addr::new(0), (n, 65), 192), None);
    }
}
