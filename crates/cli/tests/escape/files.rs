//! The host's files.

use crate::arena::in_each;
use crate::needs_attackers;

/// Leaves a `chroot` as everybody knows: by a descriptor of what lies above it.
const LEAVE: &str = r#"cat > /leave <<'END'
opendir(my $above, "/") or exit 3; mkdir "/tmp/jail"; chroot "/tmp/jail" or exit 3; chdir $above or exit 3;
for (1..64) { chdir ".." }
chroot "." or exit 3; open(my $file, "<", $ARGV[0]) or exit 1; exit(<$file> =~ /untouched/ ? 0 : 1)
END
"#;

/// Ways to a file.
fn ways(what: &str, path: &str) -> String {
    format!(
        "up=../../../../../../../../../../../../../..
         rm -f /tmp/link /tmp/up /tmp/hard; ln -s {path} /tmp/link; ln -s $up /tmp/up
         try '{what} by its path' cat {path}
         try '{what} from above' cat $up{path}
         try '{what} by a link' cat /tmp/link
         try '{what} by a link up' cat /tmp/up{path}
         try '{what} by oneself' cat /proc/self/root/$up{path}
         try '{what} by a hard link' ln {path} /tmp/hard
         try '{what} out of a chroot' perl /leave {path}\n"
    )
}

#[test]
fn no_path_leads_to_a_file_of_the_host() {
    needs_attackers!();
    in_each(|arena| {
        let canary = arena.canary().display().to_string();
        let theirs = ways("host", &canary);
        let own = ways("control own", "/own");
        let by_init = format!(
            "try 'host by init' cat /proc/1/root{canary}
             try 'host by init, its directory' cat /proc/1/cwd/$up{canary}
             try 'host by a hard link through init' ln /proc/1/root{canary} /tmp/hard
             for fd in 3 4 5 6 7 8 9 10 11 12; do
               try \"host by descriptor $fd\" cat /proc/self/fd/$fd/$up{canary}
               try \"host by init, descriptor $fd\" cat /proc/1/fd/$fd/$up{canary}
             done"
        );
        arena.refuses(&format!("{LEAVE} echo untouched > /own\n{own}{theirs}{by_init}"));
        // Root in a mere chroot gets there.
        arena.works_without(&format!(
            "{LEAVE} try 'control a file of its own' cat /leave
             try 'by a process outside' cat /proc/$PPID/root{canary}
             try 'out of a chroot' perl /leave {canary}"
        ));
    });
}

#[test]
fn no_file_is_opened_by_its_handle() {
    needs_attackers!();
    in_each(|arena| {
        // As CAP_DAC_READ_SEARCH lets one, past all mounts ("Shocker").
        let attack = format!(
            r#"cat > /handle <<'END'
my $place = -d "/dev/shm" ? "/dev/shm" : "/tmp";
open(my $file, ">", "$place/own") or die; open(my $directory, "<", $place) or die;
my ($name, $handle, $mount) = ("$place/own", pack("Ii", 128, 0) . "\0" x 128, "\0" x 4);
my $named = syscall({name_to_handle_at}, -100, $name, $handle, $mount, 0);
print "control its handle: ", ($named == 0 ? "worked" : "errno " . (0 + $!)), "\n";
my $opened = syscall({open_by_handle_at}, fileno($directory), $handle, 0);
print "what has a handle: ", ($opened >= 0 ? "worked" : "errno " . (0 + $!)), "\n";
END
perl /handle"#,
            name_to_handle_at = libc::SYS_name_to_handle_at,
            open_by_handle_at = libc::SYS_open_by_handle_at,
        );
        arena.refuses(&attack);
        arena.works_without(&attack);
    });
}
