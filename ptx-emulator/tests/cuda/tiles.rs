//! Transposes and the tiled matrix product.

use bytemuck::Pod;

use crate::{Params, Random, Sample, addresses, each_variant};

const ROWS: usize = 45;
const COLUMNS: usize = 70;

fn transpose<T: Pod + PartialEq + std::fmt::Debug>(
    sample: &mut Sample,
    kernel: &str,
    [tile, rows]: [u32; 2],
    values: &[T],
) {
    let (input, out) = (sample.upload(values, "in"), sample.room::<T>(values.len(), "out"));
    let grid = [(COLUMNS as u32).div_ceil(tile), (ROWS as u32).div_ceil(tile), 1];
    let params = addresses([input, out]).and(ROWS as i32).and(COLUMNS as i32);
    sample.run(kernel, grid, [tile, rows, 1], params);
    let found = sample.download::<T>(out, values.len());
    let expected = (0..COLUMNS).flat_map(|column| (0..ROWS).map(move |row| values[row * COLUMNS + column]));
    sample.assert_equal(kernel, &found, &expected.collect::<Vec<_>>());
}

#[test]
fn transposes_move_every_element() {
    each_variant("transpose.cu", 80, |sample| {
        let mut random = Random(4);
        transpose(
            sample,
            "transpose_u8",
            [32, 4],
            &random.many(ROWS * COLUMNS, |random| random.next() as u8),
        );
        transpose(
            sample,
            "transpose_f32",
            [32, 8],
            &random.many(ROWS * COLUMNS, |random| random.within(9.0) as f32),
        );
        let vectors = random.many(ROWS * COLUMNS, |random| [0; 4].map(|_: u32| random.within(9.0) as f32));
        transpose(sample, "transpose_float4", [16, 16], &vectors);

        let rows = random.many(64, |random| [0; 4].map(|_: u32| random.next() as i32));
        let (input, out) = (sample.upload(&rows, "in"), sample.room::<[i32; 4]>(64, "out"));
        sample.run("transpose_4x4_shuffle", [1, 1, 1], [64, 1, 1], addresses([input, out]));
        let expected: Vec<[i32; 4]> =
            (0..64).map(|lane| std::array::from_fn(|i| rows[lane / 4 * 4 + i][lane % 4])).collect();
        let found = sample.download::<[i32; 4]>(out, 64);
        sample.assert_equal("transpose_4x4_shuffle", &found, &expected);
    });
}

#[test]
fn a_tiled_product_equals_dot_products() {
    each_variant("sgemm.cu", 80, |sample| {
        // Vectors fit the rows of B in the first shape only.
        for (m, n, k) in [(70, 52, 40), (20, 33, 19)] {
            let mut random = Random(5);
            let mut matrix = |count| random.many(count, |random| random.within(2.0) as f32);
            let (a, b, c) = (matrix(m * k), matrix(k * n), matrix(m * n));
            let at = [sample.upload(&a, "a"), sample.upload(&b, "b"), sample.upload(&c, "c")];
            let (alpha, beta) = (1.5f32, 0.5f32);
            let params = Params::default().and([m as i32, n as i32, k as i32]).and(alpha);
            let params = params.and(at[0]).and(at[1]).and(beta).and(at[2]);
            let grid = [(n as u32).div_ceil(64), (m as u32).div_ceil(64), 1];
            sample.run("sgemm_64x64", grid, [256, 1, 1], params);
            for (index, found) in sample.download::<f32>(at[2], m * n).into_iter().enumerate() {
                let (row, column) = (index / n, index % n);
                // Fused and by ascending k, as in the kernel; only the last line may be fused or not.
                let sum = (0..k).fold(0.0f32, |sum, x| a[row * k + x].mul_add(b[x * n + column], sum));
                let expected = alpha * sum + beta * c[index];
                let near = (found - expected).abs() <= 2.0 * f32::EPSILON * (alpha * sum.abs() + 1.0);
                assert!(near, "{}: ({row}, {column}) is {found}, not {expected}", sample.variant);
            }
        }
    });
}
