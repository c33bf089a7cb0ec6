//! Warp matrix functions: every shape and type of `wmma` that nvcc offers for whole bytes.

use bytemuck::Pod;
use half::{bf16, f16};

use crate::{Random, Sample, addresses, each_variant};

/// Numbers that all types and sums hold exactly.
fn numbers(random: &mut Random, count: usize, least: i32) -> Vec<f64> {
    random.many(count, |random| f64::from(random.below(9) as i32 - 4).max(f64::from(least)))
}

fn product(kernel: &str, sample: &mut Sample, convert: fn(f64) -> u16, columns: bool) {
    let (m, n, k) = (32, 48, 64);
    let mut random = Random(6);
    let (a, b) = (numbers(&mut random, m * k, -4), numbers(&mut random, k * n, -4));
    let narrow = |values: &[f64]| values.iter().map(|&value| convert(value)).collect::<Vec<u16>>();
    let at =
        [sample.upload(&narrow(&a), "a"), sample.upload(&narrow(&b), "b"), sample.room::<f32>(m * n, "c")];
    let grid = [n as u32 / 16, m as u32 / 16, 1];
    sample.run(kernel, grid, [32, 1, 1], addresses(at).and(n as i32).and(k as i32));
    let b_at = |x: usize, column: usize| if columns { b[column * k + x] } else { b[x * n + column] };
    let sum = |row: usize, column: usize| (0..k).map(|x| a[row * k + x] * b_at(x, column)).sum::<f64>();
    let expected: Vec<f32> = (0..m * n).map(|index| 0.5 * sum(index / n, index % n) as f32).collect();
    let found = sample.download::<f32>(at[2], m * n);
    sample.assert_equal(kernel, &found, &expected);
}

/// D = A B + C of one shape; A and C by columns, B and D by rows.
fn once<T: Pod, S: Pod + PartialEq + std::fmt::Debug>(
    sample: &mut Sample,
    kernel: &str,
    [m, n, k]: [usize; 3],
    convert: fn(f64) -> T,
    sum: fn(f64) -> S,
) {
    let mut random = Random(7);
    let least = if kernel.contains("u8") { 0 } else { -4 };
    let (a, b) = (numbers(&mut random, m * k, least), numbers(&mut random, k * n, least));
    let c = numbers(&mut random, m * n, -4);
    let factors = |values: &[f64]| values.iter().map(|&value| convert(value)).collect::<Vec<T>>();
    let sums = |values: &[f64]| values.iter().map(|&value| sum(value)).collect::<Vec<S>>();
    let at = [
        sample.upload(&factors(&a), "a"),
        sample.upload(&factors(&b), "b"),
        sample.upload(&sums(&c), "c"),
        sample.room::<S>(m * n, "d"),
    ];
    sample.run(kernel, [1, 1, 1], [32, 1, 1], addresses(at));
    let exact = |row: usize, column: usize| {
        (0..k).map(|x| a[x * m + row] * b[x * n + column]).sum::<f64>() + c[column * m + row]
    };
    let expected: Vec<S> = (0..m * n).map(|index| sum(exact(index / n, index % n))).collect();
    let found = sample.download::<S>(at[3], m * n);
    sample.assert_equal(kernel, &found, &expected);
}

#[test]
fn products_of_warps_equal_dot_products() {
    each_variant("wmma.cu", 80, |sample| {
        let half = |value: f64| f16::from_f64(value).to_bits();
        let bfloat = |value: f64| bf16::from_f64(value).to_bits();
        product("wmma_f16_row", sample, half, false);
        product("wmma_f16_column", sample, half, true);
        product("wmma_bf16_row", sample, bfloat, false);
        product("wmma_bf16_column", sample, bfloat, true);
        let single = |value: f64| value as f32;
        once(sample, "wmma_f16_m32n8k16", [32, 8, 16], half, half);
        once(sample, "wmma_bf16_m8n32k16", [8, 32, 16], bfloat, single);
        once(sample, "wmma_s8_m16n16k16", [16, 16, 16], |value| value as i8, |value| value as i32);
        once(sample, "wmma_u8_m32n8k16", [32, 8, 16], |value| value as u8, |value| value as i32);
        once(sample, "wmma_tf32_m16n16k8", [16, 16, 8], single, single);
        once(sample, "wmma_f64_m8n8k4", [8, 8, 4], |value| value, |value| value);
    });
}

#[test]
fn operands_come_from_shared_memory_with_a_stride() {
    each_variant("wmma.cu", 80, |sample| {
        let mut random = Random(8);
        let (a, b, c) =
            (numbers(&mut random, 256, -4), numbers(&mut random, 256, -4), numbers(&mut random, 256, -4));
        let narrow = |values: &[f64]| values.iter().map(|&value| f16::from_f64(value)).collect::<Vec<_>>();
        let sums: Vec<f32> = c.iter().map(|&value| value as f32).collect();
        let at =
            [sample.upload(&narrow(&a), "a"), sample.upload(&narrow(&b), "b"), sample.upload(&sums, "c")];
        sample.run("wmma_f16_shared", [1, 1, 1], [32, 1, 1], addresses(at));
        let exact = |row: usize, column: usize| {
            (0..16).map(|x| a[16 * row + x] * b[16 * x + column]).sum::<f64>() + c[16 * row + column]
        };
        let expected: Vec<f32> = (0..256).map(|index| exact(index / 16, index % 16) as f32).collect();
        let found = sample.download::<f32>(at[2], 256);
        sample.assert_equal("wmma_f16_shared", &found, &expected);
    });
}
