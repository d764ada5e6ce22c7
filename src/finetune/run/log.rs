//! What a run writes down as it goes on: a line per step and validation, for people, spreadsheets and TensorBoard.
//!
//! Of several processes the first writes, and says in the JSONL's first line how many they are.
//!
//! A checkpoint knows the length of each file; a run that goes on cuts them there, so that they hold every event once.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::error::Error;
use super::tensorboard;
use crate::finetune::recipe::Log;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Step(StepEvent),
    Validation(ValidationEvent),
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// From 1.
    pub step: u64,
    /// From 0.
    pub epoch: u32,
    /// Nats per trained token; of pairs the mean loss.
    pub loss: f64,
    pub lr: f64,
    /// Before it is clipped.
    pub grad_norm: f64,
    /// Tokens of the step, and those of them that are trained.
    pub tokens: u64,
    pub targets: u64,
    /// Of pairs: the share whose chosen answer gained on the rejected one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy: Option<f64>,
    /// Of pairs: mean difference of their rewards.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub margin: Option<f64>,
    /// What it took.
    pub seconds: f64,
}

/// What a validation came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationEvent {
    /// Steps done before it.
    pub step: u64,
    pub loss: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy: Option<f64>,
    pub seconds: f64,
}

/// The event that the JSONL of several processes begins with.
const RUN: &str = "run";

const COLUMNS: &str = "event,step,epoch,loss,lr,grad_norm,tokens,targets,accuracy,margin,seconds\n";

impl Event {
    fn json_line(&self) -> String {
        // numbers under keys that are texts
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    fn csv_line(&self) -> String {
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        match self {
            Event::Step(e) => format!(
                "step,{},{},{},{},{},{},{},{},{},{}\n",
                e.step,
                e.epoch,
                e.loss,
                e.lr,
                e.grad_norm,
                e.tokens,
                e.targets,
                number(e.accuracy),
                number(e.margin),
                e.seconds
            ),
            Event::Validation(e) => {
                format!("validation,{},,{},,,,,{},,{}\n", e.step, e.loss, number(e.accuracy), e.seconds)
            }
        }
    }

    fn record(&self) -> Vec<u8> {
        let (step, values) = match self {
            Event::Step(e) => {
                let speed = e.tokens as f64 / e.seconds.max(1e-9);
                let mut values = vec![
                    ("train/loss", e.loss),
                    ("train/learning_rate", e.lr),
                    ("train/grad_norm", e.grad_norm),
                    ("train/tokens_per_second", speed),
                ];
                values.extend(e.accuracy.map(|accuracy| ("train/accuracy", accuracy)));
                values.extend(e.margin.map(|margin| ("train/margin", margin)));
                (e.step, values)
            }
            Event::Validation(e) => {
                let mut values = vec![("validation/loss", e.loss)];
                values.extend(e.accuracy.map(|accuracy| ("validation/accuracy", accuracy)));
                (e.step, values)
            }
        };
        tensorboard::scalars(now(), step, &values)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |passed| passed.as_secs_f64())
}

/// The logs of a run.
pub struct Logs {
    files: Vec<LogFile>,
}

struct LogFile {
    log: Log,
    path: PathBuf,
    file: File,
}

/// Where a run in `dir` writes a log.
pub fn log_path(dir: &Path, log: Log) -> PathBuf {
    match log {
        Log::Jsonl => dir.join("metrics.jsonl"),
        Log::Csv => dir.join("metrics.csv"),
        Log::Tensorboard => dir.join("tensorboard").join("events.out.tfevents.0000000001.lctl"),
    }
}

fn key(log: Log) -> &'static str {
    match log {
        Log::Jsonl => "jsonl",
        Log::Csv => "csv",
        Log::Tensorboard => "tensorboard",
    }
}

impl Logs {
    /// Returns what writes nothing: the logs of a process that is not the first.
    pub fn none() -> Logs {
        Logs { files: Vec::new() }
    }

