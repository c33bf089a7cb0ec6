//! Registers of a warp: one row of 32 lanes each, so that an instruction is a loop the compiler vectorises.
//!
//! 8-, 16- and 32-bit registers are rows of `u32`, 64-bit registers rows of `u64`, predicates bit masks.
//! Literals and addresses of variables are rows too, shared by all warps of a kernel.

use half::{bf16, f16};

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;
/// One value per lane.
pub(crate) type Row<T> = [T; LANES];
/// One bit per lane.
pub(crate) type Mask = u32;

/// Which bank a register lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// A predicate.
    Pred,
    /// Up to 32 bits.
    Word,
    /// 64 bits.
    Double,
}

/// A register of its class, or with the top bit set, a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// No register: results are dropped, sources never read.
    pub(crate) const NONE: Self = Self(u32::MAX);
    const CONSTANT: u32 = 1 << 31;

    pub(crate) fn constant(index: u32) -> Self {
        Self(index | Self::CONSTANT)
    }

    pub(crate) fn is_register(self) -> bool {
        self.0 & Self::CONSTANT == 0
    }
}

/// Rows of literals and addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Constants {
    pub(crate) words: Vec<Row<u32>>,
    pub(crate) doubles: Vec<Row<u64>>,
}

/// The registers of a warp, frames of calls one above the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registers {
    pub(crate) words: Vec<Row<u32>>,
    pub(crate) doubles: Vec<Row<u64>>,
    pub(crate) preds: Vec<Mask>,
    /// Lanes that have written a register, per class in the order of `Class`.
    pub(crate) written: [Vec<Mask>; 3],
    /// The carry flag.
    pub(crate) carry: Mask,
}

/// How many registers of each class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) preds: u32,
    pub(crate) words: u32,
    pub(crate) doubles: u32,
}

impl Counts {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            preds: self.preds + other.preds,
            words: self.words + other.words,
            doubles: self.doubles + other.doubles,
        }
    }
}

impl Registers {
    /// Makes room for registers up to `counts`.
    pub(crate) fn grow(&mut self, counts: Counts) {
        let grow = |rows: &mut Vec<Mask>, count: u32| rows.resize(rows.len().max(count as usize), 0);
        self.words.resize(self.words.len().max(counts.words as usize), [0; LANES]);
        self.doubles.resize(self.doubles.len().max(counts.doubles as usize), [0; LANES]);
        grow(&mut self.preds, counts.preds);
        for (written, count) in self.written.iter_mut().zip([counts.preds, counts.words, counts.doubles]) {
            grow(written, count);
        }
    }

    /// Forgets that `lanes` have written registers from `base` on: a new call starts there.
    pub(crate) fn forget(&mut self, base: Counts, lanes: Mask) {
        for (written, from) in self.written.iter_mut().zip([base.preds, base.words, base.doubles]) {
            written[from as usize..].iter_mut().for_each(|written| *written &= !lanes);
        }
    }

    /// The registers of one frame for the lanes of `mask`.
    pub(crate) fn frame<'a>(&'a mut self, base: Counts, constants: &'a Constants, mask: Mask) -> Rows<'a> {
        Rows {
            words: &mut self.words[base.words as usize..],
            doubles: &mut self.doubles[base.doubles as usize..],
            preds: &mut self.preds[base.preds as usize..],
            carry: &mut self.carry,
            constants,
            mask,
        }
    }
}

/// A function of each lane. (`array::map` copies its result once more.)
#[inline(always)]
pub(crate) fn each<A: Copy, B: Copy + Default>(row: &Row<A>, f: impl Fn(A) -> B) -> Row<B> {
    let mut out = [B::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(row[lane]);
    }
    out
}

/// What an instruction sees of the registers: its frame's, written in the active lanes alone.
pub(crate) struct Rows<'a> {
    words: &'a mut [Row<u32>],
    doubles: &'a mut [Row<u64>],
    preds: &'a mut [Mask],
    pub(crate) carry: &'a mut Mask,
    constants: &'a Constants,
    pub(crate) mask: Mask,
}

#[inline(always)]
fn blend<T: Copy>(row: &mut Row<T>, value: &Row<T>, mask: Mask) {
    if mask == Mask::MAX {
        *row = *value;
        return;
    }
    for lane in 0..LANES {
        if mask >> lane & 1 != 0 {
            row[lane] = value[lane];
        }
    }
}

