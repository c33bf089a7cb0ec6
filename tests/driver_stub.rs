//! The CUDA back end without a GPU: a stub driver answers, so that every bad case and every call's handling can
//! be seen on any machine. Each case runs in a process of its own, since a process has one driver.
#![cfg(feature = "cuda")]

#[path = "../cuda-lazy/tests/stub/mod.rs"]
mod stub;

use std::path::{Path, PathBuf};

use bytemuck::{Pod, Zeroable};
use fewsync::driver::{Device, DevicePtr, GpuError, LaunchConfig, Result};
use fewsync::kernels::{Addr, Gemm, Product, Rows, Tile, Tiling};
use stub::{StubDriver, answer_of, is_child};

/// The parameters of the stub's only kernel.
#[repr(C, packed)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Store {
    address: DevicePtr,
    value: u32,
}

const PTX: &str =
    ".version 7.4\n.target sm_80\n.address_size 64\n.visible .entry store(.param .u64 a, .param .u32 v) {}\n";

fn print<T: std::fmt::Debug>(result: Result<T>) {
    match result {
        Ok(value) => println!("answer: ok {value:?}"),
        Err(error) => println!("answer: {error}"),
    }
}

#[test]
#[ignore = "run by the tests below"]
fn child_open() {
    if is_child() {
        let ordinal = std::env::var("ORDINAL").map_or(0, |text| text.parse().expect("a number"));
        print(
            Device::cuda(ordinal)
                .map(|device| (device.label().to_owned(), device.properties().newest_ptx.to_string())),
        );
    }
}

#[test]
#[ignore = "run by the tests below"]
fn child_allocate() {
    if is_child() {
        let allocate = || {
            let device = Device::cuda(0)?;
            let _half = device.allocate::<u8>(512 << 20)?;
            device.allocate::<f32>(192 << 20)
        };
        print(allocate());
    }
}

#[test]
#[ignore = "run by the tests below"]
fn child_load() {
    if is_child() {
        let ptx = std::env::var("PTX").expect("the PTX");
        let load = || Device::cuda(0)?.load_module(&ptx)?.kernel("store").map(|kernel| *kernel.attributes());
        print(load());
    }
}

#[test]
#[ignore = "run by the tests below"]
fn child_synchronize() {
    if is_child() {
        print(Device::cuda(0).and_then(|device| device.stream()?.synchronize()));
    }
}

/// Child: everything that works on a healthy device, including from a thread that never saw its context.
#[test]
#[ignore = "run by the tests below"]
fn child_work() {
    if !is_child() {
        return;
    }
    let device = Device::cuda(0).expect("the stub's device");
    let empty = device.memory_info().expect("its memory");
    std::thread::scope(|scope| scope.spawn(|| work(&device)).join().expect("no panic")).expect("it works");
    assert_eq!(device.memory_info().expect("its memory"), empty, "all memory was given back");
    assert!(Device::cuda(0).expect("again").same_as(&device));
    println!("answer: done");
}

fn work(device: &Device) -> Result<()> {
    let stream = device.stream()?;
    let mut buffer = device.upload(&[1_u32, 2, 3, 4, 5], &stream)?;
    let mut copy = device.allocate::<u32>(5)?;
    copy.fill(0xdead_beef, &stream)?;
    copy.copy_at(1, &buffer, 2, 3, &stream)?;
    assert_eq!(copy.download(&stream)?, [0xdead_beef, 3, 4, 5, 0xdead_beef]);
    buffer.upload_at(4, &[9], &stream)?;
    buffer.upload_at(5, &[], &stream)?;
    let mut tail = [0; 2];
    buffer.download_at(3, &mut tail, &stream)?;
    assert_eq!(tail, [4, 9]);

    let kernel = device.load_module(PTX)?.kernel("store")?;
    assert_eq!(kernel.attributes().dynamic_shared_bytes, 232_448 - 448, "opted in to all shared memory");
    let store = |index, value| {
        let parameters = Store { address: copy.ptr_at(index), value };
        let config = LaunchConfig::new(1, 32).shared(200 << 10);
        // SAFETY: the stub stores `value` at `address`, which lies in `copy`.
        unsafe { kernel.launch(&stream, &config, bytemuck::bytes_of(&parameters)) }
    };
    store(0, 7)?;
    let graph = stream.capture(|| store(1, 8).and_then(|()| store(2, 10)))?;
    assert_eq!(graph.node_count(), 2);
    assert_eq!(copy.download(&stream)?, [7, 3, 4, 5, 0xdead_beef], "recorded, not run");
    // SAFETY: `copy` is alive and nobody else uses it.
    unsafe { graph.launch(&stream)? };
    assert_eq!(copy.download(&stream)?, [7, 8, 10, 5, 0xdead_beef]);

    let failed =
        stream.capture(|| copy.download(&stream).map(drop)).expect_err("a download cannot be recorded");
    assert!(matches!(&failed, GpuError::Call { call: "cuMemcpyDtoHAsync_v2", code: 900, .. }), "{failed}");
    stream.synchronize().expect("the capture was ended");

    let (start, end) = (device.timing_event()?, device.timing_event()?);
    assert!(!start.is_reached()?);
    start.record(&stream)?;
    end.record(&stream)?;
    assert!((end.elapsed_us(&start)? - 1000.0).abs() < 1e-9, "one tick of the stub is 1 ms");
    device.event()?.elapsed_us(&start).expect_err("an event without timing");

    let pinned = device.allocate_pinned::<u16>(100)?;
    assert!(pinned.iter().all(|&word| word == 0) && pinned.load(99) == 0);
    assert!(device.allocate::<u64>(0)?.download(&stream)?.is_empty());

    let error = copy.upload_at(4, &[1, 2], &stream).expect_err("past the end");
    assert_eq!(
        error.to_string(),
        "upload of 2 elements at 4 does not fit a buffer of 5 on cuda:0 (Stub GPU)"
    );
    Ok(())
}

