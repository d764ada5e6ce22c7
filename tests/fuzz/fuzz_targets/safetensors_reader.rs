//! Whatever the bytes, the safetensors reader returns; what it accepts covers the file exactly, and the
//! reference implementation accepts it and sees the same tensors.

#![no_main]

use lctl::tensor::safetensors::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse_header(file) else { return };
    let (n, theirs) = safetensors::SafeTensors::read_metadata(file).expect("what we accept is valid");
    assert_eq!(theirs.tensors().len(), header.tensors.len());
    let mut covered = 8 + n as u64;
    for tensor in &header.tensors {
        assert_eq!(tensor.offset, covered);
        covered += tensor.n_bytes;
        assert_eq!(tensor.n_bytes, (tensor.n_rows() * tensor.row_bytes()) as u64);
        let info = theirs.info(&tensor.name).expect("the same names");
        assert_eq!(info.shape, tensor.shape);
        assert_eq!((info.data_offsets.1 - info.data_offsets.0) as u64, tensor.n_bytes);
        assert_eq!(tensor.offset, (info.data_offsets.0 + 8 + n) as u64);
    }
    assert_eq!(covered, file.len() as u64);
});
