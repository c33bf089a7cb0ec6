//! Pinned host memory: the host's copy and the emulated one, brought together whenever the machine pauses.
//!
//! The host reads and writes its copy as it likes, while kernels work on an allocation of the machine, where every
//! access is checked. A third copy holds what both had when they last met, so that each word that one side
//! changed goes to the other; a byte that both changed is the device's.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::driver::DevicePtr;

/// Both sides exchange words of this size, and each arrives whole.
pub(super) const WORD: usize = 8;
/// Of the host's copy: a page, as page-locked memory has.
const ALIGN: usize = 4096;

/// One pinned allocation.
#[derive(Debug)]
pub(super) struct Pinned {
    host: NonNull<u64>,
    pub(super) device: DevicePtr,
    /// What was asked for, and what the machine's allocation has: the host's ends with a whole word.
    pub(super) bytes: usize,
    /// What both sides had when they last met.
    met: Vec<u64>,
}

// SAFETY: it owns its memory; the pointer in it is not tied to a thread.
unsafe impl Send for Pinned {}

/// Halves of words that the host has changed: their offset in bytes and what they are now. A neighbour in the same
/// word is not the host's to write: a kernel may be working on it.
pub(super) type Changes = Vec<(usize, u32)>;

impl Pinned {
    /// `bytes` > 0 of zeros on the host, rounded up to words; the machine's allocation at `device` is zeroed, too.
    pub(super) fn new(bytes: usize, device: DevicePtr) -> Self {
        let met = vec![0; bytes.div_ceil(WORD)];
        let layout = Self::layout(met.len());
        // SAFETY: the layout has a size.
        let host =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Self { host: host.cast(), device, bytes, met }
    }

    fn layout(words: usize) -> Layout {
        Layout::from_size_align(words * WORD, ALIGN).expect("the allocation's size has been checked")
    }

    pub(super) fn host(&self) -> NonNull<u8> {
        self.host.cast()
    }

    /// Whether the host's copy holds all of these bytes.
    pub(super) fn contains(&self, from: *const u8, bytes: usize) -> bool {
        let (start, at) = (self.host.as_ptr() as usize, from as usize);
        at >= start && at.saturating_add(bytes) <= start + self.bytes
    }

    fn word(&self, index: usize) -> u64 {
        // SAFETY: in bounds and aligned; volatile, since the host may be writing a word at this moment, as it may
        // with memory that a GPU addresses.
        unsafe { self.host.add(index).read_volatile() }
    }

    /// Whether the host has written something since both sides last met.
    pub(super) fn has_host_changes(&self) -> bool {
        (0..self.met.len()).any(|index| self.word(index) != self.met[index])
    }

    /// What the host has written since both sides last met.
    pub(super) fn host_changes(&mut self) -> Changes {
        let mut changes = Changes::new();
        for index in 0..self.met.len() {
            let now = self.word(index);
            let old = std::mem::replace(&mut self.met[index], now);
            for half in 0..2 {
                let [old, now] = [old, now].map(|word| (word >> (32 * half)) as u32);
                if old != now {
                    changes.push((index * WORD + 4 * half, now));
                }
            }
        }
        changes
    }

    /// Hands the host what the device has written: `now` is all of the machine's copy.
    pub(super) fn take(&mut self, now: &[u8]) {
        for (index, now) in now.chunks(WORD).enumerate() {
            let mut word = [0; WORD];
            word[..now.len()].copy_from_slice(now);
            let now = u64::from_le_bytes(word);
            let changed = byte_mask(now ^ self.met[index]);
            if changed != 0 {
                let merged = self.word(index) & !changed | now & changed;
                // SAFETY: in bounds and aligned; the word arrives whole. The host does not write these bytes now:
                // the device does.
                unsafe { self.host.add(index).write_volatile(merged) };
                self.met[index] = self.met[index] & !changed | now & changed;
            }
        }
    }
}

/// 0xff for every byte that is not 0.
fn byte_mask(word: u64) -> u64 {
    u64::from_le_bytes(word.to_le_bytes().map(|byte| if byte == 0 { 0 } else { u8::MAX }))
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.host.as_ptr().cast(), Self::layout(self.met.len())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_gets_what_the_other_wrote() {
        let mut pinned = Pinned::new(20, DevicePtr(0));
        let host = pinned.host().as_ptr();
        // SAFETY: in bounds of 20 bytes.
        unsafe { host.add(9).write(7) };
        assert!(pinned.has_host_changes());
        assert_eq!(pinned.host_changes(), [(8, 0x0700)]);
        assert!(!pinned.has_host_changes());
        assert_eq!(pinned.host_changes(), []);
        let mut device = [0; 20];
        device[9] = 7;
        (device[8], device[19]) = (5, 9);
        // The host writes a byte of the same word meanwhile.
        // SAFETY: as above.
        unsafe { host.add(10).write(3) };
        pinned.take(&device);
        // SAFETY: as above.
        let seen = unsafe { std::slice::from_raw_parts(host, 20) };
        assert_eq!((&seen[8..11], seen[19]), (&[5, 7, 3][..], 9));
        assert_eq!(pinned.host_changes(), [(8, 0x03_07_05)]);
        // SAFETY: as above.
        unsafe { host.add(12).write(1) };
        assert_eq!(pinned.host_changes(), [(12, 1)], "the other half is left alone");
        assert!(pinned.contains(host, 20) && !pinned.contains(host, 21));
    }
}
