//! Recorded specs, with the canonical text and Dockerfiles that OBuilder makes of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_spec::{DockerfileOptions, Escape, dockerfile, parse};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// Checks one file against the spec of the same name.
fn check(name: &str) {
    let text = fs::read(folder().join(name)).expect("the file has just been listed");
    let (stem, kind) = name.split_once('.').expect("a vector has an extension");
    let source = fs::read(folder().join(format!("{stem}.spec"))).expect("each vector has a spec");
    if stem.starts_with('e') {
        assert_eq!(kind, "spec");
        assert!(parse(&source).is_err(), "{name} should be rejected");
        return;
    }
    let spec = parse(&source).unwrap_or_else(|error| panic!("{}", error.render(name, &source)));
    let dockerfile = |buildkit, escape| dockerfile(&spec, DockerfileOptions { buildkit, escape }).to_string();
    let ours = match kind {
        "spec" => {
            assert_eq!(parse(spec.to_string().as_bytes()), Ok(spec), "{name} should read back equal");
            return;
        }
        "canonical" => spec.to_string(),
        "Dockerfile" => dockerfile(false, Escape::Unix),
        "Dockerfile.buildkit" => dockerfile(true, Escape::Unix),
        "Dockerfile.windows" => dockerfile(false, Escape::Windows),
        _ => panic!("nobody knows what {name} is"),
    };
    assert_eq!(ours, String::from_utf8_lossy(&text), "{name}");
}

#[test]
fn every_vector_behaves_as_recorded() {
    let names: BTreeSet<String> = fs::read_dir(folder())
        .expect("the vectors are beside this file")
        .map(|entry| entry.expect("it can be listed").file_name().into_string().expect("names are ASCII"))
        .collect();
    assert_eq!(names.len(), 88, "a vector was added or removed");
    names.iter().for_each(|name| check(name));
}
