//! What differs between two models: keys, and tensors by name, type, shape, and (asked for) data.

use indexmap::IndexMap;
use serde::Serialize;

use super::{Error, KeyView, Model, sha256_of_tensors};
use crate::tensor::gguf::Value;
use crate::tensor::{Opened, TensorInfo};

/// One side's absence makes it an addition or a removal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change<T> {
    pub name: String,
    /// In the first model.
    pub before: Option<T>,
    /// In the second model.
    pub after: Option<T>,
}

/// Type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorKind {
    #[serde(rename = "type")]
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

/// Every difference, in the first model's order, additions last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diff {
    pub keys: Vec<Change<KeyView>>,
    pub tensors: Vec<Change<TensorKind>>,
    /// SHA-256 of tensors of equal type and shape whose data differs; absent if data was not compared.
    pub data: Option<Vec<Change<String>>>,
}

impl Diff {
    /// Returns true if nothing differs.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tensors.is_empty() && self.data.as_ref().is_none_or(Vec::is_empty)
    }
}

/// Compares two models. Order, offsets, alignment and the split into files are not compared.
///
/// `with_data` reads both models whole.
pub fn diff(a: &Model, b: &Model, with_data: bool) -> Result<Diff, Error> {
    let kind = |info: &TensorInfo| TensorKind { dtype: info.dtype.to_string(), shape: info.shape.clone() };
    let table = |model: &Model| -> IndexMap<String, TensorKind> {
        model.source().tensors().iter().map(|info| (info.name.clone(), kind(info))).collect()
    };
    let tensors = changes(&table(a), &table(b), |_, before, after| before == after);
    let data = match with_data {
        true => Some(data_changes(a, b)?),
        false => None,
    };
    Ok(Diff { keys: key_changes(a, b), tensors, data })
}

fn key_changes(a: &Model, b: &Model) -> Vec<Change<KeyView>> {
    let table = |model: &Model| -> IndexMap<String, KeyView> {
        model.keys().into_iter().map(|view| (view.key.clone(), view)).collect()
    };
    // Views are abbreviated: GGUF values are compared whole.
    let equal = |key: &str, before: &KeyView, after: &KeyView| match (value(a, key), value(b, key)) {
        (Some(before), Some(after)) => same_value(before, after),
        _ => before == after,
    };
    changes(&table(a), &table(b), equal)
}

fn value<'m>(model: &'m Model, key: &str) -> Option<&'m Value> {
    match &model.opened {
        Opened::Gguf(gguf) => gguf.metadata().get(key),
        Opened::SafeTensors(_) => None,
    }
}

/// Equal in type and bits, so that NaN equals itself.
fn same_value(a: &Value, b: &Value) -> bool {
    a == b || (a.type_id() == b.type_id() && format!("{a:?}") == format!("{b:?}"))
}

fn changes<T: Clone>(
    a: &IndexMap<String, T>,
    b: &IndexMap<String, T>,
    equal: impl Fn(&str, &T, &T) -> bool,
) -> Vec<Change<T>> {
    let mut found = Vec::new();
    for (name, before) in a {
        let after = b.get(name);
        if !after.is_some_and(|after| equal(name, before, after)) {
            found.push(Change { name: name.clone(), before: Some(before.clone()), after: after.cloned() });
        }
    }
    for (name, after) in b.iter().filter(|(name, _)| !a.contains_key(*name)) {
        found.push(Change { name: name.clone(), before: None, after: Some(after.clone()) });
    }
    found
}

fn data_changes(a: &Model, b: &Model) -> Result<Vec<Change<String>>, Error> {
    let (source_a, source_b) = (a.source(), b.source());
    let comparable = |info: &'_ &TensorInfo| {
        source_b.find(&info.name).is_some_and(|other| other.dtype == info.dtype && other.shape == info.shape)
    };
    let before: Vec<&TensorInfo> = source_a.tensors().iter().filter(comparable).collect();
    let after: Vec<&TensorInfo> = before.iter().filter_map(|info| source_b.find(&info.name)).collect();
    let digests_a = sha256_of_tensors(source_a, &before)?;
    let digests_b = sha256_of_tensors(source_b, &after)?;
    let pairs = before.iter().zip(digests_a).zip(digests_b).filter(|((_, a), b)| a != b);
    let change = |((info, a), b): ((&&TensorInfo, String), String)| Change {
        name: info.name.clone(),
        before: Some(a),
        after: Some(b),
    };
    Ok(pairs.map(change).collect())
}
