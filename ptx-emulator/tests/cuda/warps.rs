//! Votes, matches, reductions and shuffles of warps, and operations on bits.

use crate::{Random, Sample, addresses, each_variant};

/// 64 inputs; the second warp's agree in their thousands.
fn inputs() -> Vec<u32> {
    let mut random = Random(11);
    (0..64).map(|i| if i < 32 { random.below(2000) } else { random.below(1000) }).collect()
}

/// Compares `width` results per thread with `expected(inputs of the warp, lane)`.
fn check<const WIDTH: usize>(
    sample: &mut Sample,
    kernel: &str,
    expected: impl Fn(&[u32], usize) -> [u32; WIDTH],
) {
    let values = inputs();
    let (input, out) = (sample.upload(&values, "in"), sample.room::<u32>(64 * WIDTH, "out"));
    sample.run(kernel, [1, 1, 1], [64, 1, 1], addresses([input, out]));
    let expected: Vec<[u32; WIDTH]> =
        (0..64).map(|i| expected(&values[i / 32 * 32..][..32], i % 32)).collect();
    let found = sample.download::<u32>(out, 64 * WIDTH);
    let found: Vec<[u32; WIDTH]> =
        found.chunks(WIDTH).map(|own| own.try_into().expect("WIDTH words")).collect();
    sample.assert_equal(kernel, &found, &expected);
}

fn ballot(values: &[u32], holds: impl Fn(u32) -> bool) -> u32 {
    values.iter().enumerate().fold(0, |bits, (lane, &value)| bits | u32::from(holds(value)) << lane)
}

#[test]
fn votes_and_matches_agree_with_loops_over_lanes() {
    each_variant("warp.cu", 80, |sample| {
        check(sample, "votes", |values, lane| {
            let value = values[lane];
            let same = values.iter().all(|other| other / 1000 == value / 1000);
            let second =
                |parity: u32| ballot(values, |other| other & 1 == parity && other & 2 != 0).count_ones();
            [
                ballot(values, |other| other & 1 != 0),
                u32::from(values.contains(&7)),
                u32::from(values.iter().all(|&other| other < 1000)),
                ballot(values, |other| other % 5 == value % 5),
                if same { u32::MAX } else { 0 },
                u32::from(same),
                if value & 1 != 0 { second(1) } else { 100 + second(0) },
                32,
            ]
        });
    });
}

#[test]
fn reductions_of_warps_agree_with_folds() {
    each_variant("warp.cu", 80, |sample| {
        check(sample, "warp_reductions", |values, lane| {
            let fold = |f: fn(u32, u32) -> u32| values.iter().copied().reduce(f).unwrap();
            let quarter = values.iter().skip(1).step_by(4).sum();
            [
                values.iter().sum(),
                fold(u32::min),
                fold(u32::max),
                values.iter().fold(u32::MAX, |bits, value| bits & (value | 0x100)),
                fold(|a, b| a | b),
                fold(|a, b| a ^ b),
                values.iter().map(|&value| value as i32 - 500).min().unwrap() as u32,
                if lane % 4 == 1 { quarter } else { 0 },
            ]
        });
    });
}

#[test]
fn shuffles_bring_the_right_lane() {
    each_variant("warp.cu", 80, |sample| {
        check(sample, "shuffles", |values, lane| {
            let or_own = |from: usize, there: bool| values[if there { from } else { lane }];
            // Threads of both warps count from the block's first.
            let tid = if values == &inputs()[..32] { lane } else { lane + 32 };
            let wide = u64::from(values[lane ^ 1]) << 20 | (tid ^ 1) as u64;
            [
                values[5],
                values[lane & !7 | (7 * tid + 3) & 7],
                or_own(lane.wrapping_sub(3), lane >= 3),
                or_own(lane + 2, lane % 16 < 14),
                values[lane ^ 9],
                wide as u32,
                (wide >> 32) as u32,
                (or_own(lane + 1, lane < 31) as f32).to_bits(),
            ]
        });
    });
}

#[test]
fn operations_on_bits_agree_with_rust() {
    each_variant("warp.cu", 80, |sample| {
        check(sample, "bits", |values, lane| {
            let i = if values == &inputs()[..32] { lane as u32 } else { lane as u32 + 32 };
            let value = values[lane].wrapping_mul(2654435761);
            let wide = u64::from(value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let bytes = (u64::from(!value) << 32 | u64::from(value)).to_le_bytes();
            let dot: i32 = value
                .to_le_bytes()
                .iter()
                .zip([-4, 3, -2, 1])
                .map(|(&byte, factor)| i32::from(byte as i8) * factor)
                .sum();
            let sums = value
                .to_le_bytes()
                .iter()
                .zip([4u8, 3, 2, 1])
                .map(|(a, b)| a.wrapping_add(b))
                .collect::<Vec<_>>();
            let first = |bits: u64| if bits == 0 { 0 } else { bits.trailing_zeros() + 1 };
            [
                value.count_ones(),
                value.leading_zeros(),
                first(u64::from(value)),
                value.reverse_bits(),
                u32::from_le_bytes([bytes[4], bytes[7], bytes[2], bytes[5]]),
                i << 11 | value >> 21,
                wide.count_ones(),
                wide.leading_zeros(),
                ((u64::from(value) * 0xDEAD_BEEF) >> 32) as u32,
                ((u128::from(wide) * u128::from(wide)) >> 64) as u32,
                (1000 + dot) as u32,
                u32::from_le_bytes(sums.try_into().unwrap()),
                (i64::from(value as i32) - 17).unsigned_abs() as u32 + 5,
                value.abs_diff(1 << 31).wrapping_add(7),
                value >> (i & 31) ^ ((value as i32) >> 3) as u32,
                first(wide & wide.wrapping_neg()),
            ]
        });
    });
}
