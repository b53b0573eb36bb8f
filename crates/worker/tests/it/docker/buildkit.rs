//! Docker jobs that BuildKit does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use kiln_api::{DockerBuild, Dockerfile, Secret};
use kiln_testkit::{Access, Dockerd, Need, Registry, busybox_root, docker_with_buildkit, need};
use kiln_worker::docker::{Docker, DockerError, Settings};

use super::{Worker, job, or_skip, recipe};
use crate::{text, whole};

const NEEDS: [Need<'_>; 3] = [Need::Root, Need::Tool("dockerd", "docker.io"), Need::Buildkit];
/// What is in no image and no log.
const VALUE: &str = "open-sesame-7d1f";

impl Worker {
    /// Makes one whose client has BuildKit, with a root filesystem among its sources.
    fn with_buildkit(engine: &Dockerd) -> Self {
        let mut worker = Self::new(Some(engine));
        let mut path = docker_with_buildkit().unwrap().into_os_string();
        path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        worker.environment.push(("PATH".into(), path));
        fs::create_dir(worker.context.path().join("root")).unwrap();
        busybox_root(&worker.context.path().join("root")).unwrap();
        worker
    }

    /// Builds, which must succeed. Returns what is in the log.
    async fn builds(&self, job: &DockerBuild, secrets: &[Secret]) -> String {
        let built = self.build(job, secrets, &[]).await;
        let log = text(&self.log).await;
        assert_eq!(built.unwrap_or_else(|error| panic!("{}\n{log}", whole(&error))), "");
        log
    }
}

fn with_buildkit(mut job: DockerBuild) -> DockerBuild {
    job.buildkit = true;
    job
}

#[tokio::test]
async fn a_secret_is_for_the_commands_that_ask_for_it_and_in_no_image() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let Some(engine) = or_skip(Dockerd::start_apart()) else { return };
    let worker = Worker::with_buildkit(&engine);
    fs::write(worker.context.path().join("unwanted"), "").unwrap();
    fs::write(worker.context.path().join(".dockerignore"), "unwanted\n").unwrap();
    let given = [
        Secret { id: "key.1".into(), value: VALUE.into() },
        Secret { id: "other".into(), value: b"\0\xff\n".as_slice().into() },
    ];
    let mut job = with_buildkit(recipe(
        "FROM scratch\nCOPY root /\nCOPY . /src/\nARG WHO\nLABEL kiln=built\n\
         RUN --mount=type=secret,id=key.1 --mount=type=secret,id=other,target=/elsewhere,mode=0444 \
         od -An -tx1 /elsewhere; stat -c 'mode %a' /elsewhere; wc -c < /run/secrets/key.1\n\
         RUN echo \"hello $WHO\"; ls /run/secrets/; ls -A /src; cat /run/secrets/key.1 || echo gone\n",
    ));
    job.build_args = vec!["WHO=you, \"there\"".into()];
    let log = worker.builds(&job, &given).await;
    let lines: Vec<_> = log.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).map(str::trim).collect();
    let said = |line: &str| assert!(lines.contains(&line), "no `{line}` in:\n{log}");
    said("00 ff 0a");
    said("mode 444");
    said(&VALUE.len().to_string());
    said("hello you, \"there\"");
    said("gone");
    assert!(!lines.contains(&"unwanted"), "{log}");
    assert!(!log.contains(VALUE), "{log}");

    let image = worker.docker(&["images", "--quiet", "--filter", "label=kiln=built"]);
    let saved = worker.scratch.path().join("saved");
    worker.docker(&["save", "--output", saved.to_str().unwrap(), &image]);
    let holds = |what: &str| {
        let mut grep = Command::new("grep");
        grep.args(["--quiet", "--text", "--fixed-strings", "--", what]).arg(&saved).status().unwrap().success()
    };
    assert!(holds("hello $WHO"), "what is saved can be searched");
    assert!(!holds(VALUE));
}

