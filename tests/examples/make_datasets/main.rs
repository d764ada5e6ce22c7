//! Writes the data of the shipped suites and recipes, datasets/*.jsonl, from the tables in datasets/sources.
//!
//!     cargo run --release --example make_datasets [-- --out DIR]
//!
//! The files depend on the tables and on this code alone: draws are counter-based, keyed by what they are for, so
//! that a row added to a table leaves the other rows' items as they are. A test regenerates and compares bytes.

mod attack_map;
mod cve_to_cwe;
mod demo;
mod draw;
mod fill;
mod inject_canary;
mod item;
mod likeness;
mod log_triage;
mod query_translate;
mod small;
mod soc_mcq;
mod table;
mod templated;
mod training;

use std::error::Error;
use std::path::{Path, PathBuf};

use clap::Parser;

use item::Item;
use table::Tables;

#[derive(Parser)]
struct Args {
    /// Directory to write to.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/datasets"))]
    out: PathBuf,
}

/// A file of data and what makes its rows.
pub struct DataFile {
    pub name: &'static str,
    make: fn(&Tables) -> Result<Vec<Item>, table::Error>,
}

/// Every file that is generated.
pub static FILES: &[DataFile] = &[
    DataFile { name: "soc-mcq.jsonl", make: soc_mcq::items },
    DataFile { name: "soc-mcq-dev.jsonl", make: soc_mcq::examples },
    DataFile { name: "attack-map.jsonl", make: attack_map::items },
    DataFile { name: "attack-map-dev.jsonl", make: attack_map::examples },
    DataFile { name: "cve-to-cwe.jsonl", make: cve_to_cwe::items },
    DataFile { name: "cve-to-cwe-dev.jsonl", make: cve_to_cwe::examples },
    DataFile { name: "log-triage.jsonl", make: log_triage::items },
    DataFile { name: "inject-canary.jsonl", make: inject_canary::items },
    DataFile { name: "secret-leak.jsonl", make: small::secret_leak },
    DataFile { name: "secret-leak-train.jsonl", make: small::secret_training },
    DataFile { name: "cvss-vector.jsonl", make: small::cvss_vector },
    DataFile { name: "ioc-extract.jsonl", make: |tables| templated::items(tables, "ioc-extract") },
    DataFile { name: "phish-triage.jsonl", make: |tables| templated::items(tables, "phish-triage") },
    DataFile { name: "query-translate.jsonl", make: query_translate::items },
    DataFile { name: "secure-code.jsonl", make: |tables| templated::items(tables, "secure-code") },
    DataFile { name: "alert-summary.jsonl", make: |tables| templated::items(tables, "alert-summary") },
    DataFile { name: "kb-qa.jsonl", make: |tables| templated::items(tables, "kb-qa") },
    DataFile { name: "overrefusal-sec.jsonl", make: |tables| templated::items(tables, "overrefusal-sec") },
    DataFile { name: "tool-policy.jsonl", make: |tables| templated::items(tables, "tool-policy") },
    DataFile { name: "hallucinated-id.jsonl", make: small::hallucinated_id },
    DataFile { name: "long-context.jsonl", make: small::long_context },
    DataFile { name: "phish-triage-train.jsonl", make: training::phish_triage },
    DataFile { name: "log-triage-train.jsonl", make: training::log_triage },
    DataFile { name: "query-translate-train.jsonl", make: training::query_translate },
    DataFile { name: "ir-report-train.jsonl", make: training::ir_report },
    DataFile { name: "demo-soc-train.jsonl", make: demo::soc_training },
    DataFile { name: "demo-soc.jsonl", make: demo::soc },
    DataFile { name: "demo-queue-train.jsonl", make: demo::queue_training },
    DataFile { name: "demo-queue.jsonl", make: demo::queue },
];

/// Returns the text of a file, made from the tables in a directory.
pub fn text_of(file: &DataFile, sources: &Path) -> Result<String, table::Error> {
    let items = (file.make)(&Tables::new(sources))?;
    Ok(items.iter().map(|item| format!("{item}\n")).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/sources");
    for file in FILES {
        let text = text_of(file, &sources)?;
        std::fs::write(args.out.join(file.name), &text)?;
        eprintln!("{}: {} items, {} KB", file.name, text.lines().count(), text.len() / 1024);
    }
    Ok(())
}
