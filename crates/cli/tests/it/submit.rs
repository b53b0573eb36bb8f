//! `kiln submit`.

use std::cell::Cell;
use std::fs;
use std::rc::Rc;

use bstr::BString;
use kiln_api::{
    Action, Address, Answer, Capability, CapabilityUri, DockerBuild, Dockerfile, Error, Job, JobDescription, JobServer,
    KeptSubmission, Key, Limits, Link, Listener, LogChunk, Secret, Security, ServiceId, Services, Submission,
    SubmissionServer, Ticket, TicketServer, answer, cap_file,
};
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Script, without_ports};
use crate::env::TestEnv;

#[test]
fn a_job_that_fails_is_1() {
    let cluster = Cluster::start();
    let _worker = cluster.worker("w1", |_| Script::Fails("Build failed"));
    let ran = cluster.submit("((from x))").end().fails_with(1);
    insta::assert_snapshot!(format!("{}{}", ran.stdout, ran.told()), @"
    Building
    Job failed: it is so
    error: the job failed: Build failed
    ");
}

#[test]
fn all_that_is_asked_for_reaches_the_worker() {
    let cluster = Cluster::start();
    let worker = cluster.worker("w1", |_| Script::Succeeds(""));
    let env = &cluster.env;
    env.write("Dockerfile", "FROM x\n");
    env.write("password", "letmein\nnot this");
    env.write("token", "s3cret");
    let mut command = env.kiln(&[
        "submit",
        "docker",
        "--pool=linux",
        "--local-dockerfile=Dockerfile",
        "--cache-hint=hint",
        "--urgent",
        "--push-to=org/image:tag",
        "--push-user=me",
        "--push-password=password",
        "--build-arg=A=1",
        "--build-arg=B=2",
        "--squash",
        "--buildkit",
        "--include-git",
        "--secret=b:token",
        "--secret=a=env:TOKEN",
        "https://example.org/r.git",
        "c1",
        "c2",
    ]);
    let ran = env.ran(command.env("KILN_CAP", "caps/submit-alice.cap").env("TOKEN", "other")).ok();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("Building\nJob succeeded\n", ""));
    let secret = |id: &str, value: &str| Secret { id: id.into(), value: value.into() };
    let expected = JobDescription {
        action: Action::DockerBuild(DockerBuild {
            dockerfile: Dockerfile::Contents("FROM x\n".into()),
            push_target: "org/image:tag".into(),
            push_user: "me".into(),
            push_password: "letmein".into(),
            build_args: vec!["A=1".into(), "B=2".into()],
            squash: true,
            buildkit: true,
            include_git: true,
        }),
        cache_hint: "hint".into(),
        repository: "https://example.org/r.git".into(),
        commits: vec!["c1".into(), "c2".into()],
        secrets: vec![secret("a", "other"), secret("b", "s3cret")],
    };
    assert_eq!(worker.jobs.recv().unwrap(), expected);

    let custom = ["submit", "custom", "-c", "caps/submit-alice.cap", "--pool=linux", "--kind=dance"];
    env.run(&custom).ok();
    let Action::Custom { kind, .. } = worker.jobs.recv().unwrap().action else { panic!("another action") };
    assert_eq!(kind, "dance");
    let docker = ["submit", "docker", "-c", "caps/submit-alice.cap", "--pool=linux"];
    env.run(&docker).ok();
    let Action::DockerBuild(build) = worker.jobs.recv().unwrap().action else { panic!("another action") };
    assert_eq!(build.dockerfile, Dockerfile::Path("Dockerfile".into()));
}

#[test]
fn ctrl_c_cancels_a_job_that_runs_and_one_that_waits() {
    let cluster = Cluster::start();
    let waiting = cluster.submit("((from x))");
    // It is in the queue once the pool shows it.
    while !cluster.admin(&["show", "linux"]).ok().stdout.contains("backlog) [alice") {}
    waiting.signal(Signal::INT);
    assert_eq!(waiting.end().fails_with(130).told(), "cancelled\n");

    let worker = cluster.worker("w1", |_| Script::Runs);
    let running = cluster.submit("((from x))");
    worker.jobs.recv().unwrap();
    running.signal(Signal::INT);
    running.end().fails_with(130);
    worker.dropped.recv().unwrap();
    let shown = cluster.admin(&["show", "linux"]).ok().stdout;
    assert!(shown.contains("(0 running)"), "{shown}");
}

