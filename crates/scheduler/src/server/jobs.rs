//! The jobs of a pool: how they come, who wants them, and how they end.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bstr::{BStr, BString};
use kiln_api::{Answer, Error, ErrorKind, JobDescription, JobInfo, JobKey, JobState, Link, answer};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::clients::{Account, Deposit};
use super::pool::LivePool;
use super::record::{Hold, Outcome, Record, Stage};
use super::runs::LiveRun;
use crate::pool::{Cancelled, End, JobId, Request};
use crate::state::{self, Change, KeptJob, Secrets};

/// A job of which the end is not known, or not told yet.
pub(super) struct LiveJob {
    pub(super) record: Rc<Record>,
    client: BString,
    submitted: i64,
    /// What it is to do. `None`: part of it was in the memory of an earlier scheduler.
    pub(super) description: Option<Rc<JobDescription>>,
    /// What is known of it then.
    incomplete: Option<JobDescription>,
    /// What keeping that costs its client.
    deposit: Option<Deposit>,
    /// It is in the database.
    pub(super) is_kept: bool,
    is_detached: bool,
    /// How many hold it.
    holds: usize,
    /// Changes with `holds`.
    held: u64,
    /// Somebody cancelled it.
    pub(super) is_cancelled: bool,
    /// It has ended, and that is being written.
    pub(super) is_over: bool,
    /// How many runs there have been.
    pub(super) runs: u32,
    /// The one that there is, or was on a worker that may come back.
    pub(super) run: Option<LiveRun>,
    /// How many were lost for good.
    pub(super) losses: u32,
    /// The worker of the last one that was.
    pub(super) lost_on: Option<BString>,
    /// What reads the log of a run, and may still be writing what it has read after the worker is gone.
    pub(super) relay: Option<JoinHandle<()>>,
}

impl LiveJob {
    pub(super) fn is_lost(&self) -> bool {
        self.run.as_ref().is_some_and(LiveRun::is_lost)
    }
}

/// A job that somebody wants.
pub(super) type Held = (Rc<Record>, Rc<Hold>);

/// What a client wants done.
pub(super) struct NewJob {
    pub(super) client: BString,
    pub(super) description: JobDescription,
    pub(super) urgent: bool,
    pub(super) deposit: Deposit,
    /// `None`: it ends with its client's connection, as OCluster's do.
    pub(super) kept: Option<NewKept>,
}

/// What there is to say of a job that is kept.
pub(super) struct NewKept {
    pub(super) key: JobKey,
    pub(super) detached: bool,
    pub(super) submitted: i64,
}

/// Returns the time, in seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Why a job cannot be begun of which a part is gone.
pub(super) fn without_secrets() -> Error {
    Error::failed("the scheduler was restarted, and the job's secrets were in its memory only; submit it again")
}

impl LivePool {
    /// Adds a job of a client. Returns it, held.
    pub(super) fn submit(self: &Rc<Self>, new: NewJob, link: Link) -> Held {
        let NewJob { client, description, urgent, deposit, kept } = new;
        let key = kept.as_ref().map_or_else(JobKey::random, |kept| kept.key);
        let record = Record::new(key, Stage::Waiting);
        let request = Request { hint: description.cache_hint.as_ref(), urgent };
        let id = self.prepare(|pool, now| pool.submit(now, client.as_ref(), request));
        let job = LiveJob {
            record: Rc::clone(&record),
            client,
            submitted: kept.as_ref().map_or_else(now, |kept| kept.submitted),
            description: Some(Rc::new(description)),
            incomplete: None,
            deposit: Some(deposit),
            is_kept: kept.is_some(),
            is_detached: kept.is_some_and(|kept| kept.detached),
            holds: 0,
            held: 0,
            is_cancelled: false,
            is_over: false,
            runs: 0,
            run: None,
            losses: 0,
            lost_on: None,
            relay: None,
        };
        self.jobs.borrow_mut().insert(id, job);
        self.keys.borrow_mut().insert(key, id);
        let hold = Hold::new(self, id, link);
        // Only now, because it may start.
        self.act(|_, _| ());
        (record, hold)
    }

