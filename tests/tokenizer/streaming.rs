//! Decoding token by token, and texts and ids nobody would write.

use lctl::text::Tokenizer;

use super::{AROUND, PARSED, PLAIN, as_gguf, small, small_checkpoint, strings};

/// A counter-based generator, so that a failure names its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn tokenizers() -> Vec<(String, Tokenizer)> {
    let mut all = Vec::new();
    for (name, _) in small() {
        let (dir, golden) = small_checkpoint(name);
        all.push((name.to_owned(), Tokenizer::open(dir.path()).unwrap()));
        let arch = golden["arch"].as_str().unwrap();
        all.push((format!("{name} as GGUF"), as_gguf(dir.path(), arch, golden["force"].as_str())));
    }
    all
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream();
    if !skip_special {
        stream = stream.keep_special();
    }
    let mut text = String::new();
    for id in ids {
        text.push_str(&stream.push(*id));
    }
    text + &stream.finish()
}

#[test]
fn streamed_text_is_the_decoded_text() {
    let mut random = Random(1);
    for (name, tokenizer) in tokenizers() {
        let n_tokens = tokenizer.vocab_size();
        for round in 0..200 {
            // ids past the end too
            let ids: Vec<u32> =
                (0..1 + random.below(20)).map(|_| random.below(n_tokens + 3) as u32).collect();
            for skip_special in [false, true] {
                let whole = tokenizer.decode(&ids, skip_special);
                assert_eq!(streamed(&tokenizer, &ids, skip_special), whole, "{name} {round}: {ids:?}");
            }
        }
    }
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    let (dir, golden) = small_checkpoint("bpe_llama3");
    let gguf = as_gguf(dir.path(), golden["arch"].as_str().unwrap(), golden["force"].as_str());
    for tokenizer in [Tokenizer::open(dir.path()).unwrap(), gguf] {
        let ids = tokenizer.encode("a🚀b", PLAIN).unwrap();
        assert_eq!(ids.len(), 6);
        let mut stream = tokenizer.stream();
        let parts: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(parts, ["a", "", "", "", "🚀", "b"]);
        let mut cut = tokenizer.stream();
        assert_eq!(ids[..3].iter().map(|id| cut.push(*id)).collect::<String>(), "a");
        assert_eq!(cut.finish(), "\u{fffd}");
    }
}

#[test]
fn a_text_that_goes_on_keeps_its_space() {
    let (dir, _) = small_checkpoint("spm_bare");
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let ids = tokenizer.encode("the boats", PLAIN).unwrap();
    let mut first = tokenizer.stream();
    let text: String = ids.iter().map(|id| first.push(*id)).collect();
    assert_eq!(text, "the boats");
    let mut second = tokenizer.stream().continuing();
    let text: String = ids.iter().map(|id| second.push(*id)).collect();
    assert_eq!(text, " the boats");
}

#[test]
fn text_survives_the_way_there_and_back() {
    for (name, tokenizer) in tokenizers() {
        // these normalize text (NFC, spaces removed), or put spaces where none were
        let changes =
            ["qwen", "roberta", "no_tokenizer_config", "eot_from_template", "with_tokenizer_json", "phi3"];
        if changes.iter().any(|part| name.contains(part)) {
            continue;
        }
        // SentencePiece vocabularies put a space after each added token
        let met = |text: &&str| name.starts_with("bpe") || !text.contains('<');
        for text in strings().into_iter().filter(met) {
            let ids = tokenizer.encode(text, PLAIN).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), expected_back(&tokenizer, text), "{name}");
        }
    }
}

/// SentencePiece cannot tell `▁` in a text from a space.
fn expected_back(tokenizer: &Tokenizer, text: &str) -> String {
    let spaces = tokenizer.id_of("▁").is_some();
    if spaces { text.replace('▁', " ") } else { text.to_owned() }
}

#[test]
fn no_text_and_no_ids_make_it_panic() {
    let mut random = Random(2);
    let interesting =
        ["▁", " ", "\n", "<s>", "<|im_end|>", "</", "<0x0A>", "é", "e\u{301}", "🚀", "0", "'s", "\0"];
    for (name, tokenizer) in tokenizers() {
        for round in 0..150 {
            let mut text = String::new();
            for _ in 0..random.below(40) {
                match random.below(3) {
                    0 => text.push_str(interesting[random.below(interesting.len())]),
                    1 => text.extend(char::from_u32(random.below(0x11_0000) as u32)),
                    _ => text.push((b' ' + random.below(95) as u8) as char),
                }
            }
            for options in [PLAIN, PARSED, AROUND] {
                let ids = tokenizer.encode(&text, options).unwrap_or_else(|e| panic!("{name} {round}: {e}"));
                assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{name} {round}");
                assert_eq!(streamed(&tokenizer, &ids, true), tokenizer.decode(&ids, true), "{name} {round}");
            }
        }
        assert_eq!(tokenizer.decode(&[u32::MAX, u32::MAX - 1], false), "", "{name}");
        assert_eq!(tokenizer.piece(u32::MAX), b"", "{name}");
    }
}

#[test]
fn a_word_of_a_megabyte_takes_no_quadratic_time() {
    for name in ["spm_bare", "bpe_llama3"] {
        let (dir, golden) = small_checkpoint(name);
        let tokenizer = as_gguf(dir.path(), golden["arch"].as_str().unwrap(), golden["force"].as_str());
        let text = "the".repeat(350_000);
        let start = std::time::Instant::now();
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        // 10^12 steps would take an hour; a second is the order of a slow machine's linear time
        assert!(start.elapsed().as_secs() < 60, "{name}: {:?}", start.elapsed());
        assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
    }
}
