//! Embedding and RMSNorm.

use half::bf16;

use super::{Addr, Launch, params};

pub(super) const EMBEDDING: [&str; 1] = ["embedding_bf16"];
pub(super) const ADD: [&str; 1] = ["add_bf16"];
pub(super) const RMSNORM: [&str; 2] = ["rmsnorm_bf16", "add_rmsnorm_bf16"];

/// Elements of a row that one thread takes at once: 16 bytes.
const PER_THREAD: u32 = 8;
const WARP: u32 = 32;
const MAX_THREADS: u32 = 1024;
const ADD_THREADS: u32 = 256;

/// Whole warps for one row of `width`, each thread taking [`PER_THREAD`] elements.
fn row_threads(width: u32) -> u32 {
    width.div_ceil(PER_THREAD).next_multiple_of(WARP).clamp(WARP, MAX_THREADS)
}

/// `out[t] = table[ids[t]]`: the embedding, or any other gather of rows.
#[derive(Debug, Clone, Copy)]
pub struct Embedding {
    /// `[rows, width]`.
    pub table: Addr<bf16>,
    /// Rows of the table; larger ids give zeros.
    pub rows: u32,
    /// Width of a row.
    pub width: u32,
    /// `[n_tokens]`.
    pub ids: Addr<u32>,
    /// `[n_tokens, width]`, written.
    pub out: Addr<bf16>,
    /// Tokens, at least one.
    pub n_tokens: u32,
}

impl Embedding {
    /// One block a token.
    pub fn launch(&self) -> Launch {
        let &Self { table, rows, width, ids, out, n_tokens } = self;
        let params = params::Embedding { table: table.raw(), ids: ids.raw(), out: out.raw(), rows, width };
        Launch::new(EMBEDDING[0], [n_tokens, 1, 1], row_threads(width), 0, &params)
    }
}

/// `out += x`.
#[derive(Debug, Clone, Copy)]
pub struct Add {
    /// `[n]`.
    pub x: Addr<bf16>,
    /// `[n]`, added to.
    pub out: Addr<bf16>,
    /// Elements, at least one.
    pub n: u32,
}

impl Add {
    /// A thread for 8 elements.
    pub fn launch(&self) -> Launch {
        let &Self { x, out, n } = self;
        let params = params::Add { x: x.raw(), out: out.raw(), n, reserved: 0 };
        let blocks = n.div_ceil(PER_THREAD).div_ceil(ADD_THREADS);
        Launch::new(ADD[0], [blocks, 1, 1], ADD_THREADS, 0, &params)
    }
}

/// `out = x / rms(x) · weight`.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm {
    /// `[n_tokens, hidden]`.
    pub x: Addr<bf16>,
    /// `[hidden]`.
    pub weight: Addr<bf16>,
    /// `[n_tokens, hidden]`, written; may be `x`.
    pub out: Addr<bf16>,
    /// Tokens, at least one.
    pub n_tokens: u32,
    /// Width of a row.
    pub hidden: u32,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    /// One block a token.
    pub fn launch(&self) -> Launch {
        let &Self { x, weight, out, n_tokens, hidden, eps } = self;
        norm(RMSNORM[0], n_tokens, (x, Addr::NULL, Addr::NULL, weight, out), hidden, eps)
    }
}

/// `sum = residual + x`, then `out = sum / rms(sum) · weight`.
#[derive(Debug, Clone, Copy)]
pub struct AddRmsNorm {
    /// `[n_tokens, hidden]`.
    pub x: Addr<bf16>,
    /// `[n_tokens, hidden]`.
    pub residual: Addr<bf16>,
    /// `[n_tokens, hidden]`, written; may be `residual`.
    pub sum: Addr<bf16>,
    /// `[hidden]`.
    pub weight: Addr<bf16>,
    /// `[n_tokens, hidden]`, written; may be `x`.
    pub out: Addr<bf16>,
    /// Tokens, at least one.
    pub n_tokens: u32,
    /// Width of a row.
    pub hidden: u32,
    /// Added to the mean square.
    pub eps: f32,
}

impl AddRmsNorm {
    /// One block a token.
    pub fn launch(&self) -> Launch {
        let &Self { x, residual, sum, weight, out, n_tokens, hidden, eps } = self;
        norm(RMSNORM[1], n_tokens, (x, residual, sum, weight, out), hidden, eps)
    }
}

type NormOperands = (Addr<bf16>, Addr<bf16>, Addr<bf16>, Addr<bf16>, Addr<bf16>);

fn norm(
    entry: &'static str,
    n_tokens: u32,
    (x, residual, sum, weight, out): NormOperands,
    hidden: u32,
    eps: f32,
) -> Launch {
    let (x, residual, sum, weight, out) = (x.raw(), residual.raw(), sum.raw(), weight.raw(), out.raw());
    let params = params::RmsNorm { x, residual, sum, weight, out, hidden, eps };
    let vectors = if n_tokens > params::FEW_ROWS && hidden.is_multiple_of(PER_THREAD) { 2 } else { 1 };
    Launch::new(entry, [n_tokens, 1, 1], row_threads(hidden.div_ceil(vectors)), 0, &params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gets_whole_warps_up_to_the_limit() {
        assert_eq!([1, 256, 257, 576, 4096, 8192, 16384].map(row_threads), [32, 32, 64, 96, 512, 1024, 1024]);
    }

    #[test]
    fn rows_of_many_tokens_take_half_the_threads() {
        let threads = |n_tokens, hidden| {
            let (x, weight, out) = (Addr::new(1), Addr::new(2), Addr::new(3));
            RmsNorm { x, weight, out, n_tokens, hidden, eps: 1e-5 }.launch().threads
        };
        assert_eq!([1, 128, 129].map(|n| threads(n, 4096)), [512, 512, 256]);
        assert_eq!([128, 129].map(|n| threads(n, 576)), [96, 64]);
        assert_eq!([128, 129].map(|n| threads(n, 577)), [96, 96]);
    }

    #[test]
    fn parameters_arrive_in_the_order_of_the_struct() {
        let launch = AddRmsNorm {
            x: Addr::new(1),
            residual: Addr::new(2),
            sum: Addr::new(3),
            weight: Addr::new(4),
            out: Addr::new(5),
            n_tokens: 6,
            hidden: 7,
            eps: 8.0,
        }
        .launch();
        let words: Vec<u64> =
            launch.params().chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words, [1, 2, 3, 4, 5, u64::from(8f32.to_bits()) << 32 | 7]);
        assert_eq!((launch.entry, launch.grid, launch.threads), ("add_rmsnorm_bf16", [6, 1, 1], 32));
    }
}
