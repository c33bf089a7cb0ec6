//! Single kernels at the shapes of real models: random data, cold L2, CUDA graphs.

mod agreement;
mod attention;
mod ceiling;
mod cublaslt;
#[cfg(feature = "cli")]
pub mod figure;
mod operands;
mod pointwise;
mod products;
#[cfg(feature = "cli")]
mod record;
mod timing;

use serde::Serialize;

use crate::bench::stats::Percentiles;
use crate::driver::{Device, GpuError, KernelLibrary, Stream};
use crate::kernels::{HeadDim, Launch, UnsupportedShape};
use crate::model::Config;
use crate::model::shapes;
use crate::model::sharding::{Sharding, ShardingError};

pub use ceiling::{Bound, Ceiling};
use cublaslt::CublasLt;
pub use cublaslt::CublasLtError;
use operands::Operands;
use timing::Timer;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The products of a decode step.
    DecodeGemm,
    /// The products of a prefill.
    PrefillGemm,
    /// Attention of one token per sequence.
    DecodeAttention,
    /// Causal attention of a prompt.
    PrefillAttention,
    /// Everything that is neither.
    Pointwise,
}

/// The shapes to measure at.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// What.
    pub kind: Kind,
    /// Names of [`shapes::NAMES`].
    pub models: Vec<String>,
    /// Tensor-parallel degrees; rank 0 is measured.
    pub tp: Vec<usize>,
    /// Tokens, for attention in decode sequences; not used by attention in prefill.
    pub m: Vec<usize>,
    /// Cached tokens of attention in decode, prompt tokens of attention in prefill; else not used.
    pub contexts: Vec<usize>,
}

/// One line of results.
#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    /// The model's name.
    pub model: String,
    /// Tensor-parallel degree.
    pub tp: usize,
    /// The layer's part: `qkv`, `down`.
    pub op: &'static str,
    /// The kernel that ran.
    pub kernel: &'static str,
    /// Tokens or sequences.
    pub m: usize,
    /// Rows of the weight; 0 where there is none.
    pub n: usize,
    /// Columns of the weight, or the row's width.
    pub k: usize,
    /// Cached tokens; 0 where there are none.
    pub context: usize,
    /// One launch, in µs.
    pub us: Percentiles,
    /// Bytes that must move, over the median.
    pub gb_per_s: f64,
    /// Multiplications and additions, over the median.
    pub tflop_per_s: f64,
    /// The least time by the ceilings of the same run, in percent of the median.
    pub percent_of_ceiling: f64,
    /// Which ceiling gives the least time.
    pub bound: Bound,
    /// The same product by cuBLASLt, in µs; none for what is no product, or without the library.
    pub cublaslt_us: Option<Percentiles>,
    /// cuBLASLt's median over ours: above 1 ours is faster.
    pub ratio: Option<f64>,
}

/// The results of a sweep.
#[derive(Debug)]
pub struct Results {
    /// What the machine gives at best.
    pub ceiling: Ceiling,
    /// The version of cuBLASLt, or why there is none.
    pub cublaslt: Result<String, CublasLtError>,
    /// In the order of the sweep.
    pub measurements: Vec<Measurement>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The device or its driver.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// cuBLASLt, which was there.
    #[error("cuBLASLt: {0}")]
    CublasLt(#[from] CublasLtError),
    /// The two compute different things, so their times cannot be compared.
    #[error("{op}: {kernel} and cuBLASLt differ by {error:.1e} of the largest value: please report this")]
    Disagree {
        /// The layer's part.
        op: &'static str,
        /// Ours.
        kernel: &'static str,
        /// The largest difference over the largest value.
        error: f64,
    },
    /// A model that is none of [`shapes::NAMES`].
    #[error("there is no shape '{name}': the known ones are {}", shapes::NAMES.join(", "))]
    UnknownShape {
        /// What was asked for.
        name: String,
    },
    /// A degree that the model cannot be split to.
    #[error("{model}: {source}")]
    Sharding {
        /// The model's name.
        model: String,
        /// Why not.
        source: ShardingError,
    },
    /// A head width without kernels.
    #[error("{model}: {source}")]
    UnsupportedShape {
        /// The model's name.
        model: String,
        /// Which.
        source: UnsupportedShape,
    },
    /// A shape whose activations do not fit.
    #[error(
        "{op}: {shared_bytes} bytes of activations are more than the {limit_bytes} set aside: choose a smaller --m or --context"
    )]
    TooLong {
        /// The layer's part.
        op: &'static str,
        /// Of its activations.
        shared_bytes: usize,
        /// What is there.
        limit_bytes: usize,
    },
    /// A shape whose data does not fit twice.
    #[error(
        "{op}: two copies of {copy_bytes} bytes of data do not fit in {arena_bytes} bytes of device memory: \
         choose a higher --tp or a shorter --context"
    )]
    TooLarge {
        /// The layer's part.
        op: &'static str,
        /// Of one copy.
        copy_bytes: usize,
        /// What is there for all.
        arena_bytes: usize,
    },
}

