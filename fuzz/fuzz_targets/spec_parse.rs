//! Any text is read or rejected; what is read can be printed, read again and turned into Dockerfiles.

#![no_main]

use kiln_spec::{DockerfileOptions, Escape, dockerfile, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| match parse(text) {
    Ok(spec) => {
        let printed = spec.to_string();
        let again = parse(printed.as_bytes()).expect("what we print is well-formed");
        assert_eq!(again, spec, "read from:\n{printed}");
        assert_eq!(again.to_string(), printed, "printing is stable");
        for escape in [Escape::Unix, Escape::Windows] {
            for buildkit in [false, true] {
                let text = dockerfile(&spec, DockerfileOptions { buildkit, escape });
                assert!(std::str::from_utf8(&text).is_ok(), "a Dockerfile is text");
            }
        }
    }
    Err(error) => {
        let shown = error.render("spec", text);
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "an error is safe to show: {shown:?}");
    }
});
