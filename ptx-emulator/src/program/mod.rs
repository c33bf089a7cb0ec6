//! Text decoded once: instructions with register slots, constants as rows, branches with the place where
//! their lanes meet again.
//!
//! Each kernel is decoded with every function that it can call, so that its shared variables, registers and
//! instructions have fixed numbers. Nothing is looked up by name at run time.

mod builder;
mod flow;
mod line;
mod load;

pub(crate) use builder::Builder;
pub(crate) use line::{Decoded, Line, Typed, class_of};
pub use load::{Kernel, LoadError, Module};

use crate::exec;
use crate::exec::rows::{Class, Counts, RowFn, Slot, Slots};
use crate::text::Extent;

/// Index of an instruction in [`Program::code`].
pub(crate) type Pc = u32;

/// No instruction.
pub(crate) const NOWHERE: Pc = u32::MAX;

/// Why an instruction cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Refusal {
    #[error("the instruction is not supported")]
    Instruction,
    #[error("modifier `.{0}` is not supported here")]
    Modifier(String),
    #[error("this form of the instruction is not supported")]
    Form,
    #[error("the instruction has no type")]
    NoType,
    #[error("{found} operands where {least} to {most} belong")]
    Count { least: usize, most: usize, found: usize },
    #[error("a vector of {found} elements where {expected} belong")]
    Elements { expected: usize, found: usize },
    #[error("operand `{found}` is not {expected}")]
    Operand { found: String, expected: &'static str },
    #[error("label `{0}` is not defined in an enclosing scope")]
    Label(String),
    #[error(
        "function `{0}` is neither defined nor declared in the file, nor one that CUDA provides (vprintf, \
         __assertfail, malloc, free)"
    )]
    Function(String),
    #[error("special register `{0}` is not supported")]
    Special(String),
    #[error("{0} (PTX 8.0 clusters) are not supported")]
    Cluster(&'static str),
    #[error("arguments and results are not as many and as large as those of function `{0}`")]
    Signature(String),
    #[error("the initialiser has {found} bytes, the variable {bytes}")]
    InitialiserSize { found: usize, bytes: u64 },
    #[error("an address of 8 bytes does not fit an element of {0}")]
    NarrowAddress(usize),
    #[error("the variable is defined in another file, and files are not linked")]
    External,
    #[error("{found} {what}, more than {limit}")]
    Limit { what: &'static str, found: u32, limit: u32 },
    #[error("initialiser names `{0}`, which is no variable or function of the file")]
    Initialiser(String),
}

/// What an address operand is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Nothing: the register or constant is the address.
    None,
    /// The local variables of the call.
    Local,
    /// The `.param` variables of the call.
    Params,
}

/// `[base+offset]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) base: Slot,
    pub(crate) class: Class,
    pub(crate) offset: i64,
    pub(crate) frame: Frame,
}

/// `@p`, `@!p` or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) slot: Slot,
    pub(crate) negated: bool,
}

/// A decoded instruction.
#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
}

/// What an instruction does.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Each lane for itself, on registers alone.
    Row {
        run: RowFn,
        slots: Slots,
    },
    /// Accepted, without effect here (`prefetch`, `discard` hints, `.pragma`-like).
    Nop,
    /// A special register.
    Special {
        d: Typed,
        which: exec::special::Special,
    },
    /// The address of a local variable or parameter, in its space.
    FrameAddress {
        d: Typed,
        offset: u32,
        frame: Frame,
    },
    Branch {
        target: Pc,
        reconverge: Pc,
    },
    BranchTable {
        index: Slot,
        targets: Box<[Pc]>,
        reconverge: Pc,
    },
    Call(Box<exec::call::Call>),
    Return,
    Exit,
    Trap,
    Load(Box<exec::access::Load>),
    Store(Box<exec::access::Store>),
    Atomic(Box<exec::atomic::Atomic>),
    Atomic128(Box<exec::atomic128::Atomic128>),
    Fence(exec::access::Fence),
    /// `fence.proxy.async`, of shared memory.
    ProxyFence,
    /// `fence.mbarrier_init`
    InitFence,
    ConvertAddress(exec::address::ConvertAddress),
    Warp(Box<exec::warp::Collective>),
    Barrier(exec::barrier::Barrier),
    Mma(Box<exec::mma::Mma>),
    SubByteMma(Box<exec::subbyte::SubByteMma>),
    Matrix(Box<exec::matrix::MatrixAccess>),
    Wmma(Box<exec::wmma::Wmma>),
    Wgmma(exec::wgmma::Operation),
    Registers(exec::registers::Change),
    Async(Box<exec::asynchronous::Async>),
    TensorCopy(Box<exec::tensor::TensorCopy>),
    Mbarrier(Box<exec::mbarrier::Operation>),
    Cluster(exec::cluster::Operation),
    Grid(exec::control::GridControl),
    Sleep(Slot),
}

impl Op {
    /// `bar.warp.sync`
    pub(crate) fn is_warp_barrier(&self) -> bool {
        matches!(self, Self::Warp(op) if op.kind == exec::warp::Kind::Barrier)
    }
}

/// A function in a program.
#[derive(Debug, Clone, Default)]
pub(crate) struct FunctionInfo {
    /// Among all functions of the file: what its address tells.
    pub(crate) number: u32,
    pub(crate) entry: Pc,
    pub(crate) registers: Counts,
    pub(crate) local_bytes: u32,
    pub(crate) param_bytes: u32,
    /// Offset and size of parameters and return values among the `.param` variables.
    pub(crate) params: Vec<(u32, u32)>,
    pub(crate) returns: Vec<(u32, u32)>,
}

/// A function that a kernel calls and the file only declares.
#[derive(Debug, Clone)]
pub(crate) struct ExternalFunction {
    pub(crate) name: String,
    /// Sizes of parameters and return values.
    pub(crate) params: Vec<u32>,
    pub(crate) returns: Vec<u32>,
    /// The first call.
    pub(crate) extent: Extent,
}

/// The value of a constant that is only known later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Relocation {
    None,
    /// Plus the address of the module's variable.
    Variable(u32),
    /// Plus the size of static shared memory, aligned for this variable.
    DynamicShared(u32),
}

/// A literal or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Constant {
    pub(crate) value: u64,
    pub(crate) relocation: Relocation,
}

/// A kernel with all that it calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    pub(crate) code: Vec<Inst>,
    /// Where each instruction stands in the source.
    pub(crate) extents: Vec<Extent>,
    /// Registers that each instruction reads and writes, for the check of initialisation.
    pub(crate) uses: Vec<Uses>,
    pub(crate) functions: Vec<FunctionInfo>,
    pub(crate) externals: Vec<ExternalFunction>,
    pub(crate) words: Vec<Constant>,
    pub(crate) doubles: Vec<Constant>,
    /// Of static shared variables.
    pub(crate) shared_bytes: u32,
    /// Where dynamic shared memory begins.
    pub(crate) dynamic_offset: u32,
}

/// Registers of an instruction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses {
    pub(crate) reads: Box<[Typed]>,
    pub(crate) writes: Box<[Typed]>,
}
