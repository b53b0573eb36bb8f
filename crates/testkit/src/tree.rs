//! Looking at a tree: every entry with all that a program could see of it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
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

    /// Mounts a draft that was mounted before.
    ///
    /// # Panics
    ///
    /// The kernel refuses.
    pub fn mount_again(root: &kiln_store::Root) -> Self {
        Self(root.mount_again(None).expect("the tree can be mounted again"))
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

/// Returns one sorted line an entry, the root among them, with all that a program could see of it: name, kind and mode,
/// owner, modification time to the nanosecond; of a file its size and content (holes are as good as zeros), of a link its
/// target, of a device its number; extended attributes, among them capabilities and access control lists; and of a
/// file with several names in the tree the first of them. [`without_links`] takes that last part off.
///
/// # Errors
///
/// Whatever reading the tree gives.
pub fn describe(root: &Path) -> io::Result<Vec<String>> {
    // The root is named by its dot: by its path it could be a symbolic link.
    let mut pending = vec![root.join(".")];
    let mut lines = Vec::new();
    // The names of each file that has several.
    let mut linked: HashMap<(u64, u64), Vec<(PathBuf, usize)>> = HashMap::new();
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
            format!("file {} {}", meta.len(), content(&path)?)
        } else {
            let is_device = kind.is_char_device() || kind.is_block_device();
            format!("special {:x}", if is_device { meta.rdev() } else { 0 })
        };
        let name = path.strip_prefix(root).unwrap_or(&path);
        if !kind.is_dir() && meta.nlink() > 1 {
            linked.entry((meta.dev(), meta.ino())).or_default().push((name.to_owned(), lines.len()));
        }
        lines.push(format!(
            "{name:?} {:o} {}:{} {}.{:09} {detail}{}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            extended(&path)?
        ));
    }
    for names in linked.values_mut().filter(|names| names.len() > 1) {
        names.sort();
        let first = names[0].0.clone();
        for (_, line) in names {
            lines[*line].push_str(&format!("{SAME_FILE}{first:?}"));
        }
    }
    lines.sort();
    Ok(lines)
}

const SAME_FILE: &str = " same file as ";

/// Returns lines of [`describe`] that do not tell hard links from copies.
pub fn without_links(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| line.rsplit_once(SAME_FILE).map_or(&**line, |(line, _)| line).to_owned()).collect()
}

/// Returns a short content as text, a longer one by its digest.
fn content(path: &Path) -> io::Result<String> {
    const BLOCK: usize = 64 << 10;
    let file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    loop {
        // Whole blocks of zeros are left out, whether they are a hole or not: what is read of a huge file is its data only.
        match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => at = data / BLOCK as u64 * BLOCK as u64,
            Err(Errno::NXIO) => break,
            // It knows no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        let mut length = 0;
        while length < BLOCK {
            match file.read_at(&mut block[length..], at + length as u64)? {
                0 => break,
                read => length += read,
            }
        }
        let block = &block[..length];
        if at == 0 && length <= 100 && block.len() as u64 == file.metadata()?.len() {
            return Ok(format!("{:?}", String::from_utf8_lossy(block)));
        }
        if block.iter().any(|byte| *byte != 0) {
            hasher.update(&at.to_le_bytes()).update(block);
        }
        if length < BLOCK {
            break;
        }
        at += BLOCK as u64;
    }
    Ok(format!("blake3:{}", &hasher.finalize().to_hex()[..16]))
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
