//! The program, called as OCluster's and OBuilder's.

use crate::cluster::{Cluster, SCHEDULER, Script, without_ports};
use crate::env::TestEnv;
use crate::needs_builds;

/// Runs programs, each with the exit code that it must have, and returns what they print.
fn transcript(env: &TestEnv, commands: &[(i32, &str, &[&str])]) -> String {
    let mut text = String::new();
    for (code, program, arguments) in commands {
        let ran = env.ran(&mut env.program(program, arguments));
        assert_eq!(ran.code, *code, "{program} {}: {}{}", arguments.join(" "), ran.stdout, ran.stderr);
        let told = ran.told();
        // The usage that follows a mistake is the library's.
        let told = told.split("\n\nUsage").next().unwrap();
        text.push_str(&format!("$ {program} {}\n{}{told}\n", arguments.join(" "), ran.printed()));
    }
    without_ports(&text).replace("\n\n", "\n")
}

#[test]
fn oclusters_programs_are_replaced() {
    let env = TestEnv::without_base();
    std::fs::create_dir(env.at("caps")).unwrap();
    let mut scheduler =
        env.spawn(&mut env.program("ocluster-scheduler", &[&["--verbosity=warning"], &SCHEDULER[..]].concat()));
    scheduler.wait_for("listening at");
    let cluster = Cluster { env, scheduler };
    let _worker = cluster.worker("w1", |spec| match spec {
        "good" => Script::Succeeds("the \"result\""),
        _ => Script::Fails("Build failed"),
    });
    cluster.env.write("good.spec", "good");
    cluster.env.write("bad.spec", "bad");
    let alice = "--connect=caps/submit-alice.cap";
    let text = transcript(
        &cluster.env,
        &[
            (0, "ocluster-client", &[alice, "submit-obuilder", "--local-file", "good.spec", "--pool=linux"]),
            (
                1,
                "ocluster-client",
                &["submit-obuilder", "-c", "caps/submit-alice.cap", "--local=bad.spec", "--pool=linux"],
            ),
            (1, "ocluster-client", &[alice, "submit-obuilder", "--local-file=good.spec", "--pool=nowhere"]),
            (
                1,
                "ocluster-client",
                &["-c", "caps/admin.cap", "submit-obuilder", "--local-file=good.spec", "--pool=linux"],
            ),
            (
                124,
                "ocluster-client",
                &["-c", "missing.cap", "submit-obuilder", "--local-file=good.spec", "--pool=linux"],
            ),
            (124, "ocluster-client", &[alice, "submit-obuilder", "--local-file=missing.spec", "--pool=linux"]),
            (124, "ocluster-client", &[alice, "submit-docker", "--pool=linux", "--push-user=x"]),
            (124, "ocluster-client", &["submit-obuilder", "--local-file=good.spec", "--pool=linux"]),
            (124, "ocluster-client", &["nonsense"]),
            (0, "ocluster-admin", &["-c", "caps/admin.cap", "show"]),
            (0, "ocluster-admin", &["show", "-c", "caps/admin.cap", "linux", "w9"]),
            (1, "ocluster-admin", &["show", "-c", "caps/admin.cap", "nowhere"]),
            (1, "ocluster-admin", &["-c", "caps/admin.cap", "add-client", "alice"]),
            (1, "ocluster-admin", &["-c", "caps/admin.cap", "pause", "linux"]),
            (0, "ocluster-admin", &["-c", "caps/admin.cap", "pause", "--wait", "linux", "w1"]),
            (1, "ocluster-admin", &["-c", "caps/admin.cap", "forget", "linux", "w1"]),
            (1, "ocluster-admin", &["-c", "caps/admin.cap", "update", "windows"]),
            (124, "ocluster-admin", &["-c", "caps/admin.cap", "pause"]),
            (124, "ocluster-scheduler", &["--pools=a"]),
        ],
    );
    insta::assert_snapshot!(text, @r#"
    $ ocluster-client --connect=caps/submit-alice.cap submit-obuilder --local-file good.spec --pool=linux
    Tailing log:
    Building
    Job succeeded
    Result: "the \"result\""
    $ ocluster-client submit-obuilder -c caps/submit-alice.cap --local=bad.spec --pool=linux
    Tailing log:
    Building
    Job failed: it is so
    Failed: Build failed.
    $ ocluster-client --connect=caps/submit-alice.cap submit-obuilder --local-file=good.spec --pool=nowhere
    Tailing log:
    Error tailing logs: Failed: Pool ID "nowhere" not one of {linux, windows}
    $ ocluster-client -c caps/admin.cap submit-obuilder --local-file=good.spec --pool=linux
    Tailing log:
    Error tailing logs: Unimplemented: Method not implemented.
    $ ocluster-client -c missing.cap submit-obuilder --local-file=good.spec --pool=linux
    ocluster-client: cannot read missing.cap: No such file or directory (os error 2)
    $ ocluster-client --connect=caps/submit-alice.cap submit-obuilder --local-file=missing.spec --pool=linux
    ocluster-client: cannot read missing.spec: No such file or directory (os error 2)
    $ ocluster-client --connect=caps/submit-alice.cap submit-docker --pool=linux --push-user=x
    ocluster-client: the following required arguments were not provided:
      --push-to <REPOSITORY:TAG>
      --push-password <FILE>
    $ ocluster-client submit-obuilder --local-file=good.spec --pool=linux
    ocluster-client: no scheduler is named; give its capability file with `--connect`, or set KILN_CAP
    $ ocluster-client nonsense
    ocluster-client: unrecognized subcommand 'nonsense'
    $ ocluster-admin -c caps/admin.cap show
    linux
    windows
    $ ocluster-admin show -c caps/admin.cap linux w9
    w9: Not found
    $ ocluster-admin show -c caps/admin.cap nowhere
    PoolAdmin.show: Failed: No such pool
    $ ocluster-admin -c caps/admin.cap add-client alice
    Failed: Client "alice" already registered!
    $ ocluster-admin -c caps/admin.cap pause linux
    Specify which worker you want to affect (or use --all).
    Candidates are:
    w1
    $ ocluster-admin -c caps/admin.cap pause --wait linux w1
    Waiting for jobs to finish…
    w1: Running jobs: 0
    Success.
    $ ocluster-admin -c caps/admin.cap forget linux w1
    Failed: Worker "w1" is still connected!
    $ ocluster-admin -c caps/admin.cap update windows
    No workers connected to pool!
    $ ocluster-admin -c caps/admin.cap pause
    ocluster-admin: the following required arguments were not provided:
      <POOL>
    $ ocluster-scheduler --pools=a
    ocluster-scheduler: the following required arguments were not provided:
      --capnp-secret-key-file <FILE>
      --capnp-listen-address <ADDRESS>
      --state-dir <DIR>
    "#);
}

#[test]
fn obuilder_is_replaced() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("good", "((from rootfs:base.tar) (run (shell \"echo hello\")))");
    env.write("failing", "((from rootfs:base.tar) (run (shell \"echo oh; exit 3\")))");
    env.write("bad", "((from rootfs:base.tar) (rnu x))");
    let built = env.ran(&mut env.program("obuilder", &["build", "--store=overlayfs:store", "-f", "good", "src"])).ok();
    let id = built.stdout.lines().last().unwrap().trim_start_matches("Got: ").trim_matches('"').to_owned();
    let store = "--store=overlayfs:store";
    let text = transcript(
        &env,
        &[
            (0, "obuilder", &["build", store, "--fast-sync", "-f", "good", "src"]),
            (1, "obuilder", &["build", store, "-f", "failing", "src"]),
            (1, "obuilder", &["build", store, "-f", "bad", "src"]),
            (124, "obuilder", &["build", store, "src"]),
            (124, "obuilder", &["build", "--store=docker:x", "-f", "good", "src"]),
            (0, "obuilder", &["dockerfile", "-f", "good"]),
            (0, "obuilder", &["healthcheck", store]),
            (0, "obuilder", &["delete", store, &id]),
            (0, "obuilder", &["clean", store]),
        ],
    );
    insta::assert_snapshot!(text.replace(&id, "[ID]"), @r#"
    $ obuilder build --store=overlayfs:store --fast-sync -f good src
    (from rootfs:base.tar)
    ---> using "[ID]" from cache
    /: (run (shell "echo hello"))
    hello
    ---> using "[ID]" from cache
    Got: "[ID]"
    $ obuilder build --store=overlayfs:store -f failing src
    (from rootfs:base.tar)
    ---> using "[ID]" from cache
    /: (run (shell "echo oh; exit 3"))
    oh
    ---> failed
    Build step failed: step `/: (run (shell "echo oh; exit 3"))` exited with status 3
    $ obuilder build --store=overlayfs:store -f bad src
    bad:1:26: unknown operation `rnu`
      |
    1 | ((from rootfs:base.tar) (rnu x))
      |                          ^^^ expected `build`, `from`, `comment`, `workdir`, `shell`, `env`, `user`, `run` or `copy`
    hint: did you mean `run`?

    $ obuilder build --store=overlayfs:store src
    obuilder: the following required arguments were not provided:
      -f <FILE>
    $ obuilder build --store=docker:x -f good src
    obuilder: `docker:x` is not a store: docker stores are not supported yet; expected `auto`, `overlayfs:/path`, `btrfs:/path`, `zfs:pool/dataset`, `xfs:/path` or `copy:/path`
    $ obuilder dockerfile -f good
    FROM rootfs:base.tar
    RUN echo hello

    $ obuilder healthcheck --store=overlayfs:store
    Healthcheck passed
    $ obuilder delete --store=overlayfs:store [ID]
    Removing [ID]
    $ obuilder clean --store=overlayfs:store
    freed 1.9 MiB of 1 results
    "#);
}