#[test]
fn a_lost_scheduler_is_waited_for_until_ctrl_c() {
    let cluster = Cluster::start();
    let worker = cluster.worker("w1", |_| Script::Runs);
    let mut running = cluster.submit("((from x))");
    worker.jobs.recv().unwrap();
    cluster.scheduler.signal(Signal::KILL);
    running.wait_for("is lost; the job goes on");
    running.signal(Signal::INT);
    running.end().fails_with(130);
    let ran = cluster.admin(&["show"]).fails_with(3);
    insta::assert_snapshot!(without_ports(&ran.told()), @"
    error: cannot connect to 127.0.0.1:[PORT]
      caused by: Connection refused (os error 111)
    ");
}

#[test]
fn what_cannot_be_submitted_is_said() {
    let cluster = Cluster::start();
    let env = &cluster.env;
    env.write("job.spec", "((from x))");
    env.write("bad.spec", "((from x) (rnu y))");
    env.write("other.cap", "capnp://nonsense");
    let wrong_key = fs::read_to_string(env.at("caps/submit-alice.cap")).unwrap();
    let (head, tail) = wrong_key.split_once('@').unwrap();
    env.write("wrong-key.cap", format!("{}{}@{tail}", &head[..head.len() - 43], "A".repeat(43)));
    let (host, _) = tail.rsplit_once('/').unwrap();
    env.write("unknown.cap", format!("{head}@{host}/AAAA"));
    let alice = "--connect=caps/submit-alice.cap";
    let mut told = String::new();
    for (code, arguments) in [
        (2, &["--pool=linux", "--local-file=job.spec"][..]),
        (2, &["--pool=linux", "--local-file=job.spec", "-c", "missing.cap"]),
        (2, &["--pool=linux", "--local-file=job.spec", "-c", "other.cap"]),
        (3, &["--pool=linux", "--local-file=job.spec", "-c", "wrong-key.cap"]),
        (2, &["--pool=linux", "--local-file=job.spec", "-c", "unknown.cap"]),
        (2, &["--pool=linux", "--local-file=job.spec", "-c", "caps/admin.cap"]),
        (2, &["--pool=nowhere", "--local-file=bad.spec", alice]),
        (2, &["--pool=linux", "--local-file=missing.spec", alice]),
    ] {
        let ran = env.run(&[&["submit", "obuilder"], arguments].concat()).fails_with(code);
        told.push_str(&format!("$ {}\n{}", arguments.join(" "), without_ports(&ran.told())));
    }
    insta::assert_snapshot!(told, @r#"
    $ --pool=linux --local-file=job.spec
    error: no scheduler is named; give its capability file with `--connect`, or set KILN_CAP
    $ --pool=linux --local-file=job.spec -c missing.cap
    error: cannot read missing.cap
      caused by: No such file or directory (os error 2)
    $ --pool=linux --local-file=job.spec -c other.cap
    error: other.cap holds no capability
      caused by: a capability URI says how its host is known: `capnp://sha-256:KEY@…` or `capnp://insecure@…`
    $ --pool=linux --local-file=job.spec -c wrong-key.cap
    error: 127.0.0.1:[PORT] does not have the key that the capability names

    hint: get the capability file again from whoever runs the scheduler, if its key was changed
    $ --pool=linux --local-file=job.spec -c unknown.cap
    error: the scheduler refuses: Unknown persistent service ID

    hint: the scheduler does not know this capability; perhaps its client was removed
    $ --pool=linux --local-file=job.spec -c caps/admin.cap
    error: the scheduler refuses: Method not implemented.

    hint: `admin` needs admin.cap, and `submit` what `kiln admin add-client` printed
    $ --pool=nowhere --local-file=bad.spec --connect=caps/submit-alice.cap
    note: bad.spec:1:12: unknown operation `rnu`; a worker of Kiln refuses this
    error: the scheduler refuses: Pool ID "nowhere" not one of {linux, windows}
    $ --pool=linux --local-file=missing.spec --connect=caps/submit-alice.cap
    error: cannot read missing.spec
      caused by: No such file or directory (os error 2)
    "#);
}

/// A scheduler that says to each second submission that it has ended, as one does that another has taken over from, and leaves connections open.
#[derive(Clone, Default)]
struct Ended(Rc<Cell<bool>>);

impl Services for Ended {
    fn restore(&self, _: &ServiceId, _: &Link) -> Answer<Capability> {
        answer(Ok(Submission::serve(self.clone()).into()))
    }
}

impl SubmissionServer for Ended {
    fn submit(&self, _: BString, _: JobDescription, _: bool) -> Ticket {
        Ticket::serve(self.clone())
    }

    fn save(&self) -> Answer<CapabilityUri> {
        answer(Err(Error::unimplemented()))
    }

    fn submit_kept(&self, _: KeptSubmission) -> Answer<(Ticket, bool)> {
        let has_said_it = self.0.replace(!self.0.get());
        answer(match has_said_it {
            true => Ok((Ticket::serve(self.clone()), true)),
            false => Err(Error::disconnected("this scheduler has ended")),
        })
    }
}

impl TicketServer for Ended {
    fn job(&self) -> Job {
        Job::serve(self.clone())
    }

    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }

    fn stored(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

impl JobServer for Ended {
    fn log(&self, start: i64) -> Answer<LogChunk> {
        answer(Ok(LogChunk { bytes: Vec::new(), next: start }))
    }

    fn result(&self) -> Answer<BString> {
        answer(Ok("done".into()))
    }

    fn cancel(&self) -> Answer<()> {
        answer(Ok(()))
    }
}

#[test]
fn who_is_told_that_a_scheduler_has_ended_asks_again() {
    let env = TestEnv::without_base();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (key, _) = Key::generate().unwrap();
        let address = Address::Unix(env.at("socket"));
        let identity = kiln_api::Identity::Key(key.fingerprint());
        let listener = Listener::bind(&address, Security::Key(Box::new(key)), Limits::default()).await.unwrap();
        let uri = CapabilityUri { identity, addresses: address.into(), service: ServiceId::random() };
        cap_file::save(&env.at("submit.cap"), &uri).unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::task::spawn_local(listener.serve(Ended::default(), stop.clone()));
        for (detach, prints) in [(None, "Result: \"done\"\n"), (Some("--detach"), "\n")] {
            let submit = ["submit", "custom", "-c", "submit.cap", "--pool=linux", "--kind=x"];
            let client = env.spawn(env.kiln(&submit).args(detach));
            let ran = tokio::task::spawn_blocking(move || client.end().ok()).await.unwrap();
            assert!(ran.stdout.ends_with(prints), "{}", ran.stdout);
        }
        stop.cancel();
        serving.await.unwrap();
    });
}
