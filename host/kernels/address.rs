//! Device addresses that know their element type.

use std::fmt;
use std::marker::PhantomData;

/// The address of elements of type `T` in a GPU's memory, 0 for none.
///
/// A plain number underneath, from whichever library allocated the memory; the type only keeps an f32 buffer
/// from being passed where a kernel reads bf16.
#[repr(transparent)]
pub struct Addr<T> {
    raw: u64,
    element: PhantomData<fn() -> T>,
}

impl<T> Addr<T> {
    /// No memory.
    pub const NULL: Self = Self::new(0);

    /// The address as the driver has it (a `CUdeviceptr`).
    pub const fn new(raw: u64) -> Self {
        Self { raw, element: PhantomData }
    }

    /// The plain number.
    pub const fn raw(self) -> u64 {
        self.raw
    }

    /// The address of the element `index` further on.
    #[must_use]
    pub const fn at(self, index: usize) -> Self {
        Self::new(self.raw + (index * size_of::<T>()) as u64)
    }
}

impl<T> Clone for Addr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Addr<T> {}

impl<T> PartialEq for Addr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl<T> Eq for Addr<T> {}

impl<T> fmt::Debug for Addr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.raw)
    }
}

/// Rows of a matrix in a GPU's memory.
#[derive(Debug)]
pub struct Rows<T> {
    /// The first element.
    pub at: Addr<T>,
    /// Elements from one row to the next.
    pub stride: u32,
}

impl<T> Rows<T> {
    /// Rows `stride` elements apart.
    pub const fn new(at: Addr<T>, stride: u32) -> Self {
        Self { at, stride }
    }
}

impl<T> Clone for Rows<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Rows<T> {}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn elements_are_counted_in_their_size() {
        assert_eq!(Addr::<bf16>::new(0x100).at(3).raw(), 0x106);
        assert_eq!(Addr::<f32>::new(0x100).at(3).raw(), 0x10c);
        assert_eq!(format!("{:?}", Addr::<u64>::new(255)), "0xff");
    }
}
