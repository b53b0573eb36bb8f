//! Whatever stays behind when a step ends.

use crate::arena::in_each;
use crate::env::Gate;
use crate::needs_attackers;

#[test]
fn nothing_outlives_its_step_or_writes_into_its_result() {
    needs_attackers!();
    in_each(|arena| {
        let gate = Gate::new();
        let attack = format!(
            r#"cat > /stay <<'END'
$SIG{{$_}} = "IGNORE" for qw(HUP INT QUIT TERM USR1 USR2 PIPE CHLD TTIN TTOU);
my ($how) = @ARGV;
sub here {{ open(my $file, ">", "/here/$$") }}
# PR_SET_CHILD_SUBREAPER: orphans come to it instead of to init.
if ($how eq "reaper") {{ syscall({prctl}, 36, 1, 0, 0, 0) == 0 or die; fork; fork }}
# Twice, with a new session in between, as daemons do.
if ($how eq "daemon") {{ exit if fork; syscall({setsid}); exit if fork }}
# PTRACE_TRACEME: it stops at each signal, and only its parent lets it go on.
if ($how eq "traced") {{ if (fork == 0) {{ here(); syscall({ptrace}, 0, 0, 0, 0) == 0 or die; kill 19, $$ }} }}
here();
if ($how eq "stopped") {{ kill 19, $$ }}
# PR_SET_PDEATHSIG taken back, PR_SET_DUMPABLE off, nothing said about itself.
if ($how eq "hidden") {{ syscall({prctl}, 1, 0, 0, 0, 0); syscall({prctl}, 4, 0, 0, 0, 0); $0 = "init" }}
open(my $file, ">>", "/grows");
while (1) {{ syswrite($file, "x"); select(undef, undef, undef, 0.001) }}
END
mkdir /here
for how in plain reaper daemon traced stopped hidden; do perl /stay $how > /dev/null 2>&1 & done
nohup setsid perl /stay daemon &
# A shell that stays busy with making others.
(trap '' TERM; while :; do (sleep 1000 &); sleep 0.05; done) &
until [ $(ls /here | wc -l) -ge 8 ] && [ -s /grows ]; do sleep 0.01; done
{wait}"#,
            prctl = libc::SYS_prctl,
            setsid = libc::SYS_setsid,
            ptrace = libc::SYS_ptrace,
            wait = gate.wait(),
        );
        let building = arena.start("(network host)", &attack);
        let step = gate.arrival();
        let running = arena.env.processes().len();
        assert!(running >= 8, "{running}");
        step.pass("");
        building.end().ok();
        arena.env.assert_clean();
        let results = arena.env.at("store");
        let grown = || -> u64 {
            let found =
                std::process::Command::new("find").arg(&results).args(["-name", "grows", "-printf", "%s "]).output();
            String::from_utf8(found.unwrap().stdout)
                .unwrap()
                .split_whitespace()
                .map(|size| size.parse::<u64>().unwrap())
                .sum()
        };
        let size = grown();
        assert!(size > 0);
        arena.build(&[], r#"(run (shell "true"))"#).ok();
        assert_eq!(grown(), size);
    });
}

#[test]
fn zombies_go_with_their_step() {
    needs_attackers!();
    in_each(|arena| {
        let gate = Gate::new();
        let name = arena.env.marker().replace("marker", "z");
        let attack = format!(
            "cat > /die <<'END'
$0 = '{name}'; $| = 1;
for (1..300) {{ fork or exit }}
print \"made\\n\"; sleep 1000
END
perl /die > /said & until [ -s /said ]; do :; done
{}",
            gate.wait()
        );
        let zombies = || {
            let stats = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
                std::fs::read_to_string(entry.path().join("stat"))
                    .ok()
                    .filter(|stat| stat.contains(&format!("({name}")))
            });
            stats.count()
        };
        let building = arena.start("(network host)", &attack);
        let step = gate.arrival();
        assert!(zombies() >= 300);
        step.pass("");
        building.end().ok();
        assert_eq!(zombies(), 0);
    });
}