    /// Opens the logs, cut to `lengths`; those without a length begin anew. The JSONL is written in any case: the report
    /// is made of it.
    pub fn open(
        dir: &Path,
        logs: &[Log],
        lengths: &BTreeMap<String, u64>,
        world_size: usize,
    ) -> Result<Logs, Error> {
        let others = logs.iter().copied().filter(|log| *log != Log::Jsonl);
        let files = [Log::Jsonl].into_iter().chain(others);
        let files = files
            .map(|log| LogFile::open(log_path(dir, log), log, lengths.get(key(log)).copied(), world_size));
        Ok(Logs { files: files.collect::<Result<_, _>>()? })
    }

    /// Adds an event to each.
    pub fn write(&mut self, event: &Event) -> Result<(), Error> {
        for file in &mut self.files {
            let bytes = match file.log {
                Log::Jsonl => event.json_line().into_bytes(),
                Log::Csv => event.csv_line().into_bytes(),
                Log::Tensorboard => event.record(),
            };
            file.file.write_all(&bytes).map_err(Error::io(&file.path, "write"))?;
        }
        Ok(())
    }

    /// Makes all durable; returns their lengths.
    pub fn sync(&mut self) -> Result<BTreeMap<String, u64>, Error> {
        let mut lengths = BTreeMap::new();
        for LogFile { log, path, file } in &mut self.files {
            file.sync_data().map_err(Error::io(path, "write"))?;
            let length = file.stream_position().map_err(Error::io(path, "write"))?;
            lengths.insert(key(*log).to_owned(), length);
        }
        Ok(lengths)
    }
}

impl LogFile {
    fn open(path: PathBuf, log: Log, length: Option<u64>, world_size: usize) -> Result<LogFile, Error> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(Error::io(dir, "make"))?;
        }
        let options = || OpenOptions::new().write(true).create(true).truncate(length.is_none()).clone();
        let mut file = options().open(&path).map_err(Error::io(&path, "write"))?;
        if let Some(expected) = length {
            let found = file.metadata().map_err(Error::io(&path, "read"))?.len();
            if found < expected {
                return Err(Error::LogLost { path, found, expected });
            }
            file.set_len(expected).map_err(Error::io(&path, "write"))?;
            file.seek(SeekFrom::End(0)).map_err(Error::io(&path, "write"))?;
        }
        let head = match log {
            _ if length.is_some() => Vec::new(),
            Log::Jsonl if world_size == 1 => Vec::new(),
            Log::Jsonl => format!("{}\n", json!({"event": RUN, "world_size": world_size})).into_bytes(),
            Log::Csv => COLUMNS.as_bytes().to_vec(),
            Log::Tensorboard => tensorboard::first_record(now()),
        };
        file.write_all(&head).map_err(Error::io(&path, "write"))?;
        Ok(LogFile { log, path, file })
    }
}

/// Reads the events of a run.
pub fn read_events(dir: &Path) -> Result<Vec<Event>, Error> {
    let path = log_path(dir, Log::Jsonl);
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    events_of(&path, &text)
}

/// Errors if what a run would keep of its JSONL, cut to `lengths`, is not what a run writes: every step once, in order.
pub(super) fn check_log(dir: &Path, lengths: &BTreeMap<String, u64>) -> Result<(), Error> {
    let path = log_path(dir, Log::Jsonl);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        // that it is lost is told where it is opened
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(&path, "read")(error)),
    };
    let length = lengths.get(key(Log::Jsonl)).map_or(bytes.len(), |length| *length as usize);
    let kept = &bytes[..length.min(bytes.len())];
    // what is no text is no event either
    let text = String::from_utf8_lossy(kept);
    let mut last = 0;
    for (index, event) in events_of(&path, &text)?.iter().enumerate() {
        let (step, expected) = match event {
            Event::Step(event) => (event.step, last + 1),
            Event::Validation(event) => (event.step, last),
        };
        if step != expected {
            let why = format!("event {} is of step {step}, expected {expected}", index + 1);
            return Err(Error::BadLog { path, why });
        }
        last = step;
    }
    Ok(())
}

fn events_of(path: &Path, text: &str) -> Result<Vec<Event>, Error> {
    let event = |(index, line)| {
        let bad = |error: serde_json::Error| Error::BadEvent {
            path: path.to_owned(),
            line: index + 1,
            why: error.to_string(),
        };
        event_of(line).map_err(bad)
    };
    text.lines().enumerate().map(event).filter_map(Result::transpose).collect()
}

