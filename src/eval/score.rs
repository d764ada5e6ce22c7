//! Scores of answers, and what they come to over a task.
//!
//! Every function here is defined to the last bit of its f64 sums: they run in the documents' order.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::stats::Interval;

/// One figure of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub name: String,
    pub value: f64,
    /// Standard error; `None` where there is no estimate (one document, or no mean of scores).
    pub stderr: Option<f64>,
    /// Standard error where documents come in clusters, if the suite names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clustered_stderr: Option<f64>,
    /// Two-sided 95 % interval ([`super::stats::mean_interval`]), clusters allowed for; `None` where there is no estimate.
    #[serde(default)]
    pub ci95: Option<Interval>,
    /// Documents.
    pub n: usize,
    /// The same over the documents whose answer had the form asked for, where a form is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<Valid>,
    pub higher_is_better: bool,
}

/// A mean over the valid answers only.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Valid {
    /// `None` if no answer was valid.
    pub value: Option<f64>,
    pub n: usize,
}

impl Metric {
    /// Returns the mean of `scores`, which must not be empty.
    pub fn mean(name: &str, scores: &[f64]) -> Metric {
        Metric {
            name: name.to_owned(),
            value: mean(scores),
            stderr: stderr_of_mean(scores),
            clustered_stderr: None,
            ci95: None,
            n: scores.len(),
            valid: None,
            higher_is_better: true,
        }
    }
}

/// Returns the mean, NaN of nothing.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns sd / sqrt(n) with the sample's standard deviation (n - 1), as lm-eval does; `None` below 2 values.
pub fn stderr_of_mean(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt() / (values.len() as f64).sqrt())
}

/// Returns the standard error of the mean of values that come in clusters (Miller, arXiv:2411.00640, eq. 4):
/// the square root of the sum over clusters of squared sums of deviations, over n. `None` below 2 clusters.
pub fn clustered_stderr(values: &[f64], clusters: &[&str]) -> Option<f64> {
    let mean = mean(values);
    let mut order: Vec<f64> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    for (value, cluster) in values.iter().zip(clusters) {
        let index = *known.entry(cluster).or_insert(order.len());
        if index == order.len() {
            order.push(0.0);
        }
        order[index] += value - mean;
    }
    (order.len() >= 2).then(|| order.iter().map(|sum| sum * sum).sum::<f64>().sqrt() / values.len() as f64)
}

/// Returns the index of the largest value, the first of equal ones; NaN is never the largest.
pub fn first_max(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] || values[best].is_nan() {
            best = index;
        }
    }
    best
}

/// Returns true for what Python's `str.isspace` calls white space.
pub fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Returns the number of pieces between runs of white space, empty ones at the ends included: the words that
/// lm-eval divides by.
pub fn count_words(text: &str) -> usize {
    let mut n_words = 1;
    let mut was_space = false;
    for c in text.chars() {
        let is_space = is_python_space(c);
        n_words += usize::from(is_space && !was_space);
        was_space = is_space;
    }
    n_words
}

/// A step of bringing answers and targets into a common form.
pub struct Normalization {
    pub name: &'static str,
    pub about: &'static str,
    apply: fn(&str) -> String,
}

/// Every step, by name.
pub static NORMALIZATIONS: &[Normalization] = &[
    Normalization {
        name: "strip",
        about: "removes white space at both ends",
        apply: |text| text.trim_matches(is_python_space).to_owned(),
    },
    Normalization { name: "lower", about: "lower case", apply: str::to_lowercase },
    Normalization {
        name: "punctuation",
        about: "removes ASCII punctuation",
        apply: |text| text.chars().filter(|c| !c.is_ascii_punctuation()).collect(),
    },
    Normalization {
        name: "articles",
        about: "replaces the words a, an and the by a space",
        apply: without_articles,
    },
    Normalization {
        name: "whitespace",
        about: "makes every run of white space one space, none at the ends",
        apply: |text| words(text).collect::<Vec<_>>().join(" "),
    },
    Normalization {
        name: "number",
        about: "writes a number in one way: no commas, leading $ or trailing % and full stop, no idle zeros",
        apply: plain_number,
    },
    Normalization {
        name: "refang",
        about: "undoes the defanging of indicators: `hxxps[:]//a[.]example` is `https://a.example`",
        apply: refanged,
    },
];

