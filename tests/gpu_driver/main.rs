//! The driver layer on an emulated device, and on a real GPU. Without one (or without the feature `cuda`) every test
//! says so and passes.
//!
//! Run alone on a machine without cargo: `gpu_driver --nocapture`. `FEWSYNC_REQUIRE_GPU=1` turns a missing GPU
//! into a failure.

#[path = "../gpu/mod.rs"]
mod gpu;
mod refusals;

use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use fewsync::driver::{Device, DeviceBuffer, DevicePtr, GpuError, Kernel, LaunchConfig, Result, Stream};
use gpu::gpu;

const SM_80: &str = include_str!("../ptx/driver_sm_80.ptx");
const SM_90: &str = include_str!("../ptx/driver_sm_90.ptx");
const CLUSTERS: &str = include_str!("../ptx/driver_sm_90_clusters.ptx");

/// Runs a test on an emulated device that finds races, and on the GPU.
fn on_each_gpu(test: &str, body: impl Fn(&Device) -> Result<()>) -> Result<()> {
    #[cfg(feature = "emulate")]
    {
        use fewsync::driver::EmulatorOptions;
        let devices = Device::emulated(&EmulatorOptions { race: true, ..EmulatorOptions::default() });
        body(&devices[0])?;
    }
    gpu(test).map_or(Ok(()), |(_guard, device)| body(&device))
}

fn is_emulated(device: &Device) -> bool {
    device.gpu().backend() == "emulate"
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct VectorAdd {
    a: DevicePtr,
    b: DevicePtr,
    c: DevicePtr,
    n: u32,
    padding: u32,
}

/// Only what the PTX declares: 28 bytes, without the struct's tail.
fn vector_add_parameters(parameters: &VectorAdd) -> &[u8] {
    &bytemuck::bytes_of(parameters)[..28]
}

/// An address and a 32-bit number, as `advance` and `reverse` take them.
fn address_and(address: DevicePtr, value: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&address.0.to_ne_bytes());
    bytes[8..].copy_from_slice(&value.to_ne_bytes());
    bytes
}

fn advance(kernel: &Kernel, counter: &DeviceBuffer<u32>, step: u32, stream: &Stream) -> Result<()> {
    // SAFETY: `advance(counter, step)` writes one word of `counter`, which each test keeps until it has
    // synchronised.
    unsafe { kernel.launch(stream, &LaunchConfig::new(1, 1), &address_and(counter.ptr(), step)) }
}

fn spin(kernel: &Kernel, time: Duration, stream: &Stream) -> Result<()> {
    let nanoseconds = time.as_nanos() as u64;
    // SAFETY: `spin(nanoseconds)` touches no memory.
    unsafe { kernel.launch(stream, &LaunchConfig::new(1, 1), &nanoseconds.to_ne_bytes()) }
}

#[test]
fn a_kernel_computes_what_it_should() -> Result<()> {
    on_each_gpu("vector add", |device| {
        let kernel = device.load_module(SM_80)?.kernel("vector_add")?;
        let stream = device.stream()?;
        for n in [1_usize, 255, 256, 257, 1_000_003] {
            let a: Vec<f32> = (0..n).map(|i| (i % 1024) as f32).collect();
            let b: Vec<f32> = (0..n).map(|i| 0.25 * (i % 4096) as f32).collect();
            let (a_device, b_device) = (device.upload(&a, &stream)?, device.upload(&b, &stream)?);
            let mut c = device.allocate::<f32>(n + 1)?;
            c.fill(f32::NAN, &stream)?;
            let (a_ptr, b_ptr) = (a_device.ptr(), b_device.ptr());
            let parameters = VectorAdd { a: a_ptr, b: b_ptr, c: c.ptr(), n: n as u32, padding: 0 };
            let config = LaunchConfig::new((n as u32).div_ceil(256), 256);
            // SAFETY: the three buffers have at least n elements and live until the download below.
            unsafe { kernel.launch(&stream, &config, vector_add_parameters(&parameters))? };
            let c = c.download(&stream)?;
            for i in 0..n {
                assert_eq!(c[i], a[i] + b[i], "element {i} of {n}");
            }
            assert!(c[n].is_nan(), "nothing is written behind the end");
        }
        Ok(())
    })
}

