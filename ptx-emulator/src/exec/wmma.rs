//! `wmma.load`, `wmma.mma` and `wmma.store` (PTX ISA, "Warp-level Matrix Multiply-Accumulate", `wmma`).
//!
//! PTX leaves open which lane holds which element of a fragment. Here a fragment is its matrix in row-major order,
//! dealt out lane by lane and begun anew while registers are left (A and B of f16 have twice as many as they need
//! at least). Sums are formed as by [`mma`](super::mma).

use half::f16;

use super::address::{Region, generic, region_of};
use super::context::{Cause, Context, Done};
use super::halves::Small;
use super::mma::{element, elements};
use super::rounding::canonical;
use super::rows::{LANES, Row, Slot};
use crate::memory::{Order, Scope, Width};
use crate::program::{Address, Decoded, Line, Op};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["wmma"];

#[derive(Debug, Clone)]
pub(crate) enum Wmma {
    Load(Transfer),
    Store(Transfer),
    Multiply { a: Part, b: Part, c: Part, d: Part, saturate: bool },
}

/// A fragment: which matrix, and the registers that hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    rows: usize,
    columns: usize,
    ty: T,
    registers: Box<[Slot]>,
}

/// A fragment on its way from or to memory.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    part: Part,
    space: Space,
    address: Address,
    /// Elements from one row or column to the next; without, they lie densely.
    stride: Option<Slot>,
    column_major: bool,
}

/// m, n, k
type Shape = (usize, usize, usize);

const SHAPES: [(&str, Shape); 5] = [
    ("m16n16k16", (16, 16, 16)),
    ("m32n8k16", (32, 8, 16)),
    ("m8n32k16", (8, 32, 16)),
    ("m16n16k8", (16, 16, 8)),
    ("m8n8k4", (8, 8, 4)),
];

const LAYOUTS: [(&str, bool); 2] = [("row", false), ("col", true)];

/// Whether factors of a type come in a shape.
fn factors(ty: T, (_, _, k): Shape) -> bool {
    match ty {
        T::F16 | T::Bf16 | T::S8 | T::U8 => k == 16,
        T::Tf32 => k == 8,
        T::F64 => k == 4,
        _ => false,
    }
}

/// Whether sums of a type belong to factors of a type.
fn sums(ty: T, factor: T) -> bool {
    match factor {
        T::F16 => matches!(ty, T::F16 | T::F32),
        T::Bf16 | T::Tf32 => ty == T::F32,
        T::F64 => ty == T::F64,
        _ => ty == T::S32,
    }
}

impl Part {
    fn new((m, n, k): Shape, role: char, ty: T) -> Self {
        let (rows, columns) = match role {
            'a' => (m, k),
            'b' => (k, n),
            _ => (m, n),
        };
        Self { rows, columns, ty, registers: Box::default() }
    }

    /// Elements in one register.
    fn per_register(&self) -> usize {
        if self.ty == T::F64 { 1 } else { elements(self.ty) }
    }

    fn register_type(&self) -> T {
        if self.ty == T::F64 { T::F64 } else { T::B32 }
    }

    fn register_count(&self, factor: bool) -> usize {
        match (self.ty, factor) {
            (T::F16, true) => 8,
            _ => self.rows * self.columns / LANES / self.per_register(),
        }
    }

    fn sources(mut self, line: &mut Line<'_, '_>, index: usize, factor: bool) -> Decoded<Self> {
        let count = self.register_count(factor);
        self.registers = line.sources(index, self.register_type(), count)?.into();
        Ok(self)
    }

    fn destinations(mut self, line: &mut Line<'_, '_>, index: usize, factor: bool) -> Decoded<Self> {
        let count = self.register_count(factor);
        self.registers = line.destinations(index, self.register_type(), count)?.into();
        Ok(self)
    }

    /// The number in row-major order of an element of a lane's register.
    fn number(&self, lane: usize, register: usize, element: usize) -> usize {
        ((lane * self.registers.len() + register) * self.per_register() + element)
            % (self.rows * self.columns)
    }

    /// The bits of a register, one row for all lanes.
    fn bits(&self, context: &Context<'_>, register: usize) -> Row<u64> {
        let slot = self.registers[register];
        if self.ty == T::F64 { *context.rows.double(slot) } else { context.rows.word(slot).map(u64::from) }
    }

    fn put(&self, context: &mut Context<'_>, register: usize, bits: &Row<u64>) {
        let slot = self.registers[register];
        if self.ty == T::F64 {
            context.rows.put_double(slot, bits);
        } else {
            context.rows.put_word(slot, &bits.map(|bits| bits as u32));
        }
    }

