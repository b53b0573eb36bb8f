//! Capability URIs: whatever is read is written so that it is read again.
#![no_main]

use kiln_api::CapabilityUri;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(uri) = text.parse::<CapabilityUri>() {
        assert_eq!(uri.to_string().parse(), Ok(uri));
    }
});
