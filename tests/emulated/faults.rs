//! A kernel's fault as the driver's users meet it: named, and for good.

use std::sync::mpsc;
use std::time::Duration;

use fewsync::driver::{Device, DevicePtr, EmulatorOptions, GpuError, LaunchConfig, Module, Result, Stream};

const PTX: &str = r#"
.version 7.4
.target sm_80
.address_size 64

// to[tid] = from[tid]
.visible .entry copy(.param .u64 to, .param .u64 from)
{
    .reg .b32 %thread, %value;
    .reg .b64 %to, %from, %offset;
    ld.param.u64 %to, [to];
    ld.param.u64 %from, [from];
    mov.u32 %thread, %tid.x;
    mul.wide.u32 %offset, %thread, 4;
    add.u64 %to, %to, %offset;
    add.u64 %from, %from, %offset;
    ld.global.u32 %value, [%from];
    st.global.u32 [%to], %value;
    ret;
}

// Waits until *flag is not 0.
.visible .entry await(.param .u64 flag)
{
    .reg .pred %more;
    .reg .b32 %value;
    .reg .b64 %flag;
    ld.param.u64 %flag, [flag];
again:
    ld.acquire.sys.global.u32 %value, [%flag];
    setp.eq.u32 %more, %value, 0;
    @%more bra again;
    ret;
}
"#;

fn machine(options: &str) -> Device {
    Device::emulated(&options.parse().unwrap()).swap_remove(0)
}

fn copy(module: &Module, stream: &Stream, threads: u32, to: DevicePtr, from: DevicePtr) -> Result<()> {
    let parameters = [to.0.to_ne_bytes(), from.0.to_ne_bytes()].concat();
    // SAFETY: the emulator checks what these tests are about; buffers live until the stream has been waited for.
    unsafe { module.kernel("copy")?.launch(stream, &LaunchConfig::new(1, threads), &parameters) }
}

#[track_caller]
fn contains(error: &GpuError, parts: &[&str]) {
    let sentence = error.to_string();
    assert!(parts.iter().all(|part| sentence.contains(part)), "{sentence} should contain {parts:?}");
}

#[test]
fn a_fault_names_its_place_and_stays() -> Result<()> {
    let device = machine("seed=42,schedule=random");
    let (stream, other) = (device.stream()?, device.stream()?);
    let module = device.load_module(PTX)?;
    let (from, to) = (device.upload(&[1_u32; 40], &stream)?, device.allocate::<u32>(39)?);
    copy(&module, &stream, 40, to.ptr(), from.ptr())?;
    let error = stream.synchronize().unwrap_err();
    // The store of thread 39, by line.
    contains(
        &error,
        &["emulate:0", "out of bounds", "39", "copy", ":18:", "st.global.u32", "(39, 0, 0)", "seed"],
    );
    contains(&error, &["42"]);
    for later in [
        stream.synchronize(),
        other.synchronize(),
        device.synchronize(),
        device.allocate::<u8>(1).map(drop),
        copy(&module, &stream, 1, to.ptr(), from.ptr()),
    ] {
        assert_eq!(later.unwrap_err(), error, "said again");
    }
    Ok(())
}

#[test]
fn uninitialised_and_freed_memory_is_noticed() -> Result<()> {
    let device = machine("");
    let stream = device.stream()?;
    let module = device.load_module(PTX)?;
    let (from, to) = (device.allocate::<u32>(32)?, device.allocate::<u32>(32)?);
    copy(&module, &stream, 32, to.ptr(), from.ptr())?;
    contains(&stream.synchronize().unwrap_err(), &["never been written", "ld.global.u32"]);

    let device = machine("");
    let stream = device.stream()?;
    let module = device.load_module(PTX)?;
    let to = device.allocate::<u32>(32)?;
    let gone = device.upload(&[0_u32; 32], &stream)?.ptr();
    copy(&module, &stream, 32, to.ptr(), gone)?;
    contains(&stream.synchronize().unwrap_err(), &["has been freed"]);

    let device = machine("");
    let stream = device.stream()?;
    contains(&device.allocate::<u8>(8)?.download(&stream).unwrap_err(), &["never been written"]);
    Ok(())
}

#[test]
fn streams_that_nothing_orders_race() -> Result<()> {
    let run = |ordered: bool| -> Result<()> {
        let device = machine("race");
        let streams = [device.stream()?, device.stream()?];
        let module = device.load_module(PTX)?;
        let from = device.upload(&[1_u32; 32], &streams[0])?;
        let to = device.upload(&[0_u32; 32], &streams[0])?;
        copy(&module, &streams[0], 32, to.ptr(), from.ptr())?;
        if ordered {
            let done = device.event()?;
            done.record(&streams[0])?;
            streams[1].wait(&done)?;
        }
        let back = device.allocate::<u32>(32)?;
        copy(&module, &streams[1], 32, back.ptr(), to.ptr())?;
        device.synchronize()
    };
    run(true)?;
    contains(&run(false).unwrap_err(), &["data race", "ld.global.u32", "against", "st.global.u32"]);
    Ok(())
}

