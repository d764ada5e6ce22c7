//! A base model's logits on disk: exact f32, so that a divergence from them is the one from the model itself.
//!
//! Little-endian throughout:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `lctlLGTS` |
//! | 4 | version, 2 |
//! | 4 | V, vocabulary size |
//! | 4 | tokens per chunk |
//! | 4 | BOS that begins every chunk, 2^32 - 1 for none |
//! | 8 | N, number of tokens: whole chunks |
//! | 32 | SHA-256 of the text ([`Chunks::digest`]) |
//! | 4 + n | length of the model's description in bytes, then it: UTF-8 JSON |
//! | 4 N | tokens |
//! | 4 V each | logits of each scored position, chunk after chunk |
//! | 32 | SHA-256 of all bytes before |

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Error;
use super::chunks::Chunks;
use super::kld::BaseLogits;
use crate::read::refuse_endless;
use crate::tensor::AtomicFile;

const MAGIC: [u8; 8] = *b"lctlLGTS";
const VERSION: u32 = 2;
const NO_BOS: u32 = u32::MAX;
/// Bytes of the digest at the end.
const DIGEST_BYTES: u64 = 32;
/// Longest description of a model that a reader accepts, in bytes.
const LONGEST_DESCRIPTION: u32 = 1 << 16;

/// Writes a model's logits over a text to a file that appears whole or not at all.
pub struct LogitsWriter {
    file: AtomicFile,
    hasher: Sha256,
    bytes: Vec<u8>,
}

impl LogitsWriter {
    /// Begins the file; `description` (JSON: what the model was, how it was computed) is kept in it. Whether a file
    /// of that name is replaced is `replace`.
    ///
    /// Errors if the disk has no room for all of it.
    pub fn create(
        path: &Path,
        replace: bool,
        text: &Chunks,
        vocab_size: usize,
        description: &serde_json::Value,
    ) -> Result<Self, Error> {
        if !replace && path.exists() {
            return Err(Error::LogitsExist { path: path.to_owned() });
        }
        let header = header(text, vocab_size, description);
        let n_rows = (text.n_chunks() * text.n_scored()) as u64;
        let bytes = header.len() as u64 + n_rows * vocab_size as u64 * 4 + DIGEST_BYTES;
        let mut file = AtomicFile::create(path, Some(bytes), false)?;
        file.set_replace(replace);
        file.write_all(&header)?;
        Ok(LogitsWriter { file, hasher: Sha256::new_with_prefix(&header), bytes: Vec::new() })
    }

    /// Appends rows of logits, in the order of the scored positions.
    pub(super) fn write(&mut self, logits: &[f32]) -> Result<(), Error> {
        self.bytes.clear();
        for logit in logits {
            self.bytes.extend_from_slice(&logit.to_le_bytes());
        }
        self.hasher.update(&self.bytes);
        Ok(self.file.write_all(&self.bytes)?)
    }

    /// Gives the file its name; returns its size in bytes, and the SHA-256 of all of them.
    pub fn finish(mut self) -> Result<(u64, [u8; 32]), Error> {
        let digest = self.hasher.clone().finalize();
        self.hasher.update(digest);
        self.file.write_all(&digest)?;
        Ok((self.file.commit()?.bytes, self.hasher.finalize().into()))
    }
}

fn header(text: &Chunks, vocab_size: usize, description: &serde_json::Value) -> Vec<u8> {
    let description = description.to_string();
    let mut header = MAGIC.to_vec();
    for number in [VERSION, vocab_size as u32, text.chunk_len() as u32, text.bos().unwrap_or(NO_BOS)] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(&(text.tokens().len() as u64).to_le_bytes());
    header.extend_from_slice(&text.digest());
    header.extend_from_slice(&(description.len() as u32).to_le_bytes());
    header.extend_from_slice(description.as_bytes());
    for token in text.tokens() {
        header.extend_from_slice(&token.to_le_bytes());
    }
    header
}

/// An opened file of logits, read from front to back.
#[derive(Debug)]
pub struct SavedLogits {
    path: PathBuf,
    file: BufReader<File>,
    /// Over what was read so far.
    hasher: Sha256,
    /// Rows of logits not read yet.
    rows_left: usize,
    vocab_size: usize,
    text: Chunks,
    description: serde_json::Value,
}

