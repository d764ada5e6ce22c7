//! Tokenizers that the `tokenizers` library runs.

use std::fmt;
use std::sync::OnceLock;

use tokenizers::Tokenizer as Inner;

use super::EncodeOptions;
use super::roles::Roles;

/// A tokenizer of the library, and what it adds around a text.
pub struct Library {
    inner: Inner,
    /// The same with the text of special tokens taken as text; made when first needed.
    literal: OnceLock<Box<Inner>>,
    /// Whether the roles' flags say what is added, and not the library's post-processor.
    by_flags: bool,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("by_flags", &self.by_flags).finish_non_exhaustive()
    }
}

impl Library {
    pub fn new(inner: Inner, by_flags: bool) -> Self {
        Library { inner, literal: OnceLock::new(), by_flags }
    }

    /// Returns the text's ids, or the library's message.
    pub fn encode(&self, text: &str, options: EncodeOptions, roles: &Roles) -> Result<Vec<u32>, String> {
        let inner = match options.parse_special {
            true => &self.inner,
            false => self.literal.get_or_init(|| {
                let mut literal = self.inner.clone();
                literal.set_encode_special_tokens(true);
                Box::new(literal)
            }),
        };
        let by_library = options.add_special && !self.by_flags;
        let encoding = inner.encode_fast(text, by_library).map_err(|error| error.to_string())?;
        if !options.add_special || by_library {
            return Ok(encoding.get_ids().to_vec());
        }
        let mut ids = Vec::with_capacity(encoding.len() + 2);
        ids.extend(roles.bos.filter(|_| roles.adds_bos));
        ids.extend_from_slice(encoding.get_ids());
        ids.extend(roles.eos.filter(|_| roles.adds_eos));
        Ok(ids)
    }

    /// Returns the ids' text by the library's decoder; tokens it cannot decode have none.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.inner.decode(ids, skip_special).unwrap_or_default()
    }
}

/// Returns the text with the spaces removed that transformers' `clean_up_tokenization` removes.
pub fn clean_up(text: &str) -> String {
    const REPLACED: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACED.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}
