//! `wgmma`: products of a warpgroup, read from shared memory by the asynchronous proxy (PTX ISA, "Asynchronous
//! Warpgroup Level Matrix Instructions").
//!
//! Operands lie in shared memory, where descriptors name them; A may lie in registers: element e of register r of lane
//! 4g + t in warp w of the group is A\[16 w + g + 8 (r mod 2)\]\[2 t + e + 8 (r div 2)\]. Element 4j + i of the
//! accumulators is D\[16 w + g + 8 (i div 2)\]\[8 j + 2 t + i mod 2\]. Operands are read and sums are written as late
//! as PTX allows: when the group is waited for. Until then nothing else may touch the accumulators, nor the registers
//! of A. Sums are formed as those of `mma.sync`: in binary64, by ascending k, the accumulator last, and rounded once.

use super::address::generic;
use super::context::{Cause, Context, Done};
use super::descriptor::{Descriptor, EIGHT, Major};
use super::mma::element;
use super::products::Product;
use super::rounding::canonical;
use super::rows::{LANES, Mask, Row, Slot, each};
use super::warpgroup::{GROUP_THREADS, Step};
use crate::memory::{Access, Clock};
use crate::program::{Decoded, Line, Op};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["wgmma"];

/// Rows of D that a warp has, and columns of k.
const WARP_ROWS: usize = 16;
const DEPTH: usize = 16;
/// Registers of A, of two elements each.
const FRAGMENT: usize = 4;

#[derive(Debug, Clone)]
pub(crate) enum Operation {
    Fence,
    Commit,
    /// Until at most so many groups are in flight.
    Wait {
        left: u32,
    },
    Multiply(Box<Multiply>),
}

/// `wgmma.mma_async`
#[derive(Debug, Clone)]
pub(crate) struct Multiply {
    ty: T,
    columns: usize,
    pub(super) d: Box<[Slot]>,
    a: Left,
    /// A descriptor.
    b: (Slot, Major),
    /// Whether D is added to, and whether that is negated.
    adds: (Slot, bool),
    /// The product of the factors' signs.
    sign: f64,
}

/// Where A is.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// In shared memory, as a descriptor tells.
    Shared(Slot, Major),
    Registers([Slot; FRAGMENT]),
}

impl Multiply {
    /// A's descriptor, if it has one.
    fn shared_left(&self) -> Option<(Slot, Major)> {
        match self.a {
            Left::Shared(slot, major) => Some((slot, major)),
            Left::Registers(_) => None,
        }
    }

    /// The registers of A, if it is there.
    pub(super) fn fragment(&self) -> &[Slot] {
        match &self.a {
            Left::Shared(..) => &[],
            Left::Registers(slots) => slots,
        }
    }

    /// The accumulators.
    pub(crate) fn accumulators(&self) -> &[Slot] {
        &self.d
    }

    /// The predicate of adding to the accumulators, and whether it is negated.
    pub(crate) fn adds(&self) -> (Slot, bool) {
        self.adds
    }
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let kinds = ["fence", "commit_group", "wait_group", "mma_async"].map(|name| (name, name));
    let kind = line.choice(&kinds);
    if !(line.flag("sync") && line.flag("aligned")) {
        return line.refuse();
    }
    let operation = match kind {
        Some("fence") => Operation::Fence,
        Some("commit_group") => Operation::Commit,
        Some("wait_group") => {
            line.exactly(1)?;
            let Ok(left) = u32::try_from(line.literal(0)?) else { return line.refuse() };
            return Ok(Op::Wgmma(Operation::Wait { left }));
        }
        Some(_) => return multiply(line),
        None => return line.refuse(),
    };
    line.exactly(0)?;
    Ok(Op::Wgmma(operation))
}

