//! What belongs to the kernel: mounts, namespaces, devices, modules, settings, clocks, keys, control groups.

use std::fs;

use crate::arena::in_each;
use crate::needs_attackers;

fn calls(calls: &[(&str, i64, &str)]) -> String {
    calls.iter().map(|(name, number, arguments)| format!("call '{name}' {number} {arguments}\n")).collect()
}

#[test]
fn nothing_is_mounted_and_nothing_unmounted() {
    needs_attackers!();
    in_each(|arena| {
        let begin = "mkdir -p /m /n; try 'control a directory of its own' ls /m\n";
        let harmless = "try 'a filesystem in memory' mount -t tmpfs none /m
                        try 'the root, elsewhere' mount --bind / /n\n"
            .to_owned()
            + &calls(&[("a copy of a mount", libc::SYS_open_tree, "-100 s:/ 1")]);
        let attack = "for kind in proc sysfs devtmpfs devpts mqueue cgroup cgroup2 debugfs tracefs overlay ext4 fuse; do
                        try \"$kind\" mount -t $kind none /m
                      done
                      try 'more of the kernel' mount -o remount,rw /sys
                      try 'settings' mount -o remount,bind,rw /proc/sys
                      try 'devices' mount -o remount,bind,dev /
                      try 'to be seen outside' mount --make-rshared /
                      for place in /etc/hosts /proc/sys /proc /sys /dev/shm /dev; do try \"without $place\" umount -l $place; done\n"
            .to_owned()
            + &calls(&[
                ("a new filesystem", libc::SYS_fsopen, "s:tmpfs 0"),
                ("an old filesystem", libc::SYS_fspick, "-100 s:/ 0"),
                ("what a mount allows", libc::SYS_mount_setattr, "-100 s:/ 0 b:32 32"),
                ("the place of a mount", libc::SYS_move_mount, "-100 s:/m -100 s:/n 0"),
                ("another root", libc::SYS_pivot_root, "s:/m s:/n"),
            ]);
        arena.refuses(&format!("{begin}{harmless}{attack}"));
        arena.works_without(&format!("{begin}{harmless}"));
    });
}

#[test]
fn no_namespace_is_made_or_entered() {
    needs_attackers!();
    in_each(|arena| {
        let begin = calls(&[("control who am I", libc::SYS_getpid, "")]);
        let makes = calls(&[
            ("mounts", libc::SYS_unshare, "0x20000"),
            ("cgroups", libc::SYS_unshare, "0x2000000"),
            ("host name", libc::SYS_unshare, "0x4000000"),
            ("ipc", libc::SYS_unshare, "0x8000000"),
            ("processes", libc::SYS_unshare, "0x20000000"),
            ("network", libc::SYS_unshare, "0x40000000"),
        ]);
        // CVE-2022-0185 and many others began with a user namespace of one's own.
        let attack = "try 'users, by unshare' unshare -U true
                      for kind in mnt uts ipc net pid user cgroup; do
                        try \"$kind of init\" cat /proc/1/ns/$kind
                        try \"$kind, again\" perl -e 'open(my $ns, \"<\", $ARGV[0]) or exit 1; exit(syscall(SETNS, fileno($ns), 0) == 0 ? 0 : 1)' /proc/self/ns/$kind
                      done\n"
            .replace("SETNS", &libc::SYS_setns.to_string())
            + &calls(&[
                ("users", libc::SYS_unshare, "0x10000000"),
                ("time", libc::SYS_unshare, "0x80"),
                ("users of a child", libc::SYS_clone, "0x10000011 0 0 0 0"),
                ("by the newer call", libc::SYS_clone3, "b:88 88"),
            ]);
        arena.refuses(&format!("{begin}{makes}{attack}"));
        arena.works_without(&format!("{begin}{makes}"));
    });
}

