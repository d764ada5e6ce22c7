//! Tokenizers: reading a checkpoint's vocabulary and writing it as GGUF keys.
//!
//! [`gguf_vocab`] gives the `tokenizer.*` keys of a checkpoint, equal in key, type, value and order
//! to those of the reference converter; [`summary`] reads such keys back for display.

mod bpe;
pub mod chat;
mod decoder;
mod error;
mod files;
mod hf_vocab;
mod llama_json;
mod pre_table;
mod pretokenizer;
mod sentencepiece;
mod special;
mod spm_vocab;
mod summary;
mod table;
mod template;
mod tokenizer;
mod tokenizer_json;
pub mod train;

use std::path::Path;

use serde_json::Value as Json;

use crate::tensor::gguf::{Metadata, Value};

pub use error::{Error, ProtobufProblem};
pub use pretokenizer::names as pre_tokenizer_names;
pub use summary::{VocabSummary, summary};
pub use tokenizer::{Detokenizer, EncodeOptions, Tokenizer};

use files::Files;
use hf_vocab::HfVocab;
use special::SpecialTokens;
use spm_vocab::AddedRules;
use table::TokenTable;

/// A checkpoint whose tokenizer is to become GGUF keys.
pub struct VocabRequest<'a> {
    /// The checkpoint's directory.
    pub dir: &'a Path,
    /// config.json, as it is in the file.
    pub config: &'a Json,
    /// GGUF architecture name, e.g. `qwen2`.
    pub arch: &'a str,
    /// The configuration's vocabulary size; the number of tokens in the file where it is `None`.
    pub vocab_size: Option<usize>,
    /// Rows of the embedding that will be written, to be compared with the number of tokens.
    pub embedding_rows: Option<usize>,
    /// A pre-tokenizer name to write whatever the tokenizer looks like.
    pub pre: Option<&'a str>,
}

/// The `tokenizer.*` keys of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocab {
    /// In the reference converter's order.
    pub metadata: Metadata,
    /// What the user should know: tokens left out, contradictions between files.
    pub notes: Vec<String>,
}

/// Where an architecture's tokenizer may come from, tried in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// tokenizer.model.
    SentencePiece,
    /// tokenizer.json holding a SentencePiece BPE with byte fallback, as Llama 2's does.
    LlamaJson,
    /// tokenizer.json, or vocab.json with merges.txt, holding a byte-level BPE.
    ByteLevel,
}

/// What the reference converter does for one architecture.
struct Family {
    arch: &'static str,
    origins: &'static [Origin],
    rules: AddedRules,
    /// `add_space_prefix` written after a SentencePiece vocabulary.
    space_prefix: Option<bool>,
    /// Special tokens of the family, set where the checkpoint does not set them.
    extra: &'static [(&'static str, u32)],
}

const SPM_OR_BYTES: &[Origin] = &[Origin::SentencePiece, Origin::ByteLevel];

/// CodeGemma's ids, which the converter writes for every Gemma 1; only `eot` has a key.
const GEMMA_EXTRA: &[(&str, u32)] =
    &[("prefix", 67), ("suffix", 69), ("middle", 68), ("fsep", 70), ("eot", 107)];

/// Code Llama's ids, written where the vocabulary has [`CODE_LLAMA_VOCAB`] tokens.
const CODE_LLAMA_EXTRA: &[(&str, u32)] =
    &[("prefix", 32007), ("suffix", 32008), ("middle", 32009), ("eot", 32010)];
const CODE_LLAMA_VOCAB: usize = 32016;

/// Vocabulary size by which the converter knows the small Granite models.
const SMALL_GRANITE_VOCAB: usize = 49152;

const FAMILIES: &[Family] = &[
    Family {
        arch: "llama",
        origins: &[Origin::SentencePiece, Origin::LlamaJson, Origin::ByteLevel],
        ..Family::plain()
    },
    Family { arch: "qwen2", ..Family::plain() },
    Family { arch: "qwen3", ..Family::plain() },
    Family { arch: "qwen3moe", origins: &[Origin::ByteLevel], ..Family::plain() },
    Family {
        arch: "gemma",
        origins: &[Origin::SentencePiece],
        space_prefix: Some(false),
        extra: GEMMA_EXTRA,
        ..Family::plain()
    },
    Family {
        arch: "gemma2",
        origins: &[Origin::SentencePiece],
        space_prefix: Some(false),
        ..Family::plain()
    },
    Family { arch: "gemma3", space_prefix: Some(false), ..Family::plain() },
    Family { arch: "phi3", rules: AddedRules::Phi3, ..Family::plain() },
];

impl Family {
    const fn plain() -> Self {
        Family { arch: "", origins: SPM_OR_BYTES, rules: AddedRules::Common, space_prefix: None, extra: &[] }
    }

    fn of(request: &VocabRequest) -> Result<&'static Family, Error> {
        FAMILIES.iter().find(|family| family.arch == request.arch).ok_or_else(|| Error::Unsupported {
            path: request.dir.join("config.json"),
            what: "no tokenizer rules are known".to_owned(),
            arch: request.arch.to_owned(),
        })
    }
}

