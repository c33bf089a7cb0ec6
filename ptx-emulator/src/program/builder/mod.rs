//! One kernel at a time: its statements become instructions on slots, offsets and places.

mod scope;

use std::collections::HashMap;

use scope::{Entry, Scope};
pub(crate) use scope::{Place, Symbol};

use super::line::{Decoded, Line, Typed};
use super::load::LoadError;
use super::{
    Address, Constant, ExternalFunction, Frame, FunctionInfo, Guard, Inst, Op, Pc, Program, Refusal,
    Relocation, Uses, flow,
};
use crate::exec::rows::{Class, Counts, Slot};
use crate::exec::{self, special::Special};
use crate::text::{Extent, Function, Instruction, MAX_REGISTERS, Module, Statement};

/// Of one call's variables in local memory: what a GPU has per thread.
const MAX_LOCAL_BYTES: u32 = 512 << 10;
/// Of one call's parameters and of the arguments of the calls that it makes.
const MAX_PARAM_BYTES: u32 = 1 << 20;

/// Decodes one kernel and the functions that it calls.
pub(crate) struct Builder<'a> {
    file: &'a str,
    source: &'a str,
    module: &'a Module<'a>,
    program: Program,
    globals: HashMap<&'a str, Symbol>,
    functions: HashMap<&'a str, u32>,
    queue: Vec<&'a Function<'a>>,
    constants: HashMap<(Class, Constant), Slot>,
    scopes: Vec<Scope<'a>>,
    /// The scope that instructions are decoded in.
    current: usize,
    labels: Vec<Pc>,
    counts: Counts,
    local_bytes: u32,
    param_bytes: u32,
    /// Sizes of the function's `.param` variables, by offset.
    pub(super) param_sizes: HashMap<u32, u32>,
    prelude: Vec<Op>,
    pub(crate) reads: Vec<Typed>,
    pub(crate) writes: Vec<Typed>,
}

impl<'a> Builder<'a> {
    /// Decodes `entry` and everything it can reach.
    pub(crate) fn build(
        file: &'a str,
        source: &'a str,
        module: &'a Module<'a>,
        entry: &'a Function<'a>,
    ) -> Result<Program, LoadError> {
        let mut builder = Self {
            file,
            source,
            module,
            program: Program::default(),
            globals: HashMap::new(),
            functions: HashMap::from([(entry.name, 0)]),
            queue: vec![entry],
            constants: HashMap::new(),
            scopes: Vec::new(),
            current: 0,
            labels: Vec::new(),
            counts: Counts::default(),
            local_bytes: 0,
            param_bytes: 0,
            param_sizes: HashMap::new(),
            prelude: Vec::new(),
            reads: Vec::new(),
            writes: Vec::new(),
        };
        let mut next = 0;
        while next < builder.queue.len() {
            builder.function(builder.queue[next])?;
            next += 1;
        }
        Ok(builder.finish())
    }

    fn finish(mut self) -> Program {
        // All `.extern .shared` arrays begin at one place, behind the static variables.
        let constants = || self.program.words.iter().chain(&self.program.doubles);
        let align = constants().filter_map(|constant| match constant.relocation {
            Relocation::DynamicShared(align) => Some(align),
            _ => None,
        });
        let shared_bytes = self.program.shared_bytes;
        let dynamic_offset =
            shared_bytes.checked_next_multiple_of(align.max().unwrap_or(1)).unwrap_or(u32::MAX);
        for constant in self.program.words.iter_mut().chain(&mut self.program.doubles) {
            if let Relocation::DynamicShared(_) = constant.relocation {
                constant.value += u64::from(dynamic_offset);
                constant.relocation = Relocation::None;
            }
        }
        self.program.dynamic_offset = dynamic_offset;
        self.program
    }

    fn error(&self, extent: Extent, why: Refusal) -> LoadError {
        LoadError::refused(self.file, self.source, extent, why)
    }

    fn function(&mut self, function: &'a Function<'a>) -> Result<(), LoadError> {
        self.scopes.clear();
        self.labels.clear();
        self.counts = Counts::default();
        (self.local_bytes, self.param_bytes) = (0, 0);
        self.param_sizes.clear();
        let entry = self.program.code.len() as Pc;
        let number = self.number(function);
        let mut info = FunctionInfo { number, entry, ..FunctionInfo::default() };
        let mut params = HashMap::new();
        for (list, out) in [(&function.params, &mut info.params), (&function.returns, &mut info.returns)] {
            for variable in list {
                let offset = scope::place(&mut self.param_bytes, variable);
                self.param_sizes.insert(offset, variable.bytes as u32);
                out.push((offset, variable.bytes as u32));
                params.insert(variable.name, Entry::Symbol(Symbol::Variable(Place::Param(offset))));
            }
        }
        self.declare(function, params);
        self.check_limits().map_err(|why| self.error(function.extent, why))?;
        self.decode_body(function)?;
        self.resolve(entry);
        info.registers = self.counts;
        info.local_bytes = self.local_bytes;
        info.param_bytes = self.param_bytes;
        self.program.functions.push(info);
        Ok(())
    }

