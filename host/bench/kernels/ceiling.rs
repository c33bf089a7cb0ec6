//! What the machine gives at best, measured in the same run.

use serde::Serialize;

use super::cublaslt::CublasLt;
use super::operands::Operands;
use super::products::{self, Epilogue, Shape};
use super::timing::Timer;
use super::{BenchError, Work};
use crate::kernels::{Gemv, Product, Rows};

const READ_BYTES: usize = 1 << 30;
const COLUMNS: usize = 4096;
/// Rows and columns of the product that tensor cores are judged by.
const SQUARE: usize = 8192;

/// Memory: the best of a streaming read and a copy of 1 GiB each. Arithmetic: a product of 8192 × 8192 × 8192.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ceiling {
    /// `gemv_bf16_m1_f32` over a matrix of 1 GiB.
    pub read_gb_per_s: f64,
    /// The driver's copy of 1 GiB within the device, reading and writing counted.
    pub copy_gb_per_s: f64,
    /// The larger of the two.
    pub gb_per_s: f64,
    /// Multiplications and additions of the product, random bf16 with f32 sums.
    pub tflop_per_s: f64,
    /// Who multiplied: cuBLASLt, or our own kernel where that is not there.
    pub tflop_by: String,
}

/// What limits a kernel: the larger of the two times that it needs at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Moving bytes.
    Memory,
    /// Multiplying.
    Compute,
}

impl Bound {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
        }
    }
}

impl Ceiling {
    /// The least time for so much work, in µs (the roofline), and what demands it.
    pub fn floor_us(&self, bytes: f64, flops: f64) -> (f64, Bound) {
        let (memory_us, compute_us) = (bytes / self.gb_per_s / 1e3, flops / self.tflop_per_s / 1e6);
        if memory_us >= compute_us { (memory_us, Bound::Memory) } else { (compute_us, Bound::Compute) }
    }

    /// For people.
    pub fn line(&self) -> String {
        let Self { read_gb_per_s, copy_gb_per_s, gb_per_s, tflop_per_s, tflop_by } = self;
        format!(
            "ceilings {gb_per_s:.0} GB/s, the larger of a streaming read of 1 GiB ({read_gb_per_s:.0}) and a copy of \
             1 GiB, read and written ({copy_gb_per_s:.0}), and {tflop_per_s:.0} TFLOP/s, {SQUARE}³ random bf16 by \
             {tflop_by}; the percentage is of the one that gives the longer time"
        )
    }

    pub(super) fn measure(
        timer: &Timer<'_>,
        operands: &Operands,
        cublaslt: Option<&CublasLt>,
    ) -> Result<Self, BenchError> {
        let read = timer.time(&streaming_read(operands))?;
        let mut to = operands.device.allocate(READ_BYTES)?;
        let copy = timer.time_copy(READ_BYTES, &mut to)?;
        let read_gb_per_s = READ_BYTES as f64 / read.median / 1e3;
        let copy_gb_per_s = 2.0 * READ_BYTES as f64 / copy.median / 1e3;

        let shape = Shape { m: SQUARE, n: SQUARE, k: SQUARE, epilogue: Epilogue::Store };
        let square = products::work("square product", shape, operands.target, operands);
        let theirs =
            cublaslt.map(|lt| Ok::<_, BenchError>(lt.product(&shape)?.map(|p| (lt, p)))).transpose()?;
        let (us, tflop_by) = match theirs.flatten() {
            Some((lt, product)) => {
                (timer.time_cublaslt(&square, &product)?, format!("cuBLASLt {}", lt.version()))
            }
            None => (timer.time(&square)?, (square.launch)(0).entry.to_owned()),
        };
        Ok(Self {
            read_gb_per_s,
            copy_gb_per_s,
            gb_per_s: read_gb_per_s.max(copy_gb_per_s),
            tflop_per_s: square.flops / us.median / 1e6,
            tflop_by,
        })
    }
}

fn streaming_read(operands: &Operands) -> Work<'_> {
    let rows = READ_BYTES / 2 / COLUMNS;
    let launch = move |offset| {
        let out = Product::StoreF32(Rows::new(operands.out(), rows as u32));
        let a = Rows::new(operands.at(0), COLUMNS as u32);
        let (m, n, k) = (1, rows as u32, COLUMNS as u32);
        Gemv { a, w: operands.at(offset), out, norm: None, m, n, k }
            .launch(operands.device.properties().multiprocessors)
    };
    Work {
        op: "streaming read",
        m: 1,
        n: rows,
        k: COLUMNS,
        context: 0,
        moved_bytes: READ_BYTES as f64,
        flops: 0.0,
        copy_bytes: READ_BYTES,
        shared_bytes: 4 * rows,
        product: None,
        launch: Box::new(launch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_time_is_the_floor() {
        let ceiling = Ceiling {
            read_gb_per_s: 4000.0,
            copy_gb_per_s: 3900.0,
            gb_per_s: 4000.0,
            tflop_per_s: 800.0,
            tflop_by: "cuBLASLt 13.1.0".into(),
        };
        // One GB takes 250 µs, one TFLOP 1250 µs.
        assert_eq!(ceiling.floor_us(1e9, 1e9), (250.0, Bound::Memory));
        assert_eq!(ceiling.floor_us(1e9, 1e12), (1250.0, Bound::Compute));
        assert!(ceiling.line().contains("800 TFLOP/s, 8192³ random bf16 by cuBLASLt 13.1.0"));
    }
}
