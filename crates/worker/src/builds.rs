//! Builds by a spec, done by the engine.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bstr::BString;
use kiln_api::Secret;
use kiln_engine::{BuildError, Engine, Event, Events, Fault, LogText, Request, SecretBytes};
use kiln_image::{Reference, ReferenceError};
use kiln_spec::{ParseError, Spec};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use kiln_api::JobLog;

/// What builds by a spec are done with.
#[derive(Debug)]
pub struct Builds {
    engine: Engine,
    /// Specs may start from what is on this machine.
    allow_local: bool,
}

/// Why a build made nothing.
#[derive(Debug, Error)]
pub enum BuildFailure {
    /// The text is no spec.
    #[error("the spec is not right")]
    Spec(#[from] ParseError),
    /// The text after `from` is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Whoever submits a job is not to read the worker's files.
    #[error("`from {0}` is on the worker's own machine, which this worker does not allow")]
    Local(BString),
    /// The engine's reason.
    #[error(transparent)]
    Build(#[from] Arc<BuildError>),
}

impl BuildFailure {
    /// Whether the job is wrong, and not the worker.
    pub fn is_the_jobs_fault(&self) -> bool {
        match self {
            Self::Spec(_) | Self::Reference(_) | Self::Local(_) => true,
            Self::Build(error) => matches!(error.fault(), Fault::Build | Fault::Usage),
        }
    }
}

impl Builds {
    /// Builds with `engine`. With `allow_local`, specs may start from files and images of this machine, which whoever may submit jobs
    /// can read then.
    pub fn new(engine: Engine, allow_local: bool) -> Self {
        Self { engine, allow_local }
    }

    /// Builds a spec with the files in `source`, and returns the id of the result.
    pub(crate) async fn build(
        &self,
        spec: &[u8],
        source: &Path,
        secrets: &[Secret],
        log: &JobLog,
        cancel: &CancellationToken,
    ) -> Result<BString, BuildFailure> {
        let spec = kiln_spec::parse(spec)?;
        if !self.allow_local {
            refuse_local(&spec)?;
        }
        let secrets: HashMap<_, _> =
            secrets.iter().map(|secret| (secret.id.clone(), SecretBytes::new(secret.value.to_vec()))).collect();
        let request = Request {
            spec,
            // Nothing in a spec may be relative to a directory of ours.
            spec_dir: source.to_owned(),
            source: source.to_owned(),
            secrets,
            no_cache: false,
            pull: false,
            target: None,
            failures: None,
        };
        let told = Arc::new(Told { log: log.clone(), text: Mutex::new(LogText::coloured()) });
        let built = self.engine.build(request, told, cancel).await?;
        Ok(built.snapshot.id().to_string().into())
    }
}

fn refuse_local(spec: &Spec) -> Result<(), BuildFailure> {
    if Reference::parse(&spec.from, Path::new("/"))?.is_on_this_machine() {
        return Err(BuildFailure::Local(spec.from.clone()));
    }
    spec.builds.iter().try_for_each(|build| refuse_local(&build.spec))
}

/// Tells a build in a job's log, as OBuilder does.
struct Told {
    log: JobLog,
    text: Mutex<LogText>,
}

impl Events for Told {
    fn event(&self, event: Event) {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written is said by whoever reads it; the build goes on.
        if let Err(error) = text.show(event, &mut &self.log) {
            tracing::warn!(%error, "cannot write a job's log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_spec_starts_from_nothing_of_this_machine_in_no_stage() {
        for (from, is_refused) in [
            ("debian:12", false),
            ("debootstrap:bookworm", false),
            ("scratch", false),
            ("rootfs:/etc.tar", true),
            ("dir:/", true),
            ("oci:layout", true),
            ("oci-archive:a.tar", true),
            ("docker-archive:a.tar", true),
            ("docker-daemon:private", true),
            ("containers-storage:private", true),
        ] {
            for spec in [format!("((from {from}))"), format!("((build x ((from {from}))) (from scratch))")] {
                let spec = kiln_spec::parse(spec.as_bytes()).unwrap();
                assert_eq!(matches!(refuse_local(&spec), Err(BuildFailure::Local(_))), is_refused, "{from}");
            }
        }
    }
}
