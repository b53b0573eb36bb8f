//! Docker jobs with a real engine and a real registry.

mod buildkit;

use std::fs;
use std::process::Command;
use std::time::Duration;

use kiln_api::JobLog;
use kiln_api::{DockerBuild, Dockerfile, Secret};
use kiln_testkit::{Access, Dockerd, Need, Registry, busybox_root, need};
use kiln_worker::command::Environment;
use kiln_worker::docker::{Docker, DockerError, Settings};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{environment, text, whole};

const DOCKER: [Need<'_>; 3] = [Need::Root, Need::Tool("dockerd", "docker.io"), Need::Tool("docker", "docker.io")];

/// Sources, and a worker with an engine of its own or none.
struct Worker {
    context: TempDir,
    scratch: TempDir,
    log: JobLog,
    environment: Environment,
    cancel: CancellationToken,
}

impl Worker {
    fn new(engine: Option<&Dockerd>) -> Self {
        let [context, scratch] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let log = JobLog::new(scratch.path(), 1 << 20).unwrap();
        let mut environment = environment();
        environment.push(("HOME".into(), context.path().into()));
        match engine {
            Some(engine) => environment.extend(engine.environment()),
            None => environment.push(("DOCKER_HOST".into(), "unix:///nonexistent".into())),
        }
        Self { context, scratch, log, environment, cancel: CancellationToken::new() }
    }

    async fn build(&self, job: &DockerBuild, secrets: &[Secret], allow_push: &[String]) -> Result<String, DockerError> {
        let mut settings = Settings::new(self.environment.clone(), self.scratch.path().to_owned());
        settings.allow_push = allow_push.to_vec();
        settings.push_attempts = 3;
        settings.push_wait = Duration::from_millis(1);
        let result = Docker::new(settings).build(job, secrets, self.context.path(), &self.log, &self.cancel).await;
        assert_eq!(fs::read_dir(self.scratch.path()).unwrap().count(), 0, "nothing is left");
        result
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("docker");
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value))).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

fn job(dockerfile: Dockerfile) -> DockerBuild {
    DockerBuild {
        dockerfile,
        push_target: "".into(),
        push_user: "".into(),
        push_password: "".into(),
        build_args: Vec::new(),
        squash: false,
        buildkit: false,
        include_git: false,
    }
}

/// A recipe in the job itself.
fn recipe(text: &str) -> DockerBuild {
    job(Dockerfile::Contents(text.into()))
}

fn engine() -> Option<Dockerd> {
    or_skip(Dockerd::start())
}

fn or_skip(started: Result<Dockerd, String>) -> Option<Dockerd> {
    started.inspect_err(|said| println!("SKIPPED: dockerd does not start here: {said}")).ok()
}

