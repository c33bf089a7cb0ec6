//! One instruction being decoded: its modifiers are taken one by one, its operands become slots.
//!
//! What nobody took is an error, so that no modifier is ever ignored by accident.

use super::builder::{Builder, Place, Symbol};
use super::{Address, Frame, Op, Refusal};
use crate::exec::rows::{Class, Slot, Slots};
use crate::text::{Instruction, Operand, ScalarType, Space};

pub(crate) type Decoded<T> = Result<T, Refusal>;

pub(crate) struct Line<'b, 'a> {
    pub(crate) builder: &'b mut Builder<'a>,
    pub(crate) instruction: &'b Instruction<'a>,
    /// `mul` of `mul.wide.u32`.
    pub(crate) name: &'a str,
    modifiers: Vec<&'a str>,
}

/// A register and its class, where the instruction's type does not fix the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Typed {
    pub(crate) slot: Slot,
    pub(crate) class: Class,
}

/// The class that holds values of a type.
pub(crate) fn class_of(ty: ScalarType) -> Class {
    match ty.bytes() {
        0 => Class::Pred,
        8 => Class::Double,
        _ => Class::Word,
    }
}

impl<'b, 'a> Line<'b, 'a> {
    pub(crate) fn new(builder: &'b mut Builder<'a>, instruction: &'b Instruction<'a>) -> Self {
        let mut parts = instruction.opcode.split('.');
        let name = parts.next().unwrap_or_default();
        Self { builder, instruction, name, modifiers: parts.collect() }
    }

    /// Takes a modifier if it is there.
    pub(crate) fn flag(&mut self, modifier: &str) -> bool {
        let found = self.modifiers.iter().position(|&found| found == modifier);
        found.map(|index| self.modifiers.remove(index)).is_some()
    }

