//! The report of `lctl inspect` as text.

use std::fmt::Write;

use serde_json::Value as Json;

use crate::cli::term::{bytes, printable};
use crate::inspect::{
    Change, CrossCheck, Diff, Dimensions, KeyView, Memory, Report, TensorKind, TensorRow, Verdict,
};
use crate::layout;
use crate::text::VocabSummary;

/// Characters of a value that fit on its line.
const VALUE_WIDTH: usize = 70;
/// Lines of the chat template that are shown.
const TEMPLATE_LINES: usize = 4;

/// Returns the whole report.
pub fn report(report: &Report) -> String {
    let mut sections = vec![overview(report)];
    if !report.types.is_empty() {
        sections.push(types(report));
    }
    sections.push(keys(&report.keys));
    sections.extend(report.tokenizer.as_ref().map(tokenizer));
    sections.extend(report.notes.iter().map(|note| format!("note: {}\n", printable(note))));
    sections.push(template(report.chat_template.as_deref()));
    sections.extend(report.memory.as_ref().map(memory));
    sections.extend(report.tensors.as_deref().map(tensors));
    sections.join("\n")
}

/// Lines of `  label  value`, labels padded to one width.
fn facts(title: &str, rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let mut out = format!("{title}\n");
    for (label, value) in rows {
        let _ = writeln!(out, "  {label:<width$}  {value}");
    }
    out
}

fn overview(report: &Report) -> String {
    let total: u64 = report.files.iter().map(|file| file.bytes).sum();
    let format = match report.gguf_version {
        Some(version) => format!("GGUF version {version}"),
        None => "safetensors".to_owned(),
    };
    let files = counted(report.files.len(), "file");
    let mut rows = vec![
        ("format", format!("{format}, {files}, {}", bytes(total))),
        ("architecture", printable(report.architecture.as_deref().unwrap_or("not stated"))),
    ];
    if let Some(name) = &report.name {
        rows.push(("name", printable(name)));
    }
    rows.push(("tensors", grouped(report.tensor_count as u64)));
    rows.push(("parameters", grouped(report.parameters)));
    if let Some(bits) = report.bits_per_weight {
        rows.push(("tensor data", format!("{}, {bits:.2} bits per weight", bytes(report.tensor_bytes))));
    }
    rows.extend(report.dimensions.iter().flat_map(dimensions));
    facts(&printable(&report.path), &rows)
}

fn dimensions(dims: &Dimensions) -> Vec<(&'static str, String)> {
    let kv = match (dims.n_kv_heads.iter().min(), dims.n_kv_heads.iter().max()) {
        (Some(least), Some(most)) if least != most => format!("{least} to {most}"),
        (_, most) => most.copied().unwrap_or(0).to_string(),
    };
    let attention = format!(
        "{} of width {}, {}, {kv} for keys and values, of {}",
        counted(dims.n_layers as usize, "layer"),
        dims.d_model,
        counted(dims.n_heads as usize, "head"),
        dims.key_dim
    );
    let mut rows = vec![("layers", attention)];
    if let Some(context) = dims.context_length {
        let windowed = dims.windowed.iter().filter(|windowed| **windowed).count();
        let window = match dims.sliding_window {
            Some(window) if windowed > 0 => format!("; {windowed} layers see a window of {window}"),
            _ => String::new(),
        };
        rows.push(("context", format!("{context} tokens{window}")));
    }
    rows
}

fn types(report: &Report) -> String {
    let mut rows: Vec<[String; 5]> =
        vec![["type", "tensors", "parameters", "bytes", "bits/weight"].map(str::to_owned)];
    for row in &report.types {
        let bits = format!("{:.2}", row.bits_per_weight);
        rows.push([
            row.dtype.clone(),
            row.tensors.to_string(),
            grouped(row.parameters),
            grouped(row.bytes),
            bits,
        ]);
    }
    format!("tensors by type\n{}", table(&rows, 1))
}

fn tensors(rows: &[TensorRow]) -> String {
    let with_digests = rows.iter().any(|row| row.sha256.is_some());
    let many_files = rows.iter().any(|row| row.file > 0);
    let mut lines = vec![vec![
        "name".to_owned(),
        "type".to_owned(),
        "shape".to_owned(),
        "bytes".to_owned(),
        "offset".to_owned(),
    ]];
    for row in rows {
        let place =
            if many_files { format!("{}:{}", row.file + 1, row.offset) } else { row.offset.to_string() };
        lines.push(vec![
            printable(&row.name),
            row.dtype.clone(),
            shape(&row.shape),
            grouped(row.bytes),
            place,
        ]);
    }
    if with_digests {
        lines[0].push("sha256".to_owned());
        for (line, row) in lines[1..].iter_mut().zip(rows) {
            line.push(row.sha256.clone().unwrap_or_default());
        }
    }
    format!("tensors\n{}", table(&lines, 3))
}

/// An indented table, its first `left` columns aligned to the left.
fn table<R: AsRef<[String]>>(rows: &[R], left: usize) -> String {
    let table = layout::table(rows, |column| column < left, None);
    table.lines().map(|line| format!("  {line}\n")).collect()
}

fn keys(keys: &[KeyView]) -> String {
    let rows: Vec<[String; 3]> =
        keys.iter().map(|view| [printable(&view.key), view.kind.clone(), value(view)]).collect();
    format!("keys ({})\n{}", keys.len(), table(&rows, 3))
}

