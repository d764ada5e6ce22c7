//! Opening whatever the user points at; what a file is follows from its bytes, not its name.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::gguf::Gguf;
use super::safetensors::SafeTensors;
use super::{Error, TensorSource};

/// An opened model, headers read.
pub enum Opened {
    SafeTensors(SafeTensors),
    Gguf(Gguf),
}

impl Opened {
    /// Returns the tensors, whatever holds them.
    pub fn as_source(&self) -> &dyn TensorSource {
        match self {
            Opened::SafeTensors(source) => source,
            Opened::Gguf(source) => source,
        }
    }

    /// Returns the tensors, whatever holds them.
    pub fn into_source(self) -> Box<dyn TensorSource> {
        match self {
            Opened::SafeTensors(source) => Box::new(source),
            Opened::Gguf(source) => Box::new(source),
        }
    }
}

/// Opens a .safetensors or .gguf file (a split GGUF by its first shard), or a directory with safetensors
/// (see [`SafeTensors::open_dir`]) or else one GGUF model.
///
/// Pickle checkpoints are refused without reading past their first bytes.
pub fn open(path: &Path) -> Result<Opened, Error> {
    if path.is_dir() { open_dir(path) } else { open_file(path) }
}

/// What a file's first bytes say it is.
enum Kind {
    Gguf,
    SafeTensors,
    Pickle(&'static str),
    Legacy(&'static str),
    LfsPointer,
    WebPage,
    Empty,
    Unknown,
}

fn open_file(path: &Path) -> Result<Opened, Error> {
    let meta = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { path: path.to_owned() },
        _ => Error::Io { path: path.to_owned(), action: "open", source },
    })?;
    if !meta.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let mut start = Vec::with_capacity(64);
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    file.take(64).read_to_end(&mut start).map_err(Error::io(path, "read"))?;
    let path_buf = || path.to_owned();
    match kind_of(&start, path) {
        Kind::Gguf => Gguf::open(path).map(Opened::Gguf),
        Kind::SafeTensors => SafeTensors::open_file(path).map(Opened::SafeTensors),
        Kind::Pickle(evidence) => Err(Error::Pickle { path: path_buf(), evidence }),
        Kind::Legacy(format) => Err(Error::LegacyGgml { path: path_buf(), format }),
        Kind::WebPage => Err(Error::WebPage { path: path_buf() }),
        Kind::Empty => Err(Error::Empty { path: path_buf() }),
        Kind::LfsPointer => Err(Error::LfsPointer { path: path_buf() }),
        Kind::Unknown => Err(Error::UnknownFormat { path: path_buf(), start: shown(&start) }),
    }
}

const PICKLE_EXTENSIONS: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

fn kind_of(start: &[u8], path: &Path) -> Kind {
    let extension = path.extension().and_then(|ext| ext.to_str()).unwrap_or("").to_ascii_lowercase();
    match start {
        [b'G', b'G', b'U', b'F', ..] => return Kind::Gguf,
        // The words 'ggml', 'ggmf', 'ggjt', 'ggla' as little-endian u32.
        [b'l', b'm', b'g', b'g', ..] => return Kind::Legacy("GGML"),
        [b'f', b'm', b'g', b'g', ..] => return Kind::Legacy("GGMF"),
        [b't', b'j', b'g', b'g', ..] => return Kind::Legacy("GGJT"),
        [b'a', b'l', b'g', b'g', ..] => return Kind::Legacy("GGLA"),
        [b'P', b'K', 3, 4, ..] => return Kind::Pickle("a zip archive, as torch.save writes"),
        [0x80, 2..=5, ..] => return Kind::Pickle("it begins with a pickle's opcode"),
        _ => {}
    }
    if start.starts_with(b"version https://git-lfs") {
        return Kind::LfsPointer;
    }
    if start.is_empty() && !PICKLE_EXTENSIONS.contains(&extension.as_str()) {
        return Kind::Empty;
    }
    let begins =
        |tag: &[u8]| start.trim_ascii_start().get(..tag.len()).is_some_and(|s| s.eq_ignore_ascii_case(tag));
    if begins(b"<!doctype html") || begins(b"<html") {
        return Kind::WebPage;
    }
    // A header's length is below 2^32, and the JSON object follows it.
    if extension == "safetensors" || (start.get(4..8) == Some(&[0; 4]) && start.get(8) == Some(&b'{')) {
        return Kind::SafeTensors;
    }
    if extension == "gguf" {
        return Kind::Gguf; // whose reader says what is wrong
    }
    if PICKLE_EXTENSIONS.contains(&extension.as_str()) {
        return Kind::Pickle("by its name");
    }
    Kind::Unknown
}

fn shown(start: &[u8]) -> String {
    format!("`{}`", start[..start.len().min(8)].escape_ascii())
}

fn open_dir(dir: &Path) -> Result<Opened, Error> {
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let name = entry.map_err(Error::io(dir, "list"))?.file_name();
        names.extend(name.to_str().map(str::to_owned));
    }
    names.sort();
    let has_index = names.iter().any(|name| name == "model.safetensors.index.json");
    if has_index || names.iter().any(|name| name.ends_with(".safetensors")) {
        return SafeTensors::open_dir(dir).map(Opened::SafeTensors);
    }
    // Later shards of a split model open through their first.
    let ggufs: Vec<&String> =
        names.iter().filter(|name| name.ends_with(".gguf") && !is_later_shard(name)).collect();
    match ggufs[..] {
        [] => {}
        [one] => return open_file(&dir.join(one)),
        _ => {
            let names = ggufs.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::ManyGgufs { path: dir.to_owned(), count: ggufs.len(), names });
        }
    }
    match names.iter().find(|name| is_pickle_name(name)) {
        Some(name) => Err(Error::Pickle { path: dir.join(name), evidence: "by its name" }),
        None => Err(Error::NothingToOpen { path: dir.to_owned() }),
    }
}

fn is_later_shard(name: &str) -> bool {
    let no = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once("-of-"));
    let no = no.and_then(|(rest, _)| rest.rsplit_once('-')).and_then(|(_, no)| no.parse::<u32>().ok());
    no.is_some_and(|no| no > 1)
}

fn is_pickle_name(name: &str) -> bool {
    let extension = PathBuf::from(name).extension().map(|ext| ext.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|ext| PICKLE_EXTENSIONS.contains(&ext.as_str()))
}
