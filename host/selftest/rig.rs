//! Device memory between guards, launches that are waited for, seeded inputs.

use std::cell::{Cell, OnceCell};
use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use half::bf16;
use rayon::prelude::*;

use crate::comm::gpu::LoopbackPuts;
use crate::driver::{Device, DeviceBuffer, KernelLibrary, Result, Stream};
use crate::kernels::{Addr, Launch, Rows};

/// Bytes on either side of a buffer; a multiple of what kernels ask of alignment.
const GUARD_BYTES: usize = 1024;
/// A NaN as bf16 and as f32, and no valid index.
const POISON: u8 = 0xff;
/// How large the shapes are that run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of them.
    Full,
    /// Without the larger ones, for tools that slow kernels down a hundredfold.
    Quick,
    /// Those that an emulator runs in a second or so.
    Small,
    /// Those that an emulator runs in a second or so while it looks for races.
    Smallest,
}

/// What the shapes of an extent have at most.
struct Limits {
    /// Multiply-adds of a shape.
    work: usize,
    /// Elements of a cache.
    cache: usize,
    /// Rows that tokens are drawn from, and logits of all of them.
    rows: usize,
    logits: usize,
}

impl Extent {
    fn limits(self) -> Limits {
        const NONE: usize = usize::MAX;
        let (work, cache, rows, logits) = match self {
            Self::Full => (NONE, NONE, NONE, NONE),
            Self::Quick => (9 << 18, NONE, NONE, NONE),
            Self::Small => (9 << 18, 1 << 22, 12, 1 << 15),
            Self::Smallest => (1 << 15, 1 << 17, 4, 1 << 12),
        };
        Limits { work, cache, rows, logits }
    }
}

/// What cases run on.
pub(super) struct Rig<'a> {
    device: &'a Device,
    library: &'a Arc<KernelLibrary>,
    puts: OnceCell<LoopbackPuts>,
    stream: Stream,
    extent: Extent,
    seed: Cell<u64>,
}

impl<'a> Rig<'a> {
    pub(super) fn new(device: &'a Device, library: &'a Arc<KernelLibrary>, extent: Extent) -> Result<Self> {
        let (puts, stream, seed) = (OnceCell::new(), device.stream()?, Cell::new(0));
        Ok(Self { device, library, puts, stream, extent, seed })
    }

    /// Begins the random numbers anew, so that a kernel's inputs do not depend on what ran before it.
    pub(super) fn restart_inputs(&self) {
        self.seed.set(0);
    }

    pub(super) fn device(&self) -> &Device {
        self.device
    }

    pub(super) fn library(&self) -> &Arc<KernelLibrary> {
        self.library
    }

    /// The kernels that put; loaded when the first of them is run.
    pub(super) fn puts(&self) -> Result<&LoopbackPuts> {
        if let Some(puts) = self.puts.get() {
            return Ok(puts);
        }
        let loaded = LoopbackPuts::load(self.library)?;
        Ok(self.puts.get_or_init(|| loaded))
    }

    /// Whether a shape of this many multiply-adds is to be run.
    pub(super) fn wants(&self, work: usize) -> bool {
        work <= self.extent.limits().work
    }

    /// Whether a shape whose cache has this many elements is to be run.
    pub(super) fn wants_cache(&self, elements: usize) -> bool {
        elements <= self.extent.limits().cache
    }

    /// How many of `n_rows` rows of `len` logits are to be drawn from, 0 for none.
    pub(super) fn wanted_rows(&self, n_rows: usize, len: usize) -> usize {
        let Limits { rows, logits, .. } = self.extent.limits();
        n_rows.min(rows).min(logits / len)
    }

    pub(super) fn sm_count(&self) -> u32 {
        self.device.properties().multiprocessors
    }

