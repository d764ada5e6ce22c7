//! A run as one HTML file: curves, data, recipe. It loads nothing and runs nothing.

use std::fmt::Write as _;

use super::run::{Ended, Event, Forgetting, Outcome};
use crate::data::FileCounts;

/// What the report is of.
pub struct Facts<'a> {
    /// The model's name.
    pub title: String,
    /// The recipe, defaults written out.
    pub recipe: String,
    pub outcome: &'a Outcome,
    pub files: &'a [FileCounts],
    pub events: &'a [Event],
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left}\
td.n{text-align:right;font-variant-numeric:tabular-nums}pre{background:#f5f6f8;padding:1rem;overflow:auto}\
svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#57606a}.a{stroke:#0b62c4}.b{stroke:#c4520b}\
path{fill:none;stroke-width:1.6}line{stroke:#d8dce1}";

/// Returns the report.
pub fn html(facts: &Facts<'_>) -> String {
    let mut page = String::new();
    let title = escaped(&facts.title);
    // writing to a String cannot fail
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Fine-tuning of {title}</title>\
         <style>{STYLE}</style></head><body><h1>Fine-tuning of {title}</h1>"
    );
    page += &summary(facts);
    page += "<h2>Loss</h2>";
    page += &chart(&[
        ("a", "training", series(facts.events, Curve::Loss)),
        ("b", "validation", series(facts.events, Curve::Validation)),
    ]);
    page += "<h2>Learning rate</h2>";
    page += &chart(&[("a", "learning rate", series(facts.events, Curve::Rate))]);
    page += "<h2>Gradient norm</h2>";
    page += &chart(&[("a", "before clipping", series(facts.events, Curve::Norm))]);
    page += &data(facts.files);
    let _ = writeln!(page, "<h2>Recipe</h2><pre>{}</pre></body></html>", escaped(&facts.recipe));
    page
}

fn summary(facts: &Facts<'_>) -> String {
    let outcome = facts.outcome;
    let ended = match outcome.ended {
        Ended::Finished => "finished",
        Ended::Early => "ended early: validation loss no longer fell",
        Ended::Interrupted => "interrupted",
    };
    let mut rows = vec![
        ("Run", ended.to_owned()),
        ("Steps", format!("{} of {}", outcome.steps, outcome.total_steps)),
        ("Result", format!("step {}", outcome.chosen_step)),
    ];
    if let Some(best) = outcome.best {
        rows.push(("Lowest validation loss", format!("{:.4}, after step {}", best.loss.0, best.step)));
    }
    if let Some(Forgetting { before, after }) = outcome.forgetting {
        rows.push(("Loss on the general text", format!("{before:.4} before, {after:.4} after")));
    }
    if outcome.identity.world_size > 1 {
        rows.push(("Processes", outcome.identity.world_size.to_string()));
    }
    rows.push(("Recipe, SHA-256", outcome.identity.recipe_sha256()));
    rows.push(("Model, SHA-256", outcome.identity.model_sha256.clone()));
    let rows: String = rows
        .iter()
        .map(|(what, value)| format!("<tr><th>{what}</th><td>{}</td></tr>", escaped(value)))
        .collect();
    format!("<table>{rows}</table>")
}

fn data(files: &[FileCounts]) -> String {
    let row = |file: &FileCounts| {
        format!(
            "<tr><td>{}</td><td>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td><td class=n>{}</td></tr>",
            escaped(&file.path.display().to_string()),
            if file.is_validation { "validation" } else { "training" },
            file.rows,
            file.held_out,
            file.tokens,
            file.targets
        )
    };
    let rows: String = files.iter().map(row).collect();
    format!(
        "<h2>Data</h2><table><tr><th>file</th><th>for</th><th>rows</th><th>held out</th><th>tokens</th><th>trained</th></tr>{rows}</table>"
    )
}

#[derive(Clone, Copy)]
enum Curve {
    Loss,
    Validation,
    Rate,
    Norm,
}

fn series(events: &[Event], curve: Curve) -> Vec<(f64, f64)> {
    let point = |event: &Event| match (event, curve) {
        (Event::Step(step), Curve::Loss) => Some((step.step as f64, step.loss)),
        (Event::Step(step), Curve::Rate) => Some((step.step as f64, step.lr)),
        (Event::Step(step), Curve::Norm) => Some((step.step as f64, step.grad_norm)),
        (Event::Validation(validation), Curve::Validation) => Some((validation.step as f64, validation.loss)),
        _ => None,
    };
    events.iter().filter_map(point).collect()
}

/// Points of a curve that are drawn; longer ones are thinned out evenly.
const POINTS: usize = 1500;

/// A curve: its class, its name, its points.
type Named<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

/// Returns curves over steps.
fn chart(curves: &[Named<'_>]) -> String {
    const SIZE: (f64, f64) = (800.0, 240.0);
    const LEFT: f64 = 60.0;
    const BOTTOM: f64 = 24.0;
    let points = || curves.iter().flat_map(|(_, _, points)| points);
    if points().next().is_none() {
        return "<p>nothing yet</p>".to_owned();
    }
    let range = |of: fn(&(f64, f64)) -> f64| {
        let ends = points().map(of).fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        if ends.0 == ends.1 { (ends.0 - 0.5, ends.1 + 0.5) } else { ends }
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let x = |value: f64| LEFT + (value - x0) / (x1 - x0) * (SIZE.0 - LEFT - 8.0);
    let y = |value: f64| 8.0 + (y1 - value) / (y1 - y0) * (SIZE.1 - BOTTOM - 8.0);
    let mut svg = format!("<svg viewBox=\"0 0 {} {}\" role=\"img\">", SIZE.0, SIZE.1);
    for i in 0..=4 {
        let value = y0 + (y1 - y0) * f64::from(i) / 4.0;
        let at = y(value);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            SIZE.0 - 8.0,
            LEFT - 6.0,
            at + 4.0,
            label(value)
        );
    }
    for value in [x0, x1] {
        let anchor = if value == x0 { "start" } else { "end" };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            x(value),
            SIZE.1 - 6.0,
            label(value)
        );
    }
    for (index, (class, name, points)) in curves.iter().enumerate().filter(|(_, curve)| !curve.2.is_empty()) {
        let every = points.len().div_ceil(POINTS);
        let path: Vec<String> = points
            .iter()
            .step_by(every)
            .map(|point| format!("{:.1} {:.1}", x(point.0), y(point.1)))
            .collect();
        let _ = write!(svg, "<path class=\"{class}\" d=\"M{}\"/>", path.join("L"));
        let at = SIZE.0 - 150.0;
        let row = 22.0 + 16.0 * index as f64;
        let _ = write!(
            svg,
            "<path class=\"{class}\" d=\"M{at} {row}h20\"/><text x=\"{}\" y=\"{}\">{name}</text>",
            at + 26.0,
            row + 4.0
        );
    }
    svg + "</svg>"
}

fn label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e4.. => format!("{value:.0}"),
        0.01.. if value.fract() == 0.0 => format!("{value:.0}"),
        0.01.. => format!("{value:.3}"),
        _ => format!("{value:.1e}"),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // would hide or turn around what surrounds them
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.push('\u{fffd}')
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finetune::run::{Identity, StepEvent};

    #[test]
    fn a_report_is_one_inert_page() {
        let step = |step, loss| Event::Step(StepEvent { step, loss, ..StepEvent::default() });
        let identity = Identity {
            model_sha256: "aa".into(),
            data: serde_json::Map::new(),
            corpus_sha256: "bb".into(),
            general_sha256: None,
            recipe: serde_json::Value::Null,
            world_size: 1,
        };
        let outcome = Outcome {
            ended: Ended::Finished,
            steps: 2,
            total_steps: 2,
            params: Vec::new().into(),
            chosen_step: 2,
            checkpoint: "c".into(),
            best: None,
            forgetting: None,
            identity,
        };
        let facts = Facts {
            title: "<script>alert(1)</script>".into(),
            recipe: "a: \"&\"".into(),
            outcome: &outcome,
            files: &[],
            events: &[step(1, 2.0), step(2, 1.0)],
        };
        let html = html(&facts);
        assert!(!html.contains("<script") && html.contains("&lt;script&gt;"));
        assert!(html.contains("a: &quot;&amp;&quot;") && html.contains("default-src 'none'"));
        assert_eq!(html.matches("<svg").count(), 3);
        assert!(!html.contains("NaN") && !html.contains("http://") && !html.contains("https://"));
    }
}