#[test]
fn the_host_races_with_no_stream_that_it_has_waited_for() -> Result<()> {
    let device = machine("race");
    let streams = [device.stream()?, device.stream()?];
    let module = device.load_module(PTX)?;
    let from = device.upload(&[1_u32; 32], &streams[0])?;
    let to = device.allocate::<u32>(32)?;
    copy(&module, &streams[0], 32, to.ptr(), from.ptr())?;
    streams[0].synchronize()?;
    assert_eq!(to.download(&streams[1])?, [1; 32]);
    let done = device.event()?;
    copy(&module, &streams[0], 16, to.ptr(), from.ptr())?;
    done.record(&streams[0])?;
    done.synchronize()?;
    copy(&module, &streams[1], 32, from.ptr(), to.ptr())?;
    device.synchronize()
}

#[test]
fn the_host_races_with_a_stream_that_it_has_not_waited_for() -> Result<()> {
    let device = machine("race");
    let streams = [device.stream()?, device.stream()?];
    let module = device.load_module(PTX)?;
    let from = device.upload(&[1_u32; 32], &streams[0])?;
    let (to, other) = (device.allocate::<u32>(32)?, device.allocate::<u32>(32)?);
    device.synchronize()?;
    // Both have ended when the second has been waited for, but only the second's end is known.
    copy(&module, &streams[0], 32, to.ptr(), from.ptr())?;
    copy(&module, &streams[1], 32, other.ptr(), from.ptr())?;
    streams[1].synchronize()?;
    copy(&module, &streams[1], 32, other.ptr(), to.ptr())?;
    contains(&device.synchronize().unwrap_err(), &["data race", "ld.global.u32", "against", "st.global.u32"]);
    Ok(())
}

/// Pinned words that another thread of the host writes while kernels work on their neighbours.
struct Words(*mut u32);

// SAFETY: the test keeps the allocation alive, and no two threads of the host write the same word.
unsafe impl Send for Words {}

#[test]
fn the_host_may_write_beside_a_kernel_and_wake_it() -> Result<()> {
    let device = machine("race");
    let stream = device.stream()?;
    let module = device.load_module(PTX)?;
    let from = device.upload(&[1_u32; 32], &stream)?;
    let mut words = device.allocate_pinned::<u32>(4)?;
    stream.synchronize()?;
    let (at, host) = (words.ptr(), Words(words.as_mut_ptr()));
    // The kernel writes the first word plainly and waits for the third, the host writes the second and the third.
    copy(&module, &stream, 1, at, from.ptr())?;
    // SAFETY: it reads one word of `words`.
    unsafe { module.kernel("await")?.launch(&stream, &LaunchConfig::new(1, 1), &(at.0 + 8).to_ne_bytes())? };
    let began = std::time::Instant::now();
    let (is_ready, ready) = mpsc::channel();
    std::thread::scope(|scope| {
        let other = device.clone();
        scope.spawn(move || {
            let host = host;
            // This thread may have something for the machine, which then waits for it.
            let _stream = other.stream();
            is_ready.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(300));
            // SAFETY: in bounds of 4 words.
            unsafe {
                host.0.add(1).write_volatile(5);
                host.0.add(2).write_volatile(1);
            }
            std::thread::sleep(Duration::from_secs(2));
        });
        ready.recv().unwrap();
        stream.synchronize()
    })?;
    assert!(began.elapsed() < Duration::from_secs(30), "the flag was not looked at");
    assert_eq!(words[0], 1);
    Ok(())
}

#[test]
fn a_deadlock_does_not_wait_for_threads_that_have_ended() -> Result<()> {
    let device = machine("");
    let stream = device.stream()?;
    let flag = device.allocate_zeroed::<u32>(1, &stream)?;
    std::thread::scope(|scope| scope.spawn(|| device.stream().map(drop)).join().unwrap())?;
    let kernel = device.load_module(PTX)?.kernel("await")?;
    // SAFETY: it reads one word of `flag`.
    unsafe { kernel.launch(&stream, &LaunchConfig::new(1, 1), &flag.ptr().0.to_ne_bytes())? };
    let began = std::time::Instant::now();
    contains(&stream.synchronize().unwrap_err(), &["deadlock"]);
    assert!(began.elapsed() < Duration::from_secs(30));
    Ok(())
}

#[test]
fn launch_bounds_may_be_absurd() -> Result<()> {
    let device = machine("");
    let bounds = ".entry copy(.param .u64 to, .param .u64 from)\n.minnctapersm 134217728";
    let module = device.load_module(&PTX.replace(".entry copy(.param .u64 to, .param .u64 from)", bounds))?;
    assert!(module.kernel("copy")?.attributes().registers > 0);
    Ok(())
}