#[test]
fn no_device_is_opened() {
    needs_attackers!();
    in_each(|arena| {
        let null = |dirs: &str, making: &str| {
            format!(
                "for dir in {dirs}; do
                   try \"{making} a node in $dir\" mknod $dir/node c 1 3
                   try \"the node in $dir\" cat $dir/node
                 done\n"
            )
        };
        // Without root's rights, not even a node is made.
        let making = if arena.kind.is_rootless() { "making" } else { "control making" };
        // Memory, ports, a disk, a console, the makers of disks, networks and filesystems.
        let attack = "for node in 'c 1 1' 'c 1 4' 'b 8 0' 'b 254 0' 'b 259 0' 'b 7 0' 'c 5 1' 'c 10 237' 'c 10 200' 'c 10 229' 'c 1 11'; do
                        rm -f /tmp/node; try \"MAKING $node\" mknod /tmp/node $node
                        try \"reading $node\" dd if=/tmp/node bs=1 count=1
                        try \"writing $node\" sh -c '[ -e /tmp/node ] && : >> /tmp/node'
                      done
                      try 'control the null device' cat /dev/null
                      for node in mem kmem port kmsg fuse loop-control sda vda; do try \"$node\" head -c 1 /dev/$node; done";
        arena.refuses(&format!("{}{}", null("/ /tmp /dev /dev/shm", making), attack.replace("MAKING", making)));
        arena.works_without(&null("/ /tmp", "control making"));
    });
}

#[test]
fn no_module_is_loaded() {
    needs_attackers!();
    in_each(|arena| {
        let attack = "try 'control a program' sh -c true
                      try 'by insmod' insmod /bin/sh\n"
            .to_owned()
            + &calls(&[
                ("control who am I", libc::SYS_getpid, ""),
                ("by its file", libc::SYS_finit_module, "0 s: 0"),
                ("by its bytes", libc::SYS_init_module, "b:64 64 s:"),
                ("away with one", libc::SYS_delete_module, "s:nonesuch 0x800"),
                ("another kernel", libc::SYS_kexec_load, "0 0 0 0"),
            ]);
        arena.refuses(&attack);
    });
}

#[test]
fn the_kernels_settings_are_not_written() {
    needs_attackers!();
    let settings = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/sysrq"];
    let values = || settings.map(|path| fs::read(path).ok());
    let before = values();
    in_each(|arena| {
        // Opening for writing does no harm where it works.
        let open = "open_for_writing() { try \"$1\" perl -e 'sysopen(my $file, $ARGV[0], 1) or exit 1' $2; }
                    touch /own; open_for_writing 'control a file of its own' /own\n";
        let settings =
            "for file in sys/kernel/core_pattern sys/vm/drop_caches; do open_for_writing $file /proc/$file; done\n";
        let more = "for file in sysrq-trigger sys/kernel/modprobe sys/kernel/hostname sys/kernel/sysrq sys/kernel/ns_last_pid sys/fs/binfmt_misc/register \
                      sys/net/ipv4/ip_forward irq/default_smp_affinity bus/pci/00 fs/ext4 scsi/scsi mtrr acpi/wakeup; do
                      open_for_writing $file /proc/$file
                    done
                    for file in kernel/uevent_helper power/state kernel/mm/ksm/run fs/cgroup/release_agent module/apparmor/parameters/mode \
                      kernel/security/apparmor/.load kernel/debug/sched_features devices/system/cpu/cpu0/online; do
                      open_for_writing $file /sys/$file
                    done
                    try 'memory' head -c 1 /proc/kcore; try 'the log' dmesg; try 'the log, by its file' head -c 1 /proc/kmsg\n";
        arena.refuses(&format!("{open}{settings}{more}"));
        arena.works_without(&format!("{open}{settings}"));
    });
    assert_eq!(values(), before);
}