#[tokio::test]
async fn an_image_of_buildkit_is_pushed_and_its_cache_is_pruned() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2], Need::Tool("docker-registry", "docker-registry"));
    let Some(engine) = or_skip(Dockerd::start()) else { return };
    let registry = Registry::start(Access { login: true, tls: false }).unwrap();
    let worker = Worker::with_buildkit(&engine);
    fs::write(
        worker.context.path().join("recipe"),
        "FROM scratch AS more\nCOPY root /\nFROM scratch\nCOPY --from=more /bin /\n",
    )
    .unwrap();
    let mut job = with_buildkit(job(Dockerfile::Path("recipe".into())));
    let repository = format!("{}/owner/name", registry.host());
    job.push_target = format!("{repository}:tag").into();
    job.push_user = Registry::USER.into();
    job.push_password = Registry::PASSWORD.into();
    let pushed = worker.build(&job, &[], std::slice::from_ref(&repository)).await;
    let log = text(&worker.log).await;
    let pushed = pushed.unwrap_or_else(|error| panic!("{}\n{log}", whole(&error)));
    assert!(pushed.starts_with(&format!("{repository}@sha256:")), "{pushed}");
    assert!(!log.contains(Registry::PASSWORD));

    let docker = Docker::new(Settings::new(worker.environment.clone(), worker.scratch.path().to_owned()));
    let cached = || worker.docker(&["system", "df", "--format", "{{.Type}} {{.Size}}"]);
    assert!(!cached().contains("Build Cache 0B"), "{}", cached());
    assert!(docker.prune(101.0, 0, &worker.log, &worker.cancel).await.unwrap());
    assert!(cached().contains("Build Cache 0B"), "{}", cached());
    assert_eq!(worker.docker(&["images", "--all", "--quiet"]), "");
}

#[tokio::test]
async fn a_build_of_buildkit_that_is_cancelled_ends() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let Some(engine) = or_skip(Dockerd::start_apart()) else { return };
    let worker = Worker::with_buildkit(&engine);
    // Nobody else sleeps that long.
    let seconds = format!("7{:09}", std::process::id());
    let job = with_buildkit(recipe(&format!("FROM scratch\nCOPY root /\nRUN echo it runs; sleep {seconds}\n")));
    let sleeps = || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|process| process.ok());
        let mut commands = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
        commands.any(|command| command == format!("sleep\0{seconds}\0").into_bytes())
    };
    let begun = async {
        while !sleeps() {
            tokio::task::yield_now().await;
        }
        worker.cancel.cancel();
    };
    let (result, ()) = tokio::join!(worker.build(&job, &[], &[]), begun);
    assert!(matches!(result, Err(DockerError::Cancelled)));
    // The engine's process goes too.
    while sleeps() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_recipe_that_buildkit_does_not_take_is_the_jobs_fault() {
    need!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let Some(engine) = or_skip(Dockerd::start()) else { return };
    let worker = Worker::with_buildkit(&engine);
    for wrong in ["FRM scratch\n", "FROM scratch\nCOPY nothing /\n"] {
        let error = worker.build(&with_buildkit(recipe(wrong)), &[], &[]).await.unwrap_err();
        assert!(matches!(error, DockerError::Build(_)) && error.is_the_jobs_fault(), "{}", whole(&error));
    }
}

#[tokio::test]
async fn a_docker_without_buildkit_is_the_workers_fault_and_builds_nothing() {
    let mut worker = Worker::new(None);
    // As newer clients do without their plugin.
    let docker = worker.context.path().join("docker");
    fs::write(&docker, "#!/bin/sh\n[ \"$DOCKER_BUILDKIT $*\" = '1 build --help' ] || echo \"$*\" > called\nexit 1\n")
        .unwrap();
    fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
    worker.environment.push(("PATH".into(), worker.context.path().into()));
    let error = worker.build(&with_buildkit(recipe("FROM scratch\n")), &[], &[]).await.unwrap_err();
    assert!(matches!(error, DockerError::NoBuildkit) && !error.is_the_jobs_fault(), "{}", whole(&error));
    assert_eq!(text(&worker.log).await, "");
}
