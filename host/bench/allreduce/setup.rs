//! What choices of the all-reduce are measured on, and hold for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::comm::bootstrap::Bootstrap;
use crate::comm::gpu::PeerMemory;
use crate::comm::{CommError, Shape};
use crate::driver::Device;
use crate::kernels::release;

/// Ranks, their GPUs, how these reach each other, and what runs on them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// Version of the program, and of its kernels: they are what is measured.
    fewsync: String,
    /// Nodes × ranks per node.
    topology: String,
    /// Ranks of each host, in rank order; between hosts there is no path for stores.
    hosts: Vec<usize>,
    /// The GPUs' product names, by rank.
    gpus: Vec<String>,
    /// As [`PeerMemory::name`] says.
    peer_memory: String,
}

impl Setup {
    /// Of ranks that are threads of this process.
    pub fn of_threads(devices: &[Device], shape: Shape, memory: PeerMemory) -> Self {
        Self::new(vec![devices.len()], devices.iter().map(name).collect(), shape, memory)
    }

    /// Collective: of ranks that are processes, this one with `device`.
    ///
    /// # Errors
    /// What the meeting reports.
    pub fn of_processes(
        bootstrap: &dyn Bootstrap,
        device: &Device,
        shape: Shape,
        memory: PeerMemory,
    ) -> Result<Self, CommError> {
        let gpus = bootstrap.all_gather("the GPUs' names", name(device).as_bytes())?;
        let gpus = gpus.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        let hosts = bootstrap.hosts().chunk_by(|a, b| a == b).map(<[_]>::len).collect();
        Ok(Self::new(hosts, gpus, shape, memory))
    }

    fn new(hosts: Vec<usize>, gpus: Vec<String>, shape: Shape, memory: PeerMemory) -> Self {
        let peer_memory = memory.name().to_owned();
        Self { fewsync: release(), topology: shape.to_string(), hosts, gpus, peer_memory }
    }

    /// The first thing that is not the same in both, as this one has it and as the other one has it.
    pub(super) fn difference(&self, other: &Self) -> Option<(String, String)> {
        let pairs = self.words().into_iter().zip(other.words());
        pairs.into_iter().find(|(mine, theirs)| mine != theirs)
    }

    fn words(&self) -> [String; 5] {
        let Self { fewsync, topology, hosts, gpus, peer_memory } = self;
        let ranks: Vec<String> = hosts.iter().map(usize::to_string).collect();
        let plural = if hosts.len() == 1 { "" } else { "s" };
        [
            format!("fewsync {fewsync}"),
            format!("topology {topology}"),
            format!("{} ranks on {} host{plural}", ranks.join(" + "), hosts.len()),
            gpus.join(" + "),
            format!("peer memory {peer_memory}"),
        ]
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(", "))
    }
}

fn name(device: &Device) -> String {
    device.properties().name.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(hosts: &[usize], memory: PeerMemory) -> Setup {
        let world = hosts.iter().sum();
        let shape = Shape { nodes: 2, gpus_per_node: world / 2 };
        Setup::new(hosts.to_vec(), vec!["NVIDIA H200".into(); world], shape, memory)
    }

    #[test]
    fn whatever_differs_is_named_as_both_have_it() {
        let memory = |direct| PeerMemory::Nvshmem { direct };
        let here = setup(&[2], memory(true));
        let differs = |there: &Setup, mine: &str, theirs: &str| {
            assert_eq!(here.difference(there), Some((mine.to_owned(), theirs.to_owned())));
        };
        assert_eq!(here.difference(&here.clone()), None);
        differs(&setup(&[1, 1], memory(true)), "2 ranks on 1 host", "1 + 1 ranks on 2 hosts");
        differs(&setup(&[2], memory(false)), "peer memory nvshmem", "peer memory nvshmem, all put");
        differs(&setup(&[2], PeerMemory::Direct), "peer memory nvshmem", "peer memory direct");
        differs(&setup(&[2, 2], memory(true)), "topology 2x1", "topology 2x2");
        let gpus = vec!["NVIDIA H200".to_owned(), "NVIDIA A100".to_owned()];
        differs(&Setup { gpus, ..here.clone() }, "NVIDIA H200 + NVIDIA H200", "NVIDIA H200 + NVIDIA A100");
        let whole = here.to_string();
        assert!(whole.contains(", topology 2x1, 2 ranks on 1 host, NVIDIA H200 + NVIDIA H200, "), "{whole}");
        let other = Setup { fewsync: "0.0.1 with kernels 0".into(), ..here.clone() };
        let (mine, theirs) = here.difference(&other).unwrap();
        assert!(mine.starts_with("fewsync ") && mine.contains(" with kernels "), "{mine}");
        assert_eq!(theirs, "fewsync 0.0.1 with kernels 0");
    }
}
