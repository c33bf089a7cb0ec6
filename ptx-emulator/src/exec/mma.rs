//! `mma.sync` on tensor cores (PTX ISA, "Warp-Level Matrix Instructions", the shapes m16n8kN and m8n8k4).
//!
//! With E elements in a 32-bit register, element e of register r holds, in lane 4g + t,
//! A\[g + 8 (r mod 2)\]\[E t + e + 4E (r div 2)\], B\[E t + e + 4E r\]\[g\] and C\[g + 8 (r div 2)\]\[2 t + r mod 2\].
//! PTX leaves the order and precision of sums open: here products are summed in binary64 by ascending k, the
//! accumulator is added last, and the result is rounded once.

use half::f16;

use super::context::Context;
use super::halves::Small;
use super::rounding::canonical;
use super::rows::{LANES, Row, Slot};
use crate::program::{Decoded, Line, Op};
use crate::text::ScalarType as T;

pub(crate) const NAMES: &[&str] = &["mma"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mma {
    k: usize,
    a_type: T,
    b_type: T,
    /// Of C and D.
    c_type: T,
    d_type: T,
    /// Integer sums are clamped.
    saturate: bool,
    a: Box<[Slot]>,
    b: Box<[Slot]>,
    c: Box<[Slot]>,
    d: Box<[Slot]>,
}

const SHAPES: [(&str, (usize, usize)); 5] = [
    ("m16n8k4", (16, 4)),
    ("m16n8k8", (16, 8)),
    ("m16n8k16", (16, 16)),
    ("m16n8k32", (16, 32)),
    ("m8n8k4", (8, 4)),
];

/// Elements of a type in a 32-bit register.
fn elements(ty: T) -> usize {
    4 / (ty.bytes() as usize).min(4)
}

fn supported(rows: usize, k: usize, a: T, b: T, c: T) -> bool {
    match (a, b) {
        (T::F64, T::F64) => rows == 8 && k == 4 && c == T::F64,
        (T::F16, T::F16) => rows == 16 && matches!(k, 8 | 16) && matches!(c, T::F16 | T::F32),
        (T::Bf16, T::Bf16) => rows == 16 && matches!(k, 8 | 16) && c == T::F32,
        (T::Tf32, T::Tf32) => rows == 16 && matches!(k, 4 | 8) && c == T::F32,
        (T::S8 | T::U8, T::S8 | T::U8) => rows == 16 && matches!(k, 16 | 32) && c == T::S32,
        _ => false,
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if !(line.flag("sync") && line.flag("aligned") && line.flag("row") && line.flag("col")) {
        return line.refuse();
    }
    let Some((rows, k)) = line.choice(&SHAPES) else { return line.refuse() };
    let saturate = line.flag("satfinite");
    let (d_type, a_type, b_type, c_type) = (line.ty()?, line.ty()?, line.ty()?, line.ty()?);
    let integer = c_type == T::S32;
    let results = if integer {
        d_type == T::S32
    } else {
        d_type == c_type || (c_type.bytes() <= 4 && a_type == T::F16)
    };
    if !supported(rows, k, a_type, b_type, c_type) || !results || (saturate && !integer) {
        return line.refuse();
    }
    line.exactly(4)?;
    let register = |ty: T| if ty == T::F64 { T::F64 } else { T::B32 };
    let a_count = rows * k / LANES / elements(a_type);
    let b_count = k * 8 / LANES / elements(b_type);
    let sums = |ty: T| match ty {
        T::F16 => 2,
        _ => rows / 4,
    };
    let (a, b) = (line.sources(1, register(a_type), a_count)?, line.sources(2, register(b_type), b_count)?);
    let c = line.sources(3, register(c_type), sums(c_type))?;
    let d = line.destinations(0, register(d_type), sums(d_type))?;
    let (a, b, c, d) = (a.into(), b.into(), c.into(), d.into());
    Ok(Op::Mma(Box::new(Mma { k, a_type, b_type, c_type, d_type, saturate, a, b, c, d })))
}

fn element(ty: T, register: u32, index: usize) -> f64 {
    match ty {
        T::F16 => f16::from_bits((register >> (16 * index)) as u16).to_f64(),
        T::Bf16 => f64::from(f32::from_bits(register >> (16 * index) << 16)),
        // Tensor cores read 10 bits of fraction.
        T::Tf32 => f64::from(f32::from_bits(register & !0x1FFF)),
        T::S8 => f64::from((register >> (8 * index)) as i8),
        _ => f64::from((register >> (8 * index)) as u8),
    }
}

/// A as rows of k, B as rows of 8 columns.
type A = [[f64; 32]; 16];
type B = [[f64; 8]; 32];

fn gather(registers: &[Row<u32>], ty: T, mut place: impl FnMut(usize, usize, usize, f64)) {
    let per_register = elements(ty);
    for (r, row) in registers.iter().enumerate() {
        for (lane, &bits) in row.iter().enumerate() {
            for e in 0..per_register {
                place(r, lane >> 2, per_register * (lane & 3) + e, element(ty, bits, e));
            }
        }
    }
}

fn words(context: &Context<'_>, slots: &[Slot]) -> Vec<Row<u32>> {
    slots.iter().map(|&slot| *context.rows.word(slot)).collect()
}

pub(crate) fn execute(context: &mut Context<'_>, op: &Mma) {
    if op.a_type == T::F64 {
        return execute_f64(context, op);
    }
    let (mut a, mut b): (A, B) = ([[0.0; 32]; 16], [[0.0; 8]; 32]);
    let (a_step, b_step) = (4 * elements(op.a_type), 4 * elements(op.b_type));
    gather(&words(context, &op.a), op.a_type, |r, g, column, value| {
        a[g + 8 * (r & 1)][column + a_step * (r >> 1)] = value;
    });
    gather(&words(context, &op.b), op.b_type, |r, g, row, value| b[row + b_step * r][g] = value);
    let mut sums = [[0.0; 8]; 16];
    for (sums, a) in sums.iter_mut().zip(&a) {
        for (a, b) in a[..op.k].iter().zip(&b) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
    }
    let c = words(context, &op.c);
    let at = |r: usize, lane: usize| sums[(lane >> 2) + 8 * (r >> 1)][2 * (lane & 3) + (r & 1)];
    let result = |r: usize, lane: usize| match op.c_type {
        T::S32 => at(r, lane) + f64::from(c[r][lane] as i32),
        T::F16 => at(r, lane) + f16::from_bits((c[r >> 1][lane] >> (16 * (r & 1))) as u16).to_f64(),
        _ => at(r, lane) + f64::from(f32::from_bits(c[r][lane])),
    };
    for (index, &slot) in op.d.iter().enumerate() {
        let row = std::array::from_fn(|lane| match op.d_type {
            T::S32 if op.saturate => result(index, lane) as i32 as u32,
            T::S32 => result(index, lane) as i64 as u32,
            T::F16 => {
                let half =
                    |part: usize| u32::from(<f16 as Small>::narrow(result(2 * index + part, lane)).to_bits());
                half(0) | half(1) << 16
            }
            _ => canonical(result(index, lane) as f32).to_bits(),
        });
        context.rows.put_word(slot, &row);
    }
}

/// m8n8k4: A\[lane / 4\]\[lane mod 4\], B\[lane mod 4\]\[lane / 4\], C\[lane / 4\]\[2 (lane mod 4) + i\]; fused, by k.
fn execute_f64(context: &mut Context<'_>, op: &Mma) {
    let value = |bits: u64| f64::from_bits(bits);
    let (a, b) = (*context.rows.double(op.a[0]), *context.rows.double(op.b[0]));
    for index in 0..2 {
        let c = *context.rows.double(op.c[index]);
        let row: Row<u64> = std::array::from_fn(|lane| {
            let (row, column) = (lane >> 2, 2 * (lane & 3) + index);
            let step = |sum: f64, k: usize| value(a[4 * row + k]).mul_add(value(b[4 * column + k]), sum);
            (0..op.k).fold(value(c[lane]), step).to_bits()
        });
        context.rows.put_double(op.d[index], &row);
    }
}