/// One rank's share of a model's block.
struct Rank {
    model: String,
    tp: usize,
    config: Config,
    head_dim: HeadDim,
    n_heads: usize,
    n_kv_heads: usize,
    ffn: usize,
    vocab: usize,
}

impl Rank {
    fn new(model: &str, tp: usize) -> Result<Self, BenchError> {
        let config =
            shapes::named(model).ok_or_else(|| BenchError::UnknownShape { name: model.to_owned() })?;
        let sharding = Sharding::new(&config, tp)
            .map_err(|source| BenchError::Sharding { model: model.to_owned(), source })?;
        let head_dim = HeadDim::try_from(config.head_dim)
            .map_err(|source| BenchError::UnsupportedShape { model: model.to_owned(), source })?;
        let heads = sharding.heads(0, None);
        Ok(Self {
            model: model.to_owned(),
            tp,
            head_dim,
            n_heads: heads.heads.len(),
            n_kv_heads: heads.kv_heads.len(),
            ffn: sharding.ffn(0).len(),
            vocab: sharding.vocab(0).len(),
            config,
        })
    }
}

/// A launch to time, of which `copies` work on data of their own.
struct Work<'a> {
    op: &'static str,
    m: usize,
    n: usize,
    k: usize,
    context: usize,
    /// What one launch must read and write at least.
    moved_bytes: f64,
    /// Multiplications and additions of one launch.
    flops: f64,
    /// What one launch reads of data that nothing else uses, which is cold in the caches.
    copy_bytes: usize,
    /// How far it reads what all copies share, and how far it writes.
    shared_bytes: usize,
    /// What the launch multiplies, if it is a product.
    product: Option<products::Shape>,
    /// The launch on copy `i` at this byte offset of the arena.
    launch: Box<dyn Fn(usize) -> Launch + 'a>,
}

impl Sweep {
    /// Refuses shapes that do not exist or cannot be split, without a device.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self) -> Result<(), BenchError> {
        self.ranks().map(drop)
    }

    fn ranks(&self) -> Result<Vec<Rank>, BenchError> {
        let ranks = self.models.iter().flat_map(|model| self.tp.iter().map(move |&tp| Rank::new(model, tp)));
        ranks.collect()
    }
}

/// Measures all shapes of a sweep, telling `done` of each.
///
/// # Errors
/// Shapes that do not exist or do not fit; what the device refuses.
pub fn run(
    device: &Device,
    sweep: &Sweep,
    mut done: impl FnMut(&Measurement),
) -> Result<Results, BenchError> {
    let ranks = sweep.ranks()?;
    let library = KernelLibrary::load(device)?;
    let operands = Operands::new(device, library.target())?;
    let timer = Timer::new(device, &library, &operands)?;
    let cublaslt = CublasLt::open(&operands)?;
    let ceiling = Ceiling::measure(&timer, &operands, cublaslt.as_ref().ok())?;
    let bench = Bench { timer, ceiling, cublaslt };
    let mut measurements = Vec::new();
    for rank in &ranks {
        for work in works(sweep, rank, &operands)? {
            let measurement = bench.measure(rank, &work)?;
            done(&measurement);
            measurements.push(measurement);
        }
    }
    let Bench { ceiling, cublaslt, .. } = bench;
    Ok(Results { ceiling, cublaslt: cublaslt.map(|lt| lt.version()), measurements })
}

