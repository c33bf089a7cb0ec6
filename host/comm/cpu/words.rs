//! Bytes that can be seen as elements of any dtype.

use bytemuck::cast_slice;

use crate::comm::Element;

const WORD_BYTES: usize = size_of::<u64>();

/// A run of bytes, aligned to eight, that keeps its capacity.
#[derive(Debug, Default)]
pub(in crate::comm) struct Words {
    words: Vec<u64>,
    bytes: usize,
}

impl Words {
    pub(in crate::comm) fn zeroed(bytes: usize) -> Self {
        Self { words: vec![0; bytes.div_ceil(WORD_BYTES)], bytes }
    }

    pub(in crate::comm) fn bytes(&self) -> usize {
        self.bytes
    }

    /// As many whole elements as there are bytes for.
    pub(in crate::comm) fn as_slice<T: Element>(&self) -> &[T] {
        &cast_slice(&self.words)[..self.bytes / size_of::<T>()]
    }

    pub(in crate::comm) fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes / size_of::<T>()]
    }

    /// Becomes a copy of `elements`; allocates only when they are more than ever before.
    pub(in crate::comm) fn copy_from<T: Element>(&mut self, elements: &[T]) {
        self.as_bytes_mut(size_of_val(elements)).copy_from_slice(cast_slice(elements));
    }

    /// Becomes `bytes` long, with any content, to be overwritten; allocates as [`copy_from`](Self::copy_from) does.
    pub(in crate::comm) fn as_bytes_mut(&mut self, bytes: usize) -> &mut [u8] {
        self.bytes = bytes;
        let needed = bytes.div_ceil(WORD_BYTES);
        if self.words.len() < needed {
            self.words.resize(needed, 0);
        }
        &mut bytemuck::cast_slice_mut(&mut self.words)[..bytes]
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn views_have_as_many_elements_as_fit() {
        let mut words = Words::zeroed(11);
        assert_eq!(words.as_slice::<f32>(), [0.0; 2]);
        assert_eq!(words.as_slice::<bf16>().len(), 5);
        words.as_mut_slice::<f32>()[1] = 1.0;
        assert_eq!(words.as_slice::<bf16>()[3], bf16::ONE, "little-endian upper half");
    }

    #[test]
    fn copies_grow_and_shrink() {
        let mut words = Words::default();
        for numel in [3, 0, 7, 1] {
            let elements: Vec<f32> = (0..numel).map(|i| i as f32).collect();
            words.copy_from(&elements);
            assert_eq!(words.as_slice::<f32>(), elements);
        }
    }
}
