//! Requests in, responses out: checked, planned, computed, recorded.

use std::time::{Duration, Instant};

use super::plan::{Path, Tree};
use super::request::{
    GenerateRequest, Generated, Loglikelihood, LoglikelihoodRequest, Request, RequestDigest, Response,
    Rolling, RollingRequest,
};
use super::run_tree::{Listener, run_tree};
use super::{Error, Journal, LanguageModel, generate};
use crate::model::Scored;
use crate::text::Tokenizer;

/// Bounds of memory and batches. Responses do not depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most tokens computed at once.
    pub batch_tokens: usize,
    /// Most bytes of keys and values.
    pub cache_bytes: usize,
    /// Whether what requests share is computed once.
    pub prefix_cache: bool,
}

impl EngineOptions {
    /// Returns bounds that suit a model; memory is taken as it is needed.
    pub fn new(model: &impl LanguageModel) -> Self {
        let (batch_tokens, cache_bytes) = (model.batch_tokens(), model.cache_budget());
        EngineOptions { batch_tokens, cache_bytes, prefix_cache: true }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    pub tokens_done: usize,
    /// All that will be computed; of generated text the most there can be.
    pub tokens_total: usize,
    /// Those taken from the journal are among them.
    pub responses_done: usize,
    pub responses_total: usize,
    pub elapsed: Duration,
}

impl Progress {
    /// Returns the tokens computed per second so far.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens_done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// What a run came to. It depends on what the journal held, so it is no part of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Responses taken from the journal.
    pub resumed: usize,
    /// Log-likelihood requests whose context lost its first tokens, because the model's has no room.
    pub truncated: usize,
    /// Tokens the model computed.
    pub computed_tokens: usize,
    /// Tokens it would have computed if every request's whole input went in, equal inputs once.
    pub plain_tokens: usize,
}

/// Responses in the requests' order, and what they took.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub responses: Vec<Response>,
    pub usage: Usage,
}

/// Answers requests with a model.
pub struct Engine<'a, M> {
    pub(super) model: &'a M,
    pub(super) options: EngineOptions,
    tokenizer: Option<&'a Tokenizer>,
}

/// A window of a request, as a [`Path`].
#[derive(Clone, Copy)]
struct Window {
    request: usize,
    /// Its number within the request.
    number: usize,
}

impl<'a, M: LanguageModel> Engine<'a, M> {
    pub fn new(model: &'a M, options: EngineOptions) -> Self {
        Engine { model, options, tokenizer: None }
    }

    /// Returns the engine with the model's tokenizer, which requests for generated text need.
    pub fn with_tokenizer(self, tokenizer: &'a Tokenizer) -> Self {
        Engine { tokenizer: Some(tokenizer), ..self }
    }

