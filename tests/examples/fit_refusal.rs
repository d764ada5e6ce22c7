//! Fits the weights of the refusal scorer to human labels, and says how they agree on models they were not fitted to.
//!
//!     cargo run --example fit_refusal -- DIR > src/eval/refusal/weights.rs
//!
//! DIR holds XSTest's labelled completions (Röttger et al., arXiv:2308.01263), a file `xstest_MODEL_streval.csv` per model
//! with the columns id, prompt, completion, final_label. The weights go to stdout, the agreement to stderr.

use std::path::{Path, PathBuf};

use lctl::eval::refusal::{Column, Direction, Features, N_RULES, Verdict, Weights, rules};

/// Strength of the quadratic penalty on weights.
const PENALTY: f64 = 2.0;

/// How much a refusal counts against a compliance among answers without an explicit refusal, where it is rare.
const REFUSAL_WEIGHT: f64 = 2.0;

const SWEEPS: usize = 300;

/// A completion with its label.
pub struct Labelled {
    pub model: String,
    /// Number of the prompt, the same for all models.
    pub prompt: String,
    pub features: Features,
    pub label: Verdict,
}

/// Reads every model's file. Errors name file and what is wrong.
pub fn load(dir: &Path) -> Result<Vec<Labelled>, String> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let mut labelled = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(model) = name.strip_prefix("xstest_").and_then(|name| name.strip_suffix("_streval.csv"))
        else {
            continue;
        };
        let in_file = |error: csv::Error| format!("{name}: {error}");
        let mut reader = csv::Reader::from_path(&path).map_err(in_file)?;
        let headers = reader.headers().map_err(in_file)?.clone();
        let column = |wanted: &str| {
            let found = headers.iter().position(|header| header == wanted);
            found.ok_or_else(|| format!("{name}: there is no column `{wanted}`"))
        };
        let columns = [column("id")?, column("prompt")?, column("completion")?, column("final_label")?];
        for record in reader.records() {
            let record = record.map_err(in_file)?;
            let [prompt_id, prompt, completion, label] = columns.map(|column| record[column].to_owned());
            let label = match label.as_str() {
                "1_full_compliance" => Verdict::Comply,
                "2_full_refusal" => Verdict::Full,
                "3_partial_refusal" => Verdict::Partial,
                other => return Err(format!("{name}: `{other}` is no label")),
            };
            let features = Features::of(&prompt, &completion);
            labelled.push(Labelled { model: model.to_owned(), prompt: prompt_id, features, label });
        }
    }
    Ok(labelled)
}

/// One row of a fit.
struct Row<'a> {
    values: &'a [f64; N_RULES],
    is_positive: bool,
    weight: f64,
}

/// Returns the column that maximizes the weighted log-likelihood less [`PENALTY`]/2 times the squared weights, with the
/// signs that `directions` allow: coordinate-wise Newton steps, each projected.
fn fit_column(rows: &[Row], directions: Option<&[Direction]>) -> Column {
    let mut column = Column { intercept: 0.0, weights: [0.0; N_RULES] };
    let mut margins = vec![0.0; rows.len()];
    for _ in 0..SWEEPS {
        for place in 0..=N_RULES {
            let value = |row: &Row| if place == N_RULES { 1.0 } else { row.values[place] };
            let (mut gradient, mut curvature) = (0.0, 1e-9);
            for (row, margin) in rows.iter().zip(&margins) {
                let x = value(row);
                if x != 0.0 {
                    let probability = 1.0 / (1.0 + f64::exp(-margin));
                    gradient += row.weight * x * (f64::from(u8::from(row.is_positive)) - probability);
                    curvature += row.weight * x * x * probability * (1.0 - probability);
                }
            }
            let (old, penalty) = match place {
                N_RULES => (column.intercept, 1e-6),
                place => (column.weights[place], PENALTY),
            };
            let free = old + (gradient - penalty * old) / (curvature + penalty);
            let new = match directions.and_then(|directions| directions.get(place)) {
                Some(Direction::Refusal) => free.max(0.0),
                Some(Direction::Compliance) => free.min(0.0),
                None => free,
            };
            for (row, margin) in rows.iter().zip(&mut margins) {
                *margin += (new - old) * value(row);
            }
            match place {
                N_RULES => column.intercept = new,
                place => column.weights[place] = new,
            }
        }
    }
    column
}

