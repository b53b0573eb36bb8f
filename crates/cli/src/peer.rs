//! A scheduler that a command is connected to, and what goes wrong with it.

use std::path::Path;
use std::time::{Duration, Instant};

use bstr::BString;
use kiln_api::cap_file::{self, CapFileError};
use kiln_api::{Addresses, CapabilityUri, ConnectError, Connection, Error, ErrorKind, Key, Limits, Reference, Retries};
use thiserror::Error;

use crate::exit::Failure;

/// How long the end of a connection may take to be noticed, once calls say that something was lost.
const NOTICE: Duration = Duration::from_secs(1);

/// How long to try to reach a scheduler again, and how long to wait before each try: at first, and at last.
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long one of several schedulers may take until it serves in the place of another: twice what that takes.
const TAKE_OVER: Duration = Duration::from_secs(15);

/// Why a scheduler did not do what it was asked to.
#[derive(Debug, Error)]
pub(crate) enum PeerError {
    #[error("no scheduler is named; give its capability file with `--connect`, or set KILN_CAP")]
    NoCapability,
    #[error(transparent)]
    Capability(#[from] CapFileError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot make a key for the connection")]
    Key(#[from] kiln_api::KeyError),
    #[error("the connection to the scheduler at {0} is lost")]
    Lost(Addresses),
    /// `call` is the method, as OCluster's programs name it; empty where they do not.
    #[error("the scheduler refuses: {said}")]
    Refused { call: &'static str, said: Error },
    #[error("worker {name} is not updated: {said}")]
    NotUpdated { name: BString, said: Error },
    #[error("the job's log breaks off: {0}")]
    Log(Error),
    #[error("the job failed: {0}")]
    Job(Error),
    /// OCluster's words before the candidates.
    #[error("which worker? Give its name{hint}; there are {}", candidates.join(", "))]
    WhichWorker { hint: &'static str, words: &'static str, candidates: Vec<String> },
    #[error("no worker of the pool is connected")]
    NoWorkers { words: &'static str },
    #[error("the pool has no worker {0}")]
    UnknownWorker(String),
    #[error(
        "no client of a scheduler that keeps jobs has this capability: it is another right, or the scheduler is not Kiln's"
    )]
    KeepsNoJobs,
    #[error("the command for {0} of {1} workers failed")]
    Commands(usize, usize),
}

/// OCluster's text of a job for a pool that does not exist begins so.
const UNKNOWN_POOL: &str = "Pool ID ";

/// OCluster's text of a capability that a scheduler does not know.
const UNKNOWN_CAPABILITY: &str = "Unknown persistent service ID";

impl PeerError {
    /// Returns why there is no result of a job: it failed, or never was one.
    pub(crate) fn of_job(said: Error) -> Self {
        let is_capability = said.kind == ErrorKind::Unimplemented || said.message == UNKNOWN_CAPABILITY;
        match is_capability || said.message.starts_with(UNKNOWN_POOL) {
            true => Self::Refused { call: "", said },
            false => Self::Job(said),
        }
    }

    /// Returns this, or that the scheduler is of the kind that cannot.
    pub(crate) fn or_keeps_no_jobs(self) -> Self {
        match self {
            Self::Refused { said, .. } if said.kind == ErrorKind::Unimplemented => Self::KeepsNoJobs,
            other => other,
        }
    }

    /// Whether the caller asked for what there is not, rather than something failing.
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::NoCapability | Self::Capability(CapFileError::Read { .. } | CapFileError::Content { .. }) => true,
            Self::Refused { said, .. } => matches!(said.kind, ErrorKind::Failed | ErrorKind::Unimplemented),
            Self::WhichWorker { .. } | Self::UnknownWorker(_) | Self::KeepsNoJobs => true,
            _ => false,
        }
    }

    /// Whether it is what was to be done that failed, and nothing of ours.
    pub(crate) fn is_jobs(&self) -> bool {
        match self {
            Self::Job(said) => said.kind == ErrorKind::Failed,
            Self::Commands(..) => true,
            _ => false,
        }
    }

