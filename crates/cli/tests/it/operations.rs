//! What each operation of the language does.

use crate::env::TestEnv;
use crate::needs_builds;

#[test]
fn a_command_sees_what_the_spec_says() {
    needs_builds!();
    let env = TestEnv::new();
    let log = env.log(
        r#"(comment "a remark")
           (env COLOUR red) (env SHAPE "a \"round\" one") (env COLOUR blue)
           (workdir /not/yet) (workdir there)
           (shell /bin/sh -ec)
           (user (uid 1000) (gid 1000))
           (run (shell "pwd; stat -c '%n %a %u:%g' /not /not/yet .; id -u; id -g; hostname
                        echo $COLOUR, $SHAPE, $PATH, $HOME; cat; readlink /proc/self/fd/0"))"#,
    );
    insta::assert_snapshot!(log, @r#"
    /not/yet/there
    /not 755 1000:1000
    /not/yet 755 1000:1000
    . 755 1000:1000
    1000
    1000
    builder
    blue, a "round" one, /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin, /home/builder
    /dev/null
    "#);
}

#[test]
fn a_user_can_be_named_and_has_a_home() {
    needs_builds!();
    let env = TestEnv::new();
    assert_eq!(env.log(r#"(user (name builder)) (run (shell "id -u; echo $HOME"))"#), "1000\n/home/builder\n");
    assert_eq!(env.log(r#"(run (shell "id -u; echo $HOME"))"#), "0\n/root\n");
    assert_eq!(env.log(r#"(user (uid 7) (gid 8)) (run (shell "id -g; echo $HOME"))"#), "8\n/\n");
    assert_eq!(env.log(r#"(env HOME /tmp) (env PATH /bin) (run (shell "echo $HOME $PATH"))"#), "/tmp /bin\n");
    let nobody = env.build(r#"(user (name nobody)) (run (shell "id"))"#).fails_with(1);
    assert!(nobody.stderr.contains("`nobody`, who is not in the image's /etc/passwd"), "{}", nobody.stderr);
}

#[test]
fn the_network_is_the_hosts_only_if_asked_for() {
    needs_builds!();
    let env = TestEnv::new();
    let interfaces = "cut -d: -f1 -s /proc/net/dev | tr -d ' \\n'";
    assert_eq!(env.log(&format!(r#"(run (shell "{interfaces}"))"#)), "lo");
    let gate = crate::env::Gate::new();
    let port = gate.wait();
    env.build(&format!(r#"(run (shell "{port}"))"#)).fails_with(1);
    let building = env.start(&format!(r#"(run (network host) (shell "{port}"))"#));
    gate.arrival().pass("from outside\n");
    assert!(building.end().ok().stderr.contains("\nfrom outside\n"));
    let other = env.build(r#"(run (network nat) (shell "true"))"#).fails_with(2);
    assert_eq!(other.told(), "error: unknown network `nat`: only `host` is supported, and none for no network\n");
}

#[test]
fn a_command_that_fails_fails_the_build_and_nothing_is_kept_of_it() {
    needs_builds!();
    let env = TestEnv::new();
    let spec = r#"(run (shell "echo one")) (run (shell "echo two >&2; exit 7")) (run (shell "echo three"))"#;
    for made_and_found in [(2, 0), (0, 2)] {
        let failed = env.build(spec).fails_with(1);
        assert_eq!(failed.stdout, "");
        assert_eq!(failed.made_and_found(), made_and_found);
        assert!(!failed.stderr.contains("three"));
        assert!(failed.stderr.contains("step `/: (run (shell \"echo two >&2; exit 7\"))` exited with status 7"));
        env.assert_clean();
    }
    let killed = env.build(r#"(shell /bin/sh -c) (run (shell "kill -KILL $$"))"#).fails_with(1);
    assert!(killed.stderr.contains("was killed by signal 9"), "{}", killed.stderr);
    let missing = env.build(r#"(shell /no/such) (run (shell x))"#).fails_with(1);
    assert!(missing.stderr.contains("exited with status 127"), "{}", missing.stderr);
}

#[test]
fn results_do_not_depend_on_the_umask_of_the_caller() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/d/file", "x");
    env.spec(
        r#"(workdir /w) (user (uid 1000) (gid 1000)) (copy (src d) (dst made/))
           (run (cache (c (target /cache))) (shell "stat -c '%a %U' / /w made made/d made/d/file /cache; touch /cache/x"))"#,
    );
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "umask 077; exec \"$0\" build -f spec src", env!("CARGO_BIN_EXE_kiln")]);
    env.set_up(&mut command);
    let built = env.ran(&mut command).ok();
    let modes = "\n755 root\n755 builder\n755 builder\n755 builder\n644 builder\n755 builder\n";
    assert!(built.stderr.contains(modes), "{}", built.stderr);
}

#[test]
fn odd_bytes_are_passed_on_and_a_nul_is_refused() {
    needs_builds!();
    let env = TestEnv::new();
    assert_eq!(
        env.log(r#"(env BYTES "\xff\n'\"") (run (shell "printf %s \"$BYTES\" | od -An -tx1"))"#),
        " ff 0a 27 22\n"
    );
    for op in [r#"(run (shell "a\000b"))"#, r#"(env "A=B" c) (run (shell true))"#, r#"(copy (src .) (dst "/a\000b"))"#]
    {
        env.build(op).fails_with(2);
    }
}

#[test]
fn a_place_that_cannot_be_in_this_image_is_the_builds_fault() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("token", "x");
    for op in [
        "(workdir /etc/passwd) (run (shell true))",
        "(workdir /etc/passwd/x) (run (shell true))",
        r#"(run (shell "ln -s loop /loop")) (workdir /loop) (run (shell true))"#,
        "(run (cache (c (target /etc/passwd))) (shell true))",
        "(run (cache (c (target /proc/x))) (shell true))",
        "(run (cache (c (target /))) (shell true))",
        "(run (secrets (token (target /tmp))) (shell true))",
    ] {
        let failed = env.build_with(&["--secret", "token:token"], op).fails_with(1);
        assert!(failed.stderr.contains("\nerror: cannot run step `/"), "{}", failed.stderr);
    }
    env.assert_clean();
}

#[test]
fn five_hundred_steps_are_no_trouble() {
    needs_builds!();
    let env = TestEnv::new();
    let steps: String = (0..499).map(|at| format!("(shell /bin/true {at}) (run (shell x))\n")).collect();
    let spec = format!(r#"{steps} (shell /bin/sh -c) (run (shell "echo the end"))"#);
    let built = env.build(&spec).ok();
    assert_eq!(built.made_and_found(), (501, 0));
    assert_eq!(env.build(&spec).ok().made_and_found(), (0, 501));
    assert_eq!(env.run(&["log", built.id()]).stdout, "the end\n");
}
