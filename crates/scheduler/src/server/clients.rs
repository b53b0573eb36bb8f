//! What clients get: the right to submit jobs.

use std::cell::Cell;
use std::rc::Rc;

use bstr::{BStr, BString};
use kiln_api::{
    Action, Answer, CapabilityUri, DockerBuild, Dockerfile, Error, ErrorKind, Job, JobDescription, JobInfo, JobKey,
    JobState, KeptSubmission, Link, Reference as _, ServiceId, SubmissionServer, Ticket, answer,
};
use tokio::task::spawn_local;

use super::jobs::{NewJob, NewKept, now};
use super::pool::LivePool;
use super::record::{Log, Record, Stage};
use super::scheduler::Shared;
use super::tickets::ticket;
use crate::state::{Change, KeptJob, Outcome, Secrets, StateError};

/// How much the descriptions of a client's waiting jobs may take, in bytes. Each is taken to be [`LEAST`] at least.
const MAX_WAITING: usize = 256 << 20;
const LEAST: usize = 1 << 10;

/// The longest cache hint, in bytes. Pools remember many that nobody is using.
const MAX_HINT: usize = 1 << 10;

/// A client that is allowed. All that its capability was ever given out for refer to the same one.
#[derive(Default)]
pub(super) struct Account {
    /// It was removed. It stays so, also when a client of this name is added again.
    pub(super) is_removed: Cell<bool>,
    /// Bytes of waiting jobs.
    waiting: Cell<usize>,
}

/// What a waiting job takes of its client's account, until this is dropped.
pub(super) struct Deposit {
    account: Rc<Account>,
    bytes: usize,
}

impl Deposit {
    /// Fails if the client has too much waiting already.
    fn take(account: &Rc<Account>, description: &JobDescription) -> Result<Self, Error> {
        Self::take_bytes(account, bytes(description)).ok_or_else(|| Error {
            kind: ErrorKind::Overloaded,
            message: format!(
                "the jobs that wait for this client hold {} MB; no more until some have run",
                MAX_WAITING >> 20
            ),
        })
    }

    /// Takes it in the place of another for the same job, which is returned if that fails.
    pub(super) fn instead_of(
        before: Option<Self>,
        account: &Rc<Account>,
        description: &JobDescription,
    ) -> Result<Self, (Option<Self>, Error)> {
        // A client that was removed and added again has another account.
        let bytes = before.as_ref().filter(|it| Rc::ptr_eq(&it.account, account)).map_or(0, |before| before.bytes);
        account.waiting.set(account.waiting.get() - bytes);
        let taken = Self::take(account, description);
        account.waiting.set(account.waiting.get() + bytes);
        taken.map_err(|refused| (before, refused))
    }

    /// Takes what a job of an earlier scheduler takes. That was accepted, and counts however much it is.
    pub(super) fn again(account: &Rc<Account>, description: &JobDescription) -> Self {
        let bytes = bytes(description);
        account.waiting.set(account.waiting.get().saturating_add(bytes));
        Self { account: Rc::clone(account), bytes }
    }

    fn take_bytes(account: &Rc<Account>, bytes: usize) -> Option<Self> {
        let waiting = account.waiting.get().saturating_add(bytes);
        (waiting <= MAX_WAITING).then(|| {
            account.waiting.set(waiting);
            Self { account: Rc::clone(account), bytes }
        })
    }
}

impl Drop for Deposit {
    fn drop(&mut self) {
        self.account.waiting.set(self.account.waiting.get() - self.bytes);
    }
}

/// One client.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) shared: Rc<Shared>,
    pub(super) name: BString,
    pub(super) account: Rc<Account>,
    /// The secret that it came with.
    pub(super) id: ServiceId,
    /// Where it is.
    pub(super) link: Link,
}

/// How many jobs are listed at most.
const LISTED: u32 = 1000;

impl SubmissionServer for Client {
    fn submit(&self, pool: BString, description: JobDescription, urgent: bool) -> Ticket {
        self.try_submit(pool.as_ref(), description, urgent).unwrap_or_else(Ticket::broken)
    }

    fn save(&self) -> Answer<CapabilityUri> {
        answer(Ok(self.shared.uri(self.id.clone())))
    }

