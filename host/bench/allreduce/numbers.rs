//! The numbers that ranks add up: random, and so few bits that their sum is exact in every type and order.

use half::{bf16, f16};

use crate::comm::{DType, Element};

/// All numbers are multiples of this; small enough that twenty sums of sums stay finite in f16 on two ranks.
const UNIT: f32 = 1.0 / 32_768.0;
/// Sums stay within this many units: eight bits with their sign, as bf16 has.
const LARGEST_SUM: u64 = 64;

/// Element `index` of rank `rank` of `tp`, in units.
fn units(rank: usize, index: usize, tp: usize) -> i64 {
    let largest = (LARGEST_SUM / tp as u64).max(1);
    let mut z = (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ (rank as u64 + 1).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 30).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z >> 33) % (2 * largest + 1)) as i64 - largest as i64
}

/// What a rank contributes.
pub(super) fn contribution(rank: usize, index: usize, tp: usize) -> f32 {
    units(rank, index, tp) as f32 * UNIT
}

/// What all ranks end with.
pub(super) fn sum(index: usize, tp: usize) -> f32 {
    (0..tp).map(|rank| units(rank, index, tp)).sum::<i64>() as f32 * UNIT
}

/// Numbers as they lie in memory.
pub(super) fn bytes(values: impl Iterator<Item = f32>, dtype: DType) -> Vec<u8> {
    fn of<T: Element>(values: impl Iterator<Item = f32>) -> Vec<u8> {
        let values: Vec<T> = values.map(T::from_f32).collect();
        bytemuck::cast_slice(&values).to_vec()
    }
    match dtype {
        DType::F32 => of::<f32>(values),
        DType::F16 => of::<f16>(values),
        DType::Bf16 => of::<bf16>(values),
    }
}

/// Element `index` of numbers as they lie in memory.
pub(super) fn value(bytes: &[u8], index: usize, dtype: DType) -> f32 {
    fn of<T: Element>(bytes: &[u8], index: usize) -> f32 {
        let size = size_of::<T>();
        bytemuck::pod_read_unaligned::<T>(&bytes[index * size..(index + 1) * size]).to_f32()
    }
    match dtype {
        DType::F32 => of::<f32>(bytes, index),
        DType::F16 => of::<f16>(bytes, index),
        DType::Bf16 => of::<bf16>(bytes, index),
    }
}

/// The first element that is not the sum: its index, what is there and what should be.
pub(super) fn first_wrong(bytes: &[u8], numel: usize, dtype: DType, tp: usize) -> Option<(usize, f32, f32)> {
    let pair = |index| (index, value(bytes, index, dtype), sum(index, tp));
    (0..numel).map(pair).find(|(_, found, expected)| found != expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_their_sums_are_exact_in_every_type() {
        for tp in [1, 2, 3, 8, 64] {
            for dtype in DType::ALL {
                let numbers = |of: &dyn Fn(usize) -> f32| (0..500).map(of).collect::<Vec<f32>>();
                for exact in [numbers(&|i| contribution(tp - 1, i, tp)), numbers(&|i| sum(i, tp))] {
                    let stored = bytes(exact.iter().copied(), dtype);
                    let back: Vec<f32> = (0..500).map(|i| value(&stored, i, dtype)).collect();
                    assert_eq!(back, exact, "{dtype} on {tp} ranks");
                }
            }
        }
    }

    #[test]
    fn ranks_and_elements_differ() {
        let of = |rank| (0..1000).map(move |i| units(rank, i, 2)).collect::<Vec<_>>();
        assert_ne!(of(0), of(1));
        let (least, most) = (of(0).into_iter().min().unwrap(), of(0).into_iter().max().unwrap());
        assert_eq!((least, most), (-32, 32));
    }

    #[test]
    fn a_wrong_element_is_found() {
        for dtype in DType::ALL {
            let mut stored = bytes((0..100).map(|i| sum(i, 2)), dtype);
            assert_eq!(first_wrong(&stored, 100, dtype, 2), None);
            let wrong = bytes(std::iter::once(3.0), dtype);
            stored[70 * wrong.len()..71 * wrong.len()].copy_from_slice(&wrong);
            assert_eq!(first_wrong(&stored, 100, dtype, 2), Some((70, 3.0, sum(70, 2))));
        }
    }
}
