//! The model inside the program, and what `lctl demo` measures and teaches it.
//!
//! `model/` is a checkpoint that lctl trained itself; README.md beside it says how to make it again.

use std::path::Path;

/// A file that comes with the program: where it goes, below a directory.
pub struct File {
    pub path: &'static str,
    pub bytes: &'static [u8],
}

macro_rules! files {
    ($($path:literal = $from:literal;)*) => {
        /// Every file that the demonstration begins with.
        pub static FILES: &[File] = &[$(File { path: $path, bytes: include_bytes!($from) }),*];
    };
}

files! {
    "base/config.json" = "model/config.json";
    "base/model.safetensors" = "model/model.safetensors";
    "base/tokenizer.json" = "model/tokenizer.json";
    "base/tokenizer_config.json" = "model/tokenizer_config.json";
    "datasets/demo-queue.jsonl" = "../../datasets/demo-queue.jsonl";
    "datasets/demo-queue-train.jsonl" = "../../datasets/demo-queue-train.jsonl";
    "datasets/demo-soc.jsonl" = "../../datasets/demo-soc.jsonl";
    "datasets/demo-soc-train.jsonl" = "../../datasets/demo-soc-train.jsonl";
    "evalsuites/demo-queue.yaml" = "../../evalsuites/demo-queue.yaml";
    "evalsuites/demo-soc.yaml" = "../../evalsuites/demo-soc.yaml";
    "recipes/demo-queue.yaml" = "../../recipes/demo-queue.yaml";
}

/// Where [`text`] goes, below a directory.
pub const TEXT: &str = "texts/demo-soc.txt";

/// Returns the questions of demo-soc and their answers as a text, two lines each: what the model's predictions are compared over.
pub fn text() -> String {
    let rows = include_str!("../../datasets/demo-soc.jsonl").lines();
    let rows = rows.filter_map(|row| serde_json::from_str::<serde_json::Value>(row).ok());
    let lines =
        rows.filter_map(|row| Some(format!("{}\n{}\n", row["question"].as_str()?, row["answer"].as_str()?)));
    lines.collect()
}

/// Writes every file and the text below a directory. Errors as the file system does, with the path.
pub fn write(dir: &Path) -> Result<(), (std::path::PathBuf, std::io::Error)> {
    let text = text();
    for (path, bytes) in FILES.iter().map(|file| (file.path, file.bytes)).chain([(TEXT, text.as_bytes())]) {
        let path = dir.join(path);
        let parent = path.parent().unwrap_or(dir);
        let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, bytes));
        written.map_err(|error| (path, error))?;
    }
    Ok(())
}
