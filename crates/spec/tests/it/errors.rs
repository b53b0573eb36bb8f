//! What people see who made a mistake.

use insta::assert_snapshot;
use kiln_spec::parse;

/// Renders the error of a recorded spec.
macro_rules! recorded {
    ($name:literal) => {
        rendered(concat!($name, ".spec"), include_bytes!(concat!("../vectors/", $name, ".spec")))
    };
}

fn rendered(file: &str, text: &[u8]) -> String {
    parse(text).expect_err("the spec has a mistake").render(file, text)
}

fn spec(text: &str) -> String {
    rendered("spec", text.as_bytes())
}

#[test]
fn recorded_mistakes() {
    assert_snapshot!(recorded!("e01-not-list"), @"
    e01-not-list.spec:1:1: atom where a list belongs
      |
    1 | hello
      | ^^^^^ expected `((from BASE) …)`
    ");
    assert_snapshot!(recorded!("e02-no-from"), @r#"
    e02-no-from.spec:1:3: operation before the base image
      |
    1 | ((run (shell "true")))
      |   ^^^ expected `(from BASE)`
    "#);
    assert_snapshot!(recorded!("e03-empty"), @"
    e03-empty.spec:1:1: stage has no base image
      |
    1 | ()
      | ^^ expected `(from BASE)`
    ");
    assert_snapshot!(recorded!("e04-unknown-op"), @r#"
    e04-unknown-op.spec:1:12: unknown operation `rnu`
      |
    1 | ((from a) (rnu (shell "true")))
      |            ^^^ expected `build`, `from`, `comment`, `workdir`, `shell`, `env`, `user`, `run` or `copy`
    hint: did you mean `run`?
    "#);
    assert_snapshot!(recorded!("e05-unknown-field"), @r#"
    e05-unknown-field.spec:1:17: `run` has no field `shel`
      |
    1 | ((from a) (run (shel "true")))
      |                 ^^^^ expected `cache`, `network`, `secrets` or `shell`
    hint: did you mean `shell`?
    "#);
    assert_snapshot!(recorded!("e06-dup-field"), @"
    e06-dup-field.spec:1:27: field `shell` is given twice
      |
    1 | ((from a) (run (shell a) (shell b)))
      |                           ^^^^^
    ");
    assert_snapshot!(recorded!("e07-unknown-build"), @"
    e07-unknown-build.spec:1:55: no build `tool` in scope
      |
    1 | …ild tools ((from a))) (from b) (copy (from (build tool)) (src x) (dst y)))
      |                                                    ^^^^ expected a build of this stage, or of a stage around it, that comes before
    hint: did you mean `tools`?
    ");
    assert_snapshot!(recorded!("e08-build-after-from"), @"
    e08-build-after-from.spec:1:12: build after the base image
      |
    1 | ((from b) (build tools ((from a))) (run (shell x)))
      |            ^^^^^
    hint: move it before the stage's `(from …)`
    ");
    assert_snapshot!(recorded!("e09-user-one-id"), @"
    e09-user-one-id.spec:1:11: `user` lacks its field `gid`
      |
    1 | ((from a) (user (uid 1)))
      |           ^^^^^^^^^^^^^^ expected `(user (uid N) (gid N))`
    ");
    assert_snapshot!(recorded!("e10-user-text"), @"
    e10-user-text.spec:1:22: `root` is not a number of a user or group
      |
    1 | ((from a) (user (uid root) (gid root)))
      |                      ^^^^ expected a number from 0 to 4294967294
    hint: a user with a name is written `(user (name NAME))`
    ");
    assert_snapshot!(recorded!("e11-unclosed"), @r#"
    e11-unclosed.spec:1:1: parenthesis is never closed
      |
    1 | ((from a) (run (shell "true"))
      | ^
    "#);
    assert_snapshot!(recorded!("e12-two-sexps"), @"
    e12-two-sexps.spec:1:12: text after the end of the spec
      |
    1 | ((from a)) ((from b))
      |            ^^^^^^^^^^ expected the end of the text
    hint: a text holds one spec; further stages are `(build NAME SPEC)` inside it
    ");
    assert_snapshot!(recorded!("e13-no-dst"), @"
    e13-no-dst.spec:1:11: `copy` lacks its field `dst`
      |
    1 | ((from a) (copy (src x)))
      |           ^^^^^^^^^^^^^^ expected `(copy [(from …)] (src PATH…) (dst PATH) [(exclude NAME…)])`
    ");
    assert_snapshot!(recorded!("e14-run-no-shell"), @"
    e14-run-no-shell.spec:1:11: `run` lacks its field `shell`
      |
    1 | ((from a) (run (network host)))
      |           ^^^^^^^^^^^^^^^^^^^^ expected `(run [(cache …)] [(network …)] [(secrets …)] (shell COMMAND))`
    ");
    assert_snapshot!(recorded!("e15-env-one"), @"
    e15-env-one.spec:1:11: `env` is given 1 argument
      |
    1 | ((from a) (env A))
      |           ^^^^^^^ expected `(env NAME VALUE)`
    ");
    assert_snapshot!(recorded!("e16-build-inner-scope"), @"
    e16-build-inner-scope.spec:1:80: no build `inner` in scope
      |
    1 | …(from a))) (from b))) (from c) (copy (from (build inner)) (src x) (dst y)))
      |                                                    ^^^^^ expected a build of this stage, or of a stage around it, that comes before
    hint: the build of that name is nested in another stage
    ");
}

#[test]
fn mistakes_in_the_text() {
    assert_snapshot!(spec(""), @"
    spec:1:1: no spec in the text
      |
    1 |
      | ^ expected `(from BASE)`
    ");
    assert_snapshot!(spec("; nothing\n#| here |#"), @"
    spec:1:1: no spec in the text
      |
    1 | ; nothing
      | ^ expected `(from BASE)`
    ");
    assert_snapshot!(spec("((from a)\n (run (shell \"make)))\n"), @r#"
    spec:2:14: string is never closed
      |
    2 |  (run (shell "make)))
      |              ^
    "#);
    assert_snapshot!(spec("((from a)))"), @"
    spec:1:11: nothing is open for this parenthesis to close
      |
    1 | ((from a)))
      |           ^
    ");
    assert_snapshot!(spec("((from a) #| (run (shell x)))"), @"
    spec:1:11: block comment is never closed
      |
    1 | ((from a) #| (run (shell x)))
      |           ^^
    ");
    assert_snapshot!(spec("((from a) |#)"), @"
    spec:1:11: `|#` outside of a block comment
      |
    1 | ((from a) |#)
      |           ^^
    ");
    assert_snapshot!(spec("((from a#|b|#))"), @"
    spec:1:9: comment mark inside an atom
      |
    1 | ((from a#|b|#))
      |         ^^
    hint: put the atom in quotes, or a blank before the comment
    ");
    assert_snapshot!(spec("((from a) #;)"), @"
    spec:1:11: `#;` with nothing after it to drop
      |
    1 | ((from a) #;)
      |           ^^
    ");
    assert_snapshot!(spec(r#"((from a) (run (shell "\400")))"#), @r#"
    spec:1:24: bad escape in a string: above 255
      |
    1 | ((from a) (run (shell "\400")))
      |                        ^^^^ expected `\ddd`, from `\000` to `\255`
    hint: a backslash that means itself is written `\\`
    "#);
    assert_snapshot!(spec(r#"((from a) (run (shell "\xag")))"#), @r#"
    spec:1:24: bad escape in a string: not two hexadecimal digits
      |
    1 | ((from a) (run (shell "\xag")))
      |                        ^^ expected `\xhh`, with two hexadecimal digits
    hint: a backslash that means itself is written `\\`
    "#);
    assert_snapshot!(spec("((from a)\r(run (shell x)))"), @r"
    spec:1:10: carriage return without a newline
      |
    1 | ((from a)\r(run (shell x)))
      |          ^^
    ");
}

#[test]
fn mistakes_in_the_shape() {
    assert_snapshot!(spec("((from a) (from b))"), @"
    spec:1:12: second base image in a stage
      |
    1 | ((from a) (from b))
      |            ^^^^
    ");
    assert_snapshot!(spec("((form a))"), @"
    spec:1:3: unknown operation `form`
      |
    1 | ((form a))
      |   ^^^^ expected `build`, `from`, `comment`, `workdir`, `shell`, `env`, `user`, `run` or `copy`
    hint: did you mean `from`?
    ");
    assert_snapshot!(spec("((from a) run)"), @"
    spec:1:11: atom where a list belongs
      |
    1 | ((from a) run)
      |           ^^^ expected `(OPERATION …)`
    ");
    assert_snapshot!(spec("((from a) ())"), @"
    spec:1:11: list does not start with a name
      |
    1 | ((from a) ())
      |           ^^ expected `(OPERATION …)`
    ");
    assert_snapshot!(spec("((from a) ((run)))"), @"
    spec:1:12: list does not start with a name
      |
    1 | ((from a) ((run)))
      |            ^^^^^ expected `(OPERATION …)`
    ");
    assert_snapshot!(spec("((from a) (workdir (a)))"), @"
    spec:1:20: list where `workdir` takes an atom
      |
    1 | ((from a) (workdir (a)))
      |                    ^^^ expected `(workdir DIR)`
    ");
    assert_snapshot!(spec("((from a) (user (uid 4294967295) (gid 0)))"), @"
    spec:1:22: `4294967295` is not a number of a user or group
      |
    1 | ((from a) (user (uid 4294967295) (gid 0)))
      |                      ^^^^^^^^^^ expected a number from 0 to 4294967294
    hint: a user with a name is written `(user (name NAME))`
    ");
    assert_snapshot!(spec("((from a) (user (uid 1) (gid 1) (name x)))"), @"
    spec:1:11: user has both a number and a name
      |
    1 | ((from a) (user (uid 1) (gid 1) (name x)))
      |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected `(user (uid N) (gid N))` or `(user (name NAME))`
    ");
    assert_snapshot!(spec("((from a) (run (cache (apt)) (shell x)))"), @"
    spec:1:23: `cache` lacks its field `target`
      |
    1 | ((from a) (run (cache (apt)) (shell x)))
      |                       ^^^^^ expected `(NAME (target PATH))`
    ");
    assert_snapshot!(spec("((from a) (copy (from contxt) (src x) (dst y)))"), @"
    spec:1:23: unknown source `contxt`
      |
    1 | ((from a) (copy (from contxt) (src x) (dst y)))
      |                       ^^^^^^ expected `context` or `(build NAME)`
    hint: did you mean `context`?
    ");
    assert_snapshot!(spec("((from a) (copy (from (biuld x)) (src x) (dst y)))"), @"
    spec:1:24: unknown source `biuld`
      |
    1 | ((from a) (copy (from (biuld x)) (src x) (dst y)))
      |                        ^^^^^ expected `context` or `(build NAME)`
    hint: did you mean `build`?
    ");
    assert_snapshot!(spec("((from a) (copy (from (build x)) (src x) (dst y)))"), @"
    spec:1:30: no build `x` in scope
      |
    1 | ((from a) (copy (from (build x)) (src x) (dst y)))
      |                              ^ expected a build of this stage, or of a stage around it, that comes before
    ");
}

#[test]
fn a_mistake_deep_in_a_long_line() {
    let ops = "(env A B) ".repeat(40);
    assert_snapshot!(spec(&format!("((from a) {ops}(evn A B) {ops})")), @"
    spec:1:412: unknown operation `evn`
      |
    1 | …env A B) (env A B) (env A B) (env A B) (env A B) (evn A B) (env A B) (env A B) (env A B) (env A B) (env A B) (env A B) (…
      |                                                    ^^^ expected `build`, `from`, `comment`, `workdir`, `shell`, `env`, `user`, `run` or `copy`
    hint: did you mean `env`?
    ");
}

#[test]
fn display_is_one_line() {
    let error = parse(b"((from a)\n (rnu))").expect_err("the spec has a mistake");
    assert_snapshot!(error, @"line 2, column 3: unknown operation `rnu`");
}
