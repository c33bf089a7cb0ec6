//! Which release a library or a bitcode is.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A release of NVSHMEM, such as 3.4.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    /// `3` of 3.4.5.
    pub major: u32,
    /// `4` of 3.4.5.
    pub minor: u32,
    /// `5` of 3.4.5.
    pub patch: u32,
}

impl Release {
    /// Reads the release from PTX or LLVM's listing of device code: the initialiser of
    /// `nvshmemi_device_lib_version_d`, three 32-bit numbers, whose trailing zero bytes PTX may leave out.
    pub fn of_ptx(ptx: &str) -> Option<Self> {
        let (_, rest) = ptx.split_once("nvshmemi_device_lib_version_d[12] = {")?;
        let (list, _) = rest.split_once('}')?;
        let mut bytes = [0_u8; 12];
        for (place, byte) in list.split(',').enumerate() {
            *bytes.get_mut(place)? = byte.trim().parse().ok()?;
        }
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some(Self { major: number(0), minor: number(4), patch: number(8) })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Release {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[major, minor, patch]) => Ok(Self { major, minor, patch }),
            _ => Err(Error::NotARelease { text: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_from_ptx_and_from_text() {
        let line =
            ".visible .const .align 4 .b8 nvshmemi_device_lib_version_d[12] = {3, 0, 0, 0, 4, 0, 0, 0, 5};";
        let release = Release { major: 3, minor: 4, patch: 5 };
        assert_eq!(Release::of_ptx(line), Some(release));
        assert_eq!(Release::of_ptx(".visible .const .align 4 .b8 other[12] = {3};"), None);
        assert_eq!(release.to_string().parse::<Release>().unwrap(), release);
        assert!("3.4".parse::<Release>().unwrap_err().to_string().contains("3.4"));
        assert!("3.4.5".parse::<Release>().unwrap() < "3.8.0".parse().unwrap());
    }
}
