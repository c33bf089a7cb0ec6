//! `call`: functions of the file, those that CUDA provides (`vprintf`, `__assertfail`, `malloc`, `free`), and those of
//! the embedder's libraries ([`crate::external`]).

use super::address::{Region, region_of};
use super::context::{Cause, Context, Done};
use super::rows::{Row, Slot};
use crate::memory::{Order, Owner, Scope, Width};
use crate::program::{Decoded, FunctionInfo, Line, Op, Refusal};
use crate::text::{Operand, ScalarType as T};

pub(crate) const NAMES: &[&str] = &["call"];

/// Calls may nest this deep.
pub(crate) const MAX_DEPTH: usize = 256;

/// The most characters that a conversion of `printf` pads to or shows behind the point.
const MAX_FIELD: usize = 4096;

const FUNCTION_BASE: u64 = 0x1000;

/// What `mov.u64 d, function` gives, of its number in the file: not null, and no address of memory.
pub(crate) fn function_address(number: u32) -> u64 {
    FUNCTION_BASE + 16 * u64::from(number)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Function(u32),
    /// The address of a function; lanes may differ.
    Register(Slot),
    /// A function of a library, by its place in [`Program::externals`](crate::program::Program).
    External(u32),
    Print,
    Assert,
    Malloc,
    Free,
}

/// Offsets of arguments and results among the caller's `.param` variables.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) target: Target,
    pub(crate) arguments: Vec<u32>,
    pub(crate) results: Vec<u32>,
}

pub(crate) fn decode(line: &mut Line<'_, '_>) -> Decoded<Op> {
    line.flag("uni");
    let operands = &line.instruction.operands;
    let (results, rest) = match operands.first() {
        Some(Operand::List(results)) => (results.as_slice(), &operands[1..]),
        _ => (&[][..], &operands[..]),
    };
    let Some(Operand::Name(name)) = rest.first() else { return line.refuse() };
    let arguments = match rest.get(1) {
        Some(Operand::List(arguments)) => arguments.as_slice(),
        _ => &[],
    };
    let target = match *name {
        "vprintf" => Target::Print,
        "__assertfail" => Target::Assert,
        "malloc" => Target::Malloc,
        "free" => Target::Free,
        name => match line.builder.function_index(name) {
            Some(index) => {
                line.fits_signature(name, arguments, results)?;
                Target::Function(index)
            }
            // An indirect call: a register, then a prototype.
            None if name.starts_with('%') && rest.len() > 1 => {
                line.builder.reach_all();
                Target::Register(line.source(operands.len() - rest.len(), T::U64)?)
            }
            None => match line.builder.external(name, line.instruction.extent) {
                Some(index) => {
                    line.fits_signature(name, arguments, results)?;
                    Target::External(index)
                }
                None => return Err(Refusal::Function(name.to_owned())),
            },
        },
    };
    let arguments =
        arguments.iter().map(|operand| line.param_offset(operand)).collect::<Decoded<Vec<_>>>()?;
    let results = results.iter().map(|operand| line.param_offset(operand)).collect::<Decoded<Vec<_>>>()?;
    Ok(Op::Call(Box::new(Call { target, arguments, results })))
}

/// Copies arguments into the callee's frame, for the active lanes.
pub(crate) fn pass(context: &mut Context<'_>, call: &Call, callee: &FunctionInfo, base: u32) {
    for lane in context.active() {
        let params = &mut context.privates.params[lane];
        for (&from, &(to, bytes)) in call.arguments.iter().zip(&callee.params) {
            params.copy(context.base.params + from, base + to, bytes);
        }
    }
}

/// Copies results back.
pub(crate) fn give_back(context: &mut Context<'_>, call: &Call, callee: &FunctionInfo, caller_base: u32) {
    for lane in context.active() {
        let params = &mut context.privates.params[lane];
        for (&to, &(from, bytes)) in call.results.iter().zip(&callee.returns) {
            params.copy(context.base.params + from, caller_base + to, bytes);
        }
    }
}

/// The function that each lane calls: the first active lane's, and the lanes that call the same.
pub(crate) fn resolve(context: &Context<'_>, slot: Slot, functions: &[FunctionInfo]) -> Done<(u32, u32)> {
    let row: &Row<u64> = context.rows.double(slot);
    let first = context.rows.mask.trailing_zeros() as usize & 31;
    let address = row[first];
    let called = |function: &FunctionInfo| function_address(function.number) == address;
    let Some(index) = functions.iter().position(called) else { return Err(Cause::CallTarget { address }) };
    let same = context.active().filter(|&lane| row[lane] == address).fold(0, |bits, lane| bits | 1 << lane);
    Ok((index as u32, same))
}

fn byte(context: &mut Context<'_>, lane: usize, address: u64) -> Done<u8> {
    let value = match region_of(address) {
        (Region::Local, offset) => context.privates.local[lane].load(offset, 1)?,
        (Region::Params, offset) => context.privates.params[lane].load(offset, 1)?,
        (Region::Memory, _) => {
            let access = context.access(lane, Order::Weak, Scope::Cta);
            context.memory.load(&access, address, Width::B1)?
        }
    };
    Ok(value as u8)
}

fn bytes(context: &mut Context<'_>, lane: usize, address: u64, count: u64) -> Done<u64> {
    let mut value = 0;
    for index in 0..count {
        value |= u64::from(byte(context, lane, address + index)?) << (8 * index);
    }
    Ok(value)
}

