//! Collectives between GPUs, to the bit. Without a GPU every test says so and passes; those of two GPUs skip with one.
//!
//! Run alone on a machine without cargo: `comm_gpu --nocapture`. `FEWSYNC_REQUIRE_GPU=2` turns a missing GPU into
//! a failure, `FEWSYNC_SOAK=N` sets how many calls follow each other in the longest tests.

mod failures;
#[path = "../gpu/mod.rs"]
mod gpu;
mod loopback;
#[cfg(feature = "nvshmem")]
mod processes;
mod soak;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fewsync::comm::gpu::{DeviceSlice, Format, GpuBuffer, GpuComm, GroupOptions, PeerMemory, Tuning};
use fewsync::comm::{
    AllGather, AllReduce, CommError, Communicator, DType, Element, Epilogue, Phase, Shape, Stage,
};
use fewsync::driver::{Device, DevicePtr, KernelLibrary, Stream};
use fewsync::kernels::{Add, Addr};
use fewsync::selftest::reference::{fp32_sum_of_ranks, sum_of_ranks};
use gpu::gpu;
use half::bf16;

type Result<T = ()> = std::result::Result<T, CommError>;

/// Shortly before 2³², so that every test wraps.
const FIRST_SEQUENCE: u64 = (1 << 32) - 5;

/// The kernels on the first two GPUs (or the one there is), loaded once for all tests.
fn libraries() -> &'static [Arc<KernelLibrary>] {
    static LIBRARIES: OnceLock<Vec<Arc<KernelLibrary>>> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        let count = Device::cuda_count().expect("a driver").min(2);
        let load =
            |ordinal| Arc::new(KernelLibrary::load(&Device::cuda(ordinal).expect("a GPU")).expect("kernels"));
        (0..count).map(load).collect()
    })
}

/// Two GPUs, or none with a reason.
fn pair(test: &str) -> Option<&'static [Arc<KernelLibrary>]> {
    let both = Some(libraries()).filter(|libraries| libraries.len() == 2);
    if both.is_none() {
        assert!(gpu::required() < 2, "{test}: FEWSYNC_REQUIRE_GPU asks for two GPUs, and there is one");
        println!("{test}: skipped, one GPU");
    }
    both
}

fn options() -> GroupOptions {
    GroupOptions {
        time_limit: Duration::from_secs(5),
        first_sequence: FIRST_SEQUENCE,
        ..GroupOptions::default()
    }
}

