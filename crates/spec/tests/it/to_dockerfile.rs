//! Dockerfiles of what OBuilder gets wrong. The forms for Unix have been tried with Docker's classic builder and BuildKit.

use insta::assert_snapshot;
use kiln_spec::{DockerfileOptions, Escape, dockerfile, parse};

fn made(options: DockerfileOptions, text: &str) -> String {
    let spec = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{}", error.render("spec", text.as_bytes())));
    dockerfile(&spec, options).to_string()
}

fn unix(text: &str) -> String {
    made(DockerfileOptions { buildkit: false, escape: Escape::Unix }, text)
}

fn buildkit(text: &str) -> String {
    made(DockerfileOptions { buildkit: true, escape: Escape::Unix }, text)
}

fn windows(text: &str) -> String {
    made(DockerfileOptions { buildkit: false, escape: Escape::Windows }, text)
}

#[test]
fn a_script_keeps_its_lines_comments_and_here_documents() {
    assert_snapshot!(unix(
        r##"((from debian:12)
            (run (shell "# count\nfor i in 1 2; do\n\n  # say \"it\"\n  echo $i \\\n    more\ndone\ncat <<EOF\n  $HOME\nEOF\n"))
            (shell /bin/sh -e -c)
            (run (shell "a\nb")))"##
    ), @r##"
    FROM debian:12
    RUN ["/usr/bin/env", "bash", "-c", "# count\n\
    for i in 1 2; do\n\
    \n\
      \u0023 say \"it\"\n\
      echo $i \\\n\
        more\n\
    done\n\
    cat <\u003cEOF\n\
      $HOME\n\
    EOF\n\
    "]
    SHELL [ "/bin/sh", "-e", "-c" ]
    RUN ["/bin/sh", "-e", "-c", "a\n\
    b"]
    "##);
}

#[test]
fn commands_that_docker_would_not_leave_alone() {
    assert_snapshot!(unix(
        r#"((from debian:12)
            (run (shell ""))
            (run (shell "[ -e x ] && y"))
            (run (shell "[\"a\"]"))
            (run (shell "cat <<EOF"))
            (run (shell "--mount x"))
            (run (shell "echo \\"))
            (run (shell " a "))
            (shell)
            (run (shell "true\n")))"#
    ), @r#"
    FROM debian:12
    RUN ["/usr/bin/env", "bash", "-c", ""]
    RUN [ -e x ] && y
    RUN ["/usr/bin/env", "bash", "-c", "[\"a\"]"]
    RUN ["/usr/bin/env", "bash", "-c", "cat <\u003cEOF"]
    RUN ["/usr/bin/env", "bash", "-c", "--mount x"]
    RUN ["/usr/bin/env", "bash", "-c", "echo \\"]
    RUN ["/usr/bin/env", "bash", "-c", " a "]
    SHELL [  ]
    RUN ["true\n\
    "]
    "#);
}

#[test]
fn variables_keep_dollars_quotes_and_newlines() {
    assert_snapshot!(unix(
        r#"((from debian:12)
            (env PRICE "$5 \"or\" \\ 'so' ")
            (env LINES "1\n2")
            (run (shell "echo \"$LINES\""))
            (env LINES one)
            (run (shell "echo \"$LINES\""))
            (env "" x))"#
    ), @r#"
    FROM debian:12
    ENV PRICE="\$5 \"or\" \\ 'so' "
    # LINES: set by each RUN, for its value has several lines
    RUN ["/usr/bin/env", "LINES=1\n\
    2", "/usr/bin/env", "bash", "-c", "echo \"$LINES\""]
    ENV LINES="one"
    RUN echo "$LINES"
    UNSUPPORTED name of a variable in env
    "#);
}

