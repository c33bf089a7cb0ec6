//! Random data in device memory, for whatever kernel reads it.

use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::BenchError;
use crate::driver::{Device, DeviceBuffer, Pattern, Stream};
use crate::kernels::{Addr, Target};

/// Distinct random data; the arena repeats it.
const BLOCK_BYTES: usize = 64 << 20;
const MAX_ARENA_BYTES: usize = 32 << 30;
const OUT_BYTES: usize = 1 << 30;
/// Copies begin at multiples of this many bytes.
const COPY_ALIGN: usize = 4096;

/// Memory that launches share: an arena of random bf16 to read, an area to write, and small arrays.
pub(super) struct Operands {
    pub(super) device: Device,
    /// What launches on them are chosen for.
    pub(super) target: Target,
    pub(super) stream: Stream,
    pub(super) arena: DeviceBuffer<u8>,
    pub(super) out: DeviceBuffer<u8>,
}

impl Operands {
    pub(super) fn new(device: &Device, target: Target) -> Result<Self, BenchError> {
        let stream = device.stream()?;
        let free = usize::try_from(device.memory_info()?.free_bytes).unwrap_or(usize::MAX);
        let n_blocks = (free / 2).min(MAX_ARENA_BYTES) / BLOCK_BYTES;
        let mut arena = device.allocate::<u8>(n_blocks * BLOCK_BYTES)?;
        let mut random = vec![bf16::ZERO; BLOCK_BYTES / 2];
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        // Uniform in ±1/8: products of long rows stay far from overflow.
        random.iter_mut().for_each(|x| *x = bf16::from_f32(rng.next_u32() as i32 as f32 / 2f32.powi(34)));
        let block = device.upload(bytemuck::cast_slice::<bf16, u8>(&random), &stream)?;
        for i in 0..n_blocks {
            arena.copy_at(i * BLOCK_BYTES, &block, 0, BLOCK_BYTES, &stream)?;
        }
        let out = device.allocate_zeroed(OUT_BYTES, &stream)?;
        stream.synchronize()?;
        Ok(Self { device: device.clone(), target, stream, arena, out })
    }

    /// How many copies of this size are needed to leave nothing of the first in the cache, and fit.
    pub(super) fn copies(&self, op: &'static str, copy_bytes: usize) -> Result<usize, BenchError> {
        const MOST: usize = 64;
        const FEWEST: usize = 8;
        let stride = Self::stride(copy_bytes);
        let l2_bytes = usize::try_from(self.device.properties().l2_bytes).unwrap_or(0);
        let fit = self.arena.len() / stride;
        if fit < 2 {
            return Err(BenchError::TooLarge { op, copy_bytes, arena_bytes: self.arena.len() });
        }
        Ok((l2_bytes * 5 / 2).div_ceil(stride).clamp(FEWEST, MOST).min(fit))
    }

    /// Refuses activations beyond the output area or the arena.
    pub(super) fn check_shared(&self, op: &'static str, shared_bytes: usize) -> Result<(), BenchError> {
        let limit_bytes = OUT_BYTES.min(self.arena.len());
        if shared_bytes <= limit_bytes {
            return Ok(());
        }
        Err(BenchError::TooLong { op, shared_bytes, limit_bytes })
    }

    /// Bytes from one copy to the next.
    pub(super) fn stride(copy_bytes: usize) -> usize {
        copy_bytes.max(1).next_multiple_of(COPY_ALIGN)
    }

    /// Random elements at a byte offset of the arena.
    pub(super) fn at<T>(&self, offset: usize) -> Addr<T> {
        Addr::new(self.arena.ptr_at(offset).0)
    }

    /// Where results go.
    pub(super) fn out<T>(&self) -> Addr<T> {
        Addr::new(self.out.ptr().0)
    }

    /// Clears the output area.
    pub(super) fn zero_out(&self) -> Result<(), BenchError> {
        let (out, gpu) = (&self.out, self.device.gpu());
        // SAFETY: the area is ours, and what writes it on other streams has been waited for.
        unsafe { gpu.fill(self.stream.id(), out.ptr(), Pattern::U8(0), out.len())? };
        Ok(())
    }

    pub(super) fn upload<T: bytemuck::Pod>(&self, data: &[T]) -> Result<DeviceBuffer<T>, BenchError> {
        Ok(self.device.upload(data, &self.stream)?)
    }
}
