//! What a worker can do: one kind of job after the other.

use std::path::PathBuf;

use bstr::{BString, ByteSlice as _};
use kiln_api::{Action, JobDescription};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::builds::{BuildFailure, Builds};
use crate::command::Environment;
use crate::context::{ContextError, Contexts};
use crate::custom::{CustomError, CustomKind};
use crate::docker::{Docker, DockerError};
use kiln_api::JobLog;

/// Does jobs. A kind of job that a worker has no hands for fails.
#[derive(Debug)]
pub struct Hands {
    /// Where sources come from.
    pub contexts: Contexts,
    /// Builds by a spec.
    pub builds: Option<Builds>,
    /// Docker builds.
    pub docker: Option<Docker>,
    /// Jobs of other kinds.
    pub custom: Vec<CustomKind>,
    /// A directory for files that go with a job.
    pub scratch: PathBuf,
    /// What programs get of the worker's environment.
    pub environment: Environment,
}

/// Why a job made nothing.
#[derive(Debug, Error)]
pub(crate) enum JobError {
    #[error("cancelled")]
    Cancelled,
    #[error("this worker does no {0}")]
    NotHere(String),
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error(transparent)]
    Build(#[from] BuildFailure),
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Custom(#[from] CustomError),
}

impl JobError {
    /// Whether the job is wrong, and not the worker.
    pub(crate) fn is_the_jobs_fault(&self) -> bool {
        match self {
            Self::Cancelled => false,
            Self::NotHere(_) => true,
            Self::Context(error) => error.is_the_jobs_fault(),
            Self::Build(error) => error.is_the_jobs_fault(),
            Self::Docker(error) => error.is_the_jobs_fault(),
            Self::Custom(error) => error.is_the_jobs_fault(),
        }
    }
}

impl Hands {
    /// Does a job, and returns what it made. What it prints goes to `log`.
    pub(crate) async fn perform(
        &self,
        description: JobDescription,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<BString, JobError> {
        let include_git = matches!(&description.action, Action::DockerBuild(build) if build.include_git);
        let JobDescription { action, repository, commits, secrets, .. } = &description;
        let context = self.contexts.fetch(repository, commits, include_git, log, cancel).await;
        let context = context.map_err(|error| match cancel.is_cancelled() {
            true => JobError::Cancelled,
            false => error.into(),
        })?;
        let source = context.path();
        let made = match action {
            Action::OBuilder(spec) => match &self.builds {
                Some(builds) => builds.build(spec, source, secrets, log, cancel).await.map_err(JobError::from),
                None => Err(JobError::NotHere("builds by a spec".to_owned())),
            },
            Action::DockerBuild(build) => match &self.docker {
                Some(docker) => {
                    let pushed = docker.build(build, secrets, source, log, cancel).await;
                    pushed.map(BString::from).map_err(JobError::from)
                }
                None => Err(JobError::NotHere("Docker builds".to_owned())),
            },
            Action::Custom { kind, payload } => match self.custom.iter().find(|custom| custom.name() == kind) {
                Some(custom) => {
                    let (scratch, environment) = (&self.scratch, &self.environment);
                    let made = custom.run(payload, secrets, source, scratch, environment, log, cancel).await;
                    made.map_err(JobError::from)
                }
                None => Err(JobError::NotHere(format!("jobs of kind `{}`", kind.to_str_lossy()))),
            },
        };
        if let Err(error) = context.remove().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot remove the sources of a job");
        }
        match made {
            Err(_) if cancel.is_cancelled() => Err(JobError::Cancelled),
            made => made,
        }
    }
}