    /// Returns the response to each request; those that `journal` holds are taken from it, the others added.
    ///
    /// A log-likelihood request longer than the context loses the first tokens of its context, as in lm-eval:
    /// of `context + continuation` the last `context_length + 1` tokens stay, and all but the last go in.
    ///
    /// Errors on a request that is empty, has a token outside the vocabulary or an answer longer than the
    /// context; if one request's keys and values exceed the budget; if the model or the journal fails.
    pub fn run(
        &self,
        requests: &[Request],
        mut journal: Option<&mut Journal>,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Outcome, Error> {
        for (index, request) in requests.iter().enumerate() {
            self.check(index, request)?;
        }
        let digests: Vec<RequestDigest> = match journal {
            Some(_) => requests.iter().map(Request::digest).collect(),
            None => Vec::new(),
        };
        let mut responses: Vec<Option<Response>> = requests.iter().map(trivial).collect();
        let mut usage = Usage::default();
        if let Some(journal) = &journal {
            for (index, request) in requests.iter().enumerate() {
                if let Some(response) = known(journal, request, &digests[index])? {
                    responses[index] = Some(response);
                    usage.resumed += 1;
                }
            }
        }
        let max_length = self.model.context_length();
        let (paths, windows) = paths(requests, &responses, max_length);
        usage.truncated = requests.iter().filter(|request| is_truncated(request, max_length)).count();
        let tree = Tree::new(&paths, self.options.prefix_cache);
        usage.computed_tokens = tree.n_tokens();
        usage.plain_tokens = tree.n_plain_tokens();
        let responses_done = responses.iter().flatten().count();
        let generations = generations(requests, &responses);
        let mut collector = Collector {
            requests,
            digests: &digests,
            windows: &windows,
            partial: partial(&windows, requests.len()),
            responses: &mut responses,
            journal: journal.as_deref_mut(),
            unrecorded: Vec::new(),
            begun: Instant::now(),
            state: Progress {
                tokens_done: 0,
                tokens_total: usage.computed_tokens + generations.iter().map(most_tokens).sum::<usize>(),
                responses_done,
                responses_total: requests.len(),
                elapsed: Duration::ZERO,
            },
            progress,
        };
        run_tree(self.model, &self.options, &paths, &tree, &mut collector)?;
        if let Some(tokenizer) = self.tokenizer {
            let mut on_done = |index, generated, n_tokens| collector.text_done(index, generated, n_tokens);
            generate::generate(self.model, tokenizer, &generations, &self.options, &mut on_done)?;
        }
        let n_generated = collector.state.tokens_done - usage.computed_tokens;
        usage.computed_tokens += n_generated;
        usage.plain_tokens += n_generated;
        if let Some(journal) = journal {
            journal.sync()?;
        }
        // Every request had a response in the journal, was a text that was generated, or had at least one path; all
        // paths were reported.
        let responses = responses.into_iter().map(|response| response.expect("all paths end")).collect();
        Ok(Outcome { responses, usage })
    }

    fn check(&self, index: usize, request: &Request) -> Result<(), Error> {
        let empty = |part| Error::Empty { index, part };
        let max = self.model.context_length();
        let parts: [&[u32]; 2] = match request {
            Request::Loglikelihood(LoglikelihoodRequest { context, continuation }) => {
                if context.is_empty() {
                    return Err(empty("context"));
                }
                if continuation.is_empty() {
                    return Err(empty("continuation"));
                }
                if continuation.len() > max {
                    let found = continuation.len();
                    return Err(Error::TooLong { index, part: "continuation", found, max });
                }
                [context, continuation]
            }
            Request::Rolling(RollingRequest { tokens, prefix }) => [std::slice::from_ref(prefix), tokens],
            Request::Generate(request) => {
                self.tokenizer.ok_or(Error::NoTokenizer { index })?;
                return generate::check(index, request, self.model);
            }
        };
        let vocab_size = self.model.vocab_size();
        match parts.into_iter().flatten().find(|token| **token as usize >= vocab_size) {
            Some(token) => Err(Error::TokenOutOfRange { index, token: *token, vocab_size }),
            None => Ok(()),
        }
    }
}

/// Returns the response that needs no model: an empty text has probability 1.
fn trivial(request: &Request) -> Option<Response> {
    match request {
        Request::Rolling(request) if request.tokens.is_empty() => {
            Some(Response::Rolling(Rolling { log_prob: 0.0, n_tokens: 0 }))
        }
        _ => None,
    }
}

/// Returns what the journal holds for a request.
fn known(journal: &Journal, request: &Request, digest: &RequestDigest) -> Result<Option<Response>, Error> {
    let response = journal.get(digest).cloned();
    match (request, &response) {
        (_, None)
        | (Request::Loglikelihood(_), Some(Response::Loglikelihood(_)))
        | (Request::Rolling(_), Some(Response::Rolling(_)))
        | (Request::Generate(_), Some(Response::Generated(_))) => Ok(response),
        _ => Err(Error::JournalKind { path: journal.path().to_owned(), digest: digest.hex() }),
    }
}

/// Returns the requests for generated text that have no response yet, with their indexes.
fn generations<'a>(
    requests: &'a [Request],
    responses: &[Option<Response>],
) -> Vec<(usize, &'a GenerateRequest)> {
    let mut generations = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        if let (Request::Generate(request), None) = (request, &responses[index]) {
            generations.push((index, request));
        }
    }
    generations
}

/// Returns the most tokens that a text can take, its prompt's among them.
fn most_tokens((_, request): &(usize, &GenerateRequest)) -> usize {
    request.prompt.len() + request.max_tokens
}

fn is_truncated(request: &Request, max_length: usize) -> bool {
    match request {
        Request::Loglikelihood(request) => {
            request.context.len() + request.continuation.len() > max_length + 1
        }
        Request::Rolling(_) | Request::Generate(_) => false,
    }
}