#[test]
fn the_clock_and_the_name_of_the_host_stay() {
    needs_attackers!();
    let names = || {
        let uname = rustix::system::uname();
        (uname.nodename().to_owned(), uname.domainname().to_owned())
    };
    let before = names();
    in_each(|arena| {
        // Times that no clock can have, so nothing happens where it may be set: that is another error.
        let attack = "try 'control the time' date; try 'the date' sh -c '! date -s @$(date +%s) 2>&1 | grep not.permitted'; try 'the clock' hwclock -w
                      try 'the name, by hostname' hostname escaped\n"
            .to_owned()
            + &calls(&[
                ("control who am I", libc::SYS_getpid, ""),
                ("the time", libc::SYS_clock_settime, "0 h:0000000000000000ffffffffffffff7f"),
                ("the time of day", libc::SYS_settimeofday, "h:0000000000000000ffffffffffffff7f 0"),
                ("the speed of the clock", libc::SYS_adjtimex, &format!("h:02{}", "00".repeat(207))),
                ("the name", libc::SYS_sethostname, "s:escaped 7"),
                ("the domain", libc::SYS_setdomainname, "s:escaped 7"),
            ]);
        arena.refuses(&attack);
    });
    assert_eq!(names(), before);
}

#[test]
fn keys_and_the_rest_of_the_kernel_are_refused() {
    needs_attackers!();
    in_each(|arena| {
        let begin = calls(&[("control who am I", libc::SYS_getpid, "")]);
        // Into the keyring of the process, which ends with it.
        let harmless = calls(&[("a key", libc::SYS_add_key, "s:user s:escape s:payload 7 -2")]);
        let attack = calls(&[
            ("a key of the session", libc::SYS_add_key, "s:user s:escape s:payload 7 -3"),
            ("the keys of the user", libc::SYS_keyctl, "0 -4 0 0 0"),
            ("asking for a key", libc::SYS_request_key, "s:user s:escape s: -3"),
            ("restarting", libc::SYS_reboot, "0xfee1dead 672274793 0 0"),
            ("swap on", libc::SYS_swapon, "s:/nonesuch 0"),
            ("swap off", libc::SYS_swapoff, "s:/nonesuch"),
            ("accounting", libc::SYS_acct, "s:/nonesuch"),
            ("quotas", libc::SYS_quotactl, "0 s:/nonesuch 0 0"),
            ("the log of the kernel", libc::SYS_syslog, "3 b:4096 4096"),
            ("watching performance", libc::SYS_perf_event_open, "b:128 0 -1 -1 0"),
            ("programs in the kernel", libc::SYS_bpf, "0 b:128 128"),
            ("page faults", libc::SYS_userfaultfd, "0"),
            ("rings", libc::SYS_io_uring_setup, "1 b:120"),
            ("the input of a terminal", libc::SYS_ioctl, "0 0x5412 s:x"),
        ]);
        arena.refuses(&format!("{begin}{harmless}{attack}"));
        arena.works_without(&format!("{begin}{harmless}"));
    });
}

#[test]
fn no_control_group_is_within_reach() {
    needs_attackers!();
    let agents = || {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let mut agents: Vec<_> = hierarchies
            .filter_map(|entry| {
                let path = entry.path().join("release_agent");
                fs::read(&path).ok().map(|agent| (path, agent))
            })
            .collect();
        agents.sort();
        agents
    };
    let before = agents();
    in_each(|arena| {
        // CVE-2022-0492: a program of the attacker's, run by the kernel on the host when a group is empty.
        let attack = "mkdir /m; try 'control a directory' mkdir /m/group
                      try 'control finding a file' sh -c 'find / -xdev -name attack | grep .'
                      for set in memory cpu pids rdma devices freezer name=systemd; do try \"$set\" mount -t cgroup -o $set none /m; done
                      try 'by a user namespace' unshare -U sh -c 'mount -t cgroup -o rdma none /m'
                      try 'version 2' mount -t cgroup2 none /m
                      try 'an agent' sh -c 'find /sys/fs/cgroup /proc -name release_agent 2>/dev/null | grep .'
                      try 'a group' mkdir /sys/fs/cgroup/escape
                      try 'the limits' sh -c 'find /sys/fs/cgroup -name \"*.max\" 2>/dev/null | grep .'";
        arena.refuses(attack);
    });
    assert_eq!(agents(), before);
}
