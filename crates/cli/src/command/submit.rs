//! `kiln submit`: a job for a scheduler, followed to its end.

use std::io::{BufRead as _, Read as _};
use std::path::Path;

use bstr::BString;
use kiln_api::{
    Action, DockerBuild, Dockerfile, ErrorKind, JobDescription, JobKey, KeptSubmission, Secret, Submission,
};
use tokio_util::sync::CancellationToken;

use super::job::{Follower, follow_until_cancelled, or_cancelled};
use super::{build, print};
use crate::args::{self, SubmitWhat};
use crate::exit::Failure;
use crate::peer::{Peer, PeerError};
use crate::personality::Voice;
use crate::render::tell;

/// What is sent in one message; the scheduler takes no more either.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// A message without anything in it: one segment of one word, a null pointer.
const EMPTY_MESSAGE: [u8; 16] = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn run(arguments: &args::Submit, voice: Voice) -> Result<(), Failure> {
    let (job, action) = match &arguments.what {
        SubmitWhat::Obuilder(what) => (&what.job, Action::OBuilder(spec(&what.local_file, voice)?)),
        SubmitWhat::Docker(what) => (&what.job, Action::DockerBuild(docker(what)?)),
        SubmitWhat::Custom(what) => {
            let payload = what.payload.as_deref().map(read).transpose()?;
            let payload = payload.map_or_else(|| EMPTY_MESSAGE.to_vec(), Vec::from);
            (&what.job, Action::Custom { kind: what.kind.clone().into(), payload })
        }
    };
    let description = describe(job, action)?;
    let cap = arguments.connect.connect.as_deref();
    follow_until_cancelled(async |cancel| match (voice, job.detach) {
        (Voice::OCluster, _) => once(cap, job, &description, cancel).await,
        (_, true) => detach(cap, job, description, cancel).await,
        (_, false) => keep(cap, job, description, cancel).await,
    })
}

/// Submits a job to be done without us, through as many connections as it takes, and prints its id.
async fn detach(
    cap: Option<&Path>,
    job: &args::Job,
    description: JobDescription,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let kept = kept(job, description, true);
    let mut peer = Peer::open(cap).await?;
    loop {
        let stored = async {
            let (ticket, is_new) = peer
                .service::<Submission>()
                .submit_kept(&kept)
                .map_err(|said| PeerError::Refused { call: "", said })?;
            // Whether it was there says nothing: an attempt before may have got through.
            peer.ask("", is_new).await.map_err(PeerError::or_keeps_no_jobs)?;
            Ok(peer.ask("", ticket.stored()).await?)
        };
        match or_cancelled(cancel, stored).await {
            Err(Failure::Peer(PeerError::Lost(_))) => {
                peer = or_cancelled(cancel, async { Ok(Peer::open_again(cap).await?) }).await?;
            }
            ended => {
                peer.close().await;
                ended?;
                return print(format!("{}\n", kept.key));
            }
        }
    }
}

/// Submits a job that outlives connections, and follows it through as many of them as it takes.
async fn keep(
    cap: Option<&Path>,
    job: &args::Job,
    description: JobDescription,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let kept = kept(job, description, false);
    let mut peer = Peer::open(cap).await?;
    let mut follower = Follower::default();
    let mut is_first = true;
    loop {
        let submission: Submission = peer.service();
        let attempt = async {
            let (ticket, is_new) =
                submission.submit_kept(&kept).map_err(|said| PeerError::Refused { call: "", said })?;
            match peer.ask("", is_new).await {
                Ok(is_new) if is_new && !is_first => {
                    tell("note: the scheduler does not know the job any more; it starts again");
                    follower = Follower::default();
                }
                Ok(_) => {}
                Err(PeerError::Refused { said, .. }) if said.kind == ErrorKind::Unimplemented && is_first => {
                    let submitted = submission.submit(&kept.pool, &kept.description, kept.urgent);
                    let ticket = submitted.map_err(|said| PeerError::Refused { call: "", said })?;
                    return Follower::default().follow(&peer, ticket.job(), Voice::Kiln).await;
                }
                Err(error) => return Err(error.into()),
            }
            // Whoever follows holds the ticket: without it, the job is given up.
            let followed = follower.follow(&peer, ticket.job(), Voice::Kiln).await;
            drop(ticket);
            followed
        };
        let ended = or_cancelled(cancel, attempt).await;
        match ended {
            Err(Failure::Peer(PeerError::Lost(address))) => {
                tell(format_args!("note: the connection to the scheduler at {address} is lost; the job goes on"));
                is_first = false;
                peer = or_cancelled(cancel, async { Ok(Peer::open_again(cap).await?) }).await?;
            }
            ended => {
                // With it, the job is given up, if it has not ended.
                peer.close().await;
                return ended;
            }
        }
    }
}

