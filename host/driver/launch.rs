//! The shape of a launch, and the checks that need no device call.

use std::fmt;

use super::{Capability, KernelAttributes, Properties};
use crate::kernels::MAX_CLUSTER;

/// Blocks of a grid, threads of a block or blocks of a cluster, in x, y, z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dim3 {
    /// Fastest.
    pub x: u32,
    /// Between.
    pub y: u32,
    /// Slowest.
    pub z: u32,
}

impl Dim3 {
    /// x × y × z.
    pub const fn count(self) -> u64 {
        self.x as u64 * self.y as u64 * self.z as u64
    }

    const fn array(self) -> [u32; 3] {
        [self.x, self.y, self.z]
    }
}

impl From<u32> for Dim3 {
    fn from(x: u32) -> Self {
        Self { x, y: 1, z: 1 }
    }
}

impl From<(u32, u32)> for Dim3 {
    fn from((x, y): (u32, u32)) -> Self {
        Self { x, y, z: 1 }
    }
}

impl From<(u32, u32, u32)> for Dim3 {
    fn from((x, y, z): (u32, u32, u32)) -> Self {
        Self { x, y, z }
    }
}

impl fmt::Display for Dim3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}", self.x, self.y, self.z)
    }
}

/// How a kernel is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: Dim3,
    /// Threads per block.
    pub block: Dim3,
    /// Dynamic shared memory per block.
    pub dynamic_shared_bytes: u32,
    /// Blocks per cluster, each dividing the grid; needs compute capability 9.0.
    pub cluster: Option<Dim3>,
    /// All blocks are resident at once and may wait for each other.
    pub cooperative: bool,
    /// Programmatic dependent launch: may start before the kernel ahead of it in the stream has ended, and
    /// waits for it with `griddepcontrol.wait`; needs compute capability 9.0.
    pub programmatic: bool,
}

const HOPPER: Capability = Capability { major: 9, minor: 0 };

impl LaunchConfig {
    /// `grid` blocks of `block` threads, nothing else.
    pub fn new(grid: impl Into<Dim3>, block: impl Into<Dim3>) -> Self {
        Self {
            grid: grid.into(),
            block: block.into(),
            dynamic_shared_bytes: 0,
            cluster: None,
            cooperative: false,
            programmatic: false,
        }
    }

    /// With dynamic shared memory.
    pub fn shared(self, dynamic_shared_bytes: u32) -> Self {
        Self { dynamic_shared_bytes, ..self }
    }

    /// With clusters.
    pub fn cluster(self, cluster: impl Into<Dim3>) -> Self {
        Self { cluster: Some(cluster.into()), ..self }
    }

    /// With all blocks resident at once.
    pub fn cooperative(self) -> Self {
        Self { cooperative: true, ..self }
    }

    /// With programmatic dependent launch.
    pub fn programmatic(self) -> Self {
        Self { programmatic: true, ..self }
    }

    /// Whether a device of these properties can run this kernel like this; if not, why.
    pub(super) fn check(&self, device: &Properties, kernel: &KernelAttributes) -> Result<(), String> {
        if self.grid.count() == 0 || self.block.count() == 0 {
            return Err(format!("a grid of {} blocks of {} threads is empty", self.grid, self.block));
        }
        if self.grid.x > i32::MAX as u32 || self.grid.y > 65_535 || self.grid.z > 65_535 {
            return Err(format!("the grid {} exceeds 2147483647×65535×65535", self.grid));
        }
        let limit_threads = kernel.max_threads_per_block.min(device.max_threads_per_block);
        if self.block.count() > u64::from(limit_threads) || self.block.z > 64 {
            return Err(format!(
                "a block of {} threads exceeds its limit of {limit_threads} (64 in z)",
                self.block
            ));
        }
        let limit_bytes = device.shared_bytes_per_block.saturating_sub(kernel.static_shared_bytes);
        if self.dynamic_shared_bytes > limit_bytes {
            return Err(format!(
                "{} bytes of dynamic shared memory were asked for, {limit_bytes} are there ({} per block, {} of \
                 them static)",
                self.dynamic_shared_bytes, device.shared_bytes_per_block, kernel.static_shared_bytes
            ));
        }
        if self.programmatic && device.capability < HOPPER {
            return Err(format!(
                "programmatic dependent launch needs compute capability {HOPPER}, this is {}",
                device.capability
            ));
        }
        self.cluster.map_or(Ok(()), |cluster| self.check_cluster(cluster, device))
    }

