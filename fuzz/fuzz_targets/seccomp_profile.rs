//! Profiles of system calls: whatever the text, an error or a program that fits.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match kiln_sandbox::Profile::parse(text) {
        Ok(profile) => assert_eq!(kiln_sandbox::Profile::parse(text), Ok(profile)),
        Err(error) => assert!(error.line >= 1 && error.column >= 1 && !error.reason.is_empty()),
    }
});