    /// Launches and waits.
    ///
    /// # Safety
    /// As [`KernelLibrary::launch`]; nothing else is in the stream.
    pub(super) unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.library.launch(&self.stream, launch)? };
        self.stream.synchronize()
    }

    /// A copy of `data` with poison behind it, so that reading on shows.
    pub(super) fn holding<T: Pod>(&self, data: &[T]) -> Result<Guarded<T>> {
        let mut buffer = self.poisoned(data.len())?;
        buffer.memory.upload_at(GUARD_BYTES, bytemuck::cast_slice(data), &self.stream)?;
        Ok(buffer)
    }

    /// `len` elements of poison.
    pub(super) fn poisoned<T: Pod>(&self, len: usize) -> Result<Guarded<T>> {
        let mut memory = self.device.allocate(2 * GUARD_BYTES + len * size_of::<T>())?;
        memory.fill(POISON, &self.stream)?;
        self.stream.synchronize()?;
        Ok(Guarded { memory, len, element: PhantomData })
    }

    /// `len` elements of zeros between guards.
    pub(super) fn zeroed<T: Pod>(&self, len: usize) -> Result<Guarded<T>> {
        self.holding(&vec![T::zeroed(); len])
    }

    /// Poisons an output again.
    pub(super) fn poison<T: Pod>(&self, buffer: &mut Guarded<T>) -> Result<()> {
        buffer.memory.fill(POISON, &self.stream)?;
        self.stream.synchronize()
    }

    /// The elements, and whether both guards are as they were.
    pub(super) fn read<T: Pod>(&self, buffer: &Guarded<T>) -> Result<(Vec<T>, bool)> {
        let bytes = buffer.memory.download(&self.stream)?;
        let (head, rest) = bytes.split_at(GUARD_BYTES);
        let (data, tail) = rest.split_at(buffer.len * size_of::<T>());
        let intact = head.iter().chain(tail).all(|&byte| byte == POISON);
        Ok((data.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect(), intact))
    }

    /// Random f32 of mean 0 and variance `scale`², others at every call.
    pub(super) fn random(&self, len: usize, scale: f32) -> Vec<f32> {
        let seed = self.seed.replace(self.seed.get() + 1);
        (0..len).into_par_iter().map(|i| uniform(seed, i as u64) * scale).collect()
    }

    /// Random bf16 of mean 0 and variance `scale`².
    pub(super) fn random_bf16(&self, len: usize, scale: f32) -> Vec<bf16> {
        let seed = self.seed.replace(self.seed.get() + 1);
        (0..len).into_par_iter().map(|i| bf16::from_f32(uniform(seed, i as u64) * scale)).collect()
    }

    /// Random integers below `end`.
    pub(super) fn random_below(&self, len: usize, end: u32) -> Vec<u32> {
        let seed = self.seed.replace(self.seed.get() + 1);
        (0..len as u64).map(|i| (((hash(seed, i) >> 32) * u64::from(end)) >> 32) as u32).collect()
    }

    /// The numbers below `len` in random order.
    pub(super) fn permutation(&self, len: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len as u32).collect();
        let keys = self.random_below(len, u32::MAX);
        order.sort_by_key(|&i| (keys[i as usize], i));
        order
    }
}

/// SplitMix64 of a counter.
fn hash(seed: u64, index: u64) -> u64 {
    let mut x = index.wrapping_add(seed << 40).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Uniform of variance 1, never 0.
fn uniform(seed: u64, index: u64) -> f32 {
    let unit = ((hash(seed, index) >> 40) as f32 + 0.5) / (1u32 << 24) as f32;
    (unit - 0.5) * 12f32.sqrt()
}

/// Elements in device memory between two guards of poison.
pub(super) struct Guarded<T> {
    memory: DeviceBuffer<u8>,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Guarded<T> {
    pub(super) fn addr(&self) -> Addr<T> {
        Addr::new(self.memory.ptr_at(GUARD_BYTES).0)
    }

    pub(super) fn rows(&self, stride: usize) -> Rows<T> {
        Rows::new(self.addr(), stride as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_have_mean_0_and_variance_1_and_differ_by_seed() {
        let of = |seed| (0..100_000).map(move |i| f64::from(uniform(seed, i)));
        for seed in [0, 1, 77] {
            let (mean, square) = of(seed).fold((0.0, 0.0), |(m, s), x| (m + x / 1e5, s + x * x / 1e5));
            assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
        }
        assert!(of(0).zip(of(1)).all(|(a, b)| a != b || a.abs() > 1e-6));
        assert!(of(0).zip(of(1)).filter(|(a, b)| a == b).count() < 100);
    }
}
