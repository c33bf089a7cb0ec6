//! IEEE arithmetic in all four PTX rounding modes.
//!
//! Results are first rounded to nearest by the machine; a directed mode then steps to the neighbour when the
//! sign of the exact error says so. The error comes from error-free transformations (Knuth's TwoSum, a fused
//! multiply-add for products), whose sign is exact unless the result is subnormal in binary64.

/// `.rn`, `.rz`, `.rm`, `.rp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Modifiers of a floating-point instruction, packed in `Slots::mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode {
    pub(crate) rounding: Rounding,
    /// `.ftz`: subnormal inputs and results become zero of the same sign.
    pub(crate) flush: bool,
    /// `.sat`: clamp to [0, 1], NaN to 0.
    pub(crate) saturate: bool,
}

impl Mode {
    pub(crate) fn pack(self) -> u32 {
        self.rounding as u32 | u32::from(self.flush) << 2 | u32::from(self.saturate) << 3
    }

    pub(crate) fn unpack(bits: u32) -> Self {
        let rounding = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up][(bits & 3) as usize];
        Self { rounding, flush: bits & 4 != 0, saturate: bits & 8 != 0 }
    }

    pub(crate) fn input(self, value: f32) -> f32 {
        if self.flush { flush(value) } else { value }
    }

    pub(crate) fn output(self, value: f32) -> f32 {
        let value = if self.flush { flush(value) } else { value };
        canonical(if self.saturate { saturate(value) } else { value })
    }
}

/// The NaN that single-precision instructions produce.
#[inline(always)]
pub(crate) fn canonical(value: f32) -> f32 {
    if value.is_nan() { f32::from_bits(0x7FFF_FFFF) } else { value }
}

#[inline(always)]
pub(crate) fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0f32.copysign(value) } else { value }
}

/// NaN becomes 0.
pub(crate) fn saturate(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// a + b = sum + error, exactly.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let virtual_b = sum - a;
    (sum, (a - (sum - virtual_b)) + (b - virtual_b))
}

/// Rounds the unevaluated sum `high + low` (|low| ≤ ulp(high)/2) to binary32.
pub(crate) fn round_to_f32(high: f64, low: f64, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest {
        return round_to_odd(high, low) as f32;
    }
    let nearest = high as f32;
    let error = if nearest.is_infinite() && high.is_finite() { high } else { high - f64::from(nearest) };
    let error = if error == 0.0 { low } else { error };
    if nearest.is_infinite() && high.is_finite() {
        // Overflow: the exact value lies inside the largest finite number's far side.
        return overflow(nearest, rounding);
    }
    step_f32(nearest, error, rounding)
}

fn overflow(infinity: f32, rounding: Rounding) -> f32 {
    let stays = match rounding {
        Rounding::Nearest => true,
        Rounding::Zero => false,
        Rounding::Down => infinity < 0.0,
        Rounding::Up => infinity > 0.0,
    };
    if stays { infinity } else { f32::MAX.copysign(infinity) }
}

/// `high` with its last bit set where `low` is not zero, so that a second rounding is harmless.
pub(crate) fn round_to_odd(high: f64, low: f64) -> f64 {
    if low == 0.0 || !low.is_finite() || high.to_bits() & 1 != 0 {
        return high;
    }
    let away = (low > 0.0) == (high > 0.0);
    f64::from_bits(if away { high.to_bits() + 1 } else { high.to_bits() - 1 })
}

/// The neighbour of `nearest` that the mode asks for; `error` is exact minus `nearest`, of which the sign counts.
fn step_f32(nearest: f32, error: f64, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::Down if error < 0.0 => nearest.next_down(),
        Rounding::Up if error > 0.0 => nearest.next_up(),
        Rounding::Zero if error < 0.0 && nearest > 0.0 => nearest.next_down(),
        Rounding::Zero if error > 0.0 && nearest < 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

pub(crate) fn step_f64(nearest: f64, error: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Down if error < 0.0 => nearest.next_down(),
        Rounding::Up if error > 0.0 => nearest.next_up(),
        Rounding::Zero if error < 0.0 && nearest > 0.0 => nearest.next_down(),
        Rounding::Zero if error > 0.0 && nearest < 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

/// An exact zero sum is -0 when rounding down, unless both terms are +0.
fn zero_sum(a_negative: bool, b_negative: bool, rounding: Rounding) -> bool {
    if a_negative == b_negative { a_negative } else { rounding == Rounding::Down }
}

pub(crate) fn add_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest {
        return a + b;
    }
    let (high, low) = two_sum(f64::from(a), f64::from(b));
    if high == 0.0 && low == 0.0 {
        let negative = zero_sum(a.is_sign_negative(), b.is_sign_negative(), rounding);
        return if negative { -0.0 } else { 0.0 };
    }
    round_to_f32(high, low, rounding)
}

pub(crate) fn mul_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::Nearest => a * b,
        // The product of two binary32 numbers is exact in binary64.
        _ => round_to_f32(f64::from(a) * f64::from(b), 0.0, rounding),
    }
}

