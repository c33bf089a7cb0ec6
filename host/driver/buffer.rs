//! Memory that is owned, typed and freed on drop.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use super::{Device, DevicePtr, GpuError, Pattern, PinnedAllocation, Result, Stream};
use crate::kernels::Addr;

/// `len` elements of device memory.
///
/// Dropping it waits until the device has finished the work enqueued so far, so pending copies and kernels
/// stay valid; a [`super::Graph`] that refers to it must not be launched any more.
#[derive(Debug)]
pub struct DeviceBuffer<T: Pod> {
    device: Device,
    ptr: DevicePtr,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> DeviceBuffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let ptr = if bytes == 0 { DevicePtr::default() } else { device.gpu().allocate(bytes)? };
        Ok(Self { device: device.clone(), ptr, len, element: PhantomData })
    }

    /// The address of the first element, for a launch's parameters; 0 if the buffer is empty.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// The address of element `index` ≤ `len`.
    pub fn ptr_at(&self, index: usize) -> DevicePtr {
        assert!(index <= self.len, "element {index} of a buffer of {}", self.len);
        self.ptr.add_bytes(index * size_of::<T>())
    }

    /// The address for a typed launch; [`Addr::NULL`] if the buffer is empty.
    pub fn addr(&self) -> Addr<T> {
        Addr::new(self.ptr.0)
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The size in bytes.
    pub fn size_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Copies `data` into the whole buffer; returns when it is there.
    pub fn upload(&mut self, data: &[T], stream: &Stream) -> Result<()> {
        if data.len() != self.len {
            return Err(self.out_of_range("upload", 0, data.len()));
        }
        self.upload_at(0, data, stream)
    }

    /// Copies `data` to element `offset` and on; returns when it is there.
    pub fn upload_at(&mut self, offset: usize, data: &[T], stream: &Stream) -> Result<()> {
        self.check_range("upload", offset, data.len())?;
        self.check_stream(stream)?;
        if data.is_empty() {
            return Ok(());
        }
        let (to, from) = (self.ptr_at(offset), data.as_ptr().cast());
        // SAFETY: the range was checked, and both sides are borrowed until the stream is synchronised below.
        unsafe { self.device.gpu().copy_h2d(stream.id(), to, from, size_of_val(data))? };
        stream.synchronize()
    }

    /// The whole buffer, after all earlier work of the stream.
    pub fn download(&self, stream: &Stream) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); self.len];
        self.download_at(0, &mut data, stream)?;
        Ok(data)
    }

    /// Elements `offset` and on, after all earlier work of the stream; returns when they are in `data`.
    pub fn download_at(&self, offset: usize, data: &mut [T], stream: &Stream) -> Result<()> {
        self.check_range("download", offset, data.len())?;
        self.check_stream(stream)?;
        if data.is_empty() {
            return Ok(());
        }
        let (to, from) = (data.as_mut_ptr().cast(), self.ptr_at(offset));
        // SAFETY: the range was checked, and both sides are borrowed until the stream is synchronised below.
        unsafe { self.device.gpu().copy_d2h(stream.id(), to, from, size_of_val(data))? };
        stream.synchronize()
    }

    /// Enqueues a copy of pinned `data` into the whole buffer.
    ///
    /// # Safety
    /// `data` is neither written nor dropped before the stream has run this, nor while a graph that recorded
    /// it can be launched.
    pub unsafe fn upload_async(&mut self, data: &PinnedBuffer<T>, stream: &Stream) -> Result<()> {
        if data.len() != self.len {
            return Err(self.out_of_range("upload", 0, data.len()));
        }
        self.check_stream(stream)?;
        let from = data.allocation.map(|allocation| allocation.host.as_ptr().cast_const());
        from.map_or(Ok(()), |from| {
            // SAFETY: the lengths are equal; the caller keeps `data`, and dropping the buffer waits.
            unsafe { self.device.gpu().copy_h2d(stream.id(), self.ptr, from, self.size_bytes()) }
        })
    }

    /// Enqueues a copy of the whole buffer into pinned `data`.
    ///
    /// # Safety
    /// `data` is neither accessed nor dropped before the stream has run this, nor while a graph that recorded
    /// it runs.
    pub unsafe fn download_async(&self, data: &mut PinnedBuffer<T>, stream: &Stream) -> Result<()> {
        if data.len() != self.len {
            return Err(self.out_of_range("download", 0, data.len()));
        }
        self.check_stream(stream)?;
        data.allocation.map_or(Ok(()), |allocation| {
            // SAFETY: the lengths are equal; the caller keeps `data`, and dropping the buffer waits.
            unsafe {
                self.device.gpu().copy_d2h(stream.id(), allocation.host.as_ptr(), self.ptr, self.size_bytes())
            }
        })
    }

    /// Enqueues a copy of `elements` elements of `from`, beginning at `from_offset`, to `offset`. `from` is on
    /// this device or on a peer that this device has access to.
    pub fn copy_at(
        &mut self,
        offset: usize,
        from: &DeviceBuffer<T>,
        from_offset: usize,
        elements: usize,
        stream: &Stream,
    ) -> Result<()> {
        self.check_range("copy", offset, elements)?;
        from.check_range("copy", from_offset, elements)?;
        self.check_stream(stream)?;
        self.device.expect_same_backend(&from.device, "the source")?;
        if elements == 0 {
            return Ok(());
        }
        let (to, from) = (self.ptr_at(offset), from.ptr_at(from_offset));
        // SAFETY: the ranges were checked; dropping either buffer waits for its device's work. A peer's buffer
        // is freed by its device, which synchronises with copies of its memory.
        unsafe { self.device.gpu().copy_d2d(stream.id(), to, from, elements * size_of::<T>()) }
    }

    /// Enqueues zeroing the whole buffer.
    pub fn zero(&mut self, stream: &Stream) -> Result<()> {
        self.fill_pattern(Pattern::U8(0), self.size_bytes(), stream)
    }

    /// Enqueues setting all elements to `value`. `T` has 1, 2 or 4 bytes; another size does not compile.
    pub fn fill(&mut self, value: T, stream: &Stream) -> Result<()> {
        const { assert!(matches!(size_of::<T>(), 1 | 2 | 4), "fill takes elements of 1, 2 or 4 bytes") };
        let bytes = bytemuck::bytes_of(&value);
        let pattern = match *bytes {
            [a] => Pattern::U8(a),
            [a, b] => Pattern::U16(u16::from_ne_bytes([a, b])),
            [a, b, c, d] => Pattern::U32(u32::from_ne_bytes([a, b, c, d])),
            _ => unreachable!("the size was checked at compile time"),
        };
        self.fill_pattern(pattern, self.len, stream)
    }

    fn fill_pattern(&mut self, pattern: Pattern, count: usize, stream: &Stream) -> Result<()> {
        self.check_stream(stream)?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: exactly our memory, aligned to 256; dropping it waits.
        unsafe { self.device.gpu().fill(stream.id(), self.ptr, pattern, count) }
    }

    fn check_stream(&self, stream: &Stream) -> Result<()> {
        self.device.expect_same(stream.device(), "the stream")
    }

    fn check_range(&self, operation: &'static str, offset: usize, elements: usize) -> Result<()> {
        if offset.checked_add(elements).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(self.out_of_range(operation, offset, elements))
    }

    fn out_of_range(&self, operation: &'static str, offset: usize, elements: usize) -> GpuError {
        GpuError::OutOfRange {
            device: self.device.label().to_owned(),
            operation,
            offset,
            elements,
            len: self.len,
        }
    }
}