impl SavedLogits {
    /// Errors if the file is none of saved logits, is of another version, is shorter or longer than it says, or
    /// its tokens are not what their digest says.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), doing: "open", source };
        refuse_endless(path)?;
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let file = BufReader::with_capacity(1 << 20, file);
        Opener { path, file, hasher: Sha256::new(), read: 0, bytes }.open()
    }

    /// Returns the text that the logits are of.
    pub fn text(&self) -> &Chunks {
        &self.text
    }

    /// Returns what was said of the model when its logits were saved.
    pub fn description(&self) -> &serde_json::Value {
        &self.description
    }
}

impl BaseLogits for SavedLogits {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Errors if a logit is no finite number; with the last rows, if the file is not what its digest says.
    fn logits(&mut self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let bytes = self.read(rows.len() * self.vocab_size * 4)?;
        let logits: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        self.hasher.update(&bytes);
        self.rows_left = self.rows_left.saturating_sub(rows.len());
        let is_whole =
            self.rows_left > 0 || self.read(DIGEST_BYTES as usize)? == *self.hasher.clone().finalize();
        match is_whole && logits.iter().all(|logit| logit.is_finite()) {
            true => Ok(logits),
            false => Err(Error::LogitsDamaged { path: self.path.clone(), part: "logits" }),
        }
    }
}

impl SavedLogits {
    fn read(&mut self, n: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; n];
        let read = self.file.read_exact(&mut bytes);
        read.map_err(|source| Error::Io { path: self.path.clone(), doing: "read", source })?;
        Ok(bytes)
    }
}

/// Reads the header; nothing is allocated that the file is too short for.
struct Opener<'a> {
    path: &'a Path,
    file: BufReader<File>,
    hasher: Sha256,
    /// Bytes taken so far.
    read: u64,
    bytes: u64,
}

impl Opener<'_> {
    fn open(mut self) -> Result<SavedLogits, Error> {
        let path = self.path;
        let not_logits = || Error::NotLogits { path: path.to_owned() };
        if self.bytes < 16 || self.take(8)? != MAGIC {
            return Err(not_logits());
        }
        let version = self.number()?;
        if version != VERSION {
            return Err(Error::LogitsVersion { path: path.to_owned(), found: version, known: VERSION });
        }
        let (vocab_size, chunk_len, bos) = (self.number()?, self.number()?, self.number()?);
        let n_tokens = u64::from(self.number()?) | u64::from(self.number()?) << 32;
        let digest = self.take(32)?;
        let length = self.number()?;
        if length > LONGEST_DESCRIPTION || vocab_size == 0 {
            return Err(not_logits());
        }
        let description = serde_json::from_slice(&self.take(u64::from(length))?);
        let tokens = self.take(n_tokens.saturating_mul(4))?;
        let tokens = tokens.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let bos = Some(bos).filter(|bos| *bos != NO_BOS);
        let text = Chunks::from_parts(tokens, chunk_len as usize, bos);
        let (Some(text), Ok(description)) = (text, description) else {
            return Err(not_logits());
        };
        if digest != text.digest() {
            return Err(Error::LogitsDamaged { path: path.to_owned(), part: "tokens" });
        }
        let rows = text.n_chunks() as u128 * text.n_scored() as u128;
        let expected = u128::from(self.read) + rows * u128::from(vocab_size) * 4 + u128::from(DIGEST_BYTES);
        if u128::from(self.bytes) != expected {
            let (found, expected) = (self.bytes, u64::try_from(expected).unwrap_or(u64::MAX));
            return Err(Error::LogitsSize { path: path.to_owned(), found, expected });
        }
        Ok(SavedLogits {
            path: path.to_owned(),
            file: self.file,
            hasher: self.hasher,
            rows_left: text.n_chunks() * text.n_scored(),
            vocab_size: vocab_size as usize,
            text,
            description,
        })
    }

    fn take(&mut self, n: u64) -> Result<Vec<u8>, Error> {
        let expected = self.read.saturating_add(n);
        if expected > self.bytes {
            return Err(Error::LogitsSize { path: self.path.to_owned(), found: self.bytes, expected });
        }
        let mut bytes = vec![0; n as usize];
        let read = self.file.read_exact(&mut bytes);
        read.map_err(|source| Error::Io { path: self.path.to_owned(), doing: "read", source })?;
        self.hasher.update(&bytes);
        self.read = expected;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32, Error> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}
