//! Asynchronous copies: cp.async, cuda::pipeline, cuda::barrier, and Hopper's bulk copies.

use crate::{Random, addresses, each_variant};

#[test]
fn pipelines_hand_over_what_arrived() {
    each_variant("pipeline.cu", 80, |sample| {
        let mut random = Random(12);
        let vectors = random.many(192, |random| [0; 4].map(|_: u32| random.below(1 << 20) as i32));
        let (input, out) = (sample.upload(&vectors, "in"), sample.room::<[i32; 4]>(192, "out"));
        sample.run("by_primitives", [1, 1, 1], [64, 1, 1], addresses([input, out]).and(3));
        let mirrored = |i: usize| vectors[i / 64 * 64 + 63 - i % 64];
        let expected: Vec<[i32; 4]> =
            (0..192).map(|i| std::array::from_fn(|part| vectors[i][part] + mirrored(i)[part])).collect();
        let found = sample.download::<[i32; 4]>(out, 192);
        sample.assert_equal("by_primitives", &found, &expected);

        let words = random.many(512, |random| random.below(1 << 28) as i32);
        let (input, out) = (sample.upload(&words, "in"), sample.room::<i32>(512, "out"));
        sample.run("by_pipeline", [1, 1, 1], [128, 1, 1], addresses([input, out]).and(4));
        let expected: Vec<i32> = (0..512).map(|i| 3 * words[i ^ 127] + 1).collect();
        let found = sample.download::<i32>(out, 512);
        sample.assert_equal("by_pipeline", &found, &expected);
    });
}

#[test]
fn a_copy_ends_where_its_source_does() {
    each_variant("pipeline.cu", 80, |sample| {
        // 40 vectors and 6 bytes: nothing behind them may be read.
        let bytes = Random(13).many(646, |random| random.next() as u8);
        let (input, out) = (sample.upload(&bytes, "in"), sample.room::<[u8; 16]>(64, "out"));
        sample.run("with_zero_fill", [1, 1, 1], [64, 1, 1], addresses([input, out]).and(646));
        let mut padded = bytes.clone();
        padded.resize(1024, 0);
        let expected: Vec<&[u8]> = padded.chunks(16).rev().collect();
        let found = sample.download::<[u8; 16]>(out, 64);
        sample.assert_equal(
            "with_zero_fill",
            &found.iter().map(|row| &row[..]).collect::<Vec<_>>(),
            &expected,
        );
    });
}

#[test]
fn barriers_order_rounds() {
    each_variant("pipeline.cu", 80, |sample| {
        let out = sample.room::<i32>(64, "out");
        sample.run("by_barrier", [1, 1, 1], [64, 1, 1], addresses([out]).and(3));
        let mut values: Vec<i32> = (0..64).collect();
        for round in 0..3 {
            let shown = values.clone();
            (0..64).for_each(|i| values[i] += round + shown[(i + 33) % 64]);
        }
        let found = sample.download::<i32>(out, 64);
        sample.assert_equal("by_barrier", &found, &values);
    });
}

#[test]
fn bulk_copies_go_there_and_back() {
    each_variant("bulk.cu", 90, |sample| {
        let words = Random(14).many(768, |random| random.below(1 << 28) as i32);
        let (input, out) = (sample.upload(&words, "in"), sample.room::<i32>(768, "out"));
        sample.run("bulk_round_trip", [1, 1, 1], [64, 1, 1], addresses([input, out]).and(3));
        let expected: Vec<i32> = (0..768).map(|i| 2 * words[i] + (i / 256) as i32).collect();
        let found = sample.download::<i32>(out, 768);
        sample.assert_equal("bulk_round_trip", &found, &expected);
    });
}
