//! The arithmetic of a Llama block on f32 rows: linear layers, rotary embedding, SwiGLU.

use gemm::Parallelism;
use half::bf16;
use rayon::prelude::*;

use super::matrix::{Matrix, Values};

/// Threads that one rank may use; 1 computes on the caller's thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Threads(pub(crate) usize);

impl Threads {
    fn parallelism(self) -> Parallelism {
        if self.0 == 1 { Parallelism::None } else { Parallelism::Rayon(self.0) }
    }

    /// Runs `work` over chunks of `out`, each with its number.
    fn for_each_chunk<T: Send>(self, out: &mut [T], chunk: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        if self.0 == 1 || out.len() <= chunk {
            out.chunks_mut(chunk).enumerate().for_each(|(i, c)| work(i, c));
        } else {
            out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| work(i, c));
        }
    }
}

/// `out[m, rows] = x[m, cols] · wᵀ`.
pub(crate) fn linear(x: &[f32], w: &Matrix, out: &mut [f32], threads: Threads) {
    if out.is_empty() {
        return;
    }
    let m = out.len() / w.rows;
    assert_eq!((x.len(), out.len()), (m * w.cols, m * w.rows), "linear: shapes");
    match (&w.values, m) {
        // A rank without MLP columns contributes nothing.
        _ if w.cols == 0 => out.fill(0.0),
        (Values::F32(values), 1) => matvecs(x, values, w.cols, out, threads, dot_f32),
        (Values::Bf16(values), ..=DOT_ROWS) => matvecs(x, values, w.cols, out, threads, dot_bf16),
        (Values::F32(values), _) => matmul(x, values, w.cols, out, w.rows, 0, threads),
        (Values::Bf16(values), _) => matmul_widened(x, values, w.cols, out, w.rows, threads),
    }
}

#[inline(always)]
fn widen(v: bf16) -> f32 {
    f32::from_bits(u32::from(v.to_bits()) << 16)
}

/// `out = x · wᵀ`, where `out` has `rows` columns. A panel of weights at a time is widened to f32, so that a large
/// matrix is not doubled in memory.
fn matmul_widened(x: &[f32], w: &[bf16], k: usize, out: &mut [f32], rows: usize, threads: Threads) {
    const PANEL_ROWS: usize = 512;
    const VALUES_PER_TASK: usize = 64 * 1024;
    let mut panel = vec![0.0; PANEL_ROWS.min(rows) * k];
    for (i, w) in w.chunks(PANEL_ROWS * k).enumerate() {
        let panel = &mut panel[..w.len()];
        threads.for_each_chunk(panel, VALUES_PER_TASK, |task, panel| {
            let w = &w[task * VALUES_PER_TASK..][..panel.len()];
            pulp::Arch::new().dispatch(|| panel.iter_mut().zip(w).for_each(|(to, &v)| *to = widen(v)));
        });
        matmul(x, panel, k, out, rows, i * PANEL_ROWS, threads);
    }
}

/// `out[:, at..at + rows of w] = x · wᵀ`, where `out` has `stride` columns and `w` has `k`.
fn matmul(x: &[f32], w: &[f32], k: usize, out: &mut [f32], stride: usize, at: usize, threads: Threads) {
    let (m, n) = (out.len() / stride, w.len() / k);
    assert!(x.len() == m * k && at + n <= stride, "matmul: shapes");
    // SAFETY: the strides describe x as [m, k], w as [n, k] read transposed, and out[.., at..at + n] as
    // [m, n]; the assertion above keeps all three inside their slices, and `out` is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr().add(at),
            1,
            stride as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            threads.parallelism(),
        );
    }
}

/// Most rows of `x` that are multiplied with bf16 weights by dot products, which read every weight from memory once;
/// with more of them, widening pays.
const DOT_ROWS: usize = 4;

