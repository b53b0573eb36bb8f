//! Looking at a tree: every entry with all that a program could see of it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A mounted tree that is attached nowhere.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// Mounts a tree of a store.
    ///
    /// # Panics
    ///
    /// The kernel refuses.
    pub fn mount(root: &kiln_store::Root) -> Self {
        Self(root.mount().expect("the tree can be mounted"))
    }

    /// Returns a path to its root. It holds in this process, while this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Returns a path in it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path().join(path)
    }

    /// Returns its [`describe`].
    ///
    /// # Panics
    ///
    /// It cannot be read.
    pub fn describe(&self) -> Vec<String> {
        describe(&self.path()).expect("the tree can be read")
    }
}

/// Returns one sorted line an entry, the root among them: name, kind, mode, owner, modification time to the nanosecond,
/// content or target or device number, extended attributes. Hard links are not told from copies, as overlayfs
/// does not keep them.
///
/// # Errors
///
/// Whatever reading the tree gives.
pub fn describe(root: &Path) -> io::Result<Vec<String>> {
    // The root is named by its dot: by its path it could be a symbolic link.
    let mut pending = vec![root.join(".")];
    let mut lines = Vec::new();
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata()?;
        let kind = meta.file_type();
        let detail = if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("-> {:?}", fs::read_link(&path)?)
        } else if kind.is_file() {
            format!("file {:?}", String::from_utf8_lossy(&fs::read(&path)?))
        } else {
            let is_device = kind.is_char_device() || kind.is_block_device();
            format!("special {:x}", if is_device { meta.rdev() } else { 0 })
        };
        lines.push(format!(
            "{:?} {:o} {}:{} {}.{:09} {detail}{}",
            path.strip_prefix(root).unwrap_or(&path),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            extended(&path)?
        ));
    }
    lines.sort();
    Ok(lines)
}

fn extended(path: &Path) -> io::Result<String> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut names: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let mut text = String::new();
    for name in names {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        text.push_str(&format!(" {}={:?}", String::from_utf8_lossy(name), &value[..length]));
    }
    Ok(text)
}