/// Fused multiply-add: the product is exact in binary64, the sum is rounded to odd, then once to binary32.
#[inline(always)]
pub(crate) fn fma_f32(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let (high, low) = two_sum(product, f64::from(c));
    if rounding == Rounding::Nearest {
        return round_to_odd(high, low) as f32;
    }
    if high == 0.0 && low == 0.0 {
        let negative = zero_sum(product.is_sign_negative(), c.is_sign_negative(), rounding);
        return if negative { -0.0 } else { 0.0 };
    }
    round_to_f32(high, low, rounding)
}

pub(crate) fn div_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    let nearest = a / b;
    if rounding == Rounding::Nearest || !nearest.is_finite() || b.is_infinite() {
        let overflowed = nearest.is_infinite() && a.is_finite() && b != 0.0;
        return if overflowed { overflow(nearest, rounding) } else { nearest };
    }
    let remainder = (-f64::from(nearest)).mul_add(f64::from(b), f64::from(a));
    step_f32(nearest, remainder * f64::from(b).signum(), rounding)
}

pub(crate) fn sqrt_f32(a: f32, rounding: Rounding) -> f32 {
    let nearest = a.sqrt();
    let error = (-f64::from(nearest)).mul_add(f64::from(nearest), f64::from(a));
    if nearest.is_finite() { step_f32(nearest, error, rounding) } else { nearest }
}

pub(crate) fn add_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let (sum, error) = two_sum(a, b);
    if rounding == Rounding::Nearest || !sum.is_finite() {
        return directed_overflow(sum, a.is_finite() && b.is_finite(), rounding);
    }
    if sum == 0.0 {
        let negative = zero_sum(a.is_sign_negative(), b.is_sign_negative(), rounding);
        return if negative { -0.0 } else { 0.0 };
    }
    step_f64(sum, error, rounding)
}

fn directed_overflow(value: f64, finite_inputs: bool, rounding: Rounding) -> f64 {
    if !value.is_infinite() || !finite_inputs {
        return value;
    }
    let stays = match rounding {
        Rounding::Nearest => true,
        Rounding::Zero => false,
        Rounding::Down => value < 0.0,
        Rounding::Up => value > 0.0,
    };
    if stays { value } else { f64::MAX.copysign(value) }
}

pub(crate) fn mul_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let product = a * b;
    if rounding == Rounding::Nearest || !product.is_finite() {
        return directed_overflow(product, a.is_finite() && b.is_finite(), rounding);
    }
    step_f64(product, a.mul_add(b, -product), rounding)
}

/// The error of a fused multiply-add is found as in Boldo and Muller, "Exact and Approximated Error of the FMA".
pub(crate) fn fma_f64(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    let nearest = a.mul_add(b, c);
    if rounding == Rounding::Nearest || !nearest.is_finite() {
        let finite = a.is_finite() && b.is_finite() && c.is_finite();
        return directed_overflow(nearest, finite, rounding);
    }
    let product = a * b;
    let product_error = a.mul_add(b, -product);
    if nearest == 0.0 && product + c == 0.0 && product_error == 0.0 {
        let negative = zero_sum(product.is_sign_negative(), c.is_sign_negative(), rounding);
        return if negative { -0.0 } else { 0.0 };
    }
    let (alpha, alpha_error) = two_sum(c, product_error);
    let (beta, beta_error) = two_sum(product, alpha);
    let gamma = (beta - nearest) + beta_error;
    step_f64(nearest, gamma + alpha_error, rounding)
}

pub(crate) fn div_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let nearest = a / b;
    if rounding == Rounding::Nearest || !nearest.is_finite() || b.is_infinite() {
        return directed_overflow(nearest, a.is_finite() && b != 0.0, rounding);
    }
    let remainder = (-nearest).mul_add(b, a);
    step_f64(nearest, remainder * b.signum(), rounding)
}