/// Element `i` of a rank's contribution to call `call`.
fn value(rank: usize, i: usize, call: usize) -> f32 {
    let mut x = (i as u64) << 20 ^ (rank as u64) << 8 ^ (call as u64) << 50 ^ 0x9e37_79b9_7f4a_7c15;
    for _ in 0..2 {
        x = (x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    (x >> 40) as f32 / (1 << 22) as f32 - 2.0
}

fn contribution<T: Element>(rank: usize, numel: usize, call: usize) -> Vec<T> {
    (0..numel).map(|i| T::from_f32(value(rank, i, call))).collect()
}

fn assert_bits<T: Element>(found: &[T], expected: &[T], what: &str) {
    let bits = |x: &T| bytemuck::bytes_of(x).to_vec();
    let wrong = (0..expected.len()).find(|&i| bits(&found[i]) != bits(&expected[i]));
    if let Some(i) = wrong {
        panic!("{what}: element {i} is {} and should be {}", found[i].to_f32(), expected[i].to_f32());
    }
}

/// Runs each rank of a group on a thread of its own.
fn on_ranks<R: Send>(comms: Vec<GpuComm>, rank: impl Fn(GpuComm, Stream) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = comms
            .into_iter()
            .zip(libraries())
            .map(|(comm, library)| {
                let rank = &rank;
                scope.spawn(move || rank(comm, library.device().stream().expect("a stream")))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

const ONE_NODE: Shape = Shape { nodes: 1, gpus_per_node: 2 };

fn write<T: Element>(buf: &GpuBuffer, elements: &[T], stream: &Stream) -> Result {
    if !elements.is_empty() {
        let source = stream.device().upload(elements, stream)?;
        let to = DevicePtr(buf.addr::<u8>().raw());
        // SAFETY: the buffer is at least as long, and both live until the stream has been waited for.
        unsafe { stream.device().gpu().copy_d2d(stream.id(), to, source.ptr(), source.size_bytes())? };
        stream.synchronize()?;
    }
    Ok(())
}

fn read<T: Element>(comm: &GpuComm, buf: &GpuBuffer, numel: usize, stream: &Stream) -> Result<Vec<T>> {
    stream.synchronize()?;
    comm.check()?;
    let mut elements = vec![T::zeroed(); numel];
    buf.memory().download_at(0, bytemuck::cast_slice_mut(&mut elements), stream)?;
    Ok(elements)
}

fn sum(comm: &GpuComm, buf: &mut GpuBuffer, numel: usize, dtype: DType, stream: &Stream) -> Result {
    comm.enqueue(stream, AllReduce { buf, numel, dtype, addend: None, epilogue: Epilogue::None })
}

/// Sizes up and down by orders of magnitude, so that grids, formats and passes alternate.
const NUMELS: [usize; 14] =
    [4096, 1, 0, 1 << 20, 7, 65_537, 8, 300_007, 63, 12_000_007, 2, 524_288, 1009, 16];

fn alternate<T: Element>(comm: &GpuComm, shape: Shape, stream: &Stream) -> Result {
    let rank = comm.topology().rank;
    let most = NUMELS.into_iter().max().unwrap_or(0) * size_of::<T>();
    let mut buf = comm.register(most)?;
    for (call, numel) in NUMELS.into_iter().enumerate() {
        let of_rank: Vec<Vec<T>> = (0..shape.world()).map(|rank| contribution(rank, numel, call)).collect();
        write(&buf, &of_rank[rank], stream)?;
        sum(comm, &mut buf, numel, T::DTYPE, stream)?;
        let found = read::<T>(comm, &buf, numel, stream)?;
        assert_bits(&found, &sum_of_ranks(shape, &of_rank), &format!("{numel} {} elements", T::DTYPE));
    }
    Ok(())
}

#[test]
fn sizes_types_and_topologies_alternate() -> Result {
    let Some((_guard, _)) = gpu("alternate") else { return Ok(()) };
    let Some(libraries) = pair("alternate") else { return Ok(()) };
    for shape in [ONE_NODE, Shape { nodes: 2, gpus_per_node: 1 }] {
        for memory in [PeerMemory::Direct, PeerMemory::HostStaged] {
            let comms = GpuComm::group_with(libraries, shape, GroupOptions { memory, ..options() })?;
            let results = on_ranks(comms, |comm, stream| {
                alternate::<bf16>(&comm, shape, &stream)?;
                alternate::<half::f16>(&comm, shape, &stream)?;
                alternate::<f32>(&comm, shape, &stream)
            });
            results.into_iter().collect::<Result>()?;
        }
    }
    Ok(())
}

/// A chain of dependent launches in a graph: what a kernel writes goes straight into a sum, again and again.
#[test]
fn graphs_replay_chains() -> Result {
    let Some((_guard, _)) = gpu("graphs") else { return Ok(()) };
    let Some(libraries) = pair("graphs") else { return Ok(()) };
    const NUMEL: usize = 3 * 4096;
    const CALLS: usize = 6;
    for format in [Format::Cells, Format::Words] {
        let tuning = Some(Tuning { format: Some(format), ..Tuning::default() });
        let comms = GpuComm::group_with(libraries, ONE_NODE, GroupOptions { tuning, ..options() })?;
        let results = on_ranks(comms, |comm, stream| -> Result {
            let rank = comm.topology().rank;
            let library = &libraries[rank];
            let mut buf = comm.register(NUMEL * 2)?;
            let device = library.device();
            let add = device.upload(&contribution::<bf16>(rank, NUMEL, 0), &stream)?;
            let residual = device.allocate_zeroed::<bf16>(NUMEL, &stream)?;
            let out = device.allocate_zeroed::<bf16>(NUMEL, &stream)?;
            let gain = device.upload(&vec![bf16::ONE; 4096], &stream)?;
            let step = |buf: &mut GpuBuffer| -> Result {
                let produce = Add { x: add.addr(), out: buf.addr(), n: NUMEL as u32 }.launch();
                // SAFETY: both tensors have that many elements and live until the stream has been waited for.
                unsafe { library.launch(&stream, &produce)? };
                // SAFETY: as above.
                let slice = |at: Addr<bf16>, len| unsafe { DeviceSlice::new(at, len) };
                let (mut residual, mut out) = (slice(residual.addr(), NUMEL), slice(out.addr(), NUMEL));
                let gain = slice(gain.addr(), 4096);
                let epilogue = Epilogue::ResidualRmsNorm {
                    residual: &mut residual,
                    gain: &gain,
                    eps: 1e-5,
                    out: &mut out,
                };
                comm.enqueue(
                    &stream,
                    AllReduce { buf, numel: NUMEL, dtype: DType::Bf16, addend: None, epilogue },
                )
            };
            let graph = stream.capture(|| (0..CALLS).try_for_each(|_| step(&mut buf)))?;
            let replays = 3;
            for _ in 0..replays {
                // SAFETY: all that the graph refers to is alive until the stream has been waited for.
                unsafe { graph.launch(&stream)? };
            }
            let found = read::<bf16>(&comm, &buf, NUMEL, &stream)?;
            let added: Vec<Vec<bf16>> = (0..2).map(|rank| contribution(rank, NUMEL, 0)).collect();
            let plus = |a: bf16, b: bf16| bf16::from_f32(a.to_f32() + b.to_f32());
            let (mut tensor, mut expected_residual) = (vec![bf16::ZERO; NUMEL], vec![bf16::ZERO; NUMEL]);
            for _ in 0..replays * CALLS {
                let brought: Vec<Vec<bf16>> =
                    added.iter().map(|x| tensor.iter().zip(x).map(|(a, b)| plus(*a, *b)).collect()).collect();
                tensor = sum_of_ranks(ONE_NODE, &brought);
                // The residual gets the sum before it is rounded.
                let sums = fp32_sum_of_ranks(&brought);
                expected_residual
                    .iter_mut()
                    .zip(&sums)
                    .for_each(|(r, x)| *r = bf16::from_f32(r.to_f32() + x));
            }
            assert_bits(&found, &tensor, "the sum");
            assert_bits(&residual.download(&stream)?, &expected_residual, "the residual");
            Ok(())
        });
        results.into_iter().collect::<Result>()?;
    }
    Ok(())
}

/// Two communicators on two streams and three buffers, all in flight at once; a group split from another.
#[test]
fn communicators_and_buffers_do_not_meet() -> Result {
    let Some((_guard, _)) = gpu("communicators") else { return Ok(()) };
    let Some(libraries) = pair("communicators") else { return Ok(()) };
    // Words with few rounds; then so much that a block of each fills a multiprocessor, enqueued in opposite orders.
    for (numel, rounds, crossed) in [(100_000, 5, false), (1 << 20, 100, true)] {
        let comms = GpuComm::group(
            &libraries.iter().map(|library| library.device().clone()).collect::<Vec<_>>(),
            ONE_NODE,
            GroupOptions { in_flight: 2, ..options() },
        )?;
        let results = on_ranks(comms, |first, stream| two_in_flight(first, stream, numel, rounds, crossed));
        results.into_iter().collect::<Result>()?;
    }
    let dependent = GpuComm::group_with(libraries, ONE_NODE, GroupOptions { in_flight: 2, ..options() });
    let refused = matches!(dependent, Err(CommError::Unsupported { .. }));
    assert_eq!(refused, libraries[0].is_programmatic());
    Ok(())
}

fn two_in_flight(first: GpuComm, stream: Stream, numel: usize, rounds: usize, crossed: bool) -> Result {
    let world_rank = first.topology().rank;
    // Ranks change places in the second group.
    let second = first.split(7, 1 - world_rank)?;
    assert_eq!(second.topology().rank, 1 - world_rank);
    let other_stream = stream.device().stream()?;
    let mut bufs = [first.register(numel * 4)?, second.register(numel * 4)?, first.register(numel * 4)?];
    for (i, buf) in bufs.iter().enumerate() {
        write(buf, &contribution::<f32>(world_rank, numel, i), &stream)?;
    }
    for _ in 0..rounds {
        let one = |bufs: &mut [GpuBuffer; 3]| sum(&first, &mut bufs[0], numel, DType::F32, &stream);
        let other = |bufs: &mut [GpuBuffer; 3]| sum(&second, &mut bufs[1], numel, DType::F32, &other_stream);
        if crossed && world_rank == 1 {
            other(&mut bufs)?;
            one(&mut bufs)?;
        } else {
            one(&mut bufs)?;
            other(&mut bufs)?;
        }
        sum(&first, &mut bufs[2], numel, DType::F32, &stream)?;
    }
    assert!(matches!(sum(&second, &mut bufs[0], 1, DType::F32, &stream), Err(CommError::ForeignBuffer)));
    other_stream.synchronize()?;
    for (i, buf) in bufs.iter().enumerate() {
        let of_rank: Vec<Vec<f32>> = (0..2).map(|rank| contribution(rank, numel, i)).collect();
        // The first sum rounds, the others double.
        let doubled = 2_f32.powi(rounds as i32 - 1);
        let expected: Vec<f32> = sum_of_ranks(ONE_NODE, &of_rank).iter().map(|x| x * doubled).collect();
        assert_bits(&read::<f32>(&first, buf, numel, &stream)?, &expected, &format!("buffer {i}"));
    }
    let alone = first.split(world_rank, 0)?;
    assert_eq!(alone.topology().world(), 1);
    Ok(())
}

/// No elements, in buffers that have none and in one that has.
#[test]
fn nothing_is_summed_as_well() -> Result {
    let Some((_guard, _)) = gpu("nothing") else { return Ok(()) };
    let Some(libraries) = pair("nothing") else { return Ok(()) };
    let comms = GpuComm::group_with(libraries, ONE_NODE, options())?;
    let results = on_ranks(comms, |comm, stream| -> Result {
        for bytes in [0, 64] {
            let mut buf = comm.register(bytes)?;
            for dtype in [DType::Bf16, DType::F16, DType::F32] {
                sum(&comm, &mut buf, 0, dtype, &stream)?;
            }
            for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
                comm.enqueue_stage(&stream, Stage { phase, buf: &mut buf, numel: 0, dtype: DType::F32 })?;
            }
            stream.synchronize()?;
            comm.check()?;
        }
        Ok(())
    });
    results.into_iter().collect()
}

/// Pieces, phases and every rank's view of a failure, each through the trait.
#[test]
fn phases_and_gathers_go_through_the_trait() -> Result {
    let Some((_guard, _)) = gpu("trait") else { return Ok(()) };
    let Some(libraries) = pair("trait") else { return Ok(()) };
    let comms = GpuComm::group_with(libraries, ONE_NODE, options())?;
    let results = on_ranks(comms, |comm, stream| -> Result {
        let rank = comm.topology().rank;
        let mut buf = comm.register(400_000)?;
        let of_rank: Vec<Vec<f32>> = (0..2).map(|rank| contribution(rank, 100_000, 0)).collect();
        write(&buf, &of_rank[rank], &stream)?;
        for phase in [Phase::Reduce, Phase::Put, Phase::Broadcast] {
            comm.enqueue_stage(&stream, Stage { phase, buf: &mut buf, numel: 100_000, dtype: DType::F32 })?;
        }
        assert_bits(
            &read::<f32>(&comm, &buf, 100_000, &stream)?,
            &sum_of_ranks(ONE_NODE, &of_rank),
            "phases",
        );
        for cut in [0, 1, 49_999, 100_000] {
            write(&buf, &of_rank[rank], &stream)?;
            let offsets = [0, cut, 100_000];
            comm.enqueue_gather(&stream, AllGather { buf: &mut buf, offsets: &offsets, dtype: DType::F32 })?;
            let expected = [&of_rank[0][..cut], &of_rank[1][cut..]].concat();
            assert_bits(&read::<f32>(&comm, &buf, 100_000, &stream)?, &expected, &format!("cut at {cut}"));
        }
        assert_eq!((comm.counts().stages, comm.counts().all_gathers), (3, 4));
        Ok(())
    });
    results.into_iter().collect()
}
