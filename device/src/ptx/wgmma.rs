//! `wgmma`: products of a warpgroup's four warps, read from shared memory by the asynchronous proxy (sm_90a).
//!
//! The whole warpgroup executes these together. Between [`Accumulators::multiply`] and the wait for its group the
//! accumulators are the tensor cores', and so are the registers of a left operand; only further products of the same
//! shape may take them.

use core::arch::asm;

use super::Shared;

/// A K-major operand of 16-bit values in shared memory, rows of 128 bytes in the 128-byte swizzle: 16-byte chunk c of
/// row r lies at chunk c ^ (r mod 8).
///
/// PTX ISA, "Matrix-Descriptor Format": start address, stride of 1024 bytes from eight rows to the next, swizzle
/// mode 1; the leading dimension's stride is not used.
#[derive(Clone, Copy)]
pub struct Descriptor(u64);

impl Descriptor {
    /// Of the operand that starts at `address`, 1024-byte aligned.
    #[inline(always)]
    pub fn new(address: Shared) -> Self {
        const MODE: u64 = 1 << 62 | (1024 >> 4) << 32 | 1 << 16;
        Self(MODE | u64::from(address >> 4))
    }

    /// The same from column 16 · `step` on, `step` below 4.
    #[inline(always)]
    pub fn at_step(self, step: u32) -> Self {
        Self(self.0 + u64::from(step) * 2)
    }

    /// The same so many bytes further, a multiple of 1024.
    #[inline(always)]
    pub fn beyond(self, bytes: u32) -> Self {
        Self(self.0 + u64::from(bytes >> 4))
    }
}

/// A right operand whose neighbours along N are neighbours in shared memory (MN-major): for each of k, panels of 64
/// values of N, rows of 128 bytes in the 128-byte swizzle as of [`Descriptor`].
///
/// PTX ISA, "Shared Memory Matrix Layout": the canonical layout ((8,8,m),(8,k)):((1,8,LBO),(64,SBO)) of 16-bit values
/// under Swizzle<3,4,3>. The leading dimension's byte offset (LBO, bits 16 to 29) is from one panel to the next; the
/// stride dimension's (SBO, bits 32 to 45) from eight of k to the next, 8 rows of 128 bytes; the swizzle's mode (bits 62
/// and 63) is 1; the base offset (bits 49 to 51) is 0, since the pattern begins at a multiple of 1024 bytes.
#[derive(Clone, Copy)]
pub struct Transposed(u64);

impl Transposed {
    /// Of the operand whose first panel starts at `address`, 1024-byte aligned, and whose next is `panel_bytes` on.
    #[inline(always)]
    pub fn new(address: Shared, panel_bytes: u32) -> Self {
        const MODE: u64 = 1 << 62 | (1024 >> 4) << 32;
        Self(MODE | u64::from(panel_bytes >> 4) << 16 | u64::from(address >> 4))
    }

    /// The same from 16 · `step` of k on: 16 rows of 128 bytes each.
    #[inline(always)]
    pub fn at_step(self, step: u32) -> Self {
        const STEP_BYTES: u64 = 16 * 128;
        Self(self.0 + u64::from(step) * (STEP_BYTES >> 4))
    }
}

/// 16 columns of a left operand in registers: of rows g and g + 8 of the warp's sixteen, columns 2t and 2t + 1, then of
/// the same rows columns 2t + 8 and 2t + 9 (g and t as of [`Accumulators`]); packed, the lower column in the low half.
pub type Fragment = [u32; 4];

/// Keeps the registers of a fragment as they are up to here: products read them until they have been waited for.
#[inline(always)]
pub fn keep(fragment: &Fragment) {
    // SAFETY: a comment, which names registers.
    unsafe {
        asm!("// {} {} {} {}", in(reg32) fragment[0], in(reg32) fragment[1], in(reg32) fragment[2],
            in(reg32) fragment[3], options(nomem, nostack));
    }
}

/// A thread's part of a 64 × N block of sums in f32.
///
/// With `g = lane / 4`, `t = lane % 4` and w the warp in the warpgroup, element 4j + i is at row 16w + g + 8 (i / 2),
/// column 8j + 2t + i % 2.
pub trait Accumulators: AsRef<[f32]> + AsMut<[f32]> {
    /// Columns.
    const N: u32;

    /// All zero.
    const ZERO: Self;

    /// `wgmma.mma_async.sync.aligned.m64nNk16.f32.bf16.bf16`: adds `a · bᵀ`, `a` of 64 rows and `b` of N, 16 columns.
    ///
    /// # Safety
    /// What the descriptors name is written, and fenced by [`fence_proxy_async`](super::barrier::fence_proxy_async),
    /// and is not written before the group has been waited for. [`fence`] comes first.
    unsafe fn multiply(&mut self, a: Descriptor, b: Descriptor);

    /// The same, of sums that begin with this product.
    ///
    /// # Safety
    /// As of [`Accumulators::multiply`].
    unsafe fn product(a: Descriptor, b: Descriptor) -> Self;

