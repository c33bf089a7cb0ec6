//! A group of ranks on the one GPU, and collectives over it, each compared with what it should leave.

use std::sync::Arc;
use std::time::Duration;

use half::bf16;

use super::pointwise::norm_rows;
use super::record::Freedom;
use super::reference::{fp32_sum_of_ranks, sum_of_ranks, widen};
use super::rig::Rig;
use super::tally::Tally;
use crate::comm::gpu::{GroupOptions, Loopback, LoopbackBuffer, LoopbackSlices, Tuning};
use crate::comm::{CommError, DType, Element, Phase, Shape};
use crate::driver::Stream;
use crate::kernels::nvrar::{Far, NormAfter};

/// A limit that only a fault reaches.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Numbers that wrap within a case.
const FIRST_SEQUENCE: u64 = (1 << 32) - 10;
const EPS: f32 = 1e-5;
/// What lies behind a tensor: no element that a sum could leave.
const MARK: [u8; 12] = [0xa5; 12];

/// The ranks, their stream and a buffer.
pub(super) struct Group {
    ranks: Loopback,
    stream: Stream,
    buf: LoopbackBuffer,
    shape: Shape,
}

impl Group {
    /// With a buffer for tensors of `bytes`.
    pub(super) fn new(
        rig: &Rig<'_>,
        shape: Shape,
        bytes: usize,
        far: Far,
        tuning: Tuning,
    ) -> Result<Self, CommError> {
        let options = GroupOptions {
            time_limit: TIME_LIMIT,
            first_sequence: FIRST_SEQUENCE,
            tuning: Some(tuning),
            ..GroupOptions::default()
        };
        let ranks = match far {
            Far::Stores => Loopback::new(&[Arc::clone(rig.library())], shape, options)?,
            Far::Puts => Loopback::over_puts(rig.library(), rig.puts()?, shape, options)?,
        };
        let buf = ranks.register(bytes + MARK.len())?;
        Ok(Self { ranks, stream: rig.device().stream()?, buf, shape })
    }

    /// Sums what the ranks bring in one call.
    pub(super) fn sum<T: Element>(&mut self, tally: &mut Tally, of_rank: &[Vec<T>]) -> Result<(), CommError> {
        self.write(of_rank)?;
        let call = (of_rank[0].len(), T::DTYPE);
        // SAFETY: no slices.
        unsafe { self.ranks.all_reduce(0, &self.stream, &mut self.buf, call, LoopbackSlices::NONE)? };
        self.compare(tally, "the sum", &sum_of_ranks(self.shape, of_rank))
    }

