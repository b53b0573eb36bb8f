//! What `copy` takes, and what it makes of it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, UNIX_EPOCH};

use crate::env::TestEnv;
use crate::needs_builds;

/// Lists a tree of the image: mode, owner, kind and name of each entry.
const LIST: &str = r#"find * | sort | while read -r f; do stat -c '%a %u:%g %F %N' "$f"; done"#;

#[test]
fn files_go_where_dst_says() {
    needs_builds!();
    let env = TestEnv::new();
    for file in ["a", "b", "d/x", "d/deep/y"] {
        env.write(&format!("src/{file}"), file);
    }
    let log = env.log(&format!(
        r#"(workdir /w) (user (uid 5) (gid 6))
           (copy (src a) (dst renamed))
           (copy (src a b) (dst into/new/))
           (copy (src d) (dst into/))
           (copy (src d) (dst tree))
           (copy (src d/deep) (dst /w/deepest))
           (copy (src a) (dst .))
           (copy (src a) (dst into/./))
           (copy (src b) (dst into/.))
           (run (shell "{}; cat deepest/y"))"#,
        LIST.replace('"', "\\\"")
    ));
    insta::assert_snapshot!(log, @"
    644 5:6 regular file a
    755 5:6 directory deepest
    644 5:6 regular file deepest/y
    755 5:6 directory into
    644 5:6 regular file into/a
    644 5:6 regular file into/b
    755 5:6 directory into/d
    755 5:6 directory into/d/deep
    644 5:6 regular file into/d/deep/y
    644 5:6 regular file into/d/x
    755 5:6 directory into/new
    644 5:6 regular file into/new/a
    644 5:6 regular file into/new/b
    644 5:6 regular file renamed
    755 5:6 directory tree
    755 5:6 directory tree/deep
    644 5:6 regular file tree/deep/y
    644 5:6 regular file tree/x
    d/deep/y
    ");
}

#[test]
fn a_whole_source_goes_without_what_is_excluded() {
    needs_builds!();
    let env = TestEnv::new();
    for file in ["keep", ".git/config", "sub/.git/config", "sub/keep", "sub/node_modules/x", "sub/sub/drop"] {
        env.write(&format!("src/{file}"), file);
    }
    let spec = r#"(copy (src .) (dst /w) (exclude .git node_modules drop)) (run (shell "cd /w; find | sort"))"#;
    assert_eq!(env.log(spec), ".\n./keep\n./sub\n./sub/keep\n./sub/sub\n");
    // An item named in src is not at some depth: it was asked for.
    let named = r#"(copy (src sub/sub/drop) (dst /w/) (exclude drop)) (run (shell "ls /w"))"#;
    assert_eq!(env.log(named), "drop\n");
}

#[test]
fn modes_owners_and_times_are_as_promised() {
    needs_builds!();
    let env = TestEnv::new();
    for (name, mode) in [("plain", 0o600), ("group", 0o4610), ("program", 0o777)] {
        let path = env.write(&format!("src/d/{name}"), "x");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(86_400)).unwrap();
    }
    symlink("../nowhere", env.at("src/d/link")).unwrap();
    let day = rustix::fs::Timespec { tv_sec: 86_400, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: day, last_modification: day };
    let link = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, env.at("src/d/link"), &times, link).unwrap();
    fs::set_permissions(env.at("src/d"), fs::Permissions::from_mode(0o2700)).unwrap();
    fs::File::open(env.at("src/d")).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(7)).unwrap();
    std::os::unix::fs::chown(env.at("src/d/plain"), Some(77), Some(78)).unwrap();
    let log = env.log(
        r#"(user (name builder)) (copy (src d) (dst /new/parent/d)) (copy (src d/link) (dst /link))
           (run (shell "stat -c '%a %u:%g %Y %N' /new/parent/d /new/parent/d/*; stat -c '%a %u:%g' /new /new/parent; readlink /link"))"#,
    );
    insta::assert_snapshot!(log, @"
    755 1000:1000 7 /new/parent/d
    755 1000:1000 86400 /new/parent/d/group
    777 1000:1000 86400 '/new/parent/d/link' -> '../nowhere'
    644 1000:1000 86400 /new/parent/d/plain
    755 1000:1000 86400 /new/parent/d/program
    755 1000:1000
    755 1000:1000
    ../nowhere
    ");
}

#[test]
fn directories_that_are_there_stay_as_they_are_and_links_are_replaced() {
    needs_builds!();
    let env = TestEnv::new();
    for file in ["d/file", "d/sub/file", "file"] {
        env.write(&format!("src/{file}"), "new");
    }
    let log = env.log(
        r#"(run (shell "mkdir -p /d/sub /real; chmod 700 /d /d/sub; chown 9:9 /d; echo old > /victim; ln -s /victim /d/file; ln -s real /linked; ln /victim /hard"))
           (copy (src d) (dst /d))
           (copy (src file) (dst /linked/in/))
           (copy (src file) (dst /hard))
           (run (shell "stat -c '%a %u:%g %F %n' /d /d/sub /d/file /d/sub/file /linked /real/in; cat /victim /d/file /real/in/file /hard"))"#,
    );
    insta::assert_snapshot!(log, @"
    700 9:9 directory /d
    700 0:0 directory /d/sub
    644 0:0 regular file /d/file
    644 0:0 regular file /d/sub/file
    777 0:0 symbolic link /linked
    755 0:0 directory /real/in
    old
    newnewnew
    ");
}

#[test]
fn a_build_stage_is_a_source_like_another() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/out", "of the source");
    let log = env.log(
        r#"((build tools ((from rootfs:base.tar)
              (run (shell "mkdir -p /out/sub; echo made > /out/sub/file; chmod 700 /out/sub/file; chown 5:5 /out/sub/file; ln -s sub /out/link; mkfifo /out/pipe"))))
            (from rootfs:base.tar)
            (user (uid 1000) (gid 1000))
            (copy (from (build tools)) (src /out) (dst /from) (exclude pipe))
            (copy (from (build tools)) (src out/sub/file) (dst /one/))
            (copy (from (build tools)) (src out/sub/file) (dst .))
            (copy (from (build tools)) (src out/sub/file) (dst renamed))
            (run (shell "cat /from/link/file /file /renamed; stat -c '%a %u:%g' /from/sub/file /one/file; readlink /from/link")))"#,
    );
    assert_eq!(log, "made\nmade\nmade\n755 1000:1000\n755 1000:1000\nsub\n");
    let failed = env.build(
        r#"((build tools ((from rootfs:base.tar))) (from rootfs:base.tar) (copy (from (build tools)) (src none) (dst /x)))"#,
    );
    assert!(failed.fails_with(1).stderr.contains("there is no `none` in the build `tools`"));
}

