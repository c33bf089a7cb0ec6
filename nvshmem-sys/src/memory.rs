//! Symmetric memory.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::{Error, Nvshmem};

/// Memory that every PE has at the same place of its symmetric heap. Dropping it is collective, in the order in which
/// it was allocated or any other that all PEs share.
#[derive(Debug)]
pub struct SymmetricMemory {
    nvshmem: Nvshmem,
    at: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: device memory, which any thread may name.
unsafe impl Send for SymmetricMemory {}
// SAFETY: as above; nothing is reached through a shared reference.
unsafe impl Sync for SymmetricMemory {}

impl SymmetricMemory {
    pub(crate) fn new(nvshmem: &Nvshmem, bytes: usize) -> Result<Self, Error> {
        // SAFETY: initialised.
        let at = nvshmem.call(|api| unsafe { (api.nvshmem_calloc)(bytes.max(1), 1) });
        let at = NonNull::new(at).ok_or(Error::OutOfMemory { bytes })?;
        Ok(Self { nvshmem: nvshmem.clone(), at, bytes })
    }

    /// The device address on this PE.
    pub fn address(&self) -> u64 {
        self.at.as_ptr() as usize as u64
    }

    /// What was asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where kernels of this PE can load and store another one's copy; none where there is no such path, and the
    /// copy is reached by puts alone.
    ///
    /// # Errors
    /// [`Error::NoSuchPe`].
    pub fn peer_address(&self, pe: usize) -> Result<Option<u64>, Error> {
        let pe = self.nvshmem.check_pe(pe)?;
        // SAFETY: symmetric memory of an initialised library.
        let peer = self.nvshmem.call(|api| unsafe { (api.nvshmem_ptr)(self.at.as_ptr(), pe) });
        Ok(NonNull::new(peer).map(|peer| peer.as_ptr() as usize as u64))
    }
}

impl Drop for SymmetricMemory {
    fn drop(&mut self) {
        if !self.nvshmem.is_abandoned() {
            // SAFETY: allocated by the same library, not freed yet.
            self.nvshmem.call(|api| unsafe { (api.nvshmem_free)(self.at.as_ptr()) });
        }
    }
}