    /// Sums what the ranks bring by the three phases, one after the other.
    pub(super) fn sum_by_phases<T: Element>(
        &mut self,
        tally: &mut Tally,
        of_rank: &[Vec<T>],
    ) -> Result<(), CommError> {
        self.write(of_rank)?;
        let call = (of_rank[0].len(), T::DTYPE);
        for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
            self.ranks.phase(0, &self.stream, &mut self.buf, phase, call)?;
        }
        self.compare(tally, "the sum", &sum_of_ranks(self.shape, of_rank))
    }

    /// Sum, residual and norm of `rows` rows of `hidden`, with an addend: sums and residuals to the bit, norms up to the
    /// bound. The residual gets the sum as it travels, or, if that `is_wide`, before it is rounded.
    pub(super) fn norm(
        &mut self,
        rig: &Rig<'_>,
        tally: &mut Tally,
        (hidden, rows): (usize, usize),
        is_wide: bool,
    ) -> Result<(), CommError> {
        let (numel, world) = (hidden * rows, self.shape.world());
        let (own, addend) = (random::<bf16>(rig, self.shape, numel), rig.random_bf16(world * numel, 1.0));
        let (residual, gain) = (rig.random_bf16(world * numel, 1.0), rig.random_bf16(hidden, 1.0));
        let (d_addend, d_residual, d_gain) =
            (rig.holding(&addend)?, rig.holding(&residual)?, rig.holding(&gain)?);
        let out = rig.poisoned(world * numel)?;
        self.write(&own)?;
        let norm = NormAfter {
            residual: d_residual.addr(),
            gain: d_gain.addr(),
            out: out.addr(),
            hidden: hidden as u32,
            eps: EPS,
        };
        let slices = LoopbackSlices { addend: d_addend.addr(), norm: Some(norm), stride: numel };
        let call = (numel, DType::Bf16);
        // SAFETY: the slices have a tensor for each rank and live until the sum has been waited for.
        unsafe { self.ranks.all_reduce(0, &self.stream, &mut self.buf, call, slices)? };
        let add = |a: &bf16, b: &bf16| bf16::from_f32(a.to_f32() + b.to_f32());
        let brought = own.iter().zip(addend.chunks(numel));
        let brought: Vec<Vec<bf16>> =
            brought.map(|(own, more)| own.iter().zip(more).map(|(a, b)| add(a, b)).collect()).collect();
        let sum = sum_of_ranks(self.shape, &brought);
        self.compare(tally, "the sum", &sum)?;
        let wide =
            if is_wide { fp32_sum_of_ranks(&brought) } else { sum.iter().map(|x| x.to_f32()).collect() };
        let after: Vec<bf16> = residual
            .chunks(numel)
            .flat_map(|own| own.iter().zip(&wide).map(|(a, b)| bf16::from_f32(a.to_f32() + b)))
            .collect();
        let found = tally.read(rig, "residual", &d_residual)?;
        equal_bits(tally, "the residual", &after, &[found]);
        tally.close_bf16(rig, "out", &norm_rows(&widen(&after), &gain, hidden), &out, hidden)?;
        Ok(())
    }

    /// Gathers random pieces of these sizes.
    pub(super) fn gather<T: Element>(
        &mut self,
        rig: &Rig<'_>,
        tally: &mut Tally,
        sizes: &[usize],
    ) -> Result<(), CommError> {
        let ends = sizes.iter().scan(0, |end, size| {
            *end += size;
            Some(*end)
        });
        let offsets: Vec<usize> = std::iter::once(0).chain(ends).collect();
        let numel = offsets[sizes.len()];
        let expected: Vec<T> = rig.random(numel, 1.0).into_iter().map(T::from_f32).collect();
        let own = |piece: &[usize]| {
            let mut own = vec![T::from_f32(-7.0); numel];
            own[piece[0]..piece[1]].copy_from_slice(&expected[piece[0]..piece[1]]);
            own
        };
        self.write(&offsets.windows(2).map(own).collect::<Vec<_>>())?;
        self.ranks.all_gather(0, &self.stream, &mut self.buf, &offsets, T::DTYPE)?;
        self.compare(tally, "the pieces", &expected)
    }

    /// Writes each rank's elements, and behind them a mark.
    fn write<T: Element>(&mut self, of_rank: &[Vec<T>]) -> Result<(), CommError> {
        for (rank, elements) in of_rank.iter().enumerate() {
            let mut bytes = bytemuck::cast_slice::<T, u8>(elements).to_vec();
            bytes.extend(MARK);
            self.buf.write(rank, &bytes, &self.stream)?;
        }
        Ok(())
    }

    /// Waits, and compares each rank's elements to the bit; notes a failure if a mark was overwritten.
    fn compare<T: Element>(&self, tally: &mut Tally, what: &str, expected: &[T]) -> Result<(), CommError> {
        self.stream.synchronize()?;
        self.ranks.check()?;
        let (mut all, mut of_rank) = (Vec::new(), Vec::new());
        for rank in 0..self.shape.world() {
            let mut bytes = vec![0; size_of_val(expected) + MARK.len()];
            self.buf.read(rank, &mut bytes, &self.stream)?;
            let (elements, mark) = bytes.split_at(size_of_val(expected));
            if mark != MARK {
                tally.fail(format!("rank {rank} wrote behind the tensor"));
            }
            all.extend_from_slice(elements);
            of_rank.push(elements.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect());
        }
        tally.keep("tensors", &all, &Freedom::None);
        equal_bits(tally, what, expected, &of_rank);
        Ok(())
    }
}

/// What each rank brings.
pub(super) fn random<T: Element>(rig: &Rig<'_>, shape: Shape, numel: usize) -> Vec<Vec<T>> {
    (0..shape.world()).map(|_| rig.random(numel, 1.0).into_iter().map(T::from_f32).collect()).collect()
}

fn equal_bits<T: Element>(tally: &mut Tally, what: &str, expected: &[T], of_rank: &[Vec<T>]) {
    for (rank, found) in of_rank.iter().enumerate() {
        let what = format!("{what} of rank {rank}");
        let bits = |x: &[T]| x.iter().map(|x| bytemuck::bytes_of(x).to_vec()).collect::<Vec<_>>();
        if bytemuck::cast_slice::<T, u8>(expected) != bytemuck::cast_slice::<T, u8>(found) {
            tally.equal(&what, &bits(expected), &bits(found));
        }
    }
}
