//! Tensor types of GGUF by number.

use std::fmt;

use crate::model::encoding::Encoding;

/// A tensor type as numbered in the file; displays as its usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufType(pub u32);

impl GgufType {
    /// 32-bit floats.
    pub const F32: Self = Self(0);

    /// The supported types, for messages.
    pub const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1";

    /// The encoding, where it is supported.
    pub fn encoding(self) -> Option<Encoding> {
        Some(match self.0 {
            0 => Encoding::F32,
            1 => Encoding::F16,
            2 => Encoding::Q4_0,
            3 => Encoding::Q4_1,
            8 => Encoding::Q8_0,
            30 => Encoding::Bf16,
            _ => return None,
        })
    }

    /// The number of an encoding.
    pub fn of(encoding: Encoding) -> Self {
        Self(match encoding {
            Encoding::F32 => 0,
            Encoding::F16 => 1,
            Encoding::Q4_0 => 2,
            Encoding::Q4_1 => 3,
            Encoding::Q8_0 => 8,
            Encoding::Bf16 => 30,
        })
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 40] = [
            "F32",
            "F16",
            "Q4_0",
            "Q4_1",
            "Q4_2",
            "Q4_3",
            "Q5_0",
            "Q5_1",
            "Q8_0",
            "Q8_1",
            "Q2_K",
            "Q3_K",
            "Q4_K",
            "Q5_K",
            "Q6_K",
            "Q8_K",
            "IQ2_XXS",
            "IQ2_XS",
            "IQ3_XXS",
            "IQ1_S",
            "IQ4_NL",
            "IQ3_S",
            "IQ2_S",
            "IQ4_XS",
            "I8",
            "I16",
            "I32",
            "I64",
            "F64",
            "IQ1_M",
            "BF16",
            "Q4_0_4_4",
            "Q4_0_4_8",
            "Q4_0_8_8",
            "TQ1_0",
            "TQ2_0",
            "IQ4_NL_4_4",
            "IQ4_NL_4_8",
            "IQ4_NL_8_8",
            "MXFP4",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "number {}", self.0),
        }
    }
}
