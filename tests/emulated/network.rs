//! The puts that join ranks of one GPU (`host/comm/gpu/loopback/network.ptx`).

use std::sync::Arc;

use fewsync::comm::Shape;
use fewsync::comm::gpu::{GroupOptions, Loopback, LoopbackPuts, PeerMemory};
use fewsync::driver::{Device, EmulatorOptions, KernelLibrary, LaunchConfig, Result};
use fewsync::kernels::PTX;

const NETWORK: &str = include_str!("../../host/comm/gpu/loopback/network.ptx");
const HEADER: &str = "
.version 7.4
.target sm_80
.address_size 64
";
/// Calls FUNCTION with what it is given.
const KERNEL: &str = "
.visible .entry put(.param .u64 to, .param .u64 from, .param .u64 length, .param .u32 peer)
{
    .reg .b32 %peer;
    .reg .b64 %to, %from, %length;
    ld.param.u64 %to, [to];
    ld.param.u64 %from, [from];
    ld.param.u64 %length, [length];
    ld.param.u32 %peer, [peer];
    {
        .param .b64 a;
        .param .b64 b;
        .param .b64 c;
        .param .b32 d;
        st.param.b64 [a], %to;
        st.param.b64 [b], %from;
        st.param.b64 [c], %length;
        st.param.b32 [d], %peer;
        call.uni FUNCTION, (a, b, c, d);
    }
    ret;
}
";
/// Each function, and how many threads call it together.
const FUNCTIONS: [(&str, u32); 2] = [("nvshmem_putmem_nbi", 1), ("nvshmemx_putmem_nbi_warp", 32)];
/// Of a heap; there are three.
const PAGE_BYTES: usize = 4096;
/// Of memory that nobody has put anything into.
const BACKGROUND: u8 = 0xee;

/// Puts `bytes` from the second heap's page, at `from`, to the place `to` of the heap `pe` pages on; all heaps then.
fn put((function, threads): (&str, u32), to: usize, from: usize, bytes: usize, pe: i32) -> Result<Vec<u8>> {
    let device = Device::emulated(&EmulatorOptions::default()).swap_remove(0);
    let stream = device.stream()?;
    let module = device.load_module(&format!("{HEADER}{NETWORK}{}", KERNEL.replace("FUNCTION", function)))?;
    let mut heaps = vec![BACKGROUND; 3 * PAGE_BYTES];
    heaps[PAGE_BYTES..2 * PAGE_BYTES].copy_from_slice(&source());
    let heaps = device.upload(&heaps, &stream)?;
    let own = |at: usize| heaps.ptr_at(PAGE_BYTES + at).0.to_ne_bytes();
    let mut parameters = [own(to), own(from), (bytes as u64).to_ne_bytes()].concat();
    parameters.extend(pe.to_ne_bytes());
    // SAFETY: the emulator checks what these tests are about; the heaps live until the stream has been waited for.
    unsafe { module.kernel("put")?.launch(&stream, &LaunchConfig::new(1, threads), &parameters)? };
    stream.synchronize()?;
    heaps.download(&stream)
}

/// No two units alike.
fn source() -> Vec<u8> {
    (0..PAGE_BYTES).map(|i| (i ^ i >> 8) as u8).collect()
}

#[test]
fn a_put_reaches_the_same_place_of_another_heap_and_nothing_else() {
    for function in FUNCTIONS {
        for (pe, bytes) in [(1, 0), (1, 16), (-1, 48), (1, 496), (-1, 512), (1, 528), (-1, 3072)] {
            let (to, from) = (64, 256);
            let mut expected = vec![BACKGROUND; 3 * PAGE_BYTES];
            expected[PAGE_BYTES..2 * PAGE_BYTES].copy_from_slice(&source());
            let begin = (1 + pe) as usize * PAGE_BYTES + to;
            expected[begin..begin + bytes].copy_from_slice(&source()[from..from + bytes]);
            assert!(put(function, to, from, bytes, pe).unwrap() == expected, "{function:?}: {bytes} to {pe}");
        }
    }
}

#[test]
fn parts_of_units_are_refused() {
    for function in FUNCTIONS {
        for (to, from, bytes) in [(8, 0, 16), (0, 4, 16), (0, 0, 24), (0, 0, 1)] {
            let error = put(function, to, from, bytes, 1).unwrap_err().to_string();
            assert!(error.contains("trap"), "{function:?}: {error}");
        }
    }
}

#[test]
fn puts_stay_in_the_memory_of_one_gpu() -> Result<()> {
    let devices = Device::emulated(&EmulatorOptions { devices: 2, ..EmulatorOptions::default() });
    let load = |device: &Device| Ok(Arc::new(KernelLibrary::load_file(device, &PTX[1])?));
    let (here, there) = (load(&devices[0])?, load(&devices[1])?);
    let refusal = |puts, memory| {
        let options = GroupOptions { memory, ..GroupOptions::default() };
        let shape = Shape { nodes: 2, gpus_per_node: 1 };
        Loopback::over_puts(&here, &puts, shape, options).err().map(|error| error.to_string())
    };
    let elsewhere = refusal(LoopbackPuts::load(&there)?, PeerMemory::Direct).unwrap();
    assert!(elsewhere.contains("the kernels that put"), "{elsewhere}");
    let in_host_memory = refusal(LoopbackPuts::load(&here)?, PeerMemory::HostStaged).unwrap();
    assert!(in_host_memory.contains("host memory"), "{in_host_memory}");
    assert_eq!(refusal(LoopbackPuts::load(&here)?, PeerMemory::Direct), None);
    Ok(())
}
