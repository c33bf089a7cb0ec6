//! Ranks that stop, trap, or make another call.

use std::sync::Arc;

use fewsync::comm::gpu::{GpuComm, GroupOptions, Loopback, LoopbackBuffer, LoopbackSlices};
use fewsync::comm::{AllReduce, CommError, Communicator, DType, Epilogue, Phase, Shape};
use fewsync::driver::{Device, EmulatorOptions, KernelLibrary, LaunchConfig, Schedule, Stream};

use crate::scenario::TIME_LIMIT;
use crate::schedules::{keep_loaded, shipped};

type Result<T = ()> = std::result::Result<T, CommError>;

const SHAPES: [(usize, usize); 3] = [(1, 3), (2, 2), (3, 1)];
const FIRST_SEQUENCE: u64 = (1 << 32) - 2;

/// A rank per device, each with a stream and a buffer.
struct Setup {
    ranks: Loopback,
    streams: Vec<Stream>,
    buf: LoopbackBuffer,
}

fn setup(shape: Shape, machine: &str) -> Result<Setup> {
    let options: EmulatorOptions = machine.parse().expect("options");
    let world = shape.world();
    let devices = Device::emulated(&EmulatorOptions { devices: world as u32, multiprocessors: 8, ..options });
    let load = |device| Ok(Arc::new(KernelLibrary::load_file(device, shipped("sm_90a"))?));
    let libraries = devices.iter().map(load).collect::<Result<Vec<_>>>()?;
    let options =
        GroupOptions { time_limit: TIME_LIMIT, first_sequence: FIRST_SEQUENCE, ..GroupOptions::default() };
    let ranks = Loopback::new(&libraries, shape, options)?;
    let buf = ranks.register(4096)?;
    let streams = devices.iter().map(|device| Ok(device.stream()?)).collect::<Result<_>>()?;
    Ok(Setup { ranks, streams, buf })
}

/// Enqueues a call of one rank: its number of elements and their type.
type Enqueue = fn(&mut Setup, usize, usize, DType) -> Result;

/// A sum, a phase, a gather.
const CALLS: [Enqueue; 3] = [
    |it, rank, numel, dtype| {
        // SAFETY: no slices.
        unsafe {
            it.ranks.all_reduce(rank, &it.streams[rank], &mut it.buf, (numel, dtype), LoopbackSlices::NONE)
        }
    },
    |it, rank, numel, dtype| {
        it.ranks.phase(rank, &it.streams[rank], &mut it.buf, Phase::Broadcast, (numel, dtype))
    },
    |it, rank, numel, dtype| {
        let world = it.streams.len();
        let offsets: Vec<usize> = (0..=world).map(|piece| numel * piece / world).collect();
        it.ranks.all_gather(rank, &it.streams[rank], &mut it.buf, &offsets, dtype)
    },
];

fn shapes() -> impl Iterator<Item = Shape> {
    SHAPES.into_iter().map(|(nodes, gpus_per_node)| Shape { nodes, gpus_per_node })
}

/// The last rank makes fewer calls than the others: who waits for it, or for one that does, says so within the limit,
/// and the group is closed.
#[test]
fn a_rank_that_stops_is_named() -> Result {
    let _loaded = keep_loaded(&[shipped("sm_90a")]);
    for (seed, shape) in shapes().enumerate() {
        for (kind, call) in CALLS.iter().enumerate() {
            let its_calls = 2 * ((seed + kind) % 2);
            let schedule = Schedule::ALL[(seed + kind) % 3];
            let options = EmulatorOptions { schedule, seed: seed as u64, weak: true, ..Default::default() };
            let mut group = setup(shape, &options.to_string())?;
            let last = shape.world() - 1;
            for rank in 0..=last {
                for _ in 0..if rank == last { its_calls } else { 4 } {
                    call(&mut group, rank, 500, DType::F32)?;
                }
            }
            group.streams.iter().try_for_each(Stream::synchronize)?;
            let error = group.ranks.check().expect_err("a rank is missing");
            let CommError::Timeout { rank, peer, expected, waited, .. } = error else { panic!("{error}") };
            let first_missed = [FIRST_SEQUENCE, (1 << 32) + 2][its_calls / 2];
            assert_eq!((expected, waited), (first_missed, TIME_LIMIT), "{shape}: {error}");
            assert!(rank != last && (peer == last || shape.nodes > 1), "{shape}: {error}");
            for rank in 0..=last {
                assert_eq!(
                    call(&mut group, rank, 500, DType::F32),
                    Err(error.clone()),
                    "refused from now on"
                );
            }
        }
    }
    Ok(())
}