    fn allocate(&mut self, class: Class, count: u32) -> Typed {
        let counter = match class {
            Class::Pred => &mut self.counts.preds,
            Class::Word => &mut self.counts.words,
            Class::Double => &mut self.counts.doubles,
        };
        let slot = Slot(*counter);
        *counter = counter.saturating_add(count);
        Typed { slot, class }
    }

    /// What a frame may have: every warp of a launch holds it.
    fn check_limits(&self) -> Decoded<()> {
        let Counts { preds, words, doubles } = self.counts;
        let registers = preds.saturating_add(words).saturating_add(doubles);
        let limits = [
            ("registers", registers, MAX_REGISTERS),
            ("bytes of local memory", self.local_bytes, MAX_LOCAL_BYTES),
            ("bytes of `.param` variables", self.param_bytes, MAX_PARAM_BYTES),
        ];
        match limits.into_iter().find(|(_, found, limit)| found > limit) {
            Some((what, found, limit)) => Err(Refusal::Limit { what, found, limit }),
            None => Ok(()),
        }
    }

    /// Sizes of the parameters and return values of a function of the file, in bytes.
    pub(crate) fn signature(&self, name: &str) -> Option<(Vec<u32>, Vec<u32>)> {
        let mut functions = self.module.functions.iter().chain(&self.module.declared);
        let function = functions.find(|function| function.name == name)?;
        let sizes = |list: &[crate::text::Variable<'_>]| list.iter().map(|it| it.bytes as u32).collect();
        Some((sizes(&function.params), sizes(&function.returns)))
    }

    /// The number of a function that the file only declares, called at `extent`.
    pub(crate) fn external(&mut self, name: &str, extent: Extent) -> Option<u32> {
        let known = &mut self.program.externals;
        let found = known.iter().position(|external| external.name == name);
        let index = found.unwrap_or(known.len());
        if found.is_none() {
            self.module.declared.iter().find(|function| function.name == name)?;
            let (params, returns) = self.signature(name)?;
            self.program.externals.push(ExternalFunction { name: name.to_owned(), params, returns, extent });
        }
        Some(index as u32)
    }

    fn decode_body(&mut self, function: &'a Function<'a>) -> Result<(), LoadError> {
        let mut opened = 0;
        let mut stack = vec![0];
        for statement in &function.body {
            match statement {
                Statement::Open => {
                    opened += 1;
                    stack.push(opened);
                }
                Statement::Close => {
                    stack.pop();
                }
                Statement::Label(name, _) => {
                    let scope = stack.last().copied().unwrap_or(0);
                    if let Some(&label) = self.scopes[scope].labels.get(name) {
                        self.labels[label as usize] = self.program.code.len() as Pc;
                    }
                }
                Statement::Instruction(instruction) => {
                    self.current = stack.last().copied().unwrap_or(0);
                    self.instruction(instruction).map_err(|why| self.error(instruction.extent, why))?;
                }
                _ => {}
            }
        }
        // A body may end without `ret`, and a label may stand at its end.
        let end = Inst { guard: None, op: if function.entry { Op::Exit } else { Op::Return } };
        self.push(end, function.extent, Uses::default());
        Ok(())
    }

    fn instruction(&mut self, instruction: &'a Instruction<'a>) -> Decoded<()> {
        self.reads.clear();
        self.writes.clear();
        let guard = match instruction.guard {
            None => None,
            Some(guard) => match self.lookup(guard.name) {
                Some(Symbol::Register(typed)) if typed.class == Class::Pred => {
                    self.reads.push(typed);
                    Some(Guard { slot: typed.slot, negated: guard.negated })
                }
                _ => return Err(Refusal::Operand { found: guard.name.to_owned(), expected: "a predicate" }),
            },
        };
        let mut line = Line::new(self, instruction);
        let op = exec::decode(&mut line)?;
        line.done()?;
        for op in std::mem::take(&mut self.prelude) {
            self.push(Inst { guard: None, op }, instruction.extent, Uses::default());
        }
        let uses = Uses { reads: self.reads.as_slice().into(), writes: self.writes.as_slice().into() };
        self.push(Inst { guard, op }, instruction.extent, uses);
        Ok(())
    }

    fn push(&mut self, inst: Inst, extent: Extent, mut uses: Uses) {
        // Constants and temporaries are always written; so is what a dropped result names.
        uses.reads = uses.reads.iter().copied().filter(|typed| typed.slot.is_register()).collect();
        self.program.code.push(inst);
        self.program.extents.push(extent);
        self.program.uses.push(uses);
    }

    /// Branches hold label numbers until their function ends.
    fn resolve(&mut self, base: Pc) {
        for inst in &mut self.program.code[base as usize..] {
            match &mut inst.op {
                Op::Branch { target, .. } => *target = self.labels[*target as usize],
                Op::BranchTable { targets, .. } => {
                    for target in targets.iter_mut() {
                        *target = self.labels[*target as usize];
                    }
                }
                _ => {}
            }
        }
        flow::set_reconvergence(&mut self.program.code[base as usize..], base);
    }

    /// The number of a function with a body, queued for decoding when it is new.
    pub(crate) fn function_index(&mut self, name: &str) -> Option<u32> {
        if let Some(&index) = self.functions.get(name) {
            return Some(index);
        }
        let function =
            self.module.functions.iter().find(|function| !function.entry && function.name == name)?;
        let index = self.queue.len() as u32;
        self.queue.push(function);
        self.functions.insert(function.name, index);
        Some(index)
    }

    /// Queues every function of the file: an indirect call may reach any.
    pub(crate) fn reach_all(&mut self) {
        let module = self.module;
        for function in module.functions.iter().filter(|function| !function.entry) {
            self.function_index(function.name);
        }
    }

    /// A literal.
    pub(crate) fn constant(&mut self, class: Class, value: u64) -> Typed {
        self.relocated(class, Constant { value, relocation: Relocation::None })
    }

    fn relocated(&mut self, class: Class, constant: Constant) -> Typed {
        let list = if class == Class::Double { &mut self.program.doubles } else { &mut self.program.words };
        let slot = *self.constants.entry((class, constant)).or_insert_with(|| {
            list.push(constant);
            Slot::constant(list.len() as u32 - 1)
        });
        Typed { slot, class }
    }

    /// The address of a variable as the base of an access.
    pub(crate) fn variable_address(&mut self, place: Place, offset: i64) -> Address {
        let (frame, at) = match place {
            Place::Local(at) => (Frame::Local, at),
            Place::Param(at) => (Frame::Params, at),
            _ => {
                let typed = self.place_value(place, 0, Class::Double);
                return Address { base: typed.slot, class: typed.class, offset, frame: Frame::None };
            }
        };
        let typed = self.constant(Class::Double, u64::from(at));
        Address { base: typed.slot, class: typed.class, offset, frame }
    }

    fn place_value(&mut self, place: Place, offset: i64, class: Class) -> Typed {
        let offset = offset as u64;
        let (value, relocation) = match place {
            Place::Device(index) => (offset, Relocation::Variable(index)),
            Place::Shared(at) | Place::Param(at) | Place::Local(at) => {
                (offset.wrapping_add(u64::from(at)), Relocation::None)
            }
            Place::Dynamic(align) => (offset, Relocation::DynamicShared(align)),
        };
        self.relocated(class, Constant { value, relocation })
    }

    /// The address of a variable, in its space, as a value.
    pub(crate) fn address_value(&mut self, place: Place, offset: i64, class: Class) -> Typed {
        let class = if class == Class::Double { class } else { Class::Word };
        let frame = match place {
            Place::Local(_) => Frame::Local,
            Place::Param(_) => Frame::Params,
            _ => return self.place_value(place, offset, class),
        };
        let (Place::Local(at) | Place::Param(at)) = place else {
            unreachable!("both framed places have an offset")
        };
        let d = self.allocate(class, 1);
        let offset = at.wrapping_add(offset as u32);
        self.prelude.push(Op::FrameAddress { d, offset, frame });
        d
    }

    fn number(&self, function: &Function<'_>) -> u32 {
        super::load::function_number(self.module, function.name).unwrap_or(u32::MAX)
    }

    /// The address of a function, the same in every kernel of the file.
    pub(crate) fn function_value(&mut self, index: u32) -> Typed {
        let number = self.number(self.queue[index as usize]);
        self.constant(Class::Double, exec::call::function_address(number))
    }

    /// A special register, read into a temporary just before the instruction.
    pub(crate) fn special(&mut self, name: &str) -> Decoded<Option<Typed>> {
        if !name.starts_with('%') {
            return Ok(None);
        }
        let Some((which, class)) = Special::parse(name) else {
            return Err(Refusal::Special(name.to_owned()));
        };
        let d = self.allocate(class, 1);
        self.prelude.push(Op::Special { d, which });
        Ok(Some(d))
    }
}