/// The steps of SQuAD's official script, in its order.
pub const SQUAD: &[&str] = &["lower", "punctuation", "articles", "whitespace"];

/// Returns the step of that name.
pub fn normalization(name: &str) -> Option<&'static Normalization> {
    NORMALIZATIONS.iter().find(|step| step.name == name)
}

/// Returns `text` after all steps, in their order.
pub fn normalize(text: &str, steps: &[&Normalization]) -> String {
    steps.iter().fold(text.to_owned(), |text, step| (step.apply)(&text))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_python_space).filter(|word| !word.is_empty())
}

/// `\b(a|an|the)\b` -> space.
fn without_articles(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        out.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        let gap = tail.find(is_word).unwrap_or(tail.len());
        out.push_str(&tail[..gap]);
        rest = &tail[gap..];
    }
    out
}

/// The minus of typesetting, which stands for a hyphen-minus before a number.
const MINUS: char = '\u{2212}';

/// Returns a number in one spelling, any other text without white space at its ends.
pub fn plain_number(text: &str) -> String {
    let trimmed = text.trim_matches(is_python_space);
    let bare =
        trimmed.trim_start_matches('$').trim_end_matches(['%', '.']).replace(',', "").replace(MINUS, "-");
    match bare.parse::<f64>() {
        Ok(number) if number.is_finite() => number.to_string(),
        _ => trimmed.to_owned(),
    }
}

/// Returns the last number in a text; commas between groups of three digits are no part of it. `.5` is 0.5, unless a letter,
/// a digit or another full stop stands before it, as in `v1.2.5`.
pub fn last_number(text: &str) -> Option<f64> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"[-+\u{2212}]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+\u{2212}]?[0-9]{1,3})?";
        Regex::new(pattern).expect("the pattern is fixed, and a test uses it")
    });
    let found = NUMBER.find_iter(text).last()?;
    // in `3-4` and `v2-4` the hyphen is no sign
    let is_sign = !text[..found.start()].ends_with(|c: char| c.is_alphanumeric());
    let digits = found.as_str().replace(',', "").replace(MINUS, "-");
    let digits = if is_sign { digits.as_str() } else { digits.trim_start_matches(['-', '+']) };
    let is_part = text[..found.start()].ends_with(|c: char| c.is_alphanumeric() || c == '.');
    let digits = if is_part { digits.trim_start_matches('.') } else { digits };
    digits.parse().ok().filter(|number: &f64| number.is_finite())
}

/// Returns the text with the usual defangings of indicators undone: `hxxp`, `[.]`, `(.)`, `[dot]`, `[:]`, `[://]`, `[@]`,
/// `[at]`, in any case.
fn refanged(text: &str) -> String {
    static DEFANGED: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"(?i)\bhxxp(s?)\b|\bfxp\b|[\[({] ?(?:(\.|dot)|(:)|(://)|(@|at)) ?[\])}]";
        Regex::new(pattern).expect("the pattern is fixed, and a test uses it")
    });
    let plain = |found: &regex::Captures| {
        let is = |group| found.get(group).is_some();
        match () {
            () if is(2) => ".".to_owned(),
            () if is(3) => ":".to_owned(),
            () if is(4) => "://".to_owned(),
            () if is(5) => "@".to_owned(),
            () if found[0].starts_with(['f', 'F']) => "ftp".to_owned(),
            () => format!("http{}", found[1].to_ascii_lowercase()),
        }
    };
    DEFANGED.replace_all(text, plain).into_owned()
}

