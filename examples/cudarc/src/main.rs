//! One kernel on a cudarc stream; see README.md.

use std::error::Error;
use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute_enum;
use cudarc::driver::{
    CudaContext, CudaModule, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg,
};
use fewsync::kernels::{AddRmsNorm, Addr, Launch, Ptx};
use half::bf16;

fn main() {
    if let Err(reason) = run() {
        eprintln!("cudarc: {reason}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    // SAFETY: only looks for the driver's library.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("needs an NVIDIA GPU and its driver (libcuda.so was not found)".into());
    }
    let context = CudaContext::new(0)?;
    let (major, minor) = context.compute_capability()?;
    let ptx = Ptx::for_capability(major as u32, minor as u32)
        .ok_or_else(|| format!("needs compute capability 8.0 or newer, this GPU has {major}.{minor}"))?;
    let module = context.load_module(ptx.text.into())?;
    let stream = context.new_stream()?;

    // Attention output 1 and residual 2 everywhere: the new residual is 3, its norm the weight.
    let (n_tokens, hidden) = (4, 64);
    let x = stream.clone_htod(&vec![bf16::ONE; n_tokens * hidden])?;
    let mut residual = stream.clone_htod(&vec![bf16::from_f32(2.0); n_tokens * hidden])?;
    let weight: Vec<bf16> = (0..hidden).map(|i| bf16::from_f32(i as f32)).collect();
    let weight_on_device = stream.clone_htod(&weight)?;
    let mut out = stream.clone_htod(&vec![bf16::ZERO; n_tokens * hidden])?;

    let launch = {
        // The guards order this stream's work with that of other streams on the same buffers.
        let (x, _x) = x.device_ptr(&stream);
        let (weight, _weight) = weight_on_device.device_ptr(&stream);
        let (residual, _residual) = residual.device_ptr_mut(&stream);
        let (out, _out) = out.device_ptr_mut(&stream);
        let launch = AddRmsNorm {
            x: Addr::new(x),
            residual: Addr::new(residual),
            sum: Addr::new(residual),
            weight: Addr::new(weight),
            out: Addr::new(out),
            n_tokens: n_tokens as u32,
            hidden: hidden as u32,
            eps: 1e-5,
        }
        .launch();
        // SAFETY: all four buffers have the sizes that the arguments say and are borrowed until here; later
        // work on them is ordered behind the launch.
        unsafe { enqueue(&launch, &module, &stream)? };
        launch
    };

    let residual = stream.clone_dtoh(&residual)?;
    let out = stream.clone_dtoh(&out)?;
    if residual.iter().any(|&value| value != bf16::from_f32(3.0)) {
        return Err("the residual is not 3 everywhere".into());
    }
    let close = |(&seen, &expected): (&bf16, &bf16)| {
        (seen.to_f32() - expected.to_f32()).abs() <= 0.01 * expected.to_f32()
    };
    if !out.chunks(hidden).all(|row| row.iter().zip(&weight).all(close)) {
        return Err("the norm is not the weight".into());
    }
    println!("{launch:?} on a cudarc stream: right");
    Ok(())
}

/// A parameter struct as cudarc takes it: as long as any kernel's.
#[repr(C, align(8))]
struct Params([u8; 4096]);

// SAFETY: plain bytes; the driver reads as many as the entry point declares.
unsafe impl DeviceRepr for Params {}

/// A launch of fewsync on any cudarc stream: all but those in clusters (fused all-reduces, products over `wgmma`), which
/// take `cuLaunchKernelEx`.
///
/// Tensor maps stay unencoded ([`Launch::with_tensor_maps`]), so that products for prompts copy by their threads.
///
/// # Safety
/// As the kernel's documentation says of its arguments.
unsafe fn enqueue(
    launch: &Launch,
    module: &Arc<CudaModule>,
    stream: &Arc<CudaStream>,
) -> Result<(), Box<dyn Error>> {
    if launch.cluster > 1 {
        return Err(format!("{launch:?} takes a cluster, which cudarc does not launch").into());
    }
    let function = module.load_function(launch.entry)?;
    if launch.shared_bytes > 48 << 10 {
        let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, launch.shared_bytes as i32)?;
    }
    let [x, y, z] = launch.grid;
    let config = LaunchConfig {
        grid_dim: (x, y, z),
        block_dim: (launch.threads, 1, 1),
        shared_mem_bytes: launch.shared_bytes,
    };
    let mut params = Params([0; 4096]);
    params.0[..launch.params().len()].copy_from_slice(launch.params());
    // SAFETY: one parameter of the size that the entry point declares; the rest is the caller's promise.
    unsafe { stream.launch_builder(&function).arg(&params).launch(config)? };
    Ok(())
}
