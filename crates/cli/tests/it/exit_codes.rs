//! How kiln fails: the exit code and one line that says what, where, and what to do.

use kiln_testkit::{LoopFs, Need, need};

use crate::env::TestEnv;
use crate::needs_builds;

#[test]
fn mistakes_of_the_caller_are_2() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("bad", "((from rootfs:base.tar)\n (rnu (shell x)))\n");
    env.write("good", "((from rootfs:base.tar))");
    env.write("typo", "((from rotfs:base.tar))");
    env.write("none", "((from rootfs:none.tar))");
    env.write("text", "not an image");
    env.write("no-image", "((from rootfs:text))");
    let mut told = String::new();
    for arguments in [
        &["build", "-f", "bad", "src"][..],
        &["build", "-f", "typo", "src"],
        &["build", "-f", "none", "src"],
        &["build", "-f", "no-image", "src"],
        &["build", "-f", "missing", "src"],
        &["build", "src"],
        &["build", "-f", "good", "nowhere"],
        &["build", "-f", "good", "base.tar"],
        &["build", "-f", "good", "--store", "docker:/x", "src"],
        &["build", "-f", "good", "--store", "nonsense", "src"],
        &["build", "-f", "good", "--store", "overlayfs:", "src"],
        &["log", "abc"],
        &["rm", "abc"],
    ] {
        told.push_str(&format!("$ kiln {}\n{}", arguments.join(" "), env.run(arguments).fails_with(2).told()));
    }
    insta::assert_snapshot!(told, @"
    $ kiln build -f bad src
    error: bad:2:3: unknown operation `rnu`
      |
    2 |  (rnu (shell x)))
      |   ^^^ expected `build`, `from`, `comment`, `workdir`, `shell`, `env`, `user`, `run` or `copy`
    hint: did you mean `run`?

    $ kiln build -f typo src
    (from rotfs:base.tar)
    error: `rotfs:base.tar`: there is no transport `rotfs`; did you mean `rootfs`, as in `rootfs:base.tar.gz`?
    $ kiln build -f none src
    (from rootfs:none.tar)
    error: cannot import the base image `rootfs:none.tar`
      caused by: cannot open none.tar
      caused by: No such file or directory (os error 2)
    $ kiln build -f no-image src
    (from rootfs:text)
    error: cannot import the base image `rootfs:text`
      caused by: cannot unpack text
      caused by: it is not a tar archive
    $ kiln build -f missing src
    error: cannot read missing
      caused by: No such file or directory (os error 2)
    $ kiln build src
    error: cannot read src/kiln.spec
      caused by: No such file or directory (os error 2)

    hint: the spec is looked for there unless `--file` names another
    $ kiln build -f good nowhere
    error: cannot open the source directory nowhere
      caused by: No such file or directory (os error 2)
    $ kiln build -f good base.tar
    error: cannot open the source directory base.tar
      caused by: Not a directory (os error 20)
    $ kiln build -f good --store docker:/x src
    error: `docker:/x` is not a store: docker stores are not supported yet; expected `auto`, `overlayfs:/path`, `btrfs:/path`, `zfs:pool/dataset`, `xfs:/path` or `copy:/path`
    $ kiln build -f good --store nonsense src
    error: `nonsense` is not a store: expected `auto`, `overlayfs:/path`, `btrfs:/path`, `zfs:pool/dataset`, `xfs:/path` or `copy:/path`
    $ kiln build -f good --store overlayfs: src
    error: `overlayfs:` is not a store: the path is empty
    $ kiln log abc
    error: no result abc

    hint: see what there is with `kiln ls`
    $ kiln rm abc
    error: no result abc

    hint: see what there is with `kiln ls`
    ");
    for arguments in [
        &["build", "--jobs", "0"][..],
        &["build", "--no-such-flag"],
        &["prune"],
        &["prune", "--max-size", "lots"],
        &["prune", "--keep-free", "101%"],
        &["prune", "--max-age", "soon"],
        &["rm", ""],
        &["log", ""],
        &["nonsense"],
        &["build", "--progress", "loud"],
    ] {
        env.run(arguments).fails_with(2);
    }
    env.assert_clean();
}

