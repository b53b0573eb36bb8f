//! The generated code in `src/generated` is what the schemas say.

use std::fs;
use std::path::{Path, PathBuf};

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn generate(into: &Path) {
    let schema = crate_dir().join("schema");
    capnpc::CompilerCommand::new()
        .src_prefix(&schema)
        .file(schema.join("ocluster.capnp"))
        .file(schema.join("vat.capnp"))
        .file(schema.join("kiln.capnp"))
        .default_parent_module(vec!["generated".into()])
        .output_path(into)
        .run()
        .expect("the schemas compile");
}

#[test]
fn generated_code_is_current() {
    kiln_testkit::need!(kiln_testkit::Need::Tool("capnp", "capnproto"));
    let fresh = tempfile::tempdir().expect("a directory");
    generate(fresh.path());
    for name in ["ocluster_capnp.rs", "vat_capnp.rs", "kiln_capnp.rs"] {
        let is = fs::read_to_string(crate_dir().join("src/generated").join(name)).expect("it is there");
        let should_be = fs::read_to_string(fresh.path().join(name)).expect("it was made");
        assert!(
            is == should_be,
            "{name} is old: cargo nextest run -p kiln-api --run-ignored only write_generated_code"
        );
    }
}

#[test]
#[ignore = "writes to the sources"]
fn write_generated_code() {
    generate(&crate_dir().join("src/generated"));
}
