//! PTX modules, kernels and launches.

use std::ffi::{CStr, c_void};

use cuda_lazy::newer::{
    CUlaunchAttribute, CUlaunchConfig, CUtensorMap, cuFuncGetParamInfo, cuLaunchKernelEx,
    cuTensorMapEncodeTiled, tensor_map,
};
use cust::sys::{self, CUfunction_attribute, CUjit_option, CUresult};

use super::{CudaGpu, call_error, handle, id};
use crate::driver::{
    Dim3, GpuError, GpuModules, KernelAttributes, KernelId, LaunchConfig, ModuleId, Result, StreamId,
};
use crate::kernels::TensorMap;

/// What L2 fetches for a box's rows of 128 bytes: the next box's beside them.
const L2_PROMOTION: u32 = tensor_map::L2_PROMOTION_256B;
const JIT_LOG_BYTES: usize = 8192;
/// `CU_LAUNCH_PARAM_BUFFER_POINTER` and `_SIZE`: pointers in cuda.h, which the bindings leave out.
const PARAM_BUFFER_POINTER: u64 = 1;
const PARAM_BUFFER_SIZE: u64 = 2;

impl GpuModules for CudaGpu {
    fn load_module(&self, ptx: &CStr) -> Result<ModuleId> {
        self.enter()?;
        let mut log = vec![0_u8; JIT_LOG_BYTES];
        let mut options =
            [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The size travels in the pointer itself.
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), handle(JIT_LOG_BYTES as u64)];
        let mut module = std::ptr::null_mut();
        // SAFETY: the PTX ends in NUL; two options with their values; the log outlives the call.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                ptx.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match result {
            CUresult::CUDA_SUCCESS => Ok(ModuleId(id(module))),
            result => Err(self.load_error(result, &log)),
        }
    }

    unsafe fn unload_module(&self, module: ModuleId) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller owns the module and has no kernel of it any more.
        self.check("cuModuleUnload", unsafe { sys::cuModuleUnload(handle(module.0)) })
    }

    unsafe fn kernel(&self, module: ModuleId, entry: &CStr) -> Result<KernelId> {
        self.enter()?;
        let mut function = std::ptr::null_mut();
        // SAFETY: writes one handle; the module is alive.
        match unsafe { sys::cuModuleGetFunction(&mut function, handle(module.0), entry.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_FOUND => Err(GpuError::NoSuchKernel {
                device: self.properties.label.clone(),
                entry: entry.to_string_lossy().into_owned(),
            }),
            result => self.check("cuModuleGetFunction", result).map(|()| KernelId(id(function))),
        }
    }

    unsafe fn kernel_attributes(&self, kernel: KernelId) -> Result<KernelAttributes> {
        use CUfunction_attribute::*;
        self.enter()?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: writes one int; the kernel is alive.
            let result = unsafe { sys::cuFuncGetAttribute(&mut value, attribute, handle(kernel.0)) };
            self.check("cuFuncGetAttribute", result).map(|()| value.unsigned_abs())
        };
        Ok(KernelAttributes {
            registers: attribute(CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            static_shared_bytes: attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local_bytes: attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            max_threads_per_block: attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            dynamic_shared_bytes: attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?,
            parameters_at: self.parameters_at(kernel)?,
        })
    }

    unsafe fn set_dynamic_shared(&self, kernel: KernelId, bytes: u32) -> Result<()> {
        self.enter()?;
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the kernel is alive.
        let result = unsafe { sys::cuFuncSetAttribute(handle(kernel.0), attribute, bytes as i32) };
        self.check("cuFuncSetAttribute", result)
    }

    unsafe fn resident_blocks(
        &self,
        kernel: KernelId,
        block_threads: u32,
        dynamic_shared_bytes: u32,
    ) -> Result<u32> {
        self.enter()?;
        let mut blocks = 0;
        // SAFETY: writes one int; the kernel is alive.
        let result = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                handle(kernel.0),
                block_threads as i32,
                dynamic_shared_bytes as usize,
            )
        };
        self.check("cuOccupancyMaxActiveBlocksPerMultiprocessor", result)?;
        Ok(blocks.unsigned_abs())
    }

    fn encode_tensor_map(&self, map: &TensorMap) -> Result<[u8; TensorMap::BYTES]> {
        self.enter()?;
        let mut encoded = CUtensorMap::zeroed();
        let (dims, strides, boxes) = (map.dims(), map.strides_bytes(), map.box_dims());
        let element_strides = vec![1; dims.len()];
        // SAFETY: the arrays have as many elements as the rank asks for; the address is only noted.
        let result = unsafe {
            cuTensorMapEncodeTiled(
                &mut encoded,
                tensor_map::BFLOAT16,
                dims.len() as u32,
                handle(map.address().raw()),
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                element_strides.as_ptr(),
                tensor_map::INTERLEAVE_NONE,
                tensor_map::SWIZZLE_128B,
                L2_PROMOTION,
                tensor_map::OUT_OF_BOUNDS_ZERO,
            )
        };
        self.check_newer("cuTensorMapEncodeTiled", result, "tensor maps need a driver of CUDA 12.0")?;
        Ok(encoded.to_bytes())
    }

    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: KernelId,
        config: &LaunchConfig,
        parameters: &[u8],
    ) -> Result<()> {
        self.enter()?;
        let mut bytes = parameters.len();
        // The driver copies the block during the call and does not write to it.
        let mut block: [*mut c_void; 5] = [
            handle(PARAM_BUFFER_POINTER),
            parameters.as_ptr().cast_mut().cast(),
            handle(PARAM_BUFFER_SIZE),
            (&raw mut bytes).cast(),
            std::ptr::null_mut(),
        ];
        let extra = if parameters.is_empty() { std::ptr::null_mut() } else { block.as_mut_ptr() };
        if config.cluster.is_some() || config.cooperative || config.programmatic {
            // SAFETY: the caller's promise, and `extra` describes the parameters.
            return unsafe { self.launch_with_attributes(stream, kernel, config, extra) };
        }
        let (Dim3 { x, y, z }, threads) = (config.grid, config.block);
        // SAFETY: stream and kernel are alive, `extra` describes the parameters, the rest is the caller's promise.
        let result = unsafe {
            sys::cuLaunchKernel(
                handle(kernel.0),
                x,
                y,
                z,
                threads.x,
                threads.y,
                threads.z,
                config.dynamic_shared_bytes,
                handle(stream.0),
                std::ptr::null_mut(),
                extra,
            )
        };
        self.check("cuLaunchKernel", result)
    }
}

