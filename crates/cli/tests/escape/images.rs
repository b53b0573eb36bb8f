//! What kiln itself does in trees that a step or a stranger has made, outside of any sandbox.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::arena::in_each;
use crate::env::TestEnv;
use crate::{needs_attackers, needs_builds};

#[test]
fn links_in_an_image_lead_kiln_nowhere() {
    needs_attackers!();
    in_each(|arena| {
        let host = arena.host().display().to_string();
        for (name, target) in [("etc/hosts", "canary"), ("etc/resolv.conf", "new")] {
            fs::create_dir_all(arena.env.at("image/etc")).unwrap();
            symlink(arena.host().join(target), arena.env.at("image").join(name)).unwrap();
        }
        let mut tar = Command::new("tar");
        tar.current_dir(arena.env.path()).args(["-rf", "base.tar", "-C", "image", "etc/hosts", "etc/resolv.conf"]);
        assert!(tar.status().unwrap().success());
        let traps = format!(
            r#"(run (shell "mkdir -p {host}; ln -s {host} /w; ln -s ../../../../../.. /up; ln -s /proc/1/root{host} /init"))"#
        );
        // Each place is made, and lies in the image.
        let spec = format!(
            r#"{traps} (copy (src call) (dst /w/)) (copy (src call) (dst /up{host}/copied))
               (workdir /w/made) (run (network host) (shell "echo x > ../canary; echo x > file; cat /etc/hosts /etc/resolv.conf > /dev/null"))
               (workdir /up{host}/again) (run (shell "cat {host}/call {host}/copied {host}/made/file > /dev/null; ls -d {host}/again"))"#
        );
        let built = arena.build(&[], &spec).ok();
        assert!(built.stderr.contains(&format!("{host}/again\n")), "{}", built.stderr);
        let spec = format!("{traps} (workdir /init/made) (run (shell true)) (copy (src call) (dst /init/))");
        let built = arena.build(&[], &spec);
        assert!(matches!(built.code, 0 | 1 | 3), "{}", built.stderr);
    });
}

#[test]
fn links_in_a_cache_lead_kiln_nowhere() {
    needs_attackers!();
    in_each(|arena| {
        let host = arena.host().display().to_string();
        let step = |caches: &str, command: &str| format!("(run (cache {caches}) (shell \"{command}\"))");
        let trap = format!(
            "ln -s {host} /c/link; ln -s {host}/canary /c/file; ln -s / /c/root; mkdir /c/sub; ln -s ../../../../../../.. /c/sub/up"
        );
        arena.build(&[], &step("(c (target /c))", &trap)).ok();
        // A cache whose root is no directory any more, nor something else by its name.
        let swap = "rmdir /c; mv /c /d; ln -s / /c; rm -rf /c; true";
        arena.build(&[], &step("(c (target /c))", swap)).ok();
        arena.build(&[], &step("(c (target /c))", &trap)).ok();
        for place in ["/c/link/deeper", "/c/root/deeper", "/c/sub/up/deeper", "/c/file"] {
            let spec = step(&format!("(c (target /c)) (d (target {place}))"), &format!("echo x > {place}/x; true"));
            let built = arena.build(&[], &spec);
            assert!(matches!(built.code, 0 | 1 | 3), "{place}: {}", built.stderr);
        }
        // Copying between stores and deleting meet the links too.
        let other = format!("copy:{}", arena.env.at("other").display());
        let copied =
            arena.env.run(&["store", "copy", &format!("overlayfs:{}", arena.env.at("store").display()), &other]);
        assert_eq!(copied.code, 0, "{}", copied.stderr);
        arena.env.run(&["prune", "--all"]).ok();
        arena.env.run(&["prune", "--all", "--store", &other]).ok();
    });
}

#[test]
fn a_source_that_swaps_directories_for_links_gives_nothing_of_the_host() {
    needs_builds!();
    let env = TestEnv::new();
    env.write("host/canary", "untouched");
    env.write("src/race/dir/canary", "the source's");
    symlink(env.at("host"), env.at("src/race/link")).unwrap();
    let (dir, link, done) = (env.at("src/race/dir"), env.at("src/race/link"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0;
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, &dir, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        });
        let mut read = 0;
        for _ in 0..20 {
            let spec = r#"(copy (src race/dir) (dst /w/)) (run (shell "cat /w/canary /w/dir/canary; true"))"#;
            let built = env.build_with(&["--no-cache"], spec);
            assert!(matches!(built.code, 0 | 1), "{}", built.stderr);
            assert!(!built.stderr.contains("untouched"), "{}", built.stderr);
            read += usize::from(built.stderr.contains("the source's"));
        }
        done.store(true, Ordering::Relaxed);
        assert!(swapper.join().unwrap() > 20);
        println!("{read} of 20 found the directory");
    });
    fs::remove_file(if link.is_symlink() { &link } else { &dir }).unwrap();
    assert_eq!(fs::read_to_string(env.at("host/canary")).unwrap(), "untouched");
}
