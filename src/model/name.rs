//! Model ids taken apart: `org/Base-7B-Chat-v1.0` -> base name, size, finetune, version.

use std::sync::LazyLock;

use regex::Regex;

/// The parts of a model id, as far as they can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModelName {
    /// Without the organization.
    pub full: String,
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

/// What a dash-separated word of a name may be; several at once.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Kinds {
    base: bool,
    size: bool,
    finetune: bool,
    version: bool,
    /// A file type such as `q4_0` or `fp16`.
    type_: bool,
}

impl Kinds {
    fn none(self) -> bool {
        self == Kinds::default()
    }

    fn only_base(self) -> bool {
        self == Kinds { base: true, ..Kinds::default() }
    }
}

fn whole(pattern: &str) -> Regex {
    Regex::new(&format!("^(?i:{pattern})$")).expect("the pattern is a literal of this file")
}

static VERSION: LazyLock<Regex> = LazyLock::new(|| whole(r"(v|iter)?\d+([.]\d+)*"));
static TYPE: LazyLock<Regex> = LazyLock::new(|| whole(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Regex> =
    LazyLock::new(|| whole(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)"));
static FINETUNE: LazyLock<Regex> = LazyLock::new(|| whole(r"chat|instruct|vision|lora"));
static KEEPS_CASE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(v\d+(?:\.\d+)*|\d.*)$").expect("the pattern is a literal of this file"));

impl ModelName {
    /// Takes `id` apart; `total` parameters (0: unknown) tell a size from a context length.
    pub fn parse(id: &str, total: u64) -> Self {
        if id.contains(' ') {
            return ModelName { full: id.to_owned(), ..ModelName::default() };
        }
        let (organization, full) = match id.split_once('/') {
            Some((organization, full)) => (Some(organization), full),
            None => (None, id),
        };
        let mut words: Vec<(String, Kinds)> = full
            .split('-')
            .filter(|word| !word.is_empty())
            .map(|word| (word.to_owned(), Kinds::default()))
            .collect();
        for (i, (word, kinds)) in words.iter_mut().enumerate() {
            annotate(word, kinds, i == 0, total);
        }
        drop_worded_sizes(&mut words);
        find_base(&mut words);
        let join = |wanted: fn(Kinds) -> bool| {
            let words: Vec<&str> =
                words.iter().filter(|(_, kinds)| wanted(*kinds)).map(|(word, _)| word.as_str()).collect();
            (!words.is_empty()).then(|| words.join("-"))
        };
        let size_label = {
            let mut sizes: Vec<&str> = Vec::new();
            for (word, _) in words.iter().filter(|(_, kinds)| kinds.size) {
                if !sizes.contains(&word.as_str()) {
                    sizes.push(word);
                }
            }
            (!sizes.is_empty()).then(|| sizes.join("-"))
        };
        let finetune = join(|kinds| kinds.finetune);
        let version = join(|kinds| kinds.version && !kinds.base);
        // one bare word could be anything
        let ambiguous = size_label.is_none() && finetune.is_none() && version.is_none();
        ModelName {
            full: full.to_owned(),
            organization: organization.filter(|name| !name.starts_with('.')).map(str::to_owned),
            basename: join(|kinds| kinds.base).filter(|_| !ambiguous),
            finetune,
            version,
            size_label,
        }
    }
}

fn annotate(word: &mut String, kinds: &mut Kinds, first: bool, total: u64) {
    if VERSION.is_match(word) {
        kinds.version = true;
    } else if TYPE.is_match(word) {
        kinds.type_ = true;
        *word = word.to_uppercase();
    } else if !first && SIZE.is_match(word) {
        let mut size = word.replace('_', ".");
        // bloom's `7b1` is 7.1b
        if size.ends_with(|c: char| c.is_ascii_digit()) {
            let (head, tail) = size.split_at(size.len() - 2);
            size = format!("{head}.{}{}", &tail[1..], &tail[..1]);
        }
        let (number, unit) = size.split_at(size.len() - 1);
        if number.ends_with(|c: char| c.is_ascii_digit()) && "kmbt".contains(unit) {
            size = format!("{number}{}", unit.to_uppercase());
        }
        if total != 0 && looks_like_context_length(&size, total) {
            kinds.finetune = true;
            size = format!("{}{}", &size[..size.len() - 1], size[size.len() - 1..].to_lowercase());
        }
        kinds.size = kinds.none();
        *word = size;
    } else if !first && FINETUNE.is_match(word) {
        kinds.finetune = true;
    }
}

/// Returns true if `size` (such as `32K`) is too far from the parameter count to be about it.
fn looks_like_context_length(size: &str, total: u64) -> bool {
    let (number, unit) = size.split_at(size.len() - 1);
    let Ok(number) = number.parse::<f64>() else { return false };
    let Some(power) = " KMBT".find(unit) else { return false };
    let claimed = number * 1000f64.powi(power as i32);
    (claimed - total as f64).abs() > (7 * total / 8) as f64
}

/// Words such as `mini` are no sizes beside a number.
fn drop_worded_sizes(words: &mut [(String, Kinds)]) {
    let has_digit = |word: &str| word.chars().any(|c| c.is_ascii_digit());
    if words.iter().any(|(word, kinds)| kinds.size && has_digit(word)) {
        for (word, kinds) in words {
            kinds.size &= !word.chars().all(char::is_alphabetic);
        }
    }
}

/// The base name is what stands before the first size or finetune, less a version at its end.
fn find_base(words: &mut [(String, Kinds)]) {
    let mut at_start = true;
    for (word, kinds) in words.iter_mut() {
        let opens_a_name = kinds.none() && word.starts_with(char::is_alphabetic);
        if at_start && (opens_a_name || kinds.version) {
            kinds.base = true;
        } else {
            at_start = false;
            kinds.finetune |= kinds.none();
        }
    }
    for (_, kinds) in words.iter_mut().rev() {
        if !kinds.base || kinds.only_base() {
            break;
        }
        kinds.base = false;
    }
}

/// Returns an id as a title: dashes are spaces, lower-case words capitalized (`v2` and `7b` are left).
pub(super) fn title(id: &str) -> String {
    let words = id.trim().replace('-', " ");
    let words = words.split_whitespace().map(|word| {
        let is_lower = word.chars().any(char::is_lowercase) && !word.chars().any(char::is_uppercase);
        if is_lower && !KEEPS_CASE.is_match(word) { capitalized(word) } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns `word` with a capital wherever a run of letters begins: `llama2xs` -> `Llama2Xs`.
fn capitalized(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut in_letters = false;
    for c in word.chars() {
        if c.is_alphabetic() && !in_letters {
            // title case: of several capitals (ß) only the first is one
            let mut capitals = c.to_uppercase();
            out.extend(capitals.next());
            out.extend(capitals.flat_map(char::to_lowercase));
        } else {
            out.push(c);
        }
        in_letters = c.is_alphabetic();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, total: u64) -> [Option<String>; 5] {
        let name = ModelName::parse(id, total);
        [name.organization, name.basename, name.finetune, name.version, name.size_label]
    }

    fn some(parts: [&str; 5]) -> [Option<String>; 5] {
        parts.map(|part| (!part.is_empty()).then(|| part.to_owned()))
    }

    #[test]
    fn published_names_come_apart() {
        let b = 1_000_000_000;
        let cases = [
            ("Mistral-7B-Instruct-v0.2", 7 * b, ["", "Mistral", "Instruct", "v0.2", "7B"]),
            ("meta-llama/Llama-2-7b-chat-hf", 7 * b, ["meta-llama", "Llama-2", "chat-hf", "", "7B"]),
            ("Phi-3-mini-128k-instruct", 4 * b, ["", "Phi-3", "128k-instruct", "", "mini"]),
            ("Qwen/Qwen2.5-0.5B-Instruct", b / 2, ["Qwen", "Qwen2.5", "Instruct", "", "0.5B"]),
            ("gemma-2-2b-it", 2 * b, ["", "gemma-2", "it", "", "2B"]),
            ("Mixtral-8x7B-v0.1", 46 * b, ["", "Mixtral", "", "v0.1", "8x7B"]),
            ("bloom-7b1", 7 * b, ["", "bloom", "", "", "7.1B"]),
            ("stories260K-hf", 260_000, ["", "", "", "", ""]),
            ("Qwen3-30B-A3B", 30 * b, ["", "Qwen3", "", "", "30B-A3B"]),
            ("word", b, ["", "", "", "", ""]),
        ];
        for (id, total, expected) in cases {
            assert_eq!(parts(id, total), some(expected), "{id}");
        }
    }

    #[test]
    fn titles_keep_acronyms_and_versions() {
        assert_eq!(title("llama2xs-hf"), "Llama2Xs Hf");
        assert_eq!(title("stories260K-hf"), "stories260K Hf");
        assert_eq!(title("probe-llama"), "Probe Llama");
        assert_eq!(title("Mistral-7B-v0.2-7b"), "Mistral 7B v0.2 7b");
    }

    #[test]
    fn names_come_apart_as_the_reference_takes_them() {
        let golden = include_str!("../../tests/golden/model_names.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let names = golden["names"].as_array().unwrap();
        assert!(names.len() > 40);
        for row in names {
            let id = row[0].as_str().unwrap();
            let expected: Vec<_> = (0..6).map(|i| row[2][i].as_str().map(str::to_owned)).collect();
            let found = ModelName::parse(id, row[1].as_u64().unwrap());
            let found = [
                Some(found.full),
                found.organization,
                found.basename,
                found.finetune,
                found.version,
                found.size_label,
            ];
            assert_eq!(found[..], expected[..], "{id}");
        }
        for row in golden["titles"].as_array().unwrap() {
            assert_eq!(title(row[0].as_str().unwrap()), row[1].as_str().unwrap());
        }
    }
}
