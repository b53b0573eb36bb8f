//! Jobs of kinds that the worker's owner made up.

use kiln_api::JobLog;
use kiln_api::Secret;
use kiln_worker::custom::{CustomError, CustomKind};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{environment, text};

struct Job {
    context: TempDir,
    scratch: TempDir,
    log: JobLog,
    cancel: CancellationToken,
}

impl Job {
    fn new() -> Self {
        let [context, scratch] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let log = JobLog::new(scratch.path(), 1 << 20).unwrap();
        Self { context, scratch, log, cancel: CancellationToken::new() }
    }

    async fn run(&self, command: &str, payload: &[u8]) -> Result<String, CustomError> {
        let kind = CustomKind::parse(&format!("test={command}")).unwrap();
        let secrets = [Secret { id: "key".into(), value: "hush".into() }];
        let (context, scratch) = (self.context.path(), self.scratch.path());
        let result = kind.run(payload, &secrets, context, scratch, &environment(), &self.log, &self.cancel).await;
        assert_eq!(std::fs::read_dir(scratch).unwrap().count(), 0, "nothing is left");
        result.map(|result| result.to_string())
    }
}

#[tokio::test]
async fn a_command_gets_payload_sources_and_secrets_and_gives_a_result() {
    let job = Job::new();
    std::fs::write(job.context.path().join("source"), "text").unwrap();
    let command = "cat; ls; cat $KILN_SECRETS/key; echo; printf 'done %s' $KILN_KIND > $KILN_RESULT";
    assert_eq!(job.run(command, b"payload\n").await.unwrap(), "done test");
    assert_eq!(text(&job.log).await, "payload\nsource\nhush\n");
    assert_eq!(job.run("true", b"").await.unwrap(), "");
}

#[tokio::test]
async fn a_command_that_fails_is_the_jobs_fault() {
    let job = Job::new();
    let error = job.run("exit 3", b"").await.unwrap_err();
    assert!(error.is_the_jobs_fault());
    assert_eq!(crate::whole(&error), "the command for jobs of kind `test` failed: `exit 3` failed: exit status: 3");
    let error = job.run("head -c 70000 /dev/zero > $KILN_RESULT", b"").await.unwrap_err();
    assert!(matches!(error, CustomError::Long { .. }));
    job.cancel.cancel();
    assert!(matches!(job.run("true", b"").await, Err(CustomError::Cancelled)));
}

#[test]
fn a_kind_has_a_name_and_a_command() {
    let kind = CustomKind::parse("nix-build = nix build --file - A=b").unwrap();
    assert_eq!(kind.name(), "nix-build");
    for bad in ["", "kind", "=command", "kind=", " = "] {
        assert!(CustomKind::parse(bad).is_none(), "{bad}");
    }
}
