//! Whatever the bytes, the GGUF reader returns; what it accepts lies inside the file and does not overlap.

#![no_main]

use lctl::tensor::gguf::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(header) = parse_header(file) else { return };
    assert!(header.alignment.is_power_of_two());
    let mut free = header.data_offset;
    for tensor in &header.tensors {
        assert_eq!(tensor.offset, free.next_multiple_of(header.alignment.into()));
        assert_eq!(tensor.n_bytes, (tensor.n_rows() * tensor.row_bytes()) as u64);
        free = tensor.offset + tensor.n_bytes;
    }
    assert!(free <= file.len() as u64);
});