#[test]
#[ignore = "run by the tests below"]
fn child_peers() {
    if !is_child() {
        return;
    }
    let [a, b, c] = [0, 1, 2].map(|ordinal| Device::cuda(ordinal).expect("the stub's device"));
    a.enable_peer_access(&b).expect("0 and 1 are linked");
    b.enable_peer_access(&a).expect("already enabled is fine");
    a.enable_peer_access(&a).expect("itself is fine");
    let stream = a.stream().expect("a stream");
    let error = b.allocate::<u8>(4).expect("memory").zero(&stream).expect_err("a foreign stream");
    assert_eq!(
        error.to_string(),
        "the stream belongs to cuda:0 (Stub GPU), but was used with cuda:1 (Stub GPU)"
    );
    print(a.enable_peer_access(&c));
}

/// Child: a product's maps as the driver was asked for them.
#[test]
#[ignore = "run by the tests below"]
fn child_maps() {
    if !is_child() {
        return;
    }
    let encode = || {
        let device = Device::cuda(0)?;
        let (a, out) = (Rows::new(Addr::new(0x100), 80), Product::Store(Rows::new(Addr::new(0x300), 96)));
        let tiling = Tiling::of(Tile::W128x192);
        let launch = Gemm { a, w: Addr::new(0x200), out, m: 7, n: 96, k: 72, tiling }.launch();
        let maps: Vec<_> = launch.tensor_maps().collect();
        assert_eq!(maps.len(), 2);
        // bf16, the 128-byte swizzle, 256 bytes to L2, zeros; all elements of a box.
        let (head, each) = (|rank: u64| 9 | rank << 8 | 3 << 20 | 3 << 24, |size: u64| size | 1 << 32);
        let tokens = [head(2), 0x100, 72, 7, 0, 0, 0, 160, 0, 0, 0, each(64), each(128), 0, 0, 0];
        let boxes = [64, 2, 4, 4, 6].map(each);
        let mut weights = [head(5), 0x200, 72, 2, 4, 4, 3, 144, 1152, 288, 4608, 0, 0, 0, 0, 0];
        weights[11..].copy_from_slice(&boxes);
        for (map, expected) in maps.into_iter().zip([tokens, weights]) {
            let words: [u64; 16] = bytemuck::cast(device.gpu().encode_tensor_map(map)?);
            assert_eq!(words, expected);
        }
        Ok(())
    };
    print(encode());
}

struct Stub {
    _driver: StubDriver,
    path: PathBuf,
}

impl Stub {
    fn build() -> Option<Self> {
        StubDriver::build().map(|driver| Self { path: driver.path(), _driver: driver })
    }

    fn answer(&self, child: &str, variables: &[(&str, &str)]) -> String {
        answer_of(child, &self.path, variables)
    }
}

#[test]
fn without_a_driver_the_reason_is_one_sentence() {
    let sentence = answer_of("child_open", Path::new("/nowhere/libcuda.so.1"), &[]);
    assert!(
        sentence.starts_with("no CUDA driver: /nowhere/libcuda.so.1 could not be opened ("),
        "{sentence}"
    );
}

