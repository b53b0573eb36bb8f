//! Detached mounts: a tree behind a file descriptor, attached to no namespace.
//!
//! Layers are handed to overlayfs as `/proc/self/fd/N`: no path needs quoting, and a long chain
//! does not outgrow the page that `mount(2)` allows for options. A draft's writable layer can be mounted
//! once only: `volatile` leaves a mark, so that a tree half lost is not mounted again.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use rustix::thread::UnshareFlags;

use crate::user_namespace;

/// What every overlay of ours is mounted with. `volatile`: an unmount must not flush the whole
/// filesystem (20 ms instead of 90 to 240); the store's own durable marks guard against power
/// loss. The others are off because layers are moved and hard-linked, which those features forbid
/// (Documentation/filesystems/overlayfs.rst).
const OPTIONS: [(&str, &str); 3] = [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow")];

/// What may be done through a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// How ids in a tree and ids of the host belong to each other.
#[derive(Clone, Copy, Debug)]
pub struct IdMap<'a> {
    /// A user namespace with this map.
    pub namespace: BorrowedFd<'a>,
    /// Which id of the host is 0 in the tree, for users and groups alike.
    pub first: u32,
}

/// Returns a detached copy of the mount that `path` is on, starting at `path`.
pub(crate) fn directory(path: &Path, access: Access) -> io::Result<OwnedFd> {
    let mounted = copy_of(path)?;
    let read_only = match access {
        Access::Read => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Access::Write => MountAttrFlags::empty(),
    };
    crate::sys::add_mount_attributes(&mounted, MountAttrFlags::MOUNT_ATTR_NODEV | read_only)?;
    Ok(mounted)
}

fn copy_of(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// Maps the ids of a detached mount.
pub(crate) fn mapped(mounted: OwnedFd, map: Option<IdMap<'_>>) -> io::Result<OwnedFd> {
    map.map(|map| crate::sys::map_ids(&mounted, map.namespace)).transpose()?;
    Ok(mounted)
}

/// Returns a detached mount of the filesystem `source` of a kind that the kernel knows.
pub(crate) fn filesystem(kind: &str, source: &str, access: Access) -> io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = &context;
    fsconfig_set_string(context, "source", source)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    if access == Access::Read {
        fsconfig_set_flag(context, "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(context)?;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Returns a detached overlay of `lower` (topmost first) with the writable layer and work directory. An overlay cannot be
/// mapped; its layers can.
pub(crate) fn overlay(
    lower: &[impl AsRef<Path>],
    writable: Option<(&Path, &Path)>,
    map: Option<IdMap<'_>>,
) -> io::Result<OwnedFd> {
    if let ([only], None) = (lower, writable) {
        return mapped(directory(only.as_ref(), Access::Read)?, map);
    }
    let lower: Vec<&Path> = lower.iter().map(AsRef::as_ref).collect();
    let mounted = match modern(&lower, writable, map) {
        // Linux before 6.7 knows no `lowerdir+`, before 6.5 no new mount API for overlayfs; before 6.15 it takes no layer
        // that is not attached.
        Err(error) if is_unknown(&error) => legacy(&lower, writable, map)?,
        done => done?,
    };
    // Overlayfs that cannot use its work directory says so in the kernel's log alone.
    if writable.is_some() && rustix::fs::fstatvfs(&mounted)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Errno::ROFS.into());
    }
    Ok(mounted)
}

fn is_unknown(error: &io::Error) -> bool {
    let unknown = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| unknown.contains(&errno))
}

/// Opened layers.
struct Layers {
    lower: Vec<OwnedFd>,
    /// The writable layer with its work directory.
    writable: Option<(OwnedFd, OwnedFd)>,
    /// The mount that those two are on, if it is their own.
    _mount: Option<OwnedFd>,
}

impl Layers {
    fn open(lower: &[&Path], writable: Option<(&Path, &Path)>) -> io::Result<Self> {
        let lower = lower.iter().map(|path| open_in(CWD, path)).collect::<Result<_, _>>()?;
        let writable = writable.map(|(upper, work)| Ok::<_, Errno>((open_in(CWD, upper)?, open_in(CWD, work)?)));
        Ok(Self { lower, writable: writable.transpose()?, _mount: None })
    }

