//! `mma.sync` on tensor cores (PTX ISA, "Warp-Level Matrix Instructions", the shapes m16n8kN and m8n8kN).
//!
//! With E elements in a register, element e of register r holds, in lane 4g + t,
//! A\[g + 8 (r mod 2)\]\[E t + e + 4E (r div 2)\], B\[E t + e + 4E r\]\[g\] and C\[g + 8 (r div 2)\]\[2 t + r mod 2\].
//! PTX leaves the order and precision of sums open: here products, which are exact in binary64, are summed in
//! it by ascending k, the accumulator is added last, and the result is rounded once. f64 is fused, by k.

use half::f16;

use super::context::Context;
use super::halves::Small;
use super::rounding::canonical;
use super::rows::{LANES, Row, Slot, each};
use super::subbyte;
use crate::program::{Decoded, Line, Op, Refusal};
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

const SHAPES: [(&str, (usize, usize)); 11] = [
    ("m16n8k4", (16, 4)),
    ("m16n8k8", (16, 8)),
    ("m16n8k16", (16, 16)),
    ("m16n8k32", (16, 32)),
    ("m8n8k4", (8, 4)),
    ("m8n8k16", (8, 16)),
    ("m8n8k32", (8, 32)),
    ("m16n8k64", (16, 64)),
    ("m8n8k128", (8, 128)),
    ("m16n8k128", (16, 128)),
    ("m16n8k256", (16, 256)),
];

/// Elements of a type in a register.
pub(super) fn elements(ty: T) -> usize {
    4 / (ty.bytes() as usize).min(4)
}