    fn submit_kept(&self, kept: KeptSubmission) -> Answer<(Ticket, bool)> {
        let itself = self.clone();
        Box::pin(async move {
            // Not dropped with the client's connection: what is in the database is in the pool too.
            let keeping = spawn_local(async move { itself.keep(kept).await });
            keeping.await.unwrap_or_else(|_| Err(Error::disconnected("the scheduler has ended")))
        })
    }

    fn find(&self, key: JobKey) -> Answer<(Job, JobInfo)> {
        for pool in self.shared.pools.values() {
            if let (Some((_, record)), Some(info)) = (pool.find(key, self.name.as_ref()), pool.info(key)) {
                return answer(Ok((record.job(None), info)));
            }
        }
        let itself = self.clone();
        Box::pin(async move {
            let job = itself.stored(key).await?.ok_or_else(|| Error::failed(format!("there is no job {key}")))?;
            let info = info(&job);
            Ok((itself.ended(job).job(None), info))
        })
    }

    fn cancel(&self, key: JobKey) -> Answer<()> {
        for pool in self.shared.pools.values() {
            if let Some((id, _)) = pool.find(key, self.name.as_ref()) {
                return pool.cancel(id, "Build cancelled");
            }
        }
        let itself = self.clone();
        Box::pin(async move {
            let found = itself.stored(key).await?.ok_or_else(|| Error::failed(format!("there is no job {key}")))?;
            if found.outcome.is_some() {
                return Ok(());
            }
            // It has come to its pool meanwhile, or waits for one that there is not.
            for pool in itself.shared.pools.values() {
                if let Some((id, _)) = pool.find(key, itself.name.as_ref()) {
                    return pool.cancel(id, "Build cancelled").await;
                }
            }
            let end = Change::End { job: key, outcome: Outcome::Failed("Build cancelled".into()), ended: now() };
            itself.shared.keeper.write(end, false).await.map(drop).map_err(cannot_read)
        })
    }

    fn list(&self) -> Answer<Vec<JobInfo>> {
        let itself = self.clone();
        Box::pin(async move {
            let jobs = itself.shared.keeper.jobs_of(itself.name.clone(), LISTED).await.map_err(cannot_read)?;
            let live = |key| itself.shared.pools.values().find_map(|pool| pool.info(key));
            Ok(jobs
                .iter()
                .map(|job| if job.outcome.is_some() { info(job) } else { live(job.key).unwrap_or(info(job)) })
                .collect())
        })
    }
}

/// Returns what the database says of a job.
fn info(job: &KeptJob) -> JobInfo {
    let state = match (&job.outcome, &job.worker) {
        (Some(Outcome::Succeeded(output)), _) => JobState::Succeeded(output.clone()),
        (Some(Outcome::Failed(why)), _) => JobState::Failed(why.clone()),
        (Some(Outcome::Abandoned(why)), _) => JobState::Abandoned(why.clone()),
        (None, Some(worker)) => JobState::Lost(worker.clone()),
        (None, None) => JobState::Waiting,
    };
    JobInfo { key: job.key, pool: job.pool.clone(), submitted: job.submitted, runs: job.runs, state }
}

pub(super) fn cannot_read(error: StateError) -> Error {
    if error.is_over() {
        return Error::disconnected("this scheduler has ended");
    }
    tracing::error!(error = &error as &dyn std::error::Error, "cannot look something up");
    Error::failed("the scheduler cannot read its state")
}

impl Client {
    fn try_submit(&self, pool: &BStr, description: JobDescription, urgent: bool) -> Result<Ticket, Error> {
        let (pool, deposit) = self.admit(pool, &description)?;
        let new = NewJob { client: self.name.clone(), description, urgent, deposit, kept: None };
        let (record, hold) = pool.submit(new, self.link.clone());
        Ok(ticket(&record, Some(hold)))
    }

