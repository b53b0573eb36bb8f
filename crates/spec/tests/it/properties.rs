//! What holds for all texts and all specs.

use bstr::BString;
use kiln_spec::{
    Build, Cache, Copy, DockerfileOptions, Escape, Op, Run, Secret, Source, Spec, User, dockerfile, parse,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// Any bytes, often those that mean something to somebody.
fn text() -> impl Strategy<Value = BString> {
    let telling = prop::sample::select(b"a/.$\"'\\`\n\r\t ;#|()<[]*?-=,\0\x7f\xff\xc3\xa9".to_vec());
    prop_oneof![
        vec(prop_oneof![telling, any::<u8>()], 0..12).prop_map(BString::from),
        "[a-z][a-z0-9]{0,8}".prop_map(BString::from),
        Just(BString::from("for i in 1 2; do\n  # say it\n\n  cat <<EOF\n$i\nEOF\ndone\\\n")),
    ]
}

fn options() -> impl Strategy<Value = Vec<(BString, BString)>> {
    vec((text(), text()), 0..3)
}

fn op(builds: Vec<BString>) -> impl Strategy<Value = Op> {
    let cache = (text(), text(), options()).prop_map(|(name, target, buildkit_options)| Cache {
        name,
        target,
        buildkit_options,
    });
    let secret = (text(), text(), options()).prop_map(|(name, target, buildkit_options)| Secret {
        name,
        target,
        buildkit_options,
    });
    let source = prop::option::of(prop::sample::select([vec!["".into()], builds].concat()))
        .prop_map(|name| name.filter(|name| !name.is_empty()).map_or(Source::Context, Source::Build));
    prop_oneof![
        text().prop_map(Op::Comment),
        text().prop_map(Op::Workdir),
        vec(text(), 0..4).prop_map(Op::Shell),
        (text(), text()).prop_map(|(name, value)| Op::Env { name, value }),
        (0..u32::MAX, 0..u32::MAX).prop_map(|(uid, gid)| Op::User(User::Unix { uid, gid })),
        text().prop_map(|name| Op::User(User::Named(name))),
        (vec(cache, 0..3), vec(text(), 0..3), vec(secret, 0..3), text())
            .prop_map(|(caches, networks, secrets, command)| Op::Run(Run { caches, networks, secrets, command })),
        (source, vec(text(), 0..4), text(), vec(text(), 0..3)).prop_map(|(source, src, dst, exclude)| Op::Copy(Copy {
            source,
            src,
            dst,
            exclude
        })),
    ]
}

fn stage(builds: Vec<Build>) -> impl Strategy<Value = Spec> {
    let names = builds.iter().map(|build| build.name.clone()).collect();
    (text(), vec(op(names), 0..6)).prop_map(move |(from, ops)| Spec { builds: builds.clone(), from, ops })
}

fn spec() -> impl Strategy<Value = Spec> {
    stage(vec![]).prop_recursive(3, 8, 3, |inner| {
        let build = (text(), inner).prop_map(|(name, spec)| Build { name, spec });
        vec(build, 0..3).prop_flat_map(stage)
    })
}

/// Texts that come close to being specs.
fn source_text() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "(",
        ")",
        "((from a) ",
        "(run ",
        "(shell ",
        "(build x ",
        "(copy ",
        "(src ",
        "(dst ",
        "#;",
        "#|",
        "|#",
        "\"",
        "\\",
        "\n",
        "\r",
        " ",
        ";",
        "a",
        "\\065",
        "\\x4a",
        "é",
        "(user (uid 1)(gid 2))",
        "(env A B)",
        "))",
    ];
    vec(
        prop_oneof![prop::sample::select(pieces.map(|piece| piece.as_bytes().to_vec()).to_vec()), vec(any::<u8>(), 1)],
        0..40,
    )
    .prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn a_printed_spec_reads_back_equal(spec in spec()) {
        let text = spec.to_string();
        let read = parse(text.as_bytes()).map_err(|error| TestCaseError::fail(error.render("spec", text.as_bytes())))?;
        prop_assert_eq!(&read, &spec);
        prop_assert_eq!(read.to_string(), text);
    }

    #[test]
    fn a_dockerfile_can_always_be_written(spec in spec(), buildkit: bool, windows: bool) {
        let escape = if windows { Escape::Windows } else { Escape::Unix };
        let text = dockerfile(&spec, DockerfileOptions { buildkit, escape });
        prop_assert!(std::str::from_utf8(&text).is_ok());
        let shell_lines = text.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"SHELL")).count();
        fn shells(spec: &Spec) -> usize {
            spec.ops.iter().filter(|op| matches!(op, Op::Shell(_))).count()
                + spec.builds.iter().map(|build| shells(&build.spec)).sum::<usize>()
        }
        prop_assert!(shell_lines <= shells(&spec), "no value makes a line of its own");
    }

    #[test]
    fn no_text_crashes_the_reader(text in source_text()) {
        match parse(&text) {
            Ok(spec) => prop_assert_eq!(parse(spec.to_string().as_bytes()), Ok(spec)),
            Err(error) => {
                prop_assert!(error.span.start <= error.span.end && error.span.end <= text.len());
                let shown = error.render("spec", &text);
                prop_assert!(shown.chars().all(|c| c == '\n' || !c.is_control()));
            }
        }
    }
}
