//! Histograms, every atomic of CUDA, and locks.

use bytemuck::{Pod, Zeroable};

use crate::{Random, addresses, each_variant};

#[test]
fn histograms_count_every_byte() {
    each_variant("atomics.cu", 80, |sample| {
        let bytes = Random(9).many(3000, |random| (random.below(16) * random.below(16)) as u8);
        let mut expected = [0u32; 256];
        bytes.iter().for_each(|&byte| expected[usize::from(byte)] += 1);
        let input = sample.upload(&bytes, "in");
        for (kernel, blocks) in [("histogram_shared", 3), ("histogram_global", 24)] {
            let bins = sample.upload(&[0u32; 256], "bins");
            sample.run(kernel, [blocks, 1, 1], [128, 1, 1], addresses([input, bins]).and(3000));
            let found = sample.download::<u32>(bins, 256);
            sample.assert_equal(kernel, &found, &expected);
        }
    });
}

#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
struct Totals {
    smallest: i32,
    largest: i32,
    bits: [u32; 3],
    wrapped: u32,
    counted_down: u32,
    swapped: u32,
    sum: u64,
    largest_u64: u64,
    sum_f32: f32,
    block_sum: u32,
    sum_f64: f64,
    largest_f64: f64,
}

#[test]
fn every_atomic_agrees_with_a_loop() {
    each_variant("atomics.cu", 80, |sample| {
        let values = Random(10).many(500, |random| random.next() as i32);
        let start = Totals {
            smallest: i32::MAX,
            largest: i32::MIN,
            bits: [0, u32::MAX, 0],
            swapped: 5,
            largest_f64: -1e300,
            ..Totals::zeroed()
        };
        let (input, totals) = (sample.upload(&values, "in"), sample.upload(&[start], "totals"));
        sample.run("every_atomic", [4, 1, 1], [128, 1, 1], addresses([input, totals]).and(500));
        let words = || values.iter().map(|&value| value as u32);
        let expected = Totals {
            smallest: values.iter().copied().min().unwrap(),
            largest: values.iter().copied().max().unwrap(),
            bits: [
                words().fold(0, |bits, word| bits | word),
                words().fold(u32::MAX, |bits, word| bits & word),
                words().fold(0, |bits, word| bits ^ word),
            ],
            wrapped: 500 % 17,
            counted_down: 1000 - 499,
            swapped: 5,
            sum: words().map(|word| u64::from(word & 0xFFFF)).sum(),
            largest_u64: words().map(|word| u64::from(word) << 8).max().unwrap(),
            sum_f32: words().map(|word| (word & 0xFF) as f32).sum(),
            block_sum: 0u32.wrapping_sub(1500),
            sum_f64: values.iter().map(|&value| 0.5 * f64::from(value)).sum(),
            largest_f64: values.iter().map(|&value| 0.25 * f64::from(value)).fold(f64::MIN, f64::max),
        };
        let found = sample.download::<Totals>(totals, 1);
        sample.assert_equal("every_atomic", &found, &[expected]);
    });
}

#[test]
fn locks_let_one_lane_in_at_a_time() {
    each_variant("atomics.cu", 80, |sample| {
        let (locks, counters) = (sample.upload(&[0u32; 5], "locks"), sample.upload(&[0u32; 5], "counters"));
        let params = addresses([locks, counters]).and(5).and(2);
        sample.run("locked_counters", [2, 1, 1], [48, 1, 1], params);
        let expected: Vec<u32> =
            (0..5).map(|bucket| 2 * (0..96).filter(|i| i % 5 == bucket).count() as u32).collect();
        let found = sample.download::<u32>(counters, 5);
        sample.assert_equal("locked_counters", &found, &expected);
    });
}
