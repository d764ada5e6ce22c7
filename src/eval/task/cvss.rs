//! CVSS: the last vector of an answer against the right one, by base score and by metric.

use serde_json::json;

use super::written::{self, Extract, Written, details, metric_with_valid, one_if, optional_extract, written};
use super::{Error, Inquiry, Outcome, Scores, Task, TaskType, column, template};
use crate::eval::cvss::{VERSIONS, Vector, Version};
use crate::eval::data::Document;
use crate::eval::request::Response;
use crate::eval::score::Metric;
use crate::eval::template::Template;
use crate::yaml::Fields;

pub const TYPE: TaskType = TaskType {
    name: "cvss",
    about: "a CVSS vector: mean_abs_deviation of the base score, exact_match, valid, a figure per base metric",
    has_prompt: true,
    chat_by_default: true,
    parse,
};

const DEVIATION: &str = "mean_abs_deviation";
const VALID: &str = "valid";

#[derive(Debug)]
struct Cvss {
    written: Written,
    target: Template,
    version: Version,
    extract: Option<Extract>,
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let written = Written::parse(fields);
    let target = template(&fields.required("target"));
    let known: Vec<(&str, Option<Version>)> =
        VERSIONS.iter().map(|(name, version)| (*name, Some(*version))).collect();
    let version = fields.required("version");
    let version = if version.is_present() { version.one_of(&known) } else { None };
    let extract = optional_extract(fields);
    Some(Box::new(Cvss { written: written?, target: target?, version: version?, extract }))
}

impl Cvss {
    fn target(&self, document: &Document) -> Result<Vector, Error> {
        let target = self.target.render(&document.fields)?;
        let text = target.trim();
        let vector = match text.starts_with("CVSS:") {
            true => Vector::parse(text),
            false => Vector::parse_bare(self.version, text),
        };
        vector.map_err(|source| Error::NoVector { target: target.clone(), source })
    }

    fn base_metrics(&self) -> impl Iterator<Item = &'static str> {
        self.version.base_metrics()
    }

    /// Returns the scores of an answer. Without a vector of the target's kind the deviation is the largest that the target
    /// allows, and no metric is right. v3.0 and v3.1 have the same metrics and compare.
    fn scores(&self, target: &Vector, answer: Option<&Vector>) -> Scores {
        let right = target.base_score();
        let answer = answer
            .filter(|answer| (answer.version() == Version::V4_0) == (target.version() == Version::V4_0));
        let deviation = match answer {
            Some(answer) => (answer.base_score() - right).abs(),
            None => right.max(10.0 - right),
        };
        let is_equal = |metric: &&str| answer.is_some_and(|answer| answer.get(metric) == target.get(metric));
        let mut scores = Scores::from_iter([
            (DEVIATION.to_owned(), deviation),
            ("exact_match".to_owned(), one_if(self.base_metrics().all(|metric| is_equal(&metric)))),
            (VALID.to_owned(), one_if(answer.is_some())),
        ]);
        scores.extend(self.base_metrics().map(|metric| (format!("acc_{metric}"), one_if(is_equal(&metric)))));
        scores
    }
}

impl Task for Cvss {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        self.target(document)?;
        self.written.inquiry(document)
    }

    fn solution(&self, document: &Document) -> Result<String, Error> {
        Ok(self.target(document)?.to_string())
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let generated = written(responses)?;
        let target = self.target(document)?;
        let answer = written::answer(self.extract.as_ref(), &generated.text);
        let found = answer.and_then(|answer| Vector::find_last(answer, Some(self.version)));
        let mut details = details(generated);
        if let Some(Err(error)) = &found {
            details.insert("invalid".to_owned(), json!(error.to_string()));
        }
        let vector = found.and_then(Result::ok);
        let described =
            |vector: &Vector| json!({"vector": vector.to_string(), "base_score": vector.base_score()});
        Ok(Outcome {
            target: described(&target),
            prediction: json!(vector.as_ref().map(described)),
            scores: self.scores(&target, vector.as_ref()),
            details,
        })
    }

    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        let with_valid = |name: &str| metric_with_valid(name, scores, VALID);
        let mut metrics = vec![
            Metric { higher_is_better: false, ..with_valid(DEVIATION) },
            with_valid("exact_match"),
            Metric::mean(VALID, &column(scores, VALID)),
        ];
        metrics.extend(self.base_metrics().map(|metric| with_valid(&format!("acc_{metric}"))));
        metrics
    }

    fn failed(&self, document: &Document) -> Result<Scores, Error> {
        Ok(self.scores(&self.target(document)?, None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{document, generated, parse as parse_yaml};
    use super::*;
    use crate::eval::score::Valid;

    const YAML: &str = "prompt: '{{ q }}'\ntarget: '{{ gt }}'\nversion: '3.1'\ngeneration: {max_tokens: 64}";
    /// 9.8
    const GOLD: &str = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H";

    fn outcome(text: &str) -> Outcome {
        let row = document(json!({"q": "?", "gt": GOLD}));
        parse_yaml(&TYPE, YAML).unwrap().score(&row, &[generated(text)]).unwrap()
    }

    #[test]
    fn the_last_vector_counts_with_or_without_its_version() {
        // 7.5
        let found = outcome(&format!("{GOLD}? no: AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"));
        assert_eq!(found.prediction["base_score"], json!(7.5));
        assert!((found.scores[DEVIATION] - 2.3).abs() < 1e-12);
        assert_eq!(
            (found.scores["acc_C"], found.scores["acc_I"], found.scores["exact_match"]),
            (1.0, 0.0, 0.0)
        );
        assert_eq!(outcome(&GOLD.replace("3.1", "3.0")).scores["exact_match"], 1.0);
        let turned = outcome("AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H/AV:N").scores;
        assert_eq!((turned[VALID], turned["exact_match"]), (1.0, 1.0));
    }

    #[test]
    fn invalid_answers_are_counted_and_cost_the_most_that_is_possible() {
        for text in ["none", "AV:N/AC:L", "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N"] {
            let scores = outcome(text).scores;
            assert_eq!((scores[DEVIATION], scores[VALID], scores["acc_AV"]), (9.8, 0.0, 0.0), "{text}");
        }
        assert_eq!(
            outcome("AV:N/AC:L").details["invalid"],
            json!("the base metric `PR` of CVSS 3.1 is missing")
        );
        let task = parse_yaml(&TYPE, YAML).unwrap();
        let failed = task.failed(&document(json!({"q": "", "gt": GOLD}))).unwrap();
        let metrics = task.aggregate(&[&outcome(GOLD).scores, &failed]);
        assert_eq!((metrics[0].value, metrics[0].higher_is_better), (4.9, false));
        assert_eq!(metrics[0].valid, Some(Valid { value: Some(0.0), n: 1 }));
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names[1..5], ["exact_match", "valid", "acc_AV", "acc_AC"]);
        assert_eq!(metrics.len(), 3 + 8);
    }

    #[test]
    fn a_target_that_is_no_vector_is_refused() {
        let row = document(json!({"q": "?", "gt": "AV:N/AC:M"}));
        let error = parse_yaml(&TYPE, YAML).unwrap().inquire(&row).unwrap_err();
        assert_eq!(error.to_string(), "the target `AV:N/AC:M` is no CVSS vector: CVSS 3.1: `AC` is not `M`");
        assert_eq!(error.hint().unwrap(), "`AC` is one of: L, H");
        assert_eq!(
            parse_yaml(&TYPE, &YAML.replace("3.1", "3.2")).unwrap_err(),
            "suite.yaml:3:10: unknown `version` `3.2`; did you mean `3.0`?"
        );
    }
}
