//! Special registers and control.

use core::arch::asm;

macro_rules! special_register {
    ($($(#[$doc:meta])* $name:ident = $register:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() -> u32 {
            let value: u32;
            // SAFETY: reads a register that never changes during the kernel.
            unsafe { asm!(concat!("mov.u32 {}, ", $register, ";"), out(reg32) value, options(pure, nomem, nostack)) };
            value
        }
    )*};
}

special_register! {
    /// `%tid.x`
    tid_x = "%tid.x";
    /// `%ntid.x`
    ntid_x = "%ntid.x";
    /// `%ctaid.x`
    ctaid_x = "%ctaid.x";
    /// `%ctaid.y`
    ctaid_y = "%ctaid.y";
    /// `%ctaid.z`
    ctaid_z = "%ctaid.z";
    /// `%nctaid.x`
    nctaid_x = "%nctaid.x";
    /// `%nctaid.y`
    nctaid_y = "%nctaid.y";
    /// `%nctaid.z`
    nctaid_z = "%nctaid.z";
}

/// Lane in the warp; blocks are one-dimensional.
#[inline(always)]
pub fn lane() -> u32 {
    tid_x() % 32
}

/// Warp in the block; blocks are one-dimensional.
#[inline(always)]
pub fn warp() -> u32 {
    tid_x() / 32
}

/// `mov.u32`: hides a constant from the optimiser. A loop with such a bound stays a loop, where
/// unrolling it would only make the code longer.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    let same: u32;
    // SAFETY: registers only.
    unsafe { asm!("mov.u32 {}, {};", out(reg32) same, in(reg32) value, options(pure, nomem, nostack)) };
    same
}

/// `mov.u32` that stays where it stands: what is made of its result is made behind it, and takes no registers before.
#[inline(always)]
pub fn here(value: u32) -> u32 {
    let same: u32;
    // SAFETY: registers only.
    unsafe { asm!("mov.u32 {}, {};", out(reg32) same, in(reg32) value, options(nomem, nostack)) };
    same
}

/// `trap`: ends the grid with an error.
#[inline(always)]
pub fn trap() -> ! {
    // SAFETY: does not return and touches no memory.
    unsafe { asm!("trap;", options(noreturn, nostack)) }
}