fn works<'a>(sweep: &Sweep, rank: &Rank, operands: &'a Operands) -> Result<Vec<Work<'a>>, BenchError> {
    let sizes = || sweep.m.iter().flat_map(|&m| sweep.contexts.iter().map(move |&context| (m, context)));
    Ok(match sweep.kind {
        Kind::DecodeGemm => sweep.m.iter().flat_map(|&m| products::decode(rank, m, operands)).collect(),
        Kind::PrefillGemm => sweep.m.iter().flat_map(|&m| products::prefill(rank, m, operands)).collect(),
        Kind::DecodeAttention => sizes()
            .map(|(m, context)| attention::decode(rank, m, context, operands))
            .collect::<Result<_, _>>()?,
        Kind::PrefillAttention => sweep
            .contexts
            .iter()
            .map(|&context| attention::prefill(rank, context, operands))
            .collect::<Result<_, _>>()?,
        Kind::Pointwise => {
            let works = sweep.m.iter().map(|&m| pointwise::all(rank, m, operands));
            works.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect()
        }
    })
}

/// What measures, and what it is measured against.
struct Bench<'a> {
    timer: Timer<'a>,
    ceiling: Ceiling,
    cublaslt: Result<CublasLt, CublasLtError>,
}

impl Bench<'_> {
    fn measure(&self, rank: &Rank, work: &Work<'_>) -> Result<Measurement, BenchError> {
        let us = self.timer.time(work)?;
        let cublaslt_us = self.measure_cublaslt(work)?;
        let (floor_us, bound) = self.ceiling.floor_us(work.moved_bytes, work.flops);
        Ok(Measurement {
            model: rank.model.clone(),
            tp: rank.tp,
            op: work.op,
            kernel: (work.launch)(0).entry,
            m: work.m,
            n: work.n,
            k: work.k,
            context: work.context,
            us,
            gb_per_s: work.moved_bytes / us.median / 1e3,
            tflop_per_s: work.flops / us.median / 1e6,
            percent_of_ceiling: 100.0 * floor_us / us.median,
            bound,
            cublaslt_us,
            ratio: cublaslt_us.map(|theirs| theirs.median / us.median),
        })
    }

    fn measure_cublaslt(&self, work: &Work<'_>) -> Result<Option<Percentiles>, BenchError> {
        let (Ok(cublaslt), Some(shape)) = (&self.cublaslt, &work.product) else { return Ok(None) };
        let Some(product) = cublaslt.product(shape)? else { return Ok(None) };
        let &Timer { library, operands, .. } = &self.timer;
        let theirs = |stream: &Stream, offset| Ok(product.enqueue(stream, operands, offset)?);
        agreement::check(work, shape, library, operands, theirs)?;
        self.timer.time_cublaslt(work, &product).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_has_its_share_of_a_block() {
        let rank = Rank::new("llama3-70b", 8).unwrap();
        assert_eq!((rank.n_heads, rank.n_kv_heads, rank.ffn, rank.vocab), (8, 1, 3584, 16_064));
        let rank = Rank::new("smollm2", 2).unwrap();
        assert_eq!((rank.n_heads, rank.n_kv_heads, rank.ffn), (5, 2, 768));
    }

    #[test]
    fn shapes_that_cannot_be_are_named() {
        let refusal = |model, tp| Rank::new(model, tp).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refusal("gpt2", 1).contains("llama3-8b"));
        assert!(refusal("llama3-8b", 33).contains("1 to 32"));
        assert!(refusal("tiny", 1).contains("head width of 32"));
    }
}