/// Returns the paths of the requests that have no response yet, and which request each belongs to.
fn paths<'a>(
    requests: &'a [Request],
    responses: &[Option<Response>],
    max_length: usize,
) -> (Vec<Path<'a>>, Vec<Window>) {
    let mut paths = Vec::new();
    let mut windows = Vec::new();
    for (index, request) in requests.iter().enumerate().filter(|(index, _)| responses[*index].is_none()) {
        let before = paths.len();
        match request {
            Request::Loglikelihood(LoglikelihoodRequest { context, continuation }) => {
                paths.push(Path::new(context, continuation, max_length));
            }
            Request::Rolling(request) => paths.extend(rolling_windows(request, max_length)),
            Request::Generate(_) => {}
        }
        windows.extend((0..paths.len() - before).map(|number| Window { request: index, number }));
    }
    (paths, windows)
}

/// Returns lm-eval's windows with one token of context: each predicts up to `max_length` tokens, the first
/// from the prefix token, later ones from the token before; a last one that predicts fewer sees more of what
/// came before instead. Every token is predicted once.
pub(super) fn rolling_windows(request: &RollingRequest, max_length: usize) -> Vec<Path<'_>> {
    let tokens = &request.tokens;
    let first = tokens.len().min(max_length);
    if first == 0 {
        return Vec::new();
    }
    let mut windows = vec![Path::new(std::slice::from_ref(&request.prefix), &tokens[..first], max_length)];
    let mut predicted = first;
    while predicted < tokens.len() {
        let end = tokens.len().min(predicted + max_length);
        let begin = end - max_length - 1;
        windows.push(Path::within(&tokens[begin..end], predicted - begin));
        predicted = end;
    }
    windows
}

/// Returns room for the sums of each request's windows.
fn partial(windows: &[Window], n_requests: usize) -> Vec<Vec<Option<Loglikelihood>>> {
    let mut partial = vec![Vec::new(); n_requests];
    for window in windows {
        partial[window.request].push(None);
    }
    partial
}

/// Puts the windows' scores together.
struct Collector<'a, 'j> {
    requests: &'a [Request],
    digests: &'a [RequestDigest],
    windows: &'a [Window],
    partial: Vec<Vec<Option<Loglikelihood>>>,
    responses: &'a mut [Option<Response>],
    journal: Option<&'j mut Journal>,
    unrecorded: Vec<(RequestDigest, Response)>,
    begun: Instant,
    state: Progress,
    progress: &'a mut dyn FnMut(&Progress),
}

impl Collector<'_, '_> {
    /// Takes a generated text, and the number of tokens computed since the last one.
    fn text_done(&mut self, request: usize, generated: Generated, n_tokens: usize) -> Result<(), Error> {
        let response = Response::Generated(generated);
        if self.journal.is_some() {
            self.unrecorded.push((self.digests[request], response.clone()));
        }
        self.responses[request] = Some(response);
        self.state.responses_done += 1;
        self.batch_done(n_tokens)
    }
}

impl Listener for Collector<'_, '_> {
    fn path_done(&mut self, path: usize, scored: &[Scored]) {
        let Window { request, number } = self.windows[path];
        self.partial[request][number] = Some(Loglikelihood {
            log_prob: scored.iter().map(|scored| f64::from(scored.log_prob)).sum(),
            is_greedy: scored.iter().all(|scored| scored.is_greedy),
            n_tokens: scored.len(),
        });
        let Some(parts) = self.partial[request].iter().copied().collect::<Option<Vec<_>>>() else {
            return;
        };
        let response = match &self.requests[request] {
            Request::Rolling(_) => Response::Rolling(Rolling {
                log_prob: parts.iter().map(|part| part.log_prob).sum(),
                n_tokens: parts.iter().map(|part| part.n_tokens).sum(),
            }),
            _ => Response::Loglikelihood(parts[0]),
        };
        if self.journal.is_some() {
            self.unrecorded.push((self.digests[request], response.clone()));
        }
        self.responses[request] = Some(response);
        self.state.responses_done += 1;
    }

    fn batch_done(&mut self, n_tokens: usize) -> Result<(), Error> {
        if let Some(journal) = &mut self.journal {
            journal.record(&self.unrecorded)?;
            self.unrecorded.clear();
        }
        self.state.tokens_done += n_tokens;
        self.state.elapsed = self.begun.elapsed();
        (self.progress)(&self.state);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
