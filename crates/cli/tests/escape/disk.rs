//! Bombs on the disk: in a virtual machine, whose kernel has project quotas.

use std::path::Path;
use std::time::Duration;

use kiln_testkit::{Guest, Need, need};

/// Each bomb has a twin that is well within the limit, and writes by the same means.
const JOB: &str = r#"
for module in overlay loop ext4 xfs quota_v2; do modprobe $module || exit 1; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# In memory: open_tree(2) refuses the initramfs, and pivot_root(2) to leave it.
cp /job/kiln /tmp/kiln
mount --rbind / /mnt || exit 1
cat > /tmp/job <<'END'
export LD_LIBRARY_PATH=/job
cd /tmp
mkdir -p src root/bin root/lib root/lib64
cp /job/chattr root/bin/
cp /job/*.so* root/lib/ && cp /job/ld-* root/lib64/ || exit 1
cp /bin/busybox root/bin/
mkdir root/src; for tool in sh dd rm mkdir mv touch; do ln -s busybox root/bin/$tool; done

# FLAGS OPTIONS COMMAND: builds; all that it says is in `said`.
build() {
    printf '((from dir:root)\n (shell /bin/sh -c)\n (run %s (shell "%s")))\n' "$2" "$3" > spec
    /tmp/kiln build --no-maintenance --no-cache --pids none $1 -f spec src > said 2>&1
    code=$?
}
wrong() { echo "WRONG: $1, exit code $code"; cat said; exit 1; }
works() { build "$@"; [ $code = 0 ] || wrong "$*"; }
# SAYS FLAGS OPTIONS COMMAND
fails() {
    says=$1; shift
    build "$@"
    [ $code = 1 ] && grep -q "error: step .* exited with status 7; before that: $says" said || wrong "$*"
    [ -z "$(ls store/draft store/trash | grep -v :)" ] || wrong "$* leaves something"
}
write() { echo "dd if=/dev/zero of=$1 bs=1M count=$2 || exit 7"; }

for filesystem in xfs ext4; do
    truncate -s 320M $filesystem.img
    if [ $filesystem = xfs ]; then mkfs.xfs -q xfs.img; else mkfs.ext4 -q -O quota,project ext4.img; fi || exit 1
    mkdir -p store-$filesystem && mount -t $filesystem -o loop,prjquota $filesystem.img store-$filesystem || exit 1
    rm -f store; ln -s store-$filesystem/store store
    for kind in overlayfs copy; do
        for users in auto host; do
            echo "$kind on $filesystem with users $users"
            export KILN_STORE=$kind:/tmp/store-$filesystem/store
            cache='(cache (c (target /c)))'
            works "--userns $users" '' 'dd if=/dev/zero of=/good bs=1M count=1'
            id=$(tail -n 1 said)
            works "--userns $users --disk 16M --inodes 100" "$cache" "$(write /file 4); $(write /c/file 4); mv /src /new"
            fails 'disk limit 16 MiB reached' "--userns $users --disk 16M" '' "$(write /bomb 64)"
            fails 'disk limit 16 MiB reached' "--userns $users --disk 16M" "$cache" "$(write /c/bomb 64)"
            fails 'limit of 100 files reached' "--userns $users --inodes 100" '' \
                'mkdir /d; for a in 1 2 3 4 5 6; do for b in 1 2 3 4 5 6 7 8 9; do touch /d/$a$b /$a$b || exit 7; done; done'
            if [ $users = auto ]; then
                # Nobody inside takes a file or a directory out of its project.
                fails 'disk limit 16 MiB reached' '--disk 16M' '' \
                    "mkdir /d; chattr -p 0 /d && exit 8; chattr -P /d && exit 9; chattr -p 0 / && exit 10; $(write /d/bomb 64)"
            else
                # The same by root of the host: it is the user namespace that refuses.
                works '--userns host --disk 16M' '' 'mkdir /d; chattr -p 0 /d && chattr -P /d && chattr -p 0 /'
            fi
            /tmp/kiln log $id > /dev/null || wrong 'the others are harmed'
            works "--userns $users" '' "$(write /much 64)"
        done
        rm -rf store-$filesystem/store
    done
done
truncate -s 64M plain.img && mkfs.ext4 -q plain.img && mkdir plain && mount -t ext4 -o loop plain.img plain || exit 1
export KILN_STORE=overlayfs:/tmp/plain/store
build '--disk 16M' '' 'dd if=/dev/zero of=/ran bs=1M count=1'
[ $code = 3 ] && grep -q 'error: cannot limit the disk space of steps: .*-o prjquota' said || wrong 'a limit that cannot be kept'
END
exec chroot /mnt sh /tmp/job
"#;

#[test]
fn bombs_on_the_disk_go_off_inside_and_the_build_says_which() {
    need!(Need::Root, Need::Guest, Need::Tool("chattr", "e2fsprogs"));
    let guest = Guest::new(JOB)
        .with_program("kiln", Path::new(env!("CARGO_BIN_EXE_kiln")))
        .with_program("chattr", Path::new("/usr/bin/chattr"));
    let ended = guest.run(Duration::from_secs(900), |line| {
        println!("{line}");
        true
    });
    assert_eq!(ended.unwrap().code, Some(0));
}
