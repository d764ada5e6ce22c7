//! Text to token ids and back, from a Hugging Face directory or a GGUF's own vocabulary.

mod aliases;
mod bpe;
mod cache;
mod detokenizer;
mod digest;
mod gguf;
mod hf;
mod library;
mod matcher;
mod pieces;
mod roles;
mod split;
mod spm;
mod vocabulary;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};
use tokenizers::NormalizedString;

use crate::tensor::gguf::Metadata;

use super::error::Error;
use super::sentencepiece::PieceKind;
use super::table::Token;
use bpe::Bpe;
pub use detokenizer::Detokenizer;
use library::Library;
use matcher::{Fragment, Matcher};
use pieces::Pieces;
use roles::Roles;
pub(super) use split::{PatternError, PreTokenizer};
use spm::Spm;
use vocabulary::Vocabulary;

/// A checkpoint's tokenizer.
///
/// tokenizer.json is read by the `tokenizers` library and gives what it gives in Python; vocab.json
/// with merges.txt likewise. tokenizer.model and GGUF vocabularies are split by code of this crate as
/// SentencePiece and llama.cpp do, so a checkpoint and the GGUF made of it give the same ids.
///
/// Where tokenizer_config.json sets `add_bos_token` or `add_eos_token`, these two decide what is added
/// to a text, as in transformers 5; else the post-processor of tokenizer.json.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    vocabulary: Vocabulary,
    engine: Engine,
    decoder: Decoder,
    roles: Roles,
    /// Name and text; `default` first.
    templates: Vec<(String, String)>,
    digest: String,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Engine {
    Library(Box<Library>),
    Own { matcher: Matcher, model: Box<Model> },
}

#[derive(Debug)]
enum Model {
    /// `space_prefix`: a space goes before the text and after each special token.
    Spm {
        spm: Spm,
        space_prefix: bool,
    },
    Bpe {
        bpe: Bpe,
        split: PreTokenizer,
    },
}

/// How tokens become text.
#[derive(Debug)]
enum Decoder {
    Pieces(Pieces),
    /// The `tokenizers` library does it: a decoder whose tokens depend on their neighbours. `cleans`:
    /// spaces before punctuation are removed afterwards.
    Library {
        cleans: bool,
    },
}

/// What [`Tokenizer::encode`] does beside splitting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Add what the tokenizer puts around a text: usually a beginning-of-sequence token.
    pub add_special: bool,
    /// Take the text of special tokens (`<s>`, `<|im_end|>`) for those tokens; otherwise it is text
    /// like any other. User-defined tokens, which are not special, are found in either case.
    pub parse_special: bool,
}

impl Tokenizer {
    /// Returns the tokenizer of a Hugging Face directory or of a GGUF file.
    ///
    /// In a directory tokenizer.json comes first, then tokenizer.model, then vocab.json with merges.txt.
    /// Errors if there is none, if a file is broken or contradicts itself, and if the kind of tokenizer
    /// is not supported.
    pub fn open(path: &Path) -> Result<Self, Error> {
        match path.is_dir() {
            true => hf::open(path),
            false => gguf::open(path),
        }
    }

    /// Returns the tokenizer that a GGUF's metadata describes; `path` is the file they come from.
    pub fn from_gguf(path: &Path, metadata: &Metadata) -> Result<Self, Error> {
        gguf::from_metadata(path, metadata)
    }

    /// Returns the text's token ids.
    ///
    /// Errors only if the vocabulary cannot express the text.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, Error> {
        let fail = |message: String| Error::Encode { path: self.path.clone(), message };
        let (matcher, model) = match &self.engine {
            Engine::Library(library) => return library.encode(text, options, &self.roles).map_err(fail),
            Engine::Own { matcher, model } => (matcher, model),
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        ids.extend(self.roles.bos.filter(|_| options.add_special && self.roles.adds_bos));
        let mut after_special = true;
        for fragment in matcher.fragments(&self.vocabulary, text, options.parse_special) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => {
                    model.encode(&self.vocabulary, text, after_special, &mut ids).map_err(fail)?;
                }
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        ids.extend(self.roles.eos.filter(|_| options.add_special && self.roles.adds_eos));
        Ok(ids)
    }