fn supported(rows: usize, k: usize, a: T, b: T, c: T) -> bool {
    match (a, b) {
        (T::F64, T::F64) => c == T::F64 && if rows == 8 { k == 4 } else { matches!(k, 4 | 8 | 16) },
        (T::F16, T::F16) => rows == 16 && matches!(k, 8 | 16) && matches!(c, T::F16 | T::F32),
        (T::Bf16, T::Bf16) => rows == 16 && matches!(k, 8 | 16) && c == T::F32,
        (T::Tf32, T::Tf32) => rows == 16 && matches!(k, 4 | 8) && c == T::F32,
        (T::S8 | T::U8, T::S8 | T::U8) => c == T::S32 && (k == 16 || (rows == 16 && k == 32)),
        _ => false,
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    if !(line.flag("sync") && line.flag("aligned") && line.flag("row") && line.flag("col")) {
        return line.refuse();
    }
    for other in ["sp", "sp::ordered_metadata", "e4m3", "e5m2"] {
        if line.flag(other) {
            return Err(Refusal::Modifier(other.to_owned()));
        }
    }
    let Some((rows, k)) = line.choice(&SHAPES) else { return line.refuse() };
    let saturate = line.flag("satfinite");
    if let Some(ty) = line.choice(&subbyte::TYPES) {
        return subbyte::decode(line, (rows, k), ty, saturate);
    }
    let (d_type, a_type, b_type, c_type) = (line.ty()?, line.ty()?, line.ty()?, line.ty()?);
    let integer = c_type == T::S32;
    let results = d_type == c_type || (a_type == T::F16 && matches!(d_type, T::F16 | T::F32));
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

/// The low 16 bits as f16, without a branch so that rows vectorise.
#[inline(always)]
fn single_of_half(bits: u32) -> f32 {
    const TWO_TO_112: f32 = f32::from_bits(239 << 23);
    let magnitude = f32::from_bits((bits & 0x7FFF) << 13);
    let special = f32::from_bits(0x7F80_0000 | (bits & 0x3FF) << 13);
    let value = if bits & 0x7C00 == 0x7C00 { special } else { magnitude * TWO_TO_112 };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

/// An element of a 32-bit register, of a type of at most 32 bits that is a factor.
#[inline(always)]
pub(super) fn element(ty: T, register: u32, index: usize) -> f64 {
    f64::from(match ty {
        T::F16 => single_of_half(register >> (16 * index)),
        T::Bf16 => f32::from_bits(register >> (16 * index) << 16),
        // Tensor cores read 10 bits of fraction.
        T::Tf32 => f32::from_bits(register & !0x1FFF),
        T::S8 => f32::from((register >> (8 * index)) as i8),
        _ => f32::from((register >> (8 * index)) as u8),
    })
}

/// A as rows of k, B as k rows of 8 columns.
struct Tiles {
    a: [[f64; 32]; 16],
    b: [[f64; 8]; 32],
}

impl Tiles {
    fn gather(context: &Context<'_>, op: &Mma) -> Self {
        let mut tiles = Self { a: [[0.0; 32]; 16], b: [[0.0; 8]; 32] };
        for (matrix, ty, slots) in [(Matrix::A, op.a_type, &op.a), (Matrix::B, op.b_type, &op.b)] {
            for (register, &slot) in slots.iter().enumerate() {
                if ty == T::F64 {
                    tiles.place(matrix, register, &[context.rows.double(slot).map(f64::from_bits)]);
                    continue;
                }
                let word = context.rows.word(slot);
                // A constant type and number of elements make each case a loop without branches.
                match ty {
                    T::F16 => tiles.widen::<2>(matrix, register, word, |bits, at| element(T::F16, bits, at)),
                    T::Bf16 => {
                        tiles.widen::<2>(matrix, register, word, |bits, at| element(T::Bf16, bits, at))
                    }
                    T::Tf32 => {
                        tiles.widen::<1>(matrix, register, word, |bits, at| element(T::Tf32, bits, at))
                    }
                    T::S8 => tiles.widen::<4>(matrix, register, word, |bits, at| element(T::S8, bits, at)),
                    _ => tiles.widen::<4>(matrix, register, word, |bits, at| element(T::U8, bits, at)),
                }
            }
        }
        tiles
    }

    /// Places the E elements of each lane's register.
    #[inline(always)]
    fn widen<const E: usize>(
        &mut self,
        matrix: Matrix,
        register: usize,
        row: &Row<u32>,
        value: impl Fn(u32, usize) -> f64,
    ) {
        let mut values = [[0.0; LANES]; E];
        for (part, values) in values.iter_mut().enumerate() {
            for (out, &bits) in values.iter_mut().zip(row) {
                *out = value(bits, part);
            }
        }
        self.place(matrix, register, &values);
    }

    #[inline(always)]
    fn place<const E: usize>(&mut self, matrix: Matrix, register: usize, values: &[Row<f64>; E]) {
        for lane in 0..LANES {
            let (group, first) = (lane >> 2, E * (lane & 3));
            for (part, values) in values.iter().enumerate() {
                match matrix {
                    Matrix::A => {
                        let row = group + 8 * (register & 1);
                        self.a[row & 15][(first + part + 4 * E * (register >> 1)) & 31] = values[lane];
                    }
                    Matrix::B => self.b[(first + part + 4 * E * register) & 31][group] = values[lane],
                }
            }
        }
    }

    fn products(&self, k: usize) -> [[f64; 8]; 16] {
        let mut products = [[0.0; 8]; 16];
        for (out, a) in products.iter_mut().zip(&self.a) {
            let mut sums = [0.0; 8];
            for (a, b) in a[..k].iter().zip(&self.b[..k]) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
            *out = sums;
        }
        products
    }
}

#[derive(Clone, Copy)]
enum Matrix {
    A,
    B,
}

/// Where lane and element of an accumulator lie in it.
#[inline(always)]
fn accumulator_at(element: usize, lane: usize) -> (usize, usize) {
    ((lane >> 2) + 8 * (element >> 1), 2 * (lane & 3) + (element & 1))
}

/// Element `index` of each lane's accumulator.
fn addend(context: &Context<'_>, op: &Mma, index: usize) -> Row<f64> {
    match op.c_type {
        T::S32 => each(context.rows.word(op.c[index]), |bits| f64::from(bits as i32)),
        T::F16 => {
            let shift = 16 * (index & 1);
            each(context.rows.word(op.c[index >> 1]), |bits| f64::from(single_of_half(bits >> shift)))
        }
        T::F64 => each(context.rows.double(op.c[index]), f64::from_bits),
        _ => each(context.rows.word(op.c[index]), |bits| f64::from(f32::from_bits(bits))),
    }
}

pub(crate) fn execute(context: &mut Context<'_>, op: &Mma) {
    let tiles = Tiles::gather(context, op);
    if op.a_type == T::F64 {
        return fuse(context, op, &tiles);
    }
    let products = tiles.products(op.k);
    let total = |context: &Context<'_>, index: usize| {
        let mut sums = addend(context, op, index);
        for (lane, sum) in sums.iter_mut().enumerate() {
            let (row, column) = accumulator_at(index, lane);
            *sum += products[row][column];
        }
        sums
    };
    for (index, &slot) in op.d.iter().enumerate() {
        let row = match op.d_type {
            T::S32 if op.saturate => each(&total(context, index), |sum| sum as i32 as u32),
            T::S32 => each(&total(context, index), |sum| sum as i64 as u32),
            T::F16 => {
                let (low, high) = (total(context, 2 * index), total(context, 2 * index + 1));
                let bits = |sum: f64| u32::from(<f16 as Small>::narrow(sum).to_bits());
                std::array::from_fn(|lane| bits(low[lane]) | bits(high[lane]) << 16)
            }
            _ => each(&total(context, index), |sum| canonical(sum as f32).to_bits()),
        };
        context.rows.put_word(slot, &row);
    }
}

fn fuse(context: &mut Context<'_>, op: &Mma, tiles: &Tiles) {
    for (index, &slot) in op.d.iter().enumerate() {
        let mut sums = addend(context, op, index);
        for (lane, sum) in sums.iter_mut().enumerate() {
            let (row, column) = accumulator_at(index, lane);
            *sum = (0..op.k).fold(*sum, |sum, k| tiles.a[row][k].mul_add(tiles.b[k][column], sum));
        }
        context.rows.put_double(slot, &sums.map(f64::to_bits));
    }
}
