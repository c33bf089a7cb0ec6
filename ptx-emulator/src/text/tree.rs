//! The syntax tree. Names borrow from the source.

/// A byte range of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// First byte.
    pub at: u32,
    /// One past the last byte.
    pub end: u32,
}

/// State spaces of variables and accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// `.global`
    Global,
    /// `.shared`, `.shared::cta` (of the executing block)
    Shared,
    /// `.shared::cluster` (of any block of the cluster)
    SharedCluster,
    /// `.local`
    Local,
    /// `.const`
    Const,
    /// `.param`
    Param,
    /// No space given: the address tells.
    Generic,
}

/// Fundamental types (PTX ISA, "Fundamental Types" and "Packed Data Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ScalarType {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    E4m3x2,
    E5m2x2,
}

impl ScalarType {
    /// Size in bytes; 0 for `.pred`.
    pub fn bytes(self) -> u32 {
        use ScalarType as T;
        match self {
            T::Pred => 0,
            T::B8 | T::U8 | T::S8 => 1,
            T::B16 | T::U16 | T::S16 | T::F16 | T::Bf16 | T::E4m3x2 | T::E5m2x2 => 2,
            T::B32 | T::U32 | T::S32 | T::F32 | T::Tf32 | T::F16x2 | T::Bf16x2 => 4,
            T::B64 | T::U64 | T::S64 | T::F64 => 8,
            T::B128 => 16,
        }
    }

    /// `u32` and the like, without the dot.
    pub fn parse(name: &str) -> Option<Self> {
        use ScalarType as T;
        Some(match name {
            "pred" => T::Pred,
            "b8" => T::B8,
            "b16" => T::B16,
            "b32" => T::B32,
            "b64" => T::B64,
            "b128" => T::B128,
            "u8" => T::U8,
            "u16" => T::U16,
            "u32" => T::U32,
            "u64" => T::U64,
            "s8" => T::S8,
            "s16" => T::S16,
            "s32" => T::S32,
            "s64" => T::S64,
            "f16" => T::F16,
            "f16x2" => T::F16x2,
            "bf16" => T::Bf16,
            "bf16x2" => T::Bf16x2,
            "tf32" => T::Tf32,
            "f32" => T::F32,
            "f64" => T::F64,
            "e4m3x2" => T::E4m3x2,
            "e5m2x2" => T::E5m2x2,
            _ => return None,
        })
    }

    /// Whether values are sign-extended.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }
}

/// A whole file.
#[derive(Debug, Clone, Default)]
pub struct Module<'a> {
    /// `.version`, major and minor.
    pub version: (u32, u32),
    /// `.target`, its first name.
    pub target: &'a str,
    /// Variables of the file, in order.
    pub variables: Vec<Variable<'a>>,
    /// Entries and functions with a body, in order.
    pub functions: Vec<Function<'a>>,
    /// Functions that are only declared (`vprintf`).
    pub declared: Vec<Function<'a>>,
}

/// A declared variable or parameter.
#[derive(Debug, Clone)]
pub struct Variable<'a> {
    /// Where it lies.
    pub space: Space,
    /// Its name.
    pub name: &'a str,
    /// In bytes.
    pub align: u32,
    /// In bytes; 0 for an array without a size (`.extern .shared`).
    pub bytes: u64,
    /// Of one element.
    pub ty: ScalarType,
    /// Elements given after `=`; the rest is zero.
    pub initialiser: Vec<Initialiser<'a>>,
    /// Declared `.extern`.
    pub external: bool,
    /// Of its name.
    pub extent: Extent,
}

/// One element of an initialiser.
#[derive(Debug, Clone, PartialEq)]
pub enum Initialiser<'a> {
    /// An integer or the bits of a float, as wide as the element.
    Bits(u64),
    /// `symbol+offset` or `generic(symbol)+offset`.
    Address {
        /// The variable or function.
        symbol: &'a str,
        /// In bytes.
        offset: i64,
    },
}

/// An entry or a function.
#[derive(Debug, Clone)]
pub struct Function<'a> {
    /// Whether it is a kernel.
    pub entry: bool,
    /// Its name.
    pub name: &'a str,
    /// Parameters, in order.
    pub params: Vec<Variable<'a>>,
    /// Return values, in order.
    pub returns: Vec<Variable<'a>>,
    /// `.maxntid`
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub required_threads: Option<[u32; 3]>,
    /// `.minnctapersm`
    pub min_blocks: Option<u32>,
    /// Cluster directives (`.reqnctapercluster`, …), refused by the loader.
    pub cluster: Option<Extent>,
    /// Empty when only declared.
    pub body: Vec<Statement<'a>>,
    /// Of its name.
    pub extent: Extent,
}

/// Registers declared together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register<'a> {
    /// `%r` of `%r<12>`, or the whole name.
    pub name: &'a str,
    /// 12 of `%r<12>`.
    pub count: Option<u32>,
    /// Their type.
    pub ty: ScalarType,
    /// Elements (`.v2` → 2), named `.x .y .z .w`.
    pub lanes: u32,
}

/// A line of a body.
#[derive(Debug, Clone)]
pub enum Statement<'a> {
    /// `name:`
    Label(&'a str, Extent),
    /// `.reg`
    Registers(Vec<Register<'a>>),
    /// A variable of the function.
    Variable(Variable<'a>),
    /// `label: .callprototype (…) _ (…)`: return values and parameters.
    Prototype(&'a str, Vec<Variable<'a>>, Vec<Variable<'a>>),
    /// `label: .branchtargets a, b;`
    Targets(&'a str, Vec<&'a str>),
    /// `{`
    Open,
    /// `}`
    Close,
    /// An instruction.
    Instruction(Instruction<'a>),
}

/// `@p` or `@!p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard<'a> {
    /// The predicate register.
    pub name: &'a str,
    /// With `!`.
    pub negated: bool,
}

/// One instruction.
#[derive(Debug, Clone)]
pub struct Instruction<'a> {
    /// Its guard.
    pub guard: Option<Guard<'a>>,
    /// `mul.wide.u32`
    pub opcode: &'a str,
    /// In order.
    pub operands: Vec<Operand<'a>>,
    /// From the guard to before the semicolon.
    pub extent: Extent,
}

/// An operand.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand<'a> {
    /// Register, special register, variable, label, function or `_`.
    Name(&'a str),
    /// `!p`
    Not(&'a str),
    /// A literal integer (two's complement).
    Integer(i128),
    /// `0f…`, bits of a float32.
    Float32(u32),
    /// `0d…` or a decimal fraction, bits of a float64.
    Float64(u64),
    /// `name+offset` outside brackets.
    Offset(&'a str, i64),
    /// `[base+offset]`; base may be empty for an absolute address.
    Address(&'a str, i64),
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `a|b`
    Pair(Box<(Operand<'a>, Operand<'a>)>),
    /// `(a, b)` of a call.
    List(Vec<Operand<'a>>),
    /// `[base+offset, {x, y}]`: a tensor map, and coordinates in it.
    Tensor(&'a str, i64, Vec<Operand<'a>>),
}
