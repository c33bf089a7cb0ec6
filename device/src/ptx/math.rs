//! Arithmetic that Rust has no operator for.

use core::arch::asm;

/// `fma.rn.f32`: `a * b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let d: f32;
    // SAFETY: registers only.
    unsafe {
        asm!("fma.rn.f32 {}, {}, {}, {};", out(reg32) d, in(reg32) a, in(reg32) b, in(reg32) c,
            options(pure, nomem, nostack));
    }
    d
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident = $instruction:literal;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name(x: f32) -> f32 {
            let y: f32;
            // SAFETY: registers only.
            unsafe {
                asm!(concat!($instruction, " {}, {};"), out(reg32) y, in(reg32) x, options(pure, nomem, nostack));
            }
            y
        }
    )*};
}

unary! {
    /// `ex2.approx.ftz.f32`: 2^x, 2 ulp; −∞ gives 0.
    exp2 = "ex2.approx.ftz.f32";
    /// `rcp.approx.ftz.f32`: 1/x, 1 ulp.
    rcp = "rcp.approx.ftz.f32";
    /// `rsqrt.approx.ftz.f32`: 1/√x, relative error 2^-22.4.
    rsqrt = "rsqrt.approx.ftz.f32";
    /// `sin.approx.ftz.f32`: absolute error 2^-20.5 for x in [−π, π].
    sin = "sin.approx.ftz.f32";
    /// `cos.approx.ftz.f32`: absolute error 2^-20.5 for x in [−π, π].
    cos = "cos.approx.ftz.f32";
    /// `cvt.rni.f32.f32`: nearest integer, ties to even.
    round = "cvt.rni.f32.f32";
}

/// `max.f32`; a NaN gives way to the other operand.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    let c: f32;
    // SAFETY: registers only.
    unsafe {
        asm!("max.f32 {}, {}, {};", out(reg32) c, in(reg32) a, in(reg32) b, options(pure, nomem, nostack));
    }
    c
}

/// `cvt.rn.bf16x2.f32`: `low` in bits 0–15, `high` in bits 16–31.
#[inline(always)]
pub fn bf16x2(low: f32, high: f32) -> u32 {
    let pair: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) pair, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack));
    }
    pair
}

/// `cvt.rn.f16x2.f32`: `low` in bits 0–15, `high` in bits 16–31.
#[inline(always)]
pub fn f16x2(low: f32, high: f32) -> u32 {
    let pair: u32;
    // SAFETY: registers only.
    unsafe {
        asm!("cvt.rn.f16x2.f32 {}, {}, {};", out(reg32) pair, in(reg32) high, in(reg32) low,
            options(pure, nomem, nostack));
    }
    pair
}

/// `cvt.f32.f16` of both halves of a packed register: exact.
#[inline(always)]
pub fn f16x2_to_f32(pair: u32) -> [f32; 2] {
    let (low, high): (f32, f32);
    // SAFETY: registers only.
    unsafe {
        asm!("{{ .reg .b16 l, h; mov.b32 {{l, h}}, {2}; cvt.f32.f16 {0}, l; cvt.f32.f16 {1}, h; }}",
            out(reg32) low, out(reg32) high, in(reg32) pair, options(pure, nomem, nostack));
    }
    [low, high]
}