    /// Returns what the user could do next.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Refused { said, .. } if said.message == UNKNOWN_CAPABILITY => {
                Some("the scheduler does not know this capability; perhaps its client was removed")
            }
            Self::Refused { said, .. } if said.kind == ErrorKind::Unimplemented => {
                Some("`admin` needs admin.cap, and `submit` what `kiln admin add-client` printed")
            }
            Self::Lost(_) => {
                Some("a job that was submitted to a scheduler of OCluster's is cancelled with its client's connection")
            }
            Self::Connect(error) if error.is_wrong_key() => {
                Some("get the capability file again from whoever runs the scheduler, if its key was changed")
            }
            _ => None,
        }
    }
}

/// A scheduler that we are connected to.
pub(crate) struct Peer {
    connection: Connection,
    uri: CapabilityUri,
}

impl Peer {
    /// Connects to the scheduler of a capability file. Where there are several, one may be about to take over: that is waited for.
    pub(crate) async fn open(file: Option<&Path>) -> Result<Self, PeerError> {
        let begun = Instant::now();
        let mut retries = Retries::new(PAUSE.0, PAUSE.1);
        loop {
            match Self::try_open(file).await {
                Err(PeerError::Connect(error @ ConnectError::NoneOf(_)))
                    if !error.is_wrong_key() && begun.elapsed() < TAKE_OVER =>
                {
                    tokio::time::sleep(retries.pause()).await;
                }
                done => return done,
            }
        }
    }

    /// Connects once. A key of its own each time: OCaml's schedulers close one of two connections of the same key.
    async fn try_open(file: Option<&Path>) -> Result<Self, PeerError> {
        let uri = cap_file::load(file.ok_or(PeerError::NoCapability)?)?;
        let (key, _) = Key::generate()?;
        let connection = Connection::open(&uri, &key, Limits::default()).await?;
        Ok(Self { connection, uri })
    }

    /// Connects again to a scheduler that was lost. It may be about to start.
    pub(crate) async fn open_again(file: Option<&Path>) -> Result<Self, PeerError> {
        let begun = Instant::now();
        let mut retries = Retries::new(PAUSE.0, PAUSE.1);
        loop {
            tokio::time::sleep(retries.pause()).await;
            match Self::try_open(file).await {
                Err(PeerError::Connect(error)) if !error.is_wrong_key() => {
                    if begun.elapsed() > PATIENCE {
                        return Err(error.into());
                    }
                }
                done => return done,
            }
        }
    }

    /// Returns what the capability is of, without waiting.
    pub(crate) fn service<R: Reference>(&self) -> R {
        self.connection.bootstrap(&self.uri.service)
    }

    /// Waits for the answer to a call, `call` for OCluster, of something that is the scheduler's own.
    pub(crate) async fn ask<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, PeerError> {
        self.or_lost(answer).await?.map_err(|said| match said.kind {
            // It has ended, or another has taken over, and its connections are about to end.
            ErrorKind::Disconnected => PeerError::Lost(self.uri.addresses.clone()),
            _ => PeerError::Refused { call, said },
        })
    }

    /// Waits for the answer to a call, which may tell of others' connections that were lost.
    pub(crate) async fn or_lost<T>(
        &self,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<Result<T, Error>, PeerError> {
        let answer = answer.await;
        if matches!(&answer, Err(error) if error.kind == ErrorKind::Disconnected)
            // Calls learn of a lost connection a little before the connection does.
            && tokio::time::timeout(NOTICE, self.connection.closed()).await.is_ok()
        {
            return Err(PeerError::Lost(self.uri.addresses.clone()));
        }
        Ok(answer)
    }

    /// Ends the connection, after what was said is sent.
    pub(crate) async fn close(self) {
        self.connection.close().await;
    }
}

/// Runs what uses Cap'n Proto, whose objects stay on one thread.
pub(crate) fn on_one_thread<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, future))
}
