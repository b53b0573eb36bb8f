//! Steps with users of their own, and with the host's.

use std::fs;

use kiln_testkit::{LoopFs, Need, need};

use crate::env::TestEnv;
use crate::needs_builds;

const MAP: &str = r#"(run (shell "tr -s ' ' < /proc/self/uid_map; mkdir /d; touch /d/f; chown 12:34 /d; chmod 4755 /d/f"))
 (user (uid 1000) (gid 100)) (run (cache (c (target /c))) (shell "id -u; id -g; touch /c/x; stat -c '%u %g' /c /c/x; tr -s ' ' < /proc/self/gid_map"))"#;
const HOSTS: &str = " 0 0 4294967295\n";

/// Returns what the maps of both steps are, with the first id left out.
fn maps(stderr: &str) -> Vec<String> {
    let lines = stderr.lines().filter_map(|line| line.strip_prefix(" 0 "));
    lines
        .map(|line| {
            if line.starts_with("18") || line.starts_with("19") || line.starts_with("2") { "own" } else { "host" }
                .to_owned()
        })
        .collect()
}

#[test]
fn steps_have_users_of_their_own_on_every_kind_of_store_and_files_are_the_same() {
    needs_builds!();
    need!(
        Need::Tool("mkfs.xfs", "xfsprogs"),
        Need::Tool("mkfs.btrfs", "btrfs-progs"),
        Need::Tool("mkfs.ext4", "e2fsprogs")
    );
    let env = TestEnv::new();
    let [xfs, btrfs, ext4] =
        [("xfs", 400), ("btrfs", 400), ("ext4", 64)].map(|(kind, mib)| LoopFs::new(kind, mib).unwrap());
    let kinds: [(&str, std::path::PathBuf, &[&str]); 8] = [
        ("overlayfs", env.at("overlayfs"), &[]),
        ("overlayfs", ext4.path().join("overlayfs"), &[]),
        ("overlayfs", xfs.path().join("overlayfs"), &[]),
        ("overlayfs", btrfs.path().join("overlayfs"), &[]),
        ("btrfs", btrfs.path().join("btrfs"), &[]),
        ("xfs", xfs.path().join("xfs"), &[]),
        ("copy", env.at("copy"), &[]),
        ("rsync", env.at("rsync"), &["--rsync-mode", "hardlink"]),
    ];
    for (kind, place, options) in kinds {
        let mut exported = Vec::new();
        for (userns, whose) in [("auto", "own"), ("host", "host")] {
            let store = format!("{kind}:{}-{userns}", place.display());
            let arguments =
                [&["--store", &store, "--userns", userns, "-o", "type=tar,dest=image.tar"], options].concat();
            let built = env.build_with(&arguments, MAP).ok();
            assert_eq!(maps(&built.stderr), [whose, whose], "{store}: {}", built.stderr);
            assert!(built.stderr.contains("1000\n100\n1000 100\n1000 100\n"), "{store}: {}", built.stderr);
            assert!(!built.stderr.contains("note:"), "{store}: {}", built.stderr);
            exported.push(describe(&env));
        }
        assert_eq!(exported[0], exported[1], "{kind}");
        assert!(exported[0].contains(&"d/f -rwsr-xr-x 0/0".to_owned()), "{:?}", exported[0]);
    }
}

