//! SentencePiece models: a reader of the few protobuf fields a vocabulary needs
//! (sentencepiece_model.proto of google/sentencepiece, proto2 wire format).

use std::collections::HashMap;
use std::path::Path;

use super::error::{Error, ProtobufProblem};

/// What a piece stands for; the numbers are those of the file and of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl PieceKind {
    /// Returns the kind of that number; proto2 enums are closed, so strangers are no value at all.
    pub fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => PieceKind::Normal,
            2 => PieceKind::Unknown,
            3 => PieceKind::Control,
            4 => PieceKind::UserDefined,
            5 => PieceKind::Unused,
            6 => PieceKind::Byte,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// How the model splits text; the numbers of `TrainerSpec.ModelType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    Unigram = 1,
    Bpe = 2,
    Word = 3,
    Char = 4,
}

/// A SentencePiece model: pieces in id order, and the training facts a converter looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePiece {
    pub pieces: Vec<Piece>,
    pub kind: ModelKind,
    /// Whether a space is put before the text.
    pub add_dummy_prefix: bool,
    /// Whether characters are replaced, or extra spaces removed, before the text is split.
    pub normalizes: bool,
}

impl SentencePiece {
    /// Returns the model in `bytes`; `path` is for messages.
    ///
    /// Errors on a broken wire format, on text that is not UTF-8, and on what SentencePiece
    /// itself refuses to load: no pieces, an empty or a repeated piece, other than one `unk`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let mut model = SentencePiece {
            pieces: Vec::new(),
            kind: ModelKind::Unigram,
            add_dummy_prefix: true,
            normalizes: false,
        };
        let reader = Reader { path, bytes, base: 0, at: 0 };
        reader.for_each(|field, value| {
            match field {
                1 => model.pieces.push(parse_piece(value.message(field)?)?),
                2 => model.parse_trainer_spec(value.message(field)?)?,
                3 => model.parse_normalizer_spec(value.message(field)?)?,
                _ => {}
            }
            Ok(())
        })?;
        model.check(path)?;
        Ok(model)
    }

    fn parse_trainer_spec(&mut self, reader: Reader) -> Result<(), Error> {
        reader.for_each(|field, value| {
            if field == 3 {
                self.kind = match value.varint(field)? {
                    1 => ModelKind::Unigram,
                    2 => ModelKind::Bpe,
                    3 => ModelKind::Word,
                    4 => ModelKind::Char,
                    _ => self.kind,
                };
            }
            Ok(())
        })
    }

    fn parse_normalizer_spec(&mut self, reader: Reader) -> Result<(), Error> {
        // proto2 default of remove_extra_whitespaces
        let (mut removes_spaces, mut replaces) = (true, false);
        reader.for_each(|field, value| {
            match field {
                2 => replaces = !value.message(field)?.bytes.is_empty(),
                3 => self.add_dummy_prefix = value.varint(field)? != 0,
                4 => removes_spaces = value.varint(field)? != 0,
                _ => {}
            }
            Ok(())
        })?;
        self.normalizes = removes_spaces || replaces;
        Ok(())
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        let fail = |problem: String| Err(Error::Pieces { path: path.to_owned(), problem });
        if self.pieces.is_empty() {
            return fail("no pieces".to_owned());
        }
        let mut seen = HashMap::with_capacity(self.pieces.len());
        let mut n_unknown = 0;
        for (id, piece) in self.pieces.iter().enumerate() {
            if piece.text.is_empty() {
                return fail(format!("piece {id} is empty"));
            }
            if let Some(first) = seen.insert(piece.text.as_str(), id) {
                return fail(format!("pieces {first} and {id} are both {:?}", piece.text));
            }
            n_unknown += usize::from(piece.kind == PieceKind::Unknown);
        }
        if n_unknown != 1 {
            return fail(format!("{n_unknown} pieces of type UNKNOWN, there must be 1"));
        }
        Ok(())
    }
}

