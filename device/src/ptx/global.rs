//! Loads and stores in global memory, with their cache hints.

use core::arch::asm;

use super::Global;

macro_rules! load {
    ($($(#[$doc:meta])* $name:ident($class:ident) -> $ty:ty = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name(address: Global) -> $ty {
            let value: $ty;
            asm!(concat!($instruction, " {}, [{}];"), out($class) value, in(reg64) address,
                options(pure, readonly, nostack));
            value
        }
    )*};
}

macro_rules! load_v4 {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name(address: Global) -> [u32; 4] {
            let (x, y, z, w): (u32, u32, u32, u32);
            asm!(concat!($instruction, " {{{}, {}, {}, {}}}, [{}];"),
                out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg64) address,
                options(pure, readonly, nostack));
            [x, y, z, w]
        }
    )*};
}

macro_rules! store {
    ($($(#[$doc:meta])* $name:ident($class:ident: $ty:ty) = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub unsafe fn $name(address: Global, value: $ty) {
            asm!(concat!($instruction, " [{}], {};"), in(reg64) address, in($class) value, options(nostack));
        }
    )*};
}

load! {
    /// `ld.global.b16`
    ld_b16(reg16) -> u16 = "ld.global.b16";
    /// `ld.global.b32`
    ld_b32(reg32) -> u32 = "ld.global.b32";
    /// `ld.global.f32`
    ld_f32(reg32) -> f32 = "ld.global.f32";
    /// `ld.global.b64`
    ld_b64(reg64) -> u64 = "ld.global.b64";
}

load_v4! {
    /// `ld.global.v4.b32`: 16 bytes, aligned.
    ld_v4 = "ld.global.v4.b32";
    /// `ld.global.nc.L1::no_allocate.v4.b32`: 16 bytes, aligned, that no one writes during the kernel
    /// and no one reads twice.
    ld_v4_stream = "ld.global.nc.L1::no_allocate.v4.b32";
}

store! {
    /// `st.global.b16`
    st_b16(reg16: u16) = "st.global.b16";
    /// `st.global.b32`
    st_b32(reg32: u32) = "st.global.b32";
    /// `st.global.f32`
    st_f32(reg32: f32) = "st.global.f32";
    /// `st.global.b64`
    st_b64(reg64: u64) = "st.global.b64";
}

/// `st.global.v4.b32`: 16 bytes, aligned.
#[inline(always)]
pub unsafe fn st_v4(address: Global, v: [u32; 4]) {
    asm!("st.global.v4.b32 [{}], {{{}, {}, {}, {}}};",
        in(reg64) address, in(reg32) v[0], in(reg32) v[1], in(reg32) v[2], in(reg32) v[3], options(nostack));
}

/// `st.global.v2.f32`: 8 bytes, aligned.
#[inline(always)]
pub unsafe fn st_v2_f32(address: Global, v: [f32; 2]) {
    asm!("st.global.v2.f32 [{}], {{{}, {}}};",
        in(reg64) address, in(reg32) v[0], in(reg32) v[1], options(nostack));
}

/// `ld.global.b64` that is issued where it stands, so that loads written one after the other wait for memory
/// together.
#[inline(always)]
pub unsafe fn ld_b64_here(address: Global) -> u64 {
    let value: u64;
    asm!("ld.global.b64 {}, [{}];", out(reg64) value, in(reg64) address, options(nostack));
    value
}

/// `ld.global.v4.b32` that is issued where it stands: 16 bytes, aligned.
#[inline(always)]
pub unsafe fn ld_v4_here(address: Global) -> [u32; 4] {
    let (x, y, z, w): (u32, u32, u32, u32);
    asm!("ld.global.v4.b32 {{{}, {}, {}, {}}}, [{}];",
        out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg64) address, options(nostack));
    [x, y, z, w]
}

/// `@p ld.global.v4.b32`: 16 bytes, aligned; zeros, and no access, unless `wanted`. It is issued where it stands, without
/// a branch.
#[inline(always)]
pub unsafe fn ld_v4_if(wanted: bool, address: Global) -> [u32; 4] {
    let (x, y, z, w): (u32, u32, u32, u32);
    asm!("{{ .reg .pred %wanted; setp.ne.b32 %wanted, {}, 0;",
        "mov.b32 {}, 0; mov.b32 {}, 0; mov.b32 {}, 0; mov.b32 {}, 0;",
        "@%wanted ld.global.v4.b32 {{{1}, {2}, {3}, {4}}}, [{5}]; }}",
        in(reg32) u32::from(wanted), out(reg32) x, out(reg32) y, out(reg32) z, out(reg32) w, in(reg64) address,
        options(nostack));
    [x, y, z, w]
}