#[tokio::test]
async fn an_image_is_built_and_pushed() {
    need!(DOCKER[0], DOCKER[1], DOCKER[2], Need::Tool("docker-registry", "docker-registry"));
    let Some(engine) = engine() else { return };
    let registry = Registry::start(Access { login: true, tls: false }).unwrap();
    let worker = Worker::new(Some(&engine));
    fs::create_dir(worker.context.path().join("root")).unwrap();
    busybox_root(&worker.context.path().join("root")).unwrap();
    fs::create_dir(worker.context.path().join("docker")).unwrap();
    let text_of_it =
        "FROM scratch\nCOPY root /\nARG WHO\nARG PATHLESS\nRUN echo \"hello $WHO\" > /greeting; cat /greeting\n";
    fs::write(worker.context.path().join("docker/file"), text_of_it).unwrap();
    let mut job = job(Dockerfile::Path("docker/file".into()));
    job.build_args = vec!["WHO=you, \"there\"".into(), "PATHLESS".into()];
    let said = worker.build(&job, &[], &[]).await;
    let log = text(&worker.log).await;
    assert_eq!(said.unwrap_or_else(|error| panic!("{}\n{log}", whole(&error))), "");
    assert!(log.contains("hello you, \"there\"\n"), "{log}");

    let repository = format!("{}/owner/name", registry.host());
    job.push_target = format!("{repository}:tag").into();
    job.push_user = Registry::USER.into();
    job.push_password = Registry::PASSWORD.into();
    let pushed = worker.build(&job, &[], std::slice::from_ref(&repository)).await;
    let log = text(&worker.log).await;
    let pushed = pushed.unwrap_or_else(|error| panic!("{}\n{log}", whole(&error)));
    assert!(pushed.starts_with(&format!("{repository}@sha256:")), "{pushed}");
    assert!(!log.contains(Registry::PASSWORD));
    assert!(!worker.context.path().join(".docker/config.json").exists(), "the login is not kept");
    // It is there, under the tag too.
    let inspected = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}", "--creds"])
        .arg(format!("{}:{}", Registry::USER, Registry::PASSWORD))
        .arg(format!("docker://{repository}:tag"))
        .output();
    if let Ok(inspected) = inspected {
        assert!(pushed.ends_with(String::from_utf8(inspected.stdout).unwrap().trim()));
    }

    job.push_password = "wrong".into();
    let error = worker.build(&job, &[], std::slice::from_ref(&repository)).await.unwrap_err();
    assert!(matches!(error, DockerError::Login { .. }) && error.is_the_jobs_fault(), "{}", whole(&error));
    // Without a login the registry says no once and for all.
    job.push_user = "".into();
    let error = worker.build(&job, &[], &[repository]).await.unwrap_err();
    assert!(matches!(error, DockerError::Push { .. }), "{}", whole(&error));
    assert!(!text(&worker.log).await.contains("trying again"));
}

#[tokio::test]
async fn a_push_is_tried_again() {
    need!(DOCKER[0], DOCKER[1], DOCKER[2]);
    let Some(engine) = engine() else { return };
    let worker = Worker::new(Some(&engine));
    fs::write(worker.context.path().join("a"), "a").unwrap();
    let mut job = recipe("FROM scratch\nCOPY a /\n");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    job.push_target = format!("{nobody}/x").into();
    let error = worker.build(&job, &[], &[format!("{nobody}/x")]).await.unwrap_err();
    assert!(matches!(error, DockerError::Push { .. }) && !error.is_the_jobs_fault(), "{}", whole(&error));
    assert_eq!(text(&worker.log).await.matches("trying again").count(), 2);
}

