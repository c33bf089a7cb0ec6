//! Two devices, a payload and a flag: the protocol of every exchange between GPUs.

use fewsync::driver::{Device, EmulatorOptions, LaunchConfig, Result, Stream};

/// `send` stores a payload of 32 words to its peer and then a flag; `receive` waits for the flag, then sums the
/// payload. `FENCE` stands for what orders the two stores.
const PROTOCOL: &str = r#"
.version 7.4
.target sm_80
.address_size 64

.visible .entry send(.param .u64 payload, .param .u64 flag)
{
    .reg .pred %first;
    .reg .b32 %thread, %one;
    .reg .b64 %payload, %flag, %offset;
    ld.param.u64 %payload, [payload];
    ld.param.u64 %flag, [flag];
    mov.u32 %thread, %tid.x;
    mul.wide.u32 %offset, %thread, 4;
    add.u64 %payload, %payload, %offset;
    st.global.u32 [%payload], %thread;
    bar.sync 0;
    setp.ne.u32 %first, %thread, 0;
    @%first ret;
    mov.u32 %one, 1;
    FENCE
    st.relaxed.sys.global.u32 [%flag], %one;
    ret;
}

.visible .entry receive(.param .u64 payload, .param .u64 flag, .param .u64 sum)
{
    .reg .pred %more;
    .reg .b32 %thread, %value, %sum, %i;
    .reg .b64 %payload, %flag, %out;
    ld.param.u64 %payload, [payload];
    ld.param.u64 %flag, [flag];
    ld.param.u64 %out, [sum];
again:
    ld.relaxed.sys.global.u32 %value, [%flag];
    setp.eq.u32 %more, %value, 0;
    @%more bra again;
    fence.acq_rel.sys;
    mov.u32 %sum, 0;
    mov.u32 %i, 0;
next:
    ld.global.u32 %value, [%payload];
    add.u32 %sum, %sum, %value;
    add.u64 %payload, %payload, 4;
    add.u32 %i, %i, 1;
    setp.lt.u32 %more, %i, 32;
    @%more bra next;
    st.global.u32 [%out], %sum;
    ret;
}
"#;

/// Device 1 sends to device 0; what that read. With `threads`, each device has a thread of the host, as ranks have.
fn exchange(fence: &str, options: &EmulatorOptions, threads: bool) -> Result<u32> {
    let devices = Device::emulated(options);
    let [receiver, sender] = devices.as_slice() else { panic!("two devices") };
    sender.enable_peer_access(receiver)?;
    let stream = receiver.stream()?;
    let payload = receiver.allocate_zeroed::<u32>(32, &stream)?;
    let [flag, sum] = [receiver.allocate_zeroed::<u32>(1, &stream)?, receiver.allocate_zeroed(1, &stream)?];
    stream.synchronize()?;
    let ptx = PROTOCOL.replace("FENCE", fence);
    let addresses = [payload.ptr(), flag.ptr(), sum.ptr()].map(|ptr| ptr.0.to_ne_bytes()).concat();
    let launch = |device: &Device, entry: &str, threads: u32, bytes: usize| -> Result<Stream> {
        let (stream, kernel) = (device.stream()?, device.load_module(&ptx)?.kernel(entry)?);
        // SAFETY: the kernels stay within the three buffers, which live until both have ended.
        unsafe { kernel.launch(&stream, &LaunchConfig::new(1, threads), &addresses[..bytes])? };
        Ok(stream)
    };
    let receive = || launch(receiver, "receive", 1, 24);
    let send = || launch(sender, "send", 32, 16);
    if threads {
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| receive()?.synchronize());
            let sent = send()?.synchronize();
            receiving.join().expect("no panic").and(sent)
        })?;
    } else {
        let (receiving, sending) = (receive()?, send()?);
        receiving.synchronize()?;
        sending.synchronize()?;
    }
    Ok(sum.download(&stream)?[0])
}

fn two(options: &str) -> EmulatorOptions {
    EmulatorOptions { devices: 2, ..options.parse().expect("an option") }
}

const SUM: u32 = 31 * 32 / 2;
const WIDE: &str = "fence.acq_rel.sys;";

#[test]
fn with_its_fence_the_protocol_is_right_in_every_order_and_memory() {
    for schedule in ["round-robin", "random", "adversarial"] {
        for seed in 0..3 {
            for suspicion in ["race", "weak"] {
                let options = two(&format!("schedule={schedule},seed={seed},{suspicion}"));
                for threads in [false, true] {
                    assert_eq!(exchange(WIDE, &options, threads).unwrap(), SUM, "{options}");
                }
            }
        }
    }
}

#[test]
fn without_it_the_race_is_found() {
    for fence in ["", "fence.acq_rel.gpu;"] {
        let error = exchange(fence, &two("race"), false).unwrap_err().to_string();
        assert!(
            error.contains("data race") && error.contains("receive") && error.contains("send"),
            "{error}"
        );
    }
}

#[test]
fn without_it_weak_memory_shows_old_payloads() {
    let is_wrong = |seed| exchange("", &two(&format!("weak,seed={seed}")), false).unwrap() != SUM;
    assert!((0..200).any(is_wrong), "no seed of 200 made the flag overtake its payload");
}

#[test]
fn peers_need_access() {
    let devices = Device::emulated(&two(""));
    let stream = devices[0].stream().unwrap();
    let theirs = devices[1].upload(&[1_u32], &devices[1].stream().unwrap()).unwrap();
    assert!(devices[0].can_access_peer(&devices[1]).unwrap());
    let mut ours = devices[0].allocate::<u32>(1).unwrap();
    ours.copy_at(0, &theirs, 0, 1, &stream).unwrap();
    let error = stream.synchronize().unwrap_err().to_string();
    assert!(error.contains("peer access"), "{error}");
}
