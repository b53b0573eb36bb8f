//! Unpacks any bytes as two layers on each other. Nothing may panic, nothing outside the root may change, and what
//! fails must be blamed on the image.
#![no_main]

use std::fs;

use kiln_image::{Limits, unpack_in_memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("made");
    fs::write(dir.path().join("outside"), "mine").expect("written");
    // Checksums are hard to guess: those of blocks that could be headers are put right.
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512) {
        if block[148..156] == [b'#'; 8] {
            let sum: u32 =
                block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]).map(|&byte| u32::from(byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
        }
    }
    let limits = Limits { unpacked_bytes: 1 << 20, entries: 1000, ..Limits::default() };
    let middle = bytes.len() / 1024 * 512;
    if let Err(error) = unpack_in_memory(&[&bytes[..middle], &bytes[middle..]], &root, &limits) {
        assert!(error.is_images_fault(), "{error:?}");
    }
    assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 2);
    assert_eq!(fs::read(dir.path().join("outside")).expect("readable"), b"mine");
});