/// Returns the weights for labelled completions, rounded to the hundredths that the source holds.
pub fn fit<'a>(labelled: impl Iterator<Item = &'a Labelled> + Clone) -> Weights {
    let directions: Vec<Direction> = rules().map(|(_, direction)| direction).collect();
    let verdicts = |is_explicit: bool, weight: f64| {
        let of_kind = labelled.clone().filter(|row| row.features.is_explicit == is_explicit);
        let row = |row: &'a Labelled| {
            let is_positive = row.label.is_refusal();
            Row { values: &row.features.values, is_positive, weight: if is_positive { weight } else { 1.0 } }
        };
        of_kind.map(row).collect::<Vec<Row>>()
    };
    let refusals = labelled.clone().filter(|row| row.label.is_refusal());
    let partial: Vec<Row> = refusals
        .map(|row| Row {
            values: &row.features.values,
            is_positive: row.label == Verdict::Partial,
            weight: 1.0,
        })
        .collect();
    Weights {
        explicit: rounded(fit_column(&verdicts(true, 1.0), Some(&directions))),
        implicit: rounded(fit_column(&verdicts(false, REFUSAL_WEIGHT), Some(&directions))),
        partial: rounded(fit_column(&partial, None)),
    }
}

fn rounded(column: Column) -> Column {
    // + 0.0 makes of -0.0 what the source holds
    let round = |weight: f64| (weight * 100.0).round() / 100.0 + 0.0;
    Column { intercept: round(column.intercept), weights: column.weights.map(round) }
}

/// How verdicts agree with labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    pub n: usize,
    /// Label and verdict: refusal and refusal, refusal and compliance, compliance and refusal.
    pub hits: usize,
    pub misses: usize,
    pub false_alarms: usize,
    /// Cohen's kappa, partial refusals counted as refusals.
    pub kappa: f64,
    /// F1 of refusals.
    pub f1: f64,
    /// Cohen's kappa of full, partial and comply.
    pub kappa_of_three: f64,
}

/// Returns the agreement of pairs of label and verdict.
pub fn agreement(pairs: &[(Verdict, Verdict)]) -> Agreement {
    let count = |label: bool, verdict: bool| {
        let is = |(a, b): &&(Verdict, Verdict)| a.is_refusal() == label && b.is_refusal() == verdict;
        pairs.iter().filter(is).count()
    };
    let (hits, misses, false_alarms) = (count(true, true), count(true, false), count(false, true));
    Agreement {
        n: pairs.len(),
        hits,
        misses,
        false_alarms,
        kappa: kappa(pairs.iter().map(|(label, verdict)| (label.is_refusal(), verdict.is_refusal()))),
        f1: 2.0 * hits as f64 / (2 * hits + misses + false_alarms) as f64,
        kappa_of_three: kappa(pairs.iter().copied()),
    }
}

/// Cohen's kappa: (observed agreement - chance agreement) / (1 - chance agreement).
fn kappa<T: PartialEq + Copy>(pairs: impl Iterator<Item = (T, T)>) -> f64 {
    let pairs: Vec<(T, T)> = pairs.collect();
    let n = pairs.len() as f64;
    let observed = pairs.iter().filter(|(a, b)| a == b).count() as f64 / n;
    let chance: f64 =
        pairs.iter().map(|(a, _)| pairs.iter().filter(|(_, b)| a == b).count() as f64 / (n * n)).sum();
    (observed - chance) / (1.0 - chance)
}

/// Folds of prompts for [`unseen_model_and_prompts`].
const FOLDS: usize = 5;

