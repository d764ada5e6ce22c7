//! A GGUF read again by two other parsers: a file that shows one face here and another there is an attack.
//!
//! Only files that passed our own reader come here, so lengths and counts are known to fit the file. The
//! others get a copy of the header bytes alone and run on a thread of their own, whose panic is caught and
//! not printed. Sizes are not compared: gguf-rs computes them wrongly for several types.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::panic;
use std::path::Path;
use std::sync::Once;

use serde::Serialize;
use serde_json::Value as Json;

use super::{Error, Model};
use crate::tensor::Opened;
use crate::tensor::gguf::{Array, Header, Value, parse_header};

/// What one other reader made of one file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It read the same names, shapes, types, offsets, keys and values.
    Agrees,
    /// It could not read the file, so there is nothing to compare.
    NotComparable { reason: String },
    /// It read something else.
    Differs { differences: Vec<String> },
}

/// The verdicts on one file (a split model has several).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CrossCheck {
    pub file: String,
    pub tensors: usize,
    pub keys: usize,
    /// Reader's name and version, its verdict.
    pub readers: Vec<(&'static str, Verdict)>,
}

impl CrossCheck {
    /// Returns true if at least one reader agrees and none differs.
    pub fn passes(&self) -> bool {
        let differs = |(_, verdict): &(_, Verdict)| matches!(verdict, Verdict::Differs { .. });
        !self.readers.iter().any(differs)
            && self.readers.iter().any(|(_, verdict)| *verdict == Verdict::Agrees)
    }
}

/// What a reader says a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Face {
    type_id: u32,
    /// Outermost first.
    shape: Vec<u64>,
    /// Absolute in the file.
    offset: u64,
}

/// A reader's view of a header, in terms all three can express.
struct View {
    tensors: BTreeMap<String, Face>,
    keys: BTreeMap<String, Plain>,
}

/// A metadata value as far as readers keep it.
#[derive(Debug, Clone, PartialEq)]
enum Plain {
    /// Without its width, which gguf-rs does not keep.
    Integer(i128),
    Single(f32),
    Double(f64),
    /// gguf-rs: a float of either width, by way of its shortest decimal.
    Decimal(f64),
    /// gguf-rs: NaN or an infinity.
    Null,
    Bool(bool),
    Text(String),
    List(Vec<Plain>),
}

/// Parses each file of an opened GGUF again with gguf-rs and candle, and compares.
pub fn cross_check(model: &Model) -> Result<Vec<CrossCheck>, Error> {
    let Opened::Gguf(_) = model.opened else {
        return Err(Error::NotGguf { path: model.source().path().to_owned() });
    };
    model.source().files().iter().map(|file| check_file(file)).collect()
}

fn check_file(path: &Path) -> Result<CrossCheck, Error> {
    let (header, bytes) = read_header(path)?;
    let ours = our_view(&header);
    let (for_gguf_rs, for_candle) = (bytes.clone(), bytes);
    let readers = vec![
        ("gguf-rs 0.1.8", judge(&ours, behind_barrier(move || gguf_rs_view(for_gguf_rs)))),
        ("candle 0.11.1", judge(&ours, behind_barrier(move || candle_view(for_candle)))),
    ];
    Ok(CrossCheck {
        file: path.display().to_string(),
        tensors: ours.tensors.len(),
        keys: ours.keys.len(),
        readers,
    })
}

/// Returns our reading of the file and its bytes up to the data section.
fn read_header(path: &Path) -> Result<(Header, Vec<u8>), Error> {
    let io = |error| Error::io(path, "read", error);
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map lives only in this function, which reads it once; a file truncated meanwhile
    // by someone else ends the process with SIGBUS, as for every mapped file.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    let gguf = |problem| crate::tensor::Error::Gguf { path: path.to_owned(), problem };
    let header = parse_header(&map).map_err(gguf)?;
    let end = usize::try_from(header.data_offset).unwrap_or(usize::MAX).min(map.len());
    let bytes = map[..end].to_vec();
    Ok((header, bytes))
}

fn our_view(header: &Header) -> View {
    let face = |info: &crate::tensor::TensorInfo| Face {
        // Every GGUF tensor's type came from its id.
        type_id: info.dtype.ggml_id().unwrap_or(u32::MAX),
        shape: info.shape.iter().map(|dim| *dim as u64).collect(),
        offset: info.offset,
    };
    View {
        tensors: header.tensors.iter().map(|info| (info.name.clone(), face(info))).collect(),
        keys: header.metadata.iter().map(|(key, value)| (key.clone(), our_plain(value))).collect(),
    }
}