fn multiply(line: &mut Line<'_, '_>) -> Decoded<Op> {
    let columns = (8..=256).step_by(8).find(|columns| line.flag(&format!("m64n{columns}k16")));
    let Some(columns) = columns else { return line.refuse() };
    let (d_type, ty, b_type) = (line.ty()?, line.ty()?, line.ty()?);
    if d_type != T::F32 || !matches!(ty, T::F16 | T::Bf16) || b_type != ty {
        return line.refuse();
    }
    let in_registers = line.elements(1)?.len() > 1;
    line.exactly(if in_registers { 7 } else { 8 })?;
    let mut sign = 1.0;
    for factor in [4, 5] {
        match line.literal(factor)? {
            1 => {}
            -1 => sign = -sign,
            _ => return line.refuse(),
        }
    }
    let a = if in_registers {
        let slots = line.sources(1, T::B32, FRAGMENT)?;
        Left::Registers(std::array::from_fn(|index| slots[index]))
    } else {
        Left::Shared(line.source(1, T::B64)?, major(line, 6)?)
    };
    let b = (line.source(2, T::B64)?, major(line, line.count() - 1)?);
    let adds = line.predicate(3)?;
    let d = line.destinations(0, T::B32, columns / 2)?.into();
    Ok(Op::Wgmma(Operation::Multiply(Box::new(Multiply { ty, columns, d, a, b, adds, sign }))))
}

/// `imm-trans-a`, `imm-trans-b`
fn major(line: &Line<'_, '_>, index: usize) -> Decoded<Major> {
    match line.literal(index)? {
        0 => Ok(Major::K),
        1 => Ok(Major::Mn),
        _ => line.refuse(),
    }
}

pub(crate) fn execute(context: &mut Context<'_>, operation: &Operation) -> Done {
    let warp = context.environment.first_thread;
    let group_end = (warp / GROUP_THREADS + 1) * GROUP_THREADS;
    if group_end > context.environment.threads() {
        return Err(Cause::Wgmma("the block has no whole warpgroup here"));
    }
    if context.rows.mask != Mask::MAX {
        return Err(Cause::Wgmma("lanes of the warp have exited"));
    }
    if !matches!(operation, Operation::Multiply(_)) {
        note(context, None)?;
    }
    let in_flight = context.asynchronous.products.warps.entry(warp).or_default();
    match operation {
        Operation::Fence => in_flight.fenced = true,
        Operation::Commit => {
            let group = std::mem::take(&mut in_flight.open);
            in_flight.agent = None;
            in_flight.closed.push_back(group);
        }
        Operation::Multiply(op) => return issue(context, op),
        Operation::Wait { left } => loop {
            let in_flight = context.asynchronous.products.warps.get_mut(&warp);
            let Some(group) = in_flight.and_then(|warp| warp.take_beyond(*left)) else { break };
            finish(context, &group)?;
        },
    }
    Ok(())
}

/// The warp executes the next instruction of its group.
fn note(context: &mut Context<'_>, operands: Option<([u64; 2], bool)>) -> Done {
    let step = Step { thread: context.thread(0), site: context.site, operands };
    context.asynchronous.products.groups.note(context.environment.first_thread, step)
}

fn issue(context: &mut Context<'_>, op: &Multiply) -> Done {
    let descriptor = |slot: Slot| {
        let row = context.rows.double(slot);
        let same = row.iter().all(|bits| *bits == row[0]).then_some(row[0]);
        same.ok_or(Cause::Wgmma("descriptors must be the same in all lanes"))
    };
    let (a, b) = (op.shared_left().map(|(slot, _)| descriptor(slot)).transpose()?, descriptor(op.b.0)?);
    let (slot, negated) = op.adds;
    let adds = context.rows.pred(slot) ^ if negated { u32::MAX } else { 0 };
    if adds != 0 && adds != u32::MAX {
        return Err(Cause::Wgmma("scale-d must be the same in all lanes"));
    }
    note(context, Some(([a.unwrap_or_default(), b], adds != 0)))?;
    let parsed = |bits| {
        let unsupported = "a base offset other than 0 in a descriptor is not supported";
        Descriptor::new(bits).ok_or(Cause::Wgmma(unsupported))
    };
    let a = match (a, op.shared_left()) {
        (Some(bits), Some((_, major))) => Some((parsed(bits)?, major)),
        _ => None,
    };
    let b = (parsed(b)?, op.b.1);
    let thread = context.thread(0);
    let now = context.memory.moment(thread);
    let in_flight = context.asynchronous.products.warps.entry(context.environment.first_thread).or_default();
    if !in_flight.fenced {
        return Err(Cause::Wgmma("no `wgmma.fence` since the warp could last access the accumulators"));
    }
    in_flight.hold(op)?;
    let agent = match in_flight.agent {
        Some((agent, since)) if since == now => agent,
        _ => {
            let agent = context.memory.begin_proxy(thread);
            // Beginning is a moment of its own.
            in_flight.agent = Some((agent, context.memory.moment(thread)));
            agent
        }
    };
    let op = Box::new(op.clone());
    in_flight.open.push(Product { agent, site: context.site, op, a, b, adds: adds != 0 });
    Ok(())
}