    /// The same with `a` in registers, adding `a · b`. Those are the tensor cores' until the group has been waited for:
    /// [`keep`] comes behind that wait.
    ///
    /// # Safety
    /// As of [`Accumulators::multiply`].
    unsafe fn multiply_fragment(&mut self, a: &Fragment, b: Transposed);

    /// `wgmma.wait_group`: waits until at most `PENDING` groups are in flight; the sums, of an older group, are here.
    fn wait_until<const PENDING: u32>(&mut self);

    /// `wgmma.wait_group 0`: the sums are here.
    #[inline(always)]
    fn wait(&mut self) {
        self.wait_until::<0>();
    }
}

macro_rules! accumulators {
    ($(#[doc = $doc:literal])* $shape:literal, $n:literal, $ty:ty; $first:literal $($i:literal)*) => {
        $(#[doc = $doc])*
        impl Accumulators for $ty {
            const N: u32 = $n;
            const ZERO: Self = [0.0; $n / 2];

            #[inline(always)]
            unsafe fn multiply(&mut self, a: Descriptor, b: Descriptor) {
                asm!(
                    concat!("{{ .reg .pred %add; setp.ne.b32 %add, 1, 0; wgmma.mma_async.sync.aligned.", $shape,
                        ".f32.bf16.bf16 {{{", $first, "}" $(, ", {", $i, "}")*, "}}, {a}, {b}, %add, 1, 1, 0, 0; }}"),
                    inout(reg32) self[$first], $(inout(reg32) self[$i],)*
                    a = in(reg64) a.0, b = in(reg64) b.0, options(nostack),
                );
            }

            #[inline(always)]
            unsafe fn product(a: Descriptor, b: Descriptor) -> Self {
                let mut sums = Self::ZERO;
                asm!(
                    concat!("{{ .reg .pred %add; setp.ne.b32 %add, 0, 0; wgmma.mma_async.sync.aligned.", $shape,
                        ".f32.bf16.bf16 {{{", $first, "}" $(, ", {", $i, "}")*, "}}, {a}, {b}, %add, 1, 1, 0, 0; }}"),
                    out(reg32) sums[$first], $(out(reg32) sums[$i],)*
                    a = in(reg64) a.0, b = in(reg64) b.0, options(nostack),
                );
                sums
            }

            #[inline(always)]
            unsafe fn multiply_fragment(&mut self, a: &Fragment, b: Transposed) {
                asm!(
                    concat!("{{ .reg .pred %add; setp.ne.b32 %add, 1, 0; wgmma.mma_async.sync.aligned.", $shape,
                        ".f32.bf16.bf16 {{{", $first, "}" $(, ", {", $i, "}")*,
                        "}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, %add, 1, 1, 1; }}"),
                    inout(reg32) self[$first], $(inout(reg32) self[$i],)*
                    a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                    b = in(reg64) b.0, options(nostack),
                );
            }

            #[inline(always)]
            fn wait_until<const PENDING: u32>(&mut self) {
                // SAFETY: only waits. The accumulators are operands so that no use of them moves ahead.
                unsafe {
                    asm!(concat!("wgmma.wait_group.sync.aligned {pending}; // {", $first, "}" $(, " {", $i, "}")*),
                        inout(reg32) self[$first], $(inout(reg32) self[$i],)*
                        pending = const PENDING, options(nostack));
                }
            }
        }
    };
}

accumulators! {
    /// 64 × 32.
    "m64n32k16", 32, [f32; 16];
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
}

accumulators! {
    /// 64 × 64.
    "m64n64k16", 64, [f32; 32];
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
}

accumulators! {
    /// 64 × 128.
    "m64n128k16", 128, [f32; 64];
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
        37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
}

accumulators! {
    /// 64 × 192.
    "m64n192k16", 192, [f32; 96];
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
        37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69
        70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
}

accumulators! {
    /// 64 × 256.
    "m64n256k16", 256, [f32; 128];
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36
        37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66 67 68 69
        70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99 100 101
        102 103 104 105 106 107 108 109 110 111 112 113 114 115 116 117 118 119 120 121 122 123 124 125 126
        127
}

/// `wgmma.fence`: orders earlier accesses to accumulators before the products that follow.
#[inline(always)]
pub fn fence() {
    // SAFETY: only orders register accesses.
    unsafe { asm!("wgmma.fence.sync.aligned;", options(nostack)) };
}

/// `wgmma.commit_group`: closes the group of products issued since the last one.
#[inline(always)]
pub fn commit() {
    // SAFETY: only counts.
    unsafe { asm!("wgmma.commit_group.sync.aligned;", options(nostack)) };
}

/// `wgmma.wait_group`: waits until at most `PENDING` groups of this warpgroup are in flight. What they read may be
/// written then; their sums are read after [`Accumulators::wait`].
#[inline(always)]
pub fn wait<const PENDING: u32>() {
    // SAFETY: only waits.
    unsafe { asm!("wgmma.wait_group.sync.aligned {};", const PENDING, options(nostack)) };
}
