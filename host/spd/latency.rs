//! What an all-reduce costs: from a table of measurements, or a latency and a bandwidth.

use serde::Serialize;

/// Time of an all-reduce by its size.
#[derive(Debug, Clone, PartialEq)]
pub enum AllReduceTime {
    /// α + bytes / β.
    AlphaBeta {
        /// Time of an empty message in µs.
        alpha_us: f64,
        /// Message bytes per time, 10⁹ bytes a second.
        beta_gbs: f64,
    },
    /// Measured: (bytes, µs), sizes ascending, at least one.
    Table(Vec<(u64, f64)>),
}

impl AllReduceTime {
    /// A table from measurements in any order; of several at one size the fastest counts.
    ///
    /// # Errors
    /// No measurement, as a sentence.
    pub fn table(mut rows: Vec<(u64, f64)>) -> Result<Self, &'static str> {
        rows.retain(|(_, us)| us.is_finite() && *us > 0.0);
        rows.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        rows.dedup_by_key(|(bytes, _)| *bytes);
        if rows.is_empty() {
            return Err("no line has a size and a time");
        }
        Ok(Self::Table(rows))
    }

    /// Time in µs of one all-reduce of `bytes`. In a table: on the line between the neighbouring sizes; below the least
    /// size its time, beyond the largest at its bandwidth.
    pub fn us(&self, bytes: u64) -> f64 {
        let rows = match self {
            Self::AlphaBeta { alpha_us, beta_gbs } => return alpha_us + bytes as f64 / (beta_gbs * 1e3),
            Self::Table(rows) => rows,
        };
        let above = rows.partition_point(|(size, _)| *size < bytes);
        match (above.checked_sub(1).map(|below| rows[below]), rows.get(above)) {
            (Some((b0, t0)), Some(&(b1, t1))) => t0 + (t1 - t0) * (bytes - b0) as f64 / (b1 - b0) as f64,
            (None, Some(&(_, t))) => t,
            (Some((b, t)), None) => t * bytes as f64 / b as f64,
            (None, None) => 0.0,
        }
    }
}

/// What the first sync point of a block takes, measured, for as many tokens as a pass has; µs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SyncCost {
    /// Rows of the message.
    pub tokens: usize,
    /// The sum over ranks alone.
    pub sum_us: f64,
    /// The sum with residual and RMSNorm in one call, as a block has it.
    pub fused_us: f64,
    /// Residual and RMSNorm alone, as a block has them that drops the sum.
    pub norm_us: f64,
}

impl SyncCost {
    /// What dropping the sum saves.
    pub fn saved_us(&self) -> f64 {
        self.fused_us - self.norm_us
    }

    /// Bytes of the message over the time of the sum, in 10⁹ bytes a second.
    pub fn sum_gb_per_s(&self, hidden: usize) -> f64 {
        message_bytes(self.tokens, hidden) as f64 / self.sum_us / 1e3
    }
}

/// The tokens of each pass over `tokens` in all, of which a pass takes at most `most`.
pub fn passes(tokens: usize, most: usize) -> Vec<usize> {
    let rest = tokens % most;
    std::iter::repeat_n(most, tokens / most).chain((rest > 0).then_some(rest)).collect()
}

/// Bytes of the message that a block's first all-reduce carries for so many tokens: bf16.
pub fn message_bytes(tokens: usize, hidden: usize) -> u64 {
    (tokens * hidden * 2) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_and_beta() {
        let time = AllReduceTime::AlphaBeta { alpha_us: 4.0, beta_gbs: 10.0 };
        assert_eq!(time.us(0), 4.0);
        // 10 GB/s are 10 kB/µs.
        assert_eq!(time.us(20_000), 6.0);
    }

    #[test]
    fn what_a_dropped_sum_saves_leaves_the_norm() {
        let cost = SyncCost { tokens: 1000, sum_us: 800.0, fused_us: 820.0, norm_us: 10.0 };
        // 8 MB in 0.8 ms.
        assert_eq!((cost.saved_us(), cost.sum_gb_per_s(4000)), (810.0, 10.0));
        assert_eq!(passes(2500, 1024), [1024, 1024, 452]);
        assert_eq!((passes(1024, 1024), passes(8, 1024)), (vec![1024], vec![8]));
    }

    #[test]
    fn a_table_is_read_between_its_lines() {
        let rows = vec![(4096, 9.0), (1024, 3.0), (4096, 6.0), (2048, f64::NAN)];
        let time = AllReduceTime::table(rows).unwrap();
        assert_eq!(time, AllReduceTime::Table(vec![(1024, 3.0), (4096, 6.0)]));
        assert_eq!([1, 1024, 2560, 4096, 8192].map(|bytes| time.us(bytes)), [3.0, 3.0, 4.5, 6.0, 12.0]);
        assert!(AllReduceTime::table(vec![(1, 0.0)]).is_err());
    }
}