pub(crate) fn sqrt_f64(a: f64, rounding: Rounding) -> f64 {
    let nearest = a.sqrt();
    if !nearest.is_finite() {
        return nearest;
    }
    step_f64(nearest, (-nearest).mul_add(nearest, a), rounding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODES: [Rounding; 4] = [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up];

    /// `result` is right for a value that lies between `low` and `high` (in f64, one of them exact).
    fn brackets(result: f32, exact: f64, rounding: Rounding) -> bool {
        let value = f64::from(result);
        match rounding {
            Rounding::Nearest => result == exact as f32,
            Rounding::Down => value <= exact && exact < f64::from(result.next_up()),
            Rounding::Up => value >= exact && exact > f64::from(result.next_down()),
            Rounding::Zero => value.abs() <= exact.abs() && exact.abs() < f64::from(result.abs().next_up()),
        }
    }

    fn ordinary() -> impl Strategy<Value = f32> {
        (-1e15f32..1e15, -20i32..20).prop_map(|(value, exponent)| value * 2f32.powi(exponent))
    }

    proptest! {
        #[test]
        fn products_and_quotients_are_bracketed(a in ordinary(), b in ordinary()) {
            for mode in MODES {
                prop_assert!(brackets(mul_f32(a, b, mode), f64::from(a) * f64::from(b), mode));
            }
            // A quotient of binary32 numbers is never so near to one that binary64 cannot tell.
            for mode in &MODES[1..] {
                prop_assert!(brackets(div_f32(a, b, *mode), f64::from(a) / f64::from(b), *mode));
            }
        }

        #[test]
        fn sums_of_like_exponents_are_bracketed(a in -1e6f32..1e6, b in -1e6f32..1e6) {
            prop_assume!(a.abs() > 1e-3 && b.abs() > 1e-3);
            for mode in MODES {
                prop_assert!(brackets(add_f32(a, b, mode), f64::from(a) + f64::from(b), mode));
            }
        }

        #[test]
        fn fused_multiply_add_rounds_once(a: u32, b: u32, c: u32) {
            let (a, b, c) = (f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
            let (ours, machine) = (fma_f32(a, b, c, Rounding::Nearest), a.mul_add(b, c));
            prop_assert!(ours.to_bits() == machine.to_bits() || ours.is_nan() && machine.is_nan());
        }

        #[test]
        fn directed_modes_enclose_the_nearest(a: f64, b: f64, c: f64) {
            for (f, name) in [(add_f64 as fn(f64, f64, Rounding) -> f64, "add"), (mul_f64, "mul"), (div_f64, "div")] {
                let [near, zero, down, up] = MODES.map(|mode| f(a, b, mode));
                prop_assume!(near.is_finite() && near.abs() > 1e-290);
                prop_assert!(down <= near && near <= up, "{}", name);
                prop_assert!(zero == if near > 0.0 { down } else { up }, "{}", name);
            }
            let [near, zero, down, up] = MODES.map(|mode| fma_f64(a, b, c, mode));
            prop_assume!(near.is_finite() && near.abs() > 1e-290);
            prop_assert!(down <= near && near <= up);
            prop_assert!(zero == (if near > 0.0 { down } else { up }), "fma");
        }
    }

    #[test]
    fn a_tie_of_a_fused_sum_looks_at_the_last_bit() {
        // 1 + 2^-24 is a tie; the tiny third term decides.
        let half_ulp = 2f32.powi(-24);
        let tiny = f32::from_bits(1);
        assert_eq!(fma_f32(half_ulp, 1.0, 1.0, Rounding::Nearest), 1.0);
        assert_eq!(fma_f32(half_ulp, 1.0 + f32::EPSILON, 1.0, Rounding::Nearest), 1.0 + f32::EPSILON);
        assert_eq!(fma_f32(1.0, 1.0, tiny, Rounding::Up), 1.0f32.next_up());
        assert_eq!(fma_f32(1.0, 1.0, -tiny, Rounding::Zero), 1.0f32.next_down());
        assert_eq!(add_f32(1.0, -1.0, Rounding::Down).to_bits(), (-0f32).to_bits());
        assert_eq!(mul_f32(f32::MAX, 2.0, Rounding::Zero), f32::MAX);
    }
}
