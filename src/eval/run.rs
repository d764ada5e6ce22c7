//! A run over suites: documents to requests before the engine, responses to results after it.

mod data_sets;
mod digest;
mod error;
mod shots;

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::data::{DataSet, Document, hex};
use super::encode::{Context, Encoder};
use super::prompt::{Message, Shot};
use super::request::{GenerateRequest, Request, Response};
use super::score::{Metric, clustered_stderr};
use super::stats::{figure_interval, mean_interval};
use super::suite::{ChatUse, Prompting, Suite, TaskSpec};
use super::task::{Ask, Inquiry, Outcome, Scores, Task};
use super::template::Template;
use crate::hub::DatasetFile;

pub use data_sets::{DataSets, Purpose, check_names, data_names, hub_files};
use digest::PromptsDigest;
pub use error::Error;
use shots::ShotPool;

/// What the user says about a run beside the suites.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Examples before each question, instead of what the suite says.
    pub few_shot: Option<usize>,
    /// On or off whatever the suite says; auto leaves it to the suite.
    pub chat: ChatUse,
    /// Most documents of each task; the suite's own limit holds too.
    pub limit: Option<usize>,
    pub seed: u64,
    /// Files of data sets by name.
    pub data: HashMap<String, PathBuf>,
    /// Where files on a hub lie here ([`hub_files`] says which are needed).
    pub hub: HashMap<DatasetFile, PathBuf>,
}

/// Renders the messages of a chat up to where the model answers.
pub type RenderChat<'a> = dyn Fn(&[Message]) -> Result<String, ChatFailure> + 'a;

/// Why a chat template made no prompt.
#[derive(Clone, Debug)]
pub struct ChatFailure {
    pub why: String,
    pub hint: Option<String>,
}

/// What a plan needs to know of the model.
pub struct ModelSide<'a> {
    pub encoder: Encoder<'a>,
    /// `None` if the model has no chat template.
    pub chat: Option<&'a RenderChat<'a>>,
    /// Most tokens of a sequence.
    pub context_length: usize,
}

/// A run as far as it needs no model.
pub struct Plan<'s> {
    pub requests: Vec<Request>,
    pub tasks: Vec<PlannedTask<'s>>,
    /// What the user should know. One sentence each.
    pub notes: Vec<String>,
}

/// A task with its documents and their requests.
pub struct PlannedTask<'s> {
    pub suite: &'s Suite,
    pub spec: &'s TaskSpec,
    pub data: Arc<DataSet>,
    /// Examples before each question, and the file they come from.
    pub shots: Option<(usize, Arc<DataSet>)>,
    /// Whether prompts go through the chat template.
    pub is_chat: bool,
    /// Of what the suite asks, before tokenizer and chat template, lower-case hex.
    pub prompts_sha256: String,
    pub documents: Vec<PlannedDocument>,
    /// The first document's prompt, as an example.
    pub first_prompt: Option<String>,
}

/// A document and what is asked about it.
pub struct PlannedDocument {
    pub document: Document,
    pub cluster: Option<String>,
    /// Its name, unique in the task, if the suite names documents.
    pub item: Option<String>,
    /// Without system text and examples; empty if the task has no prompts.
    pub question: String,
    /// Its requests, or why there are none.
    pub requests: Result<Range<usize>, String>,
    /// Whether a prompt lost its beginning, for lack of room.
    pub is_truncated: bool,
}

