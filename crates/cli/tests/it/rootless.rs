//! Builds by a user without root's rights.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use kiln_testkit::{Need, Unprivileged, have};

use crate::env::{Ran, TestEnv};

/// Steps that give files away, become other users and come back, and keep what they should.
const STEPS: &str = r#"
 (run (shell "id -u; mkdir /d; echo root > /d/root; echo other > /d/other; chown 1000:1000 /d/other; chown 65535 /d; chmod 4755 /d/root; ln /d/other /d/link"))
 (run (shell "stat -c '%n %u:%g %a' /d /d/*; rm -r /d/root; mkdir /d/root; touch /d/root/in; mkdir -p /gone/x"))
 (run (shell "rm -r /gone; mkdir /gone; ls -A /gone; su builder -c 'id -u; cat /d/other > /tmp/copy'"))
 (user (uid 1000) (gid 1000))
 (copy (src file) (dst /tmp/file))
 (run (cache (c (target /c))) (secrets (s (target /run/s))) (shell "id -u; [ $(cat /run/s) = secret ] && echo told; touch /c/x; stat -c '%u:%g' /c /c/x /tmp/file; chown 0 /c/x || echo refused"))"#;

/// Makes a world for a user, with what [`STEPS`] need.
fn world(user: Unprivileged) -> TestEnv {
    let env = TestEnv::for_user(user);
    env.write("src/file", "from the source\n");
    env.write("secret", "secret\n");
    env
}

fn build(env: &TestEnv, arguments: &[&str], steps: &str) -> Ran {
    env.build_with(&[&["--secret", "s:secret"], arguments].concat(), steps)
}

fn run_as_root(env: &TestEnv, arguments: &[&str]) -> Ran {
    env.ran(&mut env.kiln_as_root(arguments))
}

/// The owners of the files of this name in the store.
fn owners(env: &TestEnv, name: &str) -> Vec<(u32, u32)> {
    let found = Command::new("find").arg(env.at("store")).args(["-path", name]).output().unwrap();
    let owner = |path: &str| fs::symlink_metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
    String::from_utf8(found.stdout).unwrap().lines().map(owner).collect()
}

/// Leaves the test, as a skip, where there is no such user.
macro_rules! needs_a_user {
    () => {
        if !have(&Unprivileged::NEEDS) || !have(&[Need::Tool("busybox", "busybox-static")]) {
            return;
        }
    };
}

/// Names, modes and owners in an exported image.
fn describe(env: &TestEnv, image: &str) -> Vec<String> {
    let listed = Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(env.at(image)).output().unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {}", words[5..].join(" "), words[0], words[1])
    };
    let mut lines: Vec<_> = String::from_utf8(listed.stdout).unwrap().lines().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn a_user_without_root_builds_what_root_builds() {
    needs_a_user!();
    let env = world(Unprivileged::with_ids().unwrap());
    let export = ["-o", "type=tar,dest=user.tar"];
    let built = build(&env, &export, STEPS).ok();
    for line in
        ["/d 65535:0 755", "/d/link 1000:1000 644", "/d/root 0:0 4755", "1000\ntold\n1000:1000\n1000:1000\n1000:1000\n"]
    {
        assert!(built.stderr.contains(line), "{line}: {}", built.stderr);
    }
    assert!(built.stderr.contains("refused\n") && !built.stderr.contains("note:"), "{}", built.stderr);
    // On the disk, root is the user, and the others are from its range.
    let (user, first) = (Unprivileged::ID, Unprivileged::FIRST);
    assert_eq!(owners(&env, "*/d/other"), [(first + 999, first + 999)]);
    assert_eq!(owners(&env, "*/d/root/in"), [(user, user)]);

    // Everything is found again, by a program that was started anew.
    assert_eq!(build(&env, &[], STEPS).ok().made_and_found(), (0, 6));
    env.run(&["store", "verify"]).ok();
    assert!(env.run(&["log", built.id()]).ok().stdout.contains("told"));

    // Root gets the same, in a store of its own.
    let as_root = ["--store", &format!("overlayfs:{}", env.at("roots").display()), "-o", "type=tar,dest=root.tar"];
    let arguments = ["build", "-f", "spec", "src", "--secret", "s:secret"];
    let by_root = run_as_root(&env, &[&arguments[..], &as_root].concat()).ok();
    assert_eq!(by_root.id(), built.id());
    let exported = describe(&env, "user.tar");
    assert_eq!(exported, describe(&env, "root.tar"));
    assert!(exported.iter().any(|line| line.starts_with("d/other ") && line.ends_with(" 1000/1000")), "{exported:?}");

    // And nothing stays that the user could not remove.
    env.run(&["prune", "--all"]).ok();
    let mut remove = env.user.as_ref().unwrap().command("rm");
    remove.arg("-r").arg(env.at("store"));
    assert!(remove.status().unwrap().success());
}