#[test]
fn nobody_waits_for_ever() -> Result<()> {
    let device = machine("seed=3");
    let stream = device.stream()?;
    let flag = device.allocate_zeroed::<u32>(1, &stream)?;
    let kernel = device.load_module(PTX)?.kernel("await")?;
    // SAFETY: it reads one word of `flag`.
    unsafe { kernel.launch(&stream, &LaunchConfig::new(1, 1), &flag.ptr().0.to_ne_bytes())? };
    contains(&stream.synchronize().unwrap_err(), &["deadlock", "await", "ld.acquire.sys", "seed 3"]);
    Ok(())
}

#[test]
fn a_kernel_may_wait_for_another_thread_of_the_host() -> Result<()> {
    let device = machine("race");
    let stream = device.stream()?;
    let kernel = device.load_module(PTX)?.kernel("await")?;
    let flag = device.allocate_zeroed::<u32>(1, &stream)?;
    stream.synchronize()?;
    let ((waits, is_waiting), (is_ready, ready)) = (mpsc::channel(), mpsc::channel());
    std::thread::scope(|scope| {
        let setter = scope.spawn({
            let (device, flag) = (device.clone(), flag.ptr());
            move || -> Result<()> {
                // From here on the machine knows that this thread may have something for it.
                let side = device.stream()?;
                is_ready.send(()).unwrap();
                is_waiting.recv().unwrap();
                std::thread::sleep(Duration::from_millis(50));
                let set = device.upload(&[1_u32], &side)?;
                let module = device.load_module(STORE)?;
                let parameters = [flag.0.to_ne_bytes(), set.ptr().0.to_ne_bytes()].concat();
                // SAFETY: it reads a word of `set` and writes one of `flag`.
                unsafe { module.kernel("release")?.launch(&side, &LaunchConfig::new(1, 1), &parameters)? };
                side.synchronize()
            }
        });
        ready.recv().unwrap();
        // SAFETY: it reads one word of `flag`.
        unsafe { kernel.launch(&stream, &LaunchConfig::new(1, 1), &flag.ptr().0.to_ne_bytes())? };
        waits.send(()).unwrap();
        stream.synchronize()?;
        setter.join().unwrap()
    })
}

const STORE: &str = r#"
.version 7.4
.target sm_80
.address_size 64

// *to = *from, for whoever acquires it
.visible .entry release(.param .u64 to, .param .u64 from)
{
    .reg .b32 %value;
    .reg .b64 %to, %from;
    ld.param.u64 %to, [to];
    ld.param.u64 %from, [from];
    ld.global.u32 %value, [%from];
    st.release.sys.global.u32 [%to], %value;
    ret;
}
"#;

#[test]
fn kernels_and_host_share_pinned_memory() -> Result<()> {
    let device = machine("race");
    let stream = device.stream()?;
    let module = device.load_module(PTX)?;
    let (mut from, mut to) = (device.allocate_pinned::<u32>(33)?, device.allocate_pinned::<u32>(33)?);
    for round in 1..4 {
        from.fill(round);
        to[32] = 7;
        copy(&module, &stream, 32, to.ptr(), from.ptr())?;
        stream.synchronize()?;
        assert_eq!((&to[..32], to[32]), (&[round; 32][..], 7));
    }
    copy(&module, &stream, 34, to.ptr(), from.ptr())?;
    contains(&stream.synchronize().unwrap_err(), &["out of bounds", "pinned"]);
    Ok(())
}

#[test]
fn what_cannot_be_launched_is_refused_at_once() -> Result<()> {
    let device = machine("");
    let stream = device.stream()?;
    let kernel = device.load_module(PTX)?.kernel("await")?;
    // SAFETY: refused.
    let short = unsafe { kernel.launch(&stream, &LaunchConfig::new(1, 1), &[0; 4]) }.unwrap_err();
    contains(&short, &["await", "4 bytes of parameters were given, the kernel has 8"]);
    let small = machine("sms=1");
    let (small, on_small) = (small.load_module(PTX)?.kernel("await")?, small.stream()?);
    // SAFETY: refused.
    let cluster = unsafe { small.launch(&on_small, &LaunchConfig::new(8, 1).cluster(8), &[0; 8]) };
    contains(&cluster.unwrap_err(), &["cluster of 8×1×1 blocks", "4 resident blocks"]);
    // Two blocks of 100 KiB are all that a multiprocessor's shared memory holds.
    let large = LaunchConfig::new(4, 1).shared(100 << 10).cluster(4);
    // SAFETY: refused.
    let cluster = unsafe { small.launch(&on_small, &large, &[0; 8]) };
    contains(&cluster.unwrap_err(), &["cluster of 4×1×1 blocks", "2 resident blocks"]);
    let unknown = PTX.replace("mov.u32 %thread", "wgmma.u32 %thread");
    contains(&device.load_module(&unknown).unwrap_err(), &["rejected the PTX", ":13:", "wgmma"]);
    assert!(machine("sms=2").properties().multiprocessors == 2);
    assert_eq!(device.properties().multiprocessors, EmulatorOptions::default().multiprocessors);
    Ok(())
}
