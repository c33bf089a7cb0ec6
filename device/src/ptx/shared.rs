//! Shared memory: arrays, loads, stores.
//!
//! The language has no form for it on this target, so arrays are declared in PTX and addressed by
//! name. A kernel pays only for the arrays that it names.

use core::arch::asm;

use super::Shared;

/// Declares a static array in shared memory and a function that returns its address.
macro_rules! shared_array {
    ($(#[$doc:meta])* $name:ident: $bytes:literal bytes, align $align:literal) => {
        core::arch::global_asm!(concat!(
            ".shared .align ", $align, " .b8 fewsync_", stringify!($name), "[", $bytes, "];"
        ));

        $(#[$doc])*
        #[inline(always)]
        fn $name() -> $crate::ptx::Shared {
            let address: u32;
            // SAFETY: takes the address of the array declared above.
            unsafe {
                core::arch::asm!(concat!("mov.u32 {}, fewsync_", stringify!($name), ";"), out(reg32) address,
                    options(pure, nomem, nostack));
            }
            address
        }
    };
}

core::arch::global_asm!(".extern .shared .align 1024 .b8 fewsync_dynamic[];");

/// Address of the dynamic shared memory whose size the launch gives.
#[inline(always)]
pub fn dynamic() -> Shared {
    let address: u32;
    // SAFETY: takes the address of the array declared above.
    unsafe { asm!("mov.u32 {}, fewsync_dynamic;", out(reg32) address, options(pure, nomem, nostack)) };
    address
}

/// `ld.shared.b32`
#[inline(always)]
pub unsafe fn ld_b32(address: Shared) -> u32 {
    let value: u32;
    asm!("ld.shared.b32 {}, [{}];", out(reg32) value, in(reg32) address, options(pure, readonly, nostack));
    value
}

/// `ld.shared.f32`
#[inline(always)]
pub unsafe fn ld_f32(address: Shared) -> f32 {
    f32::from_bits(ld_b32(address))
}

/// `ld.shared.b64`
#[inline(always)]
pub unsafe fn ld_b64(address: Shared) -> u64 {
    let value: u64;
    asm!("ld.shared.b64 {}, [{}];", out(reg64) value, in(reg32) address, options(pure, readonly, nostack));
    value
}

/// `ld.shared.v4.b32`: 16 bytes, aligned.
#[inline(always)]
pub unsafe fn ld_v4(address: Shared) -> [u32; 4] {
    let (x, y, z, w): (u32, u32, u32, u32);
    asm!("ld.shared.v4.b32 {{{}, {}, {}, {}}}, [{}];",
        out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg32) address,
        options(pure, readonly, nostack));
    [x, y, z, w]
}

/// `st.shared.b32`
#[inline(always)]
pub unsafe fn st_b32(address: Shared, value: u32) {
    asm!("st.shared.b32 [{}], {};", in(reg32) address, in(reg32) value, options(nostack));
}

/// `st.shared.f32`
#[inline(always)]
pub unsafe fn st_f32(address: Shared, value: f32) {
    st_b32(address, value.to_bits());
}

/// `st.shared.b64`
#[inline(always)]
pub unsafe fn st_b64(address: Shared, value: u64) {
    asm!("st.shared.b64 [{}], {};", in(reg32) address, in(reg64) value, options(nostack));
}

/// `st.shared.v2.f32`: 8 bytes, aligned.
#[inline(always)]
pub unsafe fn st_v2_f32(address: Shared, v: [f32; 2]) {
    asm!("st.shared.v2.f32 [{}], {{{}, {}}};", in(reg32) address, in(reg32) v[0], in(reg32) v[1], options(nostack));
}

/// `st.shared.v4.f32`: 16 bytes, aligned.
#[inline(always)]
pub unsafe fn st_v4_f32(address: Shared, v: [f32; 4]) {
    st_v4(address, v.map(f32::to_bits));
}

/// `st.shared.v4.b32`: 16 bytes, aligned.
#[inline(always)]
pub unsafe fn st_v4(address: Shared, v: [u32; 4]) {
    asm!("st.shared.v4.b32 [{}], {{{}, {}, {}, {}}};",
        in(reg32) address, in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], options(nostack));
}
