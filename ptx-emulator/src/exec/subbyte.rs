//! `mma.sync` on elements of less than a byte: s4 and u4, and single bits (PTX ISA, "Warp-Level Matrix Instructions").
//!
//! Fragments are laid out as in [`super::mma`], with 8 or 32 elements in a register. Sums are exact.

use super::context::Context;
use super::rows::{LANES, Row, Slot};
use crate::program::{Decoded, Line, Op};
use crate::text::ScalarType as T;

/// What an element is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    S4,
    U4,
    Bit,
}

pub(super) const TYPES: [(&str, Element); 3] =
    [("s4", Element::S4), ("u4", Element::U4), ("b1", Element::Bit)];

impl Element {
    const fn bits(self) -> usize {
        match self {
            Self::S4 | Self::U4 => 4,
            Self::Bit => 1,
        }
    }

    /// The element at a place of a register.
    fn of(self, register: u32, at: usize) -> i32 {
        let bits = register >> (self.bits() * at);
        match self {
            Self::S4 => (bits as i32) << 28 >> 28,
            Self::U4 => bits as i32 & 15,
            Self::Bit => bits as i32 & 1,
        }
    }
}

/// What is summed over k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Product {
    Multiply,
    And,
    Xor,
}

#[derive(Debug, Clone)]
pub(crate) struct SubByteMma {
    rows: usize,
    k: usize,
    a_type: Element,
    b_type: Element,
    product: Product,
    /// Sums are clamped.
    saturate: bool,
    a: Box<[Slot]>,
    b: Box<[Slot]>,
    c: Box<[Slot]>,
    d: Box<[Slot]>,
}

/// The rest of an instruction whose A is of `a_type`.
pub(super) fn decode(
    line: &mut Line<'_, '_>,
    (rows, k): (usize, usize),
    a_type: Element,
    saturate: bool,
) -> Decoded<Op> {
    let Some(b_type) = line.choice(&TYPES) else { return line.refuse() };
    let types = (line.ty()?, line.ty()?);
    let is_bits = a_type == Element::Bit;
    let fits = match (rows, k) {
        (8, 32) | (16, 32 | 64) => !is_bits && b_type != Element::Bit,
        (8, 128) | (16, 128 | 256) => is_bits && b_type == Element::Bit && !saturate,
        _ => false,
    };
    let product = match line.choice(&[("xor", Product::Xor), ("and", Product::And)]) {
        Some(product) if is_bits && line.flag("popc") => product,
        None if !is_bits => Product::Multiply,
        _ => return line.refuse(),
    };
    if !fits || types != (T::S32, T::S32) {
        return line.refuse();
    }
    line.exactly(4)?;
    let registers = |elements: usize| elements * a_type.bits() / 32 / LANES;
    let (a, b) = (line.sources(1, T::B32, registers(rows * k))?, line.sources(2, T::B32, registers(8 * k))?);
    let (c, d) = (line.sources(3, T::B32, rows / 4)?, line.destinations(0, T::B32, rows / 4)?);
    let (a, b, c, d) = (a.into(), b.into(), c.into(), d.into());
    Ok(Op::SubByteMma(Box::new(SubByteMma { rows, k, a_type, b_type, product, saturate, a, b, c, d })))
}

pub(crate) fn execute(context: &mut Context<'_>, op: &SubByteMma) {
    let words =
        |slots: &[Slot]| slots.iter().map(|&slot| *context.rows.word(slot)).collect::<Vec<Row<u32>>>();
    let (a, b, c) = (words(&op.a), words(&op.b), words(&op.c));
    let each = 32 / op.a_type.bits();
    // Of index k: the lane within a group of four, the place in a register, and the register.
    let place = |k: usize| (k / each % 4, k % each, k / (4 * each));
    let product = |row: usize, column: usize, k: usize| {
        let (t, at, register) = place(k);
        let a = op.a_type.of(a[row / 8 + op.rows / 8 * register][4 * (row % 8) + t], at);
        let b = op.b_type.of(b[register][4 * column + t], at);
        i64::from(match op.product {
            Product::Multiply => a * b,
            Product::And => a & b,
            Product::Xor => a ^ b,
        })
    };
    for (index, &slot) in op.d.iter().enumerate() {
        let out: Row<u32> = std::array::from_fn(|lane| {
            let (row, column) = ((lane >> 2) + 8 * (index >> 1), 2 * (lane & 3) + (index & 1));
            let sum: i64 = (0..op.k).map(|k| product(row, column, k)).sum();
            let sum = sum + i64::from(c[index][lane] as i32);
            if op.saturate { sum.clamp(i32::MIN.into(), i32::MAX.into()) as u32 } else { sum as u32 }
        });
        context.rows.put_word(slot, &out);
    }
}
