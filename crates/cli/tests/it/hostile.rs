//! Images and sources made to do harm.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::env::TestEnv;
use crate::needs_builds;

#[test]
fn a_copy_never_leaves_the_image() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/file", "copied");
    let host = env.write("host/file", "untouched");
    let host_dir = host.parent().unwrap().display().to_string();
    for target in ["/", "../../../../../../..", "/proc/self/root", "/proc/1/root", "/proc/self/cwd", &host_dir] {
        let up = if target.contains("..") || target == "/" || target.contains("proc") { host_dir.as_str() } else { "" };
        for link in [format!("ln -s {target} /trap"), format!("rm -rf /mnt; ln -s {target} /mnt; ln -s mnt /trap")] {
            let spec = format!(
                r#"(run (shell "{link}")) (copy (src file) (dst /trap{up}/)) (copy (src file) (dst /trap{up}/sub/file))"#
            );
            let built = env.build(&spec);
            assert!(matches!(built.code, 0 | 1), "{}", built.stderr);
            assert_eq!(fs::read_to_string(&host).unwrap(), "untouched", "{spec}");
            assert_eq!(fs::read_dir(env.at("host")).unwrap().count(), 1, "{spec}");
            assert!(!std::path::Path::new("/sub/file").exists() && !std::path::Path::new("/file").exists());
        }
    }
    env.assert_clean();
}

#[test]
fn links_inside_the_image_that_lead_up_stay_inside() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/file", "copied\n");
    let log = env.log(
        r#"(run (shell "mkdir /real /a; ln -s ../../../../real /a/up; ln -s / /a/root"))
           (copy (src file) (dst /a/up/)) (copy (src file) (dst /a/root/top))
           (run (shell "cat /real/file /top"))"#,
    );
    assert_eq!(log, "copied\ncopied\n");
}

#[test]
fn loops_and_dangling_links_are_errors_that_name_them() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/file", "x");
    let mut errors = String::new();
    for (link, dst) in
        [("ln -s loop /loop", "/loop/x"), ("ln -s /none /dangling", "/dangling/x"), ("true", "/bin/sh/x")]
    {
        let failed = env.build(&format!(r#"(run (shell "{link}")) (copy (src file) (dst {dst}))"#)).fails_with(1);
        errors.push_str(failed.told().lines().find(|line| line.contains("caused by")).unwrap());
        errors.push('\n');
    }
    insta::assert_snapshot!(errors, @"
    caused by: `/loop` in the image is a loop of symbolic links, and the copy would need a directory there
    caused by: `/dangling` in the image is a symbolic link to nowhere, and the copy would need a directory there
    caused by: `/bin/sh` in the image is no directory, and the copy would need a directory there
    ");
}

#[test]
fn commands_cannot_redirect_what_is_mounted_for_them() {
    needs_builds!();
    let env = TestEnv::new();
    let host = env.write("host/file", "untouched");
    env.write("token", "value");
    let spec = format!(
        r#"(run (shell "ln -s {} /trap"))
           (run (cache (c (target /trap/cache))) (secrets (token (target /trap/file))) (shell "echo x > /trap/cache/x; cat /trap/file"))"#,
        host.parent().unwrap().display()
    );
    let built = env.build_with(&["--secret", "token:token"], &spec);
    assert!(matches!(built.code, 0 | 1), "{}", built.stderr);
    assert_eq!(fs::read_to_string(&host).unwrap(), "untouched");
    assert_eq!(fs::read_dir(env.at("host")).unwrap().count(), 1);
}

#[test]
fn an_image_with_odd_users_is_read_with_care() {
    needs_builds!();
    let env = TestEnv::new();
    for passwd in [
        "rm /etc/passwd",
        "rm /etc/passwd; mkfifo /etc/passwd",
        "ln -sf /dev/zero /etc/passwd",
        "ln -sf passwd /etc/passwd",
    ] {
        let log = env.log(&format!(r#"(run (shell "{passwd}")) (run (shell "echo $HOME"))"#));
        assert_eq!(log, "/\n", "{passwd}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_copied_is_noticed() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("src/other", vec![7; 32 << 20]);
    let path = env.write("src/growing", "x");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::options().append(true).open(&path).unwrap();
            while !done.load(Ordering::Relaxed) {
                file.write_all(b"more").unwrap();
            }
        });
        let built = env.build(r#"(copy (src .) (dst /w))"#);
        done.store(true, Ordering::Relaxed);
        let failed = built.fails_with(1);
        assert!(failed.stderr.contains("changed while it was read; build again"), "{}", failed.stderr);
    });
    env.build(r#"(copy (src .) (dst /w)) (run (shell "ls -l /w"))"#).ok();
    env.assert_clean();
}

#[test]
fn a_change_is_noticed_even_if_the_old_time_is_set_again() {
    needs_builds!();
    let env = TestEnv::new();
    let path = env.write("src/file", "before");
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    let spec = r#"(copy (src file) (dst /f)) (run (shell "cat /f"))"#;
    assert_eq!(env.log(spec), "before");
    fs::write(&path, "after!").unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
    assert_eq!(env.log(spec), "after!");
}

#[test]
fn output_of_any_kind_is_only_output() {
    needs_builds!();
    let env = TestEnv::new();
    // A line without an end, longer than any buffer; with several stages it is cut into lines.
    let spec = r#"((build a ((from rootfs:base.tar) (run (shell "head -c 3000000 /dev/zero; printf '\\xff\\033[2J'"))))
                   (from rootfs:base.tar))"#;
    for progress in ["plain", "json", "tty"] {
        env.build_with(&["--progress", progress, "--no-cache"], spec).ok();
    }
}