    /// Goes on with a job that an earlier scheduler had.
    pub(super) fn restore(self: &Rc<Self>, job: KeptJob, deposit: Option<Deposit>) {
        let KeptJob { key, client, urgent, detached, submitted, description, secrets, runs, worker, log_start, .. } =
            job;
        let hint = description.as_ref().map(|description| description.cache_hint.clone()).unwrap_or_default();
        let is_whole = secrets != Secrets::LeftOut;
        let request = Request { hint: hint.as_ref(), urgent };
        let stage = match runs {
            0 => Stage::Waiting,
            _ => Stage::Left(self.logs.clone()),
        };
        let run = worker.map(|worker| LiveRun::lost(worker, runs, log_start));
        // Without all of its description it waits until its client or its worker is back.
        let id = self.prepare(|pool, now| match (&run, is_whole) {
            (Some(_), _) => pool.submit_lost(now, client.as_ref(), request),
            (None, true) => pool.submit(now, client.as_ref(), request),
            (None, false) => pool.submit_withheld(client.as_ref(), request),
        });
        let lost = run.as_ref().map(|run| run.worker.clone());
        let (whole, incomplete) = if is_whole { (description, None) } else { (None, description) };
        let job = LiveJob {
            record: Record::new(key, stage),
            client,
            submitted,
            description: whole.map(Rc::new),
            incomplete,
            deposit,
            is_kept: true,
            is_detached: detached,
            holds: 0,
            held: 0,
            is_cancelled: false,
            is_over: false,
            runs,
            run,
            losses: runs.saturating_sub(1),
            lost_on: None,
            relay: None,
        };
        self.jobs.borrow_mut().insert(id, job);
        self.keys.borrow_mut().insert(key, id);
        match lost {
            Some(worker) => self.await_worker(id, worker),
            None if !is_whole && detached => return self.finish(id, Err(without_secrets())),
            None => {}
        }
        if !detached {
            self.await_client(id);
        }
    }