/// Returns the `tokenizer.*` keys of the checkpoint.
///
/// Errors if there are no tokenizer files, if they are broken or contradict each other or the
/// vocabulary size, and if a byte-level BPE's pre-tokenizer is none of the known ones and no name
/// is forced.
pub fn gguf_vocab(request: &VocabRequest) -> Result<Vocab, Error> {
    let family = Family::of(request)?;
    let files = Files::open(request.dir)?;
    let mut vocab = Vocab { metadata: Metadata::new(), notes: Vec::new() };
    if family.arch == "llama" {
        write_space_prefix(&files, &mut vocab);
    }
    let origin = write_tokens(request, family, &files, &mut vocab)?;
    if family.space_prefix.is_some() || !family.extra.is_empty() {
        write_family_keys(request, family, origin, &files, &mut vocab)?;
    }
    if family.arch == "llama" {
        write_llama_relatives(request, &files, &mut vocab)?;
    }
    compare_with_embedding(request, &mut vocab);
    Ok(vocab)
}

/// Writes the tokens from the first origin that the checkpoint has.
fn write_tokens(
    request: &VocabRequest,
    family: &Family,
    files: &Files,
    vocab: &mut Vocab,
) -> Result<Origin, Error> {
    for &origin in family.origins {
        let written = match origin {
            Origin::SentencePiece => write_sentencepiece(request, family, files, vocab)?,
            Origin::LlamaJson => write_llama_json(request, files, vocab)?,
            Origin::ByteLevel => write_byte_level(request, files, vocab)?,
        };
        if written {
            return Ok(origin);
        }
    }
    let tekken = files.path("tekken.json");
    if tekken.is_file() {
        let what = "Mistral's own tokenizer format alone".to_owned();
        return Err(Error::Unsupported { path: tekken, what, arch: request.arch.to_owned() });
    }
    Err(Error::Missing {
        dir: request.dir.to_owned(),
        arch: request.arch.to_owned(),
        looked_for: looked_for(family),
    })
}

