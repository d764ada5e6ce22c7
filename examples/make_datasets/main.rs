//! Writes the data of the shipped suites, datasets/*.jsonl, from the tables in datasets/sources.
//!
//!     cargo run --release --example make_datasets [-- --out DIR]
//!
//! The files depend on the tables and on this code alone: draws are counter-based, keyed by what they are for, so
//! that a row added to a table leaves the other rows' items as they are. A test regenerates and compares bytes.

mod attack_map;
mod cve_to_cwe;
mod draw;
mod item;
mod soc_mcq;
mod table;

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