impl<T: Pod> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.size_bytes() > 0 {
            // SAFETY: we own the memory and nobody has it any more. An error has nobody to go to here: it is
            // an earlier kernel's and the next call on the device repeats it.
            let _ = unsafe { self.device.gpu().free(self.ptr) };
        }
    }
}

/// `len` elements of page-locked host memory that the device can address, a slice on the host.
///
/// Kernels and copies that use it are enqueued by `unsafe` calls, whose callers promise not to touch it
/// meanwhile; a word that a running kernel writes is read with [`PinnedBuffer::load`].
#[derive(Debug)]
pub struct PinnedBuffer<T: Pod> {
    device: Device,
    allocation: Option<PinnedAllocation>,
    len: usize,
    element: PhantomData<T>,
}

// SAFETY: it owns its memory, like a Vec; the address in it is not tied to a thread.
unsafe impl<T: Pod + Send> Send for PinnedBuffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Pod + Sync> Sync for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    pub(super) fn new(device: &Device, len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let allocation = if bytes == 0 { None } else { Some(device.gpu().allocate_pinned(bytes)?) };
        Ok(Self { device: device.clone(), allocation, len, element: PhantomData })
    }

    /// The address for kernels; 0 if the buffer is empty.
    pub fn ptr(&self) -> DevicePtr {
        self.allocation.map(|allocation| allocation.device).unwrap_or_default()
    }

    /// Element `index` as it is now, also while a kernel writes it. Words of at most 8 bytes arrive whole.
    pub fn load(&self, index: usize) -> T {
        assert!(index < self.len, "element {index} of a buffer of {}", self.len);
        match self.allocation {
            // SAFETY: in bounds, aligned by the page, and any bytes are a T; volatile, so that each call reads.
            Some(allocation) => unsafe { allocation.host.cast::<T>().add(index).read_volatile() },
            None => T::zeroed(),
        }
    }
}

impl<T: Pod> Deref for PinnedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self.allocation {
            // SAFETY: `len` elements, aligned by the page, zeroed at allocation, any bytes are a T; whoever lets
            // the device write it promised to keep this borrow apart.
            Some(allocation) => unsafe {
                std::slice::from_raw_parts(allocation.host.cast().as_ptr(), self.len)
            },
            None => &[],
        }
    }
}

impl<T: Pod> DerefMut for PinnedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self.allocation {
            // SAFETY: as for Deref, and borrowed mutably.
            Some(allocation) => unsafe {
                std::slice::from_raw_parts_mut(allocation.host.cast().as_ptr(), self.len)
            },
            None => &mut [],
        }
    }
}

impl<T: Pod> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        if let Some(allocation) = self.allocation {
            // SAFETY: we own the memory and nobody has it any more. Errors: as for DeviceBuffer.
            let _ = unsafe { self.device.gpu().free_pinned(allocation) };
        }
    }
}
