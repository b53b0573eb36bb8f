//! The one system call that no safe wrapper offers.

use rustix::io::Errno;

use crate::mount::OWN_MOUNTS;

/// Gives the calling thread a mount namespace, root and working directory of its own.
#[expect(unsafe_code, reason = "rustix marks unshare unsafe because of CLONE_FILES, which is not used")]
pub(crate) fn unshare_mounts_of_this_thread() -> Result<(), Errno> {
    // SAFETY: unsound only with `UnshareFlags::FILES`, after which descriptors owned by other
    // threads' objects would mean something else here. OWN_MOUNTS holds NEWNS and FS alone.
    unsafe { rustix::thread::unshare_unsafe(OWN_MOUNTS) }
}
