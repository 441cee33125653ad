//! Any bytes at the front of a stream between nodes: refused, or a header that written down again reads the same.

#![no_main]

use atoll_mesh::stream::{decode_header, encode_header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((header, taken)) = decode_header(bytes) else { return };
    assert!(taken <= bytes.len());
    let _ = header.class();
    // What was read may have been written longer than we write it, never shorter than fits.
    let Ok(written) = encode_header(&header) else { return };
    let (again, all) = decode_header(&written).expect("we read what we write");
    assert_eq!((again, all), (header, written.len()));
});
