//! The root, `/proc`, `/sys`, mounts and the working directory.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Arc;

use kiln_sandbox::{Mount, Process, Root, SandboxError, Source, Step, UserNamespace};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use crate::harness::{BUILDER, Jail, mounted_as, shell};
use crate::needs_sandbox;

/// A filesystem that is mounted nowhere.
fn detached_tmpfs(process: &Process) -> OwnedFd {
    let root = kiln_store::Root::Filesystem { kind: "tmpfs", source: "tmpfs".to_owned(), is_sealed: false };
    mounted_as(&root, process)
}

#[tokio::test]
async fn the_root_is_writable_and_what_is_written_stays() {
    needs_sandbox!();
    let jail = Jail::new();
    jail.sh("echo made > /file").await;
    assert_eq!(fs::read_to_string(jail.root().join("file")).unwrap(), "made\n");
}

#[tokio::test]
async fn a_detached_mount_can_be_the_root_and_is_unmounted_when_the_run_returns() {
    needs_sandbox!();
    kiln_testkit::need!(kiln_testkit::Need::Tool("mkfs.ext4", "e2fsprogs"));
    let jail = Jail::new();
    let disk = kiln_testkit::LoopFs::new("ext4", 32).unwrap();
    fs::create_dir(disk.path().join("upper")).unwrap();
    fs::create_dir(disk.path().join("work")).unwrap();
    for round in 0..20 {
        // Something that outlives its parent, in the tree's way.
        let mut process = shell(&format!("echo {round} > /tmp/round; cd /tmp; setsid sleep 1000 < /tmp/round & true"));
        // An overlay that is made by hand has the host's owners.
        process.user_namespace = UserNamespace::Host;
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "lowerdir", jail.root()).unwrap();
        fsconfig_set_string(&context, "upperdir", disk.path().join("upper")).unwrap();
        fsconfig_set_string(&context, "workdir", disk.path().join("work")).unwrap();
        // With an index, overlayfs refuses an upper layer that another overlay still uses.
        fsconfig_set_string(&context, "index", "on").unwrap();
        fsconfig_create(&context).unwrap_or_else(|error| panic!("round {round}: still mounted: {error}"));
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        drop(context);
        let (status, output) = jail.run_in(Root::Mount(mount), &process).await.unwrap();
        assert!(status.success(), "{output}");
    }
    assert_eq!(fs::read_to_string(disk.path().join("upper/tmp/round")).unwrap(), "19\n");
    assert!(!jail.root().join("tmp/round").exists());
}

#[tokio::test]
async fn missing_mount_points_are_made_and_nothing_else() {
    needs_sandbox!();
    let jail = Jail::new();
    let bare = jail.dir.path().join("bare");
    fs::create_dir_all(bare.join("bin")).unwrap();
    fs::copy(jail.root().join("bin/busybox"), bare.join("bin/busybox")).unwrap();
    let mut process = shell("");
    process.argv = vec!["/bin/busybox".into(), "true".into()];
    let (status, output) = jail.run_in(Root::Dir(bare.clone()), &process).await.unwrap();
    assert!(status.success(), "{output}");
    let listing = kiln_testkit::listing(&bare).unwrap();
    let made: Vec<_> = listing.iter().filter(|line| !line.starts_with("bin")).collect();
    assert_eq!(made, ["dev 40755 0:0", "etc 40755 0:0", "etc/hosts 100644 0:0 0", "proc 40755 0:0", "sys 40755 0:0"]);
}

