//! Names: what is declared in which scope, and what a name stands for.

use std::collections::HashMap;

use super::Builder;
use crate::exec::rows::{Class, Slot};
use crate::program::line::{Decoded, Typed, class_of};
use crate::program::{NOWHERE, Pc, Refusal};
use crate::text::{Function, Register, ScalarType, Space, Statement, Variable};

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Symbol {
    Register(Typed),
    /// `.b128`: the first of two slots of 64 bits, the low half's.
    Quad(Slot),
    Variable(Place),
    Function(u32),
}

/// Where a variable lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The module's variable of that number, in global or constant memory.
    Device(u32),
    /// At an offset of the block's shared memory.
    Shared(u32),
    /// Behind all static shared variables; the variable's alignment.
    Dynamic(u32),
    /// In the frame's local memory.
    Local(u32),
    /// In the frame's `.param` space; an entry's parameters are its first frame's.
    Param(u32),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    Symbol(Symbol),
    /// `%r<12>`: the class and the first slot.
    Range(Class, u32, u32),
    /// The same of `.b128`.
    Quads(u32, u32),
}

/// `.callprototype`: sizes of parameters and return values decide nothing that the arguments do not.
#[derive(Default)]
pub(super) struct Scope<'a> {
    pub(super) names: HashMap<&'a str, Entry>,
    pub(super) labels: HashMap<&'a str, u32>,
    pub(super) tables: HashMap<&'a str, Vec<&'a str>>,
    pub(super) parent: Option<usize>,
}

pub(super) fn place(bytes: &mut u32, variable: &Variable<'_>) -> u32 {
    // Too many bytes are refused where they are counted.
    let offset = bytes.checked_next_multiple_of(variable.align).unwrap_or(u32::MAX);
    *bytes = offset.saturating_add(variable.bytes as u32);
    offset
}

impl<'a> Builder<'a> {
    /// Collects every declaration, since labels and branch tables may be used before they are defined.
    pub(super) fn declare(&mut self, function: &'a Function<'a>, params: HashMap<&'a str, Entry>) {
        self.scopes.push(Scope { names: params, ..Scope::default() });
        let mut stack = vec![0];
        for statement in &function.body {
            let current = stack.last().copied().unwrap_or(0);
            match statement {
                Statement::Open => {
                    stack.push(self.scopes.len());
                    self.scopes.push(Scope { parent: Some(current), ..Scope::default() });
                }
                Statement::Close => {
                    stack.pop();
                }
                Statement::Label(name, _) => {
                    self.scopes[current].labels.insert(name, self.labels.len() as u32);
                    self.labels.push(NOWHERE);
                }
                Statement::Registers(registers) => {
                    for register in registers {
                        self.declare_register(current, register);
                    }
                }
                Statement::Variable(variable) => {
                    let place = self.place_variable(variable);
                    self.scopes[current].names.insert(variable.name, Entry::Symbol(Symbol::Variable(place)));
                }
                Statement::Targets(name, labels) => {
                    self.scopes[current].tables.insert(name, labels.clone());
                }
                Statement::Prototype(..) | Statement::Instruction(_) => {}
            }
        }
    }

    fn declare_register(&mut self, scope: usize, register: &Register<'a>) {
        if register.ty == ScalarType::B128 {
            let first = self.allocate(Class::Double, 2 * register.count.unwrap_or(1)).slot.0;
            let entry = match register.count {
                None => Entry::Symbol(Symbol::Quad(Slot(first))),
                Some(count) => Entry::Quads(first, count),
            };
            self.scopes[scope].names.insert(register.name, entry);
            return;
        }
        let class = class_of(register.ty);
        let count = register.count.unwrap_or(1) * register.lanes;
        let first = self.allocate(class, count).slot.0;
        let entry = match (register.count, register.lanes) {
            (None, 1) => Entry::Symbol(Symbol::Register(Typed { slot: Slot(first), class })),
            (count, _) => Entry::Range(class, first, count.unwrap_or(1)),
        };
        self.scopes[scope].names.insert(register.name, entry);
    }

    fn place_variable(&mut self, variable: &Variable<'a>) -> Place {
        match variable.space {
            Space::Shared if variable.bytes == 0 => Place::Dynamic(variable.align),
            Space::Shared => Place::Shared(place(&mut self.program.shared_bytes, variable)),
            Space::Local => Place::Local(place(&mut self.local_bytes, variable)),
            Space::Param => {
                let offset = place(&mut self.param_bytes, variable);
                self.param_sizes.insert(offset, variable.bytes as u32);
                Place::Param(offset)
            }
            // Module::variables lists those of functions behind those of the file.
            _ => {
                Place::Device(crate::program::load::variable_index(self.module, variable).unwrap_or(u32::MAX))
            }
        }
    }

    fn chain(&self) -> impl Iterator<Item = &Scope<'a>> {
        std::iter::successors(self.scopes.get(self.current), |scope| {
            scope.parent.map(|index| &self.scopes[index])
        })
    }

    /// What `name` stands for here: registers and variables of the scopes, then those of the file.
    pub(crate) fn lookup(&mut self, name: &'a str) -> Option<Symbol> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        for scope in self.chain() {
            if let Some(Entry::Symbol(symbol)) = scope.names.get(name) {
                return Some(*symbol);
            }
            if let Some(Entry::Range(class, first, count)) = scope.names.get(stem) {
                let number: u32 = name[stem.len()..].parse().ok()?;
                return (number < *count)
                    .then_some(Symbol::Register(Typed { slot: Slot(first + number), class: *class }));
            }
            if let Some(&Entry::Quads(first, count)) = scope.names.get(stem) {
                let number: u32 = name[stem.len()..].parse().ok()?;
                return (number < count).then_some(Symbol::Quad(Slot(first + 2 * number)));
            }
            if let Some((vector, part)) = name.split_once('.') {
                let lane = ["x", "y", "z", "w"].iter().position(|&name| name == part);
                if let (Some(Entry::Range(class, first, 1)), Some(lane)) = (scope.names.get(vector), lane) {
                    let slot = Slot(first + lane as u32);
                    return Some(Symbol::Register(Typed { slot, class: *class }));
                }
            }
        }
        self.lookup_global(name)
    }

    fn lookup_global(&mut self, name: &'a str) -> Option<Symbol> {
        if let Some(symbol) = self.globals.get(name) {
            return Some(*symbol);
        }
        let found = self.module.variables.iter().position(|variable| variable.name == name);
        let symbol = match found {
            Some(index) => {
                let variable = &self.module.variables[index];
                match variable.space {
                    Space::Shared => Symbol::Variable(self.place_variable(variable)),
                    _ => Symbol::Variable(Place::Device(index as u32)),
                }
            }
            None => Symbol::Function(self.function_index(name)?),
        };
        self.globals.insert(name, symbol);
        Some(symbol)
    }

    /// The number of a label in scope; [`Self::resolve`] makes it a place.
    pub(crate) fn label(&self, name: &str) -> Decoded<Pc> {
        let found = self.chain().find_map(|scope| scope.labels.get(name));
        found.copied().ok_or_else(|| Refusal::Label(name.to_owned()))
    }

    /// The labels of a `.branchtargets` table.
    pub(crate) fn table(&self, name: &str) -> Decoded<Vec<Pc>> {
        let found = self.chain().find_map(|scope| scope.tables.get(name));
        let labels = found.ok_or_else(|| Refusal::Label(name.to_owned()))?;
        labels.iter().map(|label| self.label(label)).collect()
    }
}
