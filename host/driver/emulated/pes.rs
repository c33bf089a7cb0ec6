//! Emulated devices as the PEs of NVSHMEM, with a network between them (`ptx_emulator::nvshmem`).

use ptx_emulator::memory::{DeviceId, Fault, Owner};
use ptx_emulator::nvshmem::{Heap, Nvshmem};

use super::state::State;
use super::{EmulatedGpu, EmulatorOptions, PutUnit, World};
use crate::driver::{Device, DevicePtr, GpuError, Result};

impl Device {
    /// The devices of a new emulated machine, device i being PE i of NVSHMEM, each with its symmetric heap of
    /// `heap_bytes` of uninitialised memory. Modules may call NVSHMEM's functions for puts; what is put arrives late and
    /// in any order, `unit` by unit.
    ///
    /// # Errors
    /// Heaps that do not fit the devices' memory.
    pub fn emulated_pes(
        options: &EmulatorOptions,
        heap_bytes: usize,
        unit: PutUnit,
    ) -> Result<Vec<(Self, DevicePtr)>> {
        let world = World::new(options);
        let heaps = world.lock().provide_puts(options.devices, heap_bytes as u64, unit);
        let devices = EmulatedGpu::all(&world).into_iter();
        let heaps = heaps.map_err(|fault| GpuError::Emulated {
            device: format!("emulate:0 ({options})"),
            report: fault.to_string(),
        })?;
        Ok(devices.zip(heaps).map(|(device, heap)| (device, DevicePtr(heap.address))).collect())
    }
}

impl State {
    fn provide_puts(
        &mut self,
        devices: u32,
        heap_bytes: u64,
        unit: PutUnit,
    ) -> std::result::Result<Vec<Heap>, Box<Fault>> {
        let memory = self.machine.memory();
        let heap = |device| {
            let (device, name) = (DeviceId(device), format!("the symmetric heap of PE {device}"));
            Ok(Heap { device, address: memory.allocate(Owner::Device(device), heap_bytes, &name)? })
        };
        let heaps = (0..devices).map(heap).collect::<std::result::Result<Vec<_>, Box<Fault>>>()?;
        self.machine.provide(Box::new(Nvshmem::new(heaps.clone(), heap_bytes, unit)));
        Ok(heaps)
    }
}
