//! Teams: some of the PEs.

use crate::session::succeeded;
use crate::types::{TEAM_INVALID, TEAM_WORLD, TeamId};
use crate::{Error, Nvshmem};

/// A group of PEs for collectives. Dropping one that was split is collective over it.
#[derive(Debug)]
pub struct Team {
    nvshmem: Nvshmem,
    id: TeamId,
}

impl Team {
    pub(crate) fn world(nvshmem: &Nvshmem) -> Self {
        Self { nvshmem: nvshmem.clone(), id: TEAM_WORLD }
    }

    /// For the collectives of [`crate::Api`].
    pub fn id(&self) -> TeamId {
        self.id
    }

    /// This PE's number in the team.
    pub fn pe(&self) -> usize {
        // SAFETY: a team of an initialised library.
        self.nvshmem.call(|api| unsafe { (api.nvshmem_team_my_pe)(self.id) }) as usize
    }

    /// PEs of the team.
    pub fn n_pes(&self) -> usize {
        // SAFETY: a team of an initialised library.
        self.nvshmem.call(|api| unsafe { (api.nvshmem_team_n_pes)(self.id) }) as usize
    }

    /// Collective over this team: the team of its PEs `start`, `start + stride`, … (`size` of them); none on a PE that
    /// is not among them.
    ///
    /// # Errors
    /// What the library refuses.
    pub fn split_strided(&self, start: usize, stride: usize, size: usize) -> Result<Option<Self>, Error> {
        let mut id = TEAM_INVALID;
        let [start, stride, size] = [start, stride, size].map(|number| number as i32);
        // SAFETY: writes one team; no configuration.
        let status = self.nvshmem.call(|api| unsafe {
            (api.nvshmem_team_split_strided)(self.id, start, stride, size, std::ptr::null(), 0, &mut id)
        });
        // PEs outside of the new team are told so by the team itself, in some releases by the status, too.
        if id == TEAM_INVALID && self.is_outside(start, stride, size) {
            return Ok(None);
        }
        succeeded("nvshmem_team_split_strided", status)?;
        Ok(Some(Self { nvshmem: self.nvshmem.clone(), id }))
    }

    fn is_outside(&self, start: i32, stride: i32, size: i32) -> bool {
        let pe = self.pe() as i32;
        !(0..size).any(|i| start + i * stride == pe)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        if self.id != TEAM_WORLD && !self.nvshmem.is_abandoned() {
            // SAFETY: split from a team of this library, not destroyed yet.
            self.nvshmem.call(|api| unsafe { (api.nvshmem_team_destroy)(self.id) });
        }
    }
}