    /// Submits a job that outlives the scheduler, or finds it.
    async fn keep(self, kept: KeptSubmission) -> Result<(Ticket, bool), Error> {
        let KeptSubmission { key, pool, description, urgent, detached } = kept;
        if let Some(found) = self.attach(key, &description)? {
            return Ok((found, false));
        }
        let (live, deposit) = self.admit(pool.as_ref(), &description)?;
        let secrets = match (description.has_secrets(), self.shared.keeping.store_secrets) {
            (false, _) => Secrets::None,
            (true, true) => Secrets::Stored,
            (true, false) => Secrets::LeftOut,
        };
        let to_keep = if secrets == Secrets::LeftOut { description.without_secrets() } else { description.clone() };
        let (client, submitted) = (self.name.clone(), now());
        let job = KeptJob {
            key,
            pool,
            client: client.clone(),
            urgent,
            detached,
            submitted,
            description: Some(to_keep),
            secrets,
            runs: 0,
            worker: None,
            log_start: 0,
            outcome: None,
        };
        let is_new = match self.shared.keeper.write(Change::Submit(Box::new(job)), false).await {
            Ok(is_new) => is_new,
            Err(error) => match self.stored(key).await? {
                Some(_) => false,
                None => {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot store a job");
                    let message = "the scheduler cannot store the job now".to_owned();
                    return Err(Error { kind: ErrorKind::Overloaded, message });
                }
            },
        };
        if is_new {
            let kept = Some(NewKept { key, detached, submitted });
            let new = NewJob { client, description, urgent, deposit, kept };
            let (record, hold) = live.submit(new, self.link.clone());
            return Ok((ticket(&record, Some(hold)), true));
        }
        // It may have been submitted through another connection meanwhile, or have ended.
        if let Some(found) = self.attach(key, &description)? {
            return Ok((found, false));
        }
        let job = self.stored(key).await?.ok_or_else(|| Error::failed(format!("job {key} is another client's")))?;
        Ok((ticket(&self.ended(job), None), false))
    }

    /// Returns the ticket of a job that has not ended.
    fn attach(&self, key: JobKey, description: &JobDescription) -> Result<Option<Ticket>, Error> {
        for pool in self.shared.pools.values() {
            let found = pool.attach(key, self.name.as_ref(), &self.account, description, self.link.clone())?;
            if let Some((record, hold)) = found {
                return Ok(Some(ticket(&record, Some(hold))));
            }
        }
        Ok(None)
    }

    /// Returns what the database has of this client's job.
    async fn stored(&self, key: JobKey) -> Result<Option<KeptJob>, Error> {
        let found = self.shared.keeper.find_job(key).await.map_err(cannot_read)?;
        Ok(found.filter(|job| job.client == self.name))
    }

    /// Returns a job that has ended.
    fn ended(&self, job: KeptJob) -> Rc<Record> {
        let outcome = match job.outcome {
            Some(Outcome::Succeeded(output)) => Ok(output),
            Some(Outcome::Failed(why)) => Err(Error::failed(why.to_string())),
            Some(Outcome::Abandoned(why)) => Err(Error::disconnected(why.to_string())),
            // Another scheduler has just stored it, or this one, of which it was not known.
            None if self.shared.pools.contains_key(&job.pool) => Err(Error::disconnected("the job is about to begin")),
            None => Err(Error::failed(format!("the job waits for pool {:?}, which there is not", job.pool))),
        };
        Record::new(job.key, Stage::Ended(Log::Kept(self.shared.logs.clone()), outcome))
    }

    /// Returns the pool, and room for a job, if the client may submit it.
    fn admit(&self, pool: &BStr, description: &JobDescription) -> Result<(Rc<LivePool>, Deposit), Error> {
        if self.account.is_removed.get() {
            return Err(Error::failed("this client has been removed"));
        }
        let pools = &self.shared.pools;
        let pool = pools.get(pool).ok_or_else(|| Error::failed(unknown_pool(pool, pools.keys())))?;
        if description.cache_hint.len() > MAX_HINT {
            return Err(Error::failed(format!("a cache hint is at most {MAX_HINT} bytes long")));
        }
        let deposit = Deposit::take(&self.account, description)?;
        Ok((Rc::clone(pool), deposit))
    }
}

/// OCluster's text.
fn unknown_pool<'a>(pool: &BStr, pools: impl Iterator<Item = &'a BString>) -> String {
    let pools: Vec<_> = pools.map(ToString::to_string).collect();
    format!("Pool ID {pool:?} not one of {{{}}}", pools.join(", "))
}

