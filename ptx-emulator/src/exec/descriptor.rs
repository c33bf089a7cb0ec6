//! Operands of `wgmma` in shared memory (PTX ISA, "Shared Memory Matrix Layout" and "Matrix Descriptor Format").
//!
//! All layouts are of units of 16 bytes: eight elements that are neighbours in k (K-major), or of M or N (MN-major). A
//! swizzle's pattern has lines of 32, 64 or 128 bytes, eight lines of which repeat; units change places within a line
//! by the bits of their address above it.

/// Elements of 16 bits in a unit, and lines of a pattern.
pub(super) const EIGHT: usize = 8;

/// Along what an operand's units lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Major {
    K,
    /// M of A, N of B: `imm-trans-a` and `imm-trans-b`.
    Mn,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    /// Bits 0 to 13, in units.
    start: u64,
    /// Bits 16 to 29, "leading dimension byte offset". K-major: from the first eight of k to the next, without a
    /// swizzle; else not used. MN-major: without a swizzle from the first eight of k to the next; else from a line's
    /// worth of M or N to the next.
    leading_bytes: u64,
    /// Bits 32 to 45, "stride dimension byte offset". K-major: from eight rows to the next. MN-major: without a swizzle
    /// from eight rows to the next; else from the first eight of k to the next.
    stride_bytes: u64,
    /// Bits 62 and 63: bytes of a line of the pattern; 0 for none.
    swizzle_bytes: u64,
}

impl Descriptor {
    /// None where the pattern begins elsewhere than at a multiple of its size (bits 49 to 51).
    pub(super) fn new(bits: u64) -> Option<Self> {
        let field = |shift: u32| (bits >> shift & 0x3FFF) << 4;
        let swizzle_bytes = [0, 128, 64, 32][(bits >> 62) as usize];
        let base_offset = bits >> 49 & 7;
        (base_offset == 0).then(|| Self {
            start: field(0),
            leading_bytes: field(16),
            stride_bytes: field(32),
            swizzle_bytes,
        })
    }

    /// Of a unit in shared memory. K-major: the `unit`-th eight of k, of row `line`. MN-major: the `unit`-th eight
    /// rows, of column `line` of k. A row is one of M or N.
    pub(super) fn address(self, major: Major, line: usize, unit: usize) -> u64 {
        let (eights, line, unit) = ((line / EIGHT) as u64, (line % EIGHT) as u64, unit as u64);
        let Self { start, leading_bytes, stride_bytes, swizzle_bytes } = self;
        match (major, swizzle_bytes) {
            (Major::K, 0) => start + eights * stride_bytes + line * 16 + unit * leading_bytes,
            (Major::Mn, 0) => start + eights * leading_bytes + line * 16 + unit * stride_bytes,
            (Major::K, _) => self.swizzled(start + eights * stride_bytes + line * swizzle_bytes + unit * 16),
            (Major::Mn, _) => {
                let units = swizzle_bytes / 16;
                let in_line = unit / units * leading_bytes + unit % units * 16;
                self.swizzled(start + eights * stride_bytes + line * swizzle_bytes + in_line)
            }
        }
    }

    fn swizzled(self, at: u64) -> u64 {
        at ^ (at >> 7 & (self.swizzle_bytes / 16 - 1)) << 4
    }
}
