//! One kernel on a stream of the raw driver API, without any CUDA crate.
//!
//! Shows: a typed launch handed to `cuLaunchKernel` by an engine that has its own driver bindings. What launches in
//! clusters, with tensor maps or with more than 48 KiB of shared memory need beside is said at
//! `fewsync::kernels::Launch`.
//! Needs: an NVIDIA GPU of compute capability 8.0 or newer and its driver; nothing to build.
//! Run:   cargo run --release --example raw_driver --no-default-features

use std::error::Error;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;

use fewsync::kernels::{Addr, Ptx, RmsNorm};
use half::bf16;
use libloading::Library;

const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;
const STREAM_NON_BLOCKING: c_uint = 1;

type Handle = *mut c_void;

/// Calls a function of the driver by name and turns its result into a [`Result`].
macro_rules! cu {
    ($library:expr, $name:ident($($arg:expr => $ty:ty),* $(,)?)) => {{
        // SAFETY: the types are those of cuda.h; pointers are to live variables and handles of this program.
        let result = unsafe {
            let function = $library.get::<unsafe extern "C" fn($($ty),*) -> c_int>(stringify!($name))?;
            function($($arg),*)
        };
        if result == 0 { Ok(()) } else { Err(format!(concat!(stringify!($name), " failed with code {}"), result)) }
    }};
}

fn main() {
    if let Err(reason) = run() {
        eprintln!("raw_driver: {reason}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    // SAFETY: the driver's library has no constructors that depend on this program.
    let cuda = unsafe { Library::new("libcuda.so.1") }
        .map_err(|_| "needs an NVIDIA GPU and its driver: libcuda.so.1 cannot be opened")?;
    cu!(cuda, cuInit(0 => c_uint))?;
    let mut device = 0;
    cu!(cuda, cuDeviceGet(&mut device => &mut c_int, 0 => c_int))?;
    let (mut major, mut minor) = (0, 0);
    let attribute = |value: &mut c_int, which| {
        cu!(cuda, cuDeviceGetAttribute(value => &mut c_int, which => c_int, device => c_int))
            .map_err(Box::<dyn Error>::from)
    };
    attribute(&mut major, COMPUTE_CAPABILITY_MAJOR)?;
    attribute(&mut minor, COMPUTE_CAPABILITY_MINOR)?;
    let ptx = Ptx::for_capability(major as u32, minor as u32)
        .ok_or_else(|| format!("needs compute capability 8.0 or newer, this GPU has {major}.{minor}"))?;

    let (mut context, mut stream, mut module, mut function): (Handle, Handle, Handle, Handle) =
        (null_mut(), null_mut(), null_mut(), null_mut());
    cu!(cuda, cuDevicePrimaryCtxRetain(&mut context => &mut Handle, device => c_int))?;
    cu!(cuda, cuCtxSetCurrent(context => Handle))?;
    cu!(cuda, cuStreamCreate(&mut stream => &mut Handle, STREAM_NON_BLOCKING => c_uint))?;
    let text = CString::new(ptx.text)?;
    cu!(cuda, cuModuleLoadData(&mut module => &mut Handle, text.as_ptr() => *const c_char))?;

    // Two rows of 64: every value of a row is the same, so its norm is the weight, up to the sign.
    let (n_tokens, hidden) = (2, 64);
    let x: Vec<bf16> =
        (0..n_tokens * hidden).map(|i| bf16::from_f32(if i < hidden { 3.0 } else { -5.0 })).collect();
    let weight: Vec<bf16> = (0..hidden).map(|i| bf16::from_f32(i as f32)).collect();
    let upload = |values: &[bf16]| -> Result<u64, Box<dyn Error>> {
        let (mut address, bytes) = (0, size_of_val(values));
        cu!(cuda, cuMemAlloc_v2(&mut address => &mut u64, bytes => usize))?;
        cu!(cuda, cuMemcpyHtoD_v2(address => u64, values.as_ptr().cast() => *const c_void, bytes => usize))?;
        Ok(address)
    };
    let (x, weight) = (upload(&x)?, upload(&weight)?);

    // The launch itself: plain data, whatever drives the GPU.
    let launch = RmsNorm {
        x: Addr::new(x),
        weight: Addr::new(weight),
        out: Addr::new(x),
        n_tokens: n_tokens as u32,
        hidden: hidden as u32,
        eps: 1e-5,
    }
    .launch();
    let entry = CString::new(launch.entry)?;
    cu!(cuda, cuModuleGetFunction(&mut function => &mut Handle, module => Handle, entry.as_ptr() => *const c_char))?;
    let mut params = [launch.params().as_ptr().cast_mut().cast::<c_void>()];
    cu!(cuda, cuLaunchKernel(
        function => Handle,
        launch.grid[0] => c_uint,
        launch.grid[1] => c_uint,
        launch.grid[2] => c_uint,
        launch.threads => c_uint,
        1 => c_uint,
        1 => c_uint,
        launch.shared_bytes => c_uint,
        stream => Handle,
        params.as_mut_ptr() => *mut *mut c_void,
        null_mut() => *mut *mut c_void,
    ))?;
    cu!(cuda, cuStreamSynchronize(stream => Handle))?;

    let mut out = vec![bf16::ZERO; n_tokens * hidden];
    let bytes = size_of_val(out.as_slice());
    cu!(cuda, cuMemcpyDtoH_v2(out.as_mut_ptr().cast() => *mut c_void, x => u64, bytes => usize))?;
    let wrong = (0..n_tokens * hidden).find(|&i| {
        let expected = (i % hidden) as f32 * if i < hidden { 1.0 } else { -1.0 };
        (out[i].to_f32() - expected).abs() > 0.01 * expected.abs()
    });
    if let Some(i) = wrong {
        return Err(format!("element {i} is {}", out[i]).into());
    }
    println!("{launch:?} on the raw driver's stream: right");
    Ok(())
}
