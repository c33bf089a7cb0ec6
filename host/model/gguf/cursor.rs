//! Bounded reading of a GGUF header: every length comes from the file, none is trusted.

use std::path::Path;

use super::metadata::{Array, Value};
use crate::model::ModelError;

/// Deepest nesting of arrays followed; files in use have none.
const MAX_ARRAY_DEPTH: usize = 4;

/// A position in the file's bytes. All integers are little-endian.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    /// Bytes consumed so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    fn corrupt(&self, what: impl Into<String>) -> ModelError {
        ModelError::corrupt(self.path, what)
    }

    /// The next `n` items of `item_bytes` bytes; nothing is allocated before they are known to exist.
    fn take(&mut self, n: u64, item_bytes: usize) -> Result<&'a [u8], ModelError> {
        let wanted = u128::from(n) * item_bytes as u128;
        let left = &self.bytes[self.at..];
        if wanted > left.len() as u128 {
            let end = self.at as u128 + wanted;
            return Err(self.corrupt(format!("truncated: {} bytes of at least {end}", self.bytes.len())));
        }
        let taken = &left[..wanted as usize];
        self.at += taken.len();
        Ok(taken)
    }

    /// Reads a count of items that take at least `item_bytes` each, refusing one that cannot fit.
    pub(super) fn count(&mut self, what: &str, item_bytes: usize) -> Result<u64, ModelError> {
        let n = self.u64()?;
        let left = self.bytes.len() - self.at;
        if u128::from(n) * item_bytes as u128 > left as u128 {
            return Err(self.corrupt(format!("it announces {n} {what}, but only {left} bytes follow")));
        }
        Ok(n)
    }

    fn fixed<const BYTES: usize, T>(&mut self, from: fn([u8; BYTES]) -> T) -> Result<T, ModelError> {
        let (items, _) = self.take(1, BYTES)?.as_chunks::<BYTES>();
        Ok(from(items[0]))
    }

    fn list<const BYTES: usize, T>(
        &mut self,
        n: u64,
        from: fn([u8; BYTES]) -> T,
    ) -> Result<Vec<T>, ModelError> {
        let (items, _) = self.take(n, BYTES)?.as_chunks::<BYTES>();
        Ok(items.iter().map(|&item| from(item)).collect())
    }

    pub(super) fn u32(&mut self) -> Result<u32, ModelError> {
        self.fixed(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ModelError> {
        self.fixed(u64::from_le_bytes)
    }

    pub(super) fn string(&mut self) -> Result<String, ModelError> {
        let n = self.u64()?;
        let start = self.at;
        let text = std::str::from_utf8(self.take(n, 1)?);
        text.map(str::to_owned).map_err(|_| self.corrupt(format!("the string at byte {start} is not UTF-8")))
    }

    fn boolean(&self, byte: u8) -> Result<bool, ModelError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.corrupt(format!("byte {} is {other}, not a boolean", self.at - 1))),
        }
    }

    /// A metadata value of the type numbered `kind`.
    pub(super) fn value(&mut self, kind: u32) -> Result<Value, ModelError> {
        Ok(match kind {
            0 => Value::U8(self.fixed(u8::from_le_bytes)?),
            1 => Value::I8(self.fixed(i8::from_le_bytes)?),
            2 => Value::U16(self.fixed(u16::from_le_bytes)?),
            3 => Value::I16(self.fixed(i16::from_le_bytes)?),
            4 => Value::U32(self.fixed(u32::from_le_bytes)?),
            5 => Value::I32(self.fixed(i32::from_le_bytes)?),
            6 => Value::F32(self.fixed(f32::from_le_bytes)?),
            7 => {
                let byte = self.fixed(u8::from_le_bytes)?;
                Value::Bool(self.boolean(byte)?)
            }
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array(0)?),
            10 => Value::U64(self.fixed(u64::from_le_bytes)?),
            11 => Value::I64(self.fixed(i64::from_le_bytes)?),
            12 => Value::F64(self.fixed(f64::from_le_bytes)?),
            other => return Err(self.corrupt(format!("{other} is no metadata type"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Array, ModelError> {
        if depth == MAX_ARRAY_DEPTH {
            return Err(self.corrupt(format!("arrays nested deeper than {MAX_ARRAY_DEPTH}")));
        }
        let kind = self.u32()?;
        // What one item takes at least: a string its length, an array its type and length.
        let n = self.count(
            "array items",
            if kind == 9 {
                12
            } else if kind == 8 {
                8
            } else {
                1
            },
        )?;
        Ok(match kind {
            0 => Array::U8(self.list(n, u8::from_le_bytes)?),
            1 => Array::I8(self.list(n, i8::from_le_bytes)?),
            2 => Array::U16(self.list(n, u16::from_le_bytes)?),
            3 => Array::I16(self.list(n, i16::from_le_bytes)?),
            4 => Array::U32(self.list(n, u32::from_le_bytes)?),
            5 => Array::I32(self.list(n, i32::from_le_bytes)?),
            6 => Array::F32(self.list(n, f32::from_le_bytes)?),
            7 => {
                let bytes = self.take(n, 1)?;
                Array::Bool(bytes.iter().map(|&b| self.boolean(b)).collect::<Result<_, _>>()?)
            }
            8 => Array::String((0..n).map(|_| self.string()).collect::<Result<_, _>>()?),
            9 => Array::Array((0..n).map(|_| self.array(depth + 1)).collect::<Result<_, _>>()?),
            10 => Array::U64(self.list(n, u64::from_le_bytes)?),
            11 => Array::I64(self.list(n, i64::from_le_bytes)?),
            12 => Array::F64(self.list(n, f64::from_le_bytes)?),
            other => return Err(self.corrupt(format!("{other} is no metadata type"))),
        })
    }
}
