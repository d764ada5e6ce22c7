//! The model that a run starts from.

use serde::{Serialize, Serializer};

use super::read::{name, one_of_or};
use crate::model::train::BaseFormat;
use crate::yaml::Node;

/// The model that a run starts from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// A checkpoint's directory, a GGUF, or a hub id.
    pub path: String,
    /// In what arithmetic frozen weights are multiplied.
    pub compute: Compute,
    /// What a checkpoint's frozen matrices become when they are read; a GGUF stays as it is.
    pub quantization: Quantization,
    pub init: Init,
}

/// In what arithmetic frozen weights are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// By the type of the weights.
    #[default]
    Auto,
    F32,
    Bf16,
}

/// What frozen matrices become when they are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// What they are.
    #[default]
    None,
    Blocks(BaseFormat),
}

impl Serialize for Quantization {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Quantization::None => serializer.serialize_str("none"),
            Quantization::Blocks(format) => serializer.serialize_str(&format.name()),
        }
    }
}

/// Where the first weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// The model's files.
    #[default]
    Weights,
    /// Drawn by the seed: the path needs a config.json and a tokenizer, no weights.
    Random,
}

pub fn read(node: &Node) -> Model {
    let fields = node.fields();
    Model {
        path: name(&fields.required("path")),
        compute: one_of_or(
            &fields,
            "compute",
            &[("auto", Compute::Auto), ("f32", Compute::F32), ("bf16", Compute::Bf16)],
            Compute::Auto,
        ),
        quantization: fields
            .optional("quantization")
            .map_or(Quantization::None, |node| read_quantization(&node)),
        init: one_of_or(
            &fields,
            "init",
            &[("weights", Init::Weights), ("random", Init::Random)],
            Init::Weights,
        ),
    }
}

fn read_quantization(node: &Node) -> Quantization {
    let formats = BaseFormat::all().into_iter().map(|format| (format.name(), Quantization::Blocks(format)));
    let all: Vec<_> = std::iter::once(("none".to_owned(), Quantization::None)).chain(formats).collect();
    let names: Vec<_> = all.iter().map(|(name, quantization)| (name.as_str(), *quantization)).collect();
    node.one_of(&names)
}
