//! Which sandbox: `--sandbox`, or `sandbox` under `[sandbox]`.

use std::sync::Arc;

use clap::ValueEnum;
use kiln_engine::Isolation;
use kiln_sandbox::{NativeSandbox, OciSandbox, Runtime, Sandbox};
use serde::Deserialize;

use crate::exit::Failure;
use crate::limits::Limits;
use crate::rootless;
use crate::settings::search_path;

/// What isolates steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Kiln itself
    #[default]
    Native,
    /// runc, the reference of OCI runtimes
    Runc,
    /// crun
    Crun,
    /// youki; nobody has tested this
    Youki,
}

impl Kind {
    /// Looks whether people can talk to what runs in it, for `wanted`, which needs that.
    pub(crate) fn check_talk(self, wanted: &'static str) -> Result<(), Failure> {
        match self {
            Self::Native => Ok(()),
            Self::Runc | Self::Crun | Self::Youki => Err(Failure::NoTalk { wanted }),
        }
    }

    /// Makes the sandbox, and looks whether it can keep the limits.
    pub(crate) fn open(
        self,
        limits: &Limits,
        isolation: &mut Isolation,
        tell: impl Fn(&str),
    ) -> Result<Arc<dyn Sandbox>, Failure> {
        const HELPER: &str = "/proc/self/exe";
        if let Some(reason) = rootless::single_owner() {
            tell(&format!("all files belong to root, and there are no other users: {reason}"));
        }
        if self != Self::Native && !rootless::is_root() {
            return Err(Failure::RuntimeNeedsRoot);
        }
        let runtime = match self {
            Self::Native => {
                let sandbox = NativeSandbox::new(HELPER)?;
                limits.check(isolation, &sandbox, tell)?;
                return Ok(Arc::new(sandbox));
            }
            Self::Runc => Runtime::Runc,
            Self::Crun => Runtime::Crun,
            Self::Youki => Runtime::Youki,
        };
        let sandbox = OciSandbox::new(HELPER, runtime, &search_path())?;
        sandbox.check(&isolation.seccomp)?;
        limits.check(isolation, sandbox.native(), tell)?;
        Ok(Arc::new(sandbox))
    }
}
