//! Input made to break the reader: it must end soon, and in an error rather than a crash.

use std::time::{Duration, Instant};

use kiln_spec::{DockerfileOptions, Escape, MAX_DEPTH, MAX_SPEC_BYTES, ParseErrorKind, dockerfile, parse};

/// Parses with generous time for a debug build on a busy machine; anything quadratic takes hours.
fn kind(text: &[u8]) -> ParseErrorKind {
    let start = Instant::now();
    let error = parse(text).expect_err("the spec has a mistake");
    let shown = error.render("spec", text);
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    assert!(shown.len() < 2000, "an excerpt is short");
    error.kind
}

fn filled(unit: &str) -> Vec<u8> {
    unit.repeat(MAX_SPEC_BYTES / unit.len()).into_bytes()
}

#[test]
fn too_long_a_text_is_not_looked_at() {
    assert_eq!(kind(&vec![b'('; 100 << 20]), ParseErrorKind::TooLarge { bytes: 100 << 20 });
    assert_ne!(kind(&vec![b' '; MAX_SPEC_BYTES]), ParseErrorKind::TooLarge { bytes: MAX_SPEC_BYTES });
}

#[test]
fn ten_million_open_parentheses() {
    assert_eq!(kind(&vec![b'('; 10_000_000]), ParseErrorKind::TooDeep);
    assert_eq!(kind(&vec![b')'; 10_000_000]), ParseErrorKind::StrayParen);
    assert_eq!(kind(&filled("()")), ParseErrorKind::SecondSpec);
}

#[test]
fn comments_of_comments() {
    assert_eq!(kind(&filled("#;")), ParseErrorKind::NothingToDrop);
    assert_eq!(kind(&filled("#;a ")), ParseErrorKind::NoSpec);
    assert_eq!(kind(&filled("#|")), ParseErrorKind::UnclosedComment);
    assert_eq!(kind(&filled("#||#")), ParseErrorKind::NoSpec);
    let half = MAX_SPEC_BYTES / 4;
    assert_eq!(kind(&["#|".repeat(half), "|#".repeat(half)].concat().into_bytes()), ParseErrorKind::NoSpec);
    assert_eq!(kind(&[b"#|\"".to_vec(), filled("#|")[3..].to_vec()].concat()), ParseErrorKind::UnclosedString);
}

#[test]
fn one_endless_atom() {
    assert!(matches!(kind(&filled("a")), ParseErrorKind::NotAList { .. }));
    assert_eq!(kind(&filled("\"")), ParseErrorKind::SecondSpec);
    assert_eq!(kind(&filled("\\\\\"")), ParseErrorKind::UnclosedString);
    assert_eq!(kind(&[b"(\"".to_vec(), filled("\\\n")[2..].to_vec()].concat()), ParseErrorKind::UnclosedString);
    let name = "x".repeat(MAX_SPEC_BYTES - 100);
    assert!(matches!(kind(format!("((from a) ({name}))").as_bytes()), ParseErrorKind::UnknownOp { .. }));
}

#[test]
fn many_builds_and_many_copies() {
    let builds: String = (0..100_000).map(|index| format!("(build b{index} ((from a)))")).collect();
    let copies: String = (0..100_000).map(|index| format!("(copy (from (build b{index})) (src x) (dst y))")).collect();
    let spec = parse(format!("({builds}(from a){copies})").as_bytes()).expect("it is well-formed");
    let start = Instant::now();
    let buildkit = DockerfileOptions { buildkit: true, escape: Escape::Unix };
    assert!(dockerfile(&spec, buildkit).len() > 1_000_000);
    assert_eq!(parse(spec.to_string().as_bytes()).as_ref(), Ok(&spec));
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    let unknown = format!("({builds}(from a)(copy (from (build c)) (src x) (dst y)))");
    assert!(matches!(kind(unknown.as_bytes()), ParseErrorKind::UnknownBuild { .. }));
}

#[test]
fn builds_as_deep_as_allowed() {
    let nested = |builds: usize| {
        format!("{}((from a)){}", "((build x ".repeat(builds), ")(from a)(run (shell x)))".repeat(builds)).into_bytes()
    };
    // The stage itself, two lists for each build, and the innermost operation.
    let most = MAX_DEPTH / 2 - 1;
    let spec = parse(&nested(most)).expect("it is just allowed");
    assert_eq!(parse(spec.to_string().as_bytes()), Ok(spec.clone()));
    dockerfile(&spec, DockerfileOptions { buildkit: false, escape: Escape::Unix });
    assert_eq!(kind(&nested(most + 1)), ParseErrorKind::TooDeep);
}
