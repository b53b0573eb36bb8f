//! `kiln job`: jobs that were submitted, and what following one is.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_api::{Job, JobState, LogTail, Submission};
use tokio_util::sync::CancellationToken;

use super::{cancel_on_signals, print};
use crate::args::{self, JobWhat};
use crate::exit::Failure;
use crate::peer::{Peer, PeerError, on_one_thread};
use crate::personality::{Voice, quoted};

/// How long giving up a job may take.
const GRACE: Duration = Duration::from_secs(3);

pub(super) fn run(arguments: &args::JobOf) -> Result<(), Failure> {
    let cap = arguments.connect.connect.as_deref();
    follow_until_cancelled(async |cancel| {
        let mut peer = Peer::open(cap).await?;
        let mut follower = Follower::default();
        loop {
            let ended = or_cancelled(cancel, act(&peer, &arguments.what, &mut follower)).await;
            match ended {
                Err(Failure::Peer(PeerError::Lost(_)))
                    if matches!(arguments.what, JobWhat::Log(_) | JobWhat::Wait(_)) =>
                {
                    peer = or_cancelled(cancel, async { Ok(Peer::open_again(cap).await?) }).await?;
                }
                ended => {
                    peer.close().await;
                    return ended;
                }
            }
        }
    })
}

async fn act(peer: &Peer, what: &JobWhat, follower: &mut Follower) -> Result<(), Failure> {
    let submission: Submission = peer.service();
    match what {
        JobWhat::List => {
            let jobs = peer.ask("", submission.list()).await.map_err(PeerError::or_keeps_no_jobs)?;
            let mut text = String::new();
            for job in jobs {
                let (state, more) = state(&job.state);
                let age = age(job.submitted);
                text.push_str(&format!("{}  {state:<9}  {:>8}  {}  {more}\n", job.key, age, job.pool));
            }
            print(text)
        }
        JobWhat::Log(job) => {
            let found = peer.ask("", submission.find(job.id)).await.map_err(PeerError::or_keeps_no_jobs)?;
            follower.log(peer, &found.0).await?.map_err(|said| PeerError::Log(said).into())
        }
        JobWhat::Wait(job) => {
            let found = peer.ask("", submission.find(job.id)).await.map_err(PeerError::or_keeps_no_jobs)?;
            result(peer.or_lost(found.0.result()).await?)
        }
        JobWhat::Cancel(job) => {
            Ok(peer.ask("", submission.cancel(job.id)).await.map_err(PeerError::or_keeps_no_jobs)?)
        }
    }
}

/// Returns a word for where a job is, and what there is to add.
fn state(state: &JobState) -> (&'static str, String) {
    let line = |text: &bstr::BString| text.to_string().escape_default().to_string();
    match state {
        JobState::Waiting => ("waiting", String::new()),
        JobState::Running(worker) => ("running", format!("on {worker}")),
        JobState::Lost(worker) => ("running", format!("on {worker}, which is not connected")),
        JobState::Succeeded(output) if output.is_empty() => ("succeeded", String::new()),
        JobState::Succeeded(output) => ("succeeded", format!("with {}", line(output))),
        JobState::Failed(why) => ("failed", line(why)),
        JobState::Abandoned(why) => ("abandoned", line(why)),
    }
}

/// Returns how long ago a time was, in seconds since 1970.
fn age(since: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = Duration::from_secs(u64::try_from(since).unwrap_or_default());
    let seconds = now.saturating_sub(then).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Follows a job: prints its log and its result. It remembers how much it has printed.
#[derive(Default)]
pub(super) struct Follower {
    position: i64,
}

impl Follower {
    /// Prints the rest of the log as it comes, and then the result.
    pub(super) async fn follow(&mut self, peer: &Peer, job: Job, voice: Voice) -> Result<(), Failure> {
        let ended = job.result();
        if voice == Voice::OCluster {
            print("Tailing log:\n")?;
        }
        if let Err(error) = self.log(peer, &job).await? {
            // A job that never ran has no log, and says why in its result.
            return Err(match (voice, peer.or_lost(ended).await?) {
                (Voice::Kiln, Err(said)) => PeerError::of_job(said),
                _ => PeerError::Log(error),
            }
            .into());
        }
        result(peer.or_lost(ended).await?)
    }

    /// Prints the rest of the log as it comes. Returns why it breaks off.
    async fn log(&mut self, peer: &Peer, job: &Job) -> Result<Result<(), kiln_api::Error>, Failure> {
        let mut tail = LogTail::at(job.clone(), self.position);
        loop {
            match peer.or_lost(tail.next()).await? {
                Ok(part) if part.is_empty() => return Ok(Ok(())),
                Ok(part) => print(&part)?,
                Err(error) => return Ok(Err(error)),
            }
            self.position = tail.position();
        }
    }
}

/// Prints what a job returned, or fails as it did.
fn result(output: Result<bstr::BString, kiln_api::Error>) -> Result<(), Failure> {
    let output = output.map_err(PeerError::Job)?;
    match output.is_empty() {
        true => Ok(()),
        false => print(format!("Result: {}\n", quoted(&output))),
    }
}

/// Waits for `work`, or for Ctrl-C.
pub(super) async fn or_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::Cancelled),
        done = work => done,
    }
}

/// Runs what speaks with a scheduler, which is told of Ctrl-C.
pub(super) fn follow_until_cancelled(
    work: impl AsyncFnOnce(&CancellationToken) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    on_one_thread(async {
        tokio::select! {
            result = work(&cancel) => result,
            // A host that does not answer is waited for no longer. Once there is a connection, it is closed by who has it.
            () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => Err(Failure::Cancelled),
        }
    })?
}
