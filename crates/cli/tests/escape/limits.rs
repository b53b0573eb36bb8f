//! Bombs.

use crate::arena::{Arena, in_each};
use crate::needs_attackers;

#[test]
fn bombs_go_off_inside_and_the_build_says_which() {
    needs_attackers!();
    let mut bystander = Arena::bystander();
    in_each(|arena| {
        // Each fails and is named, other than the same in small, which is well within the limit.
        for (limit, small, bomb, said) in [
            (
                "--pids=64",
                "perl -e 'for (1..4) { defined(fork) or exit 7 }'",
                "perl -e 'while (1) { defined(fork) or exit 7 }'",
                "limit of 64 processes reached",
            ),
            (
                "--memory=64M",
                "perl -e 'my $much = 1; $much = \"x\" x 8000000'",
                "exec perl -e 'my @much; push @much, \"x\" x 1000000 while 1'",
                "memory limit 64 MiB reached",
            ),
            (
                "--memory=64M",
                "perl -e 'for (1..8) { open(my $file, \">\", \"/dev/shm/$_\") or exit 7 }'",
                "exec perl -e 'for (my $i = 0; open(my $file, \">\", \"/dev/shm/$i\"); $i++) {} exit 7'",
                "memory limit 64 MiB reached",
            ),
            ("--log-limit=1M", "head -c 1000 /dev/zero", "cat /dev/zero", "the log reached 1 MiB"),
            ("--timeout=2s", "true", "trap '' TERM; while :; do :; done", "ran longer than 2s"),
        ] {
            if arena.kind.is_rootless() && matches!(limit, "--pids=64" | "--memory=64M") {
                let refused = arena.build(&[limit], "").fails_with(3);
                assert!(
                    refused.stderr.contains("cgroup") || refused.stderr.contains("control group"),
                    "{}",
                    refused.stderr
                );
                continue;
            }
            let step = |command: &str| {
                format!("(env MARKER {}) (run (shell \"{}\"))", arena.env.marker(), command.replace('"', "\\\""))
            };
            let generous = if limit.starts_with("--timeout") { "--timeout=1h" } else { limit };
            arena.build(&[generous], &step(small)).ok();
            let failed = arena.build(&[limit, "-q"], &step(bomb)).fails_with(1);
            assert!(failed.stderr.contains(said), "{limit}: {}", failed.stderr);
            arena.env.assert_clean();
        }
    });
    bystander.is_unharmed();
}

#[test]
fn files_in_memory_have_an_end() {
    needs_attackers!();
    in_each(|arena| {
        arena.refuses(
            "for place in /dev /dev/shm; do
               try \"control a little in $place\" dd if=/dev/zero of=$place/file bs=1M count=8
               try \"more than there is in $place\" dd if=/dev/zero of=$place/file bs=1M count=80
               rm $place/file
             done",
        );
    });
}