#[test]
fn events_measure_what_the_clock_measures() -> Result<()> {
    on_each_gpu("events", |device| {
        let kernel = device.load_module(SM_80)?.kernel("spin")?;
        let (stream, start, end) = (device.stream()?, device.timing_event()?, device.timing_event()?);
        spin(&kernel, Duration::from_millis(1), &stream)?;
        stream.synchronize()?;
        let clock = Instant::now();
        start.record(&stream)?;
        spin(&kernel, Duration::from_millis(20), &stream)?;
        end.record(&stream)?;
        assert!(!end.is_reached()?, "20 ms of work are not done at once");
        end.synchronize()?;
        let (wall_us, event_us) = (clock.elapsed().as_secs_f64() * 1e6, end.elapsed_us(&start)?);
        println!("events: {event_us:.1} µs by events, {wall_us:.1} µs by the clock");
        assert!(end.is_reached()? && event_us > 19_900.0);
        // An emulated clock has a pace of its own.
        let most_us = if is_emulated(device) { 25_000.0 } else { wall_us + 10.0 };
        assert!(event_us <= most_us);
        Ok(())
    })
}

#[test]
fn streams_overlap_and_wait_for_events_only() -> Result<()> {
    on_each_gpu("streams", |device| {
        let kernel = device.load_module(SM_80)?.kernel("spin")?;
        let streams = [device.stream()?, device.stream()?];
        let time = Duration::from_millis(20);
        let both = |ordered: bool| -> Result<f64> {
            let (start, ends) = (device.timing_event()?, [device.timing_event()?, device.timing_event()?]);
            device.synchronize()?;
            start.record(&streams[0])?;
            spin(&kernel, time, &streams[0])?;
            if ordered {
                let done = device.event()?;
                done.record(&streams[0])?;
                streams[1].wait(&done)?;
            }
            spin(&kernel, time, &streams[1])?;
            ends.iter().zip(&streams).try_for_each(|(end, stream)| end.record(stream))?;
            device.synchronize()?;
            Ok(ends[0].elapsed_us(&start)?.max(ends[1].elapsed_us(&start)?) / 1e3)
        };
        both(false)?;
        let (together_ms, in_turn_ms) = (both(false)?, both(true)?);
        println!(
            "streams: 2 × 20 ms took {together_ms:.2} ms together, {in_turn_ms:.2} ms one after the other"
        );
        assert!((20.0..30.0).contains(&together_ms) && in_turn_ms >= 39.9);
        Ok(())
    })
}

/// One round of everything that allocates.
fn allocate_and_drop(device: &Device) -> Result<()> {
    let stream = device.stream()?;
    let _big = device.allocate::<u8>(256 << 20)?;
    let _pinned = device.allocate_pinned::<u8>(1 << 20)?;
    let _event = device.timing_event()?;
    let kernel = device.load_module(SM_80)?.kernel("advance")?;
    let counter = device.allocate_zeroed::<u32>(1, &stream)?;
    let graph = stream.capture(|| advance(&kernel, &counter, 1, &stream))?;
    // SAFETY: `counter` and `kernel` are alive until the synchronisation below.
    unsafe { graph.launch(&stream)? };
    stream.synchronize()
}

#[test]
fn nothing_leaks() -> Result<()> {
    on_each_gpu("leaks", |device| {
        for _ in 0..3 {
            allocate_and_drop(device)?;
        }
        let before = device.memory_info()?;
        for _ in 0..50 {
            allocate_and_drop(device)?;
        }
        assert_eq!(device.memory_info()?, before);
        Ok(())
    })
}

#[test]
fn a_thousand_replays_run_a_thousand_times_and_take_no_memory() -> Result<()> {
    on_each_gpu("graph", |device| {
        let kernel = device.load_module(SM_80)?.kernel("advance")?;
        let stream = device.stream()?;
        let counter = device.allocate_zeroed::<u32>(1, &stream)?;
        let mut seen = device.allocate_pinned::<u32>(1)?;
        let graph = stream.capture(|| {
            for step in [1, 10, 100] {
                advance(&kernel, &counter, step, &stream)?;
            }
            // SAFETY: `seen` is read only after the synchronisations below.
            unsafe { counter.download_async(&mut seen, &stream) }
        })?;
        assert_eq!(graph.node_count(), 4);
        assert_eq!(counter.download(&stream)?, [0], "recorded, not run");

        let replay = |times: u32| -> Result<f64> {
            let clock = Instant::now();
            for _ in 0..times {
                // SAFETY: `counter`, `seen` and `kernel` are alive, and nobody else uses them meanwhile.
                unsafe { graph.launch(&stream)? };
            }
            stream.synchronize()?;
            Ok(clock.elapsed().as_secs_f64() * 1e6 / f64::from(times))
        };
        replay(10)?;
        let before = device.memory_info()?;
        let each_us = replay(1000)?;
        println!("graph: {each_us:.2} µs per replay of 3 kernels and a copy");
        assert_eq!(device.memory_info()?, before);
        assert_eq!((seen[0], counter.download(&stream)?), (1010 * 111, vec![1010 * 111]));
        Ok(())
    })
}

