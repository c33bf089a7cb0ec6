//! Functions that a file of PTX declares (`.extern .func`) and the embedder provides, in Rust.
//!
//! A [`Library`] is handed to [`Machine::provide`](crate::Machine::provide) before the modules that call it are loaded.
//! Its functions are called by a thread each, or once by a whole warp. What they start and do not finish (copies of a
//! network, say) the library keeps, and the machine lets it [work](Library::work) on it whenever the schedule has it.

use std::fmt;

use crate::exec::context::Context;
use crate::exec::{Cause, call};
use crate::memory::{DeviceId, Memory, Site, Thread};

/// Who makes one call of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Each thread for itself.
    Thread,
    /// All lanes of a warp that have not exited, together and with the same arguments.
    Warp,
}

/// A function of a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// As in `.extern .func`.
    pub name: &'static str,
    /// Who makes a call.
    pub callers: Callers,
    /// Bytes of each parameter: 1, 2, 4 or 8.
    pub parameters: &'static [u32],
    /// Bytes of the result, if it has one.
    pub result: Option<u32>,
}

/// Functions, and what they have left to be done.
pub trait Library: fmt::Debug + Send {
    /// All functions; calls name them by their place here.
    fn functions(&self) -> &'static [Function];

    /// Executes a call.
    ///
    /// # Errors
    /// Ends the run, with the call's place.
    fn call(&mut self, function: usize, call: &mut Call<'_, '_>) -> Result<(), Cause>;

    /// Whether something is left to be done. It may stay so when all streams are idle.
    fn is_busy(&self) -> bool {
        false
    }

    /// Does a little of what is left; `chance` decides what. The machine asks for it between turns of warps, and at the
    /// latest when nobody else can move.
    ///
    /// # Errors
    /// Ends the run, at the place of the call that it follows from.
    fn work(&mut self, memory: &mut Memory, chance: u64) -> Result<(), Late> {
        let _ = (memory, chance);
        Ok(())
    }
}

/// What went wrong behind the back of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// What it was.
    pub cause: Cause,
    /// Who made the call.
    pub caller: Thread,
    /// The call.
    pub site: Site,
}

/// A call of a library's function.
pub struct Call<'c, 'a> {
    context: &'c mut Context<'a>,
    arguments: &'c [u32],
    function: &'static Function,
    lane: usize,
    result: u64,
}

impl Call<'_, '_> {
    /// The thread that calls; of a warp its first.
    pub fn caller(&self) -> Thread {
        self.context.thread(self.lane)
    }

    /// The call instruction.
    pub fn site(&self) -> Site {
        self.context.site
    }

    /// The device that the kernel runs on.
    pub fn device(&self) -> DeviceId {
        self.context.memory.block(self.caller().block).device.expect("kernels run on devices")
    }

    /// The bits of an argument.
    ///
    /// # Errors
    /// An argument that the caller has not written.
    pub fn argument(&self, index: usize) -> Result<u64, Cause> {
        self.argument_of(self.lane, index)
    }

    fn argument_of(&self, lane: usize, index: usize) -> Result<u64, Cause> {
        let at = u64::from(self.context.base.params) + u64::from(self.arguments[index]);
        self.context.privates.params[lane].load(at, self.function.parameters[index] as usize)
    }

    /// Gives the result; it is 0 until then.
    pub fn set_result(&mut self, value: u64) {
        self.result = value;
    }

    /// The machine's memory.
    pub fn memory(&mut self) -> &mut Memory {
        self.context.memory
    }
}

impl fmt::Debug for Call<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("function", &self.function.name).field("caller", &self.caller()).finish()
    }
}

/// Where a function that a kernel calls is found: a library, and the function's place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) library: usize,
    pub(crate) function: usize,
}

impl Bound {
    pub(crate) fn function(self, libraries: &[Box<dyn Library>]) -> &'static Function {
        &libraries[self.library].functions()[self.function]
    }
}

/// Executes a call of a library's function by the active lanes of a context.
pub(crate) fn execute(context: &mut Context<'_>, op: &call::Call) -> Result<(), Cause> {
    let call::Target::External(index) = op.target else { return Ok(()) };
    let bound = context.bound[index as usize];
    // A library and the rest of the machine work on each other.
    let mut libraries = std::mem::take(context.libraries);
    let function = bound.function(&libraries);
    let library = &mut libraries[bound.library];
    let done = match function.callers {
        Callers::Thread => context.active().try_for_each(|lane| {
            *context.culprit = Some(lane);
            let result = one_call(context, op, (&mut **library, bound.function), function, lane)?;
            give(context, op, function, lane, result)
        }),
        Callers::Warp => one_warp(context, op, (&mut **library, bound.function), function),
    };
    *context.libraries = libraries;
    *context.progress += 1;
    done
}

fn one_call(
    context: &mut Context<'_>,
    op: &call::Call,
    (library, number): (&mut dyn Library, usize),
    function: &'static Function,
    lane: usize,
) -> Result<u64, Cause> {
    let mut call = Call { context, arguments: &op.arguments, function, lane, result: 0 };
    library.call(number, &mut call)?;
    Ok(call.result)
}

fn one_warp(
    context: &mut Context<'_>,
    op: &call::Call,
    library: (&mut dyn Library, usize),
    function: &'static Function,
) -> Result<(), Cause> {
    let lanes = context.active();
    let Some(first) = lanes.clone().next() else { return Ok(()) };
    let call = Call { context, arguments: &op.arguments, function, lane: first, result: 0 };
    for index in 0..function.parameters.len() {
        let expected = call.argument(index)?;
        for lane in lanes.clone() {
            if call.argument_of(lane, index)? != expected {
                *context.culprit = Some(lane);
                let why = format!("{}: argument {index} is not the same in all lanes", function.name);
                return Err(Cause::External(why));
            }
        }
    }
    let result = one_call(context, op, library, function, first)?;
    lanes.clone().try_for_each(|lane| give(context, op, function, lane, result))
}

fn give(
    context: &mut Context<'_>,
    op: &call::Call,
    function: &Function,
    lane: usize,
    value: u64,
) -> Result<(), Cause> {
    let (Some(bytes), Some(&place)) = (function.result, op.results.first()) else { return Ok(()) };
    let at = u64::from(context.base.params + place);
    context.privates.params[lane].store(at, bytes as usize, value)
}
