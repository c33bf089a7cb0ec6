//! What can go wrong on a GPU, one sentence each.

use super::Capability;
use super::ptx::{PtxTarget, PtxVersion};

/// The result of a GPU operation.
pub type Result<T, E = GpuError> = std::result::Result<T, E>;

/// A GPU operation failed: which one, on which device, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The back end was left out of this build.
    #[error("this build has no {feature} back end: rebuild with --features {feature}")]
    NotBuilt {
        /// The cargo feature that brings it.
        feature: &'static str,
    },
    /// No usable driver: absent, too old, failing, or without a GPU.
    #[error("{reason}")]
    NoDriver {
        /// The whole sentence.
        reason: String,
    },
    /// There is no GPU of this number.
    #[error("there is no cuda:{ordinal}: the driver offers {count} GPU(s), numbered from 0")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The GPU is too old for the kernels.
    #[error(
        "{device} has compute capability {found}, but {oldest} (Ampere) or newer is needed: use another GPU or --device cpu"
    )]
    UnsupportedDevice {
        /// The device.
        device: String,
        /// Its compute capability.
        found: Capability,
        /// The least one that will do.
        oldest: Capability,
    },
    /// Device memory ran out.
    #[error(
        "{device} is out of memory: {} were asked for, {} of {} are free",
        bytes(*asked_bytes), bytes(*free_bytes), bytes(*total_bytes)
    )]
    OutOfMemory {
        /// The device.
        device: String,
        /// The size of the allocation that failed.
        asked_bytes: u64,
        /// What was free.
        free_bytes: u64,
        /// What the device has.
        total_bytes: u64,
    },
    /// A text that does not begin like PTX.
    #[error("{device} was given PTX without a readable {directive} directive: is the file whole?")]
    MalformedPtx {
        /// The device.
        device: String,
        /// `.version` or `.target`.
        directive: &'static str,
    },
    /// The PTX is newer than the driver.
    #[error(
        "the PTX is version {found}, but the driver of {device} knows up to {newest}: update NVIDIA's driver to \
         CUDA {} or newer",
        found.cuda_release()
    )]
    PtxTooNew {
        /// The device.
        device: String,
        /// The PTX's version.
        found: PtxVersion,
        /// The newest that the driver knows.
        newest: PtxVersion,
    },
    /// The PTX is for another architecture.
    #[error(
        "the PTX is for {target}, which {device} (compute capability {found}) cannot run: load the PTX of its own architecture"
    )]
    PtxTarget {
        /// The device.
        device: String,
        /// The architecture that the PTX names.
        target: PtxTarget,
        /// The device's compute capability.
        found: Capability,
    },
    /// The driver could not compile the PTX.
    #[error("the driver of {device} rejected the PTX: {log} ({name})")]
    PtxRejected {
        /// The device.
        device: String,
        /// The first line of the compiler's log.
        log: String,
        /// The result by name.
        name: String,
    },
    /// The module has no such kernel.
    #[error("the PTX loaded on {device} has no kernel {entry}: it does not match this program")]
    NoSuchKernel {
        /// The device.
        device: String,
        /// The entry point asked for.
        entry: String,
    },
    /// A launch that the device or the kernel cannot do; nothing was launched.
    #[error("kernel {kernel} cannot be launched on {device}: {reason}")]
    InvalidLaunch {
        /// The device.
        device: String,
        /// The kernel's entry point.
        kernel: String,
        /// What is wrong with the configuration.
        reason: String,
    },
    /// A copy between ranges that do not fit.
    #[error("{operation} of {elements} elements at {offset} does not fit a buffer of {len} on {device}")]
    OutOfRange {
        /// The device.
        device: String,
        /// `upload`, `download`, …
        operation: &'static str,
        /// Where it was to begin.
        offset: usize,
        /// How many elements were to be moved.
        elements: usize,
        /// How many the buffer has.
        len: usize,
    },
    /// Things of different devices were mixed.
    #[error("{what} belongs to {found}, but was used with {device}")]
    WrongDevice {
        /// `the stream`, `the buffer`, …
        what: &'static str,
        /// Where it belongs.
        found: String,
        /// Where it was used.
        device: String,
    },
    /// Two devices that cannot read each other's memory.
    #[error("{device} cannot access the memory of {peer}: there is no peer path between them")]
    NoPeerAccess {
        /// The device.
        device: String,
        /// Its peer.
        peer: String,
    },
    /// A kernel, a copy or the schedule went wrong on an emulated machine, which runs nothing any more.
    #[error("{device} has stopped: {report}")]
    Emulated {
        /// The device.
        device: String,
        /// What happened, where, to whom, and the seed that reproduces it.
        report: String,
    },
    /// Anything else that a call of the back end reported.
    #[error("{call} on {device} failed: {reason} ({name}, code {code})")]
    Call {
        /// The call.
        call: &'static str,
        /// The device.
        device: String,
        /// The result as a number.
        code: u32,
        /// The result by name.
        name: String,
        /// What it means.
        reason: String,
    },
}

/// `5.25 GiB`, `96 B`: binary units, so that sums of buffers can be checked by eye.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    UNITS.iter().find(|(_, size)| count >= *size).map_or_else(
        || format!("{count} B"),
        |(unit, size)| format!("{:.2} {unit}", count as f64 / *size as f64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_says_how_much() {
        let error = GpuError::OutOfMemory {
            device: "cuda:0 (NVIDIA H200)".into(),
            asked_bytes: 150 << 30,
            free_bytes: 1500,
            total_bytes: (139 << 30) + (1 << 29),
        };
        assert_eq!(
            error.to_string(),
            "cuda:0 (NVIDIA H200) is out of memory: 150.00 GiB were asked for, 1.46 KiB of 139.50 GiB are free"
        );
        assert_eq!(bytes(0), "0 B");
    }
}