/// The same through the trait, a thread per rank: each one that waits has its own error, the others are told.
#[test]
fn every_rank_learns_that_one_stopped() -> Result {
    let _loaded = keep_loaded(&[shipped("sm_90a")]);
    let shape = Shape { nodes: 1, gpus_per_node: 3 };
    let devices = Device::emulated(&"schedule=random,seed=9,weak,devices=3,sms=8".parse().expect("options"));
    let options = GroupOptions { time_limit: TIME_LIMIT, ..GroupOptions::default() };
    let comms = GpuComm::group(&devices, shape, options)?;
    let one_rank = |comm: GpuComm| -> Result<CommError> {
        let rank = comm.topology().rank;
        let (stream, mut buf) = (devices[rank].stream()?, comm.register(4096)?);
        let mut sum = || {
            let (buf, epilogue) = (&mut buf, Epilogue::None);
            comm.enqueue(&stream, AllReduce { buf, numel: 99, dtype: DType::F32, addend: None, epilogue })
        };
        if rank < 2 {
            sum()?;
            stream.synchronize()?;
        }
        loop {
            if let Err(error) = comm.check() {
                assert_eq!(sum(), Err(error.clone()), "refused from now on");
                return Ok(error);
            }
            std::thread::sleep(TIME_LIMIT / 100);
        }
    };
    let errors: Vec<Result<CommError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = comms.into_iter().map(|comm| scope.spawn(|| one_rank(comm))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    for (at, error) in errors.into_iter().enumerate() {
        match error? {
            CommError::Timeout { rank, peer: 2, .. } => assert!(rank == at && at < 2),
            CommError::PeerFailed { rank, peer, .. } => assert!(rank == at && peer < 2),
            error => panic!("rank {at}: {error}"),
        }
    }
    Ok(())
}

/// Sizes, types and kinds that differ: both calls are named, nobody waits until the limit.
#[test]
fn other_calls_are_a_mismatch() -> Result {
    let _loaded = keep_loaded(&[shipped("sm_90a")]);
    let (sum, phase, gather) = (0, 1, 2);
    let cases = [
        [(sum, 64, DType::Bf16), (sum, 65, DType::Bf16)],
        [(sum, 64, DType::Bf16), (sum, 64, DType::F16)],
        [(sum, 7, DType::F32), (sum, 900, DType::F32)],
        [(sum, 64, DType::F32), (phase, 64, DType::F32)],
        [(phase, 64, DType::F32), (gather, 64, DType::F32)],
    ];
    for (seed, shape) in shapes().enumerate() {
        for (number, case) in cases.iter().enumerate() {
            let schedule = Schedule::ALL[(seed + number) % 3];
            let options = EmulatorOptions { schedule, seed: seed as u64, weak: true, ..Default::default() };
            let mut group = setup(shape, &options.to_string())?;
            let last = shape.world() - 1;
            for rank in 0..=last {
                let (kind, numel, dtype) = case[usize::from(rank == last)];
                CALLS[kind](&mut group, rank, numel, dtype)?;
            }
            group.streams.iter().try_for_each(Stream::synchronize)?;
            let error = group.ranks.check().expect_err("calls differ");
            let CommError::Mismatch { rank, peer, expected, found, .. } = &error else { panic!("{error}") };
            let [(_, numel, dtype), (_, other_numel, other_dtype)] = case[..] else { unreachable!("two") };
            assert!((*rank == last) != (*peer == last), "{shape}: {error}");
            let (own, other) = if *peer == last { (expected, found) } else { (found, expected) };
            assert_eq!((own.numel, own.dtype), (numel, dtype), "{shape}: {error}");
            assert_eq!((other.numel, other.dtype), (other_numel, other_dtype), "{shape}: {error}");
        }
    }
    Ok(())
}

const TRAP: &str = ".version 7.4\n.target sm_80\n.address_size 64\n.visible .entry stop() { trap; }\n";

/// A kernel that traps takes its machine with it: every rank is told which kernel it was.
#[test]
fn a_trap_is_named_on_every_rank() -> Result {
    let _loaded = keep_loaded(&[shipped("sm_90a")]);
    let mut group = setup(Shape { nodes: 1, gpus_per_node: 3 }, "schedule=random,seed=5")?;
    let stream = &group.streams[1];
    let kernel = stream.device().load_module(TRAP)?.kernel("stop")?;
    // SAFETY: it takes nothing.
    unsafe { kernel.launch(stream, &LaunchConfig::new(1, 32), &[])? };
    for rank in 0..3 {
        CALLS[0](&mut group, rank, 500, DType::F32)?;
    }
    for stream in &group.streams {
        let error = stream.synchronize().expect_err("a kernel has trapped").to_string();
        assert!(error.contains("stop") && error.contains("trap"), "{error}");
    }
    Ok(())
}
