//! What the kernels compute, written for clarity in f64.

use half::bf16;
use rayon::prelude::*;

use crate::comm::{Element, Shape};

/// bf16 values as f64, exactly.
pub fn widen(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// Rounds to bf16 and back, through f32 as kernels do.
pub fn round(value: f64) -> f64 {
    f64::from(bf16::from_f32(value as f32))
}

/// Σ aᵢ·bᵢ, in eight interleaved sums.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `a · wᵀ` of `a: [m, k]` and `w: [n, k]`: `[m, n]`.
pub fn matmul(a: &[f64], w: &[f64], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
    let element = |i: usize| dot(&a[i / n * k..][..k], &w[i % n * k..][..k]);
    (0..m * n).into_par_iter().map(element).collect()
}

/// What an all-reduce over `shape` leaves on every rank, to the bit: in each node the fp32 sum in rank order,
/// rounded; between nodes recursive doubling, each addition rounded. Nodes beyond the largest power of two are
/// added to the first ones before.
pub fn sum_of_ranks<T: Element>(shape: Shape, of_rank: &[Vec<T>]) -> Vec<T> {
    let power = 1 << shape.nodes.ilog2();
    let add = |a: T, b: T| T::from_f32(a.to_f32() + b.to_f32());
    let element = |i: usize| {
        let sum = |node: &[Vec<T>]| T::from_f32(fp32_sum(node, i));
        let mut nodes: Vec<T> = of_rank.chunks(shape.gpus_per_node).map(sum).collect();
        for folded in power..nodes.len() {
            nodes[folded - power] = add(nodes[folded - power], nodes[folded]);
        }
        let mut distance = 1;
        while distance < power {
            nodes = (0..power).map(|node| add(nodes[node], nodes[node ^ distance])).collect();
            distance *= 2;
        }
        nodes[0]
    };
    let numel = of_rank.first().map_or(0, Vec::len);
    (0..numel).into_par_iter().map(element).collect()
}

/// What a sum over one node is before it is rounded: fp32, in rank order.
pub fn fp32_sum_of_ranks<T: Element>(of_rank: &[Vec<T>]) -> Vec<f32> {
    (0..of_rank[0].len()).into_par_iter().map(|i| fp32_sum(of_rank, i)).collect()
}

fn fp32_sum<T: Element>(of_rank: &[Vec<T>], i: usize) -> f32 {
    of_rank[1..].iter().fold(of_rank[0][i].to_f32(), |sum, rank| sum + rank[i].to_f32())
}

/// x / (1 + e^−x).
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// 1 / √(mean(x²) + eps).
pub fn inverse_rms(x: &[f64], eps: f32) -> f64 {
    (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt().recip()
}

/// `x · inverse_rms(x) · weight` of one row.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f32) -> Vec<f64> {
    let inverse = inverse_rms(x, eps);
    x.iter().zip(weight).map(|(x, w)| x * inverse * w).collect()
}

/// One head turned by halves: dimensions i and i + head_dim/2 by `position · inv_freq[i]`. The angle is an
/// f32 product, by definition of the models: their frequencies and angles are f32.
pub fn rope(head: &[f64], position: u32, inv_freq: &[f32]) -> Vec<f64> {
    let half = head.len() / 2;
    let turn = |i: usize| {
        let (sin, cos) = f64::from(position as f32 * inv_freq[i % half]).sin_cos();
        let partner = if i < half { -head[i + half] } else { head[i - half] };
        head[i] * cos + partner * sin
    };
    (0..head.len()).map(turn).collect()
}

/// softmax(q · keysᵀ / √head_dim) · values for one query head; zeros without keys.
pub fn attention(q: &[f64], keys: &[&[f64]], values: &[&[f64]]) -> Vec<f64> {
    let scale = (q.len() as f64).sqrt().recip();
    let scores: Vec<f64> = keys.iter().map(|key| dot(q, key) * scale).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (weight, value) in weights.iter().zip(values) {
        out.iter_mut().zip(*value).for_each(|(out, v)| *out += weight / total * v);
    }
    out
}

/// Index of the largest logit, the lowest among equals; 0 if all are NaN.
pub fn argmax(logits: &[f32]) -> usize {
    let better = |best: Option<usize>, i: usize| match best {
        _ if logits[i].is_nan() => best,
        Some(b) if logits[i] <= logits[b] => best,
        _ => Some(i),
    };
    (0..logits.len()).fold(None, better).unwrap_or(0)
}

/// The probability of every token after temperature, top-k and then top-p of what is left; ties at a
/// threshold are kept, NaN is not.
pub fn distribution(logits: &[f32], temperature: f32, top_k: u32, top_p: f32) -> Vec<f64> {
    let max = f64::from(logits[argmax(logits)]);
    let weight = |&logit: &f32| ((f64::from(logit) - max) / f64::from(temperature)).exp();
    let mut weights: Vec<f64> = logits.iter().map(|l| if l.is_nan() { 0.0 } else { weight(l) }).collect();
    let mut sorted = weights.clone();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    if 0 < top_k && (top_k as usize) < sorted.len() {
        let threshold = sorted[top_k as usize - 1];
        weights.iter_mut().filter(|w| **w < threshold).for_each(|w| *w = 0.0);
        sorted.retain(|w| *w >= threshold);
    }
    if top_p < 1.0 {
        let mass = sorted.iter().sum::<f64>() * f64::from(top_p);
        let mut sum = 0.0;
        let reaches = |w: &&f64| {
            sum += **w;
            sum >= mass
        };
        let threshold = sorted.iter().find(reaches).copied().unwrap_or(0.0);
        weights.iter_mut().filter(|w| **w < threshold).for_each(|w| *w = 0.0);
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// A number in [0, 1): the first 64 bits of Philox-4x32-10 (Salmon et al., SC 2011) over 2^64.
pub fn philox_unit(seed: u64, counter: u32) -> f64 {
    let block = philox([counter, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    (u64::from(block[1]) << 32 | u64::from(block[0])) as f64 / 2f64.powi(64)
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (p0, p1) = (0xD251_1F53 * u64::from(counter[0]), 0xCD9E_8D57 * u64::from(counter[2]));
        let high = |p: u64| (p >> 32) as u32;
        counter = [high(p1) ^ counter[1] ^ key[0], p1 as u32, high(p0) ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?} {expected:?}");
    }

    #[test]
    fn products_by_hand() {
        let (a, w) = ([1.0, 2.0, 3.0, 0.0, 1.0, -1.0], [1.0, 1.0, 1.0, 2.0, 0.0, 1.0]);
        near(&matmul(&a, &w, (2, 2, 3)), &[6.0, 5.0, 0.0, -1.0]);
        let long: Vec<f64> = (0..21).map(f64::from).collect();
        assert_eq!(dot(&long, &long), 2870.0);
    }

    #[test]
    fn norm_and_silu_by_hand() {
        near(&rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0), &[3.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()]);
        near(&[silu(0.0), silu(1.0)], &[0.0, 1.0 / (1.0 + (-1f64).exp())]);
        assert_eq!(round(1.0 + 1.0 / 1024.0), 1.0);
    }

    #[test]
    fn rope_turns_pairs_and_keeps_lengths() {
        let head = [1.0, 2.0, 3.0, 4.0];
        near(&rope(&head, 0, &[1.0, 0.1]), &head);
        let turned = rope(&head, 7, &[1.0, 0.125]);
        let (sin, cos) = 7f64.sin_cos();
        near(&turned[..1], &[cos - 3.0 * sin]);
        near(&[turned[1].hypot(turned[3])], &[2f64.hypot(4.0)]);
    }

    #[test]
    fn attention_averages_what_it_cannot_tell_apart() {
        let (key, v0, v1) = ([1.0, 1.0], [1.0, 2.0], [3.0, 6.0]);
        near(&attention(&[0.5, 0.5], &[&key, &key], &[&v0, &v1]), &[2.0, 4.0]);
        near(&attention(&[800.0, 0.0], &[&[1.0, 0.0], &[-1.0, 0.0]], &[&v0, &v1]), &v0);
        near(&attention(&[1.0, 1.0], &[], &[]), &[0.0, 0.0]);
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_no_nan() {
        assert_eq!(argmax(&[f32::NAN, 1.0, 3.0, 3.0]), 2);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), 1);
        assert_eq!(argmax(&[f32::NAN; 3]), 0);
    }

    #[test]
    fn filters_apply_in_order_and_keep_ties() {
        let logits: Vec<f32> = [4.0f32, 2.0, 2.0, 1.0, 1.0].iter().map(|p| p.ln()).collect();

        let near6 = |found: &[f64], expected: &[f64]| {
            assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?}");
        };
        near6(&distribution(&logits, 1.0, 2, 1.0), &[0.5, 0.25, 0.25, 0.0, 0.0]);
        near6(&distribution(&logits, 1.0, 0, 0.3), &[1.0, 0.0, 0.0, 0.0, 0.0]);
        // Top-k leaves 8 parts, of which the first has 4: half is enough, more takes the tied pair.
        near6(&distribution(&logits, 1.0, 3, 0.49), &[1.0, 0.0, 0.0, 0.0, 0.0]);
        near6(&distribution(&logits, 1.0, 3, 0.6), &[0.5, 0.25, 0.25, 0.0, 0.0]);
        near6(&distribution(&logits, 0.5, 0, 1.0), &[16.0, 4.0, 4.0, 1.0, 1.0].map(|w: f64| w / 26.0));
    }

    #[test]
    fn philox_gives_the_published_numbers() {
        // The known answers of Random123's test suite.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}
