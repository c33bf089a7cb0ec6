//! What a PTX file says about itself, and whether a device can take it.

use std::fmt;

use super::{Capability, GpuError, Properties, Result};

/// A version of the PTX language, of a file or of what a driver knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PtxVersion {
    /// `8` of 8.0.
    pub major: u32,
    /// `0` of 8.0.
    pub minor: u32,
}

impl PtxVersion {
    /// The newest PTX of a CUDA release ("Release Notes" of NVIDIA's PTX reference): 11.4 brought 7.4, 12.0
    /// brought 8.0; 12.6 brought none, so 12.7 to 12.9 brought 8.6 to 8.8.
    pub const fn of_cuda(major: u32, minor: u32) -> Self {
        let skipped = if major == 12 && minor >= 6 { 1 } else { 0 };
        Self { major: major.saturating_sub(4), minor: minor - skipped }
    }

    /// The first CUDA release that knows this version: the inverse of [`PtxVersion::of_cuda`].
    pub fn cuda_release(self) -> String {
        let skipped = u32::from(self.major == 8 && self.minor >= 6);
        format!("{}.{}", self.major + 4, self.minor + skipped)
    }
}

impl fmt::Display for PtxVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The architecture that a PTX file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PtxTarget {
    /// `sm_80`: this compute capability and all later ones.
    Portable(Capability),
    /// `sm_90a`: this compute capability only.
    Specific(Capability),
    /// `sm_100f`: this compute capability and later ones of its major version.
    Family(Capability),
}

impl PtxTarget {
    /// From `sm_80`, `sm_90a`, `sm_100f`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.strip_prefix("sm_")?;
        let digits = number.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let sm: u32 = digits.parse().ok()?;
        let capability = Capability { major: sm / 10, minor: sm % 10 };
        match &number[digits.len()..] {
            "" => Some(Self::Portable(capability)),
            "a" => Some(Self::Specific(capability)),
            "f" => Some(Self::Family(capability)),
            _ => None,
        }
    }

    /// Whether a device of this compute capability can run it.
    pub fn runs_on(self, device: Capability) -> bool {
        match self {
            Self::Portable(target) => device >= target,
            Self::Specific(target) => device == target,
            Self::Family(target) => device.major == target.major && device >= target,
        }
    }
}

impl fmt::Display for PtxTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Capability { major, minor }, suffix) = match self {
            Self::Portable(target) => (target, ""),
            Self::Specific(target) => (target, "a"),
            Self::Family(target) => (target, "f"),
        };
        write!(f, "sm_{major}{minor}{suffix}")
    }
}

/// The directives at the head of a PTX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtxHeader {
    /// `.version`.
    pub version: PtxVersion,
    /// `.target`.
    pub target: PtxTarget,
}

impl PtxHeader {
    /// Reads the header of a PTX text that is meant for a device.
    pub fn parse(ptx: &str, device: &Properties) -> Result<Self> {
        let malformed = |directive| GpuError::MalformedPtx { device: device.label.clone(), directive };
        let version =
            argument(ptx, ".version").and_then(parse_version).ok_or_else(|| malformed(".version"))?;
        let target =
            argument(ptx, ".target").and_then(PtxTarget::parse).ok_or_else(|| malformed(".target"))?;
        Ok(Self { version, target })
    }

    /// Whether the device can take PTX of this header; if not, why.
    pub fn check(&self, device: &Properties) -> Result<()> {
        if !self.target.runs_on(device.capability) {
            return Err(GpuError::PtxTarget {
                device: device.label.clone(),
                target: self.target,
                found: device.capability,
            });
        }
        if self.version > device.newest_ptx {
            return Err(GpuError::PtxTooNew {
                device: device.label.clone(),
                found: self.version,
                newest: device.newest_ptx,
            });
        }
        Ok(())
    }
}

/// The first word after a directive at the head of a line.
fn argument<'ptx>(ptx: &'ptx str, directive: &str) -> Option<&'ptx str> {
    let rest = ptx.lines().find_map(|line| line.trim_start().strip_prefix(directive))?;
    rest.split([' ', '\t', ',', '/', ';']).find(|word| !word.is_empty())
}

fn parse_version(text: &str) -> Option<PtxVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(PtxVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_go_with_cuda_releases_both_ways() {
        for (cuda, ptx) in
            [((11, 4), (7, 4)), ((12, 0), (8, 0)), ((12, 5), (8, 5)), ((12, 8), (8, 7)), ((13, 0), (9, 0))]
        {
            let version = PtxVersion { major: ptx.0, minor: ptx.1 };
            assert_eq!(PtxVersion::of_cuda(cuda.0, cuda.1), version);
            assert_eq!(version.cuda_release(), format!("{}.{}", cuda.0, cuda.1));
        }
        assert_eq!(PtxVersion::of_cuda(12, 6), PtxVersion { major: 8, minor: 5 }, "12.6 brought none");
    }

    #[test]
    fn targets_say_where_they_run() {
        let capability = |major, minor| Capability { major, minor };
        let runs = |target: &str, major, minor| {
            PtxTarget::parse(target).expect("a target").runs_on(capability(major, minor))
        };
        assert!(runs("sm_80", 8, 0) && runs("sm_80", 9, 0) && runs("sm_80", 12, 0) && !runs("sm_80", 7, 5));
        assert!(runs("sm_90a", 9, 0) && !runs("sm_90a", 10, 0) && !runs("sm_90a", 8, 9));
        assert!(runs("sm_100f", 10, 3) && !runs("sm_100f", 12, 0));
        for name in ["sm_80", "sm_90a", "sm_103f"] {
            assert_eq!(PtxTarget::parse(name).expect("a target").to_string(), name);
        }
        for wrong in ["", "sm_", "sm_90x", "compute_90", "sm_9 0"] {
            assert_eq!(PtxTarget::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn directives_are_found_behind_comments() {
        let ptx =
            "// device/ 0123\n//\n  .version 8.0\n.target sm_90a, debug // .target sm_80\n.address_size 64\n";
        assert_eq!(
            argument(ptx, ".version").and_then(parse_version),
            Some(PtxVersion { major: 8, minor: 0 })
        );
        assert_eq!(argument(ptx, ".target"), Some("sm_90a"));
        assert_eq!(argument("garbage", ".target"), None);
    }
}