#[test]
fn odd_names_are_copied_as_they_are() {
    needs_builds!();
    let env = TestEnv::new();
    let long = "l".repeat(255);
    for name in [&b"-rf"[..], b"new\nline", b"\xff\xfe", b" ", b"*", long.as_bytes()] {
        fs::write(env.at("src").join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let spec = r#"(copy (src .) (dst /w/)) (run (shell "cd /w; find . -type f | od -An -c | tr -d ' \n'; find . -type f | wc -c"))"#;
    let log = env.log(spec);
    // Six names, each with `./` before and a newline after.
    assert!(log.ends_with(&format!("{}\n", 3 + 8 + 2 + 1 + 1 + 255 + 6 * 3)), "{log}");
    assert!(log.contains("./-rf") && log.contains("377376") && log.contains("new\\nline"), "{log}");
    let one = r#"(copy (src "-rf" "\xff\xfe" "new\nline") (dst "/odd\n\xff/")) (run (shell "ls -A /odd* | wc -l"))"#;
    // busybox writes a `?` for the newline.
    assert_eq!(env.log(one), "3\n");
}

#[test]
fn twenty_thousand_files_are_copied_and_seen_again() {
    needs_builds!();
    let env = TestEnv::new();
    for dir in 0..100 {
        fs::create_dir(env.at(&format!("src/{dir}"))).unwrap();
        for file in 0..200 {
            fs::write(env.at(&format!("src/{dir}/{file}")), format!("{dir} {file}")).unwrap();
        }
    }
    let spec = r#"(copy (src .) (dst /w)) (run (shell "find /w -type f | wc -l; cat /w/99/199"))"#;
    assert_eq!(env.log(spec), "20000\n99 199");
    assert_eq!(env.build(spec).ok().made_and_found(), (0, 3));
    fs::write(env.at("src/50/100"), "changed").unwrap();
    assert_eq!(env.build(spec).ok().made_and_found(), (2, 1));
}

#[test]
fn what_cannot_be_copied_is_named() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/d/file", "x");
    env.write("outside", "x");
    symlink("d", env.at("src/link")).unwrap();
    symlink("../outside", env.at("src/out")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, env.at("src/d/pipe"), rustix::fs::Mode::RWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(env.at("src/socket")).unwrap();
    let mut errors = String::new();
    for copy in [
        "(src none) (dst /x)",
        "(src d/none/deeper) (dst /x)",
        "(src d/file/deeper) (dst /x)",
        "(src ../outside) (dst /x)",
        "(src d/../../outside) (dst /x)",
        "(src link/file) (dst /x)",
        "(src d) (dst /x)",
        "(src d/pipe) (dst /x)",
        "(src socket) (dst /x/)",
        "(src d/file out) (dst /x)",
        "(src d/file) (dst /etc)",
        "(src d) (dst /etc/passwd) (exclude pipe)",
        "(src d/file) (dst /etc/passwd/x)",
    ] {
        let failed = env.build(&format!("(copy {copy})")).fails_with(1);
        let causes = failed.stderr.lines().filter(|line| line.contains("caused by:"));
        errors.extend(causes.map(|line| format!("{copy}:{}\n", line.trim_start().trim_start_matches("caused by:"))));
    }
    insta::assert_snapshot!(errors, @"
    (src none) (dst /x): there is no `none` in the source directory
    (src d/none/deeper) (dst /x): there is no `d/none/deeper` in the source directory
    (src d/file/deeper) (dst /x): there is no `d/file/deeper` in the source directory
    (src ../outside) (dst /x): `../outside` leads out of the source; name what is inside, without `..`
    (src d/../../outside) (dst /x): `d/../../outside` leads out of the source; name what is inside, without `..`
    (src link/file) (dst /x): `link/file` goes through a symbolic link; name the directory that the link points to
    (src d) (dst /x): `d/pipe` is a named pipe; only files, directories and symbolic links can be copied; exclude it
    (src d/pipe) (dst /x): `d/pipe` is a named pipe; only files, directories and symbolic links can be copied; exclude it
    (src socket) (dst /x/): `socket` is a socket; only files, directories and symbolic links can be copied; exclude it
    (src d/file out) (dst /x): `/x` is to become 2 files; end it in `/` to make it a directory
    (src d/file) (dst /etc): `/etc` in the image is a directory, and the copy would need a file there
    (src d) (dst /etc/passwd) (exclude pipe): `/etc/passwd` in the image is no directory, and the copy would need a directory there
    (src d/file) (dst /etc/passwd/x): `/etc/passwd` in the image is no directory, and the copy would need a directory there
    ");
    env.assert_clean();
    // What links point to is never read.
    assert_eq!(env.log(r#"(copy (src out) (dst /x)) (run (shell "readlink /x"))"#), "../outside\n");
}
