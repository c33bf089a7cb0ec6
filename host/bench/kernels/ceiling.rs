//! What the memory gives at best, measured in the same run.

use serde::Serialize;

use super::operands::Operands;
use super::timing::Timer;
use super::{BenchError, Work};
use crate::kernels::{Gemv, Product, Rows};

const READ_BYTES: usize = 1 << 30;
const COLUMNS: usize = 4096;

/// The best of a streaming read and a copy of 1 GiB each.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ceiling {
    /// `gemv_bf16_m1_f32` over a matrix of 1 GiB.
    pub read_gb_per_s: f64,
    /// The driver's copy of 1 GiB within the device, reading and writing counted.
    pub copy_gb_per_s: f64,
    /// The larger of the two.
    pub gb_per_s: f64,
}

impl Ceiling {
    pub(super) fn measure(timer: &Timer<'_>, operands: &Operands) -> Result<Self, BenchError> {
        let rows = READ_BYTES / 2 / COLUMNS;
        let launch = |offset| {
            let out = Product::StoreF32(Rows::new(operands.out(), rows as u32));
            let a = Rows::new(operands.at(0), COLUMNS as u32);
            let (m, n, k) = (1, rows as u32, COLUMNS as u32);
            Gemv { a, w: operands.at(offset), out, norm: None, m, n, k }
                .launch(operands.device.properties().multiprocessors)
        };
        let read = timer.time(&Work {
            op: "streaming read",
            m: 1,
            n: rows,
            k: COLUMNS,
            context: 0,
            moved_bytes: READ_BYTES as f64,
            flops: 0.0,
            copy_bytes: READ_BYTES,
            shared_bytes: 4 * rows,
            launch: Box::new(launch),
        })?;
        let mut to = operands.device.allocate(READ_BYTES)?;
        let copy = timer.time_copy(READ_BYTES, &mut to)?;
        let read_gb_per_s = READ_BYTES as f64 / read.median / 1e3;
        let copy_gb_per_s = 2.0 * READ_BYTES as f64 / copy.median / 1e3;
        Ok(Self { read_gb_per_s, copy_gb_per_s, gb_per_s: read_gb_per_s.max(copy_gb_per_s) })
    }
}