fn parse_piece(reader: Reader) -> Result<Piece, Error> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    reader.for_each(|field, value| {
        match field {
            1 => piece.text = value.message(field)?.text()?,
            2 => piece.score = value.float(field)?,
            3 => piece.kind = PieceKind::from_number(value.varint(field)?).unwrap_or(piece.kind),
            _ => {}
        }
        Ok(())
    })?;
    Ok(piece)
}

/// A message being read; `base` is its first byte's offset in the file.
#[derive(Clone, Copy)]
struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    base: usize,
    at: usize,
}

/// A field's value as the wire has it.
enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(Reader<'a>),
    Fixed32([u8; 4]),
}

struct FieldValue<'a> {
    wire: Wire<'a>,
    path: &'a Path,
    offset: usize,
}

impl<'a> FieldValue<'a> {
    fn mismatch(&self, field: u32, expected: u8) -> Error {
        let wire = match self.wire {
            Wire::Varint(_) => 0,
            Wire::Fixed64 => 1,
            Wire::Bytes(_) => 2,
            Wire::Fixed32(_) => 5,
        };
        let problem = ProtobufProblem::WireType { field, wire, expected };
        Error::Protobuf { path: self.path.to_owned(), offset: self.offset, problem }
    }

    fn varint(&self, field: u32) -> Result<u64, Error> {
        match self.wire {
            Wire::Varint(number) => Ok(number),
            _ => Err(self.mismatch(field, 0)),
        }
    }

    fn message(&self, field: u32) -> Result<Reader<'a>, Error> {
        match self.wire {
            Wire::Bytes(reader) => Ok(reader),
            _ => Err(self.mismatch(field, 2)),
        }
    }

    fn float(&self, field: u32) -> Result<f32, Error> {
        match self.wire {
            Wire::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err(self.mismatch(field, 5)),
        }
    }
}

impl<'a> Reader<'a> {
    fn fail(&self, problem: ProtobufProblem) -> Error {
        Error::Protobuf { path: self.path.to_owned(), offset: self.base + self.at, problem }
    }

