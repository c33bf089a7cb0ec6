//! `wgmma`: products of a warpgroup, read from shared memory by the asynchronous proxy (PTX ISA, "Asynchronous
//! Warpgroup Level Matrix Instructions").
//!
//! Both operands are K-major and named by descriptors. Element 4j + i of the accumulators of lane 4g + t in warp w of
//! the group is D\[16 w + g + 8 (i div 2)\]\[8 j + 2 t + i mod 2\]. Operands are read and sums are written as late as
//! PTX allows: when the group is waited for. Until then nothing else may touch the accumulators. Sums are formed as
//! those of `mma.sync`: in binary64, by ascending k, the accumulator last, and rounded once.

use std::collections::{BTreeMap, VecDeque};

use super::address::generic;
use super::context::{Cause, Context, Done};
use super::mma::element;
use super::rounding::canonical;
use super::rows::{LANES, Mask, Row, Slot, each};
use super::warpgroup::{GROUP_THREADS, Step, Warpgroups};
use crate::memory::{Access, Clock, Moment, Site, Thread};
use crate::program::{Decoded, Line, Op};
use crate::text::{ScalarType as T, Space};

pub(crate) const NAMES: &[&str] = &["wgmma"];

/// Rows of D that a warp has, and columns of k.
const WARP_ROWS: usize = 16;
const DEPTH: usize = 16;

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
    d: Box<[Slot]>,
    /// Descriptors.
    a: Slot,
    b: Slot,
    /// Whether D is added to, and whether that is negated.
    adds: (Slot, bool),
    /// The product of the factors' signs.
    sign: f64,
}

impl Multiply {
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
    line.exactly(8)?;
    let mut sign = 1.0;
    for factor in [4, 5] {
        match line.literal(factor)? {
            1 => {}
            -1 => sign = -sign,
            _ => return line.refuse(),
        }
    }
    // Operands along M or N.
    if line.literal(6)? != 0 || line.literal(7)? != 0 {
        return line.refuse();
    }
    let (a, b) = (line.source(1, T::B64)?, line.source(2, T::B64)?);
    let adds = line.predicate(3)?;
    let d = line.destinations(0, T::B32, columns / 2)?.into();
    Ok(Op::Wgmma(Operation::Multiply(Box::new(Multiply { ty, columns, d, a, b, adds, sign }))))
}

/// PTX ISA, "Matrix Descriptor Format".
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    start: u64,
    leading_bytes: u64,
    stride_bytes: u64,
    /// Bytes of a row in the swizzle's pattern; 0 for none.
    swizzle_bytes: u64,
}

impl Descriptor {
    fn new(bits: u64) -> Option<Self> {
        let field = |shift: u32| (bits >> shift & 0x3FFF) << 4;
        let swizzle_bytes = [0, 128, 64, 32][(bits >> 62) as usize];
        // A pattern that begins elsewhere than at a multiple of its size.
        let base_offset = bits >> 49 & 7;
        (base_offset == 0).then(|| Self {
            start: field(0),
            leading_bytes: field(16),
            stride_bytes: field(32),
            swizzle_bytes,
        })
    }

    /// Of 16 bytes in shared memory: eight columns of k, the first or the second, of a row.
    fn address(self, row: usize, half: usize) -> u64 {
        let (row, half) = (row as u64, half as u64);
        let group = self.start + row / 8 * self.stride_bytes;
        if self.swizzle_bytes == 0 {
            return group + half * self.leading_bytes + row % 8 * 16;
        }
        let at = group + row % 8 * self.swizzle_bytes + half * 16;
        at ^ (at >> 7 & (self.swizzle_bytes / 16 - 1)) << 4
    }
}

/// A product that has been issued.
#[derive(Debug)]
struct Product {
    /// Who reads.
    agent: Thread,
    site: Site,
    op: Box<Multiply>,
    a: Descriptor,
    b: Descriptor,
    adds: bool,
}

/// Products of one warp.
#[derive(Debug, Default)]
struct InFlight {
    open: Vec<Product>,
    closed: VecDeque<Vec<Product>>,
    /// The agent of the products that were issued since a moment.
    agent: Option<(Thread, Moment)>,
    /// The accumulators of all of them, and how many products those are of.
    held: Vec<(Box<[Slot]>, usize)>,
    /// `wgmma.fence` has come since the accumulators were last the warp's.
    fenced: bool,
}

