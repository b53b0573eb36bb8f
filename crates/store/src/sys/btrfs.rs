//! Calls of btrfs.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::{self, Errno};
use rustix::ioctl::{NoArg, Opcode, Setter, Updater, ioctl, opcode};

/// The kernel's `BTRFS_IOCTL_MAGIC`. Numbers and structures of these calls are those of `<linux/btrfs.h>`.
const BTRFS: u8 = 0x94;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    name: [u8; 4088],
}

/// Makes the empty subvolume `name` in `directory`.
pub(crate) fn create_subvolume(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    volume::<{ opcode::write::<VolumeArgs>(BTRFS, 14) }>(directory, 0, name)
}

/// Makes the subvolume `name` in `directory`: a writable snapshot of the one whose root `source` is. Subvolumes in that
/// one become empty directories.
pub(crate) fn snapshot_subvolume(source: &OwnedFd, directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    volume::<{ opcode::write::<VolumeArgs>(BTRFS, 1) }>(directory, source.as_raw_fd().into(), name)
}

/// Removes the subvolume `name` of `directory`; the kernel frees its space later. `NOTEMPTY` if other subvolumes are
/// in it.
pub(crate) fn destroy_subvolume(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    volume::<{ opcode::write::<VolumeArgs>(BTRFS, 15) }>(directory, 0, name)
}

fn volume<const OPCODE: Opcode>(directory: &OwnedFd, fd: i64, name: &CStr) -> io::Result<()> {
    let mut args = VolumeArgs { fd, name: [0; 4088] };
    let name = name.to_bytes_with_nul();
    args.name.get_mut(..name.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name);
    // SAFETY: the callers' codes are those of calls that read a `btrfs_ioctl_vol_args`, whose name ends in a zero, and
    // write nothing.
    unsafe { ioctl(directory, Setter::<OPCODE, _>::new(args)) }
}

/// Makes the subvolume whose root `root` is writable, whatever the flags that it was given.
pub(crate) fn clear_subvolume_flags(root: &OwnedFd) -> io::Result<()> {
    const OPCODE: Opcode = opcode::write::<u64>(BTRFS, 26);
    // SAFETY: BTRFS_IOC_SUBVOL_SETFLAGS reads a u64.
    unsafe { ioctl(root, Setter::<OPCODE, _>::new(0_u64)) }
}

/// Commits all that the btrfs of `entry` holds back, and wakes the thread that frees destroyed subvolumes.
pub(crate) fn commit_btrfs(entry: &OwnedFd) -> io::Result<()> {
    const OPCODE: Opcode = opcode::none(BTRFS, 8);
    // SAFETY: BTRFS_IOC_SYNC takes no argument.
    unsafe { ioctl(entry, NoArg::<OPCODE>::new()) }
}

/// Returns the id of the subvolume that `entry` is in.
pub(crate) fn subvolume_id(entry: &OwnedFd) -> io::Result<u64> {
    /// `struct btrfs_ioctl_ino_lookup_args`.
    #[repr(C)]
    struct Lookup {
        tree: u64,
        object: u64,
        name: [u8; 4080],
    }
    const OPCODE: Opcode = opcode::read_write::<Lookup>(BTRFS, 18);
    // Tree 0: the one of `entry`. Object 256: its root, for which nothing is looked up.
    let mut lookup = Lookup { tree: 0, object: 256, name: [0; 4080] };
    // SAFETY: BTRFS_IOC_INO_LOOKUP reads and writes a `btrfs_ioctl_ino_lookup_args`, which is integers.
    unsafe { ioctl(entry, Updater::<OPCODE, _>::new(&mut lookup)) }?;
    Ok(lookup.tree)
}

/// Opens a directory of the btrfs that `entry` is on, by its inode number in a subvolume: no path is needed, whatever its
/// depth and its names.
pub(crate) fn open_by_inode(entry: &OwnedFd, subvolume: u64, inode: u64) -> io::Result<OwnedFd> {
    /// `struct file_handle` and, in it, the kernel's `struct btrfs_fid` without a parent (fs/btrfs/export.h).
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        inode: [u8; 8],
        subvolume: [u8; 8],
        /// Zero: of any age.
        generation: u32,
    }
    const FILEID_BTRFS_WITHOUT_PARENT: i32 = 0x4d;
    let mut handle = Handle {
        bytes: 20,
        kind: FILEID_BTRFS_WITHOUT_PARENT,
        inode: inode.to_ne_bytes(),
        subvolume: subvolume.to_ne_bytes(),
        generation: 0,
    };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: open_by_handle_at(2) reads eight bytes and then as many as `bytes` says, all within the structure.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, entry.as_raw_fd(), &raw mut handle, flags) };
    match i32::try_from(fd) {
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// `struct btrfs_ioctl_search_key`: see there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SearchKey {
    pub(crate) tree: u64,
    pub(crate) min_object: u64,
    pub(crate) max_object: u64,
    pub(crate) min_offset: u64,
    pub(crate) max_offset: u64,
    pub(crate) min_generation: u64,
    pub(crate) max_generation: u64,
    pub(crate) min_kind: u32,
    pub(crate) max_kind: u32,
    pub(crate) items: u32,
    pub(crate) unused: [u32; 9],
}

/// `struct btrfs_ioctl_search_args_v2` and its buffer, which holds more than the largest item (64 KiB).
#[repr(C)]
pub(crate) struct Search {
    pub(crate) key: SearchKey,
    buffer_size: u64,
    pub(crate) buffer: [u8; 128 << 10],
}

impl Search {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self { key: SearchKey::default(), buffer_size: 0, buffer: [0; 128 << 10] })
    }

    /// Fills the buffer with the first items that the key asks for, and `key.items` with their number.
    pub(crate) fn run(&mut self, entry: &OwnedFd) -> io::Result<()> {
        // The code counts the structure without its buffer.
        const OPCODE: Opcode = opcode::read_write::<(SearchKey, u64)>(BTRFS, 17);
        self.buffer_size = self.buffer.len() as u64;
        // SAFETY: BTRFS_IOC_TREE_SEARCH_V2 reads and writes the structure and at most `buffer_size` bytes behind it, which
        // is where the buffer is. All of it is integers.
        unsafe { ioctl(entry, Updater::<OPCODE, _>::new(self)) }
    }
}
