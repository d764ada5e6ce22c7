//! Properties: whatever is written reads back the same.

use lctl::tensor::gguf::{Array, GgufWriter, Metadata, Value, WriteOptions};
use lctl::tensor::safetensors::SafeTensorsWriter;
use lctl::tensor::{Opened, TensorDecl, format};

use super::{data, open};

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): enough for test inputs.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    fn text(&mut self, longest: u64) -> String {
        const LETTERS: [char; 8] = ['a', 'Z', '0', '.', '_', 'é', '▁', '\u{1f600}'];
        let n = self.below(longest + 1);
        (0..n).map(|_| LETTERS[self.below(8) as usize]).collect()
    }

    fn many<T>(&mut self, make: impl Fn(&mut Random) -> T) -> Vec<T> {
        let n = self.below(5);
        (0..n).map(|_| make(self)).collect()
    }

    fn array(&mut self, depth: usize) -> Array {
        match self.below(if depth < 4 { 13 } else { 12 }) {
            0 => Array::U8(self.many(|r| r.next() as u8)),
            1 => Array::I8(self.many(|r| r.next() as i8)),
            2 => Array::U16(self.many(|r| r.next() as u16)),
            3 => Array::I16(self.many(|r| r.next() as i16)),
            4 => Array::U32(self.many(|r| r.next() as u32)),
            5 => Array::I32(self.many(|r| r.next() as i32)),
            6 => Array::F32(self.many(|r| r.next() as i32 as f32)),
            7 => Array::Bool(self.many(|r| r.below(2) == 1)),
            8 => Array::String(self.many(|r| r.text(9))),
            9 => Array::U64(self.many(Random::next)),
            10 => Array::I64(self.many(|r| r.next() as i64)),
            11 => Array::F64(self.many(|r| r.next() as f64)),
            _ => Array::Array(self.many(|r| r.array(depth + 1))),
        }
    }

    fn value(&mut self) -> Value {
        match self.below(13) {
            0 => Value::U8(self.next() as u8),
            1 => Value::I8(self.next() as i8),
            2 => Value::U16(self.next() as u16),
            3 => Value::I16(self.next() as i16),
            4 => Value::U32(self.next() as u32),
            5 => Value::I32(self.next() as i32),
            6 => Value::F32(self.next() as i32 as f32),
            7 => Value::Bool(self.below(2) == 1),
            8 => Value::String(self.text(40)),
            9 => Value::U64(self.next()),
            10 => Value::I64(self.next() as i64),
            11 => Value::F64(self.next() as f64),
            _ => Value::Array(self.array(1)),
        }
    }

    fn metadata(&mut self) -> Metadata {
        (0..self.below(12)).map(|i| (format!("key{i}.{}", self.text(5)), self.value())).collect()
    }

    /// Returns tensors of formats that `has_name` accepts, with whole blocks per row.
    fn tensors(&mut self, has_name: impl Fn(&TensorDecl) -> bool) -> Vec<TensorDecl> {
        let mut tensors = Vec::new();
        for i in 0..self.below(9) {
            let format = format::REGISTRY[self.below(format::REGISTRY.len() as u64) as usize];
            let dtype = format::by_name(format.name()).unwrap();
            let mut shape: Vec<usize> = (0..self.below(3)).map(|_| 1 + self.below(3) as usize).collect();
            shape.push(dtype.block_len() * (1 + self.below(3) as usize));
            let tensor = TensorDecl { name: format!("t{i}{}", self.text(4)), dtype, shape };
            if has_name(&tensor) {
                tensors.push(tensor);
            }
        }
        tensors
    }
}

fn cut(bytes: &[u8], random: &mut Random) -> Vec<Vec<u8>> {
    let at = random.below(bytes.len() as u64 + 1) as usize;
    vec![bytes[..at].to_vec(), bytes[at..].to_vec()]
}

#[test]
fn gguf_write_then_read_is_identity() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..200 {
        let random = &mut Random(seed);
        let metadata = random.metadata();
        let tensors = random.tensors(|tensor| tensor.dtype.ggml_id().is_some());
        let alignment = 8 << random.below(8);
        let options = WriteOptions { alignment: Some(alignment), ..Default::default() };
        let path = dir.path().join("t.gguf");
        let mut writer = GgufWriter::create(&path, &metadata, &tensors, &options).unwrap();
        let mut contents = Vec::new();
        for tensor in &tensors {
            assert_eq!(writer.current_tensor(), Some(tensor.name.as_str()), "seed {seed}");
            let bytes = random.bytes(tensor.n_bytes().unwrap() as usize);
            cut(&bytes, random).iter().for_each(|part| writer.write(part).unwrap());
            contents.push(bytes);
        }
        let written = writer.finish().unwrap();
        assert_eq!(written[0].bytes, std::fs::metadata(&path).unwrap().len());

        let Opened::Gguf(gguf) = open(&path) else { panic!("a GGUF") };
        let mut expected = metadata;
        if alignment != 32 {
            expected.insert("general.alignment".to_owned(), Value::U32(alignment));
        }
        assert_eq!(gguf.metadata(), &expected, "seed {seed}");
        assert!(gguf.metadata().keys().eq(expected.keys()), "seed {seed}: order of keys");
        assert_eq!((gguf.version(), gguf.alignment()), (3, alignment));
        let source = lctl::tensor::open(&path).unwrap().into_source();
        let read: Vec<TensorDecl> = source.tensors().iter().map(TensorDecl::from).collect();
        assert_eq!(read, tensors, "seed {seed}");
        for (tensor, bytes) in tensors.iter().zip(&contents) {
            let info = source.find(&tensor.name).unwrap();
            assert_eq!(info.offset % u64::from(alignment), 0);
            assert_eq!(&data(&*source, &tensor.name), bytes, "seed {seed}");
        }
    }
}

#[test]
fn safetensors_write_then_read_is_identity() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..200 {
        let random = &mut Random(seed);
        let tensors = random.tensors(|tensor| tensor.dtype.safetensors_name().is_some());
        let metadata: Vec<(String, String)> =
            (0..random.below(4)).map(|i| (format!("{i}{}", random.text(5)), random.text(20))).collect();
        let path = dir.path().join("t.safetensors");
        let pairs = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut writer = SafeTensorsWriter::create(&path, pairs, &tensors, true).unwrap();
        let mut contents = Vec::new();
        for tensor in &tensors {
            let bytes = random.bytes(tensor.n_bytes().unwrap() as usize);
            cut(&bytes, random).iter().for_each(|part| writer.write(part).unwrap());
            contents.push(bytes);
        }
        writer.finish().unwrap();

        let Opened::SafeTensors(file) = open(&path) else { panic!("safetensors") };
        assert!(file.metadata(0).iter().eq(metadata.iter().map(|(k, v)| (k, v))), "seed {seed}");
        let opened = open(&path);
        let source = opened.as_source();
        let read: Vec<TensorDecl> = source.tensors().iter().map(TensorDecl::from).collect();
        assert_eq!(read, tensors, "seed {seed}");
        for (tensor, bytes) in tensors.iter().zip(&contents) {
            assert_eq!(&data(source, &tensor.name), bytes, "seed {seed}");
        }
        // The reference implementation reads the same file.
        let bytes = std::fs::read(&path).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (tensor, bytes) in tensors.iter().zip(&contents) {
            assert_eq!(theirs.tensor(&tensor.name).unwrap().data(), bytes, "seed {seed}");
        }
    }
}