/// Returns the F1 of two texts' words as multisets; 1 if both have none, 0 if one has none (SQuAD 2.0).
pub fn word_f1(answer: &str, target: &str) -> f64 {
    let answer: Vec<&str> = words(answer).collect();
    let target: Vec<&str> = words(target).collect();
    if answer.is_empty() || target.is_empty() {
        return if answer == target { 1.0 } else { 0.0 };
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    target.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut n_common = 0;
    for word in &answer {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            n_common += 1;
        }
    }
    if n_common == 0 {
        return 0.0;
    }
    let precision = f64::from(n_common) / answer.len() as f64;
    let recall = f64::from(n_common) / target.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_errors_are_lm_evals() {
        let mut scores = vec![0.0; 80];
        scores[..21].fill(1.0);
        assert_eq!(mean(&scores), 0.2625);
        // lm-eval 0.4.13 for 21 of 80 in another order; the order moves the last bits of the sum
        assert!((stderr_of_mean(&scores).unwrap() - 0.04950306856618439).abs() < 1e-15);
        assert_eq!(stderr_of_mean(&[1.0]), None);
    }

    #[test]
    fn clusters_of_one_give_the_population_error_and_copies_do_not_shrink_it() {
        let values = [1.0, 0.0, 0.0, 1.0, 1.0];
        let single = clustered_stderr(&values, &["a", "b", "c", "d", "e"]).unwrap();
        let population = stderr_of_mean(&values).unwrap() * (4.0f64 / 5.0).sqrt();
        assert!((single - population).abs() < 1e-15);
        let twice = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0];
        let copied = clustered_stderr(&twice, &["a", "a", "b", "b", "c", "c", "d", "d", "e", "e"]).unwrap();
        assert!((copied - single).abs() < 1e-15);
        assert_eq!(clustered_stderr(&values, &["x"; 5]), None);
    }

    #[test]
    fn the_first_of_equal_values_wins() {
        assert_eq!(first_max(&[-2.0, -1.0, -1.0]), 1);
        assert_eq!(first_max(&[f64::NEG_INFINITY, f64::NEG_INFINITY]), 0);
        assert_eq!(first_max(&[f64::NAN, -5.0, -6.0]), 1);
    }

    #[test]
    fn words_are_counted_as_python_splits() {
        // len(re.split(r"\s+", text))
        for (text, n_words) in [("", 1), ("a", 1), ("a b", 2), (" a\n\tb ", 4), ("a\u{a0}\u{1c}b", 2)] {
            assert_eq!(count_words(text), n_words, "{text:?}");
        }
    }

    #[test]
    fn f1_is_squads() {
        let squad: Vec<_> = SQUAD.iter().map(|name| normalization(name).unwrap()).collect();
        let f1 = |answer, target| word_f1(&normalize(answer, &squad), &normalize(target, &squad));
        assert_eq!(normalize("The cat's a  Theory, an-a", &squad), "cats theory ana");
        assert_eq!(f1("the Denver Broncos!", "Denver Broncos"), 1.0);
        assert_eq!(f1("Broncos of Denver", "Denver Broncos"), 0.8);
        assert_eq!(f1("cat cat", "cat"), 2.0 / 3.0);
        assert_eq!((f1("", ""), f1("the", "a"), f1("", "x"), f1("y", "x")), (1.0, 1.0, 0.0, 0.0));
    }

    #[test]
    fn numbers_have_one_spelling() {
        for (text, plain) in [
            (" $1,234.50 ", "1234.5"),
            ("07.", "7"),
            ("12%", "12"),
            ("-3.0", "-3"),
            ("x 1", "x 1"),
            ("\u{2212}.50", "-0.5"),
        ] {
            assert_eq!(plain_number(text), plain);
        }
    }

    #[test]
    fn the_last_number_of_a_text_is_found() {
        for (text, number) in [
            ("between 3 and -1,234.50%.", Some(-1234.5)),
            ("v2-4", Some(4.0)),
            ("1,23", Some(23.0)),
            ("6.5e-3 km", Some(0.0065)),
            ("none", None),
            ("1e999", None),
            ("about .5", Some(0.5)),
            ("-.25", Some(-0.25)),
            ("v1.2.5 or 3...5", Some(5.0)),
            ("v1.2.5", Some(5.0)),
            ("it is \u{2212}3.5e\u{2212}1", Some(-0.35)),
            ("3\u{2212}4", Some(4.0)),
        ] {
            assert_eq!(last_number(text), number, "{text}");
        }
    }

    #[test]
    fn indicators_are_refanged() {
        for (text, plain) in [
            ("hxxps[:]//a[.]example[.]com/x", "https://a.example.com/x"),
            ("HXXP[://]b(dot)example", "http://b.example"),
            ("fxp://192.0.2[.]1", "ftp://192.0.2.1"),
            ("who[at]a[ . ]example", "who@a.example"),
            ("a [1] and b.c", "a [1] and b.c"),
        ] {
            assert_eq!(refanged(text), plain);
        }
    }
}
