//! One kernel on a cust stream.
//!
//! Shows: a typed launch in a program built on cust (the Rust-CUDA stack); cuda-lazy resolves the driver at run
//! time, so the program builds without CUDA and starts without a driver.
//! Needs: an NVIDIA GPU of compute capability 8.0 or newer and its driver of CUDA 11.4 or newer (12.4 on Hopper).
//! Run:   cargo run --release --example cust_stream --no-default-features --features cuda

use std::error::Error;
use std::ffi::c_void;

use cuda_lazy::CudaVersion;
use cust::context::{Context, CurrentContext};
use cust::device::{Device, DeviceAttribute};
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use fewsync::kernels::{Addr, Argmax, Launch, Ptx, Rows};

fn main() {
    if let Err(reason) = run() {
        eprintln!("cust_stream: {reason}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    cuda_lazy::driver(CudaVersion::new(11, 4))?;
    let device = Device::get_device(0)?;
    let context = Context::new(device)?;
    CurrentContext::set_current(&context)?;
    let capability = |attribute| device.get_attribute(attribute).map(|value| value as u32);
    let (major, minor) = (
        capability(DeviceAttribute::ComputeCapabilityMajor)?,
        capability(DeviceAttribute::ComputeCapabilityMinor)?,
    );
    let ptx = Ptx::for_capability(major, minor)
        .ok_or_else(|| format!("needs compute capability 8.0 or newer, this GPU has {major}.{minor}"))?;
    let module = Module::from_ptx(ptx.text, &[])?;
    let stream = Stream::new(StreamFlags::DEFAULT, None)?;

    // Two rows of logits; the largest are at 70 000 and at 3.
    let len = 128_256;
    let mut logits = vec![0.0_f32; 2 * len];
    (logits[70_000], logits[len + 3]) = (1.0, 2.0);
    let logits = DeviceBuffer::from_slice(&logits)?;
    let indices = DeviceBuffer::from_slice(&[u32::MAX; 2])?;
    let (best, counters) = (DeviceBuffer::from_slice(&[0_u64; 2])?, DeviceBuffer::from_slice(&[0_u32; 2])?);

    let launch = Argmax {
        logits: Rows::new(Addr::new(logits.as_device_ptr().as_raw()), len as u32),
        len: len as u32,
        n_rows: 2,
        indices: Addr::new(indices.as_device_ptr().as_raw()),
        values: Addr::NULL,
        best: Addr::new(best.as_device_ptr().as_raw()),
        counters: Addr::new(counters.as_device_ptr().as_raw()),
    }
    .launch();
    // SAFETY: the buffers have the sizes that the kernel's arguments ask for and live until the stream is
    // synchronised; scratch is zero.
    unsafe { enqueue(&launch, &module, &stream)? };
    stream.synchronize()?;

    let mut found = [0; 2];
    indices.copy_to(&mut found)?;
    if found != [70_000, 3] {
        return Err(format!("the largest logits are at 70000 and 3, not at {found:?}").into());
    }
    println!("{launch:?} on a cust stream: right");
    Ok(())
}

/// A launch of fewsync on any cust stream: all but those in clusters (fused all-reduces, products over `wgmma`), which
/// take `cuLaunchKernelEx`, and those with more than 48 KiB of shared memory, which the function has to be told of.
///
/// Tensor maps stay unencoded ([`Launch::with_tensor_maps`]), so that products for prompts copy by their threads.
///
/// # Safety
/// As the kernel's documentation says of its arguments.
unsafe fn enqueue(launch: &Launch, module: &Module, stream: &Stream) -> Result<(), Box<dyn Error>> {
    if launch.cluster > 1 || launch.shared_bytes > 48 << 10 {
        return Err(
            format!("{launch:?} takes a cluster or more shared memory than cust launches with").into()
        );
    }
    let function = module.get_function(launch.entry)?;
    let [x, y, z] = launch.grid;
    let params = [launch.params().as_ptr().cast_mut().cast::<c_void>()];
    // SAFETY: one parameter of the size that the entry point declares; the rest is the caller's promise.
    unsafe { stream.launch(&function, (x, y, z), launch.threads, launch.shared_bytes, &params)? };
    Ok(())
}