    /// Takes whichever of these comes first.
    pub(crate) fn choice<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        let matching = |modifier: &&str| table.iter().find(|(name, _)| name == modifier).map(|entry| entry.1);
        let index = self.modifiers.iter().position(|modifier| matching(modifier).is_some())?;
        matching(&self.modifiers.remove(index))
    }

    /// Takes all modifiers with a prefix (`L2::`).
    pub(crate) fn prefixed(&mut self, prefix: &str) -> bool {
        let before = self.modifiers.len();
        self.modifiers.retain(|modifier| !modifier.starts_with(prefix));
        self.modifiers.len() != before
    }

    /// Takes the first type.
    pub(crate) fn ty(&mut self) -> Decoded<ScalarType> {
        self.optional_ty().ok_or(Refusal::NoType)
    }

    pub(crate) fn optional_ty(&mut self) -> Option<ScalarType> {
        let index = self.modifiers.iter().position(|name| ScalarType::parse(name).is_some())?;
        ScalarType::parse(self.modifiers.remove(index))
    }

    /// Takes a state space; none given means generic.
    pub(crate) fn space(&mut self) -> Space {
        let spaces = [
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("shared::cta", Space::Shared),
            ("shared::cluster", Space::SharedCluster),
            ("local", Space::Local),
            ("const", Space::Const),
            ("param", Space::Param),
            ("param::entry", Space::Param),
            ("param::func", Space::Param),
        ];
        self.choice(&spaces).unwrap_or(Space::Generic)
    }

    /// An error if a modifier is left.
    pub(crate) fn done(&self) -> Decoded<()> {
        match self.modifiers.first() {
            Some(left) => Err(Refusal::Modifier((*left).to_owned())),
            None => Ok(()),
        }
    }

    /// Refuses the first modifier that is left, or the instruction.
    pub(crate) fn refuse<T>(&self) -> Decoded<T> {
        self.done()?;
        Err(Refusal::Form)
    }

    pub(crate) fn count(&self) -> usize {
        self.instruction.operands.len()
    }

    /// An error unless there are that many operands.
    pub(crate) fn exactly(&self, count: usize) -> Decoded<()> {
        self.between(count, count)
    }

    pub(crate) fn between(&self, least: usize, most: usize) -> Decoded<()> {
        if (least..=most).contains(&self.count()) {
            Ok(())
        } else {
            Err(Refusal::Count { least, most, found: self.count() })
        }
    }

    pub(crate) fn operand(&self, index: usize) -> Decoded<&'b Operand<'a>> {
        let count = self.count();
        self.instruction.operands.get(index).ok_or(Refusal::Count {
            least: index + 1,
            most: index + 1,
            found: count,
        })
    }

    fn wrong<T>(&self, operand: &Operand<'_>, expected: &'static str) -> Decoded<T> {
        Err(Refusal::Operand { found: describe(operand), expected })
    }

    /// A destination register of the type's class; `_` drops the result.
    pub(crate) fn destination(&mut self, index: usize, ty: ScalarType) -> Decoded<Slot> {
        let operand = self.operand(index)?;
        self.destination_in(operand, ty)
    }

    pub(crate) fn destination_in(&mut self, operand: &Operand<'a>, ty: ScalarType) -> Decoded<Slot> {
        let typed = self.any_destination_in(operand)?;
        if typed.slot == Slot::NONE || typed.class == class_of(ty) {
            return Ok(typed.slot);
        }
        self.wrong(operand, "a register as wide as the type")
    }

    /// A destination register of any class.
    pub(crate) fn any_destination(&mut self, index: usize) -> Decoded<Typed> {
        let operand = self.operand(index)?;
        self.any_destination_in(operand)
    }

    pub(crate) fn any_destination_in(&mut self, operand: &Operand<'a>) -> Decoded<Typed> {
        let Operand::Name(name) = operand else { return self.wrong(operand, "a register") };
        if *name == "_" {
            return Ok(Typed { slot: Slot::NONE, class: Class::Word });
        }
        let Some(Symbol::Register(typed)) = self.builder.lookup(name) else {
            return self.wrong(operand, "a register");
        };
        self.builder.writes.push(typed);
        Ok(typed)
    }

    /// A source of the type's class: register, special register, literal or address of a variable.
    pub(crate) fn source(&mut self, index: usize, ty: ScalarType) -> Decoded<Slot> {
        let operand = self.operand(index)?;
        self.source_in(operand, ty)
    }

    pub(crate) fn source_in(&mut self, operand: &Operand<'a>, ty: ScalarType) -> Decoded<Slot> {
        let typed = self.any_source_in(operand, ty)?;
        if typed.class == class_of(ty) {
            Ok(typed.slot)
        } else {
            self.wrong(operand, "an operand as wide as the type")
        }
    }

    /// A source of any class; literals take the type's.
    pub(crate) fn any_source(&mut self, index: usize, ty: ScalarType) -> Decoded<Typed> {
        let operand = self.operand(index)?;
        self.any_source_in(operand, ty)
    }

    pub(crate) fn any_source_in(&mut self, operand: &Operand<'a>, ty: ScalarType) -> Decoded<Typed> {
        match operand {
            Operand::Name(name) => self.named_source(operand, name, 0, class_of(ty)),
            Operand::Offset(name, offset) => self.named_source(operand, name, *offset, class_of(ty)),
            _ => match literal_bits(operand, ty) {
                Some(bits) => Ok(self.builder.constant(class_of(ty), bits)),
                None => self.wrong(operand, "a register or a literal"),
            },
        }
    }

    fn named_source(
        &mut self,
        operand: &Operand<'a>,
        name: &'a str,
        offset: i64,
        class: Class,
    ) -> Decoded<Typed> {
        match self.builder.lookup(name) {
            Some(Symbol::Register(typed)) if offset == 0 => {
                self.builder.reads.push(typed);
                Ok(typed)
            }
            Some(Symbol::Variable(address)) => Ok(self.builder.address_value(address, offset, class)),
            Some(Symbol::Function(index)) if offset == 0 => Ok(self.builder.function_value(index)),
            _ if offset == 0 && name == "WARP_SZ" => Ok(self.builder.constant(Class::Word, 32)),
            _ if offset == 0 => match self.builder.special(name)? {
                Some(typed) => Ok(typed),
                None => self.wrong(operand, "a declared register, variable or special register"),
            },
            _ => self.wrong(operand, "a variable plus an offset"),
        }
    }

    /// A `.b128` register: the slot of its low half, before that of the high one. `_` drops a result.
    pub(crate) fn quad(&mut self, index: usize, is_destination: bool) -> Decoded<Slot> {
        let operand = self.operand(index)?;
        let Operand::Name(name) = operand else { return self.wrong(operand, "a register of 128 bits") };
        if *name == "_" && is_destination {
            return Ok(Slot::NONE);
        }
        let Some(Symbol::Quad(low)) = self.builder.lookup(name) else {
            return self.wrong(operand, "a register of 128 bits");
        };
        let halves = [low, Slot(low.0 + 1)].map(|slot| Typed { slot, class: Class::Double });
        if is_destination {
            self.builder.writes.extend(halves);
        } else {
            self.builder.reads.extend(halves);
        }
        Ok(low)
    }

    /// A predicate source and whether it is negated.
    pub(crate) fn predicate(&mut self, index: usize) -> Decoded<(Slot, bool)> {
        let operand = self.operand(index)?;
        let (name, negated) = match operand {
            Operand::Name(name) => (*name, false),
            Operand::Not(name) => (*name, true),
            _ => return self.wrong(operand, "a predicate"),
        };
        match self.builder.lookup(name) {
            Some(Symbol::Register(typed)) if typed.class == Class::Pred => {
                self.builder.reads.push(typed);
                Ok((typed.slot, negated))
            }
            _ => self.wrong(operand, "a predicate"),
        }
    }

    /// A literal integer.
    pub(crate) fn literal(&self, index: usize) -> Decoded<i64> {
        match self.operand(index)? {
            Operand::Integer(value) => Ok(*value as i64),
            operand => self.wrong(operand, "a literal integer"),
        }
    }

    /// The parts of `{a, b}`, or of a single operand.
    pub(crate) fn elements(&self, index: usize) -> Decoded<&'b [Operand<'a>]> {
        Ok(match self.operand(index)? {
            Operand::Vector(elements) => elements,
            operand => std::slice::from_ref(operand),
        })
    }

    /// The registers of a fragment of a matrix, all of one type.
    pub(crate) fn sources(&mut self, index: usize, ty: ScalarType, count: usize) -> Decoded<Vec<Slot>> {
        let elements = self.elements(index)?;
        if elements.len() != count {
            return Err(Refusal::Elements { expected: count, found: elements.len() });
        }
        elements.iter().map(|element| self.source_in(element, ty)).collect()
    }

    pub(crate) fn destinations(&mut self, index: usize, ty: ScalarType, count: usize) -> Decoded<Vec<Slot>> {
        let elements = self.elements(index)?;
        if elements.len() != count {
            return Err(Refusal::Elements { expected: count, found: elements.len() });
        }
        elements.iter().map(|element| self.destination_in(element, ty)).collect()
    }

    /// `[base+offset]` or, where the instruction has no brackets, a register.
    pub(crate) fn address(&mut self, index: usize) -> Decoded<Address> {
        match self.operand(index)? {
            Operand::Address(base, offset) => self.address_of(index, base, *offset),
            operand => self.wrong(operand, "an address in brackets"),
        }
    }

    /// `[map+offset, {x, y}]`: the map's address, and the coordinates.
    pub(crate) fn tensor(&mut self, index: usize) -> Decoded<(Address, &'b [Operand<'a>])> {
        match self.operand(index)? {
            Operand::Tensor(base, offset, at) => Ok((self.address_of(index, base, *offset)?, at)),
            operand => self.wrong(operand, "a tensor map and coordinates in brackets"),
        }
    }

    fn address_of(&mut self, index: usize, base: &'a str, offset: i64) -> Decoded<Address> {
        if base.is_empty() {
            let typed = self.builder.constant(Class::Double, offset as u64);
            return Ok(Address { base: typed.slot, class: typed.class, offset: 0, frame: Frame::None });
        }
        match self.builder.lookup(base) {
            Some(Symbol::Register(typed)) if typed.class != Class::Pred => {
                self.builder.reads.push(typed);
                Ok(Address { base: typed.slot, class: typed.class, offset, frame: Frame::None })
            }
            Some(Symbol::Variable(variable)) => Ok(self.builder.variable_address(variable, offset)),
            _ => self.wrong(self.operand(index)?, "the address of a variable or in a register"),
        }
    }

    /// The offset of a `.param` variable, as an argument or result of a call.
    pub(crate) fn param_offset(&mut self, operand: &Operand<'a>) -> Decoded<u32> {
        if let Operand::Name(name) = operand
            && let Some(Symbol::Variable(Place::Param(offset))) = self.builder.lookup(name)
        {
            return Ok(offset);
        }
        self.wrong(operand, "a `.param` variable")
    }

    /// An error unless the `.param` variables are as many and as large as the parameters and return values of a
    /// function with a body; results may be dropped.
    pub(crate) fn fits_signature(
        &mut self,
        function: &str,
        arguments: &[Operand<'a>],
        results: &[Operand<'a>],
    ) -> Decoded<()> {
        let Some((params, returns)) = self.builder.signature(function) else { return Ok(()) };
        if arguments.len() != params.len() || results.len() > returns.len() {
            return Err(Refusal::Signature(function.to_owned()));
        }
        for (operand, bytes) in arguments.iter().zip(params).chain(results.iter().zip(returns)) {
            let offset = self.param_offset(operand)?;
            if self.builder.param_sizes.get(&offset) != Some(&bytes) {
                return Err(Refusal::Signature(function.to_owned()));
            }
        }
        Ok(())
    }

    /// The usual shape: destination and up to three sources of one type.
    pub(crate) fn slots(&mut self, ty: ScalarType, sources: usize) -> Decoded<Slots> {
        self.exactly(sources + 1)?;
        let mut slots = Slots { d: self.destination(0, ty)?, ..Slots::NONE };
        let fields = [&mut slots.a, &mut slots.b, &mut slots.c];
        for (index, field) in fields.into_iter().take(sources).enumerate() {
            *field = self.source(index + 1, ty)?;
        }
        Ok(slots)
    }

    /// An instruction on rows, after the check that every modifier was taken.
    pub(crate) fn rows(&self, run: crate::exec::rows::RowFn, slots: Slots) -> Decoded<Op> {
        self.done()?;
        Ok(Op::Row { run, slots })
    }
}

/// The bits of a literal as a type.
fn literal_bits(operand: &Operand<'_>, ty: ScalarType) -> Option<u64> {
    let float32 = matches!(ty, ScalarType::F32 | ScalarType::Tf32);
    Some(match operand {
        Operand::Integer(value) => {
            let bits = *value as u64;
            if ty.bytes() >= 8 { bits } else { bits & ((1 << (8 * ty.bytes().max(1))) - 1) }
        }
        Operand::Float32(bits) if ty.bytes() == 4 => u64::from(*bits),
        Operand::Float32(bits) if ty == ScalarType::F64 => f64::from(f32::from_bits(*bits)).to_bits(),
        Operand::Float64(bits) if float32 => u64::from((f64::from_bits(*bits) as f32).to_bits()),
        Operand::Float64(bits) if ty.bytes() == 8 => *bits,
        _ => return None,
    })
}

fn describe(operand: &Operand<'_>) -> String {
    match operand {
        Operand::Name(name) => (*name).to_owned(),
        Operand::Not(name) => format!("!{name}"),
        Operand::Integer(value) => value.to_string(),
        Operand::Float32(bits) => format!("0f{bits:08X}"),
        Operand::Float64(bits) => format!("0d{bits:016X}"),
        Operand::Offset(name, offset) => format!("{name}+{offset}"),
        Operand::Address(name, offset) => format!("[{name}+{offset}]"),
        Operand::Vector(elements) => {
            format!("{{{}}}", elements.iter().map(describe).collect::<Vec<_>>().join(", "))
        }
        Operand::Pair(pair) => format!("{}|{}", describe(&pair.0), describe(&pair.1)),
        Operand::List(elements) => {
            format!("({})", elements.iter().map(describe).collect::<Vec<_>>().join(", "))
        }
        Operand::Tensor(name, offset, at) => {
            let at: Vec<_> = at.iter().map(describe).collect();
            format!("[{name}+{offset}, {{{}}}]", at.join(", "))
        }
    }
}