    /// Returns the text of the ids. With `skip_special`, special tokens are left out. Ids out of range
    /// have no text; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut stream = self.stream();
        if !skip_special {
            stream = stream.keep_special();
        }
        stream.decode(ids)
    }

    /// Returns a decoder of one token after another; it leaves special tokens out unless told not to.
    pub fn stream(&self) -> Detokenizer<'_> {
        Detokenizer::new(self)
    }

    /// Returns the number of ids: one more than the largest.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Compares with the rows of the model's embedding: some rows beyond the tokens are padding, which is said
    /// in a note; `model` is the model's file.
    ///
    /// Errors if there are more tokens than rows, or if less than half of the rows have a token: the tokenizer
    /// is another model's.
    pub fn check_vocab(&self, rows: usize, model: &Path) -> Result<Option<String>, Error> {
        let size = self.vocab_size();
        // a tokenizer.model is filled up to config.json's size with tokens that no text becomes
        let is_used = |token: &&Token| !token.text.is_empty() && token.kind != PieceKind::Unused;
        let n_tokens = self.vocabulary.tokens().iter().filter(is_used).count();
        if size > rows || n_tokens < rows / 2 {
            let (path, model) = (self.path.clone(), model.to_owned());
            let n_tokens = if size > rows { size } else { n_tokens };
            return Err(Error::OtherVocabulary { path, n_tokens, model, rows });
        }
        Ok((size < rows).then(|| {
            format!(
                "{}: {size} tokens for an embedding of {rows} rows; the last {} have no token",
                self.path.display(),
                rows - size
            )
        }))
    }

    /// Returns the beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// Returns the end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// Returns the padding token.
    pub fn pad(&self) -> Option<u32> {
        self.roles.pad
    }

    /// Returns the token for what no other token spells.
    pub fn unknown(&self) -> Option<u32> {
        self.roles.unknown
    }

    /// Returns the tokens that end a generation, ascending: the end-of-sequence token, those that
    /// generation_config.json or the GGUF lists, and those with names known to end a turn.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.roles.end_of_generation
    }

    /// Returns whether a beginning-of-sequence token is put before a text.
    pub fn adds_bos(&self) -> bool {
        self.roles.adds_bos
    }

    /// Returns whether an end-of-sequence token is put after a text.
    pub fn adds_eos(&self) -> bool {
        self.roles.adds_eos
    }

    /// Returns the bytes that the token stands for inside a text, a space at its start included; empty
    /// for an id out of range. They may be a part of a character.
    pub fn piece(&self, id: u32) -> Vec<u8> {
        match (&self.decoder, &self.engine) {
            (Decoder::Pieces(pieces), _) => pieces.bytes(id).to_vec(),
            (Decoder::Library { .. }, Engine::Library(library)) => library.decode(&[id], false).into_bytes(),
            // a library's decoder comes with its engine
            (Decoder::Library { .. }, Engine::Own { .. }) => Vec::new(),
        }
    }

    /// Returns the token as the vocabulary spells it, e.g. `▁the` or `Ġthe`.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.token(id).map(|token| token.text.as_str())
    }

    /// Returns the id of the token that the vocabulary spells so.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    /// Returns whether the token is special: left out of decoded text on demand.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// Returns the chat template used when none is asked for by name.
    pub fn chat_template(&self) -> Option<&str> {
        self.named_template("default")
    }

    /// Returns the chat template of that name.
    pub fn named_template(&self, name: &str) -> Option<&str> {
        self.templates.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// Returns names and texts of all chat templates.
    pub fn chat_templates(&self) -> &[(String, String)] {
        &self.templates
    }

    /// Returns the special tokens that a chat template sees: `bos_token`, `eos_token`, … as strings.
    pub fn special_tokens(&self) -> &Map<String, Json> {
        &self.roles.named
    }

    /// Returns the SHA-256, in hexadecimal, of the vocabulary and of every setting that encoding depends on.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Returns what the user should know of the tokenizer's files: contradictions, tokens left out.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the directory or file the tokenizer was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Model {
    /// Appends the ids of a stretch of text without special tokens.
    fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        after_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        match self {
            Model::Spm { spm, space_prefix } => {
                let prefix = if *space_prefix && after_special { "▁" } else { "" };
                let mut escaped = String::with_capacity(text.len() + text.len() / 2 + prefix.len());
                escaped.push_str(prefix);
                escape_spaces(text, &mut escaped);
                spm.encode(vocabulary, &escaped, ids);
            }
            Model::Bpe { bpe, split } => {
                let mut changed = String::new();
                if split.rules.raw_utf8 {
                    escape_spaces(text, &mut changed);
                } else if split.rules.nfc && !is_surely_nfc(text) {
                    let mut normalized = NormalizedString::from(text);
                    normalized.nfc();
                    changed.push_str(normalized.get());
                }
                let text = if changed.is_empty() { text } else { changed.as_str() };
                let words = split.words(text).map_err(|error| error.to_string())?;
                bpe.encode(words.into_iter().map(|word| &text.as_bytes()[word]), ids);
            }
        }
        Ok(())
    }
}

/// Returns whether the text is NFC by a quick look: only characters that NFC never changes and that never
/// join with one before them (Unicode's NFC_Quick_Check is Yes for all of these).
fn is_surely_nfc(text: &str) -> bool {
    text.chars().all(|c| {
        matches!(
            c,
            ..'\u{300}'
                | '\u{400}'..='\u{482}'
                | '\u{2010}'..='\u{20cf}'
                | '\u{3041}'..='\u{3096}'
                | '\u{30a1}'..='\u{30fa}'
                | '\u{4e00}'..='\u{9fff}'
                | '\u{ac00}'..='\u{d7a3}'
                | '\u{1f300}'..='\u{1faff}'
        )
    })
}

/// Appends the text with `▁` for spaces.
fn escape_spaces(text: &str, out: &mut String) {
    let mut parts = text.split(' ');
    out.extend(parts.next());
    for part in parts {
        out.push('▁');
        out.push_str(part);
    }
}