/// Returns true if `theirs` is `ours` as exactly as their reader can say it; NaN equals itself.
fn is_same(ours: &Plain, theirs: &Plain) -> bool {
    match (ours, theirs) {
        (Plain::Single(a), Plain::Single(b)) => a.to_bits() == b.to_bits(),
        (Plain::Double(a), Plain::Double(b)) => a.to_bits() == b.to_bits(),
        (Plain::Single(a), Plain::Decimal(b)) => a.to_bits() == (*b as f32).to_bits(),
        (Plain::Double(a), Plain::Decimal(b)) => a.to_bits() == b.to_bits(),
        (Plain::Single(a), Plain::Null) => !a.is_finite(),
        (Plain::Double(a), Plain::Null) => !a.is_finite(),
        (Plain::List(a), Plain::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        _ => ours == theirs,
    }
}

fn our_plain(value: &Value) -> Plain {
    match value {
        Value::U8(v) => Plain::Integer((*v).into()),
        Value::I8(v) => Plain::Integer((*v).into()),
        Value::U16(v) => Plain::Integer((*v).into()),
        Value::I16(v) => Plain::Integer((*v).into()),
        Value::U32(v) => Plain::Integer((*v).into()),
        Value::I32(v) => Plain::Integer((*v).into()),
        Value::U64(v) => Plain::Integer((*v).into()),
        Value::I64(v) => Plain::Integer((*v).into()),
        Value::F32(v) => Plain::Single(*v),
        Value::F64(v) => Plain::Double(*v),
        Value::Bool(v) => Plain::Bool(*v),
        Value::String(v) => Plain::Text(v.clone()),
        Value::Array(v) => Plain::List(our_list(v)),
    }
}

fn our_list(array: &Array) -> Vec<Plain> {
    fn integers<T: Copy + Into<i128>>(items: &[T]) -> Vec<Plain> {
        items.iter().map(|item| Plain::Integer((*item).into())).collect()
    }
    match array {
        Array::U8(v) => integers(v),
        Array::I8(v) => integers(v),
        Array::U16(v) => integers(v),
        Array::I16(v) => integers(v),
        Array::U32(v) => integers(v),
        Array::I32(v) => integers(v),
        Array::U64(v) => integers(v),
        Array::I64(v) => integers(v),
        Array::F32(v) => v.iter().map(|item| Plain::Single(*item)).collect(),
        Array::F64(v) => v.iter().map(|item| Plain::Double(*item)).collect(),
        Array::Bool(v) => v.iter().map(|item| Plain::Bool(*item)).collect(),
        Array::String(v) => v.iter().map(|item| Plain::Text(item.clone())).collect(),
        Array::Array(v) => v.iter().map(|item| Plain::List(our_list(item))).collect(),
    }
}

fn gguf_rs_view(bytes: Vec<u8>) -> Result<View, String> {
    let mut rest = Cursor::new(bytes);
    // The container takes over after the magic number.
    rest.read_exact(&mut [0; 4]).map_err(|e| e.to_string())?;
    // Without u64::MAX it keeps three elements of each tokenizer array.
    let mut container = gguf_rs::GGUFContainer::new(gguf_rs::ByteOrder::LE, Box::new(rest), u64::MAX);
    let model = container.decode().map_err(|e| e.to_string())?;
    let face = |tensor: &gguf_rs::Tensor| Face {
        type_id: tensor.kind,
        shape: tensor.shape.iter().rev().copied().collect(),
        offset: model.data_offset().saturating_add(tensor.offset),
    };
    Ok(View {
        tensors: model.tensors().iter().map(|tensor| (tensor.name.clone(), face(tensor))).collect(),
        keys: model.metadata().iter().map(|(key, value)| (key.clone(), json_plain(value))).collect(),
    })
}

fn json_plain(value: &Json) -> Plain {
    match value {
        // GGUF itself has neither: null is a float that JSON cannot say.
        Json::Null | Json::Object(_) => Plain::Null,
        Json::Bool(v) => Plain::Bool(*v),
        Json::String(v) => Plain::Text(v.clone()),
        Json::Array(items) => Plain::List(items.iter().map(json_plain).collect()),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(v), _) => Plain::Integer(v.into()),
            (None, Some(v)) => Plain::Integer(v.into()),
            (None, None) => Plain::Decimal(number.as_f64().unwrap_or(f64::NAN)),
        },
    }
}

