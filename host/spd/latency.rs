//! What an all-reduce costs: from a table of measurements, or a latency and a bandwidth.

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

/// Bytes of the message that a block's first all-reduce carries in a decode step: bf16.
pub fn message_bytes(batch: usize, hidden: usize) -> u64 {
    (batch * hidden * 2) as u64
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
    fn a_table_is_read_between_its_lines() {
        let rows = vec![(4096, 9.0), (1024, 3.0), (4096, 6.0), (2048, f64::NAN)];
        let time = AllReduceTime::table(rows).unwrap();
        assert_eq!(time, AllReduceTime::Table(vec![(1024, 3.0), (4096, 6.0)]));
        assert_eq!([1, 1024, 2560, 4096, 8192].map(|bytes| time.us(bytes)), [3.0, 3.0, 4.5, 6.0, 12.0]);
        assert!(AllReduceTime::table(vec![(1, 0.0)]).is_err());
    }
}
