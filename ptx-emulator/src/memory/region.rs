//! The bytes of one allocation, or of one block's shared memory, with a bit per initialised byte.

use super::Width;
use super::tracking::Tracking;

/// Bytes, which of them are initialised, and what is known of the accesses to them.
#[derive(Debug, Default)]
pub(super) struct Region {
    bytes: Vec<u8>,
    /// Bit `i % 64` of word `i / 64` tells of byte `i`.
    initialised: Vec<u64>,
    /// Made with the first access that it matters for.
    tracking: Option<Box<Tracking>>,
}

impl Region {
    /// Zeros that count as uninitialised.
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], initialised: vec![0; bytes.div_ceil(64)], tracking: None }
    }

    /// As [`Region::new`]; `None` if this computer has no such range of addresses.
    pub(super) fn try_new(bytes: u64) -> Option<Self> {
        let bytes = usize::try_from(bytes).ok()?;
        // Only a trial: zeros from the system cost nothing until they are written.
        Vec::<u8>::new().try_reserve_exact(bytes).ok()?;
        Some(Self::new(bytes))
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// What is known of accesses, if there were any for which it matters.
    #[inline]
    pub(super) fn tracking(&self) -> Option<&Tracking> {
        self.tracking.as_deref()
    }

    /// What is known of accesses.
    #[inline]
    pub(super) fn tracking_mut(&mut self) -> &mut Tracking {
        self.tracking.get_or_insert_default()
    }

    /// The value at `offset`, which is aligned and in bounds.
    #[inline]
    pub(super) fn load(&self, offset: usize, width: Width) -> u64 {
        let at = &self.bytes[offset..];
        match width {
            Width::B1 => u64::from(at[0]),
            Width::B2 => u64::from(u16::from_le_bytes(prefix(at))),
            Width::B4 => u64::from(u32::from_le_bytes(prefix(at))),
            Width::B8 => u64::from_le_bytes(prefix(at)),
        }
    }

    /// Stores the low bytes of `value` at `offset`, which is aligned and in bounds; true if they were others.
    #[inline]
    pub(super) fn store(&mut self, offset: usize, width: Width, value: u64) -> bool {
        let bytes = width.bytes() as usize;
        let changes = (self.load(offset, width) ^ value) & (u64::MAX >> (64 - 8 * bytes)) != 0;
        self.bytes[offset..offset + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.initialised[offset / 64] |= u64::from(width.mask()) << (offset % 64);
        changes
    }

    /// The bytes of `range`.
    pub(super) fn bytes(&self, offset: usize, bytes: usize) -> &[u8] {
        &self.bytes[offset..offset + bytes]
    }

    /// The bytes of `range`, which from now on are initialised.
    pub(super) fn bytes_mut(&mut self, offset: usize, bytes: usize) -> &mut [u8] {
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let upto = end.min(at / 64 * 64 + 64);
            self.initialised[at / 64] |= ones(upto - at) << (at % 64);
            at = upto;
        }
        &mut self.bytes[offset..end]
    }

    /// Whether all bytes of an aligned access are initialised.
    #[inline]
    pub(super) fn is_initialised(&self, offset: usize, width: Width) -> bool {
        let mask = u64::from(width.mask());
        (self.initialised[offset / 64] >> (offset % 64)) & mask == mask
    }

    /// The first byte of the range that was never written.
    #[inline]
    pub(super) fn first_uninitialised(&self, offset: usize, bytes: usize) -> Option<usize> {
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let upto = end.min(at / 64 * 64 + 64);
            let missing = !(self.initialised[at / 64] >> (at % 64)) & ones(upto - at);
            if missing != 0 {
                return Some(at + missing.trailing_zeros() as usize);
            }
            at = upto;
        }
        None
    }

    /// Stores the bytes of `mask` of a granule.
    pub(super) fn store_masked(&mut self, granule: usize, mask: u8, value: u64) {
        let mut left = mask;
        while left != 0 {
            let at = left.trailing_zeros() as usize;
            self.bytes[granule * 8 + at] = value.to_le_bytes()[at];
            left &= left - 1;
        }
        self.initialised[granule / 8] |= u64::from(mask) << (granule % 8 * 8);
    }

    /// Which bytes of a granule are initialised, one bit each.
    pub(super) fn initialised_mask(&self, granule: usize) -> u8 {
        (self.initialised[granule / 8] >> (granule % 8 * 8)) as u8
    }

    /// The granule (aligned 8 bytes) around `offset`, zero beyond the end.
    pub(super) fn granule(&self, granule: usize) -> u64 {
        let at = granule * 8;
        match self.bytes.get(at..at + 8) {
            Some(whole) => u64::from_le_bytes(prefix(whole)),
            None => {
                let mut value = [0; 8];
                let tail = &self.bytes[at..];
                value[..tail.len()].copy_from_slice(tail);
                u64::from_le_bytes(value)
            }
        }
    }
}

#[inline]
fn prefix<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("the caller has checked the bounds")
}

/// `count` ≤ 64 low bits.
#[inline]
fn ones(count: usize) -> u64 {
    u64::MAX >> (64 - count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_initialised_exactly(len in 1usize..300, a in 0usize..300, b in 0usize..300) {
            let (a, b) = (a.min(b).min(len), a.max(b).min(len));
            let mut region = Region::new(len);
            region.bytes_mut(a, b - a).fill(7);
            for at in 0..len {
                prop_assert_eq!(region.first_uninitialised(at, 1).is_none(), (a..b).contains(&at));
            }
            let expected = if a == 0 && b == len { None } else if a > 0 || b == 0 { Some(0) } else { Some(b) };
            prop_assert_eq!(region.first_uninitialised(0, len), expected);
        }
    }

    #[test]
    fn the_last_granule_may_be_short() {
        let mut region = Region::new(11);
        region.bytes_mut(8, 3).copy_from_slice(&[1, 2, 3]);
        assert_eq!(region.granule(1), 0x03_02_01);
    }
}