#[tokio::test]
async fn what_a_job_may_not_have_is_refused_before_anything_is_built() {
    need!(DOCKER[2]);
    let worker = Worker::new(None);
    let mut pushing = recipe("FROM scratch\n");
    pushing.push_target = "owner/name:tag".into();
    let error = worker.build(&pushing, &[], &["owner/other".to_owned(), "owner".to_owned()]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "To allow pushing to this repository, start the worker with --allow-push \"owner/name\""
    );
    let secret = [Secret { id: "key".into(), value: "hush".into() }];
    let error = worker.build(&recipe("FROM scratch\n"), &secret, &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "secrets need BuildKit: submit the job with BuildKit on");
    std::os::unix::fs::symlink("/etc/passwd", worker.context.path().join("Dockerfile")).unwrap();
    let error = worker.build(&job(Dockerfile::Path("Dockerfile".into())), &[], &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot use `Dockerfile` of the sources: a link leads out of them");
    std::os::unix::fs::symlink("/dev/zero", worker.context.path().join(".dockerignore")).unwrap();
    let error = worker.build(&recipe("FROM scratch\n"), &[], &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot use `.dockerignore` of the sources: a link leads out of them");
    assert_eq!(text(&worker.log).await, "");
}

#[tokio::test]
async fn an_engine_without_squash_is_named_and_a_wrong_recipe_is_the_jobs_fault() {
    need!(DOCKER[0], DOCKER[1], DOCKER[2]);
    let Some(engine) = engine() else { return };
    let worker = Worker::new(Some(&engine));
    let mut squashed = recipe("FROM scratch\nLABEL a=b\n");
    squashed.squash = true;
    assert!(matches!(worker.build(&squashed, &[], &[]).await, Err(DockerError::NoSquash)));
    let error = worker.build(&recipe("FRM scratch\n"), &[], &[]).await.unwrap_err();
    assert!(matches!(error, DockerError::Build(_)) && error.is_the_jobs_fault(), "{}", whole(&error));
}

#[tokio::test]
async fn an_engine_that_squashes_makes_one_layer() {
    need!(DOCKER[0], DOCKER[1], DOCKER[2]);
    let Some(engine) = or_skip(Dockerd::start_with("{\"experimental\": true}")) else { return };
    let worker = Worker::new(Some(&engine));
    fs::write(worker.context.path().join("a"), "a").unwrap();
    let mut squashed = recipe("FROM scratch\nCOPY a /a\nCOPY a /b\nLABEL kiln=squashed\n");
    squashed.squash = true;
    let built = worker.build(&squashed, &[], &[]).await;
    let log = text(&worker.log).await;
    built.unwrap_or_else(|error| panic!("{}\n{log}", whole(&error)));
    let images = worker.docker(&["images", "--quiet", "--filter", "label=kiln=squashed"]);
    // The image before squashing is there too, without a name, like this one.
    let layers = |image| worker.docker(&["image", "inspect", "--format", "{{len .RootFS.Layers}}", image]);
    let mut layers: Vec<_> = images.lines().map(layers).collect();
    layers.sort();
    assert_eq!(layers, ["1", "2"]);
}

#[tokio::test]
async fn a_cancelled_build_ends() {
    need!(DOCKER[0], DOCKER[1], DOCKER[2]);
    let Some(engine) = engine() else { return };
    let worker = Worker::new(Some(&engine));
    fs::create_dir(worker.context.path().join("root")).unwrap();
    busybox_root(&worker.context.path().join("root")).unwrap();
    let job = recipe("FROM scratch\nCOPY root /\nRUN echo it runs; sleep 1000\n");
    let begun = async {
        let (mut seen, mut start) = (String::new(), 0);
        while !seen.contains("\nit runs\n") {
            let (bytes, next) = worker.log.read(start).await.unwrap();
            seen.push_str(&String::from_utf8_lossy(&bytes));
            start = i64::try_from(next).unwrap();
        }
        worker.cancel.cancel();
    };
    let (result, ()) = tokio::join!(worker.build(&job, &[], &[]), begun);
    assert!(matches!(result, Err(DockerError::Cancelled)));
    // The engine's process goes too.
    while !worker.docker(&["ps", "--quiet"]).is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn pruning_waits_until_it_is_needed() {
    need!(DOCKER[0], DOCKER[1], DOCKER[2]);
    let Some(engine) = engine() else { return };
    let worker = Worker::new(Some(&engine));
    worker.build(&recipe("FROM scratch\nLABEL a=b\n"), &[], &[]).await.unwrap();
    let docker = Docker::new(Settings::new(worker.environment.clone(), worker.scratch.path().to_owned()));
    let free = docker.free_percent(&worker.log, &worker.cancel).await.unwrap();
    assert!(free > 0.0 && free <= 100.0);
    let images = || worker.docker(&["images", "--all", "--quiet"]).lines().count();
    assert!(!docker.prune(0.0, 0, &worker.log, &worker.cancel).await.unwrap());
    assert_eq!(images(), 1);
    // What is young stays.
    assert!(docker.prune(101.0, 24, &worker.log, &worker.cancel).await.unwrap());
    assert_eq!(images(), 1);
    assert!(docker.prune(101.0, 0, &worker.log, &worker.cancel).await.unwrap());
    assert_eq!(images(), 0);
}
