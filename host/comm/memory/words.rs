//! Bytes that can be seen as elements of any dtype.

use bytemuck::cast_slice;

use crate::comm::Element;

const WORD_BYTES: usize = size_of::<u64>();

/// A run of bytes, aligned to eight, that keeps its capacity.
#[derive(Debug, Default)]
pub(super) struct Words {
    words: Vec<u64>,
    bytes: usize,
}

impl Words {
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self { words: vec![0; bytes.div_ceil(WORD_BYTES)], bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// As many whole elements as there are bytes for.
    pub(super) fn as_slice<T: Element>(&self) -> &[T] {
        &cast_slice(&self.words)[..self.bytes / size_of::<T>()]
    }

    pub(super) fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes / size_of::<T>()]
    }

    /// Becomes a copy of `elements`; allocates only when they are more than ever before.
    pub(super) fn copy_from<T: Element>(&mut self, elements: &[T]) {
        self.bytes = size_of_val(elements);
        let needed = self.bytes.div_ceil(WORD_BYTES);
        if self.words.len() < needed {
            self.words.resize(needed, 0);
        }
        self.as_mut_slice::<T>().copy_from_slice(elements);
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
