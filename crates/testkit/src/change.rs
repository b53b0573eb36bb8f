//! Random changes of trees, the same in several at once.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// A small generator of numbers that look random: the same for the same seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let end = u64::try_from(from.len()).expect("a list fits in memory");
        if end == 0 { None } else { from.get(usize::try_from(self.below(end)).expect("below a usize")) }
    }
}

/// Makes random changes. Times are set, never left to the clock, so that trees changed alike are alike.
#[derive(Debug)]
pub struct Changes {
    random: Random,
    clock: i64,
}

impl Changes {
    /// Changes that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), clock: 1_000_000_000 }
    }

    /// Makes one change in `tree` and the same in `mirror`, a plain directory that is its equal. Returns what it was.
    ///
    /// # Errors
    ///
    /// A filesystem fails.
    pub fn make(&mut self, tree: &Path, mirror: &Path) -> io::Result<String> {
        let (mut directories, mut others) = (vec![PathBuf::new()], Vec::new());
        let mut next = 0;
        while let Some(directory) = directories.get(next).cloned() {
            let mut entries: Vec<_> = fs::read_dir(mirror.join(&directory))?.collect::<Result<_, _>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let path = directory.join(entry.file_name());
                if entry.file_type()?.is_dir() { directories.push(path) } else { others.push(path) }
            }
            next += 1;
        }
        let change = self.choose(&directories, &others);
        let Some(change) = change else { return Ok("nothing".to_owned()) };
        self.clock += 1;
        // A hard link is torn apart when a lower file is changed; in the mirror it is not.
        let is_shared =
            |path: &Path| fs::symlink_metadata(mirror.join(path)).is_ok_and(|meta| !meta.is_dir() && meta.nlink() > 1);
        match &change {
            Change::Attribute(path, _) if is_shared(path) => return Ok("nothing".to_owned()),
            _ => {}
        }
        match change.apply(tree, self.clock) {
            // A directory of a lower layer: programs copy and delete then.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => return Ok("nothing".to_owned()),
            applied => applied?,
        }
        change.apply(mirror, self.clock)?;
        Ok(format!("{change:?}"))
    }

    fn choose(&mut self, directories: &[PathBuf], others: &[PathBuf]) -> Option<Change> {
        let random = &mut self.random;
        let name = match random.below(9) {
            0 => OsString::from_vec(b"new\nline\xff".to_vec()),
            1 => OsString::from_vec(vec![b'x'; 255]),
            letter => OsString::from_vec(vec![b'a' + u8::try_from(letter).expect("below 9")]),
        };
        let place = random.pick(directories)?.join(name);
        let is_deep = place.components().count() > 5;
        let other = random.pick(others).cloned();
        let directory = random.pick(&directories[1..]).cloned();
        let any = if random.below(3) == 0 { Some(random.pick(directories)?.clone()) } else { other.clone() };
        let number = random.below(4096);
        let mode = u32::try_from(number).expect("below 4096");
        Some(match random.below(16) {
            0 | 1 => Change::File(place, number),
            2 => Change::File(other?, number),
            3 => Change::Remove(other?),
            4 | 5 if !is_deep => Change::Directory(place, number % 3),
            6 => Change::Remove(directory?),
            7 => Change::File(directory?, number),
            8 => Change::Directory(other?, number % 3),
            9 => Change::Directory(directory?, number % 3),
            10 => Change::Symlink(place, number),
            11 => Change::Link(other?, place),
            12 => Change::Special(place, number),
            13 => Change::Rename(if number.is_multiple_of(2) { other? } else { directory? }, place),
            // A directory that its owner cannot enter is no trouble for root.
            14 => Change::Attribute(any?, Attribute::Mode(mode)),
            _ => Change::Attribute(
                any?,
                match number % 4 {
                    0 => Attribute::Owner(mode, mode / 2),
                    1 => Attribute::User(vec![b'v'; usize::try_from(number % 300).expect("below 300")]),
                    2 => Attribute::Capability,
                    _ => Attribute::Time,
                },
            ),
        })
    }
}

#[derive(Debug)]
enum Change {
    /// A new file with a content that follows from the number, whatever was there.
    File(PathBuf, u64),
    /// A new directory with so many files.
    Directory(PathBuf, u64),
    Symlink(PathBuf, u64),
    Special(PathBuf, u64),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Attribute(PathBuf, Attribute),
}

#[derive(Debug)]
enum Attribute {
    Mode(u32),
    Owner(u32, u32),
    User(Vec<u8>),
    Capability,
    Time,
}

