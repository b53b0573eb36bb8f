//! Files that nobody else sees.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Makes a file in `dir` that has no name, and is gone with its last descriptor.
pub(crate) fn nameless(dir: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
        // Not every filesystem can.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_for_a_moment(dir, flags),
        made => Ok(made?.into()),
    }
}

fn named_for_a_moment(dir: &Path, flags: OFlags) -> io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = dir.join(format!("temporary-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let file = rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?;
    std::fs::remove_file(&path)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_file_without_a_name_is_had_on_any_filesystem() {
        let dir = tempfile::tempdir().unwrap();
        for file in [nameless(dir.path()), named_for_a_moment(dir.path(), OFlags::RDWR)] {
            file.unwrap().write_all_at(b"x", 0).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
