//! Pre-tokenizer names beyond the table of published splits: other names for the same splits, and
//! splits that only GGUF readers have under a name.

use super::super::pre_table::GPT2;
use super::split::Rules;

/// A name for the splits of another.
pub struct Alias {
    name: &'static str,
    pub base: &'static str,
    pub ignore_merges: bool,
}

const fn alias(name: &'static str, base: &'static str) -> Alias {
    Alias { name, base, ignore_merges: false }
}

const fn whole_words(name: &'static str, base: &'static str) -> Alias {
    Alias { name, base, ignore_merges: true }
}

/// Returns the alias of that name.
pub fn find(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}

const ALIASES: &[Alias] = &[
    whole_words("llama3", "llama-bpe"),
    whole_words("llama-v3", "llama-bpe"),
    whole_words("falcon3", "llama-bpe"),
    whole_words("falcon-h1", "llama-bpe"),
    whole_words("pixtral", "llama-bpe"),
    whole_words("midm-2.0", "llama-bpe"),
    whole_words("lfm2", "llama-bpe"),
    whole_words("jina-v5-nano", "llama-bpe"),
    alias("chatglm-bpe", "llama-bpe"),
    whole_words("glm4", "llama-bpe"),
    whole_words("glm5", "llama-bpe"),
    alias("mpt", "gpt-2"),
    alias("phi-2", "gpt-2"),
    alias("jina-es", "gpt-2"),
    alias("jina-de", "gpt-2"),
    alias("jina-v1-en", "gpt-2"),
    alias("jina-v2-code", "gpt-2"),
    alias("jina-v2-es", "gpt-2"),
    alias("jina-v2-de", "gpt-2"),
    alias("roberta-bpe", "gpt-2"),
    alias("gigachat", "gpt-2"),
    alias("a.x-4.0", "gpt-2"),
    alias("mellum", "gpt-2"),
    alias("modern-bert", "gpt-2"),
    alias("exaone4", "gpt-2"),
    alias("jais", "gpt-2"),
    alias("trillion", "gpt-2"),
    alias("granite-docling", "gpt-2"),
    alias("codeshell", "starcoder"),
    alias("exaone", "starcoder"),
    alias("minerva-7b", "starcoder"),
    alias("mellum2", "starcoder"),
    alias("deepseek-r1-qwen", "qwen2"),
    alias("kormo", "qwen2"),
    alias("f2llmv2", "qwen2"),
    alias("megrez", "qwen2"),
    alias("hunyuan", "qwen2"),
    alias("solar-open", "qwen2"),
    alias("grok-2", "qwen2"),
    alias("poro-chat", "bloom"),
    alias("gpt3-finnish", "bloom"),
    alias("llama4", "gpt-4o"),
    alias("kanana2", "gpt-4o"),
    alias("talkie", "gpt-4o"),
    alias("minimax-m2", "gpt-4o"),
    whole_words("granite-embed-multi-97m", "gpt-4o"),
    alias("cohere2moe", "tiny_aya"),
    alias("hunyuan-dense", "deepseek-v3"),
    alias("hy_v4", "deepseek-v3"),
    alias("joyai-llm", "deepseek-v3"),
    alias("bailingmoe2", "bailingmoe"),
    alias("llada-moe", "bailingmoe"),
    alias("granite-embed-multi-311m", "gemma4"),
];

/// Names whose models have a beginning-of-sequence token added where the file does not say.
pub const ADDS_BOS: &[&str] = &[
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "tekken",
    "chameleon",
    "gemma4",
    "granite-embed-multi-311m",
];

/// A pre-tokenizer with splits of its own.
pub struct Own {
    pub name: &'static str,
    pub splits: &'static [&'static str],
    pub rules: Rules,
}

const PLAIN: Rules = Rules { ignore_merges: false, adds_bos: false, nfc: false, raw_utf8: false };

/// Text as SentencePiece has it, merged line by line.
const LINES: &[&str] = &[r"[^\n]+|[\n]+"];

pub const OWN: &[Own] = &[
    Own {
        name: "default",
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        rules: PLAIN,
    },
    Own {
        name: "spark2_5",
        splits: &[
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
            r"\p{N}",
        ],
        rules: PLAIN,
    },
    Own {
        name: "youtu",
        splits: &[
            r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        rules: Rules { ignore_merges: true, ..PLAIN },
    },
    Own {
        name: "chameleon",
        splits: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            "([\\t\\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        rules: PLAIN,
    },
    Own {
        name: "ufakzeka",
        splits: &[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
        rules: PLAIN,
    },
    Own {
        name: "afmoe",
        splits: &[
            r"\p{Nd}{1,3}(?=(?:\p{Nd}{3})*(?!\p{Nd}))",
            "[\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}\u{f900}-\u{faff}\u{3040}-\u{309f}\u{30a0}-\u{30ff}\u{ff65}-\u{ff9f}\u{2f00}-\u{2fdf}\u{e40}-\u{e7f}\u{e80}-\u{eff}\u{1780}-\u{17ff}\u{1000}-\u{109f}\u{aa60}-\u{aa7f}\u{a9e0}-\u{a9ff}\u{ac00}-\u{d7af}\u{1100}-\u{11ff}]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        rules: PLAIN,
    },
    Own { name: "gemma4", splits: LINES, rules: Rules { raw_utf8: true, ..PLAIN } },
    Own { name: "sarvam-moe", splits: LINES, rules: Rules { raw_utf8: true, ..PLAIN } },
];
