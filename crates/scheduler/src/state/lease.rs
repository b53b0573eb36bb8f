//! Which of several schedulers serves: the one that holds the lease of their database.
//!
//! The table `kiln_lease` has one row: `epoch`, which is higher with each holder, `beat`, which the holder raises every half
//! second, and `holder`, which nobody is after a holder that said it goes.
//!
//! * Who stands by takes over when it has seen the same row for five seconds by a clock of its own that nobody sets. Nothing
//!   compares the times of two machines.
//! * A holder that could not raise the beat for four stops serving.
//! * All who share the database must be known by the same key, as the table `kiln_terms` says, and none may be older than its
//!   schema. Who is not so is told at once, not when it would serve.
//! * A holder that was stopped, or whose clock stood still, cannot know that it is none any more. So each of its transactions
//!   begins by looking whether the epoch is still its own, and keeps anybody from taking over until it ends
//!   (`database/postgres.rs`). What a scheduler does for a kept job follows a transaction.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use kiln_api::Key;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::StateError;
use super::database::postgres::{Fence, PostgresServer, is_lost};
use super::database::{DatabaseError, newest_schema};

/// How often a lease is renewed, and looked at.
const BEAT: Duration = Duration::from_millis(500);

/// How long a holder serves that cannot renew.
const LIMIT: Duration = Duration::from_secs(4);

/// How long a lease that is not renewed is left to its holder.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the server may take for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// How long it may take when there is no time left.
const LOOK: Duration = Duration::from_millis(300);

/// Only one of those who come first makes the table: a number of our own.
const MAKE: &str = "
    BEGIN;
    SELECT pg_advisory_xact_lock(7021897563098316);
    CREATE TABLE IF NOT EXISTS kiln_lease (epoch BIGINT PRIMARY KEY, beat BIGINT NOT NULL, holder TEXT);
    INSERT INTO kiln_lease SELECT 0, 0, NULL WHERE NOT EXISTS (SELECT 1 FROM kiln_lease);
    CREATE TABLE IF NOT EXISTS kiln_terms (known_by TEXT NOT NULL, pools TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS kiln_schema (version BIGINT NOT NULL);
    COMMIT";

const LOOK_AT: &str = "
    SELECT epoch, beat, holder, (SELECT max(version) FROM kiln_schema), (SELECT max(known_by) FROM kiln_terms),
        (SELECT max(pools) FROM kiln_terms)
    FROM kiln_lease";

/// Of several who try, one finds the row as it was.
const TAKE: &str = "
    WITH taken AS (
        UPDATE kiln_lease SET epoch = epoch + 1, beat = 0, holder = $1 WHERE epoch = $2 AND beat = $3 RETURNING epoch
    ), before AS (
        DELETE FROM kiln_terms WHERE $4::text IS NOT NULL AND EXISTS (SELECT 1 FROM taken)
    ), after AS (
        INSERT INTO kiln_terms (known_by, pools) SELECT $4, $5::text FROM taken WHERE $4 IS NOT NULL
    )
    SELECT epoch FROM taken";

/// The right to serve. Dropping it lets another have it at once.
#[derive(Debug)]
pub struct Lease {
    tenure: Tenure,
    _held: DropGuard,
    released: Option<oneshot::Receiver<()>>,
}

/// A database, and by what right it is written.
#[derive(Debug, Clone)]
pub struct Tenure {
    pub(super) server: PostgresServer,
    pub(super) fence: Fence,
}

/// What those who share a database have alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// What others know them by. Without it capability files are worth nothing, so it is the same for ever.
    pub known_by: String,
    /// The names of their pools. They may differ for a while: otherwise none could be added while another serves.
    pub pools: String,
}

impl Terms {
    /// Returns those of a scheduler with this key.
    pub fn new(key: &Key, secure: bool, pools: &[String]) -> Self {
        let unencrypted = if secure { "" } else { ", without encryption" };
        let pools: BTreeSet<_> = pools.iter().map(String::as_str).collect();
        let pools = pools.into_iter().collect::<Vec<_>>().join(",");
        Self { known_by: format!("{}{unencrypted}", key.fingerprint()), pools }
    }
}

/// Who has the lease, as one who stands by sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Another one.
    By {
        /// Which.
        holder: String,
        /// Its pools, if they are others than this one's.
        pools: Option<String>,
    },
    /// Nobody that is known: the database is not reached, or does not answer, for this reason.
    Blind(String),
}

