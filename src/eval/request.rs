//! What a task asks of a model, and what it gets back: token ids in, numbers or text out.
//!
//! Requests know neither documents nor models. [`Request::digest`] names a request for good, so that a
//! journal can hand its response to a later run.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Asks for the log-probability of `continuation` behind `context`; neither may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LoglikelihoodRequest {
    pub context: Vec<u32>,
    pub continuation: Vec<u32>,
}

/// Answer to a [`LoglikelihoodRequest`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loglikelihood {
    /// Natural logarithm; the f64 sum, in order, of one f32 log-probability per token of the continuation.
    pub log_prob: f64,
    /// True if every token of the continuation is the model's first choice (of equal logits the lowest id).
    pub is_greedy: bool,
    /// Tokens of the continuation.
    pub n_tokens: usize,
}

/// Asks for the log-probability of a text of any length, cut into windows of the model's context.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RollingRequest {
    /// All of them are predicted.
    pub tokens: Vec<u32>,
    /// What the first token is predicted from: BOS, or EOS for a vocabulary without one.
    pub prefix: u32,
}

/// Answer to a [`RollingRequest`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rolling {
    /// Natural logarithm, summed as [`Loglikelihood::log_prob`] is, over all windows.
    pub log_prob: f64,
    /// Tokens predicted.
    pub n_tokens: usize,
}

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// 0 takes the most likely token, of equal ones the lowest id.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    #[serde(default)]
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities reach this sum; 1 keeps all.
    #[serde(default = "one")]
    pub top_p: f32,
    /// Keep tokens at least this many times as likely as the most likely one; 0 keeps all.
    #[serde(default)]
    pub min_p: f32,
}

fn one() -> f32 {
    1.0
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
}

/// Asks for text that continues `prompt`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    pub prompt: Vec<u32>,
    /// Most tokens generated.
    pub max_tokens: usize,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    pub sampling: Sampling,
    /// Seed of the run; with `index` and the position it determines every draw.
    pub seed: u64,
    /// Tells requests apart that are otherwise equal (repeats of one prompt).
    pub index: u64,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it.
    EndOfGeneration,
    /// A stop string came.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

/// Answer to a [`GenerateRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generated {
    /// Without the stop string and what follows it, without end-of-generation tokens.
    pub text: String,
    /// Every token generated, the last one included whatever it was.
    pub tokens: Vec<u32>,
    pub finish_reason: FinishReason,
}

/// Any request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    Loglikelihood(LoglikelihoodRequest),
    Rolling(RollingRequest),
    Generate(GenerateRequest),
}

/// The response to a [`Request`], of the same kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    Loglikelihood(Loglikelihood),
    Rolling(Rolling),
    Generated(Generated),
}

/// SHA-256 of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestDigest([u8; 32]);

impl RequestDigest {
    /// Returns 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads what [`RequestDigest::hex`] writes.
    pub fn from_hex(hex: &str) -> Option<Self> {
        if hex.len() != 64 || !hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(RequestDigest(bytes))
    }
}

impl std::fmt::Debug for RequestDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.hex())
    }
}

impl Request {
    /// Returns the SHA-256 over a tag, then every field: numbers little-endian, lists behind their length
    /// (u64). It stays the same in later versions; journals rely on it.
    pub fn digest(&self) -> RequestDigest {
        let mut hasher = Hasher(Sha256::new());
        match self {
            Request::Loglikelihood(request) => {
                hasher.text("lctl.loglikelihood.1");
                hasher.tokens(&request.context);
                hasher.tokens(&request.continuation);
            }
            Request::Rolling(request) => {
                hasher.text("lctl.rolling.1");
                hasher.tokens(&request.tokens);
                hasher.number(u64::from(request.prefix));
            }
            Request::Generate(request) => hasher.generate(request),
        }
        RequestDigest(hasher.0.finalize().into())
    }

    /// Returns the number of tokens the request names.
    pub fn n_tokens(&self) -> usize {
        match self {
            Request::Loglikelihood(request) => request.context.len() + request.continuation.len(),
            Request::Rolling(request) => request.tokens.len(),
            Request::Generate(request) => request.prompt.len(),
        }
    }
}

struct Hasher(Sha256);

impl Hasher {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text);
    }

    fn tokens(&mut self, tokens: &[u32]) {
        self.number(tokens.len() as u64);
        for token in tokens {
            self.0.update(token.to_le_bytes());
        }
    }

    fn generate(&mut self, request: &GenerateRequest) {
        self.text("lctl.generate.1");
        self.tokens(&request.prompt);
        self.number(request.max_tokens as u64);
        self.number(request.stop.len() as u64);
        request.stop.iter().for_each(|stop| self.text(stop));
        let Sampling { temperature, top_k, top_p, min_p } = request.sampling;
        self.number(u64::from(temperature.to_bits()));
        self.number(top_k as u64);
        self.number(u64::from(top_p.to_bits()));
        self.number(u64::from(min_p.to_bits()));
        self.number(request.seed);
        self.number(request.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loglikelihood(context: &[u32], continuation: &[u32]) -> Request {
        let (context, continuation) = (context.to_vec(), continuation.to_vec());
        Request::Loglikelihood(LoglikelihoodRequest { context, continuation })
    }

    #[test]
    fn digests_are_what_they_always_were() {
        // Computed with Python's hashlib over the fields as documented.
        assert_eq!(loglikelihood(&[1, 2, 3], &[4]).digest().hex(), LOGLIKELIHOOD);
        let rolling = Request::Rolling(RollingRequest { tokens: vec![1, 2, 3], prefix: 1 });
        assert_eq!(rolling.digest().hex(), ROLLING);
        let generate = Request::Generate(GenerateRequest {
            prompt: vec![7],
            max_tokens: 5,
            stop: vec!["\n".into()],
            sampling: Sampling { temperature: 0.5, top_k: 40, top_p: 0.95, min_p: 0.05 },
            seed: 3,
            index: 1,
        });
        assert_eq!(generate.digest().hex(), GENERATE);
    }

    const LOGLIKELIHOOD: &str = "471f8788b7aedcdc2110fd08c8ffe05270e2e53c0b491bf43b2f8bfebaab98a2";
    const ROLLING: &str = "ad617f5f7da56e3c86744376274ce145aef23e7ee81a441a142e5a46edf0f35c";
    const GENERATE: &str = "a05da2717a03cf76e798fea44207af5d5eb1a1477c4eb26414e062a6f01aea55";

    #[test]
    fn digests_tell_where_the_context_ends() {
        assert_ne!(loglikelihood(&[1, 2], &[3]).digest(), loglikelihood(&[1], &[2, 3]).digest());
    }

    #[test]
    fn hex_comes_back() {
        let digest = loglikelihood(&[1], &[2]).digest();
        assert_eq!(RequestDigest::from_hex(&digest.hex()), Some(digest));
        for bad in ["", "00", &"G".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            assert_eq!(RequestDigest::from_hex(bad), None, "{bad}");
        }
    }
}
