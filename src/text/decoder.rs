//! What a single token decodes to, by tokenizer.json's `decoder`.

use serde_json::Value as Json;

/// A decoder, as far as it changes a token that stands alone.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoder {
    /// GPT-2's bytes-as-characters alphabet.
    ByteLevel,
    Replace {
        from: String,
        to: String,
    },
    /// `<0x0A>` is the byte 0x0A.
    ByteFallback,
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Sequence(Vec<Decoder>),
    /// Changes nothing in a lone token.
    Identity,
}

impl Decoder {
    /// Returns the decoder of a tokenizer.json; kinds that leave a lone token as it is, and
    /// unknown ones, are [`Decoder::Identity`].
    pub fn parse(decoder: &Json) -> Self {
        let text = |path: &str| decoder.pointer(path).and_then(Json::as_str).map(str::to_owned);
        let number = |path: &str| decoder.pointer(path).and_then(Json::as_u64).unwrap_or(0) as usize;
        match decoder.get("type").and_then(Json::as_str) {
            Some("ByteLevel") => Decoder::ByteLevel,
            Some("ByteFallback") => Decoder::ByteFallback,
            Some("Replace") => match (text("/pattern/String"), text("/content")) {
                (Some(from), Some(to)) => Decoder::Replace { from, to },
                _ => Decoder::Identity,
            },
            Some("Strip") => match text("/content").and_then(|content| content.chars().next()) {
                Some(content) => Decoder::Strip { content, start: number("/start"), stop: number("/stop") },
                None => Decoder::Identity,
            },
            Some("Sequence") => {
                let inner = decoder.get("decoders").and_then(Json::as_array);
                Decoder::Sequence(inner.into_iter().flatten().map(Decoder::parse).collect())
            }
            _ => Decoder::Identity,
        }
    }

    /// Returns the text of the token alone; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, token: &str) -> String {
        match self {
            Decoder::ByteLevel => match token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
                Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                None => token.to_owned(),
            },
            Decoder::Replace { from, to } => token.replace(from.as_str(), to),
            Decoder::ByteFallback => decode_byte(token),
            Decoder::Strip { content, start, stop } => strip(token, *content, *start, *stop),
            Decoder::Sequence(decoders) => {
                decoders.iter().fold(token.to_owned(), |text, decoder| decoder.decode(&text))
            }
            Decoder::Identity => token.to_owned(),
        }
    }
}

/// Returns the byte that GPT-2's alphabet shows as `c`: printable Latin-1 shows itself, the other
/// 68 bytes are U+0100 and up, in order.
pub fn byte_of(c: char) -> Option<u8> {
    let shows_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|byte| shows_itself(*byte)),
        code => (0..=255u8).filter(|byte| !shows_itself(*byte)).nth((code - 0x100) as usize),
    }
}

fn decode_byte(token: &str) -> String {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        Some(byte) => String::from_utf8_lossy(&[byte]).into_owned(),
        None => token.to_owned(),
    }
}

fn strip(token: &str, content: char, start: usize, stop: usize) -> String {
    let mut text = token;
    for _ in 0..start {
        text = text.strip_prefix(content).unwrap_or(text);
    }
    for _ in 0..stop {
        text = text.strip_suffix(content).unwrap_or(text);
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_decodes_as_the_tokenizers_library() {
        // tokenizers 0.23.3: decode(encode(t)) of an added token t
        assert_eq!(Decoder::ByteLevel.decode("<é>"), "<\u{fffd}>");
        assert_eq!(Decoder::ByteLevel.decode("Ġx"), " x");
        assert_eq!(Decoder::ByteLevel.decode("a b"), "a b");
        assert_eq!(Decoder::ByteLevel.decode("<｜x｜>"), "<｜x｜>");
    }

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let bytes: Vec<u8> = (0..0x144).filter_map(char::from_u32).filter_map(byte_of).collect();
        let mut sorted = bytes.clone();
        sorted.sort();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('\u{144}'), None);
    }

    #[test]
    fn the_steps_of_llama_2_s_decoder_apply_in_order() {
        let json = serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]});
        let decoder = Decoder::parse(&json);
        assert_eq!(decoder.decode("▁▁a"), " a");
        assert_eq!(decoder.decode("<0x0A>"), "\n");
    }
}