impl InFlight {
    /// One more product works on accumulators; an error if they are in part those of others.
    fn hold(&mut self, d: &[Slot]) -> Done {
        if let Some((_, products)) = self.held.iter_mut().find(|(held, _)| **held == *d) {
            *products += 1;
            return Ok(());
        }
        if self.held.iter().any(|(held, _)| held.iter().any(|slot| d.contains(slot))) {
            return Err(Cause::Wgmma(
                "some of its accumulators are those of a product of another shape in flight",
            ));
        }
        self.held.push((d.into(), 1));
        Ok(())
    }

    /// The oldest group, if there are more than `left`; its accumulators are no longer held.
    fn take_beyond(&mut self, left: u32) -> Option<Vec<Product>> {
        let group = if self.closed.len() > left as usize { self.closed.pop_front() } else { None };
        for product in group.iter().flatten() {
            if let Some((_, products)) = self.held.iter_mut().find(|(held, _)| **held == *product.op.d) {
                *products -= 1;
            }
        }
        self.held.retain(|(_, products)| *products > 0);
        self.fenced &= !self.held.is_empty();
        group
    }
}

/// Products of a block.
#[derive(Debug, Default)]
pub(crate) struct Products {
    /// By the first thread of the warp.
    warps: BTreeMap<u32, InFlight>,
    groups: Warpgroups,
}

impl Products {
    /// Whether a register of a warp is the accumulator of a product in flight.
    pub(crate) fn holds(&self, first_thread: u32, slot: Slot) -> bool {
        let warp = self.warps.get(&first_thread);
        warp.is_some_and(|warp| warp.held.iter().any(|(held, _)| held.contains(&slot)))
    }

    /// What only some warps of a group have executed: lane 0 of one, and the instruction.
    pub(super) fn out_of_step(&self) -> Option<(Thread, Site)> {
        self.groups.unfinished().map(|step| (step.thread, step.site))
    }

    /// Whether a warp has products in flight.
    pub(crate) fn is_busy(&self, first_thread: u32) -> bool {
        self.warps.get(&first_thread).is_some_and(|warp| !warp.held.is_empty())
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
        row.iter().all(|bits| *bits == row[0]).then_some(row[0])
    };
    let (Some(a), Some(b)) = (descriptor(op.a), descriptor(op.b)) else {
        return Err(Cause::Wgmma("descriptors must be the same in all lanes"));
    };
    let (slot, negated) = op.adds;
    let adds = context.rows.pred(slot) ^ if negated { u32::MAX } else { 0 };
    if adds != 0 && adds != u32::MAX {
        return Err(Cause::Wgmma("scale-d must be the same in all lanes"));
    }
    note(context, Some(([a, b], adds != 0)))?;
    let (Some(a), Some(b)) = (Descriptor::new(a), Descriptor::new(b)) else {
        return Err(Cause::Wgmma("a base offset other than 0 in a descriptor is not supported"));
    };
    let thread = context.thread(0);
    let now = context.memory.moment(thread);
    let in_flight = context.asynchronous.products.warps.entry(context.environment.first_thread).or_default();
    if !in_flight.fenced {
        return Err(Cause::Wgmma("no `wgmma.fence` since the warp could last access the accumulators"));
    }
    in_flight.hold(&op.d)?;
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

/// Rows of an operand, 16 columns of k each.
fn gather(
    context: &mut Context<'_>,
    product: &Product,
    from: Descriptor,
    rows: std::ops::Range<usize>,
) -> Done<Vec<[f64; DEPTH]>> {
    let access = Access::weak(product.agent, product.site);
    let mut matrix = Vec::with_capacity(rows.len());
    for row in rows {
        let mut values = [0.0; DEPTH];
        for half in 0..2 {
            let mut bytes = [0; 16];
            context.memory.read_by(&access, generic(Space::Shared, from.address(row, half)), &mut bytes)?;
            for (value, pair) in values[8 * half..].iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = element(product.op.ty, u32::from(u16::from_le_bytes(*pair)), 0);
            }
        }
        matrix.push(values);
    }
    Ok(matrix)
}

fn compute(context: &mut Context<'_>, product: &Product) -> Done {
    let op = &product.op;
    let first_row = (context.environment.first_thread % GROUP_THREADS) as usize / LANES * WARP_ROWS;
    let a = gather(context, product, product.a, first_row..first_row + WARP_ROWS)?;
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