impl Lease {
    /// Waits until nobody else holds the lease of a database, and takes it. `name` is what others are told of the holder; no
    /// other process has the same. `tell` is called when what it says has changed. May be dropped while it waits. Without
    /// `terms`, they stay as they are.
    ///
    /// # Errors
    ///
    /// Who is so could not serve, now or later: the database has a newer schema, or its schedulers are known by another key.
    pub async fn acquire(
        server: PostgresServer,
        name: String,
        terms: Option<Terms>,
        mut tell: impl FnMut(&Standing),
    ) -> Result<Self, StateError> {
        let mut told = None;
        let place = server.to_string();
        let mut candidate = Candidate { server, terms, client: None, seen: None };
        loop {
            match timeout(ANSWER, candidate.attempt(&name)).await.unwrap_or(Err(DatabaseError::Silent)) {
                Ok(Seen::Taken(epoch)) => return Ok(Self::hold(candidate.server, epoch)),
                Ok(Seen::Held { holder, pools }) => say(&mut told, Standing::By { holder, pools }, &mut tell),
                Ok(Seen::KnownBy { theirs, ours }) => return Err(StateError::OtherKey { place, theirs, ours }),
                Err(source @ DatabaseError::Newer { .. }) => return Err(StateError::Open { place, source }),
                Err(error) => {
                    // What happened meanwhile is not known.
                    (candidate.client, candidate.seen) = (None, None);
                    say(&mut told, Standing::Blind(error.to_string()), &mut tell);
                }
            }
            sleep(BEAT).await;
        }
    }

    /// Takes the lease of a database that nobody serves with. Waits no longer than it takes to know: of a holder that was killed, until it
    /// would have renewed. For who has no use for a lease later.
    ///
    /// # Errors
    ///
    /// The database has a newer schema; or who else has the lease, or why the database is not reached.
    pub async fn acquire_now(server: PostgresServer, name: String) -> Result<Result<Self, Standing>, StateError> {
        let last = RefCell::new(Standing::Blind("it does not answer".to_owned()));
        let is_blind = CancellationToken::new();
        let acquiring = Self::acquire(server, name, None, |standing| {
            last.replace(standing.clone());
            if matches!(standing, Standing::Blind(_)) {
                is_blind.cancel();
            }
        });
        let acquired = tokio::select! {
            acquired = timeout(PATIENCE + 2 * ANSWER, acquiring) => acquired.ok(),
            () = is_blind.cancelled() => None,
        };
        acquired.map_or_else(|| Ok(Err(last.into_inner())), |lease| lease.map(Ok))
    }

    /// Returns what is cancelled when the lease is lost.
    pub fn lost(&self) -> &CancellationToken {
        &self.tenure.fence.lost
    }

    /// Returns what the holder's state is opened with.
    pub fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    /// Lets another have the lease, and waits until it can.
    pub async fn release(mut self) {
        let released = self.released.take();
        drop(self);
        if let Some(released) = released {
            // An error means that the task is gone, which renews nothing either.
            let _ = released.await;
        }
    }

    /// Renews the lease on a thread of its own, which nothing else holds up.
    fn hold(server: PostgresServer, epoch: i64) -> Self {
        let lost = CancellationToken::new();
        let held = CancellationToken::new();
        let (done, released) = oneshot::channel();
        let holder = Holder { server: server.clone(), client: None, epoch, renewed: now() };
        let (tell, end) = (lost.clone(), held.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(holder.renew(&tell, &end)),
                Err(error) => tracing::error!(%error, "cannot renew the lease"),
            }
            let _ = done.send(());
        });
        Self {
            tenure: Tenure { server, fence: Fence { epoch, lost } },
            _held: held.drop_guard(),
            released: Some(released),
        }
    }
}

fn say(told: &mut Option<Standing>, now: Standing, tell: &mut impl FnMut(&Standing)) {
    if told.as_ref() != Some(&now) {
        tell(&now);
        *told = Some(now);
    }
}

/// Time as it passes, also while the machine sleeps; nobody sets this clock, `CLOCK_BOOTTIME` in clock_gettime(2).
fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

struct Candidate {
    server: PostgresServer,
    terms: Option<Terms>,
    client: Option<Client>,
    /// The row as it was first seen to be as it is, and when that was.
    seen: Option<(i64, i64, Duration)>,
}

enum Seen {
    /// By us: its epoch.
    Taken(i64),
    Held {
        holder: String,
        /// If they are others than ours.
        pools: Option<String>,
    },
    /// Those who share the database are known by something else than we are.
    KnownBy { theirs: String, ours: String },
}