    fn value(&self, bits: u64, index: usize) -> f64 {
        match self.ty {
            T::F64 => f64::from_bits(bits),
            T::F32 => f64::from(f32::from_bits(bits as u32)),
            T::S32 => f64::from(bits as i32),
            ty => element(ty, bits as u32, index),
        }
    }

    /// The matrix, row-major.
    fn gather(&self, context: &Context<'_>) -> Vec<f64> {
        let mut matrix = vec![0.0; self.rows * self.columns];
        for register in 0..self.registers.len() {
            for (lane, &bits) in self.bits(context, register).iter().enumerate() {
                for index in 0..self.per_register() {
                    matrix[self.number(lane, register, index)] = self.value(bits, index);
                }
            }
        }
        matrix
    }

    /// A result as the bits of one element.
    fn round(&self, value: f64, saturate: bool) -> u64 {
        match self.ty {
            T::F64 => value.to_bits(),
            T::S32 if saturate => u64::from(value as i32 as u32),
            T::S32 => u64::from(value as i64 as u32),
            T::F16 => u64::from(<f16 as Small>::narrow(value).to_bits()),
            _ => u64::from(canonical(value as f32).to_bits()),
        }
    }

    fn scatter(&self, context: &mut Context<'_>, matrix: &[f64], saturate: bool) {
        for register in 0..self.registers.len() {
            let row = std::array::from_fn(|lane| {
                (0..self.per_register()).fold(0, |bits, index| {
                    let value = matrix[self.number(lane, register, index)];
                    bits | self.round(value, saturate) << (16 * index)
                })
            });
            self.put(context, register, &row);
        }
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let multiply = line.flag("mma");
    if !(line.flag("sync") && line.flag("aligned")) {
        return line.refuse();
    }
    let Some(shape) = line.choice(&SHAPES) else { return line.refuse() };
    let op = if multiply { multiplication(line, shape)? } else { transfer(line, shape)? };
    Ok(Op::Wmma(Box::new(op)))
}

/// `wmma.mma.sync.aligned.alayout.blayout.shape.dtype{.atype.btype}.ctype{.satfinite}`
fn multiplication(line: &mut Line<'_, '_>, shape: Shape) -> Decoded<Wmma> {
    // Fragments hold matrices, not their layouts.
    if line.choice(&LAYOUTS).is_none() || line.choice(&LAYOUTS).is_none() {
        return line.refuse();
    }
    let saturate = line.flag("satfinite");
    line.flag("rn");
    let types = std::iter::from_fn(|| line.optional_ty()).collect::<Vec<_>>();
    let (d, a, b, c) = match types[..] {
        [d, c] => (d, T::F16, T::F16, c),
        [d, a, b, c] => (d, a, b, c),
        _ => return line.refuse(),
    };
    let mixed = matches!((a, b), (T::S8 | T::U8, T::S8 | T::U8));
    if !factors(a, shape) || !(a == b || mixed) || !sums(c, a) || !sums(d, a) || (saturate && c != T::S32) {
        return line.refuse();
    }
    line.exactly(4)?;
    Ok(Wmma::Multiply {
        a: Part::new(shape, 'a', a).sources(line, 1, true)?,
        b: Part::new(shape, 'b', b).sources(line, 2, true)?,
        c: Part::new(shape, 'c', c).sources(line, 3, false)?,
        d: Part::new(shape, 'd', d).destinations(line, 0, false)?,
        saturate,
    })
}

/// `wmma.load.role.sync.aligned.layout.shape{.ss}.type r, [p]{, stride}` and `wmma.store.d…  [p], r{, stride}`
fn transfer(line: &mut Line<'_, '_>, shape: Shape) -> Decoded<Wmma> {
    let load = line.flag("load");
    if !load && !line.flag("store") {
        return line.refuse();
    }
    let roles: &[(&str, char)] = if load { &[("a", 'a'), ("b", 'b'), ("c", 'c')] } else { &[("d", 'd')] };
    let (Some(role), Some(column_major)) = (line.choice(roles), line.choice(&LAYOUTS)) else {
        return line.refuse();
    };
    let space = line.space();
    let ty = line.ty()?;
    let factor = matches!(role, 'a' | 'b');
    let known = if factor {
        factors(ty, shape)
    } else {
        [T::F16, T::Bf16, T::S8, T::Tf32, T::F64]
            .iter()
            .any(|&factor| factors(factor, shape) && sums(ty, factor))
    };
    if !known || !matches!(space, Space::Generic | Space::Global | Space::Shared) {
        return line.refuse();
    }
    let stride = if line.count() == 3 { Some(line.source(2, T::U32)?) } else { None };
    line.exactly(if stride.is_some() { 3 } else { 2 })?;
    let part = Part::new(shape, role, ty);
    let address = line.address(usize::from(load))?;
    let part = if load { part.destinations(line, 0, factor)? } else { part.sources(line, 1, factor)? };
    let transfer = Transfer { part, space, address, stride, column_major };
    Ok(if load { Wmma::Load(transfer) } else { Wmma::Store(transfer) })
}

pub(crate) fn execute(context: &mut Context<'_>, op: &Wmma) -> Done {
    match op {
        Wmma::Load(transfer) => transfer.load(context),
        Wmma::Store(transfer) => transfer.store(context),
        Wmma::Multiply { a, b, c, d, saturate } => {
            let (left, right) = (a.gather(context), b.gather(context));
            let mut sums = vec![0.0; d.rows * d.columns];
            for (sums, left) in sums.chunks_mut(d.columns).zip(left.chunks(a.columns)) {
                for (left, right) in left.iter().zip(right.chunks(b.columns)) {
                    for (sum, right) in sums.iter_mut().zip(right) {
                        *sum += left * right;
                    }
                }
            }
            for (sum, c) in sums.iter_mut().zip(c.gather(context)) {
                *sum += c;
            }
            d.scatter(context, &sums, *saturate);
            Ok(())
        }
    }
}

impl Transfer {
    fn element_bytes(&self) -> u64 {
        u64::from(self.part.ty.bytes())
    }