#[test]
fn comments_may_have_lines() {
    assert_snapshot!(unix(r#"((from a) (comment "one\n\ntwo \\") (comment ""))"#), @r"
    FROM a
    # one
    #
    # two \
    #
    ");
}

#[test]
fn paths_are_taken_as_they_are() {
    assert_snapshot!(unix(
        r#"((from debian:12)
            (workdir "/a b$c")
            (copy (src "a b" "it's" "x*?[y]") (dst "/$d/"))
            (copy (src "*" "a\\b") (dst /e/))
            (copy (src --from=x) (dst "<<EOF"))
            (copy (src) (dst /f/))
            (workdir "a\nb")
            (user (name "a b")))"#
    ), @r#"
    FROM debian:12
    WORKDIR "/a b\$c"
    COPY ["a b", "\"it's\"", "x[*][?][[]y]", "\"/\\$d/\""]
    COPY ["[*]", "\"a[\\\\\\\\]b\"", "/e/"]
    COPY ["--from=x", "<\u003cEOF"]
    # nothing to copy
    UNSUPPORTED newline in workdir
    USER a b
    "#);
}

#[test]
fn stages_keep_their_meaning_when_their_names_cannot_stay() {
    assert_snapshot!(unix(
        r#"((build x
              ((build x ((from a)))
               (from b)
               (copy (from (build x)) (src 1) (dst 1))))
            (build X ((from c) (copy (from (build x)) (src 2) (dst 2))))
            (build "my tools" ((from d)))
            (build busybox ((from busybox)))
            (from busybox)
            (copy (from (build x)) (src 3) (dst 3))
            (copy (from (build X)) (src 4) (dst 4))
            (copy (from (build "my tools")) (src 5) (dst 5))
            (copy (from (build busybox)) (src 6) (dst 6)))"#
    ), @"
    FROM a as x-2

    FROM b as x-3
    COPY --from=x-2 1 1

    FROM c as X
    COPY --from=x-3 2 2

    FROM d as my-tools

    FROM busybox as busybox-2

    FROM busybox
    COPY --from=x-3 3 3
    COPY --from=X 4 4
    COPY --from=my-tools 5 5
    COPY --from=busybox-2 6 6
    ");
}

#[test]
fn mounts_hold_names_of_any_text() {
    assert_snapshot!(buildkit(
        r#"((from a)
            (user (uid 5) (gid 6))
            (run (cache ("my, cache" (target /c))) (secrets (token)) (shell "make\nmake install"))
            (run (cache (c (target "/a,b"))) (shell make)))"#
    ), @r#"
    FROM a
    USER 5:6
    RUN --mount=type=secret,id=token,target=/run/secrets/token,uid=5 --mount=type=cache,id=my%2C%20cache,target=/c,uid=5 ["/usr/bin/env", "bash", "-c", "make\n\
    make install"]
    UNSUPPORTED special character in a mount of a cache
    "#);
}

#[test]
fn windows_has_its_own_escape_and_shell() {
    assert_snapshot!(windows(
        r#"((from a) (workdir "C:\\a`b") (env A "C:\\x `$y`") (run (shell "dir `")) (env B "1\n2") (shell powershell)
            (run (shell "a `\nb")))"#
    ), @r#"
    #escape=`
    FROM a
    WORKDIR "C:\a``b"
    ENV A="C:\x ```$y``"
    RUN ["cmd", "/S", "/C", "dir `"]
    UNSUPPORTED newline in env
    SHELL [ "powershell" ]
    RUN ["powershell", "a `\n`
    b"]
    "#);
}

#[test]
fn what_a_dockerfile_cannot_hold_makes_docker_stop() {
    assert_snapshot!(unix(r#"((from "a\nRUN x") (run (shell "\xff")) (env "A=B" c))"#), @"
    UNSUPPORTED base that is no name of an image
    UNSUPPORTED bytes that are not UTF-8 text in run
    UNSUPPORTED name of a variable in env
    ");
}

#[test]
fn no_line_is_longer_than_docker_reads() {
    for unit in ["a", "\\", "# ", "\u{20ac}"] {
        let dockerfile = unix(&format!("((from a) (run (shell \"{}\")))", unit.repeat(100_000).replace('\\', "\\\\")));
        assert!(dockerfile.lines().all(|line| line.len() < 65_535 && !line.trim_start().starts_with('#')));
    }
}
