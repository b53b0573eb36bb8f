//! The host's processes, what they listen at, and kiln's own.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::arena::{Arena, in_each};
use crate::needs_attackers;

#[test]
fn no_process_of_the_host_is_seen_signalled_or_traced() {
    needs_attackers!();
    let mut bystander = Arena::bystander();
    let pid = bystander.pid();
    in_each(|arena| {
        let harmless = format!(
            "try 'control itself' sh -c 'kill -0 $$'
             try 'its directory' ls /proc/{pid}
             call 'a signal that does nothing' {kill} {pid} 0
             call 'a descriptor of it' {pidfd_open} {pid} 0\n",
            kill = libc::SYS_kill,
            pidfd_open = libc::SYS_pidfd_open,
        );
        let attack = format!(
            "call 'killing' {kill} {pid} 9; call 'killing a thread' {tgkill} {pid} {pid} 9; call 'stopping' {kill} {pid} 19
             call 'tracing' {ptrace} 16 {pid} 0 0; call 'seizing' {ptrace} 0x4206 {pid} 0 0
             call 'slowing down' {setpriority} 0 {pid} 19; call 'its processors' {affinity} {pid} 8 h:0100000000000000
             for file in mem environ maps exe root cwd fd/0; do try \"$file of init\" head -c 1 /proc/1/$file; done
             try 'any but its own' sh -c 'ls -d /proc/[0-9]* | grep -E \"[0-9]{{4,}}\"'\n",
            kill = libc::SYS_kill,
            tgkill = libc::SYS_tgkill,
            ptrace = libc::SYS_ptrace,
            setpriority = libc::SYS_setpriority,
            affinity = libc::SYS_sched_setaffinity,
        );
        let tracing = format!(
            "call 'tracing of init' {ptrace} 16 1 0 0; call 'seizing of init' {ptrace} 0x4206 1 0 0\n",
            ptrace = libc::SYS_ptrace
        );
        // Whoever is process 1 itself would be stopped by that, and nobody would let it go on.
        let tracing = if arena.kind.has_init() { &tracing } else { "" };
        arena.refuses(&format!("{harmless}{attack}{tracing}"));
        arena.works_without(&harmless);
        // All that it can reach, but itself: that is its own.
        let built = arena.build(&[], r#"(run (shell "sleep 1000 & kill -9 -1; wait; echo still here"))"#).ok();
        assert!(built.stderr.contains("still here\n"), "{}", built.stderr);
    });
    bystander.is_unharmed();
}

#[test]
fn no_socket_of_the_host_is_reached() {
    needs_attackers!();
    in_each(|arena| {
        let name = arena.env.marker();
        let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let attack = format!(
            r#"cat > /connect <<'END'
my ($family, $address, $listens) = @ARGV;
my $to = $family == 1 ? pack("S a*", 1, "\0$address") : pack("S n C4 x8", 2, $address, 127, 0, 0, 1);
if ($listens) {{ socket(my $server, $family, 1, 0) or exit 3; bind($server, $to) or exit 4; listen($server, 1) or exit 5; go() }}
else {{ go() }}
sub go {{ socket(my $client, $family, 1, 0) or exit 3; exit(connect($client, $to) ? 0 : 1) }}
END
try 'control an abstract one of its own' perl /connect 1 own-{name} yes
try 'an abstract one' perl /connect 1 {name}
try 'one of the loopback interface' perl /connect 2 {port}
"#
        );
        let own_loopback = format!("try 'control that, of its own' perl /connect 2 {port} yes\n");
        arena.refuses(&format!("{attack}{own_loopback}"));
        arena.works_without(&attack);
    });
}

/// Whatever changes when somebody writes to kiln's binary.
pub(crate) fn state_of_kiln() -> impl PartialEq + std::fmt::Debug {
    let meta = fs::metadata(env!("CARGO_BIN_EXE_kiln")).unwrap();
    (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
}

#[test]
fn kiln_is_not_overwritten_by_what_it_starts() {
    needs_attackers!();
    let before = state_of_kiln();
    in_each(|arena| {
        arena.refuses(
            "mkdir /own; cp /bin/busybox /own/sleep; /own/sleep 1000 & own=$!
             until [ \"$(readlink /proc/$own/exe)\" = /own/sleep ]; do :; done
             try 'control reading a program that runs' cat /proc/$own/exe
             for program in /proc/[0-9]*/exe /proc/self/task/*/exe; do
               case $(readlink $program) in /own/sleep|/bin/busybox|/usr/bin/perl) continue ;; esac
               try \"reading $program\" cat $program
               try \"writing $program\" sh -c \": >> $program\"
             done
             try 'the program of init' cat /proc/1/exe
             kill $own",
        );
        // CVE-2019-5736: the command is whatever executes it, which is kiln at that moment.
        for way in ["ln -s /proc/self/exe /evil", r"printf '#!/proc/self/exe\n' > /evil; chmod 755 /evil"] {
            let spec = format!(r#"(run (shell "{}")) (shell /evil) (run (shell version))"#, way.replace('\\', r"\\"));
            let built = arena.build(&[], &spec);
            assert!(matches!(built.code, 0 | 1), "{}", built.stderr);
        }
    });
    assert_eq!(state_of_kiln(), before);
}

#[test]
fn no_working_directory_is_one_of_kilns_descriptors() {
    needs_attackers!();
    // CVE-2024-21626.
    in_each(|arena| {
        let canary = arena.canary();
        let up = "../".repeat(16);
        let read = |workdir: &str, path: &str| {
            let spec =
                format!(r#"(run (shell "echo untouched > /own")) (workdir {workdir}) (run (shell "cat {up}{path}"))"#);
            arena.build_again(&[], &spec)
        };
        assert!(read("/deep/down", "own").ok().stderr.contains("untouched\n"));
        for descriptor in [
            "self/fd/3",
            "self/fd/4",
            "self/fd/5",
            "self/fd/6",
            "self/fd/7",
            "self/fd/8",
            "1/fd/5",
            "self/cwd",
            "1/cwd",
            "1/root",
        ] {
            let built = read(&format!("/proc/{descriptor}"), canary.strip_prefix("/").unwrap().to_str().unwrap());
            assert!(matches!(built.code, 1 | 3), "{descriptor}: {}", built.stderr);
            assert!(!built.stderr.contains("untouched\n"), "{descriptor}: {}", built.stderr);
        }
    });
}