/// As package managers and their scripts do; prints who it was.
const LIFE: &str = r#"(run (shell "echo service:x:101:102::/:/bin/sh >> /etc/passwd; echo service:x:102: >> /etc/group"))
 (run (shell "su service -c 'id -u; id -g; touch /tmp/mine'; chown service /home; su service -c 'touch /home/mine /root/mine'; true"))
 (run (shell "mkdir /n; mknod /n/null c 1 3; mknod /n/disk b 7 0; mkfifo /n/pipe; chmod 606 /n/null; chown 101:102 /n/null /n/pipe"))
 (run (shell "mkdir -p /t/a; echo 1 > /t/a/f; chown 101:102 /t/a/f; chmod 6755 /t/a/f; ln /t/a/f /t/a/hard; ln -s f /t/a/soft;
              chown -h 5:6 /t/a/soft; chown 65534:65534 /t/a; chmod 1777 /t/a; tar -cf /t.tar -C /t .; mkdir /u; tar -xpf /t.tar -C /u; cp -a /t /v"))
 (user (uid 101) (gid 102)) (run (shell "id -u; id -g; touch /t/a/g; chmod 600 /t/a/f; rm /u/a/f; ln -s nowhere /tmp/soft; ! chown 5 /t/a/g"))"#;

#[test]
fn what_package_managers_do_makes_the_same_files_with_the_hosts_users() {
    needs_builds!();
    let env = TestEnv::new();
    let exported = ["auto", "host"].map(|userns| {
        let store = format!("overlayfs:{}", env.at(userns).display());
        let built =
            env.build_with(&["--store", &store, "--userns", userns, "-o", "type=tar,dest=image.tar"], LIFE).ok();
        assert!(built.stderr.contains("101\n102\n"), "{}", built.stderr);
        assert!(!built.stderr.contains("note:"), "{}", built.stderr);
        describe(&env)
    });
    assert_eq!(exported[0], exported[1]);
    for entry in [
        "home/mine -rw-r--r-- 101/102",
        "tmp/mine -rw-r--r-- 101/102",
        "n/null crw----rw- 101/102",
        "n/pipe prw-r--r-- 101/102",
        "t/a/ drwxrwxrwt 65534/65534",
        "t/a/soft lrwxrwxrwx 5/6",
        "t/a/g -rw-r--r-- 101/102",
        "v/a/f -rwsr-sr-x 101/102",
    ] {
        assert!(exported[0].iter().any(|found| found.as_str() == entry), "{entry}: {:?}", exported[0]);
    }
    assert!(!exported[0].iter().any(|found| found.starts_with("root/mine")), "{:?}", exported[0]);
}

/// Names, modes and owners in the exported image.
fn describe(env: &TestEnv) -> Vec<String> {
    let listed = std::process::Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(env.at("image.tar")).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {}", words[5], words[0], words[1])
    };
    let mut entries: Vec<String> = listed.lines().map(entry).collect();
    entries.sort();
    entries
}

#[test]
fn a_filesystem_that_cannot_map_ids_has_the_hosts_users_and_the_build_says_so_once() {
    needs_builds!();
    let env = TestEnv::new();
    for dir in ["lower", "upper", "work", "joined"] {
        fs::create_dir(env.at(dir)).unwrap();
    }
    // An overlay is such a filesystem.
    let place = env.at("joined");
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        env.at("lower").display(),
        env.at("upper").display(),
        env.at("work").display()
    );
    let mount = |program: &str, arguments: &[&str]| {
        assert!(std::process::Command::new(program).args(arguments).arg(&place).status().unwrap().success());
    };
    mount("mount", &["-t", "overlay", "overlay", "-o", &options]);
    let store = format!("copy:{}/store", place.display());
    let built = env.build_with(&["--store", &store], MAP);
    let insisted = env.build_with(&["--store", &store, "--userns", "own", "--no-cache"], MAP);
    let by_choice = env.build_with(&["--store", &store, "--userns", "host", "--no-cache"], MAP);
    mount("umount", &["-l"]);
    let built = built.ok();
    assert_eq!(maps(&built.stderr), ["host", "host"], "{}", built.stderr);
    let notes: Vec<&str> = built.stderr.lines().filter(|line| line.starts_with("note: ")).collect();
    assert_eq!(notes.len(), 1, "{}", built.stderr);
    assert!(
        notes[0].contains("root in steps is root of this machine") && notes[0].contains("joined/store"),
        "{notes:?}"
    );
    let insisted = insisted.fails_with(3);
    assert_eq!(maps(&insisted.stderr), [""; 0], "{}", insisted.stderr);
    let error = insisted.stderr.lines().find(|line| line.starts_with("error:")).unwrap();
    assert!(error.contains("a step cannot have users of its own: ") && error.contains("`--userns auto`"), "{error}");
    assert!(!by_choice.ok().stderr.contains("note:"));
}

#[test]
fn a_file_of_settings_chooses_and_the_flag_wins() {
    needs_builds!();
    let env = TestEnv::new();
    let spec = r#"(run (shell "tr -s ' ' < /proc/self/uid_map"))"#;
    env.write("home/.config/kiln/config.toml", "[sandbox]\nuserns = \"host\"\n");
    assert!(env.build(spec).ok().stderr.contains(HOSTS));
    let own = env.build_with(&["--userns", "auto", "--no-cache"], spec).ok();
    assert!(!own.stderr.contains(HOSTS) && own.stderr.contains(" 65536\n"), "{}", own.stderr);
    env.write("home/.config/kiln/config.toml", "[sandbox]\nuserns = \"own\"\n");
    let own = env.build_with(&["--no-cache"], spec).ok();
    assert!(!own.stderr.contains(HOSTS) && own.stderr.contains(" 65536\n"), "{}", own.stderr);
    if kiln_testkit::have(&[Need::Tool("runc", "runc")]) {
        let own = env.build_with(&["--sandbox", "runc", "--no-cache"], spec).ok();
        assert!(!own.stderr.contains(HOSTS) && own.stderr.contains(" 65536\n"), "{}", own.stderr);
    }
    env.write("home/.config/kiln/config.toml", "[sandbox]\nuserns = \"mine\"\n");
    assert!(env.build(spec).fails_with(2).stderr.contains("config.toml:2:"));
}

#[test]
fn a_machine_that_has_run_out_of_something_makes_nobody_its_root() {
    needs_builds!();
    let env = TestEnv::new();
    env.spec(MAP);
    // The place of the locks on ranges of ids cannot be made.
    let script = r#"mount -t tmpfs tmpfs /run; mkdir /run/kiln; touch /run/kiln/ids; exec "$@""#;
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh", env!("CARGO_BIN_EXE_kiln")]);
    env.set_up(unshare.args(["build", "-f", "spec", "src"]));
    let failed = env.ran(&mut unshare).fails_with(3);
    assert!(failed.stderr.contains("cannot give a step users of its own; `--userns host`"), "{}", failed.stderr);
}
