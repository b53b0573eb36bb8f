//! Jobs of kinds that only this worker knows: each is a command of whoever runs the worker.
//!
//! `KIND=COMMAND` has a job of kind KIND run `sh -c COMMAND`, with
//!
//! * the sources as working directory,
//! * the payload, a Cap'n Proto message, on standard input,
//! * `$KILN_KIND` the kind,
//! * `$KILN_SECRETS` a directory with a file for each secret of the job, named by its id,
//! * `$KILN_RESULT` the name of a file that is not there yet. What the command writes to it, up to 64 KiB, is the job's result.
//!
//! What it prints is the job's log. Exit status 0 is success. It ends with everything that it started when the job is cancelled. It is
//! not sandboxed: it has the rights of the worker.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bstr::{BStr, BString};
use kiln_api::Secret;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::command::{Command, CommandError, Environment};
use crate::secrets::{SecretError, SecretFiles};
use kiln_api::JobLog;

/// How long a result may be. It is one text in a message of the wire.
const RESULT_BYTES: u64 = 64 << 10;

/// Why a custom job failed.
#[derive(Debug, Error)]
pub enum CustomError {
    /// The job is no longer wanted.
    #[error("cancelled")]
    Cancelled,
    /// The job's secrets cannot be files.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The command failed, or did not run.
    #[error("the command for jobs of kind `{kind}` failed")]
    Command {
        /// The kind.
        kind: BString,
        /// How it ended.
        #[source]
        source: CommandError,
    },
    /// The result is none.
    #[error("the result of the command for jobs of kind `{kind}` is longer than {RESULT_BYTES} bytes")]
    Long {
        /// The kind.
        kind: BString,
    },
    /// A file of ours.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl CustomError {
    /// Whether the job is wrong, and not the worker: its command says so by its status.
    pub fn is_the_jobs_fault(&self) -> bool {
        match self {
            Self::Secret(error) => error.is_the_jobs_fault(),
            Self::Command { source, .. } => matches!(source, CommandError::Failed { .. }),
            Self::Long { .. } => true,
            Self::Cancelled | Self::File { .. } => false,
        }
    }
}

/// A kind of jobs, and what does them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CustomKind {
    kind: BString,
    command: String,
}

impl CustomKind {
    /// Reads `KIND=COMMAND`. Returns `None` if one of both is missing.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, command) = text.split_once('=')?;
        let (kind, command) = (kind.trim(), command.trim());
        (!kind.is_empty() && !command.is_empty()).then(|| Self { kind: kind.into(), command: command.to_owned() })
    }

    /// Returns the kind's name.
    pub fn name(&self) -> &BStr {
        self.kind.as_ref()
    }

    /// Does a job of this kind; `scratch` is a directory for files that go with it. Returns its result, or nothing if there is none.
    ///
    /// # Errors
    ///
    /// [`CustomError`].
    #[expect(clippy::too_many_arguments, reason = "they are the parts of a job, and what every job gets")]
    pub async fn run(
        &self,
        payload: &[u8],
        secrets: &[Secret],
        context: &Path,
        scratch: &Path,
        environment: &Environment,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<BString, CustomError> {
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| CustomError::File { action, path, source }
        };
        // The command has another directory, so its paths must be whole.
        let scratch = scratch.canonicalize().map_err(at("find", scratch))?;
        let directory = tempfile::tempdir_in(&scratch).map_err(at("make a directory in", &scratch))?;
        let secrets = SecretFiles::write(directory.path(), secrets)?;
        let result = directory.path().join("result");
        let kind = std::str::from_utf8(&self.kind).expect("it was parsed from text");
        let command = Command::new("sh", environment)
            .named(&*self.command)
            .args(["-c", &*self.command])
            .env("KILN_KIND", kind)
            .env("KILN_SECRETS", secrets.path())
            .env("KILN_RESULT", &result)
            .directory(context)
            .input(payload);
        command.run(&mut &*log, cancel).await.map_err(|error| match error {
            CommandError::Cancelled => CustomError::Cancelled,
            source => CustomError::Command { kind: self.kind.clone(), source },
        })?;
        let mut text = Vec::new();
        match File::open(&result).and_then(|file| file.take(RESULT_BYTES + 1).read_to_end(&mut text)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("read", &result)(error)),
            _ if text.len() as u64 > RESULT_BYTES => Err(CustomError::Long { kind: self.kind.clone() }),
            _ => Ok(text.into()),
        }
    }
}