#[test]
fn a_store_is_for_those_whose_files_are_in_it() {
    needs_a_user!();
    let mut env = world(Unprivileged::with_ids().unwrap());
    build(&env, &[], r#"(run (shell "touch /x"))"#).ok();
    let refused = run_as_root(&env, &["ls"]).fails_with(3);
    assert!(
        refused.stderr.contains("a user without root's rights made it; run kiln as that user"),
        "{}",
        refused.stderr
    );
    env.user = Some(Unprivileged::with_range(Unprivileged::FIRST + (1 << 16)).unwrap());
    let refused = env.run(&["ls"]).fails_with(3);
    assert!(refused.stderr.contains("give back the ranges in /etc/subuid"), "{}", refused.stderr);
    // Root's own store, should someone have opened its directory.
    let place = env.at("roots");
    let roots = format!("overlayfs:{}", place.display());
    run_as_root(&env, &["ls", "--store", &roots]).ok();
    for path in [&place, &place.join("state")] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let refused = env.run(&["ls", "--store", &roots]).fails_with(3);
    assert!(refused.stderr.contains("root made it; run kiln as root"), "{}", refused.stderr);
}

#[test]
fn without_ids_everything_belongs_to_one_user_and_the_build_says_so() {
    needs_a_user!();
    let env = world(Unprivileged::without_ids().unwrap());
    let steps = r#"(run (shell "touch /x; chown 5:6 /x; stat -c '%u:%g' /x; chmod 4711 /x"))
        (copy (src file) (dst /file)) (run (cache (c (target /c))) (shell "cat /file; stat -c '%u:%g %a' /x /c"))"#;
    let built = build(&env, &[], steps).ok();
    assert!(
        built.stderr.contains("note: all files belong to root, and there are no other users: /etc/subuid"),
        "{}",
        built.stderr
    );
    assert!(
        built.stderr.contains("0:0\n") && built.stderr.contains("from the source\n0:0 4711\n0:0 755\n"),
        "{}",
        built.stderr
    );
    assert_eq!(build(&env, &[], steps).ok().made_and_found(), (0, 4));
    let other = build(&env, &[], r#"(user (uid 1000) (gid 1000)) (run (shell "id"))"#).fails_with(1);
    assert!(other.stderr.contains("a user other than root, and this user has no ids for one"), "{}", other.stderr);
}

#[test]
fn where_user_namespaces_are_forbidden_the_setting_is_named() {
    needs_a_user!();
    let env = world(Unprivileged::with_ids().unwrap());
    // A namespace has limits of its own: the machine's stay as they are.
    let script =
        "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --reuid 1000 --regid 1000 --clear-groups \"$@\"";
    let mut command = env.user.as_ref().unwrap().command_in_a_namespace("sh");
    env.set_up(&mut command);
    command.args(["-ec", script, "sh", env!("CARGO_BIN_EXE_kiln"), "ls"]);
    let refused = env.ran(&mut command).fails_with(3);
    assert!(refused.stderr.contains("`sysctl -w user.max_user_namespaces=65536`"), "{}", refused.stderr);
    // What needs no store needs no namespace.
    env.spec("");
    let mut command = env.user.as_ref().unwrap().command_in_a_namespace("sh");
    env.set_up(&mut command);
    command.args(["-ec", script, "sh", env!("CARGO_BIN_EXE_kiln"), "check", "spec"]);
    env.ran(&mut command).ok();
}