#[test]
fn a_directory_that_is_no_store_is_left_alone() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("full/of/files", "x");
    env.write("good", "((from rootfs:base.tar))");
    let failed = env.run(&["build", "-f", "good", "--store", "overlayfs:full", "src"]).fails_with(3);
    assert!(failed.stderr.contains("the directory is not empty, and no store"), "{}", failed.stderr);
    assert_eq!(kiln_testkit::listing(&env.at("full")).unwrap().len(), 2);
    let file = env.run(&["ls", "--store", "overlayfs:good"]).fails_with(3);
    assert!(file.stderr.contains("it is not a directory"), "{}", file.stderr);
}

#[test]
fn a_full_disk_says_so_and_harms_nothing() {
    needs_builds!();
    need!(Need::Tool("mkfs.ext4", "e2fsprogs"));
    let env = TestEnv::new();
    let disk = LoopFs::new("ext4", 24).unwrap();
    let store = format!("overlayfs:{}", disk.path().join("store").display());
    let build = |spec: &str| env.build_with(&["--store", &store], spec);
    build(r#"(run (shell "echo small > /small"))"#).ok();
    env.write("src/large", vec![1; 40 << 20]);
    for spec in [r#"(copy (src large) (dst /large))"#, r#"(run (shell "yes"))"#] {
        let failed = build(spec).fails_with(3);
        let error = &failed.stderr[failed.stderr.rfind("error:").unwrap()..];
        assert!(error.contains("disk full"), "{error}");
    }
    // A command that fills the disk fails by itself.
    build(r#"(run (shell "dd if=/dev/zero of=/large bs=1M count=40"))"#).fails_with(1);
    let again = build(r#"(run (shell "echo small > /small"))"#).ok();
    assert_eq!(again.made_and_found(), (0, 2));
    build(r#"(run (shell "echo other > /small"))"#).ok();
    for place in ["draft", "trash", "state/leases"] {
        assert_eq!(kiln_testkit::listing(&disk.path().join("store").join(place)).unwrap(), [""; 0], "{place}");
    }
}

#[test]
fn a_read_only_store_says_so() {
    needs_builds!();
    need!(Need::Tool("mkfs.ext4", "e2fsprogs"));
    let env = TestEnv::new();
    let disk = LoopFs::new("ext4", 24).unwrap();
    std::process::Command::new("mount").args(["-o", "bind"]).arg(disk.path()).arg(disk.path()).status().unwrap();
    let _bind = Unmount(disk.path());
    std::process::Command::new("mount").args(["-o", "remount,bind,ro"]).arg(disk.path()).status().unwrap();
    let store = format!("overlayfs:{}", disk.path().join("store").display());
    let failed = env.build_with(&["--store", &store], "(comment x)").fails_with(3);
    assert!(failed.stderr.contains("Read-only file system"), "{}", failed.stderr);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let env = TestEnv::new();
    for command in ["build", "log", "ls", "rm", "prune", "fmt", "check", "dockerfile"] {
        assert!(env.run(&[command, "--help"]).ok().stdout.contains("Usage: kiln"));
    }
    assert!(env.run(&["--help"]).ok().stdout.contains("Exit codes: 0 done; 1"));
    assert!(env.run(&["--version"]).ok().stdout.starts_with("kiln "));
}

#[test]
fn addresses_are_allowed_in_private_networks_only() {
    needs_builds!();
    let env = TestEnv::new();
    let allow = ["--network-allow", "10.0.0.0/8"];
    let refused = env.build_with(&allow, "").fails_with(2);
    assert!(refused.stderr.contains("is for a private network; add `--network-host private`"), "{}", refused.stderr);
    env.build_with(&[&allow[..], &["--network-host", "none"]].concat(), "").fails_with(2);
    env.build_with(&[&allow[..], &["--network-host", "private"]].concat(), "").ok();
    let config = env.write("config.toml", "[sandbox]\nnetwork_host = \"private\"\nnetwork_allow = [\"10.0.0.0/8\"]\n");
    for host in [&[][..], &["--network-host", "host"]] {
        env.build_with(&[&["--config", config.to_str().unwrap()], host].concat(), "").ok();
    }
}
