//! Ranges of the host's user and group ids, and the user namespaces that map to them.
//!
//! What runs in such a namespace as uid 0 is, to the host, a user whom no file belongs to and whom nobody else is. Making
//! one takes a process (`native/linux/user_namespace.rs`), so those of ended runs are kept for the next ones: the cost
//! is paid once for each run that goes on at the same time.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many ids a namespace has: 0 to 65535, as every distribution uses them.
pub(crate) const IDS: u32 = 1 << 16;
/// systemd's list of user ids (`systemd.io/UIDS-GIDS`) leaves this part to nobody, up to [`END`].
const FIRST: u32 = 0x7000_0000;
const END: u32 = 0x7ffe_0000;

/// How many ranges there are.
pub(crate) const RANGES: u32 = (END - FIRST) / IDS;

/// Returns the first id of the range with this number, from 0 to [`RANGES`].
pub(crate) fn first_of(range: u32) -> u32 {
    assert!(range < RANGES, "there are {RANGES} ranges");
    FIRST + range * IDS
}

/// A user namespace whose ids 0 to 65535 are ids of the host that nothing else uses. For one run at a time; dropped, it is
/// kept for another.
pub struct MappedIds {
    /// There until this is dropped.
    slot: Option<Slot>,
    free: Arc<Pool>,
    /// A process may still be in it.
    is_running: AtomicBool,
}

/// A namespace and its range.
pub(crate) struct Slot {
    pub(crate) first: u32,
    pub(crate) namespace: OwnedFd,
    /// The lock on the range, open as long as it is ours. None where the range is the caller's own ids, which nobody locks.
    pub(crate) lock: Option<OwnedFd>,
    /// How many ids there are.
    pub(crate) count: u32,
}

/// Namespaces that nobody is in.
#[derive(Default)]
pub(crate) struct Pool(Mutex<Vec<Slot>>);

impl Pool {
    /// Returns one of the namespaces, or what `make` makes.
    pub(crate) fn take<E>(self: &Arc<Self>, make: impl FnOnce() -> Result<Slot, E>) -> Result<MappedIds, E> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot = free.map_or_else(make, Ok)?;
        Ok(MappedIds { slot: Some(slot), free: Arc::clone(self), is_running: AtomicBool::new(false) })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

impl MappedIds {
    fn slot(&self) -> &Slot {
        self.slot.as_ref().expect("taken by `drop` alone")
    }

    /// Returns which id of the host is 0 inside, for users and groups alike.
    pub fn first(&self) -> u32 {
        self.slot().first
    }

    /// Returns what keeps the range ours while anybody has it open.
    pub(crate) fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.slot().lock.as_ref().map(AsFd::as_fd)
    }

    /// Returns how many ids there are: 65536, or 1.
    pub fn count(&self) -> u32 {
        self.slot().count
    }

    /// Says whether ids inside are the same outside, as where kiln itself is in a user namespace.
    pub fn are_the_callers(&self) -> bool {
        self.slot().lock.is_none()
    }

    /// Says whether a process may be in it. If that stays so, it is never used again.
    pub(crate) fn set_running(&self, is_running: bool) {
        self.is_running.store(is_running, Ordering::Relaxed);
    }
}

impl AsFd for MappedIds {
    /// The user namespace, for an id-mapped mount.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.slot().namespace.as_fd()
    }
}

impl fmt::Debug for MappedIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedIds").field("first", &self.first()).finish_non_exhaustive()
    }
}

impl Drop for MappedIds {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take()
            && !*self.is_running.get_mut()
        {
            self.free.0.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_do_not_overlap_and_end_before_what_others_use() {
        assert_eq!((first_of(0), first_of(1)), (0x7000_0000, 0x7001_0000));
        assert_eq!(RANGES, 4094);
        // The last id of the last range. From 0x7ffe_0000 on systemd's own begin; from 0x8000_0000 on some programs count
        // down from 0.
        assert_eq!(first_of(RANGES - 1) + (IDS - 1), 0x7ffd_ffff);
    }

    #[test]
    fn a_namespace_is_used_again_unless_a_process_may_be_in_it() {
        let pool = Arc::new(Pool::default());
        let made = |first| {
            let fd = || std::fs::File::open("/").unwrap().into();
            pool.take(|| Ok::<_, ()>(Slot { first, namespace: fd(), lock: Some(fd()), count: IDS })).unwrap()
        };
        let (one, two) = (made(1), made(2));
        two.set_running(true);
        drop((one, two));
        let again = made(3);
        assert_eq!((again.first(), made(4).first()), (1, 4));
    }
}
