//! Allocations, and what host and devices write to pinned memory.

use std::ptr::NonNull;

use ptx_emulator::RunError;
use ptx_emulator::memory::{Access, DeviceId, Order, Owner, Scope, Site, Thread, Width};

use super::State;
use crate::driver::DevicePtr;
use crate::driver::emulated::pinned::Pinned;
use crate::driver::emulated::work::HostRange;

impl State {
    pub(in super::super) fn used_bytes(&self, device: u32) -> u64 {
        self.allocations.values().filter(|(owner, _)| *owner == device).map(|(_, bytes)| bytes).sum()
    }

    pub(in super::super) fn allocate(&mut self, device: u32, bytes: u64) -> Result<u64, String> {
        let name = format!("allocation {}", self.new_id());
        let owner = Owner::Device(DeviceId(device));
        let at = self.machine.memory().allocate(owner, bytes, &name).map_err(|fault| fault.to_string())?;
        self.allocations.insert(at, (device, bytes));
        Ok(at)
    }

    pub(in super::super) fn free(&mut self, at: u64) -> Result<(), String> {
        self.allocations.remove(&at);
        self.machine.memory().free(at).map_err(|fault| fault.to_string())
    }

    /// Zeros that host and devices share.
    pub(in super::super) fn allocate_pinned(&mut self, bytes: usize) -> Result<(NonNull<u8>, u64), String> {
        let name = format!("pinned allocation {}", self.new_id());
        let memory = self.machine.memory();
        let at = memory.allocate(Owner::Host, bytes as u64, &name).map_err(|fault| fault.to_string())?;
        memory.fill(Thread::HOST, at, bytes as u64, &[0]).map_err(|fault| fault.to_string())?;
        let pinned = Pinned::new(bytes, DevicePtr(at));
        let host = pinned.host();
        self.pinned.push(pinned);
        Ok((host, at))
    }

    pub(in super::super) fn free_pinned(&mut self, at: u64) -> Result<(), String> {
        self.pinned.retain(|pinned| pinned.device.0 != at);
        self.machine.memory().free(at).map_err(|fault| fault.to_string())
    }

    pub(in super::super) fn is_pinned(&self, range: HostRange) -> bool {
        self.pinned.iter().any(|pinned| pinned.contains(range.at, range.bytes))
    }

    pub(in super::super) fn enable_peer(&mut self, from: u32, to: u32) {
        self.machine.memory().enable_peer(DeviceId(from), DeviceId(to));
    }

    /// What the host wrote to pinned memory becomes visible to the devices, as stores of the host that release.
    pub(super) fn publish_pinned(&mut self) -> Result<(), RunError> {
        let access =
            Access { thread: Thread::HOST, site: Site::NONE, order: Order::Release, scope: Scope::Sys };
        let memory = self.machine.memory();
        for pinned in &mut self.pinned {
            for (offset, half) in pinned.host_changes() {
                let at = pinned.device.0 + offset as u64;
                if offset + 4 <= pinned.bytes {
                    memory.store(&access, at, Width::B4, half.into())?;
                } else if offset < pinned.bytes {
                    memory.write(Thread::HOST, at, &half.to_le_bytes()[..pinned.bytes - offset])?;
                }
            }
        }
        Ok(())
    }

    /// Whether the host has written to pinned memory since that was last published.
    pub(in super::super) fn has_host_changes(&self) -> bool {
        self.pinned.iter().any(Pinned::has_host_changes)
    }

    /// What devices wrote to pinned memory becomes visible to the host.
    pub(super) fn collect_pinned(&mut self) {
        let memory = self.machine.memory();
        let mut now = Vec::new();
        for pinned in &mut self.pinned {
            now.resize(pinned.bytes, 0);
            memory.peek(pinned.device.0, &mut now).expect("listed as long as it is allocated");
            pinned.take(&now);
        }
    }
}