/// A value on one line, cut where it gets long.
fn value(view: &KeyView) -> String {
    let shown = match &view.value {
        Json::String(text) if !view.kind.ends_with(']') => printable(text),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| printable(&item.to_string())).collect();
            let rest = if view.is_abbreviated() { ", …" } else { "" };
            return format!("[{}{rest}]", cut(&items.join(", ")));
        }
        other => printable(&other.to_string()),
    };
    cut(&shown)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(VALUE_WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn tokenizer(vocab: &VocabSummary) -> String {
    let model = vocab.model.as_deref().unwrap_or("not stated");
    let pre = vocab.pre.as_ref().map(|pre| format!(", pre-tokenizer {pre}")).unwrap_or_default();
    let mut rows = vec![
        ("model", printable(&format!("{model}{pre}"))),
        ("tokens", format!("{}, {} merges", grouped(vocab.n_tokens as u64), grouped(vocab.n_merges as u64))),
    ];
    for token in &vocab.special_tokens {
        let text = token
            .text
            .as_ref()
            .map_or("past the vocabulary".to_owned(), |text| printable(&format!("{text:?}")));
        rows.push(("special", printable(&format!("{} {} {text}", token.role, token.id))));
    }
    for (name, flag) in &vocab.flags {
        rows.push(("flag", printable(&format!("{name} {flag}"))));
    }
    facts("tokenizer", &rows)
}

fn template(template: Option<&str>) -> String {
    let Some(template) = template else { return "chat template: none\n".to_owned() };
    let lines: Vec<&str> = template.lines().collect();
    let mut out = format!("chat template: {} bytes, {}\n", template.len(), counted(lines.len(), "line"));
    for line in lines.iter().take(TEMPLATE_LINES) {
        let _ = writeln!(out, "  {}", cut(&printable(line)));
    }
    if lines.len() > TEMPLATE_LINES {
        let _ = writeln!(out, "  … (--chat-template prints it whole)");
    }
    out
}

fn memory(memory: &Memory) -> String {
    let rows = [
        ("weights", bytes(memory.weights)),
        ("key-value cache, f16", bytes(memory.kv_cache)),
        ("activations of one batch", bytes(memory.compute)),
        ("total", bytes(memory.total)),
    ];
    facts(
        &format!("memory to run at {} tokens of context (estimate, docs/inspect.md)", memory.context),
        &rows,
    )
}

/// Returns a line per reader and file, and one per difference.
pub fn cross_checks(checks: &[CrossCheck]) -> String {
    let mut out = String::new();
    for check in checks {
        let file = printable(&check.file);
        let _ = writeln!(out, "\ncross-check of {file} ({} tensors, {} keys)", check.tensors, check.keys);
        for (reader, verdict) in &check.readers {
            let _ = match verdict {
                Verdict::Agrees => writeln!(out, "  {reader}: agrees"),
                Verdict::NotComparable { reason } => {
                    writeln!(out, "  {reader}: could not read it: {}", cut(&printable(reason)))
                }
                Verdict::Differs { .. } => writeln!(out, "  {reader}: DISAGREES"),
            };
            if let Verdict::Differs { differences } = verdict {
                for difference in differences {
                    let _ = writeln!(out, "    {}", printable(difference));
                }
            }
        }
    }
    out
}

/// Returns the differences: `-` only in the first, `+` only in the second, `~` changed.
pub fn diff(names: &[String; 2], diff: &Diff) -> String {
    let mut out = format!("- {}\n+ {}\n", printable(&names[0]), printable(&names[1]));
    changes(&mut out, "keys", &diff.keys, |view| format!("{} {}", view.kind, value(view)));
    let kind = |kind: &TensorKind| format!("{} {}", kind.dtype, shape(&kind.shape));
    changes(&mut out, "tensors", &diff.tensors, kind);
    changes(&mut out, "data (SHA-256)", diff.data.as_deref().unwrap_or_default(), String::clone);
    let data = if diff.data.is_some() { "" } else { "; data not compared (--digest)" };
    let count = diff.keys.len() + diff.tensors.len() + diff.data.as_ref().map_or(0, Vec::len);
    let _ = match count {
        0 => writeln!(out, "no differences{data}"),
        count => writeln!(out, "{}{data}", counted(count, "difference")),
    };
    out
}

fn changes<T>(out: &mut String, title: &str, changes: &[Change<T>], show: impl Fn(&T) -> String) {
    if changes.is_empty() {
        return;
    }
    let _ = writeln!(out, "{title}");
    for change in changes {
        let name = printable(&change.name);
        let _ = match (&change.before, &change.after) {
            (Some(before), None) => writeln!(out, "  - {name}  {}", show(before)),
            (None, Some(after)) => writeln!(out, "  + {name}  {}", show(after)),
            (Some(before), Some(after)) => writeln!(out, "  ~ {name}  {} -> {}", show(before), show(after)),
            (None, None) => Ok(()),
        };
    }
}

/// Returns `2048 x 512`, outermost first; `scalar` for no dimensions.
fn shape(dims: &[usize]) -> String {
    match dims {
        [] => "scalar".to_owned(),
        dims => dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" x "),
    }
}

/// Returns `1 file`, `2 files`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Returns the number with a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_in_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