impl<'s> Plan<'s> {
    /// Returns the requests of all tasks of all suites.
    ///
    /// Errors if data is missing or malformed, a document breaks a task's templates, there are fewer examples
    /// than asked for, or a chat template is asked for and there is none.
    pub fn new(suites: &'s [Suite], options: &RunOptions, model: &ModelSide) -> Result<Plan<'s>, Error> {
        check_names(suites, options)?;
        let mut plan = Plan { requests: Vec::new(), tasks: Vec::new(), notes: Vec::new() };
        let mut data_sets = DataSets::default();
        for suite in suites {
            for spec in &suite.tasks {
                let task = plan.task(suite, spec, options, model, &mut data_sets)?;
                plan.tasks.push(task);
            }
        }
        Ok(plan)
    }

    fn task(
        &mut self,
        suite: &'s Suite,
        spec: &'s TaskSpec,
        options: &RunOptions,
        model: &ModelSide,
        data_sets: &mut DataSets,
    ) -> Result<PlannedTask<'s>, Error> {
        let data = data_sets.get(suite, &spec.data, options)?;
        let mut writer = Writer {
            spec,
            model,
            seed: options.seed,
            prompting: None,
            is_chat: false,
            pool: None,
            digest: PromptsDigest::default(),
        };
        if let Some(prompting) = &spec.prompting {
            writer.is_chat = is_chat(spec, prompting, options, model)?;
            writer.prompting = Some(prompting);
            let n = options.few_shot.unwrap_or(prompting.few_shot.n);
            if n > 0 {
                let from = prompting
                    .few_shot
                    .from
                    .as_deref()
                    .ok_or_else(|| Error::NoExamples { suite: suite.path.clone(), task: spec.id.clone() })?;
                let set = data_sets.get(suite, from, options)?;
                writer.pool = Some(ShotPool::new(set, n, prompting.few_shot.mode, options.seed, &data));
            }
        } else {
            self.note_unused(spec, options);
        }
        let limit = [spec.limit, options.limit].into_iter().flatten().min().unwrap_or(usize::MAX);
        let mut documents = Vec::new();
        let mut first_prompt = None;
        for document in data.documents.iter().take(limit) {
            let (planned, prompt) = self.document(document, &mut writer)?;
            first_prompt = first_prompt.or(prompt);
            documents.push(planned);
        }
        error::check_items(spec, &documents)?;
        let shots = writer.pool.as_ref().map(|pool| (pool.n, pool.set.clone()));
        let prompts_sha256 = writer.digest.hex();
        Ok(PlannedTask {
            suite,
            spec,
            data,
            shots,
            is_chat: writer.is_chat,
            prompts_sha256,
            documents,
            first_prompt,
        })
    }

    fn note_unused(&mut self, spec: &TaskSpec, options: &RunOptions) {
        if options.few_shot.is_some_and(|n| n > 0) {
            self.notes.push(format!("{}: a {} task takes no examples", spec.id, spec.task_type.name));
        }
        if options.chat == ChatUse::On {
            self.notes.push(format!("{}: a {} task uses no chat template", spec.id, spec.task_type.name));
        }
    }

    fn document(
        &mut self,
        document: &Document,
        writer: &mut Writer,
    ) -> Result<(PlannedDocument, Option<String>), Error> {
        let spec = writer.spec;
        let inquiry = spec.task.inquire(document).map_err(|source| error::of(document, spec, source))?;
        let render = |template: &Option<Template>| {
            let rendered = template.as_ref().map(|template| template.render(&document.fields)).transpose();
            rendered.map_err(|source| error::of(document, spec, source.into()))
        };
        let (cluster, item) = (render(&spec.cluster)?, render(&spec.item)?);
        let prompt = writer.prompt(document, &inquiry)?;
        let context = Context::new(prompt.as_deref().unwrap_or_default());
        let begin = self.requests.len();
        let mut is_truncated = false;
        let mut failure = None;
        for ask in &inquiry.asks {
            match writer.request(document, &context, ask) {
                Ok((request, truncated)) => {
                    is_truncated |= truncated;
                    self.requests.push(request);
                }
                Err(why) => {
                    failure = Some(why);
                    break;
                }
            }
        }
        let requests = match failure {
            None => Ok(begin..self.requests.len()),
            Some(why) => {
                self.requests.truncate(begin);
                is_truncated = false;
                Err(why)
            }
        };
        let (document, question) = (document.clone(), inquiry.question);
        Ok((PlannedDocument { document, cluster, item, question, requests, is_truncated }, prompt))
    }

    /// Returns what the responses, in the requests' order, come to.
    pub fn finish(&self, responses: &[Response]) -> Result<Vec<TaskResult>, Error> {
        self.tasks.iter().map(|task| self.finish_task(task, responses)).collect()
    }