impl CudaGpu {
    /// Where the kernel's first parameter lies in the block of `CU_LAUNCH_PARAM_BUFFER_POINTER`: 0 without parameters.
    /// Drivers before CUDA 12.4 cannot say; of fewsync's files they do not take the one whose parameters are aligned to more
    /// than 16 bytes.
    fn parameters_at(&self, kernel: KernelId) -> Result<u32> {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: writes two sizes; the kernel is alive.
        match unsafe { cuFuncGetParamInfo(handle(kernel.0), 0, &mut offset, &mut bytes) } {
            CUresult::CUDA_ERROR_INVALID_VALUE | CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND => Ok(0),
            result => self.check("cuFuncGetParamInfo", result).map(|()| offset as u32),
        }
    }

    /// # Safety
    /// As for `launch`; `extra` describes the parameters as `cuLaunchKernel` takes them.
    unsafe fn launch_with_attributes(
        &self,
        stream: StreamId,
        kernel: KernelId,
        config: &LaunchConfig,
        extra: *mut *mut c_void,
    ) -> Result<()> {
        let cluster = config.cluster.map(|cluster| CUlaunchAttribute::cluster(dimensions(cluster)));
        let cooperative = config.cooperative.then(CUlaunchAttribute::cooperative);
        let programmatic = config.programmatic.then(CUlaunchAttribute::programmatic_stream_serialization);
        let mut attributes: Vec<_> = [cluster, cooperative, programmatic].into_iter().flatten().collect();
        let config = CUlaunchConfig {
            grid: dimensions(config.grid),
            block: dimensions(config.block),
            shared_memory_bytes: config.dynamic_shared_bytes,
            stream: handle(stream.0),
            attributes: attributes.as_mut_ptr(),
            attribute_count: attributes.len() as u32,
        };
        // SAFETY: stream and kernel are alive, the attributes outlive the call, the rest is the caller's promise.
        let result = unsafe { cuLaunchKernelEx(&config, handle(kernel.0), std::ptr::null_mut(), extra) };
        self.check_newer("cuLaunchKernelEx", result, "launch attributes need a driver of CUDA 11.8")
    }

    /// The result of a call that older drivers do not have, and what it takes.
    fn check_newer(&self, call: &'static str, result: CUresult, needs: &str) -> Result<()> {
        match result {
            CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND => Err(GpuError::Call {
                call,
                device: self.properties.label.clone(),
                code: CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND as u32,
                name: "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND".into(),
                reason: format!("{needs}, this is {}", self.properties.driver),
            }),
            result => self.check(call, result),
        }
    }

    /// Rejected PTX with the compiler's first line, or whatever else went wrong.
    fn load_error(&self, result: CUresult, log: &[u8]) -> GpuError {
        let device = self.properties.label.clone();
        let error = call_error("cuModuleLoadDataEx", &device, cuda_lazy::code(result));
        let rejected = matches!(
            result,
            CUresult::CUDA_ERROR_INVALID_PTX
                | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                | CUresult::CUDA_ERROR_INVALID_IMAGE
                | CUresult::CUDA_ERROR_INVALID_SOURCE
                | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        );
        match error {
            GpuError::Call { name, reason, .. } if rejected => {
                GpuError::PtxRejected { device, log: first_line(log).unwrap_or(reason), name }
            }
            other => other,
        }
    }
}

const fn dimensions(Dim3 { x, y, z }: Dim3) -> [u32; 3] {
    [x, y, z]
}

fn first_line(log: &[u8]) -> Option<String> {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::first_line;

    #[test]
    fn the_first_line_of_a_log_ends_at_its_end_or_at_nul() {
        assert_eq!(first_line(b"\n  ptxas fatal : x\nmore\0junk").as_deref(), Some("ptxas fatal : x"));
        assert_eq!(first_line(b"whole buffer").as_deref(), Some("whole buffer"));
        assert_eq!(first_line(b"\0junk"), None);
    }
}
