//! Pushes images.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use bstr::ByteSlice;
use kiln_api::DockerBuild;
use tokio_util::sync::CancellationToken;

use super::error::{At, unless_cancelled};
use super::plan::{self, Target};
use super::{Docker, DockerError};
use crate::command::CommandError;
use kiln_api::JobLog;

/// What a registry says that will not change its mind.
const FINAL: &[&str] = &[
    "denied",
    "unauthorized",
    "authentication required",
    "insufficient scope",
    "not authorized",
    "no basic auth credentials",
];

impl Docker {
    /// Pushes an image. Returns `REPOSITORY@sha256:…`.
    pub(super) async fn push(
        &self,
        image: &str,
        target: &Target,
        job: &DockerBuild,
        scratch: &Path,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<String, DockerError> {
        let environment = &self.settings.environment;
        let name = target.name();
        log.append(format!("Pushing {image} to {name}\n").as_bytes()).at("write", "the log")?;
        // The worker's own logins are for pulling; nobody pushes with them.
        let config = scratch.join("config");
        fs::create_dir(&config).at("make", &config)?;
        fs::set_permissions(&config, Permissions::from_mode(0o700)).at("make", &config)?;
        if !job.push_user.is_empty() {
            let command = plan::login(target, &job.push_user, &job.push_password, &config, environment);
            let user = job.push_user.to_str_lossy().into_owned();
            let failed = unless_cancelled(|source| DockerError::Login { user, source });
            // To standard output it praises itself, and warns that the password is in a file, which is gone soon.
            command
                .status_apart(&mut io::sink(), &mut &*log, cancel)
                .await
                .and_then(|status| command.succeeded(status))
                .map_err(failed)?;
        }
        let name_lock = self.name_lock(&name);
        let _pushing = tokio::select! {
            pushing = name_lock.lock() => pushing,
            () = cancel.cancelled() => return Err(DockerError::Cancelled),
        };
        let tag = plan::tag(image, target, environment);
        tag.run(&mut &*log, cancel).await.map_err(unless_cancelled(DockerError::Engine))?;
        self.try_to_push(target, &config, log, cancel).await?;
        let digests = plan::digests(image, environment).capture(&mut &*log, cancel).await;
        let digests = digests.map_err(unless_cancelled(DockerError::Engine))?;
        plan::digest_in(&target.repository, &digests)
            .ok_or_else(|| DockerError::NoDigest { repository: target.repository.clone() })
    }

    async fn try_to_push(
        &self,
        target: &Target,
        config: &Path,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<(), DockerError> {
        let command = plan::push(target, config, &self.settings.environment);
        let mut wait = self.settings.push_wait;
        let mut attempts = self.settings.push_attempts;
        loop {
            let mut said = Said { log, end: Vec::new() };
            let source = match command.run(&mut said, cancel).await {
                Ok(()) => return Ok(()),
                Err(CommandError::Cancelled) => return Err(DockerError::Cancelled),
                Err(source) => source,
            };
            attempts = attempts.saturating_sub(1);
            if attempts == 0 || said.is_final() || !matches!(source, CommandError::Failed { .. }) {
                return Err(DockerError::Push { target: target.name(), source });
            }
            let line = format!("The push failed; trying again in {}.\n", shown(wait));
            log.append(line.as_bytes()).at("write", "the log")?;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = cancel.cancelled() => return Err(DockerError::Cancelled),
            }
            wait *= 2;
        }
    }

    fn name_lock(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut pushing = self.pushing.lock().unwrap_or_else(PoisonError::into_inner);
        pushing.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(pushing.entry(name.to_owned()).or_default())
    }
}

fn shown(wait: std::time::Duration) -> String {
    format!("{} s", wait.as_secs())
}

/// Passes on what a push says, and keeps its end.
struct Said<'a> {
    log: &'a JobLog,
    end: Vec<u8>,
}

impl Said<'_> {
    const KEPT: usize = 4 << 10;

    fn is_final(&self) -> bool {
        let said = self.end.to_ascii_lowercase();
        FINAL.iter().any(|words| said.contains_str(words))
    }
}

impl Write for Said<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.log.append(bytes)?;
        self.end.extend_from_slice(bytes);
        if self.end.len() > 2 * Self::KEPT {
            self.end.drain(..self.end.len() - Self::KEPT);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