fn candle_view(bytes: Vec<u8>) -> Result<View, String> {
    use candle_core::quantized::gguf_file::Content;
    let content = Content::read(&mut Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let start = content.tensor_data_offset;
    let face = |info: &candle_core::quantized::gguf_file::TensorInfo| Face {
        type_id: candle_type_id(info.ggml_dtype),
        shape: info.shape.dims().iter().map(|dim| *dim as u64).collect(),
        offset: start.saturating_add(info.offset),
    };
    Ok(View {
        tensors: content.tensor_infos.iter().map(|(name, info)| (name.clone(), face(info))).collect(),
        keys: content.metadata.iter().map(|(key, value)| (key.clone(), candle_plain(value))).collect(),
    })
}

fn candle_type_id(dtype: candle_core::quantized::GgmlDType) -> u32 {
    use candle_core::quantized::GgmlDType as T;
    match dtype {
        T::F32 => 0,
        T::F16 => 1,
        T::Q4_0 => 2,
        T::Q4_1 => 3,
        T::Q5_0 => 6,
        T::Q5_1 => 7,
        T::Q8_0 => 8,
        T::Q8_1 => 9,
        T::Q2K => 10,
        T::Q3K => 11,
        T::Q4K => 12,
        T::Q5K => 13,
        T::Q6K => 14,
        T::Q8K => 15,
        T::BF16 => 30,
    }
}

fn candle_plain(value: &candle_core::quantized::gguf_file::Value) -> Plain {
    use candle_core::quantized::gguf_file::Value as V;
    match value {
        V::U8(v) => Plain::Integer((*v).into()),
        V::I8(v) => Plain::Integer((*v).into()),
        V::U16(v) => Plain::Integer((*v).into()),
        V::I16(v) => Plain::Integer((*v).into()),
        V::U32(v) => Plain::Integer((*v).into()),
        V::I32(v) => Plain::Integer((*v).into()),
        V::U64(v) => Plain::Integer((*v).into()),
        V::I64(v) => Plain::Integer((*v).into()),
        V::F32(v) => Plain::Single(*v),
        V::F64(v) => Plain::Double(*v),
        V::Bool(v) => Plain::Bool(*v),
        V::String(v) => Plain::Text(v.clone()),
        V::Array(items) => Plain::List(items.iter().map(candle_plain).collect()),
    }
}

thread_local! {
    /// True on a thread whose panics are somebody else's bug and are not to be printed.
    static IS_BEHIND_BARRIER: Cell<bool> = const { Cell::new(false) };
}

/// Runs a foreign parser on a thread of its own; its panic becomes a reason.
fn behind_barrier<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_BEHIND_BARRIER.get() {
                previous(info);
            }
        }));
    });
    let guarded = move || {
        IS_BEHIND_BARRIER.set(true);
        read()
    };
    let thread = std::thread::Builder::new().name("second reader".to_owned()).spawn(guarded);
    let outcome = thread.map_err(|e| format!("no thread to read it on: {e}"))?.join();
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("it panicked: {}", text.unwrap_or_default()))
    })
}

/// Differences beyond this many are counted, not listed.
const MAX_LISTED: usize = 50;

fn judge(ours: &View, theirs: Result<View, String>) -> Verdict {
    let theirs = match theirs {
        Ok(view) => view,
        Err(reason) => return Verdict::NotComparable { reason },
    };
    let mut differences = compare("tensor", &ours.tensors, &theirs.tensors, describe_face);
    differences.extend(compare("key", &ours.keys, &theirs.keys, describe_values));
    let more = differences.len().saturating_sub(MAX_LISTED);
    if more > 0 {
        differences.truncate(MAX_LISTED);
        differences.push(format!("and {more} more"));
    }
    if differences.is_empty() { Verdict::Agrees } else { Verdict::Differs { differences } }
}

/// Returns a line per difference; `describe` says how two values differ, if they do.
fn compare<T>(
    what: &str,
    ours: &BTreeMap<String, T>,
    theirs: &BTreeMap<String, T>,
    describe: impl Fn(&T, &T) -> Option<String>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in ours {
        match theirs.get(name) {
            None => found.push(format!("{what} {name:?}: it does not see it")),
            Some(other) => found.extend(describe(value, other).map(|how| format!("{what} {name:?}: {how}"))),
        }
    }
    let only_theirs = theirs.keys().filter(|name| !ours.contains_key(*name));
    found.extend(only_theirs.map(|name| format!("{what} {name:?}: only it sees it")));
    found
}

fn describe_face(a: &Face, b: &Face) -> Option<String> {
    let mut parts = Vec::new();
    if a.type_id != b.type_id {
        parts.push(format!("type {}, it reads {}", a.type_id, b.type_id));
    }
    if a.shape != b.shape {
        parts.push(format!("shape {:?}, it reads {:?}", a.shape, b.shape));
    }
    if a.offset != b.offset {
        parts.push(format!("data at byte {}, it reads {}", a.offset, b.offset));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn describe_values(a: &Plain, b: &Plain) -> Option<String> {
    (!is_same(a, b)).then(|| format!("we read {}, it reads {}", shorten(a), shorten(b)))
}

fn shorten(value: &Plain) -> String {
    let text = match value {
        Plain::List(items) => format!("a list of {} {:?}", items.len(), &items[..items.len().min(4)]),
        other => format!("{other:?}"),
    };
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
