//! `kiln submit`: a job for a scheduler, followed to its end.

use std::io::{BufRead as _, Read as _};
use std::path::Path;

use bstr::BString;
use kiln_api::{Action, DockerBuild, Dockerfile, JobDescription, LogTail, Secret, Submission};

use super::{build, cancel_on_signals, print};
use crate::args::{self, SubmitWhat};
use crate::exit::Failure;
use crate::peer::{Peer, PeerError, on_one_thread};
use crate::personality::{Voice, quoted};
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
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    on_one_thread(async {
        let work = async {
            let peer = Peer::open(arguments.connect.connect.as_deref()).await?;
            let result = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(Failure::Cancelled),
                result = follow(&peer, job, &description, voice) => result,
            };
            // With it, the job is given up, if it has not ended.
            peer.close().await;
            result
        };
        tokio::select! {
            result = work => result,
            // A host that does not answer is waited for no longer. Once there is a connection, it is closed above.
            () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => Err(Failure::Cancelled),
        }
    })?
}

/// How long giving up a job may take.
const GRACE: std::time::Duration = std::time::Duration::from_secs(3);

/// Submits a job, prints its log and then its result.
async fn follow(peer: &Peer, job: &args::Job, description: &JobDescription, voice: Voice) -> Result<(), Failure> {
    let submission: Submission = peer.service();
    let ticket = submission
        .submit(job.pool.as_bytes(), description, job.urgent)
        .map_err(|said| PeerError::Refused { call: "", said })?;
    let job = ticket.job();
    let result = job.result();
    if voice == Voice::OCluster {
        print("Tailing log:\n")?;
    }
    let mut tail = LogTail::new(job.clone());
    let log = loop {
        match peer.or_lost(tail.next()).await? {
            Ok(part) if part.is_empty() => break Ok(()),
            Ok(part) => print(&part)?,
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = log {
        // A job that never ran has no log, and says why in its result.
        return Err(match (voice, peer.or_lost(result).await?) {
            (Voice::Kiln, Err(said)) => PeerError::of_job(said),
            _ => PeerError::Log(error),
        }
        .into());
    }
    let output = peer.or_lost(result).await?.map_err(PeerError::Job)?;
    match output.is_empty() {
        true => Ok(()),
        false => print(format!("Result: {}\n", quoted(&output))),
    }
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
