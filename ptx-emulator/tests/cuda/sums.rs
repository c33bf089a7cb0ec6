//! Reductions and scans.

use crate::{Random, addresses, each_variant};

#[test]
fn reductions_equal_sums_on_the_cpu() {
    each_variant("reduce.cu", 80, |sample| {
        let mut random = Random(1);
        let words = random.many(1000, |random| random.next() as u32);
        let input = sample.upload(&words, "in");
        let of_block = |block: usize, threads: usize, blocks: usize| {
            (0..words.len()).filter(move |i| i / threads % blocks == block).map(|i| words[i])
        };

        let out = sample.room::<u32>(3, "out");
        sample.run("sum_shared_u32", [3, 1, 1], [128, 1, 1], addresses([input, out]).and(1000));
        let expected: Vec<u32> =
            (0..3).map(|block| of_block(block, 128, 3).fold(0, u32::wrapping_add)).collect();
        let found = sample.download::<u32>(out, 3);
        sample.assert_equal("sum_shared_u32", &found, &expected);

        let values = random.many(500, |random| random.within(1e6));
        let (doubles, out) = (sample.upload(&values, "doubles"), sample.room::<f64>(2, "out"));
        sample.run("max_shared_f64", [2, 1, 1], [64, 1, 1], addresses([doubles, out]).and(500));
        let largest = sample.download::<f64>(out, 2).into_iter().fold(f64::MIN, f64::max);
        assert_eq!(largest, values.iter().copied().fold(f64::MIN, f64::max));

        let (partial, done) = (sample.room::<u64>(4, "partial"), sample.upload(&[0u32], "done"));
        let out = sample.room::<u64>(1, "out");
        let params = || addresses([input, partial, done, out]).and(1000);
        // Twice: the counter is left as it was found.
        for _ in 0..2 {
            sample.run("sum_shuffle_u64", [4, 1, 1], [96, 1, 1], params());
            let sum = words.iter().map(|&word| u64::from(word)).sum::<u64>();
            assert_eq!(sample.download::<u64>(out, 1), [sum]);
        }
    });
}

#[test]
fn tiles_of_cooperative_groups_add_up() {
    each_variant("reduce.cu", 80, |sample| {
        let values = Random(2).many(170, |random| random.below(2000) as i32 - 1000);
        let (input, out) = (sample.upload(&values, "in"), sample.room::<i32>(6, "out"));
        sample.run("sum_tiles_i32", [3, 1, 1], [64, 1, 1], addresses([input, out]).and(170));
        let expected = values
            .chunks(64)
            .flat_map(|block| [block.iter().sum(), block.iter().take(32).copied().max().unwrap_or(i32::MIN)]);
        let found = sample.download::<i32>(out, 6);
        sample.assert_equal("sum_tiles_i32", &found, &expected.collect::<Vec<_>>());
    });
}

fn running(values: &[u32]) -> Vec<u32> {
    let sums = values.iter().scan(0u32, |sum, &value| {
        *sum = sum.wrapping_add(value);
        Some(*sum)
    });
    sums.collect()
}

#[test]
fn scans_equal_running_sums() {
    each_variant("scan.cu", 80, |sample| {
        let words = Random(3).many(1000, |random| random.next() as u32);
        let (input, out) = (sample.upload(&words, "in"), sample.room::<u32>(1000, "out"));
        sample.run("scan_blocks", [2, 1, 1], [256, 1, 1], addresses([input, out]));
        let expected = [running(&words[..256]), running(&words[256..512])].concat();
        let found = sample.download::<u32>(out, 512);
        sample.assert_equal("scan_blocks", &found, &expected);

        // 16 blocks that wait for those before them.
        let (tickets, states) = (sample.upload(&[0u32], "tickets"), sample.upload(&[0u64; 16], "states"));
        let params = addresses([input, out, tickets, states]).and(1000);
        sample.run("scan_look_back", [16, 1, 1], [64, 1, 1], params);
        let found = sample.download::<u32>(out, 1000);
        sample.assert_equal("scan_look_back", &found, &running(&words));
    });
}
