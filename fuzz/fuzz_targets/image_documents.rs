//! Parses any bytes as the documents of an image, as a reference and as what a registry says. Nothing may panic; what is
//! printed parses to the same; and what fails must be blamed on the image.
#![no_main]

use kiln_image::parse_untrusted;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = parse_untrusted(bytes) {
        assert!(error.is_users_fault(), "{error:?}");
    }
});
