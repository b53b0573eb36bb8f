//! Makes room where the engine keeps its images.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::error::{At, unless_cancelled};
use super::{Docker, DockerError, plan};
use kiln_api::JobLog;

impl Docker {
    /// Returns how much of the engine's disk is free, in percent.
    ///
    /// # Errors
    ///
    /// The engine does not answer, or keeps its images on another machine.
    pub async fn free_percent(&self, log: &JobLog, cancel: &CancellationToken) -> Result<f64, DockerError> {
        let root = self.ask("DockerRootDir", log, cancel).await?;
        let found = rustix::fs::statvfs(Path::new(&root)).map_err(std::io::Error::from).at("measure", &root)?;
        #[expect(clippy::cast_precision_loss, reason = "it is a share")]
        let share = |blocks: u64| blocks as f64 / found.f_blocks.max(1) as f64;
        // Of what others than root can use, as df does it.
        Ok(100.0 * share(found.f_bavail))
    }

    /// Removes images, stopped containers and build caches older than `hours`, if less than `least` percent of the engine's disk
    /// are free. What a running container uses stays, so jobs go on. Returns whether it did something. What Docker says goes to `log`.
    ///
    /// # Errors
    ///
    /// As for [`free_percent`](Self::free_percent), and when Docker fails.
    pub async fn prune(
        &self,
        least: f64,
        hours: u64,
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<bool, DockerError> {
        if self.free_percent(log, cancel).await? >= least {
            return Ok(false);
        }
        let command = plan::prune(hours, &self.settings.environment);
        command.run(&mut &*log, cancel).await.map_err(unless_cancelled(DockerError::Engine))?;
        Ok(true)
    }
}