    /// Returns a job of this client of which the end is not told yet, held, if there is one of this key. What was forgotten of
    /// it is taken from `description`.
    ///
    /// # Errors
    ///
    /// That is more than may wait for the client.
    pub(super) fn attach(
        self: &Rc<Self>,
        key: JobKey,
        client: &BStr,
        account: &Rc<Account>,
        description: &JobDescription,
        link: Link,
    ) -> Result<Option<Held>, Error> {
        let Some((id, record)) = self.find(key, client) else { return Ok(None) };
        let is_waiting = {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id) else { return Ok(None) };
            match job.incomplete.take().filter(|_| !job.is_over) {
                Some(known) => {
                    let whole = known.clone().with_secrets_of(description);
                    let before = job.deposit.take();
                    match Deposit::instead_of(before, account, &whole) {
                        Ok(deposit) => job.deposit = Some(deposit),
                        Err((before, refused)) => {
                            (job.deposit, job.incomplete) = (before, Some(known));
                            return Err(refused);
                        }
                    }
                    job.description = Some(Rc::new(whole));
                    job.run.is_none()
                }
                None => false,
            }
        };
        let hold = Hold::new(self, id, link);
        if is_waiting {
            self.act(|pool, now| pool.requeue(now, id));
        }
        Ok(Some((record, hold)))
    }

    /// Returns a job of this client of which the end is not told yet: the database does not know it either.
    pub(super) fn find(&self, key: JobKey, client: &BStr) -> Option<(JobId, Rc<Record>)> {
        let id = *self.keys.borrow().get(&key)?;
        let jobs = self.jobs.borrow();
        let job = jobs.get(&id).filter(|job| job.client == client)?;
        Some((id, Rc::clone(&job.record)))
    }

    /// Returns how it is with a job.
    pub(super) fn info(&self, key: JobKey) -> Option<JobInfo> {
        let id = *self.keys.borrow().get(&key)?;
        let jobs = self.jobs.borrow();
        let job = jobs.get(&id)?;
        let state = match &job.run {
            None => JobState::Waiting,
            Some(run) if run.is_lost() => JobState::Lost(run.worker.clone()),
            Some(run) => JobState::Running(run.worker.clone()),
        };
        Some(JobInfo { key, pool: self.name.clone(), submitted: job.submitted, runs: job.runs, state })
    }

    /// Notes that somebody more wants a job.
    pub(super) fn hold(&self, id: JobId) {
        if let Some(job) = self.jobs.borrow_mut().get_mut(&id) {
            job.holds += 1;
            job.held += 1;
        }
    }

    /// Notes that somebody no longer wants a job, or, if `silent`, has not been heard of.
    pub(super) fn let_go(self: &Rc<Self>, id: JobId, silent: bool) {
        let waits = {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id) else { return };
            job.holds -= 1;
            if job.holds > 0 || job.is_detached || self.stopping.is_cancelled() {
                return;
            }
            job.is_kept && silent
        };
        match waits {
            true => self.await_client(id),
            false => self.give_up(id, "Ticket released (cancelled)"),
        }
    }

    /// Cancels a job that nobody wants.
    fn give_up(self: &Rc<Self>, id: JobId, why: &str) {
        // Not dropped: a call that is given up may never be looked at.
        tokio::task::spawn_local(self.cancel(id, why));
        let run = |job: &mut LiveJob| job.run.as_mut().and_then(LiveRun::let_go);
        let let_go = self.jobs.borrow_mut().get_mut(&id).and_then(run);
        drop(let_go);
    }

    /// Cancels a job that nobody holds, unless somebody comes who does.
    fn await_client(self: &Rc<Self>, id: JobId) {
        let Some(held) = self.jobs.borrow().get(&id).map(|job| job.held) else { return };
        let pool = Rc::clone(self);
        tokio::task::spawn_local(async move {
            sleep(pool.keeping.client_grace).await;
            let is_so = pool.jobs.borrow().get(&id).is_some_and(|job| (job.holds, job.held) == (0, held));
            if is_so {
                pool.give_up(id, "the job's client was lost, and has not come back");
            }
        });
    }

    /// Cancels a job. One that waits ends for this reason; one that runs is cancelled by its worker, which the answer waits for.
    pub(super) fn cancel(self: &Rc<Self>, id: JobId, why: &str) -> Answer<()> {
        let done = || answer(Ok(()));
        match self.jobs.borrow_mut().get_mut(&id) {
            None => return done(),
            Some(job) if job.is_over => return done(),
            Some(job) => job.is_cancelled = true,
        }
        match self.act(|pool, _| pool.cancel(id)) {
            Cancelled::Queued | Cancelled::Lost => {
                self.finish(id, Err(Error::failed(why)));
                done()
            }
            Cancelled::Running(_) => {
                let job = self.jobs.borrow().get(&id).and_then(|job| job.run.as_ref()?.job());
                job.map_or_else(done, |job| Box::pin(job.cancel()))
            }
            Cancelled::Unknown => done(),
        }
    }

    /// Waits until a job survives the scheduler's machine.
    pub(super) fn stored(self: &Rc<Self>, id: JobId) -> Answer<()> {
        if !self.jobs.borrow().get(&id).is_none_or(|job| job.is_kept) {
            return answer(Err(Error::failed("this job is not kept")));
        }
        let pool = Rc::clone(self);
        Box::pin(async move {
            // What could not be written may have been something else: the job is in the database already.
            pool.patiently(async || pool.keeper.settled().await).await;
            Ok(())
        })
    }

    /// Ends a job whose place in the pool is free already, or gives it up there. Its client is told when that is kept.
    pub(super) fn finish(self: &Rc<Self>, id: JobId, outcome: Outcome) {
        let (key, is_kept) = {
            let mut jobs = self.jobs.borrow_mut();
            let Some(job) = jobs.get_mut(&id).filter(|job| !job.is_over) else { return };
            job.is_over = true;
            if let Some(lost) = job.run.as_ref().filter(|run| run.is_lost()) {
                self.is_not_lost(&lost.worker, id);
            }
            (job.description, job.incomplete, job.deposit) = (None, None, None);
            (job.record.key, job.is_kept)
        };
        self.act(|pool, now| pool.finished(now, id, End::Cancelled));
        if !is_kept {
            return self.tell(id, key, outcome);
        }
        let pool = Rc::clone(self);
        let record = self.jobs.borrow().get(&id).map(|job| Rc::clone(&job.record));
        tokio::task::spawn_local(async move {
            if let Some(record) = record {
                pool.archive(&record).await;
            }
            let kept = match &outcome {
                Ok(output) => state::Outcome::Succeeded(output.clone()),
                Err(error) if error.kind == ErrorKind::Failed => state::Outcome::Failed(error.message.as_str().into()),
                Err(error) => state::Outcome::Abandoned(error.message.as_str().into()),
            };
            let end = || Change::End { job: key, outcome: kept.clone(), ended: now() };
            pool.patiently(async || pool.keeper.write(end(), false).await).await;
            pool.tell(id, key, outcome);
        });
    }

    /// Tells everybody that a job has ended.
    fn tell(self: &Rc<Self>, id: JobId, key: JobKey, outcome: Outcome) {
        let job = self.jobs.borrow_mut().remove(&id);
        self.keys.borrow_mut().remove(&key);
        let Some(LiveJob { record, run, .. }) = job else { return };
        record.end(outcome);
        if let Some(job) = run.and_then(LiveRun::into_forgettable) {
            self.settling.borrow_mut().push((job, record.log()));
            self.to_settle.notify_one();
        }
    }

    /// Does what may fail because a disk is full or broken, again and again.
    pub(super) async fn patiently<T, E: std::error::Error + 'static>(&self, act: impl AsyncFn() -> Result<T, E>) -> T {
        patiently(&self.name, act).await
    }
}

/// The same, and says whom that concerns.
pub(super) async fn patiently<T, E: std::error::Error + 'static>(
    whom: impl std::fmt::Display,
    act: impl AsyncFn() -> Result<T, E>,
) -> T {
    const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
    let mut is_first = true;
    loop {
        match act().await {
            Ok(done) => return done,
            Err(error) if is_first => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%whom, error, "cannot go on; jobs wait until that is mended");
                is_first = false;
            }
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
}