impl Rows<'_> {
    #[inline(always)]
    pub(crate) fn word(&self, slot: Slot) -> &Row<u32> {
        if slot.is_register() {
            &self.words[slot.0 as usize]
        } else {
            &self.constants.words[(slot.0 & !Slot::CONSTANT) as usize]
        }
    }

    #[inline(always)]
    pub(crate) fn double(&self, slot: Slot) -> &Row<u64> {
        if slot.is_register() {
            &self.doubles[slot.0 as usize]
        } else {
            &self.constants.doubles[(slot.0 & !Slot::CONSTANT) as usize]
        }
    }

    /// A row of either class, zero-extended.
    #[inline]
    pub(crate) fn wide(&self, slot: Slot, class: Class) -> Row<u64> {
        match class {
            Class::Double => *self.double(slot),
            Class::Word => each(self.word(slot), u64::from),
            Class::Pred => {
                let bits = self.pred(slot);
                std::array::from_fn(|lane| u64::from(bits >> lane & 1))
            }
        }
    }

    /// Writes a row of either class; a word takes the low half.
    #[inline]
    pub(crate) fn put_wide(&mut self, slot: Slot, class: Class, value: &Row<u64>) {
        match class {
            Class::Double => self.put_double(slot, value),
            Class::Word => self.put_word(slot, &each(value, |value| value as u32)),
            Class::Pred => {
                let bits = (0..LANES).fold(0, |bits, lane| bits | ((value[lane] & 1) as u32) << lane);
                self.put_pred(slot, bits);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn put_word(&mut self, slot: Slot, value: &Row<u32>) {
        if slot != Slot::NONE {
            blend(&mut self.words[slot.0 as usize], value, self.mask);
        }
    }

    #[inline(always)]
    pub(crate) fn put_double(&mut self, slot: Slot, value: &Row<u64>) {
        if slot != Slot::NONE {
            blend(&mut self.doubles[slot.0 as usize], value, self.mask);
        }
    }

    #[inline(always)]
    pub(crate) fn pred(&self, slot: Slot) -> Mask {
        if slot.is_register() {
            self.preds[slot.0 as usize]
        } else {
            // A literal, the same in all lanes.
            if self.constants.words[(slot.0 & !Slot::CONSTANT) as usize][0] != 0 { Mask::MAX } else { 0 }
        }
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, slot: Slot, bits: Mask) {
        if slot != Slot::NONE {
            let old = &mut self.preds[slot.0 as usize];
            *old = *old & !self.mask | bits & self.mask;
        }
    }
}

/// A type that registers are read and written as.
pub(crate) trait Lane: Copy + Default {
    fn row(rows: &Rows<'_>, slot: Slot) -> Row<Self>;
    fn put(rows: &mut Rows<'_>, slot: Slot, value: Row<Self>);
}

macro_rules! lane {
    ($($ty:ty, $read:ident, $write:ident, |$in:ident| $from:expr, |$out:ident| $into:expr;)*) => {$(
        impl Lane for $ty {
            #[inline(always)]
            fn row(rows: &Rows<'_>, slot: Slot) -> Row<Self> {
                each(rows.$read(slot), |$in| $from)
            }
            #[inline(always)]
            fn put(rows: &mut Rows<'_>, slot: Slot, value: Row<Self>) {
                rows.$write(slot, &each(&value, |$out| $into));
            }
        }
    )*};
}

/// Two 16-bit floats in a word, the first in the low half.
pub(crate) type Pair<T> = [T; 2];

lane! {
    u16, word, put_word, |bits| bits as u16, |value| u32::from(value);
    i16, word, put_word, |bits| bits as i16, |value| u32::from(value as u16);
    u32, word, put_word, |bits| bits, |value| value;
    i32, word, put_word, |bits| bits as i32, |value| value as u32;
    f32, word, put_word, |bits| f32::from_bits(bits), |value| value.to_bits();
    f16, word, put_word, |bits| f16::from_bits(bits as u16), |value| u32::from(value.to_bits());
    bf16, word, put_word, |bits| bf16::from_bits(bits as u16), |value| u32::from(value.to_bits());
    Pair<u16>, word, put_word, |bits| [bits as u16, (bits >> 16) as u16],
        |value| u32::from(value[0]) | u32::from(value[1]) << 16;
    Pair<i16>, word, put_word, |bits| [bits as i16, (bits >> 16) as i16],
        |value| u32::from(value[0] as u16) | u32::from(value[1] as u16) << 16;
    Pair<f16>, word, put_word, |bits| [f16::from_bits(bits as u16), f16::from_bits((bits >> 16) as u16)],
        |value| u32::from(value[0].to_bits()) | u32::from(value[1].to_bits()) << 16;
    Pair<bf16>, word, put_word, |bits| [bf16::from_bits(bits as u16), bf16::from_bits((bits >> 16) as u16)],
        |value| u32::from(value[0].to_bits()) | u32::from(value[1].to_bits()) << 16;
    u64, double, put_double, |bits| bits, |value| value;
    i64, double, put_double, |bits| bits as i64, |value| value as u64;
    f64, double, put_double, |bits| f64::from_bits(bits), |value| value.to_bits();
}

/// Registers of an instruction that works on each lane alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slots {
    /// Destination.
    pub(crate) d: Slot,
    /// Second destination.
    pub(crate) e: Slot,
    /// Sources.
    pub(crate) a: Slot,
    pub(crate) b: Slot,
    pub(crate) c: Slot,
    /// Modifiers that do not choose the function.
    pub(crate) mode: u32,
}

impl Slots {
    pub(crate) const NONE: Self =
        Self { d: Slot::NONE, e: Slot::NONE, a: Slot::NONE, b: Slot::NONE, c: Slot::NONE, mode: 0 };
}

/// An instruction that works on each lane alone.
pub(crate) type RowFn = fn(&mut Rows<'_>, &Slots);

#[inline(always)]
pub(crate) fn map1<A: Lane, D: Lane>(rows: &mut Rows<'_>, slots: &Slots, f: impl Fn(A) -> D) {
    let a = A::row(rows, slots.a);
    D::put(rows, slots.d, each(&a, f));
}

#[inline(always)]
pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(rows: &mut Rows<'_>, slots: &Slots, f: impl Fn(A, B) -> D) {
    let (a, b) = (A::row(rows, slots.a), B::row(rows, slots.b));
    let mut out = [D::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    D::put(rows, slots.d, out);
}

#[inline(always)]
pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
    rows: &mut Rows<'_>,
    slots: &Slots,
    f: impl Fn(A, B, C) -> D,
) {
    let (a, b, c) = (A::row(rows, slots.a), B::row(rows, slots.b), C::row(rows, slots.c));
    let mut out = [D::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    D::put(rows, slots.d, out);
}

/// A function of rows from a function of lanes: `lanes!(|a: u32, b: u32| -> u32 { a + b })`.
macro_rules! lanes {
    (|$a:ident: $ta:ty| $body:expr) => {{
        fn run(rows: &mut $crate::exec::rows::Rows<'_>, slots: &$crate::exec::rows::Slots) {
            $crate::exec::rows::map1(rows, slots, |$a: $ta| $body)
        }
        run as $crate::exec::rows::RowFn
    }};
    (|$a:ident: $ta:ty, $b:ident: $tb:ty| $body:expr) => {{
        fn run(rows: &mut $crate::exec::rows::Rows<'_>, slots: &$crate::exec::rows::Slots) {
            $crate::exec::rows::map2(rows, slots, |$a: $ta, $b: $tb| $body)
        }
        run as $crate::exec::rows::RowFn
    }};
    (|$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty| $body:expr) => {{
        fn run(rows: &mut $crate::exec::rows::Rows<'_>, slots: &$crate::exec::rows::Slots) {
            $crate::exec::rows::map3(rows, slots, |$a: $ta, $b: $tb, $c: $tc| $body)
        }
        run as $crate::exec::rows::RowFn
    }};
    // With the instruction's `mode`.
    ($mode:ident; |$a:ident: $ta:ty| $body:expr) => {{
        fn run(rows: &mut $crate::exec::rows::Rows<'_>, slots: &$crate::exec::rows::Slots) {
            let $mode = slots.mode;
            $crate::exec::rows::map1(rows, slots, |$a: $ta| $body)
        }
        run as $crate::exec::rows::RowFn
    }};
    ($mode:ident; |$a:ident: $ta:ty, $b:ident: $tb:ty| $body:expr) => {{
        fn run(rows: &mut $crate::exec::rows::Rows<'_>, slots: &$crate::exec::rows::Slots) {
            let $mode = slots.mode;
            $crate::exec::rows::map2(rows, slots, |$a: $ta, $b: $tb| $body)
        }
        run as $crate::exec::rows::RowFn
    }};
    ($mode:ident; |$a:ident: $ta:ty, $b:ident: $tb:ty, $c:ident: $tc:ty| $body:expr) => {{
        fn run(rows: &mut $crate::exec::rows::Rows<'_>, slots: &$crate::exec::rows::Slots) {
            let $mode = slots.mode;
            $crate::exec::rows::map3(rows, slots, |$a: $ta, $b: $tb, $c: $tc| $body)
        }
        run as $crate::exec::rows::RowFn
    }};
}
pub(crate) use lanes;
