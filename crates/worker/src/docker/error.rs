//! Why a docker job failed.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::command::CommandError;
use crate::secrets::SecretError;

/// Why a docker job failed. Its log has what `docker` said.
#[derive(Debug, Error)]
pub enum DockerError {
    /// The job is no longer wanted.
    #[error("cancelled")]
    Cancelled,
    /// The recipe, or what goes with it, is not in the sources.
    #[error("cannot use `{path}` of the sources: {reason}")]
    Path {
        /// What the job has.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Only BuildKit keeps secrets out of images.
    #[error("secrets need BuildKit: submit the job with BuildKit on")]
    SecretsWithoutBuildkit,
    /// BuildKit has no such option.
    #[error("BuildKit does not squash: submit the job with one of both")]
    SquashWithBuildkit,
    /// Newer clients have it only with a plugin.
    #[error("the `docker` of this worker has no BuildKit: install its plugin buildx")]
    NoBuildkit,
    /// The engine does not have it.
    #[error("the Docker engine of this worker does not squash: set \"experimental\": true in its daemon.json")]
    NoSquash,
    /// The job's secrets cannot be given to Docker.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// What to push to is no name.
    #[error("`{target}` is nothing to push to: write REPOSITORY:TAG")]
    Target {
        /// What the job has.
        target: String,
    },
    /// The worker does not push there.
    #[error("To allow pushing to this repository, start the worker with --allow-push {repository:?}")]
    PushNotAllowed {
        /// The repository.
        repository: String,
    },
    /// `docker build` failed: mostly the recipe's own fault.
    #[error("docker build failed")]
    Build(#[source] CommandError),
    /// The registry does not know the user.
    #[error("cannot log in as `{user}`")]
    Login {
        /// The user.
        user: String,
        /// How it ended.
        #[source]
        source: CommandError,
    },
    /// The registry did not take the image, several times.
    #[error("cannot push to `{target}`")]
    Push {
        /// Where to.
        target: String,
        /// How it ended.
        #[source]
        source: CommandError,
    },
    /// Docker does not tell what it pushed.
    #[error("docker does not tell the digest of what it pushed to `{repository}`")]
    NoDigest {
        /// Where to.
        repository: String,
    },
    /// Docker does something else not.
    #[error("the Docker engine of this worker does not work")]
    Engine(#[source] CommandError),
    /// A file or directory of ours.
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

impl DockerError {
    /// Whether another worker would fail as well: the job asks for what cannot be, or its recipe is wrong.
    pub fn is_the_jobs_fault(&self) -> bool {
        match self {
            Self::Path { .. }
            | Self::SecretsWithoutBuildkit
            | Self::SquashWithBuildkit
            | Self::Target { .. }
            | Self::PushNotAllowed { .. }
            | Self::Login { .. } => true,
            Self::Secret(error) => error.is_the_jobs_fault(),
            Self::Build(error) => matches!(error, CommandError::Failed { .. }),
            Self::Cancelled
            | Self::NoBuildkit
            | Self::NoSquash
            | Self::Push { .. }
            | Self::NoDigest { .. }
            | Self::Engine(_)
            | Self::File { .. } => false,
        }
    }
}

/// Adds to an error what was done to which file.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, DockerError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, DockerError> {
        self.map_err(|source| DockerError::File { action, path: path.into(), source })
    }
}

/// Makes an error of a command's, unless it was cancelled.
pub(super) fn unless_cancelled(
    make: impl FnOnce(CommandError) -> DockerError,
) -> impl FnOnce(CommandError) -> DockerError {
    |error| match error {
        CommandError::Cancelled => DockerError::Cancelled,
        error => make(error),
    }
}