#[test]
fn shared_memory_above_48_kib_is_there() -> Result<()> {
    on_each_gpu("shared memory", |device| {
        let kernel = device.load_module(SM_80)?.kernel("reverse")?;
        let stream = device.stream()?;
        let most = device.properties().shared_bytes_per_block;
        for bytes in [4 << 10, 48 << 10, (48 << 10) + 4, most] {
            let out = device.allocate_zeroed::<u32>(1024, &stream)?;
            let config = LaunchConfig::new(1, 1024).shared(bytes);
            // SAFETY: the kernel writes 1024 words of `out` and uses the last 4 KiB of `bytes` of shared memory.
            unsafe { kernel.launch(&stream, &config, &address_and(out.ptr(), bytes))? };
            assert!(out.download(&stream)?.iter().rev().copied().eq(0..1024), "with {bytes} bytes");
        }
        let config = LaunchConfig::new(1, 32).shared(most + 1);
        // SAFETY: refused before anything runs.
        let error = unsafe { kernel.launch(&stream, &config, &[0; 12]) }.expect_err("more than there is");
        assert!(matches!(error, GpuError::InvalidLaunch { .. }), "{error}");
        Ok(())
    })
}

#[test]
fn cooperative_blocks_meet() -> Result<()> {
    on_each_gpu("cooperative", |device| {
        let kernel = device.load_module(SM_80)?.kernel("meet")?;
        let stream = device.stream()?;
        let arrived = device.allocate_zeroed::<u32>(1, &stream)?;
        let most = kernel.resident_blocks(128, 0)? as u32;
        let meet = |blocks: u32| {
            let config = LaunchConfig::new(blocks, 128).cooperative();
            // SAFETY: the blocks wait for each other, so the launch is cooperative; `arrived` is one word. All
            // threads of a block count, so the blocks' 128 threads pass `blocks` arrivals for certain.
            unsafe { kernel.launch(&stream, &config, &arrived.ptr().0.to_ne_bytes()) }
        };
        meet(most)?;
        assert_eq!(arrived.download(&stream)?, [most * 128]);
        let error = meet(most + 1).expect_err("too many");
        assert!(error.to_string().contains(&format!("{most} fit at once")), "{error}");
        Ok(())
    })
}

#[test]
fn clusters_run() -> Result<()> {
    let Some((_guard, device)) = gpu("clusters") else { return Ok(()) };
    if device.properties().capability.major < 9 {
        println!("clusters: skipped, compute capability {}", device.properties().capability);
        return Ok(());
    }
    let kernel = device.load_module(CLUSTERS)?.kernel("cluster_size")?;
    let stream = device.stream()?;
    let sizes = device.allocate_zeroed::<u32>(16, &stream)?;
    let config = LaunchConfig::new(16, 32).cluster(8);
    // SAFETY: `cluster_size` writes one word per block of `sizes`.
    unsafe { kernel.launch(&stream, &config, &sizes.ptr().0.to_ne_bytes())? };
    assert_eq!(sizes.download(&stream)?, [8; 16]);
    Ok(())
}

#[test]
fn dependent_launches_run() -> Result<()> {
    on_each_gpu("dependent launches", |device| {
        if device.properties().capability.major < 9 {
            println!("dependent launches: skipped, compute capability {}", device.properties().capability);
            return Ok(());
        }
        let dependent = device.load_module(SM_90)?.kernel("dependent")?;
        let stream = device.stream()?;
        let counter = device.allocate_zeroed::<u32>(1, &stream)?;
        let chain = || -> Result<()> {
            for _ in 0..100 {
                let config = LaunchConfig::new(1, 1).programmatic();
                // SAFETY: each kernel writes a word of `counter` after the one ahead of it.
                unsafe { dependent.launch(&stream, &config, &counter.ptr().0.to_ne_bytes())? };
            }
            Ok(())
        };
        chain()?;
        assert_eq!(counter.download(&stream)?, [100]);
        let graph = stream.capture(chain)?;
        for _ in 0..10 {
            // SAFETY: `counter` and the module are alive, and nobody else uses them meanwhile.
            unsafe { graph.launch(&stream)? };
        }
        assert_eq!(counter.download(&stream)?, [1100]);
        Ok(())
    })
}

