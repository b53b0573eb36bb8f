//! A backend whose process dies.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_store::{Backend, Name, Quota, Root, Space, StoreError};

/// Passes every verb on, and kills its own process with `SIGKILL` at a given one: verb `n` is preceded by moment
/// `2n` and followed by moment `2n + 1`.
#[derive(Debug)]
pub struct DiesAt {
    inner: Box<dyn Backend>,
    moment: u64,
    passed: AtomicU64,
}

impl DiesAt {
    /// Wraps `inner`; the process will not outlive `moment`.
    pub fn new(inner: Box<dyn Backend>, moment: u64) -> Self {
        Self { inner, moment, passed: AtomicU64::new(0) }
    }

    fn pass(&self) {
        if self.passed.fetch_add(1, Ordering::Relaxed) == self.moment {
            let this = rustix::process::getpid();
            rustix::process::kill_process(this, rustix::process::Signal::KILL).expect("it may");
            // The signal ends all threads before this one returns to user space; nothing goes on behind it.
            unreachable!("killed");
        }
    }

    fn verb<T>(&self, act: impl FnOnce() -> T) -> T {
        self.pass();
        let done = act();
        self.pass();
        done
    }
}

impl Backend for DiesAt {
    fn create(&self, name: &Name) -> Result<Root, StoreError> {
        self.verb(|| self.inner.create(name))
    }

    fn clone_tree(&self, from: &Name, name: &Name) -> Result<Root, StoreError> {
        self.verb(|| self.inner.clone_tree(from, name))
    }

    fn check_quota(&self, quota: &Quota) -> Result<(), StoreError> {
        self.verb(|| self.inner.check_quota(quota))
    }

    fn begin_limited(&self, from: Option<&Name>, name: &Name, quota: &Quota) -> Result<Root, StoreError> {
        self.verb(|| self.inner.begin_limited(from, name, quota))
    }

    fn left(&self, draft: &Name) -> Result<Quota, StoreError> {
        self.verb(|| self.inner.left(draft))
    }

    fn size_bytes(&self, draft: &Name) -> Result<Option<u64>, StoreError> {
        self.verb(|| self.inner.size_bytes(draft))
    }

    fn sizes(&self, names: &[Name]) -> Result<Vec<Option<u64>>, StoreError> {
        self.verb(|| self.inner.sizes(names))
    }

    fn seal(&self, draft: &Name, name: &Name) -> Result<(), StoreError> {
        self.verb(|| self.inner.seal(draft, name))
    }

    fn open(&self, name: &Name) -> Result<Root, StoreError> {
        self.verb(|| self.inner.open(name))
    }

    fn needs(&self, name: &Name) -> Result<Vec<Name>, StoreError> {
        self.verb(|| self.inner.needs(name))
    }

    fn own(&self, name: &Name) -> Result<Option<PathBuf>, StoreError> {
        self.verb(|| self.inner.own(name))
    }

    fn remove(&self, name: &Name) -> Result<(), StoreError> {
        self.verb(|| self.inner.remove(name))
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.verb(|| self.inner.flush())
    }

    fn space(&self) -> Result<Space, StoreError> {
        self.verb(|| self.inner.space())
    }
}