impl Change {
    fn apply(&self, root: &Path, clock: i64) -> io::Result<()> {
        let at = |path: &Path| root.join(path);
        match self {
            Self::File(path, number) => {
                remove(&at(path))?;
                fs::write(at(path), format!("{number} ").repeat(usize::try_from(number % 100).expect("below 100")))?;
                made(root, path, clock)
            }
            Self::Directory(path, count) => {
                remove(&at(path))?;
                fs::create_dir(at(path))?;
                for file in 0..*count {
                    let file = path.join(["b", "c", "d"][usize::try_from(file % 3).expect("below 3")]);
                    fs::write(at(&file), "in a new directory")?;
                    set_time(&at(&file), clock)?;
                }
                made(root, path, clock)
            }
            Self::Symlink(path, number) => {
                remove(&at(path))?;
                symlink(format!("../{number}/nowhere"), at(path))?;
                made(root, path, clock)
            }
            Self::Special(path, number) => {
                remove(&at(path))?;
                let (kind, device) = match number % 3 {
                    _ if !crate::is_root_of_the_host() => (FileType::Fifo, 0),
                    0 => (FileType::Fifo, 0),
                    1 => (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
                    _ => (FileType::BlockDevice, rustix::fs::makedev(7, 200)),
                };
                rustix::fs::mknodat(CWD, at(path), kind, Mode::RUSR, device)?;
                made(root, path, clock)
            }
            Self::Link(from, to) if from == to => Ok(()),
            Self::Link(from, to) => {
                // Linux follows no link here, `link(2)`.
                remove(&at(to))?;
                if at(from).symlink_metadata().is_err() {
                    return touch_parent(root, to, clock);
                }
                fs::hard_link(at(from), at(to))?;
                touch_parent(root, to, clock)
            }
            Self::Rename(from, to) if to.starts_with(from) => Ok(()),
            Self::Rename(from, to) => {
                if from.starts_with(to) {
                    return Ok(());
                }
                let aside = at(Path::new("aside"));
                // First, so that nothing is changed if it cannot be.
                fs::rename(at(from), &aside)?;
                remove(&at(to))?;
                fs::rename(&aside, at(to))?;
                touch_parent(root, from, clock)?;
                set_time(root, clock)?;
                touch_parent(root, to, clock)
            }
            Self::Remove(path) => {
                remove(&at(path))?;
                touch_parent(root, path, clock)
            }
            Self::Attribute(path, attribute) => {
                let path = at(path);
                let kind = path.symlink_metadata()?.file_type();
                match attribute {
                    Attribute::Mode(mode) if kind.is_file() || kind.is_dir() => {
                        fs::set_permissions(&path, Permissions::from_mode(*mode))
                    }
                    Attribute::Owner(uid, gid) => lchown(&path, Some(*uid), Some(*gid)),
                    Attribute::User(value) if kind.is_file() || kind.is_dir() => {
                        let flags = XattrFlags::empty();
                        Ok(rustix::fs::lsetxattr(&path, "user.kiln", value, flags)?)
                    }
                    Attribute::Capability if kind.is_file() => {
                        // vfs_cap_data, revision 2: cap_net_raw, permitted.
                        let mut value = [0_u8; 20];
                        (value[3], value[5]) = (2, 0x20);
                        Ok(rustix::fs::lsetxattr(&path, "security.capability", &value, XattrFlags::empty())?)
                    }
                    Attribute::Time => set_time(&path, clock),
                    _ => Ok(()),
                }
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn made(root: &Path, path: &Path, clock: i64) -> io::Result<()> {
    set_time(&root.join(path), clock)?;
    touch_parent(root, path, clock)
}

fn touch_parent(root: &Path, path: &Path, clock: i64) -> io::Result<()> {
    match path.parent() {
        // The parent may have been what the entry was moved over.
        Some(parent) if root.join(parent).is_dir() => set_time(&root.join(parent), clock),
        _ => Ok(()),
    }
}

fn set_time(path: &Path, clock: i64) -> io::Result<()> {
    let time = Timespec { tv_sec: clock, tv_nsec: clock % 1_000_000_000 };
    let times = Timestamps { last_access: time, last_modification: time };
    if path.symlink_metadata()?.is_dir() {
        // Not by name: the root is reached through a link in `/proc`.
        return Ok(rustix::fs::futimens(File::open(path)?, &times)?);
    }
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