/// A group is waited for.
fn finish(context: &mut Context<'_>, group: &[Product]) -> Done {
    let mut clock = Clock::default();
    for (index, product) in group.iter().enumerate() {
        compute(context, product)?;
        // An agent ends with the last of its products.
        if group.get(index + 1).is_none_or(|next| next.agent != product.agent) {
            context.memory.end_async(product.agent, &mut clock);
        }
    }
    for lane in context.active() {
        let thread = context.thread(lane);
        context.memory.acquire(thread, &clock);
    }
    Ok(())
}

/// Rows of an operand in shared memory, 16 columns of k each.
fn gather(
    context: &mut Context<'_>,
    product: &Product,
    (from, major): (Descriptor, Major),
    rows: std::ops::Range<usize>,
) -> Done<Vec<[f64; DEPTH]>> {
    let access = Access::weak(product.agent, product.site);
    let mut matrix = vec![[0.0; DEPTH]; rows.len()];
    let (lines, units) = match major {
        Major::K => (rows.clone(), 0..DEPTH / EIGHT),
        Major::Mn => (0..DEPTH, rows.start / EIGHT..rows.end / EIGHT),
    };
    for (line, unit) in lines.flat_map(|line| units.clone().map(move |unit| (line, unit))) {
        let mut bytes = [0; 16];
        let address = generic(Space::Shared, from.address(major, line, unit));
        context.memory.read_by(&access, address, &mut bytes)?;
        for (index, pair) in bytes.as_chunks::<2>().0.iter().enumerate() {
            let value = element(product.op.ty, u32::from(u16::from_le_bytes(*pair)), 0);
            match major {
                Major::K => matrix[line - rows.start][EIGHT * unit + index] = value,
                Major::Mn => matrix[EIGHT * unit + index - rows.start][line] = value,
            }
        }
    }
    Ok(matrix)
}

/// The warp's rows of A from its registers.
fn from_registers(context: &Context<'_>, op: &Multiply) -> Vec<[f64; DEPTH]> {
    let mut matrix = vec![[0.0; DEPTH]; WARP_ROWS];
    for (index, &slot) in op.fragment().iter().enumerate() {
        for (lane, &bits) in context.rows.word(slot).iter().enumerate() {
            for part in 0..2 {
                let (row, column) = (lane / 4 + 8 * (index % 2), 2 * (lane % 4) + part + 8 * (index / 2));
                matrix[row][column] = element(op.ty, bits, part);
            }
        }
    }
    matrix
}

fn compute(context: &mut Context<'_>, product: &Product) -> Done {
    let op = &product.op;
    let first_row = (context.environment.first_thread % GROUP_THREADS) as usize / LANES * WARP_ROWS;
    let a = match product.a {
        Some(a) => gather(context, product, a, first_row..first_row + WARP_ROWS)?,
        None => from_registers(context, op),
    };
    let b = gather(context, product, product.b, 0..op.columns)?;
    for (index, &slot) in op.d.iter().enumerate() {
        let mut sums: Row<f64> = [0.0; LANES];
        for (lane, sum) in sums.iter_mut().enumerate() {
            let a = &a[lane / 4 + 8 * (index / 2 % 2)];
            let b = &b[8 * (index / 4) + 2 * (lane % 4) + index % 2];
            *sum = op.sign * a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        }
        if product.adds {
            for (sum, &old) in sums.iter_mut().zip(context.rows.word(slot)) {
                *sum += f64::from(f32::from_bits(old));
            }
        }
        context.rows.put_word(slot, &each(&sums, |sum| canonical(sum as f32).to_bits()));
    }
    Ok(())
}
