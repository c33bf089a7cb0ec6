//! PTX modules and kernels: what the text says of them, and what a compiler would.

use std::ffi::CStr;
use std::sync::Arc;

use ptx_emulator::{LoadError, Module};

use super::EmulatedGpu;
use super::work::{KernelLaunch, Work};
use crate::driver::{
    GpuError, GpuModules, KernelAttributes, KernelId, LaunchConfig, ModuleId, Properties, Result, StreamId,
};

/// Registers that ptxas gives one thread at most.
const MAX_REGISTERS: u32 = 255;
/// Registers are handed out to warps in units of this many per thread.
const REGISTER_UNIT: u32 = 8;
/// Dynamic shared memory that needs no opting in.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;
/// What the system takes of each block's shared memory.
const RESERVED_SHARED_BYTES: u32 = 1 << 10;
/// Blocks resident on one multiprocessor.
const MAX_RESIDENT_BLOCKS: u32 = 32;

/// A kernel of a loaded module.
#[derive(Debug)]
pub(super) struct LoadedKernel {
    pub(super) module: Arc<Module>,
    pub(super) name: String,
    pub(super) index: usize,
    registers: u32,
    max_threads: u32,
}

impl LoadedKernel {
    fn new(module: &Arc<Module>, index: usize, device: &Properties) -> Self {
        let kernel = &module.kernels()[index];
        let threads = |bounds: [u32; 3]| bounds.iter().product();
        let bounds = kernel.required_threads().or(kernel.max_threads());
        let max_threads = bounds.map_or(device.max_threads_per_block, threads);
        Self {
            module: Arc::clone(module),
            name: kernel.name().to_owned(),
            index,
            registers: registers(max_threads, device),
            max_threads,
        }
    }

    fn static_shared_bytes(&self) -> u32 {
        self.module.kernels()[self.index].static_shared_bytes()
    }

    fn attributes(&self) -> KernelAttributes {
        KernelAttributes {
            registers: self.registers,
            static_shared_bytes: self.static_shared_bytes(),
            local_bytes: 0,
            max_threads_per_block: self.max_threads,
            dynamic_shared_bytes: PLAIN_SHARED_BYTES,
        }
    }

    /// Blocks on one multiprocessor, by threads, registers and shared memory.
    fn resident_blocks(&self, block_threads: u32, dynamic_shared_bytes: u32, device: &Properties) -> u32 {
        let threads = block_threads.max(1).next_multiple_of(32);
        let shared = self.static_shared_bytes() + dynamic_shared_bytes + RESERVED_SHARED_BYTES;
        let by_registers = device.registers_per_multiprocessor / (threads * self.registers);
        let by_threads = device.max_threads_per_multiprocessor / threads;
        let by_shared = device.shared_bytes_per_multiprocessor / shared;
        by_registers.min(by_threads).min(by_shared).min(MAX_RESIDENT_BLOCKS)
    }
}

/// PTX names virtual registers without end, and nothing here allocates real ones. In their place: what a compiler
/// could use at most while a block of `max_threads` still fits a multiprocessor.
fn registers(max_threads: u32, device: &Properties) -> u32 {
    let most = device.registers_per_multiprocessor / max_threads.max(1).next_multiple_of(32);
    (most / REGISTER_UNIT * REGISTER_UNIT).clamp(REGISTER_UNIT, MAX_REGISTERS)
}

impl GpuModules for EmulatedGpu {
    fn load_module(&self, ptx: &CStr) -> Result<ModuleId> {
        let module = Module::new("module.ptx", &ptx.to_string_lossy()).map_err(|e| self.rejected(&e))?;
        self.with(|state| {
            let id = state.new_id();
            state.modules.insert(id, Arc::new(module));
            Ok(ModuleId(id))
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
            let loaded = state.modules.get(&module.0).expect("the caller's module is alive");
            let index = loaded.kernels().iter().position(|kernel| kernel.name() == entry).ok_or_else(|| {
                GpuError::NoSuchKernel { device: self.label(), entry: entry.clone().into_owned() }
            })?;
            let kernel = Arc::new(LoadedKernel::new(loaded, index, &self.properties));
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

    unsafe fn launch(
        &self,
        stream: StreamId,
        kernel: KernelId,
        config: &LaunchConfig,
        parameters: &[u8],
    ) -> Result<()> {
        self.with(|state| {
            let kernel = state.kernel(kernel.0);
            if config.cluster.is_some() {
                return Err(self.invalid(&kernel.name, "the emulator has no clusters".to_owned()));
            }
            let declared = kernel.module.kernels()[kernel.index].param_bytes() as usize;
            if parameters.len() < declared {
                let found = parameters.len();
                let reason = format!("{found} bytes of parameters were given, the kernel has {declared}");
                return Err(self.invalid(&kernel.name, reason));
            }
            let launch = KernelLaunch { kernel, config: *config, parameters: parameters.into() };
            state.enqueue(stream.0, Work::Launch(launch));
            Ok(())
        })
    }
}

impl EmulatedGpu {
    fn invalid(&self, kernel: &str, reason: String) -> GpuError {
        GpuError::InvalidLaunch { device: self.label(), kernel: kernel.to_owned(), reason }
    }

    fn rejected(&self, error: &LoadError) -> GpuError {
        let name = match error {
            LoadError::Syntax(_) => "CUDA_ERROR_INVALID_PTX",
            LoadError::Refused { .. } => "CUDA_ERROR_NOT_SUPPORTED",
        };
        GpuError::PtxRejected { device: self.label(), log: error.to_string(), name: name.to_owned() }
    }
}
