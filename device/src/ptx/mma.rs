//! Tensor cores through `mma.sync`, and `ldmatrix` that feeds them (sm_80).
//!
//! The whole warp executes these together. They are not marked pure, so that the compiler cannot sink
//! one into a branch that only some lanes take because only they use its result.

use core::arch::asm;

use super::Shared;

/// `mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32`: `d += a · b`.
///
/// With `g = lane / 4`, `t = lane % 4`: `a` holds rows g, g+8, g, g+8 at columns 2t, 2t, 2t+8, 2t+8
/// (two values each); `b` holds rows (k) 2t and 2t+8 of column g; `d` holds row g at columns 2t,
/// 2t+1, then row g+8.
#[inline(always)]
pub fn m16n8k16(d: &mut [f32; 4], a: &[u32; 4], b: [u32; 2]) {
    // SAFETY: registers only; kernels call it with the whole warp converged.
    unsafe {
        asm!(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 \
             {{{0}, {1}, {2}, {3}}}, {{{4}, {5}, {6}, {7}}}, {{{8}, {9}}}, {{{0}, {1}, {2}, {3}}};",
            inout(reg32) d[0], inout(reg32) d[1], inout(reg32) d[2], inout(reg32) d[3],
            in(reg32) a[0], in(reg32) a[1], in(reg32) a[2], in(reg32) a[3],
            in(reg32) b[0], in(reg32) b[1],
            options(nomem, nostack),
        );
    }
}

macro_rules! ldmatrix {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name(row: Shared) -> [u32; 4] {
            let (x, y, z, w): (u32, u32, u32, u32);
            asm!(concat!($instruction, " {{{}, {}, {}, {}}}, [{}];"),
                out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg32) row,
                options(readonly, nostack));
            [x, y, z, w]
        }
    )*};
}

ldmatrix! {
    /// `ldmatrix.x4`: four 8×8 matrices of 16-bit values; lanes 8i…8i+7 give the rows of matrix i.
    ldmatrix_x4 = "ldmatrix.sync.aligned.m8n8.x4.shared.b16";
    /// `ldmatrix.x4.trans`: the same, each matrix transposed.
    ldmatrix_x4_trans = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16";
}