    /// Where element (0, 0) lies, and the bytes from one row (or column) to the next.
    fn place(&self, context: &Context<'_>) -> Done<(u64, u64)> {
        let dense = if self.column_major { self.part.rows } else { self.part.columns } as u32;
        let strides = self.stride.map_or([dense; LANES], |slot| *context.rows.word(slot));
        let addresses = context.addresses(&self.address).map(|at| generic(self.space, at));
        if addresses != [addresses[0]; LANES] || strides != [strides[0]; LANES] {
            return Err(Cause::MatrixAddress);
        }
        let (address, step) = (addresses[0], u64::from(strides[0]) * self.element_bytes());
        // CUDA asks for 32 bytes at the start and 16 from row to row; small fragments need no more than their size.
        let fragment = (self.part.registers.len() * self.part.per_register()) as u64 * self.element_bytes();
        for (value, bytes) in [(address, fragment.min(32)), (step, fragment.min(16))] {
            if value % bytes != 0 {
                return Err(Cause::Misaligned { address, bytes: bytes as u32 });
            }
        }
        match region_of(address) {
            (Region::Memory, _) => Ok((address, step)),
            _ => Err(Cause::PrivateAddress { address }),
        }
    }

    /// The addresses of one element of every lane.
    fn addresses(&self, (address, step): (u64, u64), register: usize, element: usize) -> Row<u64> {
        std::array::from_fn(|lane| {
            let number = self.part.number(lane, register, element);
            let (row, column) = ((number / self.part.columns) as u64, (number % self.part.columns) as u64);
            let (line, within) = if self.column_major { (column, row) } else { (row, column) };
            address + line * step + within * self.element_bytes()
        })
    }

    fn load(&self, context: &mut Context<'_>) -> Done {
        let place = self.place(context)?;
        let access = context.warp_access(context.rows.mask, Order::Weak, Scope::Cta);
        for register in 0..self.part.registers.len() {
            let mut bits = [0; LANES];
            for element in 0..self.part.per_register() {
                let mut values = [0; LANES];
                let addresses = self.addresses(place, register, element);
                context.memory.load_lanes(&access, &addresses, self.width()?, &mut values)?;
                let shift = 8 * self.element_bytes() as usize * element;
                bits.iter_mut().zip(values).for_each(|(bits, value)| *bits |= value << shift);
            }
            self.part.put(context, register, &bits);
        }
        Ok(())
    }

    fn store(&self, context: &mut Context<'_>) -> Done {
        let place = self.place(context)?;
        let access = context.warp_access(context.rows.mask, Order::Weak, Scope::Cta);
        for register in 0..self.part.registers.len() {
            let bits = self.part.bits(context, register);
            for element in 0..self.part.per_register() {
                let addresses = self.addresses(place, register, element);
                let values = bits.map(|bits| bits >> (8 * self.element_bytes() as usize * element));
                context.memory.store_lanes(&access, &addresses, self.width()?, &values)?;
            }
        }
        Ok(())
    }

    fn width(&self) -> Done<Width> {
        Width::from_bytes(self.element_bytes()).ok_or(Cause::MatrixAddress)
    }
}