/// Returns the event of a line; `None` for the one that says what run it is.
fn event_of(line: &str) -> Result<Option<Event>, serde_json::Error> {
    // by hand: serde's tagged enums lose numbers of arbitrary precision
    let value: serde_json::Value = serde_json::from_str(line)?;
    match value.get("event").and_then(serde_json::Value::as_str) {
        Some(RUN) => Ok(None),
        Some("validation") => serde_json::from_value(value).map(|event| Some(Event::Validation(event))),
        _ => serde_json::from_value(value).map(|event| Some(Event::Step(event))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> Event {
        Event::Step(StepEvent { step, loss, ..StepEvent::default() })
    }

    #[test]
    fn logs_are_cut_to_what_a_checkpoint_knows() {
        let dir = tempfile::tempdir().unwrap();
        let kinds = [Log::Csv, Log::Tensorboard];
        let mut logs = Logs::open(dir.path(), &kinds, &BTreeMap::new(), 1).unwrap();
        logs.write(&step(1, 0.1 + 0.2)).unwrap();
        let lengths = logs.sync().unwrap();
        logs.write(&step(2, 9.0)).unwrap();
        drop(logs);
        let mut logs = Logs::open(dir.path(), &kinds, &lengths, 1).unwrap();
        logs.write(&step(2, 1.5)).unwrap();
        let events = read_events(dir.path()).unwrap();
        assert_eq!(events, [step(1, 0.1 + 0.2), step(2, 1.5)]);
        let csv = fs::read_to_string(log_path(dir.path(), Log::Csv)).unwrap();
        assert_eq!(csv.lines().nth(1).unwrap().split(',').nth(3), Some("0.30000000000000004"));
        assert_eq!(csv.lines().count(), 3);
        let more = lengths.iter().map(|(key, length)| (key.clone(), length + 1000)).collect();
        assert!(matches!(Logs::open(dir.path(), &kinds, &more, 1), Err(Error::LogLost { .. })));
    }

    #[test]
    fn a_log_that_no_run_wrote_is_told_before_the_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs::open(dir.path(), &[], &BTreeMap::new(), 2).unwrap();
        for number in 1..=3 {
            logs.write(&step(number, 0.5)).unwrap();
            let validation = ValidationEvent { step: number, ..ValidationEvent::default() };
            logs.write(&Event::Validation(validation)).unwrap();
        }
        let lengths = logs.sync().unwrap();
        let path = log_path(dir.path(), Log::Jsonl);
        let text = fs::read_to_string(&path).unwrap();
        let check = |text: &str| {
            fs::write(&path, text).unwrap();
            check_log(dir.path(), &lengths)
        };
        check(&text).unwrap();
        // what a checkpoint does not know is cut
        check(&format!("{text}{{\"event\":\"st")).unwrap();
        // a line torn, of a shape that is no event's, of another process
        let torn = check(&text.replacen("\"epoch\"", "\"ep\n  \"", 1)).unwrap_err();
        assert!(matches!(torn, Error::BadEvent { line: 2, .. }), "{torn}");
        use crate::error::Diagnostic as _;
        assert!(torn.hint().unwrap().contains("begin another run with --out"));
        let mixed = text.replace("\"step\":3", "\"step\":2");
        let mixed = check(&mixed).unwrap_err();
        assert!(mixed.to_string().ends_with("event 5 is of step 2, expected 3"), "{mixed}");
        assert!(mixed.hint().unwrap().contains("begin another run with --out"));
        // that it is gone is told where it is opened
        fs::remove_file(&path).unwrap();
        check_log(dir.path(), &lengths).unwrap();
    }

    #[test]
    fn the_log_of_several_processes_says_how_many_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mut logs = Logs::open(dir.path(), &[], &BTreeMap::new(), 3).unwrap();
        let lengths = logs.sync().unwrap();
        drop(logs);
        // said once, also if the run goes on
        let mut logs = Logs::open(dir.path(), &[], &lengths, 3).unwrap();
        logs.write(&step(1, 0.5)).unwrap();
        let text = fs::read_to_string(log_path(dir.path(), Log::Jsonl)).unwrap();
        assert_eq!(text.lines().next(), Some(r#"{"event":"run","world_size":3}"#));
        assert_eq!((text.lines().count(), read_events(dir.path()).unwrap()), (2, vec![step(1, 0.5)]));
    }
}
