//! Responses on disk as they come, so that an interrupted run goes on where it was.
//!
//! A file of JSON lines: the first says of what run it is, each later one is a response, the digest of its
//! request, and a digest of the line itself. Lines are appended, never changed. A last line cut short by a crash
//! is dropped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Error;
use super::data::hex;
use super::request::{FinishReason, Generated, Loglikelihood, RequestDigest, Response, Rolling};

const VERSION: u32 = 2;

/// Longest time between a response and its being safe from a power failure.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// What must be equal for a response to hold in another run: names and values, e.g. the model's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalKey(pub Vec<(String, String)>);

impl JournalKey {
    /// Returns the key with these names and values.
    pub fn new<'a>(parts: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        JournalKey(parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// An open journal. Only one process can have it open.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    responses: HashMap<RequestDigest, Response>,
    synced: Instant,
}

impl Journal {
    /// Starts a journal. With `replace` an older one is overwritten.
    ///
    /// Errors if the file exists and `replace` is not given, is in use, or cannot be written.
    pub fn create(path: &Path, key: &JournalKey, replace: bool) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let opened = match replace {
            true => options.create(true).truncate(false).open(path),
            false => options.create_new(true).open(path),
        };
        let mut journal = Self::locked(path, opened)?;
        journal.io("write", |file| file.set_len(0))?;
        journal.begin(key)?;
        Ok(journal)
    }

    /// Goes on with a journal; starts it if there is none, or if it was cut short in its first line.
    ///
    /// Errors if it is of a run with another key, is in use, is no journal, or has a damaged line before
    /// the last.
    pub fn resume(path: &Path, key: &JournalKey) -> Result<Self, Error> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut journal = Self::locked(path, opened)?;
        let mut text = Vec::new();
        journal.io("read", |file| file.read_to_end(&mut text))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = text.split_off(whole);
        if text.is_empty() {
            if !torn.is_empty() && !torn.starts_with(b"{\"lctl_journal\":"[..torn.len().min(16)].as_ref()) {
                return Err(Error::NoJournal { path: path.to_owned() });
            }
            journal.io("write", |file| file.set_len(0))?;
            journal.begin(key)?;
            return Ok(journal);
        }
        journal.read(&text, key)?;
        journal.io("write", |file| file.set_len(whole as u64))?;
        Ok(journal)
    }

    /// Returns the response to the request of that digest, if the journal has one.
    pub fn get(&self, digest: &RequestDigest) -> Option<&Response> {
        self.responses.get(digest)
    }

    /// Returns the number of responses.
    pub fn len(&self) -> usize {
        self.responses.len()
    }

    /// Returns true if no response is recorded.
    pub fn is_empty(&self) -> bool {
        self.responses.is_empty()
    }

    /// Returns the journal's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends responses; a request that has one already is left out.
    pub fn record(&mut self, responses: &[(RequestDigest, Response)]) -> Result<(), Error> {
        let mut lines = String::new();
        for (digest, response) in responses {
            if self.responses.insert(*digest, response.clone()).is_none() {
                lines.push_str(&Line::new(digest, response).json());
                lines.push('\n');
            }
        }
        self.append(&lines)?;
        match self.synced.elapsed() > SYNC_INTERVAL {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Returns when everything recorded is on the disk.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.synced = Instant::now();
        self.io("write", |file| file.sync_data())
    }

    fn locked(path: &Path, opened: std::io::Result<File>) -> Result<Self, Error> {
        let path = path.to_owned();
        let file = match opened {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::JournalExists { path });
            }
            Err(source) => return Err(Error::Io { path, doing: "open", source }),
            Ok(file) => file,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(Error::JournalInUse { path }),
            // A file system without locks is no reason not to run.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        Ok(Journal { path, file, responses: HashMap::new(), synced: Instant::now() })
    }

    fn io<T>(
        &mut self,
        doing: &'static str,
        act: impl FnOnce(&mut File) -> std::io::Result<T>,
    ) -> Result<T, Error> {
        act(&mut self.file).map_err(|source| Error::Io { path: self.path.clone(), doing, source })
    }

    fn append(&mut self, lines: &str) -> Result<(), Error> {
        self.io("write", |file| {
            file.seek(SeekFrom::End(0))?;
            file.write_all(lines.as_bytes())
        })
    }

    fn begin(&mut self, key: &JournalKey) -> Result<(), Error> {
        let header = Header { lctl_journal: VERSION, key: key.0.clone() };
        self.append(&(to_json(&header) + "\n"))?;
        self.sync()
    }

    fn read(&mut self, text: &[u8], key: &JournalKey) -> Result<(), Error> {
        let mut lines = text.split(|byte| *byte == b'\n');
        let header = lines.next().and_then(|line| serde_json::from_slice::<Header>(line).ok());
        let header = header.ok_or_else(|| Error::NoJournal { path: self.path.clone() })?;
        self.check(&header, key)?;
        for (number, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
            let bad = |why: String| Error::JournalLine { path: self.path.clone(), line: number + 2, why };
            let line = unsealed(line).ok_or_else(|| bad("it is not as it was written".into()))?;
            let line = serde_json::from_str::<Line>(&line).map_err(|error| bad(error.to_string()))?;
            let (digest, response) =
                line.parse().ok_or_else(|| bad("a digest or number is malformed".into()))?;
            self.responses.insert(digest, response);
        }
        Ok(())
    }

    fn check(&self, header: &Header, key: &JournalKey) -> Result<(), Error> {
        let differs = |what: &str, found: String, expected: String| Error::JournalOfAnother {
            path: self.path.clone(),
            what: what.to_owned(),
            found,
            expected,
        };
        if header.lctl_journal != VERSION {
            return Err(differs("version", header.lctl_journal.to_string(), VERSION.to_string()));
        }
        let value = |key: &[(String, String)], name: &str| {
            key.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        for (name, expected) in &key.0 {
            let found = value(&header.key, name).unwrap_or_else(|| "not given".into());
            if found != *expected {
                return Err(differs(name, found, expected.clone()));
            }
        }
        match header.key.iter().find(|(name, _)| value(&key.0, name).is_none()) {
            Some((name, found)) => Err(differs(name, found.clone(), "not given".into())),
            None => Ok(()),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    lctl_journal: u32,
    key: Vec<(String, String)>,
}

/// Numbers whose bits matter are strings: JSON readers may round.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Loglikelihood { request: String, log_prob: String, is_greedy: bool, n_tokens: usize },
    Rolling { request: String, log_prob: String, n_tokens: usize },
    Generated { request: String, text: String, tokens: Vec<u32>, finish_reason: FinishReason },
}

impl Line {
    fn new(digest: &RequestDigest, response: &Response) -> Self {
        let request = digest.hex();
        match response {
            Response::Loglikelihood(Loglikelihood { log_prob, is_greedy, n_tokens }) => Line::Loglikelihood {
                request,
                log_prob: log_prob.to_string(),
                is_greedy: *is_greedy,
                n_tokens: *n_tokens,
            },
            Response::Rolling(Rolling { log_prob, n_tokens }) => {
                Line::Rolling { request, log_prob: log_prob.to_string(), n_tokens: *n_tokens }
            }
            Response::Generated(generated) => Line::Generated {
                request,
                text: generated.text.clone(),
                tokens: generated.tokens.clone(),
                finish_reason: generated.finish_reason,
            },
        }
    }

    fn json(&self) -> String {
        sealed(to_json(self))
    }

    fn parse(self) -> Option<(RequestDigest, Response)> {
        Some(match self {
            Line::Loglikelihood { request, log_prob, is_greedy, n_tokens } => {
                let log_prob = log_prob.parse().ok()?;
                let response = Loglikelihood { log_prob, is_greedy, n_tokens };
                (RequestDigest::from_hex(&request)?, Response::Loglikelihood(response))
            }
            Line::Rolling { request, log_prob, n_tokens } => {
                let response = Rolling { log_prob: log_prob.parse().ok()?, n_tokens };
                (RequestDigest::from_hex(&request)?, Response::Rolling(response))
            }
            Line::Generated { request, text, tokens, finish_reason } => {
                let response = Generated { text, tokens, finish_reason };
                (RequestDigest::from_hex(&request)?, Response::Generated(response))
            }
        })
    }
}

/// Returns a JSON object with the key `check` added: the first 8 bytes of the SHA-256 of what stands before it.
fn sealed(json: String) -> String {
    let open = json.strip_suffix('}').unwrap_or(&json);
    format!("{open},\"check\":\"{}\"}}", check_of(open))
}

/// Returns the object that was sealed, if it is as it was then.
fn unsealed(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let (open, check) = line.rsplit_once(",\"check\":\"")?;
    (check.strip_suffix("\"}")? == check_of(open)).then(|| format!("{open}}}"))
}

fn check_of(text: &str) -> String {
    hex(&Sha256::digest(text)[..8])
}

fn to_json(value: &impl Serialize) -> String {
    // Strings, integers and lists of them: no map with a key that is no string, no failing implementation.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::request::{LoglikelihoodRequest, Request};

    fn digest(n: u32) -> RequestDigest {
        let request = LoglikelihoodRequest { context: vec![n], continuation: vec![1] };
        Request::Loglikelihood(request).digest()
    }

    fn responses() -> Vec<(RequestDigest, Response)> {
        let loglikelihood = Loglikelihood { log_prob: -0.1 - 0.2, is_greedy: true, n_tokens: 2 };
        let generated =
            Generated { text: "a\n\"é".into(), tokens: vec![1, 2], finish_reason: FinishReason::Stop };
        vec![
            (digest(0), Response::Loglikelihood(loglikelihood)),
            (digest(1), Response::Rolling(Rolling { log_prob: f64::NEG_INFINITY, n_tokens: 9 })),
            (digest(2), Response::Generated(generated)),
        ]
    }

    fn key(compute: &str) -> JournalKey {
        JournalKey::new([("model", "abc".to_owned()), ("compute", compute.to_owned())])
    }

    #[test]
    fn responses_come_back_and_a_torn_line_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::create(&path, &key("f32"), false).unwrap();
        journal.record(&responses()[..2]).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"type\":\"rolling\",\"requ").unwrap();
        drop(file);

        let mut journal = Journal::resume(&path, &key("f32")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        journal.record(&responses()).unwrap();
        drop(journal);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
        let journal = Journal::resume(&path, &key("f32")).unwrap();
        assert_eq!(journal.len(), 3);
        for (digest, response) in responses() {
            assert_eq!(journal.get(&digest), Some(&response));
        }
    }

    #[test]
    fn every_prefix_of_a_journal_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        Journal::create(&path, &key("f32"), false).unwrap().record(&responses()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let header = whole.iter().position(|byte| *byte == b'\n').unwrap();
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let journal = Journal::resume(&path, &key("f32")).unwrap();
            let lines = whole[..len].iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(journal.len(), lines.saturating_sub(1));
            assert!(std::fs::read(&path).unwrap().len() > header);
        }
    }

    #[test]
    fn other_runs_and_other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let journal = Journal::create(&path, &key("f32"), false).unwrap();
        assert!(matches!(Journal::resume(&path, &key("f32")), Err(Error::JournalInUse { .. })));
        drop(journal);
        assert!(matches!(Journal::create(&path, &key("f32"), false), Err(Error::JournalExists { .. })));
        let error = Journal::resume(&path, &key("bf16")).unwrap_err().to_string();
        assert!(error.ends_with("journal of another run: compute is f32, here bf16"), "{error}");
        let longer = JournalKey::new([("model", "abc".to_owned())]);
        let error = Journal::resume(&path, &longer).unwrap_err().to_string();
        assert!(error.ends_with("compute is f32, here not given"), "{error}");
        drop(Journal::create(&path, &key("bf16"), true).unwrap());
        assert!(Journal::resume(&path, &key("bf16")).unwrap().is_empty());
        for other in ["text without a line feed", "text\n", "{\"a\":1}\n"] {
            std::fs::write(&path, other).unwrap();
            assert!(matches!(Journal::resume(&path, &key("f32")), Err(Error::NoJournal { .. })), "{other}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        Journal::create(&path, &key("f32"), false).unwrap().record(&responses()).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for (from, to) in
            [("\"n_tokens\":9", "\"n_tokens\":8"), ("-inf", "-5"), ("\"rolling\"", "\"Rolling\"")]
        {
            assert!(whole.contains(from), "{whole}");
            std::fs::write(&path, whole.replace(from, to)).unwrap();
            let error = Journal::resume(&path, &key("f32")).unwrap_err();
            assert!(matches!(error, Error::JournalLine { line: 3, .. }), "{error}");
        }
    }
}
