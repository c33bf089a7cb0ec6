//! Sums wider than a register (PTX ISA, "Extended-Precision Integer Arithmetic Instructions").

use super::integer::{PARTS, Part, high_s32, high_s64, high_u32, high_u64};
use super::rows::{Class, RowFn, Rows, Slot, Slots};
use crate::program::{Decoded, Line, Op};
use crate::text::ScalarType as T;

/// `add.cc`, `sub.cc`, `mad.cc`: the carry flag is written, not read.
pub(super) fn carry_out(line: &mut Line<'_, '_>) -> Decoded<Op> {
    carry_form(line, false, true)
}

/// `addc`, `subc`, `madc` with or without `.cc`: the carry flag is read.
pub(super) fn carry(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let out = line.flag("cc");
    carry_form(line, true, out)
}

/// Reads and writes the flag as `mode` says: bit 0 reads, bit 1 writes. For subtraction it is the borrow.
fn carry_form(line: &mut Line<'_, '_>, reads: bool, writes: bool) -> Decoded<Op> {
    let part = line.choice(&PARTS[..2]);
    let ty = line.ty()?;
    let wide = match ty {
        T::U32 | T::S32 => false,
        T::U64 | T::S64 => true,
        _ => return line.refuse(),
    };
    let mode = u32::from(reads) | u32::from(writes) << 1 | u32::from(ty.is_signed()) << 2;
    let (run, sources): (RowFn, _) = match (line.name, part, wide) {
        ("add" | "addc", None, false) => (|rows, slots| add_rows(rows, slots, 32, |_, _| None), 2),
        ("add" | "addc", None, true) => (|rows, slots| add_rows(rows, slots, 64, |_, _| None), 2),
        ("sub" | "subc", None, false) => (|rows, slots| subtract_rows(rows, slots, 32), 2),
        ("sub" | "subc", None, true) => (|rows, slots| subtract_rows(rows, slots, 64), 2),
        ("mad" | "madc", Some(Part::Low), false) => (
            |rows, slots| {
                add_rows(rows, slots, 32, |a, b| Some(u64::from((a as u32).wrapping_mul(b as u32))))
            },
            3,
        ),
        ("mad" | "madc", Some(Part::Low), true) => {
            (|rows, slots| add_rows(rows, slots, 64, |a, b| Some(a.wrapping_mul(b))), 3)
        }
        ("mad" | "madc", Some(Part::High), false) if !ty.is_signed() => {
            (|rows, slots| add_rows(rows, slots, 32, |a, b| Some(u64::from(high_u32(a as u32, b as u32)))), 3)
        }
        ("mad" | "madc", Some(Part::High), true) if !ty.is_signed() => {
            (|rows, slots| add_rows(rows, slots, 64, |a, b| Some(high_u64(a, b))), 3)
        }
        ("mad" | "madc", Some(Part::High), false) => (
            |rows, slots| {
                add_rows(rows, slots, 32, |a, b| Some(u64::from(high_s32(a as i32, b as i32) as u32)))
            },
            3,
        ),
        ("mad" | "madc", Some(Part::High), true) => {
            (|rows, slots| add_rows(rows, slots, 64, |a, b| Some(high_s64(a as i64, b as i64) as u64)), 3)
        }
        _ => return line.refuse(),
    };
    let mut slots = line.slots(ty, sources)?;
    slots.mode = mode;
    line.rows(run, slots)
}

fn class(bits: u32) -> Class {
    if bits == 64 { Class::Double } else { Class::Word }
}

/// a + b, or product(a, b) + c, with carries.
fn add_rows(rows: &mut Rows<'_>, slots: &Slots, bits: u32, product: impl Fn(u64, u64) -> Option<u64>) {
    let (a, b) = (rows.wide(slots.a, class(bits)), rows.wide(slots.b, class(bits)));
    let c = if slots.c == Slot::NONE { b } else { rows.wide(slots.c, class(bits)) };
    let (mut out, mut carries) = ([0; 32], 0);
    for lane in 0..32 {
        let left = product(a[lane], b[lane]).unwrap_or(a[lane]);
        let incoming = slots.mode & 1 & *rows.carry >> lane;
        let sum = u128::from(left) + u128::from(c[lane]) + u128::from(incoming);
        out[lane] = sum as u64;
        carries |= u32::from(sum >> bits != 0) << lane;
    }
    write_carries(rows, slots, carries);
    rows.put_wide(slots.d, class(bits), &out);
}

fn subtract_rows(rows: &mut Rows<'_>, slots: &Slots, bits: u32) {
    let (a, b) = (rows.wide(slots.a, class(bits)), rows.wide(slots.b, class(bits)));
    let (mut out, mut borrows) = ([0; 32], 0);
    for lane in 0..32 {
        let right = u128::from(b[lane]) + u128::from(slots.mode & 1 & *rows.carry >> lane);
        out[lane] = (u128::from(a[lane]).wrapping_sub(right)) as u64;
        borrows |= u32::from(u128::from(a[lane]) < right) << lane;
    }
    write_carries(rows, slots, borrows);
    rows.put_wide(slots.d, class(bits), &out);
}

fn write_carries(rows: &mut Rows<'_>, slots: &Slots, carries: u32) {
    if slots.mode & 2 != 0 {
        *rows.carry = *rows.carry & !rows.mask | carries & rows.mask;
    }
}