/// Submits a job as OCluster's clients do: it ends with the connection.
async fn once(
    cap: Option<&Path>,
    job: &args::Job,
    description: &JobDescription,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let peer = Peer::open(cap).await?;
    let submission: Submission = peer.service();
    let submitted = submission.submit(job.pool.as_bytes(), description, job.urgent);
    let ticket = submitted.map_err(|said| PeerError::Refused { call: "", said })?;
    let ended = or_cancelled(cancel, Follower::default().follow(&peer, ticket.job(), Voice::OCluster)).await;
    drop(ticket);
    peer.close().await;
    ended
}

fn kept(job: &args::Job, description: JobDescription, detached: bool) -> KeptSubmission {
    let pool = job.pool.as_str().into();
    KeptSubmission { key: JobKey::random(), pool, description, urgent: job.urgent, detached }
}

fn describe(job: &args::Job, action: Action) -> Result<JobDescription, Failure> {
    let values = build::secrets(&job.secrets)?;
    let mut secrets: Vec<_> =
        values.into_iter().map(|(id, value)| Secret { id, value: value.expose().into() }).collect();
    secrets.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(JobDescription {
        action,
        cache_hint: job.cache_hint.clone().into(),
        repository: job.repository.clone().unwrap_or_default().into(),
        commits: job.commits.iter().cloned().map(BString::from).collect(),
        secrets,
    })
}

/// Reads a spec. What we cannot read, the pool's workers may: so it is only said.
fn spec(file: &Path, voice: Voice) -> Result<BString, Failure> {
    let text = read(file)?;
    if voice == Voice::Kiln
        && let Err(error) = kiln_spec::parse(&text)
    {
        let place = format_args!("{}:{}:{}", file.display(), error.line, error.column);
        tell(format_args!("note: {place}: {}; a worker of Kiln refuses this", error.kind));
    }
    Ok(text)
}

fn docker(what: &args::SubmitDocker) -> Result<DockerBuild, Failure> {
    let dockerfile = match (&what.local_dockerfile, &what.context_dockerfile) {
        (Some(file), _) => Dockerfile::Contents(read(file)?),
        (None, path) => Dockerfile::Path(path.as_deref().unwrap_or("Dockerfile").into()),
    };
    let password = match &what.push_password {
        None => BString::default(),
        Some(file) => {
            let whole = read(file)?;
            let mut line = Vec::new();
            let first = (&whole[..]).read_until(b'\n', &mut line);
            first.map_err(|source| Failure::Read { path: file.clone(), source })?;
            line.strip_suffix(b"\n").unwrap_or(&line).into()
        }
    };
    Ok(DockerBuild {
        dockerfile,
        push_target: what.push_to.clone().unwrap_or_default().into(),
        push_user: what.push_user.clone().unwrap_or_default().into(),
        push_password: password,
        build_args: what.build_args.iter().cloned().map(BString::from).collect(),
        squash: what.squash,
        buildkit: what.buildkit,
        include_git: what.include_git,
    })
}

/// Reads a file that is sent.
fn read(file: &Path) -> Result<BString, Failure> {
    let failed = |source| Failure::Read { path: file.to_owned(), source };
    let mut content = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut content))
        .map_err(failed)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::TooLarge { path: file.to_owned(), most: super::size(MAX_FILE_BYTES) });
    }
    Ok(content.into())
}