    fn finish_task(&self, task: &PlannedTask, responses: &[Response]) -> Result<TaskResult, Error> {
        let mut samples = Vec::with_capacity(task.documents.len());
        let mut digest = Sha256::new();
        for planned in &task.documents {
            let outcome = match &planned.requests {
                Ok(range) => {
                    self.requests[range.clone()]
                        .iter()
                        .for_each(|request| digest.update(request.digest().hex()));
                    let outcome = task.spec.task.score(&planned.document, &responses[range.clone()]);
                    Ok(outcome.map_err(|source| error::of(&planned.document, task.spec, source))?)
                }
                Err(why) => Err(why.clone()),
            };
            let scores = match &outcome {
                Ok(outcome) => outcome.scores.clone(),
                Err(_) => task
                    .spec
                    .task
                    .failed(&planned.document)
                    .map_err(|source| error::of(&planned.document, task.spec, source))?,
            };
            samples.push(Sample {
                document: planned.document.index,
                line: planned.document.place.line,
                cluster: planned.cluster.clone(),
                item: planned.item.clone(),
                question: planned.question.clone(),
                is_truncated: planned.is_truncated,
                outcome,
                scores,
            });
        }
        let scores: Vec<&Scores> = samples.iter().map(|sample| &sample.scores).collect();
        let mut metrics = task.spec.task.aggregate(&scores);
        add_intervals(&mut metrics, &samples);
        add_figure_intervals(&mut metrics, task.spec.task.as_ref(), &scores, &samples);
        Ok(TaskResult {
            metrics,
            explanation: task.spec.task.explain(&scores),
            n_errors: samples.iter().filter(|sample| sample.outcome.is_err()).count(),
            n_truncated: samples.iter().filter(|sample| sample.is_truncated).count(),
            requests_sha256: hex(&digest.finalize()),
            samples,
        })
    }
}

/// Adds intervals, and clustered standard errors, to the figures that are means of a score over the documents that have it.
fn add_intervals(metrics: &mut [Metric], samples: &[Sample]) {
    let is_clustered = samples.iter().all(|sample| sample.cluster.is_some());
    for metric in metrics.iter_mut().filter(|metric| metric.stderr.is_some()) {
        let scored: Vec<(f64, &str)> = samples
            .iter()
            .filter_map(|sample| {
                let score = sample.scores.get(&metric.name)?;
                Some((*score, sample.cluster.as_deref().unwrap_or_default()))
            })
            .collect();
        if scored.len() != metric.n {
            continue;
        }
        let (values, clusters): (Vec<f64>, Vec<&str>) = scored.into_iter().unzip();
        if is_clustered {
            metric.clustered_stderr = clustered_stderr(&values, &clusters);
        }
        let numbers = is_clustered.then(|| numbered(&clusters));
        metric.ci95 = mean_interval(&values, numbers.as_deref(), 0.95);
    }
}

/// Adds intervals to the figures that are no means.
fn add_figure_intervals(metrics: &mut [Metric], task: &dyn Task, scores: &[&Scores], samples: &[Sample]) {
    let clusters: Option<Vec<&str>> = samples.iter().map(|sample| sample.cluster.as_deref()).collect();
    let clusters = clusters.map_or_else(|| (0..samples.len()).collect(), |clusters| numbered(&clusters));
    for metric in metrics.iter_mut().filter(|metric| metric.stderr.is_none() && metric.ci95.is_none()) {
        let addition = task.addition(&metric.name, scores);
        metric.ci95 = addition.and_then(|addition| figure_interval(&addition, &clusters, 0.95));
    }
}

/// Returns the clusters' numbers, from 0 in order of appearance.
fn numbered<'c>(clusters: &[&'c str]) -> Vec<usize> {
    let mut known: HashMap<&'c str, usize> = HashMap::new();
    let mut number = |cluster: &&'c str| {
        let next = known.len();
        *known.entry(*cluster).or_insert(next)
    };
    clusters.iter().map(&mut number).collect()
}

/// What a task came to.
#[derive(Clone, Debug)]
pub struct TaskResult {
    pub metrics: Vec<Metric>,
    /// What the report shows beside the figures: a key and its value.
    pub explanation: Option<(&'static str, Json)>,
    /// Documents that could not be asked about; they score as wrong.
    pub n_errors: usize,
    /// Documents with a prompt that lost its beginning, for lack of room.
    pub n_truncated: usize,
    /// Of the requests' digests in order, lower-case hex: equal if and only if the same was asked.
    pub requests_sha256: String,
    pub samples: Vec<Sample>,
}

/// What a document came to.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Position in its data set, from 0.
    pub document: usize,
    pub line: usize,
    pub cluster: Option<String>,
    pub item: Option<String>,
    /// Without system text and examples; empty if the task has no prompts.
    pub question: String,
    pub is_truncated: bool,
    /// Or why the model was not asked.
    pub outcome: Result<Outcome, String>,
    pub scores: Scores,
}