    fn check_cluster(&self, cluster: Dim3, device: &Properties) -> Result<(), String> {
        if device.capability < HOPPER {
            return Err(format!("clusters need compute capability {HOPPER}, this is {}", device.capability));
        }
        if !(1..=u64::from(MAX_CLUSTER)).contains(&cluster.count()) {
            return Err(format!("a cluster of {cluster} blocks is not one of 1 to {MAX_CLUSTER} blocks"));
        }
        if self.grid.array().iter().zip(cluster.array()).any(|(grid, cluster)| grid % cluster != 0) {
            return Err(format!("the cluster {cluster} does not divide the grid {}", self.grid));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::PtxVersion;
    use super::*;

    fn device(major: u32) -> Properties {
        Properties {
            ordinal: 0,
            label: "cuda:0 (test)".into(),
            name: "test".into(),
            driver: "CUDA 13.0".into(),
            newest_ptx: PtxVersion { major: 9, minor: 0 },
            capability: Capability { major, minor: 0 },
            multiprocessors: 132,
            total_memory_bytes: 1 << 37,
            l2_bytes: 50 << 20,
            shared_bytes_per_block: 232_448,
            shared_bytes_per_multiprocessor: 233_472,
            registers_per_multiprocessor: 65_536,
            max_threads_per_block: 1024,
            max_threads_per_multiprocessor: 2048,
        }
    }

    const KERNEL: KernelAttributes = KernelAttributes {
        registers: 32,
        static_shared_bytes: 1024,
        local_bytes: 0,
        max_threads_per_block: 512,
        dynamic_shared_bytes: 231_424,
        parameters_at: 0,
    };

    fn refusal(config: LaunchConfig, major: u32) -> String {
        config.check(&device(major), &KERNEL).expect_err("must be refused")
    }

    #[test]
    fn what_fits_exactly_is_accepted() {
        let config = LaunchConfig::new((16, 3), (32, 4, 4)).shared(231_424).cluster((4, 1, 1)).programmatic();
        assert_eq!(config.check(&device(9), &KERNEL), Ok(()));
        let largest = LaunchConfig::new((i32::MAX as u32, 65_535, 65_535), 512);
        assert_eq!(largest.check(&device(8), &KERNEL), Ok(()));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_reason() {
        assert_eq!(refusal(LaunchConfig::new(0, 32), 9), "a grid of 0×1×1 blocks of 32×1×1 threads is empty");
        assert!(refusal(LaunchConfig::new((1, 65_536), 32), 9).starts_with("the grid 1×65536×1 exceeds"));
        assert_eq!(
            refusal(LaunchConfig::new(1, 513), 9),
            "a block of 513×1×1 threads exceeds its limit of 512 (64 in z)"
        );
        assert_eq!(
            refusal(LaunchConfig::new(1, 32).shared(231_425), 9),
            "231425 bytes of dynamic shared memory were asked for, 231424 are there (232448 per block, 1024 of them \
             static)"
        );
        assert_eq!(
            refusal(LaunchConfig::new(2, 32).cluster(2), 8),
            "clusters need compute capability 9.0, this is 8.0"
        );
        assert_eq!(
            refusal(LaunchConfig::new(6, 32).cluster(4), 9),
            "the cluster 4×1×1 does not divide the grid 6×1×1"
        );
        assert_eq!(
            refusal(LaunchConfig::new(16, 32).cluster(16), 9),
            "a cluster of 16×1×1 blocks is not one of 1 to 8 blocks"
        );
        assert!(
            refusal(LaunchConfig::new(16, 32).programmatic(), 8).starts_with("programmatic dependent launch")
        );
    }
}
