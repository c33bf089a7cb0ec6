//! PTX text to a syntax tree: what LLVM's NVPTX back end, inline assembly and nvcc emit.
//!
//! The tree borrows from the source and knows no instruction: `program` gives opcodes a meaning.
//! Debug information (`.file`, `.loc`, `.section`) and pragmas are read and dropped.

mod lexer;
mod parser;
mod tree;

pub(crate) use lexer::{Token, TokenKind};
pub(crate) use parser::MAX_REGISTERS;
pub use parser::parse;
pub use tree::{
    Extent, Function, Guard, Initialiser, Instruction, Module, Operand, Register, ScalarType, Space,
    Statement, Variable,
};

/// PTX that does not follow the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: expected {expected}, found `{found}`")]
pub struct SyntaxError {
    /// The name given to [`parse`].
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in bytes.
    pub column: u32,
    /// The text at that place.
    pub found: String,
    /// What would have been right.
    pub expected: String,
}

/// Line and column (from 1) of a byte offset.
pub(crate) fn line_and_column(source: &str, offset: u32) -> (u32, u32) {
    let before = &source.as_bytes()[..(offset as usize).min(source.len())];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&byte| byte != b'\n').count() + 1;
    (line as u32, column as u32)
}
