//! Whatever the bytes, the legacy importance reader returns; what it accepts are weights, found by name.

#![no_main]

use std::path::Path;

use lctl::quantize::Importance;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(read) = Importance::from_legacy_bytes(Path::new("fuzz.dat"), file) else { return };
    assert!(!read.is_empty());
    for name in read.names() {
        // a shape of one column cannot overflow; any other length is an error that names the tensor
        match read.weights(name, &[1, 1]) {
            Ok(weights) => assert!(weights.is_some_and(|w| w[0].is_finite() && w[0] >= 0.0)),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
