//! Who root inside is outside.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use kiln_testkit::Unprivileged;

use crate::arena::in_each;
use crate::env::Gate;
use crate::needs_attackers;

#[test]
fn root_in_a_step_is_nobody_to_the_host() {
    needs_attackers!();
    in_each(|arena| {
        let gate = Gate::new();
        let building = arena.start("(network host)", &format!("sleep 1000 & {}", gate.wait()));
        let step = gate.arrival();
        let mut seen = Vec::new();
        for process in arena.env.processes() {
            let status = fs::read_to_string(format!("{process}/status")).unwrap();
            let ids = status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"));
            seen.extend(ids.flat_map(|line| line.split_whitespace().skip(1)).map(|id| id.parse::<u32>().unwrap()));
        }
        step.pass("");
        building.end().ok();
        // The shell, `sleep` and `nc`, each with four of both.
        assert!(seen.len() >= 24, "{seen:?}");
        for id in seen {
            assert!(arena.kind.root_outside.contains(&id), "{id}");
        }
    });
}

#[test]
fn a_set_user_id_file_of_a_step_is_out_of_everybodys_reach() {
    needs_attackers!();
    in_each(|arena| {
        let file = arena.env.marker();
        let make = format!(
            r#"(run (cache (c (target /c))) (shell "for d in /{file} /c/{file}; do mkdir $d; cp /bin/busybox $d/true; chmod 4755 $d/true; done"))"#
        );
        arena.build(&[], &make).ok();
        let found = Command::new("find")
            .arg(arena.env.at("store"))
            .args(["-path", &format!("*/{file}/true")])
            .output()
            .unwrap()
            .stdout;
        let found = String::from_utf8(found).unwrap();
        assert_eq!(found.lines().count(), 2, "{found}");
        for path in found.lines() {
            let meta = fs::metadata(path).unwrap();
            // On the disk, root's files are root's, or the user's.
            let root = if arena.kind.is_rootless() { Unprivileged::ID } else { 0 };
            assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o4755, root), "{path}");
            let can = |user: &str| {
                let mut shell = Command::new("setpriv");
                // `setpriv` itself still has capabilities when it executes a program.
                shell.args(["--reuid", user, "--regid", user, "--clear-groups", "sh", "-c", "exec \"$0\"", path]);
                shell.output().unwrap().status.success()
            };
            assert!(can("0") && !can("65534") && !can("1000"), "{path}");
        }
    });
}
