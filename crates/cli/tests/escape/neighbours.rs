//! Other steps that run at the same time.

use crate::arena::in_each;
use crate::env::Gate;
use crate::needs_attackers;

#[test]
fn steps_at_the_same_time_do_not_see_each_other() {
    needs_attackers!();
    in_each(|arena| {
        let gate = Gate::new();
        // What a step leaves for others to find, seen by itself and by another.
        let looks = |who: &str| {
            format!(
                "try '{who} shared memory' cat /dev/shm/theirs
                 try '{who} queue' cat /dev/mqueue/theirs
                 try '{who} System V memory' perl -e 'exit(defined shmget(4242, 0, 0) ? 0 : 1)'
                 try '{who} System V semaphores' perl -e 'exit(defined semget(4242, 0, 0) ? 0 : 1)'
                 try '{who} System V messages' perl -e 'exit(defined msgget(4242, 0) ? 0 : 1)'
                 try '{who} process' sh -c 'cat /proc/[0-9]*/cmdline | grep \"[t]heirs-1000\"'
                 try '{who} file' cat /theirs
                 try '{who} cache' cat /cache/theirs
                 try '{who} secret' cat /secret\n"
            )
        };
        arena.env.write("secret", "hidden");
        let leaves = format!(
            ": > /dev/mqueue/theirs; for place in /dev/shm '' /cache; do echo mine > $place/theirs; done
             perl -e 'defined shmget(4242, 4096, 0666 | 512) and defined semget(4242, 1, 0666 | 512) and defined msgget(4242, 0666 | 512) or die'
             # It has its name by the time that it opens the pipe.
             mkfifo /up; sh -c ': > /up; sleep 1000; : theirs-1000' & : < /up
             {}{}",
            looks("control own"),
            gate.wait()
        );
        let cache = "(cache (shared (target /cache)))";
        let first = arena.start_with(
            &["--secret", "token:secret"],
            &format!("{cache} (secrets (token (target /secret))) (network host)"),
            &leaves,
        );
        let step = gate.arrival();
        let attack =
            format!("mkdir -p /own; echo mine > /own/file; try 'control a file' cat /own/file\n{}", looks("their"));
        let said = arena.said(&["--jobs=2"], "", cache, &attack);
        step.pass("");
        let first = first.end().ok();
        let seen = arena.env.run(&["log", first.id()]).ok().stdout;
        assert_eq!(seen.matches(": worked\n").count(), 9, "{seen}");
        assert_eq!(said.matches(": refused\n").count(), 9, "{said}");
        assert_eq!(said.matches(": worked\n").count(), 1, "{said}");
    });
}