    fn text(&self) -> Result<String, Error> {
        match std::str::from_utf8(self.bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                let offset = self.base + error.valid_up_to();
                Err(Error::Utf8 { path: self.path.to_owned(), offset })
            }
        }
    }

    /// Calls `visit` with every field, in file order.
    fn for_each(
        mut self,
        mut visit: impl FnMut(u32, FieldValue<'a>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        while self.at < self.bytes.len() {
            let offset = self.base + self.at;
            let key = self.varint()?;
            let field = match u32::try_from(key >> 3) {
                Ok(0) | Err(_) => return Err(self.fail(ProtobufProblem::FieldZero)),
                Ok(field) => field,
            };
            let wire = match (key & 7) as u8 {
                0 => Wire::Varint(self.varint()?),
                1 => {
                    self.take(8)?;
                    Wire::Fixed64
                }
                2 => {
                    let length = self.varint()?;
                    let base = self.base + self.at;
                    Wire::Bytes(Reader { path: self.path, bytes: self.take(length)?, base, at: 0 })
                }
                5 => {
                    let bytes = self.take(4)?;
                    Wire::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
                }
                other => return Err(self.fail(ProtobufProblem::UnknownWireType(other))),
            };
            visit(field, FieldValue { wire, path: self.path, offset })?;
        }
        Ok(())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Error> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                let bytes = &self.bytes[self.at..self.at + length];
                self.at += length;
                Ok(bytes)
            }
            _ => Err(self.fail(ProtobufProblem::Length { claimed: length, left })),
        }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(self.fail(ProtobufProblem::Truncated));
            };
            self.at += 1;
            if shift == 63 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.fail(ProtobufProblem::Varint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut number: u64, out: &mut Vec<u8>) {
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
    }

    fn field(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
        varint(number << 3 | 2, out);
        varint(bytes.len() as u64, out);
        out.extend_from_slice(bytes);
    }

    /// Returns a SentencePiece file of those pieces, BPE, without a dummy prefix.
    pub(crate) fn encode(pieces: &[(&str, f32, u64)]) -> Vec<u8> {
        let mut file = Vec::new();
        for (text, score, kind) in pieces {
            let mut piece = Vec::new();
            field(1, text.as_bytes(), &mut piece);
            piece.push(2 << 3 | 5);
            piece.extend_from_slice(&score.to_le_bytes());
            varint(3 << 3, &mut piece);
            varint(*kind, &mut piece);
            field(1, &piece, &mut file);
        }
        field(2, &[3 << 3, 2], &mut file);
        field(3, &[3 << 3, 0], &mut file);
        file
    }

    const SMALL: [(&str, f32, u64); 6] = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<0x0A>", 0.0, 6),
        ("▁the", -1.5, 1),
        ("[X]", 0.0, 4),
    ];

    fn parse(bytes: &[u8]) -> Result<SentencePiece, Error> {
        SentencePiece::parse(Path::new("tokenizer.model"), bytes)
    }

    #[test]
    fn reads_pieces_and_the_facts_of_training() {
        let model = parse(&encode(&SMALL)).unwrap();
        assert_eq!(model.kind, ModelKind::Bpe);
        assert!(!model.add_dummy_prefix);
        assert_eq!(model.pieces.len(), 6);
        assert_eq!(model.pieces[4], Piece { text: "▁the".to_owned(), score: -1.5, kind: PieceKind::Normal });
        assert_eq!(model.pieces[5].kind, PieceKind::UserDefined);
    }

    #[test]
    fn absent_fields_have_the_schema_s_defaults() {
        let mut bytes = encode(&SMALL[..3]);
        let mut piece = Vec::new();
        field(1, b"a", &mut piece);
        field(1, &piece, &mut bytes);
        let model = parse(&bytes).unwrap();
        assert_eq!(model.pieces[3], Piece { text: "a".to_owned(), score: 0.0, kind: PieceKind::Normal });
    }

    #[test]
    fn a_claimed_length_past_the_end_is_named_with_its_offset() {
        let error = parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tokenizer.model: byte 10: a field claims 9223372036854775807 bytes, 1 are left"
        );
        let error = parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]).unwrap_err();
        assert_eq!(error.to_string(), "tokenizer.model: byte 11: a number runs over 64 bits");
        let error = parse(b"\x0d\0\0\0\0").unwrap_err();
        assert_eq!(error.to_string(), "tokenizer.model: byte 0: field 1 has wire type 5, expected 2");
    }

    #[test]
    fn what_sentencepiece_refuses_is_refused() {
        let message = |pieces: &[(&str, f32, u64)]| parse(&encode(pieces)).unwrap_err().to_string();
        assert_eq!(message(&[]), "tokenizer.model: no pieces");
        assert_eq!(message(&[("", 0.0, 2)]), "tokenizer.model: piece 0 is empty");
        assert_eq!(
            message(&[("a", 0.0, 2), ("a", 0.0, 1)]),
            "tokenizer.model: pieces 0 and 1 are both \"a\""
        );
        assert_eq!(message(&[("a", 0.0, 1)]), "tokenizer.model: 0 pieces of type UNKNOWN, there must be 1");
    }

    #[test]
    fn text_that_is_not_utf8_is_named_with_its_offset() {
        let mut bytes = encode(&SMALL);
        let at = bytes.windows(4).position(|window| window == b"the\x15").unwrap();
        bytes[at] = 0xff;
        let error = parse(&bytes).unwrap_err();
        assert_eq!(error.to_string(), format!("tokenizer.model: not UTF-8 from byte {at} on"));
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_a_model_or_an_error() {
        let bytes = encode(&SMALL);
        let mut n_errors = 0;
        for end in 0..bytes.len() {
            n_errors += usize::from(parse(&bytes[..end]).is_err());
        }
        assert!(n_errors > bytes.len() / 2, "{n_errors} of {} truncations", bytes.len());
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(model) = parse(&changed) {
                    assert!(model.pieces.len() <= SMALL.len());
                }
            }
        }
    }
}