impl Sample {
    /// Returns the line of samples.jsonl; `suite` and `task` are their names.
    pub fn json(&self, suite: &str, task: &str) -> Json {
        let mut line = serde_json::Map::new();
        line.insert("suite".into(), suite.into());
        line.insert("task".into(), task.into());
        line.insert("document".into(), self.document.into());
        line.insert("line".into(), self.line.into());
        if let Some(item) = &self.item {
            line.insert("item".into(), item.as_str().into());
        }
        if let Some(cluster) = &self.cluster {
            line.insert("cluster".into(), cluster.as_str().into());
        }
        line.insert("truncated".into(), self.is_truncated.into());
        if !self.question.is_empty() {
            line.insert("question".into(), self.question.as_str().into());
        }
        match &self.outcome {
            Ok(outcome) => {
                line.insert("target".into(), outcome.target.clone());
                line.insert("prediction".into(), outcome.prediction.clone());
                line.extend(outcome.details.clone());
            }
            Err(why) => {
                line.insert("error".into(), why.as_str().into());
            }
        }
        line.insert(
            "scores".into(),
            self.scores.iter().map(|(name, score)| (name.clone(), Json::from(*score))).collect(),
        );
        Json::Object(line)
    }
}

fn is_chat(
    spec: &TaskSpec,
    prompting: &Prompting,
    options: &RunOptions,
    model: &ModelSide,
) -> Result<bool, Error> {
    let wanted = if options.chat == ChatUse::Auto { prompting.chat } else { options.chat };
    match (wanted, model.chat) {
        (ChatUse::On, None) => Err(Error::NoChatTemplate { task: spec.id.clone() }),
        (ChatUse::Off, _) | (ChatUse::Auto, None) => Ok(false),
        (ChatUse::On | ChatUse::Auto, Some(_)) => Ok(true),
    }
}

/// Writes the prompts and requests of one task.
struct Writer<'a> {
    spec: &'a TaskSpec,
    model: &'a ModelSide<'a>,
    seed: u64,
    prompting: Option<&'a Prompting>,
    is_chat: bool,
    pool: Option<ShotPool>,
    digest: PromptsDigest,
}

impl Writer<'_> {
    /// Returns the prompt's text, if the task has prompts.
    fn prompt(&mut self, document: &Document, inquiry: &Inquiry) -> Result<Option<String>, Error> {
        self.digest.add_asks(&inquiry.asks);
        let Some(prompting) = self.prompting else { return Ok(None) };
        let shots: Vec<Shot> = match &mut self.pool {
            Some(pool) => pool.shots(document, self.spec)?,
            None => Vec::new(),
        };
        let framing = &prompting.framing;
        self.digest.add_prompt(framing, &shots, &inquiry.question);
        match self.model.chat.filter(|_| self.is_chat) {
            None => Ok(Some(framing.plain(&shots, &inquiry.question))),
            Some(render) => render(&framing.messages(&shots, &inquiry.question))
                .map(Some)
                .map_err(|failure| Error::Chat { task: self.spec.id.clone(), failure }),
        }
    }

    /// Returns the request for one ask, and whether its prompt will lose its beginning; or why there is none.
    fn request(&self, document: &Document, prompt: &Context, ask: &Ask) -> Result<(Request, bool), String> {
        let room = self.model.context_length;
        let encoder = &self.model.encoder;
        match ask {
            Ask::Likelihood(answer) => {
                let delimiter = match self.prompting {
                    Some(prompting) if !self.is_chat => prompting.framing.target_delimiter.as_str(),
                    _ => "",
                };
                let request = encoder.loglikelihood(prompt, &format!("{delimiter}{answer}"));
                let request = request.map_err(|error| error.to_string())?;
                let n_answer = request.continuation.len();
                if n_answer > room {
                    return Err(format!("an answer has {n_answer} tokens, the context has room for {room}"));
                }
                let is_truncated = request.context.len() + n_answer > room + 1;
                Ok((Request::Loglikelihood(request), is_truncated))
            }
            Ask::Text(text) => {
                let request = encoder.rolling(text).map_err(|error| error.to_string())?;
                Ok((Request::Rolling(request), false))
            }
            Ask::Generation { max_tokens, stop, sampling } => {
                let prompt = encoder.encode(prompt.text()).map_err(|error| error.to_string())?;
                if prompt.is_empty() {
                    return Err("the prompt has no tokens".to_owned());
                }
                if prompt.len() >= room {
                    return Err(format!(
                        "the prompt has {} tokens, the context has room for {room}",
                        prompt.len()
                    ));
                }
                Ok((
                    Request::Generate(GenerateRequest {
                        prompt,
                        max_tokens: *max_tokens,
                        stop: stop.clone(),
                        sampling: *sampling,
                        seed: self.seed,
                        index: document.index as u64,
                    }),
                    false,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests;
