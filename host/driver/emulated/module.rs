//! PTX modules and kernels: what the text says of them, and what a compiler would.

use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use half::bf16;
use ptx_emulator::{Kernel, LoadError, Module, RunError, Swizzle, TensorMapError};

use super::EmulatedGpu;
use super::state::RESIDENT_BLOCKS;
use super::work::{KernelLaunch, Work};
use crate::driver::{
    Gpu, GpuError, GpuModules, KernelAttributes, KernelId, LaunchConfig, ModuleId, Properties, Result,
    StreamId,
};
use crate::kernels::TensorMap;

/// Registers that ptxas gives one thread at most.
const MAX_REGISTERS: u32 = 255;
/// Registers are handed out to warps in units of this many per thread.
const REGISTER_UNIT: u32 = 8;
/// Dynamic shared memory that needs no opting in.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;
/// What the system takes of each block's shared memory.
const RESERVED_SHARED_BYTES: u32 = 1 << 10;

/// A kernel of a loaded module.
#[derive(Debug)]
pub(super) struct LoadedKernel {
    /// Of the machine.
    pub(super) id: ptx_emulator::KernelId,
    name: String,
    /// The only block size that may be launched, if there is one.
    required_threads: Option<[u32; 3]>,
    param_bytes: u32,
    static_shared_bytes: u32,
    local_bytes: u32,
    registers: u32,
    max_threads: u32,
}

impl LoadedKernel {
    fn new(id: ptx_emulator::KernelId, kernel: &Kernel, device: &Properties) -> Self {
        let required_threads = kernel.required_threads();
        let bounds = required_threads.or(kernel.max_threads());
        let product = |bounds: [u32; 3]| bounds.into_iter().fold(1, u32::saturating_mul);
        let max_threads = bounds.map_or(device.max_threads_per_block, product);
        Self {
            id,
            name: kernel.name().to_owned(),
            required_threads,
            param_bytes: kernel.param_bytes(),
            static_shared_bytes: kernel.static_shared_bytes(),
            local_bytes: kernel.local_bytes(),
            registers: registers(max_threads, kernel.min_blocks().unwrap_or(1), device),
            max_threads,
        }
    }

    pub(super) fn param_bytes(&self) -> usize {
        self.param_bytes as usize
    }

    /// Why it cannot be launched like this, beyond what every device checks.
    fn refusal(&self, config: &LaunchConfig, parameters: &[u8], device: &Properties) -> Option<String> {
        let block = [config.block.x, config.block.y, config.block.z];
        let block_threads = u32::try_from(config.block.count()).unwrap_or(u32::MAX);
        let on_each = self.resident_blocks(block_threads, config.dynamic_shared_bytes, device);
        let resident = u64::from(device.multiprocessors) * u64::from(on_each);
        match self.required_threads {
            _ if config.cluster.is_some_and(|cluster| cluster.count() > resident) => Some(format!(
                "a cluster of {} blocks does not fit {resident} resident blocks",
                config.cluster?
            )),
            _ if parameters.len() < self.param_bytes() => {
                let (found, declared) = (parameters.len(), self.param_bytes);
                Some(format!("{found} bytes of parameters were given, the kernel has {declared}"))
            }
            Some([x, y, z]) if block != [x, y, z] => {
                Some(format!("it takes blocks of {x}×{y}×{z} threads only, not {}", config.block))
            }
            _ => None,
        }
    }

    fn attributes(&self) -> KernelAttributes {
        KernelAttributes {
            registers: self.registers,
            static_shared_bytes: self.static_shared_bytes,
            local_bytes: self.local_bytes,
            max_threads_per_block: self.max_threads,
            dynamic_shared_bytes: PLAIN_SHARED_BYTES,
            parameters_at: 0,
        }
    }

    /// Blocks on one multiprocessor, by threads, registers and shared memory.
    fn resident_blocks(&self, block_threads: u32, dynamic_shared_bytes: u32, device: &Properties) -> u32 {
        let threads = block_threads.max(1).div_ceil(32).saturating_mul(32);
        let shared = self
            .static_shared_bytes
            .saturating_add(dynamic_shared_bytes)
            .saturating_add(RESERVED_SHARED_BYTES);
        let by_registers = device.registers_per_multiprocessor / threads.saturating_mul(self.registers);
        let by_threads = device.max_threads_per_multiprocessor / threads;
        let by_shared = device.shared_bytes_per_multiprocessor / shared;
        by_registers.min(by_threads).min(by_shared).min(RESIDENT_BLOCKS)
    }
}

/// PTX names virtual registers without end, and nothing here allocates real ones. In their place: what a compiler
/// could use at most while `min_blocks` blocks of `max_threads` still fit a multiprocessor.
fn registers(max_threads: u32, min_blocks: u32, device: &Properties) -> u32 {
    let threads = max_threads.max(1).div_ceil(32).saturating_mul(32).saturating_mul(min_blocks.max(1));
    let most = device.registers_per_multiprocessor / threads;
    (most / REGISTER_UNIT * REGISTER_UNIT).clamp(REGISTER_UNIT, MAX_REGISTERS)
}