/// `out = x · wᵀ` for few rows of `x`; the rows of `w` are shared between threads. Each element is one dot product,
/// so that the result depends neither on the number of threads nor on the other rows of `x`.
fn matvecs<T: Copy + Sync>(
    x: &[f32],
    w: &[T],
    k: usize,
    out: &mut [f32],
    threads: Threads,
    dot: impl Fn(&[f32], &[T]) -> f32 + Sync,
) {
    // About 128 KiB of f32 weights a task.
    let rows = (32 * 1024 / k).max(1);
    let m = x.len() / k;
    let work = |i: usize, out: &mut [f32]| {
        let w = &w[i * rows * k..][..out.len() / m * k];
        // The widest vector instructions of the machine, found at run time.
        pulp::Arch::new().dispatch(|| {
            for (out, row) in out.chunks_exact_mut(m).zip(w.chunks_exact(k)) {
                for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
                    *out = dot(x, row);
                }
            }
        });
    };
    if m == 1 {
        return threads.for_each_chunk(out, rows, work);
    }
    // Threads own rows of the transpose.
    let mut by_weight = vec![0.0; out.len()];
    threads.for_each_chunk(&mut by_weight, rows * m, work);
    for (row, out) in out.chunks_exact_mut(w.len() / k).enumerate() {
        out.iter_mut().zip(by_weight[row..].iter().step_by(m)).for_each(|(to, &from)| *to = from);
    }
}

/// Independent partial sums of a dot product: two AVX-512 or four AVX registers.
const LANES: usize = 32;

#[inline(always)]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b, |v| v)
}

#[inline(always)]
fn dot_bf16(a: &[f32], b: &[bf16]) -> f32 {
    dot(a, b, widen)
}

#[inline(always)]
fn dot<T: Copy>(a: &[f32], b: &[T], widen: impl Fn(T) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let tail: f32 = tail.map(|(&x, &y)| x * widen(y)).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * widen(y[lane]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0] + tail
}

/// Rotates the pairs `(i, i + head_dim / 2)` of one head by `position · inv_freq[i]`.
pub(crate) fn rotate(head: &mut [f32], position: usize, inv_freq: &[f32]) {
    let (left, right) = head.split_at_mut(inv_freq.len());
    for ((a, b), freq) in left.iter_mut().zip(right).zip(inv_freq) {
        let (sin, cos) = (position as f32 * freq).sin_cos();
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// `out = silu(gate) · up`, where each row of `gate_up` holds gate and then up.
pub(crate) fn swiglu(gate_up: &[f32], width: usize, out: &mut [f32], threads: Threads) {
    if width == 0 {
        return;
    }
    threads.for_each_chunk(out, width, |row, out| {
        let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
        for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
            *out = g / (1.0 + (-g).exp()) * u;
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let value = |i: u32| ((i ^ seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        (0..n as u32).map(value).collect()
    }

    proptest! {
        #[test]
        fn linear_is_the_sum_of_products(m in 0usize..13, k in 0usize..90, n in 0usize..1200, narrow: bool) {
            let (x, w) = (noise(m * k, 1), noise(n * k, 2));
            let narrowed: Vec<bf16> = w.iter().map(|&v| bf16::from_f32(v)).collect();
            let w: Vec<f32> = if narrow { narrowed.iter().map(|v| v.to_f32()).collect() } else { w };
            let values = if narrow { Values::Bf16(narrowed) } else { Values::F32(w.clone()) };
            let w_as_held = Matrix { rows: n, cols: k, values };
            let product = |x: &[f32], threads| {
                let mut out = vec![f32::NAN; x.len().checked_div(k).unwrap_or(m) * n];
                linear(x, &w_as_held, &mut out, Threads(threads));
                out
            };
            let out = product(&x, 1);
            prop_assert_eq!(&out, &product(&x, 2), "depends on the threads");
            if narrow && m <= DOT_ROWS && k > 0 {
                let alone: Vec<f32> = x.chunks(k).flat_map(|x| product(x, 1)).collect();
                prop_assert_eq!(&out, &alone, "depends on the other rows");
            }
            for (i, out) in out.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let products = x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b));
                let (exact, scale) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                prop_assert!((f64::from(*out) - exact).abs() <= 1e-6 * scale.max(1e-3), "{out} {exact}");
            }
        }
    }

    #[test]
    fn rotation_keeps_length_and_starts_at_identity() {
        let inv_freq = [1.0, 0.1];
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate(&mut head, 0, &inv_freq);
        assert_eq!(head, [1.0, 2.0, 3.0, 4.0]);
        rotate(&mut head, 3, &inv_freq);
        assert!((head[0] - (3.0f32.cos() - 3.0 * 3.0f32.sin())).abs() < 1e-6);
        assert!((head[3] - (4.0 * 0.3f32.cos() + 2.0 * 0.3f32.sin())).abs() < 1e-6);
    }
}
