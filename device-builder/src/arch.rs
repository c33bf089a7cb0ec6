//! The GPU architectures that PTX is generated for.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A PTX target: the oldest GPU that runs the file, and the PTX version it is written in.
///
/// The PTX version sets the oldest driver that loads the file, so each target uses the lowest one
/// that has its instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Arch {
    /// Volta, PTX 7.0.
    Sm70,
    /// Turing, PTX 7.0.
    Sm75,
    /// Ampere data centre and everything after it, PTX 7.4.
    Sm80,
    /// Ampere consumer cards, PTX 7.4.
    Sm86,
    /// Ada, PTX 7.8.
    Sm89,
    /// Hopper and everything after it, PTX 8.1.
    Sm90,
    /// Hopper only, with its own instructions (`wgmma`, `setmaxnreg`), PTX 8.4.
    Sm90a,
    /// Blackwell data centre and everything after it, PTX 8.6.
    Sm100,
}

impl Arch {
    /// Every target, oldest first.
    pub const ALL: [Arch; 8] =
        [Self::Sm70, Self::Sm75, Self::Sm80, Self::Sm86, Self::Sm89, Self::Sm90, Self::Sm90a, Self::Sm100];

    /// The name that rustc, `llc` and `ptxas` use, such as `sm_90a`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sm70 => "sm_70",
            Self::Sm75 => "sm_75",
            Self::Sm80 => "sm_80",
            Self::Sm86 => "sm_86",
            Self::Sm89 => "sm_89",
            Self::Sm90 => "sm_90",
            Self::Sm90a => "sm_90a",
            Self::Sm100 => "sm_100",
        }
    }

    /// Compute capability times ten: 90 for both `sm_90` and `sm_90a`.
    pub fn compute(self) -> u32 {
        match self {
            Self::Sm70 => 70,
            Self::Sm75 => 75,
            Self::Sm80 => 80,
            Self::Sm86 => 86,
            Self::Sm89 => 89,
            Self::Sm90 | Self::Sm90a => 90,
            Self::Sm100 => 100,
        }
    }

    /// PTX version times ten.
    pub fn ptx_version(self) -> u32 {
        match self {
            Self::Sm70 | Self::Sm75 => 70,
            Self::Sm80 | Self::Sm86 => 74,
            Self::Sm89 => 78,
            Self::Sm90 => 81,
            // Taken by drivers that can say where kernel parameters of wide alignment lie (cuFuncGetParamInfo).
            Self::Sm90a => 84,
            Self::Sm100 => 86,
        }
    }

    /// `--cfg` values the device crate sees: `cuda_arch="sm_90a"` and `cuda_arch_min="80"` for every
    /// architecture up to this one.
    pub(crate) fn cfgs(self) -> Vec<String> {
        let mut levels: Vec<u32> = Self::ALL.iter().map(|a| a.compute()).collect();
        levels.dedup();
        let at_least = levels.into_iter().filter(|&level| level <= self.compute());
        std::iter::once(format!("cuda_arch=\"{}\"", self.name()))
            .chain(at_least.map(|level| format!("cuda_arch_min=\"{level}\"")))
            .collect()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Arch {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|arch| arch.name() == name)
            .ok_or_else(|| Error::UnknownArch { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for arch in Arch::ALL {
            assert_eq!(arch.name().parse::<Arch>().unwrap(), arch);
        }
        assert!("sm_12".parse::<Arch>().is_err());
    }

    #[test]
    fn cfgs_list_every_older_architecture_once() {
        let cfgs = Arch::Sm90a.cfgs();
        assert_eq!(cfgs[0], "cuda_arch=\"sm_90a\"");
        assert_eq!(cfgs.iter().filter(|c| c.as_str() == "cuda_arch_min=\"90\"").count(), 1);
        assert!(!cfgs.contains(&"cuda_arch_min=\"100\"".to_owned()));
        assert!(!Arch::Sm80.cfgs().contains(&"cuda_arch_min=\"90\"".to_owned()));
    }
}
