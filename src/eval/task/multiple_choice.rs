//! Multiple choice by log-likelihood: the choice the model finds most likely is its answer.
//!
//! Letter questions list the choices in the prompt and score the letters; cloze questions score the choices'
//! texts. The figures but `byte_prob` are lm-eval's, number for number.

use serde_json::{Map, json};

use super::{Ask, Error, Inquiry, Outcome, Scores, Task, TaskType, Texts, column, template};
use crate::eval::data::Document;
use crate::eval::request::Response;
use crate::eval::score::{Metric, first_max};
use crate::eval::template::Template;
use crate::kernel::math64;
use crate::yaml::{Fields, Node};

pub const TYPE: TaskType = TaskType {
    name: "multiple_choice",
    about: "the most likely of some choices is the answer: acc, acc_norm, acc_bytes, exact_match, byte_prob",
    has_prompt: true,
    chat_by_default: false,
    parse,
};

/// A figure over the choices' log-likelihoods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    /// The largest log-likelihood is the target's.
    Acc,
    /// The same, each divided by the choice's Unicode characters.
    AccNorm,
    /// The same, each divided by the choice's UTF-8 bytes.
    AccBytes,
    /// Greedy decoding would write the target.
    ExactMatch,
    /// The target's probability per UTF-8 byte: exp(log P / bytes), the geometric mean.
    ByteProb,
}

const FIGURES: &[(&str, Figure)] = &[
    ("acc", Figure::Acc),
    ("acc_norm", Figure::AccNorm),
    ("acc_bytes", Figure::AccBytes),
    ("exact_match", Figure::ExactMatch),
    ("byte_prob", Figure::ByteProb),
];