fn fold_of(row: &Labelled) -> usize {
    let digits: String = row.prompt.chars().rev().take_while(char::is_ascii_digit).collect();
    digits.chars().rev().collect::<String>().parse::<usize>().unwrap_or(0) % FOLDS
}

/// Returns the agreement on one model of weights fitted to the others.
pub fn unseen_model(labelled: &[Labelled], model: &str) -> Agreement {
    let weights = fit(labelled.iter().filter(|row| row.model != model));
    let of_model = labelled.iter().filter(|row| row.model == model);
    let pairs: Vec<_> = of_model.map(|row| (row.label, weights.judge(&row.features).1)).collect();
    agreement(&pairs)
}

/// The same, where the weights have seen neither the model nor the prompts they are asked about: five folds of prompts.
pub fn unseen_model_and_prompts(labelled: &[Labelled], model: &str) -> Agreement {
    let mut pairs = Vec::new();
    for fold in 0..FOLDS {
        let weights = fit(labelled.iter().filter(|row| row.model != model && fold_of(row) != fold));
        let asked = labelled.iter().filter(|row| row.model == model && fold_of(row) == fold);
        pairs.extend(asked.map(|row| (row.label, weights.judge(&row.features).1)));
    }
    agreement(&pairs)
}

/// Returns the agreement on one model of the weights in the source.
pub fn shipped(labelled: &[Labelled], model: &str) -> Agreement {
    let of_model = labelled.iter().filter(|row| row.model == model);
    let judge = |row: &Labelled| (row.label, Weights::shipped().judge(&row.features).1);
    agreement(&of_model.map(judge).collect::<Vec<_>>())
}

/// Returns the models, in the order of their files.
pub fn models(labelled: &[Labelled]) -> Vec<String> {
    let mut models: Vec<String> = labelled.iter().map(|row| row.model.clone()).collect();
    models.dedup();
    models
}

/// Returns weights.rs.
pub fn source(weights: &Weights) -> String {
    let columns = [&weights.explicit, &weights.implicit, &weights.partial];
    let mut text = String::from(
        "//! Weights of the refusal scorer, written by `cargo run --example fit_refusal`.\n\n\
         /// Of explicit refusals, of other answers, of partial against full refusals.\n",
    );
    let intercepts = columns.map(|column| format!("{:.2}", column.intercept)).join(", ");
    text.push_str(&format!("pub const INTERCEPTS: [f64; 3] = [{intercepts}];\n\n"));
    text.push_str("/// Per rule its name, and its weight in each column.\n#[rustfmt::skip]\n");
    text.push_str(&format!("pub const WEIGHTS: [(&str, [f64; 3]); {N_RULES}] = [\n"));
    for (index, (name, _)) in rules().enumerate() {
        let row = columns.map(|column| format!("{:.2}", column.weights[index])).join(", ");
        text.push_str(&format!("    (\"{name}\", [{row}]),\n"));
    }
    text.push_str("];\n");
    text
}

#[allow(dead_code, reason = "the tests use everything else")]
fn main() -> Result<(), String> {
    let dir = std::env::args_os().nth(1).ok_or("usage: fit_refusal DIR")?;
    let labelled = load(Path::new(&dir))?;
    let weights = fit(labelled.iter());
    print!("{}", source(&weights));
    for model in models(&labelled) {
        let fitted: Vec<_> = labelled
            .iter()
            .filter(|row| row.model == model)
            .map(|row| (row.label, weights.judge(&row.features).1))
            .collect();
        for (how, agreement) in [
            ("fitted to all", agreement(&fitted)),
            ("unseen model", unseen_model(&labelled, &model)),
            ("unseen model and prompts", unseen_model_and_prompts(&labelled, &model)),
        ] {
            let Agreement { n, hits, misses, false_alarms, kappa, f1, kappa_of_three } = agreement;
            eprintln!(
                "{model:16} {how:25} n {n} kappa {kappa:.3} F1 {f1:.3} hits {hits} misses {misses} \
                 false alarms {false_alarms} kappa of three {kappa_of_three:.3}"
            );
        }
    }
    Ok(())
}
