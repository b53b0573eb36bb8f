//! `kiln fmt`, `kiln check`, `kiln dockerfile`.

use std::io::Write;
use std::process::Stdio;

use crate::env::{Ran, TestEnv};

const LOOSE: &str =
    "((from debian) (run (cache (c (target /c))) (shell \"make\nmake install\")) (copy (src a) (dst b)))";

fn with_stdin(env: &TestEnv, arguments: &[&str], text: &str) -> Ran {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    drop(writer);
    env.ran(env.kiln(arguments).stdin(Stdio::from(reader)))
}

#[test]
fn fmt_prints_or_writes_the_canonical_form() {
    let env = TestEnv::new();
    let path = env.write("spec", LOOSE);
    let canonical = env.run(&["fmt", "spec"]).ok().stdout;
    insta::assert_snapshot!(canonical, @r#"
    ((from debian)
     (run (cache (c (target /c)))
          (shell "make\
                  \nmake install"))
     (copy (src a) (dst b))
    )
    "#);
    let failed = env.run(&["fmt", "--check", "spec"]).fails_with(1);
    assert_eq!(failed.told(), "error: spec is not in canonical form; see it with `kiln fmt spec`\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), LOOSE);
    env.run(&["fmt", "--write", "spec"]).ok();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), canonical);
    env.run(&["fmt", "--check", "spec"]).ok();
    env.run(&["fmt", "--write", "spec"]).ok();
    env.write("commented", "; why\n((from debian))");
    let refused = env.run(&["fmt", "--write", "commented"]).fails_with(2);
    insta::assert_snapshot!(refused.told(), @r#"
    error: commented has comments, which the canonical form cannot keep

    hint: keep a remark in the spec itself with `(comment "…")`
    "#);
    assert_eq!(std::fs::read_to_string(env.at("commented")).unwrap(), "; why\n((from debian))");
    assert_eq!(with_stdin(&env, &["fmt", "-"], LOOSE).ok().stdout, canonical);
}

#[test]
fn check_says_where_a_spec_is_wrong() {
    let env = TestEnv::new();
    env.write("good", LOOSE);
    env.write("bad", "((from debian)\n (copy (src a) (dts b)))");
    env.run(&["check", "good"]).ok();
    let failed = env.run(&["check", "good", "bad"]).fails_with(2);
    insta::assert_snapshot!(failed.told(), @"
    error: bad:2:17: `copy` has no field `dts`
      |
    2 |  (copy (src a) (dts b)))
      |                 ^^^ expected `from`, `src`, `dst` or `exclude`
    hint: did you mean `dst`?
    ");
    let failed = with_stdin(&env, &["check", "-"], "(").fails_with(2);
    insta::assert_snapshot!(failed.told(), @"
    error: standard input:1:1: parenthesis is never closed
      |
    1 | (
      | ^
    ");
}

#[test]
fn a_spec_becomes_a_dockerfile() {
    let env = TestEnv::new();
    env.write("spec", LOOSE);
    let plain = env.run(&["dockerfile", "spec"]).ok().stdout;
    insta::assert_snapshot!(plain, @r#"
    FROM debian
    RUN ["/usr/bin/env", "bash", "-c", "make\n\
    make install"]
    COPY a b
    "#);
    assert_eq!(env.run(&["dockerfile", "-f", "spec"]).ok().stdout, plain);
    let buildkit = env.run(&["dockerfile", "--buildkit", "spec"]).ok().stdout;
    assert!(buildkit.contains("RUN --mount=type=cache,id=c,target=/c"), "{buildkit}");
    let windows = env.run(&["dockerfile", "--escape", "windows", "spec"]).ok().stdout;
    assert!(windows.starts_with("#escape=`\n"), "{windows}");
    assert_eq!(with_stdin(&env, &["dockerfile", "-"], LOOSE).ok().stdout, plain);
    env.run(&["dockerfile"]).fails_with(2);
}

#[test]
fn a_build_reads_its_spec_from_standard_input() {
    crate::needs_builds!();
    let env = TestEnv::new();
    let built = with_stdin(&env, &["build", "-f", "-", "src"], "((from rootfs:base.tar) (run (shell \"echo it\")))");
    assert!(built.ok().stderr.contains("\nit\n"));
    env.write("src/kiln.spec", "((from rootfs:../base.tar) (run (shell \"echo by default\")))");
    assert!(env.run(&["build", "src"]).ok().stderr.contains("\nby default\n"));
}