#[derive(Debug)]
struct MultipleChoice {
    prompt: Template,
    choices: Texts,
    target: Target,
    figures: Vec<(&'static str, Figure)>,
}

/// How a document names the right choice.
#[derive(Debug)]
enum Target {
    /// By its text.
    Text(Template),
    /// By its place, from 0.
    Index(Template),
    /// By its place, from A.
    Letter(Template),
}

fn parse(fields: &Fields) -> Option<Box<dyn Task>> {
    let prompt = template(&fields.required("prompt"));
    let choices = parse_choices(&fields.required("choices"));
    let target = Target::parse(&fields.required("target"));
    let figures = parse_figures(&fields.required("metrics"));
    Some(Box::new(MultipleChoice { prompt: prompt?, choices: choices?, target: target?, figures }))
}

fn parse_choices(node: &Node) -> Option<Texts> {
    let choices = Texts::parse(node)?;
    if let Texts::Templates(templates) = &choices {
        if node.is_list() && templates.len() < 2 {
            let (n, noun) = (templates.len(), if templates.len() == 1 { "choice" } else { "choices" });
            node.note(format!("{n} {noun}; at least 2 are needed"));
        }
        for (index, template) in templates.iter().enumerate() {
            if let Some(other) =
                templates[..index].iter().position(|other| other.source() == template.source())
            {
                node.note(format!("choice {} is choice {} again", index + 1, other + 1));
            }
        }
    }
    Some(choices)
}

fn parse_figures(node: &Node) -> Vec<(&'static str, Figure)> {
    let items = node.items();
    if node.is_list() && items.is_empty() {
        node.note("`metrics` is empty");
    }
    let mut figures: Vec<(&'static str, Figure)> = Vec::new();
    for item in items {
        let name = item.text();
        match FIGURES.iter().find(|(known, _)| *known == name) {
            Some(figure) if figures.contains(figure) => item.note(format!("`{name}` is there twice")),
            Some(figure) => figures.push(*figure),
            None if !item.is_text() => {}
            None => {
                let known: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
                item.unknown(&name, &known);
            }
        }
    }
    figures
}

impl Target {
    fn parse(node: &Node) -> Option<Target> {
        if !node.is_mapping() {
            return template(node).map(Target::Text);
        }
        let fields = node.fields();
        match (fields.optional("index"), fields.optional("letter")) {
            (Some(index), None) => template(&index).map(Target::Index),
            (None, Some(letter)) => template(&letter).map(Target::Letter),
            _ => {
                node.note("`target` has either `index` or `letter`");
                None
            }
        }
    }

    /// Returns the index of the right choice.
    fn of(&self, document: &Document, choices: &[String]) -> Result<usize, Error> {
        let (Target::Text(template) | Target::Index(template) | Target::Letter(template)) = self;
        let target = template.render(&document.fields)?;
        let index = match self {
            Target::Text(_) => choices.iter().position(|choice| *choice == target),
            Target::Index(_) => Some(
                target
                    .trim()
                    .parse()
                    .map_err(|_| Error::BadTarget { target: target.clone(), what: "index from 0" })?,
            ),
            Target::Letter(_) => match target.trim().as_bytes() {
                [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
                _ => return Err(Error::BadTarget { target, what: "letter from A to Z" }),
            },
        };
        index
            .filter(|index| *index < choices.len())
            .ok_or(Error::NoSuchChoice { target, n_choices: choices.len() })
    }
}

impl MultipleChoice {
    fn choices(&self, document: &Document) -> Result<Vec<String>, Error> {
        let choices = self.choices.of(document)?;
        if choices.len() < 2 {
            return Err(Error::FewChoices { n_choices: choices.len() });
        }
        match choices.iter().position(String::is_empty) {
            Some(index) => Err(Error::EmptyChoice { number: index + 1 }),
            None => Ok(choices),
        }
    }
}

impl Task for MultipleChoice {
    fn inquire(&self, document: &Document) -> Result<Inquiry, Error> {
        let choices = self.choices(document)?;
        self.target.of(document, &choices)?;
        let question = self.prompt.render(&document.fields)?;
        Ok(Inquiry { question, asks: choices.into_iter().map(Ask::Likelihood).collect() })
    }

    fn solution(&self, document: &Document) -> Result<String, Error> {
        let mut choices = self.choices(document)?;
        let target = self.target.of(document, &choices)?;
        Ok(choices.swap_remove(target))
    }

    fn score(&self, document: &Document, responses: &[Response]) -> Result<Outcome, Error> {
        let choices = self.choices(document)?;
        let target = self.target.of(document, &choices)?;
        let mut log_probs = Vec::new();
        let mut is_greedy = Vec::new();
        for response in responses {
            let Response::Loglikelihood(found) = response else { return Err(Error::OtherKind) };
            log_probs.push(found.log_prob);
            is_greedy.push(found.is_greedy);
        }
        let divided_by = |length: fn(&str) -> usize| -> usize {
            let divide = |(log_prob, choice): (&f64, &String)| log_prob / length(choice) as f64;
            first_max(&log_probs.iter().zip(&choices).map(divide).collect::<Vec<f64>>())
        };
        let prediction = first_max(&log_probs);
        let right = |is_right: bool| f64::from(u8::from(is_right));
        let value = |figure| match figure {
            Figure::Acc => right(prediction == target),
            Figure::AccNorm => right(divided_by(|choice| choice.chars().count()) == target),
            Figure::AccBytes => right(divided_by(str::len) == target),
            Figure::ExactMatch => right(is_greedy.get(target).copied().unwrap_or(false)),
            Figure::ByteProb => byte_prob(log_probs.get(target).copied(), &choices[target]),
        };
        let score = |(name, figure): &(&str, Figure)| ((*name).to_owned(), value(*figure));
        let scores: Scores = self.figures.iter().map(score).collect();
        let details = Map::from_iter([
            ("choices".to_owned(), json!(choices)),
            ("log_probs".to_owned(), json!(log_probs)),
            ("is_greedy".to_owned(), json!(is_greedy)),
        ]);
        Ok(Outcome { target: json!(target), prediction: json!(prediction), scores, details })
    }

    fn aggregate(&self, scores: &[&Scores]) -> Vec<Metric> {
        self.figures.iter().map(|(name, _)| Metric::mean(name, &column(scores, name))).collect()
    }

    fn failed(&self, _document: &Document) -> Result<Scores, Error> {
        Ok(self.figures.iter().map(|(name, _)| ((*name).to_owned(), 0.0)).collect())
    }
}

/// Returns the probability per byte of a choice; 0 of one without a response.
fn byte_prob(log_prob: Option<f64>, choice: &str) -> f64 {
    // a sum of rounded log-probabilities may end a little above 0
    log_prob.map_or(0.0, |log_prob| math64::exp(log_prob / choice.len() as f64).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{document, parse};
    use super::*;
    use crate::eval::request::Loglikelihood;

    const LETTER: &str = "prompt: '{{ q }}'\nchoices: [A, B]\ntarget: {letter: '{{ a }}'}\nmetrics: [acc]";
    const CLOZE: &str = "prompt: '{{ q }}'\nchoices: {field: c}\ntarget: '{{ a }}'\nmetrics: [acc, acc_norm, acc_bytes, exact_match]";

    fn responses(log_probs: &[f64]) -> Vec<Response> {
        let response =
            |log_prob: &f64| Loglikelihood { log_prob: *log_prob, is_greedy: *log_prob > -1.0, n_tokens: 1 };
        log_probs.iter().map(|log_prob| Response::Loglikelihood(response(log_prob))).collect()
    }

    #[test]
    fn letters_and_texts_name_the_right_choice() {
        let task = parse(&TYPE, LETTER).unwrap();
        let row = document(json!({"q": "why?", "a": " B "}));
        let inquiry = task.inquire(&row).unwrap();
        assert_eq!(inquiry.question, "why?");
        assert_eq!(inquiry.asks, [Ask::Likelihood("A".into()), Ask::Likelihood("B".into())]);
        assert_eq!(task.solution(&row).unwrap(), "B");
        let wrong = document(json!({"q": "", "a": "C"}));
        assert_eq!(task.inquire(&wrong).unwrap_err().to_string(), "the target `C` is none of the 2 choices");
    }

    #[test]
    fn the_norms_divide_by_characters_and_by_bytes() {
        let task = parse(&TYPE, CLOZE).unwrap();
        // 4 characters, 8 bytes; 5 characters, 5 bytes
        let row = document(json!({"q": "", "c": ["éééé", "abcde"], "a": "éééé"}));
        let outcome = task.score(&row, &responses(&[-9.0, -8.0])).unwrap();
        let scores: Vec<(&str, f64)> =
            outcome.scores.iter().map(|(name, score)| (name.as_str(), *score)).collect();
        assert_eq!(scores, [("acc", 0.0), ("acc_norm", 0.0), ("acc_bytes", 1.0), ("exact_match", 0.0)]);
        let outcome = task.score(&row, &responses(&[-0.5, -8.0])).unwrap();
        assert_eq!(outcome.scores.values().sum::<f64>(), 4.0);
        assert_eq!((outcome.target, outcome.prediction), (json!(0), json!(0)));
    }

    #[test]
    fn byte_prob_is_the_right_choices_geometric_mean() {
        let task =
            parse(&TYPE, &CLOZE.replace("[acc, acc_norm, acc_bytes, exact_match]", "[byte_prob]")).unwrap();
        let row = document(json!({"q": "", "c": ["éééé", "abcde"], "a": "éééé"}));
        let score = |log_prob| task.score(&row, &responses(&[log_prob, -0.1])).unwrap().scores["byte_prob"];
        assert_eq!((score(0.0), score(f64::NEG_INFINITY)), (1.0, 0.0));
        // 8 bytes of probability 1/2 each
        assert!((score(-8.0 * std::f64::consts::LN_2) - 0.5).abs() < 1e-15);
        assert_eq!(task.failed(&row).unwrap()["byte_prob"], 0.0);
    }

    #[test]
    fn rows_that_are_no_questions_are_refused() {
        let task = parse(&TYPE, CLOZE).unwrap();
        for (row, message) in [
            (json!({"q": "", "c": ["x"], "a": "x"}), "1 choices; at least 2 are needed"),
            (json!({"q": "", "c": ["x", ""], "a": "x"}), "choice 2 is empty"),
            (json!({"q": "", "c": ["x", 3], "a": "x"}), "the field `c` is not a list of texts"),
            (json!({"q": "", "a": "x"}), "there is no field `c`"),
            (json!({"q": "", "c": ["x", "y"], "a": "z"}), "the target `z` is none of the 2 choices"),
            (json!({"c": ["x", "y"], "a": "x"}), "template `{{ q }}`: there is no field `q`"),
        ] {
            assert_eq!(task.inquire(&document(row)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn what_is_wrong_with_the_keys_is_said_at_once() {
        let choices = |choices| parse(&TYPE, &LETTER.replace("[A, B]", choices)).unwrap_err();
        assert_eq!(choices("[A]"), "suite.yaml:2:10: 1 choice; at least 2 are needed");
        assert_eq!(choices("[A, B, A]"), "suite.yaml:2:10: choice 3 is choice 1 again");
        let metrics = parse(&TYPE, &LETTER.replace("[acc]", "['']")).unwrap_err();
        assert_eq!(metrics, "suite.yaml:4:11: unknown item 1 ``");
        let yaml = "prompt: '{{ q'\nchoices: A\ntarget: {idx: '1'}\nmetrics: [acc, acc, norm]";
        let message = parse(&TYPE, yaml).unwrap_err();
        let expected = "suite.yaml:1:9: template `{{ q`: line 1: unexpected end of template: a tag is not closed by '}}'\n\
            suite.yaml:2:10: `choices` must be a list, not text\n\
            suite.yaml:3:9: `target` has either `index` or `letter`\n\
            suite.yaml:3:10: unknown key `idx`\n\
            suite.yaml:4:16: `acc` is there twice\n\
            suite.yaml:4:21: unknown item 3 `norm`";
        assert_eq!(message, expected);
    }
}