    /// Opens them as mounts of their own, their ids mapped. `attach` is given each.
    fn open_mapped(
        lower: &[&Path],
        writable: Option<(&Path, &Path)>,
        map: IdMap<'_>,
        mut attach: impl FnMut(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut open = |path: &Path| {
            let mounted = mapped(copy_of(path)?, Some(map))?;
            attach(&mounted)?;
            Ok::<_, io::Error>(mounted)
        };
        let lower = lower.iter().map(|path| open(path)).collect::<Result<_, _>>()?;
        let Some((upper, work)) = writable else { return Ok(Self { lower, writable: None, _mount: None }) };
        // Overlayfs wants the two to be on one mount.
        let (Some(parent), Some(upper), Some(work)) = (upper.parent(), upper.file_name(), work.file_name()) else {
            return Err(Errno::INVAL.into());
        };
        let mount = open(parent)?;
        let writable = Some((open_in(&mount, upper.as_ref())?, open_in(&mount, work.as_ref())?));
        Ok(Self { lower, writable, _mount: Some(mount) })
    }
}

fn open_in(dir: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn named(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The mount API of Linux 5.2 with overlayfs' `lowerdir+` of 6.7: one option a layer.
fn modern(lower: &[&Path], writable: Option<(&Path, &Path)>, map: Option<IdMap<'_>>) -> io::Result<OwnedFd> {
    let Some(map) = map else { return Ok(join(&Layers::open(lower, writable)?)?) };
    in_a_thread(|| {
        let layers = Layers::open_mapped(lower, writable, map, |_| Ok(()))?;
        // Overlayfs writes as whoever mounted it. The map leads to no id for the host's root.
        crate::sys::make_files_as(map.first)?;
        Ok(join(&layers)?)
    })
}

fn join(layers: &Layers) -> Result<OwnedFd, Errno> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = &context;
    fsconfig_set_string(context, "source", "kiln")?;
    for layer in &layers.lower {
        fsconfig_set_string(context, "lowerdir+", named(layer))?;
    }
    if let Some((upper, work)) = &layers.writable {
        fsconfig_set_string(context, "upperdir", named(upper))?;
        fsconfig_set_string(context, "workdir", named(work))?;
        fsconfig_set_flag(context, "volatile")?;
    }
    for (key, value) in OPTIONS {
        fsconfig_set_string(context, key, value)?;
    }
    if !user_namespace::is_hosts() {
        fsconfig_set_flag(context, "userxattr")?;
    }
    fsconfig_create(context)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
}

/// `mount(2)` in a namespace of its own, from which a detached copy is taken.
fn legacy(lower: &[&Path], writable: Option<(&Path, &Path)>, map: Option<IdMap<'_>>) -> io::Result<OwnedFd> {
    // Descriptors are shared by the threads of a process, so the names of layers hold in there too
    // (`/proc/self` is the process; `/proc/thread-self` would be the thread).
    in_a_thread(|| {
        crate::sys::unshare_mounts_of_this_thread()?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        // Any directory does as the place; nobody else sees it. `/proc` must stay visible.
        let place = "/dev";
        // Only now: overlayfs takes no layer from another mount namespace than the caller's.
        let layers = match map {
            None => Layers::open(lower, writable)?,
            Some(map) => {
                rustix::mount::mount("kiln", place, "tmpfs", MountFlags::NODEV, None)?;
                let mut number = 0;
                let layers = Layers::open_mapped(lower, writable, map, |mount| {
                    number += 1;
                    let point = format!("{place}/{number}");
                    rustix::fs::mkdir(&point, Mode::from_raw_mode(0o700))?;
                    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                    Ok(rustix::mount::move_mount(mount, "", CWD, &point, flags)?)
                })?;
                crate::sys::make_files_as(map.first)?;
                layers
            }
        };
        let options = legacy_options(&layers)?;
        rustix::mount::mount("kiln", place, "overlay", MountFlags::NODEV, Some(options.as_c_str()))?;
        let detached = copy_of(Path::new(place))?;
        rustix::mount::unmount(place, UnmountFlags::DETACH)?;
        Ok(detached)
    })
}

/// Does something in a thread of its own, whose namespaces and rights must not become this one's.
fn in_a_thread(work: impl FnOnce() -> io::Result<OwnedFd> + Send) -> io::Result<OwnedFd> {
    match thread::scope(|scope| scope.spawn(work).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn legacy_options(Layers { lower, writable, .. }: &Layers) -> Result<CString, Errno> {
    let mut options = format!("lowerdir={}", lower.iter().map(named).collect::<Vec<_>>().join(":"));
    if let Some((upper, work)) = writable {
        options.push_str(&format!(",upperdir={},workdir={},volatile", named(upper), named(work)));
    }
    for (key, value) in OPTIONS {
        options.push_str(&format!(",{key}={value}"));
    }
    if !user_namespace::is_hosts() {
        options.push_str(",userxattr");
    }
    // The kernel copies one page and silently cuts what is longer: other layers than these would be joined.
    const PAGE: usize = 4096;
    if options.len() >= PAGE {
        return Err(Errno::TOOBIG);
    }
    CString::new(options).map_err(|_| Errno::INVAL)
}

/// The namespaces that [`legacy`] needs for itself.
pub(crate) const OWN_MOUNTS: UnshareFlags = UnshareFlags::NEWNS.union(UnshareFlags::FS);

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_testkit::{Need, need};
    use std::fs;
    use std::path::PathBuf;

    /// What two layers and a writable one look like through `mount`, and what a write leaves.
    fn joins(mount: impl Fn(&[&Path], Option<(&Path, &Path)>) -> io::Result<OwnedFd>) {
        let dir = tempfile::tempdir().unwrap();
        let layers = ["high", "low", "upper", "work"].map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join(name), name).unwrap();
            path
        });
        fs::remove_file(layers[3].join("work")).unwrap();
        let [high, low, upper, work] = layers.each_ref().map(PathBuf::as_path);
        let mounted = mount(&[high, low], Some((upper, work))).unwrap();
        let through = Path::new("/proc/self/fd").join(mounted.as_raw_fd().to_string());
        for name in ["high", "low", "upper"] {
            assert_eq!(fs::read_to_string(through.join(name)).unwrap(), name);
        }
        fs::write(through.join("new"), "new").unwrap();
        assert_eq!(fs::read_to_string(layers[2].join("new")).unwrap(), "new");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*dir.path().to_string_lossy()), "attached somewhere: {mounts}");
    }

    #[test]
    fn a_sealed_directory_cannot_be_written() {
        need!(Need::Root);
        let dir = tempfile::tempdir().unwrap();
        let through = |mounted: &OwnedFd| Path::new("/proc/self/fd").join(mounted.as_raw_fd().to_string());
        let single: io::Result<OwnedFd> = overlay(&[dir.path()], None, None);
        for sealed in [directory(dir.path(), Access::Read), single] {
            let sealed = sealed.unwrap();
            let error = fs::write(through(&sealed).join("file"), "text").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        let writable = directory(dir.path(), Access::Write).unwrap();
        fs::write(through(&writable).join("file"), "text").unwrap();
    }

    #[test]
    fn layers_are_joined_by_the_new_mount_api() {
        need!(Need::Root);
        joins(|lower, writable| modern(lower, writable, None));
    }

    #[test]
    fn layers_are_joined_by_the_old_mount_call() {
        need!(Need::Root);
        joins(|lower, writable| legacy(lower, writable, None));
    }

    /// A user namespace whose id 0 is [`FIRST`] outside.
    fn namespace() -> OwnedFd {
        use std::io::{Read, Write};
        use std::process::{Command, Stdio};
        let mut child = Command::new("unshare")
            .args(["--user", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        // It is in its namespace when it answers.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {FIRST} 65536")).unwrap();
        }
        let namespace = fs::File::open(format!("/proc/{}/ns/user", child.id())).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        namespace.into()
    }

    const FIRST: u32 = 1_000_000;

    /// What a mapped overlay shows, and who owns on the disk what is written through it.
    fn maps(mount: impl Fn(&[&Path], Option<(&Path, &Path)>, IdMap<'_>) -> io::Result<OwnedFd>) {
        use std::os::unix::fs::{MetadataExt, chown};
        let dir = tempfile::tempdir().unwrap();
        let [high, low, upper, work] = ["high", "low", "upper", "work"].map(|name| dir.path().join(name));
        for (number, layer) in (0..).zip([&high, &low, &upper, &work]) {
            fs::create_dir(layer).unwrap();
            if layer != &work {
                fs::write(layer.join(number.to_string()), "").unwrap();
                chown(layer.join(number.to_string()), Some(number), Some(65_535)).unwrap();
            }
        }
        let namespace = namespace();
        let map = IdMap { namespace: namespace.as_fd(), first: FIRST };
        let mounted = mount(&[&high, &low], Some((&upper, &work)), map).unwrap();
        let through = Path::new("/proc/self/fd").join(mounted.as_raw_fd().to_string());
        let owner = |path: &Path| fs::metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
        for number in 0..3 {
            assert_eq!(owner(&through.join(number.to_string())), (FIRST + number, FIRST + 65_535));
        }
        chown(through.join("1"), Some(FIRST + 7), Some(FIRST)).unwrap();
        assert_eq!(owner(&upper.join("1")), (7, 0));
        let written = in_a_thread(|| {
            crate::sys::make_files_as(FIRST)?;
            fs::create_dir(through.join("made"))?;
            fs::remove_file(through.join("0"))?;
            Ok(fs::File::create(through.join("made/file"))?.into())
        });
        written.unwrap();
        assert_eq!((owner(&upper.join("made")), owner(&upper.join("made/file"))), ((0, 0), (0, 0)));
        assert!(!through.join("0").exists() && high.join("0").exists());
        // Whom the map does not know cannot write.
        assert_eq!(fs::write(through.join("hosts"), "").unwrap_err().raw_os_error(), Some(libc::EOVERFLOW));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*dir.path().to_string_lossy()), "attached somewhere: {mounts}");
    }

    #[test]
    fn layers_are_mapped_by_the_new_mount_api() {
        need!(Need::Root);
        maps(|lower, writable, map| overlay(lower, writable, Some(map)));
    }

    #[test]
    fn layers_are_mapped_by_the_old_mount_call() {
        need!(Need::Root);
        maps(|lower, writable, map| legacy(lower, writable, Some(map)));
    }

    #[test]
    fn the_old_mount_call_takes_as_many_layers_as_a_chain_has_and_no_cut_list() {
        need!(Need::Root);
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = (0..400).map(|number| dir.path().join(number.to_string())).collect();
        for layer in &layers {
            fs::create_dir(layer).unwrap();
        }
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        legacy(&layers[..150], None, None).unwrap();
        assert_eq!(legacy(&layers, None, None).unwrap_err().raw_os_error(), Some(Errno::TOOBIG.raw_os_error()));
        modern(&layers, None, None).unwrap();
    }
}