/// A string that ends with a zero byte, at most 64 KiB of it.
fn text(context: &mut Context<'_>, lane: usize, address: u64) -> Done<String> {
    let mut out = Vec::new();
    while out.len() < 1 << 16 {
        match byte(context, lane, address + out.len() as u64)? {
            0 => break,
            value => out.push(value),
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn argument(context: &Context<'_>, call: &Call, lane: usize, index: usize, bytes: usize) -> Done<u64> {
    let offset = call.arguments.get(index).copied().unwrap_or(u32::MAX);
    context.privates.params[lane].load(u64::from(context.base.params) + u64::from(offset), bytes)
}

/// `__assertfail(message, file, line, function, char size)`: the first lane's message.
pub(crate) fn assertion(context: &mut Context<'_>, call: &Call) -> Cause {
    let lane = context.rows.mask.trailing_zeros() as usize & 31;
    let described = (|| -> Done<String> {
        let message = argument(context, call, lane, 0, 8)?;
        let file = argument(context, call, lane, 1, 8)?;
        let line = argument(context, call, lane, 2, 4)?;
        let function = argument(context, call, lane, 3, 8)?;
        let message = text(context, lane, message)?;
        Ok(format!("{}:{line}: {}: {message}", text(context, lane, file)?, text(context, lane, function)?))
    })();
    described.map_or_else(|cause| cause, Cause::Assertion)
}

/// A call of a function that CUDA provides and that returns.
pub(crate) fn provided(context: &mut Context<'_>, call: &Call) -> Done {
    match call.target {
        Target::Malloc => allocate(context, call),
        Target::Free => release(context, call),
        _ => print(context, call),
    }
}

/// `malloc(bytes)`: an allocation of its own for each lane, so that bounds and lifetime are checked.
fn allocate(context: &mut Context<'_>, call: &Call) -> Done {
    let device = context.memory.block(context.first.block).device;
    let owner = device.map_or(Owner::Host, Owner::Device);
    for lane in context.active() {
        let bytes = argument(context, call, lane, 0, 8)?;
        let address = context.memory.allocate(owner, bytes.max(1), "malloc in a kernel")?;
        if let Some(&result) = call.results.first() {
            let at = u64::from(context.base.params + result);
            context.privates.params[lane].store(at, 8, address)?;
        }
    }
    Ok(())
}

/// `free(address)`
fn release(context: &mut Context<'_>, call: &Call) -> Done {
    for lane in context.active() {
        match argument(context, call, lane, 0, 8)? {
            0 => {}
            address => context.memory.free(address)?,
        }
    }
    Ok(())
}

/// `vprintf(format, arguments)`: returns the number of conversions, as CUDA does.
fn print(context: &mut Context<'_>, call: &Call) -> Done {
    for lane in context.active() {
        let format = argument(context, call, lane, 0, 8)?;
        let arguments = argument(context, call, lane, 1, 8)?;
        let format = text(context, lane, format)?;
        let conversions = print_lane(context, lane, &format, arguments)?;
        if let Some(&result) = call.results.first() {
            let at = u64::from(context.base.params + result);
            context.privates.params[lane].store(at, 4, conversions)?;
        }
    }
    Ok(())
}

fn print_lane(context: &mut Context<'_>, lane: usize, format: &str, mut at: u64) -> Done<u64> {
    let mut conversions = 0;
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        context.output.push_str(&rest[..percent]);
        rest = &rest[percent + 1..];
        let last = || rest.char_indices().last().map_or(0, |(at, _)| at);
        let end = rest.find(|c: char| "diouxXcsfFeEgGaAp%".contains(c)).unwrap_or_else(last);
        let (flags, kind) = (&rest[..end], rest[end..].chars().next().unwrap_or('%'));
        rest = rest.get(end + 1..).unwrap_or("");
        if kind == '%' {
            context.output.push('%');
            continue;
        }
        let wide = flags.contains("ll") || flags.contains(['l', 'z', 'j']) || "sfFeEgGaAp".contains(kind);
        let size = if wide { 8 } else { 4 };
        at = at.next_multiple_of(size);
        let bits = bytes(context, lane, at, size)?;
        at += size;
        let shown = if kind == 's' { text(context, lane, bits)? } else { show(flags, kind, bits, wide) };
        let digits: String = flags
            .trim_start_matches(['-', '+', ' ', '#', '0'])
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        let width = digits.parse().unwrap_or(0).min(MAX_FIELD);
        let padded = match (flags.starts_with('-'), flags.starts_with('0')) {
            (true, _) => format!("{shown:<width$}"),
            (_, true) => format!("{}{shown}", "0".repeat(width.saturating_sub(shown.len()))),
            _ => format!("{shown:>width$}"),
        };
        context.output.push_str(&padded);
        conversions += 1;
    }
    context.output.push_str(rest);
    Ok(conversions)
}

fn show(flags: &str, kind: char, bits: u64, wide: bool) -> String {
    let precision = flags
        .split_once('.')
        .and_then(|(_, digits)| digits.trim_end_matches(['l', 'h']).parse::<usize>().ok())
        .map(|precision| precision.min(MAX_FIELD));
    let value = f64::from_bits(bits);
    match kind {
        'd' | 'i' if wide => (bits as i64).to_string(),
        'd' | 'i' => (bits as i32).to_string(),
        'x' => format!("{bits:x}"),
        'X' => format!("{bits:X}"),
        'o' => format!("{bits:o}"),
        'p' => format!("{bits:#x}"),
        'c' => char::from(bits as u8).to_string(),
        'f' | 'F' => format!("{value:.*}", precision.unwrap_or(6)),
        'e' | 'E' => format!("{value:.*e}", precision.unwrap_or(6)),
        'g' | 'G' | 'a' | 'A' => value.to_string(),
        _ => bits.to_string(),
    }
}
