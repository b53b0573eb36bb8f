//! Real fixtures for tests: base images, loop filesystems, registries and bad networks, and the rule for what a test
//! lacks.
//!
//! A test that needs a privilege or a tool starts with [`need!`]. Missing, it prints
//! `SKIPPED: reason` and passes; with `CI` set in the environment it fails, so that
//! the full suite never shrinks unnoticed.

mod base;
mod change;
mod dockerd;
mod guest;
mod lan;
mod link;
mod loopfs;
mod net;
mod postgres;
mod registry;
mod script;
pub mod store;
mod tree;
mod unprivileged;
mod write_log;

pub use base::{busybox_root, busybox_tar};
pub use change::{Changes, Random};
pub use dockerd::{Dockerd, docker_with_buildkit};
pub use guest::{Guest, GuestRun};
pub use lan::Lan;
pub use link::Link;
pub use loopfs::LoopFs;
pub use postgres::Postgres;
pub use registry::{Access, Registry, oci_image};
pub use script::{Body, Request, Response, Script};
pub use tree::{Tree, describe, without_links};
pub use unprivileged::{Unprivileged, is_root_of_the_host};
pub use write_log::{Loss, PowerCuts, WriteLog};

use std::path::Path;

/// Something that a test cannot do without.
#[derive(Clone, Copy, Debug)]
pub enum Need<'a> {
    /// Effective uid 0.
    Root,
    /// A program found in `$PATH`; names the Debian package that brings it.
    Tool(&'a str, &'a str),
    /// A virtual machine.
    Guest,
    /// A `docker` that can build with BuildKit.
    Buildkit,
    /// A PostgreSQL server's programs.
    Postgres,
}

impl Need<'_> {
    /// Returns why the need is not met here, or `None` if it is.
    pub fn lacking(self) -> Option<String> {
        match self {
            Need::Root if rustix::process::geteuid().is_root() => None,
            Need::Root => Some("needs root".to_owned()),
            Need::Guest => Guest::lacking(),
            Need::Buildkit if docker_with_buildkit().is_some() => None,
            Need::Buildkit => {
                Some("needs a `docker` with BuildKit; apt-get install docker-buildx or docker.io".to_owned())
            }
            Need::Postgres => Need::Tool("pg_ctlcluster", "postgresql").lacking(),
            Need::Tool(program, package) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path)
                    .all(|dir| !dir.join(program).is_file())
                    .then(|| format!("needs `{program}`; apt-get install {package}"))
            }
        }
    }
}

/// Returns true if every need is met. Otherwise prints `SKIPPED: reason` and returns false.
///
/// # Panics
///
/// When `CI` is set and a need is not met: in CI a skip is a failure.
pub fn have(needs: &[Need<'_>]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.lacking()) else { return true };
    println!("SKIPPED: {reason}");
    assert!(std::env::var_os("CI").is_none(), "a test was skipped in CI: {reason}");
    false
}

/// Leaves the test, as a skip, unless every listed [`Need`] is met.
#[macro_export]
macro_rules! need {
    ($($need:expr),+ $(,)?) => {
        if !$crate::have(&[$($need),+]) { return; }
    };
}

/// Returns a digest-free listing of the tree at `root`: one sorted line an entry with kind,
/// mode, owner, size or link target. For comparing two trees in a test.
///
/// # Errors
///
/// Whatever reading the tree gives.
pub fn listing(root: &Path) -> std::io::Result<Vec<String>> {
    fn walk(root: &Path, dir: &Path, lines: &mut Vec<String>) -> std::io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            let name = path.strip_prefix(root).expect("below root").display().to_string();
            let owner = format!("{}:{}", meta.uid(), meta.gid());
            let detail = if meta.is_symlink() {
                format!("-> {}", std::fs::read_link(&path)?.display())
            } else if meta.is_file() {
                meta.len().to_string()
            } else {
                String::new()
            };
            lines.push(format!("{name} {:o} {owner} {detail}", meta.mode()).trim_end().to_owned());
            if meta.is_dir() {
                walk(root, &path, lines)?;
            }
        }
        Ok(())
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines)?;
    lines.sort();
    Ok(lines)
}