#[tokio::test]
async fn kernel_settings_are_read_only() {
    needs_sandbox!();
    let output = Jail::new()
        .sh("for f in /proc/sys/kernel/domainname /proc/sys/vm/drop_caches /proc/sysrq-trigger /proc/irq/default_smp_affinity \
               /sys/kernel/mm/ksm/run /sys/power/state; do
               [ -e $f ] || continue
               (echo 1 > $f) 2>&1
             done; true")
        .await;
    assert!(output.lines().count() >= 3, "{output}");
    assert!(output.lines().all(|line| line.contains("Read-only file system")), "{output}");
}

#[tokio::test]
async fn what_tells_about_the_host_is_masked() {
    needs_sandbox!();
    let output = Jail::new()
        .sh("for f in kcore keys timer_list interrupts kpageflags; do head -c 10 /proc/$f 2>/dev/null; done
             for d in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do [ -d $d ] && ls -A $d; done
             touch /sys/firmware/x 2>&1 | grep -c Read-only; head -c 7 /proc/cpuinfo > /dev/null && echo the rest is there")
        .await;
    assert_eq!(output, "1\nthe rest is there\n");
}

#[tokio::test]
async fn the_root_cannot_be_left_by_its_parent() {
    needs_sandbox!();
    let jail = Jail::new();
    fs::write(jail.dir.path().join("outside"), "").unwrap();
    let output = jail
        .sh("for way in / /proc/1/root /proc/self/root /proc/1/cwd; do ls $way/../outside; done 2>&1 | grep -vE 'No such|denied'
             echo nothing found")
        .await;
    assert_eq!(output, "nothing found\n");
}

#[tokio::test]
async fn a_mount_is_writable_and_made_for_the_user() {
    needs_sandbox!();
    let jail = Jail::new();
    let cache = jail.dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    rustix::fs::chown(&cache, Some(rustix::fs::Uid::from_raw(1000)), None).unwrap();
    let mut process =
        shell("echo 1 > /home/builder/a/b/file; stat -c '%u:%g %a' /home/builder/a /opt/x; echo y > /opt/x/y");
    process.user = BUILDER;
    process.mounts = vec![
        Mount { target: "/home/builder/a/b".into(), source: Source::Dir(cache.clone()) },
        Mount { target: "/opt/x".into(), source: Source::Tree(Arc::new(detached_tmpfs(&process))) },
    ];
    let output = jail.ok(&process).await;
    // The tree's own root directory is the tmpfs's.
    assert_eq!(output, "1000:1000 755\n0:0 1777\n");
    assert_eq!(fs::read_to_string(cache.join("file")).unwrap(), "1\n");
    let made = fs::metadata(jail.root().join("home/builder/a/b")).unwrap();
    assert_eq!((made.uid(), made.mode() & 0o7777), (1000, 0o755));
}

#[tokio::test]
async fn mounts_come_in_order_so_that_one_may_lie_in_another() {
    needs_sandbox!();
    let jail = Jail::new();
    for name in ["outer", "inner"] {
        fs::create_dir(jail.dir.path().join(name)).unwrap();
    }
    let mut process = shell("touch /m/o /m/n/i");
    process.mounts = vec![
        Mount { target: "/m".into(), source: Source::Dir(jail.dir.path().join("outer")) },
        Mount { target: "/m/n".into(), source: Source::Dir(jail.dir.path().join("inner")) },
    ];
    jail.ok(&process).await;
    assert!(jail.dir.path().join("outer/o").exists() && jail.dir.path().join("inner/i").exists());
}

#[tokio::test]
async fn a_mount_in_proc_or_sys_or_over_the_root_is_refused() {
    needs_sandbox!();
    let jail = Jail::new();
    symlink("/proc", jail.root().join("innocent")).unwrap();
    for target in ["/proc/sys", "/sys/kernel", "/innocent/sys", "/", "/..", "/proc/self/cwd"] {
        let mut process = shell("true");
        process.mounts = vec![Mount { target: target.into(), source: Source::Dir(jail.dir.path().into()) }];
        let error = jail.run(&process).await.unwrap_err();
        assert!(matches!(error, SandboxError::Setup { step: Step::MountTree, .. }), "{target}: {error}");
    }
}

#[tokio::test]
async fn the_working_directory_is_made_for_the_user_and_entered() {
    needs_sandbox!();
    let jail = Jail::new();
    let mut process = shell("pwd; stat -c '%u %a' /src /src/a; touch here");
    process.user = BUILDER;
    process.cwd = "/src/a".into();
    assert_eq!(jail.ok(&process).await, "/src/a\n1000 755\n1000 755\n");
    // As with other runtimes, a directory that only root may enter can be started in.
    fs::create_dir(jail.root().join("closed")).unwrap();
    rustix::fs::chmod(jail.root().join("closed"), 0o700.into()).unwrap();
    process = shell("pwd; ls . 2>&1 | grep -c denied");
    process.user = BUILDER;
    process.cwd = "/closed".into();
    assert_eq!(jail.ok(&process).await, "/closed\n1\n");
}
