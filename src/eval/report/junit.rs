//! A report as JUnit XML, in the form that GitLab, Jenkins and reporters of GitHub Actions read: `testsuites` of `testsuite`
//! of `testcase`, a case with at most one of `failure`, `error` and `skipped`.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::figures;
use super::grade::{Grade, Lens};
use crate::eval::gate::{self, Judged, Outcome, Role, Run, SampleRun, Status, TaskRun, Verdict};

/// What a test case is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cases {
    /// A task; it errs if a document could not be asked about.
    #[default]
    Tasks,
    /// A document; it fails if its answer is not right.
    Documents,
}

/// Returns the report as XML. A gate's decisions are a suite of their own, which has a failure or an error if and only if the
/// gate does not let the candidate pass.
pub fn junit(run: &Run, verdict: Option<&Verdict>, cases: Cases) -> String {
    let mut suites: Vec<TestSuite> = Vec::new();
    suites.extend(verdict.map(gate_suite));
    match cases {
        Cases::Tasks => suites.extend(run.suites.iter().map(|suite| {
            let tasks = run.tasks.iter().filter(|task| task.suite == suite.name);
            TestSuite { name: suite.name.clone(), cases: tasks.map(task_case).collect() }
        })),
        Cases::Documents => suites.extend(run.tasks.iter().map(document_suite)),
    }
    let seconds = run.facts.get("engine_seconds").and_then(Json::as_f64).unwrap_or(0.0);
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = write!(out, "<testsuites name=\"lctl eval {}\"", escaped(&figures::model_name(run)));
    counts(&mut out, suites.iter().flat_map(|suite| &suite.cases));
    let _ = writeln!(out, " time=\"{seconds:.3}\">");
    for suite in &suites {
        suite.write(&mut out, run);
    }
    out.push_str("</testsuites>\n");
    out
}

struct TestSuite {
    name: String,
    cases: Vec<TestCase>,
}

struct TestCase {
    /// What it belongs to.
    class: String,
    name: String,
    /// Of the data file.
    place: Option<(String, usize)>,
    result: CaseResult,
    /// What there is to read about it.
    out: String,
}

enum CaseResult {
    Passed,
    Failed { message: String, kind: &'static str, text: String },
    Error { message: String, kind: &'static str },
    Skipped { message: String },
}

fn counts<'a>(out: &mut String, cases: impl Iterator<Item = &'a TestCase>) {
    let (mut tests, mut failures, mut errors, mut skipped) = (0, 0, 0, 0);
    for case in cases {
        tests += 1;
        match case.result {
            CaseResult::Passed => {}
            CaseResult::Failed { .. } => failures += 1,
            CaseResult::Error { .. } => errors += 1,
            CaseResult::Skipped { .. } => skipped += 1,
        }
    }
    let _ =
        write!(out, " tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\"");
}

impl TestSuite {
    fn write(&self, out: &mut String, run: &Run) {
        let _ = write!(out, "  <testsuite name=\"{}\"", escaped(&self.name));
        counts(out, self.cases.iter());
        out.push_str(" time=\"0\">\n    <properties>\n");
        for (name, value) in figures::facts(run) {
            let _ = writeln!(out, "      <property name=\"{name}\" value=\"{}\"/>", escaped(&value));
        }
        out.push_str("    </properties>\n");
        self.cases.iter().for_each(|case| case.write(out));
        out.push_str("  </testsuite>\n");
    }
}

impl TestCase {
    fn write(&self, out: &mut String) {
        let (class, name) = (escaped(&self.class), escaped(&self.name));
        let _ = write!(out, "    <testcase classname=\"{class}\" name=\"{name}\"");
        if let Some((file, line)) = &self.place {
            let _ = write!(out, " file=\"{}\" line=\"{line}\"", escaped(file));
        }
        out.push_str(" time=\"0\">\n");
        match &self.result {
            CaseResult::Passed => {}
            CaseResult::Failed { message, kind, text } => {
                let (message, text) = (escaped(message), escaped(text));
                let _ =
                    writeln!(out, "      <failure message=\"{message}\" type=\"{kind}\">{text}</failure>");
            }
            CaseResult::Error { message, kind } => {
                let _ = writeln!(out, "      <error message=\"{}\" type=\"{kind}\"/>", escaped(message));
            }
            CaseResult::Skipped { message } => {
                let _ = writeln!(out, "      <skipped message=\"{}\"/>", escaped(message));
            }
        }
        if !self.out.is_empty() {
            let _ = writeln!(out, "      <system-out>{}</system-out>", escaped(&self.out));
        }
        out.push_str("    </testcase>\n");
    }
}

fn task_case(task: &TaskRun) -> TestCase {
    let facts = &task.facts;
    let mut out = String::new();
    for metric in &facts.metrics {
        let is_share = figures::is_share(task, metric);
        let (value, interval) =
            (figures::value(metric.value(), is_share), figures::interval(metric.ci95, is_share));
        let _ = writeln!(out, "{}: {value} (95 % interval {interval}), n = {}", metric.name, metric.n);
    }
    let result = match facts.errors {
        0 => CaseResult::Passed,
        errors => CaseResult::Error {
            message: format!(
                "{errors} of {} documents could not be asked about and count as wrong",
                facts.documents
            ),
            kind: "not asked",
        },
    };
    TestCase { class: task.suite.clone(), name: facts.id.clone(), place: None, result, out }
}

fn document_suite(task: &TaskRun) -> TestSuite {
    let lens = Lens::of(task, None);
    let case = |sample: &SampleRun| TestCase {
        class: format!("{}.{}", task.suite, task.facts.id),
        name: sample.item.clone().unwrap_or_else(|| format!("line {}", sample.line)),
        place: task.facts.data.file.clone().map(|file| (file, sample.line)),
        result: document_result(&lens, sample),
        out: String::new(),
    };
    TestSuite { name: task.name(), cases: task.samples.iter().map(case).collect() }
}

fn document_result(lens: &Lens, sample: &SampleRun) -> CaseResult {
    let kind = match lens.grade(sample) {
        Grade::Right | Grade::Unscored => return CaseResult::Passed,
        Grade::Error => {
            let message = sample.error.clone().unwrap_or_default();
            return CaseResult::Error { message, kind: "not asked" };
        }
        Grade::Wrong => "wrong",
        Grade::Partly => "partly right",
    };
    let score = lens.metric().and_then(|metric| Some((metric, sample.scores.get(metric)?)));
    let mut text = score.map_or(String::new(), |(metric, score)| format!("{metric}: {score}\n"));
    let target = sample.target.clone().unwrap_or(Json::Null);
    for (name, value) in [
        ("question", sample.question.as_deref().map(Json::from)),
        ("expected", Some(target.clone())),
        ("answered", Some(sample.prediction.clone())),
        ("text", sample.details.get("text").cloned()),
    ] {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            let _ = writeln!(text, "{name}: {}", plain(&value));
        }
    }
    let message = match sample.prediction.is_null() {
        true => kind.to_owned(),
        false => format!("{kind}: expected {}, got {}", brief(&target), brief(&sample.prediction)),
    };
    CaseResult::Failed { message, kind, text }
}

