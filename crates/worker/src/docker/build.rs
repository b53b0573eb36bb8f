//! Builds images.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bstr::ByteSlice;
use kiln_api::{DockerBuild, Dockerfile, Secret};
use tokio_util::sync::CancellationToken;

use super::DockerError;
use super::error::{At, unless_cancelled};
use super::plan::{self, Paths, Target};
use crate::command::Environment;
use crate::secrets::SecretFiles;
use kiln_api::JobLog;

/// An image's id is not longer.
const ID_BYTES: u64 = 1 << 10;

/// How docker jobs are done.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What `docker` gets of the worker's environment: `PATH`; `DOCKER_HOST` and `HOME` say which engine and whose logins are used.
    pub environment: Environment,
    /// A directory for files that go with their job, among them secrets.
    pub directory: PathBuf,
    /// The repositories that jobs may push to, without tags. None unless told: who pushes under a name that the worker's
    /// own machine trusts gets to run there.
    pub allow_push: Vec<String>,
    /// How often a push is tried. The waits between grow from `push_wait` twofold.
    pub push_attempts: u32,
    /// The first wait between attempts.
    pub push_wait: Duration,
}

impl Settings {
    /// Returns those of a worker that pushes nowhere.
    pub fn new(environment: Environment, directory: PathBuf) -> Self {
        Self { environment, directory, allow_push: Vec::new(), push_attempts: 5, push_wait: Duration::from_secs(2) }
    }
}

/// The Docker engine of this worker.
#[derive(Debug)]
pub struct Docker {
    pub(super) settings: Settings,
    /// Held by the job that pushes to a name: the name is one image's at a time.
    pub(super) pushing: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Docker {
    /// Makes one; nothing is asked of the engine yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, pushing: Mutex::default() }
    }

    /// Builds the image of `job` from the sources in `context`, and pushes it if the job says so.
    ///
    /// Returns `REPOSITORY@sha256:…` of what was pushed, or else nothing. What `docker` prints goes to `log`.
    ///
    /// # Errors
    ///
    /// [`DockerError`]. Where the job may not push, nothing is built.
    pub async fn build(
        &self,
        job: &DockerBuild,
        secrets: &[Secret],
        context: &Path,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<String, DockerError> {
        let target = match job.push_target.as_slice() {
            b"" => None,
            target => Some(self.allowed(target)?),
        };
        let files = &self.settings.directory;
        let scratch = tempfile::tempdir_in(files).at("make a directory in", files)?;
        let context = context.canonicalize().at("find", context)?;
        let dockerfile = match &job.dockerfile {
            // Not in the sources, which may have a link of that name.
            Dockerfile::Contents(text) => {
                let path = scratch.path().join("Dockerfile");
                fs::write(&path, text).at("write", &path)?;
                path
            }
            Dockerfile::Path(path) => inside(&context, &path.to_path_lossy())?,
        };
        // Docker reads it on this machine, and follows links.
        if context.join(".dockerignore").symlink_metadata().is_ok() {
            inside(&context, Path::new(".dockerignore"))?;
        }
        let secrets = SecretFiles::write(scratch.path(), secrets)?;
        let given: Vec<_> = secrets.files().map(|(id, path)| (id.to_owned(), path)).collect();
        let image_id = scratch.path().join("image-id");
        let paths = Paths { dockerfile: &dockerfile, context: &context, image_id: &image_id, secrets: &given };
        let command = plan::build(job, &paths, &self.settings.environment)?;
        if job.buildkit && !self.has_buildkit(cancel).await? {
            return Err(DockerError::NoBuildkit);
        }
        if job.squash && self.ask("ExperimentalBuild", log, cancel).await? != "true" {
            return Err(DockerError::NoSquash);
        }
        command.run(&mut &*log, cancel).await.map_err(unless_cancelled(DockerError::Build))?;
        drop(secrets);
        let image = read_id(&image_id).at("read", image_id)?;
        match target {
            Some(target) => self.push(&image, &target, job, scratch.path(), log, cancel).await,
            None => Ok(String::new()),
        }
    }

    fn allowed(&self, target: &[u8]) -> Result<Target, DockerError> {
        let target = Target::parse(target)?;
        if self.settings.allow_push.contains(&target.repository) {
            return Ok(target);
        }
        Err(DockerError::PushNotAllowed { repository: target.repository })
    }

    async fn has_buildkit(&self, cancel: &CancellationToken) -> Result<bool, DockerError> {
        let command = plan::has_buildkit(&self.settings.environment);
        let status = command.status(&mut io::sink(), cancel).await.map_err(unless_cancelled(DockerError::Engine))?;
        Ok(status.success())
    }

    /// Returns one thing about the engine, as text.
    pub(super) async fn ask(
        &self,
        what: &str,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<String, DockerError> {
        let command = plan::info(what, &self.settings.environment);
        let said = command.capture(&mut &*log, cancel).await.map_err(unless_cancelled(DockerError::Engine))?;
        Ok(said.to_str_lossy().trim().to_owned())
    }
}

fn read_id(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(ID_BYTES).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Returns the file `path` of `context`, which is in it whatever links there are.
fn inside(context: &Path, path: &Path) -> Result<PathBuf, DockerError> {
    let refuse = |reason| Err(DockerError::Path { path: path.display().to_string(), reason });
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    // Docker reads `-` from standard input.
    if path.as_os_str().is_empty() || path == Path::new("-") || !path.components().all(plain) {
        return refuse("it is no path below them");
    }
    match context.join(path).canonicalize() {
        Ok(found) if !found.starts_with(context) => refuse("a link leads out of them"),
        Ok(found) if !found.is_file() => refuse("it is no file"),
        Ok(found) => Ok(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => refuse("it is not there"),
        Err(_) => refuse("it cannot be found"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_recipe_is_a_file_of_the_sources() {
        let dir = tempfile::tempdir().unwrap();
        let context = dir.path().canonicalize().unwrap().join("context");
        fs::create_dir_all(context.join("docker/sub")).unwrap();
        for file in ["context/Dockerfile", "context/docker/Dockerfile", "secret"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        symlink("docker/Dockerfile", context.join("link")).unwrap();
        symlink("../secret", context.join("out")).unwrap();
        symlink("..", context.join("up")).unwrap();
        symlink("loop", context.join("loop")).unwrap();
        let found = |path: &str| inside(&context, Path::new(path));
        assert_eq!(found("./docker/Dockerfile").unwrap(), context.join("docker/Dockerfile"));
        assert_eq!(found("link").unwrap(), context.join("docker/Dockerfile"));
        for bad in
            ["", "-", "/etc/passwd", "../secret", "docker/../../secret", "out", "up/secret", "docker", "none", "loop"]
        {
            assert!(found(bad).unwrap_err().is_the_jobs_fault(), "{bad}");
        }
    }
}