fn looked_for(family: &Family) -> String {
    let names = family.origins.iter().filter_map(|origin| match origin {
        Origin::SentencePiece => Some("tokenizer.model"),
        Origin::LlamaJson => None,
        Origin::ByteLevel => Some("tokenizer.json, vocab.json with merges.txt"),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn write_sentencepiece(
    request: &VocabRequest,
    family: &Family,
    files: &Files,
    vocab: &mut Vocab,
) -> Result<bool, Error> {
    // Phi-4 is a phi3 whose tokenizer is GPT-2's
    let class = files.config_value("tokenizer_class").and_then(Json::as_str);
    if family.arch == "phi3" && class == Some("GPT2Tokenizer") {
        return Ok(false);
    }
    let path = files.path("tokenizer.model");
    let Some(bytes) = files::read_bytes(&path)? else { return Ok(false) };
    if files.tokenizer.is_some() && spm_vocab::is_tiktoken(&bytes) {
        vocab
            .notes
            .push(format!("{}: a tiktoken vocabulary; tokenizer.json is used instead", path.display()));
        return Ok(false);
    }
    let model = sentencepiece::SentencePiece::parse(&path, &bytes)?;
    let table = spm_vocab::sentencepiece_table(request, files, &model, family.rules, &mut vocab.notes)?;
    write_scored(request, files, table, vocab)?;
    Ok(true)
}

fn write_llama_json(request: &VocabRequest, files: &Files, vocab: &mut Vocab) -> Result<bool, Error> {
    if !llama_json::is_llama_json(files) {
        return Ok(false);
    }
    let Some(tokens) = HfVocab::load(files, &mut vocab.notes)? else { return Ok(false) };
    let mut table = llama_json::llama_json_table(&tokens)?;
    vocab.notes.push(format!(
        "{}: no tokenizer.model beside it, so the scores are lost and some texts may be split differently",
        tokens.path.display()
    ));
    if let Some(vocab_size) = request.vocab_size.filter(|size| *size > table.tokens.len()) {
        spm_vocab::check_size(vocab_size, request)?;
        vocab.notes.push(format!(
            "{} tokens padded to the vocabulary size {vocab_size}; the reference converter leaves them short, \
             and llama.cpp refuses such a file",
            table.tokens.len()
        ));
        table.pad_to(vocab_size);
    }
    write_scored(request, files, table, vocab)?;
    Ok(true)
}

/// Writes the keys of a byte-level BPE (`tokenizer.ggml.model` = `gpt2`).
fn write_byte_level(request: &VocabRequest, files: &Files, vocab: &mut Vocab) -> Result<bool, Error> {
    if let Some(tokenizer) = &files.tokenizer
        && let Some(kind) = tokenizer.model.kind.as_deref().filter(|kind| *kind != "BPE")
    {
        let (path, arch) = (files.path("tokenizer.json"), request.arch.to_owned());
        return Err(Error::Unsupported { path, what: format!("a {kind} tokenizer"), arch });
    }
    if request.pre.is_none() && llama_json::is_llama_json(files) {
        let (path, arch) = (files.path("tokenizer.json"), request.arch.to_owned());
        let what = "a SentencePiece tokenizer without its tokenizer.model".to_owned();
        return Err(Error::Unsupported { path, what, arch });
    }
    let Some(tokens) = HfVocab::load(files, &mut vocab.notes)? else { return Ok(false) };
    if pretokenizer::adds_space(files) {
        let path = files.path("tokenizer.json");
        vocab.notes.push(format!("{}: puts a space before the text; GGUF readers do not", path.display()));
    }
    let table = bpe::byte_level_table(request, files, &tokens)?;
    let pre = match request.pre {
        Some(name) => pretokenizer::check_forced(name)?,
        None => pretokenizer::detect(files, request.arch)?,
    };
    let mut special = SpecialTokens::load(files, request.config, None)?;
    special.merges = bpe::merges(files, &tokens, &mut vocab.notes)?;
    let metadata = &mut vocab.metadata;
    metadata.insert("tokenizer.ggml.model".to_owned(), "gpt2".into());
    metadata.insert("tokenizer.ggml.pre".to_owned(), pre.into());
    table.write(metadata, false);
    special.write(metadata);
    vocab.notes.append(&mut special.notes);
    Ok(true)
}

/// Writes the keys of a vocabulary with scores (`tokenizer.ggml.model` = `llama`).
fn write_scored(
    request: &VocabRequest,
    files: &Files,
    table: TokenTable,
    vocab: &mut Vocab,
) -> Result<(), Error> {
    if let Some(name) = request.pre {
        vocab.notes.push(format!("pre-tokenizer `{name}` not written: a SentencePiece vocabulary has none"));
    }
    let mut special = SpecialTokens::load(files, request.config, Some(table.tokens.len()))?;
    let metadata = &mut vocab.metadata;
    metadata.insert("tokenizer.ggml.model".to_owned(), "llama".into());
    metadata.insert("tokenizer.ggml.pre".to_owned(), "default".into());
    table.write(metadata, true);
    special.write(metadata);
    vocab.notes.append(&mut special.notes);
    Ok(())
}

/// Writes tokenizer_config.json's `add_prefix_space`, which comes before all other keys.
fn write_space_prefix(files: &Files, vocab: &mut Vocab) {
    match files.config_value("add_prefix_space") {
        None | Some(Json::Null) => {}
        Some(Json::Bool(add)) => {
            vocab.metadata.insert("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(*add));
        }
        Some(other) => vocab.notes.push(format!(
            "{}: `add_prefix_space` is {}, neither true nor false; left out",
            files.path("tokenizer_config.json").display(),
            files::kind_of(other)
        )),
    }
}

fn write_family_keys(
    request: &VocabRequest,
    family: &Family,
    origin: Origin,
    files: &Files,
    vocab: &mut Vocab,
) -> Result<(), Error> {
    if origin != Origin::SentencePiece {
        return Ok(());
    }
    if !family.extra.is_empty() {
        write_extra(request, files, family.extra, false, vocab)?;
    }
    if let Some(add) = family.space_prefix {
        vocab.metadata.insert("tokenizer.ggml.add_space_prefix".to_owned(), Value::Bool(add));
    }
    Ok(())
}

/// Writes the ids of `extra`, and whatever else the checkpoint says about those roles.
fn write_extra(
    request: &VocabRequest,
    files: &Files,
    extra: &[(&'static str, u32)],
    with_template: bool,
    vocab: &mut Vocab,
) -> Result<(), Error> {
    let roles: Vec<&'static str> = extra.iter().map(|(role, _)| *role).collect();
    let mut special = SpecialTokens::load_roles(files, request.config, None, &roles)?;
    for (role, id) in extra {
        special.set_default(role, *id);
    }
    if !with_template {
        special.chat_template = None;
    }
    special.write(&mut vocab.metadata);
    Ok(())
}

/// Writes what sets Code Llama and the small Granite models apart, known by vocabulary size.
fn write_llama_relatives(request: &VocabRequest, files: &Files, vocab: &mut Vocab) -> Result<(), Error> {
    match request.vocab_size {
        Some(CODE_LLAMA_VOCAB) => write_extra(request, files, CODE_LLAMA_EXTRA, true, vocab),
        Some(SMALL_GRANITE_VOCAB) => {
            vocab.metadata.insert("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(false));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn compare_with_embedding(request: &VocabRequest, vocab: &mut Vocab) {
    let n_tokens = summary(&vocab.metadata).n_tokens;
    if let Some(rows) = request.embedding_rows
        && rows != n_tokens
    {
        vocab.notes.push(format!(
            "{n_tokens} tokens, but the embedding has {rows} rows: llama.cpp will refuse the file"
        ));
    }
}
