//! The pre-tokenizers that GGUF readers know by name (`tokenizer.ggml.pre`), each by the splits it
//! makes: facts published in the models' own tokenizer.json files.

use super::pretokenizer::Known;

/// GPT-2's split, which `ByteLevel` applies unless told not to.
pub const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const KIMI_K2: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILINGMOE: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Some of these characters are not NFC: editors may change them unless they are escapes.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-",
    "\u{1f7d}",
    r"ᾀ-ᾴᾶ-ᾼ",
    "\u{1fbe}",
    r"ῂ-ῄῆ-ῌῐ-",
    "\u{1fd3}",
    r"ῖ-",
    "\u{1fdb}",
    r"ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ",
    "\u{2126}",
    r"ℨ",
    "\u{212a}",
    r"-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);
const DEEPSEEK_CJK: &str = r"[一-龥ࠀ-一가-퟿]+";
const CJK_KANA: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
/// `Punctuation` with the behavior `Contiguous`.
pub const PUNCTUATION_RUNS: &str = "<punctuation runs>";

/// The known pre-tokenizers. Of several with the same splits, those of other architectures fall
/// out, then the flags decide, then the order here: the most common family first.
pub const KNOWN: &[Known] = &[
    Known { ignore_merges: true, ..Known::of("llama-bpe", &[LLAMA3]) },
    Known { archs: &["llama"], ..Known::of("smaug-bpe", &[LLAMA3]) },
    Known::of("dbrx", &[LLAMA3]),
    Known { cleans_spaces: false, nfc: true, ..Known::of("qwen2", &[QWEN2]) },
    Known { archs: &["stablelm"], ..Known::of("stablelm2", &[QWEN2]) },
    Known { cleans_spaces: false, nfc: true, ..Known::of("qwen35", &[QWEN35]) },
    Known::of("gpt-2", &[GPT2]),
    Known { nfc: true, ..Known::of("olmo", &[GPT2]) },
    Known { cleans_spaces: false, ignore_merges: true, ..Known::of("tekken", &[TEKKEN]) },
    Known { cleans_spaces: false, ..Known::of("gpt-4o", &[GPT_4O]) },
    Known { cleans_spaces: false, ..Known::of("smollm", &[DIGIT, GPT2]) },
    Known { archs: &["llama"], ..Known::of("refact", &[DIGIT, GPT2]) },
    Known::of("starcoder", &[DIGIT, GPT2]),
    Known { nfc: true, cleans_spaces: false, ..Known::of("command-r", &[DIGIT, GPT2]) },
    Known {
        cleans_spaces: false,
        ..Known::of(
            "deepseek-llm",
            &[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", DEEPSEEK_CJK, DIGIT],
        )
    },
    Known {
        cleans_spaces: false,
        ..Known::of("deepseek-coder", &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT])
    },
    Known { cleans_spaces: false, ..Known::of("deepseek-v3", &[r"\p{N}{1,3}", CJK_KANA, DEEPSEEK_V3]) },
    Known::of("falcon", &[PUNCTUATION_RUNS, GPT2, DIGITS, "[0-9][0-9][0-9]"]),
    Known::of("bloom", &[BLOOM]),
    Known { cleans_spaces: false, ..Known::of("viking", &[BLOOM, DIGIT]) },
    Known { cleans_spaces: false, ..Known::of("superbpe", &[DIGITS, r"(?=(\d{3})+(?!\d))"]) },
    Known { cleans_spaces: false, ..Known::of("bailingmoe", &[BAILINGMOE]) },
    Known { cleans_spaces: false, ..Known::of("seed-coder", &[SEED_CODER]) },
    Known { cleans_spaces: false, ..Known::of("kimi-k2", &[KIMI_K2]) },
    Known { cleans_spaces: false, ..Known::of("exaone-moe", &[EXAONE_MOE]) },
    Known::of("jais-2", &[JAIS2]),
    Known { cleans_spaces: false, ..Known::of("tiny_aya", &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT_4O]) },
    Known {
        ignore_merges: true,
        ..Known::of(
            "minicpm5",
            &[
                r"\p{N}{1,3}",
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
        )
    },
    Known { cleans_spaces: false, ..Known::of("laguna", &[r"[^\n]+|[\n]+", QWEN2]) },
];

/// Names that GGUF readers know beyond those of [`KNOWN`]: the same splits under another model's
/// name, or splits that no published tokenizer.json spells out. They can be forced.
pub const OTHER_NAMES: &[&str] = &[
    "default",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
    "spark2_5",
    "youtu",
    "mpt",
    "phi-2",
    "jina-es",
    "jina-de",
    "gigachat",
    "jina-v2-es",
    "jina-v2-de",
    "a.x-4.0",
    "mellum",
    "modern-bert",
    "gemma4",
    "granite-embed-multi-311m",
    "mmbert",
    "sarvam-moe",
    "jina-v1-en",
    "jina-v2-code",
    "roberta-bpe",
    "whitespace",
    "deepseek-r1-qwen",
    "kormo",
    "f2llmv2",
    "poro-chat",
    "chatglm-bpe",
    "glm4",
    "glm5",
    "jais",
    "codeshell",
    "gpt3-finnish",
    "exaone",
    "exaone4",
    "chameleon",
    "minerva-7b",
    "megrez",
    "llama4",
    "kanana2",
    "talkie",
    "granite-embed-multi-97m",
    "cohere2moe",
    "trillion",
    "granite-docling",
    "bailingmoe2",
    "llada-moe",
    "hunyuan",
    "hunyuan-dense",
    "hy_v4",
    "joyai-llm",
    "ufakzeka",
    "grok-2",
    "afmoe",
    "minimax-m2",
    "solar-open",
    "mellum2",
];