/// Returns how much a job that waits is taken to take, in bytes.
fn bytes(description: &JobDescription) -> usize {
    size(description).max(LEAST)
}

/// Returns about how much a description takes in memory, in bytes.
fn size(description: &JobDescription) -> usize {
    let JobDescription { action, cache_hint, repository, commits, secrets } = description;
    // What a text of a list takes besides its bytes.
    let all = |texts: &[BString]| texts.iter().map(|text| text.len() + 48).sum::<usize>();
    let action = match action {
        Action::OBuilder(spec) => spec.len(),
        Action::Custom { kind, payload } => kind.len() + payload.len(),
        Action::DockerBuild(build) => {
            let DockerBuild { dockerfile, push_target, push_user, push_password, build_args, .. } = build;
            let (Dockerfile::Contents(dockerfile) | Dockerfile::Path(dockerfile)) = dockerfile;
            dockerfile.len() + push_target.len() + push_user.len() + push_password.len() + all(build_args)
        }
    };
    let secrets: usize = secrets.iter().map(|secret| secret.id.len() + secret.value.len() + 96).sum();
    action + cache_hint.len() + repository.len() + all(commits) + secrets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_client_is_bounded_and_given_back() {
        let account = Rc::new(Account::default());
        let half = Deposit::take_bytes(&account, MAX_WAITING / 2).expect("there is room");
        let other = Deposit::take_bytes(&account, MAX_WAITING / 2).expect("there is room");
        assert!(Deposit::take_bytes(&account, 1).is_none());
        assert!(Deposit::take_bytes(&account, usize::MAX).is_none());
        // Another client's is its own.
        assert!(Deposit::take_bytes(&Rc::default(), MAX_WAITING).is_some());
        drop(half);
        assert!(Deposit::take_bytes(&account, MAX_WAITING / 2).is_some());
        drop(other);
        assert_eq!(account.waiting.get(), 0);
    }

    #[test]
    fn what_is_given_again_counts_in_the_place_of_what_there_was() {
        let account = Rc::new(Account::default());
        let description = |bytes: usize| JobDescription {
            action: Action::OBuilder("".into()),
            cache_hint: "".into(),
            repository: "".into(),
            commits: vec![],
            secrets: vec![kiln_api::Secret { id: "".into(), value: vec![b'x'; bytes - 96].into() }],
        };
        // What an earlier scheduler accepted counts, and is not refused.
        let full: Vec<_> = (0..3).map(|_| Deposit::again(&account, &description(MAX_WAITING / 2))).collect();
        assert!(Deposit::take(&account, &description(LEAST)).is_err());
        drop(full);
        let before = Deposit::again(&account, &description(LEAST));
        let whole = Deposit::instead_of(Some(before), &account, &description(MAX_WAITING)).ok().expect("there is room");
        assert_eq!(account.waiting.get(), MAX_WAITING);
        let (whole, refused) =
            Deposit::instead_of(Some(whole), &account, &description(MAX_WAITING + 1)).err().expect("it is too much");
        assert_eq!(refused.kind, ErrorKind::Overloaded);
        assert_eq!(account.waiting.get(), MAX_WAITING);
        drop(whole);
        assert_eq!(account.waiting.get(), 0);
    }

    #[test]
    fn everything_in_a_description_counts() {
        let text = || BString::from(vec![b'x'; 1000]);
        let docker = DockerBuild {
            dockerfile: Dockerfile::Contents(text()),
            push_target: text(),
            push_user: text(),
            push_password: text(),
            build_args: vec![text()],
            squash: false,
            buildkit: false,
            include_git: false,
        };
        let mut description = JobDescription {
            action: Action::DockerBuild(docker),
            cache_hint: text(),
            repository: text(),
            commits: vec![text(), text()],
            secrets: vec![kiln_api::Secret { id: text(), value: text() }],
        };
        assert!((11_000..12_000).contains(&size(&description)), "{}", size(&description));
        description.action = Action::Custom { kind: text(), payload: vec![0; 1000] };
        assert!((8_000..9_000).contains(&size(&description)), "{}", size(&description));
        description.action = Action::OBuilder(text());
        assert!((7_000..8_000).contains(&size(&description)), "{}", size(&description));
    }
}