impl Candidate {
    /// Looks at the lease, and takes it if it is free.
    async fn attempt(&mut self, name: &str) -> Result<Seen, DatabaseError> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let client = self.server.connect().await?;
                client.batch_execute(MAKE).await?;
                self.client.insert(client)
            }
        };
        let row = client.query_one(LOOK_AT, &[]).await?;
        let (epoch, beat, holder): (i64, i64, Option<String>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (found, known) = (row.try_get::<_, Option<i64>>(3)?.unwrap_or(0), newest_schema());
        if found > known {
            return Err(DatabaseError::Newer { found, known });
        }
        let (known_by, pools): (Option<String>, Option<String>) = (row.try_get(4)?, row.try_get(5)?);
        if let (Some(theirs), Some(terms)) = (known_by, &self.terms)
            && theirs != terms.known_by
        {
            return Ok(Seen::KnownBy { theirs, ours: terms.known_by.clone() });
        }
        let since = match self.seen {
            Some((then_epoch, then_beat, since)) if (then_epoch, then_beat) == (epoch, beat) => since,
            _ => now(),
        };
        self.seen = Some((epoch, beat, since));
        // A name is of one process: with ours, it is of an earlier turn, or of an attempt whose answer was lost.
        if let Some(holder) = holder.filter(|holder| holder != name)
            && now().saturating_sub(since) < PATIENCE
        {
            let differ = |theirs: &String| self.terms.as_ref().is_some_and(|ours| ours.pools != *theirs);
            return Ok(Seen::Held { holder, pools: pools.filter(differ) });
        }
        let (known_by, pools) = self.terms.as_ref().map(|terms| (&terms.known_by, &terms.pools)).unzip();
        match client.query_opt(TAKE, &[&name, &epoch, &beat, &known_by, &pools]).await? {
            None => Ok(Seen::Held { holder: "another".to_owned(), pools: None }),
            Some(taken) => Ok(Seen::Taken(taken.try_get(0)?)),
        }
    }
}

struct Holder {
    server: PostgresServer,
    client: Option<Client>,
    epoch: i64,
    /// When the last renewal that succeeded was begun.
    renewed: Duration,
}

impl Holder {
    /// Renews, until the lease is lost or `end`; then lets it go.
    async fn renew(mut self, lost: &CancellationToken, end: &CancellationToken) {
        // Cancelled however this ends.
        let _lost = lost.clone().drop_guard();
        loop {
            let begun = now();
            let left = LIMIT.saturating_sub(begun.saturating_sub(self.renewed));
            // After a sleep, nobody may have taken over: one short look.
            let answer = left.clamp(LOOK, ANSWER);
            match timeout(answer, self.beat()).await.unwrap_or(Err(DatabaseError::Silent)) {
                Ok(()) => self.renewed = begun,
                Err(DatabaseError::Deposed) => return tracing::error!("another scheduler has taken over"),
                Err(error) => {
                    self.client = None;
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot renew the lease");
                }
            }
            if now().saturating_sub(self.renewed) >= LIMIT {
                return tracing::error!("the lease could not be renewed: another scheduler may take over");
            }
            tokio::select! {
                () = end.cancelled() => break,
                () = lost.cancelled() => return,
                () = sleep(BEAT.min(LIMIT.saturating_sub(now().saturating_sub(self.renewed)))) => {}
            }
        }
        let epoch = self.epoch;
        let gone = async {
            let gone = "UPDATE kiln_lease SET holder = NULL WHERE epoch = $1";
            Ok::<_, DatabaseError>(self.client().await?.execute(gone, &[&epoch]).await?)
        };
        if !matches!(timeout(ANSWER, gone).await, Ok(Ok(_))) {
            tracing::warn!("the lease could not be let go: another scheduler takes over a little later");
        }
    }

    async fn client(&mut self) -> Result<&Client, DatabaseError> {
        match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => Ok(self.client.insert(client)),
            None => Ok(self.client.insert(self.server.connect().await?)),
        }
    }

    async fn beat(&mut self) -> Result<(), DatabaseError> {
        let epoch = self.epoch;
        let client = self.client().await?;
        // It changes no key: a transaction of ours does not hold it up.
        match client.execute("UPDATE kiln_lease SET beat = beat + 1 WHERE epoch = $1", &[&epoch]).await {
            Ok(0) => Err(DatabaseError::Deposed),
            Ok(_) => Ok(()),
            Err(error) => {
                if is_lost(&error) {
                    self.client = None;
                }
                Err(error.into())
            }
        }
    }
}