/// The module of a text. Machines share it: reading a file takes longer than many kernels run.
fn parse(text: &str) -> std::result::Result<Arc<Module>, LoadError> {
    /// By text, as long as a machine has them loaded.
    static PARSED: Mutex<Vec<(Box<str>, Weak<Module>)>> = Mutex::new(Vec::new());
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    parsed.retain(|(_, module)| module.strong_count() > 0);
    let found = parsed.iter().find(|(other, _)| **other == *text);
    if let Some(module) = found.and_then(|(_, module)| module.upgrade()) {
        return Ok(module);
    }
    let module = Arc::new(Module::new("module.ptx", text)?);
    parsed.push((text.into(), Arc::downgrade(&module)));
    Ok(module)
}

impl GpuModules for EmulatedGpu {
    fn load_module(&self, ptx: &CStr) -> Result<ModuleId> {
        let module = parse(&ptx.to_string_lossy()).map_err(|e| self.rejected(&e))?;
        self.with(|state| {
            let loaded = state.load(self.properties.ordinal, module);
            loaded.map(ModuleId).map_err(|error| match error {
                RunError::External { .. } => self.unusable(error.to_string(), "CUDA_ERROR_INVALID_PTX"),
                _ => self.call_error("load_module", 2, "CUDA_ERROR_OUT_OF_MEMORY", error.to_string()),
            })
        })
    }

    unsafe fn unload_module(&self, module: ModuleId) -> Result<()> {
        self.with(|state| {
            // Work that is queued keeps what it needs.
            state.kernels.retain(|_, kernel| kernel.1 != module.0);
            state.modules.remove(&module.0);
            Ok(())
        })
    }

    unsafe fn kernel(&self, module: ModuleId, entry: &CStr) -> Result<KernelId> {
        let entry = entry.to_string_lossy();
        self.with(|state| {
            let (id, found) = state.find_kernel(module.0, &entry).ok_or_else(|| GpuError::NoSuchKernel {
                device: self.label(),
                entry: entry.clone().into_owned(),
            })?;
            let kernel = Arc::new(LoadedKernel::new(id, found, &self.properties));
            let id = state.new_id();
            state.kernels.insert(id, (kernel, module.0));
            Ok(KernelId(id))
        })
    }

    unsafe fn kernel_attributes(&self, kernel: KernelId) -> Result<KernelAttributes> {
        self.with(|state| Ok(state.kernel(kernel.0).attributes()))
    }

    unsafe fn set_dynamic_shared(&self, _kernel: KernelId, _bytes: u32) -> Result<()> {
        // A launch's configuration has been checked against the device, and nothing else limits it here.
        Ok(())
    }

    unsafe fn resident_blocks(
        &self,
        kernel: KernelId,
        block_threads: u32,
        dynamic_shared_bytes: u32,
    ) -> Result<u32> {
        self.with(|state| {
            let kernel = state.kernel(kernel.0);
            Ok(kernel.resident_blocks(block_threads, dynamic_shared_bytes, &self.properties))
        })
    }

    fn encode_tensor_map(&self, map: &TensorMap) -> Result<[u8; TensorMap::BYTES]> {
        let encoded = ptx_emulator::TensorMap {
            address: map.address().raw(),
            element_bytes: size_of::<bf16>() as u32,
            dims: map.dims().to_vec(),
            strides_bytes: map.strides_bytes().to_vec(),
            box_dims: map.box_dims().to_vec(),
            swizzle: Swizzle::B128,
        };
        let invalid = |error: TensorMapError| {
            self.call_error("encode_tensor_map", 1, "CUDA_ERROR_INVALID_VALUE", error.to_string())
        };
        encoded.encode().map_err(invalid)
    }

    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: KernelId,
        config: &LaunchConfig,
        parameters: &[u8],
    ) -> Result<()> {
        self.with(|state| {
            let kernel = state.kernel(kernel.0);
            if let Some(reason) = kernel.refusal(config, parameters, &self.properties) {
                return Err(self.invalid_launch(&kernel.name, reason));
            }
            let launch = KernelLaunch { kernel, config: *config, parameters: parameters.into() };
            state.enqueue(stream.0, Work::Launch(launch));
            Ok(())
        })
    }
}

impl EmulatedGpu {
    fn rejected(&self, error: &LoadError) -> GpuError {
        let name = match error {
            LoadError::Syntax(_) => "CUDA_ERROR_INVALID_PTX",
            LoadError::Refused { .. } => "CUDA_ERROR_NOT_SUPPORTED",
        };
        self.unusable(error.to_string(), name)
    }

    fn unusable(&self, log: String, name: &str) -> GpuError {
        GpuError::PtxRejected { device: self.label(), log, name: name.to_owned() }
    }
}
