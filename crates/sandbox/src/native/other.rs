//! No native sandbox here (yet).

use std::path::PathBuf;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::{Ended, Io, Limits, Process, Root, Sandbox, SandboxError, TunError};

/// The native sandbox, which this operating system does not have.
#[derive(Debug)]
pub struct NativeSandbox(std::convert::Infallible);

impl NativeSandbox {
    /// Fails.
    ///
    /// # Errors
    ///
    /// Always [`SandboxError::Host`].
    pub fn new(_helper: impl Into<PathBuf>) -> Result<Self, SandboxError> {
        Err(SandboxError::Host { what: "it needs Linux", source: None })
    }

    /// Fails.
    ///
    /// # Errors
    ///
    /// Never: there is no such value.
    pub fn check(&self, _limits: &Limits) -> Result<(), SandboxError> {
        match self.0 {}
    }
}

#[async_trait]
impl Sandbox for NativeSandbox {
    async fn run(&self, _: Root, _: &Process, _: Io, _: &CancellationToken) -> Result<Ended, SandboxError> {
        match self.0 {}
    }
}

impl NativeSandbox {
    pub(crate) async fn run_by(
        &self,
        _: Option<&crate::oci::Found>,
        _: Root,
        _: &Process,
        _: OwnedFd,
        _: &CancellationToken,
    ) -> Result<Ended, SandboxError> {
        match self.0 {}
    }
}

/// Fails: this operating system has no private networks.
///
/// # Errors
///
/// Always [`TunError::Missing`].
pub fn check_tun() -> Result<(), TunError> {
    Err(TunError::Missing)
}

/// Does nothing: this operating system needs no helper.
pub fn run_helper_if_asked() {}

/// Fails, unless this is root.
///
/// # Errors
///
/// [`RootlessError::Enter`](crate::RootlessError::Enter): there are no user namespaces here.
pub fn become_root_in_a_namespace() -> Result<crate::Owners, crate::RootlessError> {
    if rustix::process::geteuid().is_root() {
        return Ok(crate::Owners::All);
    }
    Err(crate::RootlessError::Enter(std::io::ErrorKind::Unsupported.into()))
}

/// Returns nothing: there are no such settings here.
pub fn settings_against_user_namespaces(_is_root: bool) -> Vec<&'static str> {
    Vec::new()
}