#[test]
fn a_fork_in_a_graph_is_a_fork() -> Result<()> {
    on_each_gpu("forks", |device| {
        let kernel = device.load_module(SM_80)?.kernel("advance")?;
        let (stream, side) = (device.stream()?, device.stream()?);
        let [counter, aside] =
            [device.allocate_zeroed::<u32>(1, &stream)?, device.allocate_zeroed(1, &stream)?];
        let (forked, joined) = (device.event()?, device.event()?);
        let graph = stream.capture(|| {
            advance(&kernel, &counter, 1, &stream)?;
            forked.record(&stream)?;
            side.wait(&forked)?;
            advance(&kernel, &aside, 10, &side)?;
            advance(&kernel, &counter, 1, &stream)?;
            joined.record(&side)?;
            stream.wait(&joined)?;
            advance(&kernel, &aside, 100, &stream)
        })?;
        assert_eq!(graph.node_count(), 4);
        for _ in 0..3 {
            // SAFETY: the counters and `kernel` are alive, and nobody else uses them meanwhile.
            unsafe { graph.launch(&stream)? };
        }
        assert_eq!((counter.download(&stream)?, aside.download(&stream)?), (vec![6], vec![330]));

        let lost = stream.capture::<GpuError>(|| {
            forked.record(&stream)?;
            side.wait(&forked)?;
            advance(&kernel, &aside, 1, &side)
        });
        assert!(lost.is_err(), "work that nobody waits for is no part of a graph");
        Ok(())
    })
}

#[test]
fn threads_share_a_device() -> Result<()> {
    on_each_gpu("threads", |device| {
        let module = device.load_module(SM_80)?;
        let count = |step: u32| -> Result<u32> {
            let (stream, kernel) = (device.stream()?, module.kernel("advance")?);
            let counter = device.allocate_zeroed::<u32>(1, &stream)?;
            let graph = stream.capture(|| advance(&kernel, &counter, step, &stream))?;
            for _ in 0..100 {
                // An allocation of another thread must not disturb this one's captures, nor the other way round.
                let _other = device.allocate::<u8>(4096)?;
                // SAFETY: `counter` is alive, and nobody else uses it.
                unsafe { graph.launch(&stream)? };
            }
            Ok(counter.download(&stream)?[0])
        };
        std::thread::scope(|scope| {
            let counts: Vec<_> = (1..=4).map(|step| (step, scope.spawn(move || count(step)))).collect();
            for (step, thread) in counts {
                assert_eq!(thread.join().expect("no panic")?, 100 * step);
            }
            Ok(())
        })
    })
}

#[test]
fn peers_exchange_memory() -> Result<()> {
    #[cfg(feature = "emulate")]
    {
        use fewsync::driver::EmulatorOptions;
        let devices = Device::emulated(&EmulatorOptions { devices: 2, ..EmulatorOptions::default() });
        exchange(&devices[0], &devices[1])?;
    }
    let Some((_guard, device)) = gpu("peers") else { return Ok(()) };
    if Device::cuda_count()? < 2 {
        println!("peers: skipped, one GPU");
        return Ok(());
    }
    let peer = Device::cuda(1)?;
    if !device.can_access_peer(&peer)? {
        println!("peers: skipped, no path");
        return Ok(());
    }
    exchange(&device, &peer)
}

fn exchange(device: &Device, peer: &Device) -> Result<()> {
    device.enable_peer_access(peer)?;
    let (stream, peer_stream) = (device.stream()?, peer.stream()?);
    let theirs = peer.upload(&[41_u32], &peer_stream)?;
    let kernel = device.load_module(SM_80)?.kernel("advance")?;
    advance(&kernel, &theirs, 1, &stream)?;
    let mut ours = device.allocate::<u32>(1)?;
    ours.copy_at(0, &theirs, 0, 1, &stream)?;
    assert_eq!(ours.download(&stream)?, [42]);
    Ok(())
}
