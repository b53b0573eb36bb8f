//! Root filesystems made to break out, or to break the sandbox's setting up.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use kiln_sandbox::{Mount, NativeSandbox, Network, Root, Sandbox as _, SandboxError, SecretBytes, Source};
use tokio_util::sync::CancellationToken;

use crate::harness::{HELPER, Jail, shell};
use crate::needs_sandbox;

fn replace(path: &Path, make: impl FnOnce(&Path)) {
    if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    } else {
        let _ = fs::remove_file(path);
    }
    make(path);
}

#[tokio::test]
async fn a_kernel_directory_that_is_a_link_or_file_stops_the_run() {
    needs_sandbox!();
    for name in ["proc", "sys", "dev"] {
        for target in ["/", "..", "../../../../tmp", "tmp", "/nowhere"] {
            let jail = Jail::new();
            replace(&jail.root().join(name), |path| symlink(target, path).unwrap());
            let error = jail.run(&shell("true")).await.unwrap_err();
            assert!(matches!(error, SandboxError::Setup { .. }), "{name} -> {target}: {error}");
        }
        let jail = Jail::new();
        replace(&jail.root().join(name), |path| fs::write(path, "").unwrap());
        let error = jail.run(&shell("true")).await.unwrap_err();
        assert!(matches!(error, SandboxError::Setup { .. }), "{name} a file: {error}");
    }
}

#[tokio::test]
async fn links_in_etc_do_not_lead_out_of_the_root() {
    needs_sandbox!();
    for (link, target) in [
        ("etc", "../../outside"),
        ("etc", "/../../outside"),
        ("etc/hosts", "../../../outside/hosts"),
        ("etc/hosts", "/outside/hosts"),
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    ] {
        let jail = Jail::new();
        let outside = jail.dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        replace(&jail.root().join(link), |path| symlink(target, path).unwrap());
        let mut process = shell("head -n 1 /etc/hosts; touch /etc/resolv.conf 2>/dev/null; true");
        process.network = Network::Host;
        assert_eq!(jail.ok(&process).await, "127.0.0.1 localhost builder\n", "{link} -> {target}");
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0, "{link} -> {target}");
    }
}

#[tokio::test]
async fn mounts_and_secrets_do_not_follow_links_out_of_the_root() {
    needs_sandbox!();
    let jail = Jail::new();
    let outside = jail.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink("../../outside", jail.root().join("up")).unwrap();
    symlink(&outside, jail.root().join("absolute")).unwrap();
    let cache = jail.dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    for link in ["/up", "/absolute"] {
        let mut process = shell("true");
        process.cwd = format!("{link}/cwd").into();
        process.mounts = vec![
            Mount { target: format!("{link}/cache").into(), source: Source::Dir(cache.clone()) },
            Mount { target: format!("{link}/secret").into(), source: Source::Secret(SecretBytes::new(*b"s")) },
        ];
        jail.ok(&process).await;
    }
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

#[tokio::test]
async fn the_helper_cannot_be_overwritten_by_a_command_that_gets_hold_of_it() {
    needs_sandbox!();
    // CVE-2019-5736: the "command" is the helper's own binary, reached through the magic link of the process that
    // executes it. It runs with the image's libraries, so it could open itself; a shell beside it tries for us.
    let jail = Jail::new().with_probe();
    fs::write(jail.root().join("bin/evil"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(jail.root().join("bin/evil"), fs::Permissions::from_mode(0o755)).unwrap();
    let before = fs::metadata(HELPER).unwrap().len();
    let mut process = shell("");
    process.argv = vec!["/bin/evil".into()];
    let _ = jail.run(&process).await;
    // From inside, neither init's binary nor its memory or descriptors are within reach.
    let output = jail
        .sh("for f in exe root cwd fd/0; do (readlink /proc/1/$f || echo refused) 2>/dev/null; done
             (echo x >> /proc/1/exe || echo refused) 2>/dev/null; (cat /proc/1/mem || echo refused) 2>/dev/null
             (cat /proc/1/environ || echo refused) 2>/dev/null")
        .await;
    assert_eq!(output, "refused\n".repeat(7));
    assert_eq!(fs::metadata(HELPER).unwrap().len(), before);
}

#[tokio::test]
async fn the_helpers_binary_is_on_a_read_only_mount() {
    needs_sandbox!();
    // Whoever gets the binary open, here the host's root by /proc/PID/exe, waits until it no longer runs
    // (until then writing to it fails anyway) and opens what he has once more, for writing.
    let jail = Jail::new();
    let own_copy = jail.dir.path().join("helper");
    fs::copy(HELPER, &own_copy).unwrap();
    let sandbox = NativeSandbox::new(&own_copy).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (cancel, process) = (CancellationToken::new(), shell("echo ready; while :; do sleep 1; done"));
    let run = sandbox.run(Root::Dir(jail.root()), &process, writer.into(), &cancel);
    let watcher = tokio::task::spawn_blocking(move || {
        crate::harness::read_line(&mut reader);
        let helpers = crate::ends::children_of(std::process::id()).into_iter();
        helpers.flat_map(|pid| fs::File::open(format!("/proc/{pid}/exe"))).collect::<Vec<_>>()
    });
    let watch = async {
        let binaries = watcher.await.unwrap();
        cancel.cancel();
        binaries
    };
    let (_, binaries) = tokio::join!(run, watch);
    let inode = fs::metadata(&own_copy).unwrap().ino();
    let ours: Vec<_> = binaries.iter().filter(|file| file.metadata().unwrap().ino() == inode).collect();
    assert_eq!(ours.len(), 1);
    let error = fs::OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", ours[0].as_raw_fd())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
}