/// A text as it is, anything else as JSON.
fn plain(value: &Json) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn brief(value: &Json) -> String {
    let text = plain(value);
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

fn gate_suite(verdict: &Verdict) -> TestSuite {
    let judgement = &verdict.judgement;
    let reasons = judgement.reasons.join("\n");
    let name = judgement.outcome.name();
    let result = match judgement.outcome {
        _ if verdict.exit_code == 0 => CaseResult::Passed,
        Outcome::NotComparable => {
            CaseResult::Error { message: format!("{name}: {reasons}"), kind: "not comparable" }
        }
        _ => CaseResult::Failed { message: name.to_owned(), kind: "verdict", text: reasons.clone() },
    };
    let out = format!("{name}\n{reasons}\n");
    let whole = TestCase { class: "gate".into(), name: "verdict".into(), place: None, result, out };
    let judged = judgement.tasks.iter().chain(&judgement.pool);
    let is_blocked = judgement.outcome == Outcome::Inconclusive && verdict.exit_code != 0;
    let cases = judged.map(|judged| judged_case(judged, is_blocked));
    TestSuite { name: "gate".into(), cases: [whole].into_iter().chain(cases).collect() }
}

/// `is_blocked`: the gate does not pass for what is undecided.
fn judged_case(judged: &Judged, is_blocked: bool) -> TestCase {
    let message = format!("{}: {}", judged.status.name(), gate::details(judged));
    let text = || format!("lost: {}\ngained: {}\n", judged.lost.join(", "), judged.gained.join(", "));
    let result = match judged.status {
        Status::Worse => CaseResult::Failed { message: message.clone(), kind: "worse", text: text() },
        Status::NewFailures => {
            CaseResult::Failed { message: message.clone(), kind: "new failures", text: text() }
        }
        Status::Undecided | Status::TooSmall if is_blocked && judged.role == Role::Critical => {
            CaseResult::Failed { message: message.clone(), kind: "inconclusive", text: text() }
        }
        Status::Undecided | Status::TooSmall | Status::Reported => {
            CaseResult::Skipped { message: message.clone() }
        }
        Status::Identical | Status::WithinMargin | Status::NoneLost => CaseResult::Passed,
    };
    TestCase { class: "gate".into(), name: judged.task.clone(), place: None, result, out: message }
}

/// Returns text for XML 1.0, in an attribute or between tags. What XML has no form for (control characters, U+FFFE) becomes
/// `\u{..}`; line feeds and tabs are kept in attributes, too.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            // `]]>` must not stand between tags
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => {
                out.extend(c.escape_unicode())
            }
            _ => out.push(c),
        }
    }
    out
}
