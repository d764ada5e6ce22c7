//! GGUF metadata: typed values under ordered keys.

use indexmap::IndexMap;

/// A metadata value, with GGUF's own types.
#[derive(Clone, Debug, PartialEq)]
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

/// A homogeneous array; arrays nest.
#[derive(Clone, Debug, PartialEq)]
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

/// The key-value section of a GGUF header, in file order.
pub type Metadata = IndexMap<String, Value>;

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.to_owned())
    }
}

impl Value {
    /// Returns the value as an unsigned integer if it is any integer type and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// Returns the string, if the value is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

macro_rules! types {
    ($($variant:ident $id:literal $name:literal),*) => {
        impl Value {
            /// Returns the type's id in a GGUF file.
            pub fn type_id(&self) -> u32 {
                match self { $(Value::$variant(_) => $id),* }
            }

            /// Returns the type's name, e.g. `u32`.
            pub fn type_name(&self) -> &'static str {
                match self { $(Value::$variant(_) => $name),* }
            }
        }

        impl Array {
            /// Returns the id of the elements' type in a GGUF file.
            pub fn type_id(&self) -> u32 {
                match self { $(Array::$variant(_) => $id),* }
            }

            /// Returns the name of the elements' type, e.g. `string`.
            pub fn type_name(&self) -> &'static str {
                match self { $(Array::$variant(_) => $name),* }
            }

            /// Returns the number of elements.
            pub fn len(&self) -> usize {
                match self { $(Array::$variant(elements) => elements.len()),* }
            }

            /// Returns true if there are no elements.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }
    };
}

types! {
    U8 0 "u8", I8 1 "i8", U16 2 "u16", I16 3 "i16", U32 4 "u32", I32 5 "i32", F32 6 "f32", Bool 7 "bool",
    String 8 "string", Array 9 "array", U64 10 "u64", I64 11 "i64", F64 12 "f64"
}
