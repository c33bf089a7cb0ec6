//! The key/value part of a GGUF file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::model::ModelError;

/// One metadata value, as typed in the file.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A homogeneous list.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// All metadata of a file, with typed access.
///
/// Every getter returns `None` for an absent key and [`ModelError::Corrupt`], naming the key, for a
/// value of another type.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: HashMap<String, Value>,
}

impl Metadata {
    /// `path` is only for messages.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into(), values: HashMap::new() }
    }

    /// Adds a value; false where the key is taken.
    pub(super) fn insert(&mut self, key: String, value: Value) -> bool {
        self.values.insert(key, value).is_none()
    }

    /// The file these values are from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value as typed in the file.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer of any width that fits 32 bits unsigned.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, ModelError> {
        self.typed(key, "an unsigned 32-bit integer", |value| {
            u32::try_from(match *value {
                Value::U8(n) => i128::from(n),
                Value::I8(n) => i128::from(n),
                Value::U16(n) => i128::from(n),
                Value::I16(n) => i128::from(n),
                Value::U32(n) => i128::from(n),
                Value::I32(n) => i128::from(n),
                Value::U64(n) => i128::from(n),
                Value::I64(n) => i128::from(n),
                _ => return None,
            })
            .ok()
        })
    }

    /// A floating-point number of either width.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.typed(key, "a floating-point number", |value| match *value {
            Value::F32(x) => Some(x),
            Value::F64(x) => Some(x as f32),
            _ => None,
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "a boolean", |value| match *value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// A list of strings, as `tokenizer.ggml.tokens` is.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ModelError> {
        self.typed(key, "a list of strings", |value| match value {
            Value::Array(Array::String(list)) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of 32-bit floats, as `tokenizer.ggml.scores` is.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, ModelError> {
        self.typed(key, "a list of 32-bit floats", |value| match value {
            Value::Array(Array::F32(list)) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// A list of signed 32-bit integers, as `tokenizer.ggml.token_type` is.
    pub fn i32s(&self, key: &str) -> Result<Option<&[i32]>, ModelError> {
        self.typed(key, "a list of signed 32-bit integers", |value| match value {
            Value::Array(Array::I32(list)) => Some(list.as_slice()),
            _ => None,
        })
    }

    /// The value of a getter above, or an error that names the missing key.
    pub fn require<T>(&self, key: &str, value: Result<Option<T>, ModelError>) -> Result<T, ModelError> {
        value?.ok_or_else(|| ModelError::corrupt(&self.path, format!("the metadata key '{key}' is missing")))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| {
            ModelError::corrupt(&self.path, format!("'{key}' is {}, not {expected}", value.describe()))
        })
    }
}

impl Value {
    /// The value, or for a list its kind, short enough for a message.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Array(_) => "a list".into(),
            Self::String(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
            other => format!("{other:?}"),
        }
    }
}