#[test]
fn unusable_drivers_and_gpus_are_refused() {
    let Some(stub) = Stub::build() else { return };
    let open = |variables: &[(&str, &str)]| stub.answer("child_open", variables);
    assert_eq!(open(&[]), "ok (\"cuda:0 (Stub GPU)\", \"9.0\")");
    let path = stub.path.display();
    assert_eq!(
        open(&[("STUB_VERSION", "11030")]),
        format!(
            "the CUDA driver {path} supports CUDA 11.3, but 11.4 or newer is needed: update NVIDIA's driver"
        )
    );
    assert_eq!(
        open(&[("STUB_DEVICES", "0")]),
        format!("the CUDA driver {path} (CUDA 13.0) sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES")
    );
    assert_eq!(
        open(&[("STUB_CAPABILITY", "75")]),
        "cuda:0 (Stub GPU) has compute capability 7.5, but 8.0 (Ampere) or newer is needed: use another GPU or \
         --device cpu"
    );
    assert_eq!(
        open(&[("ORDINAL", "2"), ("STUB_DEVICES", "2")]),
        "there is no cuda:2: the driver offers 2 GPU(s), numbered from 0"
    );
}

#[test]
fn out_of_memory_says_how_much_was_asked_and_free() {
    let Some(stub) = Stub::build() else { return };
    assert_eq!(
        stub.answer("child_allocate", &[]),
        "cuda:0 (Stub GPU) is out of memory: 768.00 MiB were asked for, 512.00 MiB of 1.00 GiB are free"
    );
}

#[test]
fn ptx_that_does_not_fit_is_refused() {
    let Some(stub) = Stub::build() else { return };
    let load = |ptx: &str, variables: &[(&str, &str)]| {
        stub.answer("child_load", &[&[("PTX", ptx)], variables].concat())
    };
    assert!(load(PTX, &[]).starts_with("ok KernelAttributes { registers: 32, static_shared_bytes: 448,"));
    assert_eq!(
        load(&PTX.replace("{}", "{ SYNTAX ERROR }"), &[]),
        "the driver of cuda:0 (Stub GPU) rejected the PTX: ptxas application ptx input, line 5; fatal   : Parsing \
         error near 'SYNTAX' (CUDA_ERROR_STUB)"
    );
    assert_eq!(
        load(&PTX.replace("7.4", "8.0"), &[("STUB_VERSION", "11080")]),
        "the PTX is version 8.0, but the driver of cuda:0 (Stub GPU) knows up to 7.8: update NVIDIA's driver to \
         CUDA 12.0 or newer"
    );
    assert_eq!(
        load(&PTX.replace("sm_80", "sm_90a"), &[("STUB_CAPABILITY", "100")]),
        "the PTX is for sm_90a, which cuda:0 (Stub GPU) (compute capability 10.0) cannot run: load the PTX of its \
         own architecture"
    );
    assert_eq!(
        load(&PTX.replace("store", "other"), &[]),
        "the PTX loaded on cuda:0 (Stub GPU) has no kernel store: it does not match this program"
    );
    assert_eq!(
        load("not PTX", &[]),
        "cuda:0 (Stub GPU) was given PTX without a readable .version directive: is the file whole?"
    );
}

#[test]
fn failing_calls_are_named_with_device_and_reason() {
    let Some(stub) = Stub::build() else { return };
    let fail = |result: &str| {
        stub.answer("child_synchronize", &[("STUB_FAIL", &format!("cuStreamSynchronize={result}"))])
    };
    assert_eq!(
        fail("912"),
        "cuStreamSynchronize on cuda:0 (Stub GPU) failed: something new (CUDA_ERROR_FROM_THE_FUTURE, code 912)"
    );
    assert_eq!(
        fail("700"),
        "cuStreamSynchronize on cuda:0 (Stub GPU) failed: an illegal memory access was encountered; an earlier kernel \
         on this device did it, and the process must be restarted (CUDA_ERROR_STUB, code 700)"
    );
}

#[test]
fn tensor_maps_are_asked_of_the_driver_and_an_old_one_is_named() {
    let Some(stub) = Stub::build() else { return };
    assert_eq!(stub.answer("child_maps", &[]), "ok ()");
    let fail = |result: &str| {
        stub.answer("child_maps", &[("STUB_FAIL", &format!("cuTensorMapEncodeTiled={result}"))])
    };
    assert_eq!(
        fail("302"),
        "cuTensorMapEncodeTiled on cuda:0 (Stub GPU) failed: tensor maps need a driver of CUDA 12.0, this is CUDA 13.0 \
         (CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND, code 302)"
    );
    assert!(fail("1").starts_with("cuTensorMapEncodeTiled on cuda:0 (Stub GPU) failed: "));
}

#[test]
fn memory_launches_captures_and_events_work_from_any_thread() {
    let Some(stub) = Stub::build() else { return };
    assert_eq!(stub.answer("child_work", &[]), "done");
}

#[test]
fn peers_without_a_path_are_refused() {
    let Some(stub) = Stub::build() else { return };
    assert_eq!(
        stub.answer("child_peers", &[("STUB_DEVICES", "3")]),
        "cuda:0 (Stub GPU) cannot access the memory of cuda:2 (Stub GPU): there is no peer path between them"
    );
}
