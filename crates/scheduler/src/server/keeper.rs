//! The database, behind a thread of its own, and another one that waits for its disk.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use bstr::BString;
use kiln_api::{JobKey, ServiceId};
use tokio::sync::{mpsc, oneshot};

use crate::pool::Effect;
use crate::state::{Change, Flusher, KeptJob, State, StateError};

/// How many changes are made at once: so many wait for the disk together, and so many are made again, one by one, if one fails.
const AT_ONCE: usize = 1000;

/// Who may be asked to remember things. Clones ask the same database.
#[derive(Clone)]
pub(super) struct Keeper {
    requests: mpsc::UnboundedSender<Request>,
    is_shared: bool,
}

type Reply<T> = oneshot::Sender<Result<T, StateError>>;

/// Looks something up.
type Look = Box<dyn FnOnce(&mut State) + Send>;

enum Request {
    Write(Write),
    Look(Look),
    Settle { reply: Reply<()> },
    End,
}

struct Write {
    change: Change,
    /// It must survive the machine before it is answered.
    through: bool,
    /// Who wants to know. Others are told by [`Keeper::settled`].
    reply: Option<Reply<bool>>,
}

/// What the thread that waits for the disk is asked for.
enum ToFlush {
    /// Something was written, which can be tidied up sometime.
    Written,
    /// Tell when all that was written before is on disk.
    Settle(Reply<()>),
}

/// How long what was written is left where it was written first.
const TIDY: Duration = Duration::from_secs(1);

/// The threads of a [`Keeper`]. Dropping it waits until everything that was asked for is written and the database is closed;
/// nothing can be asked for from then on.
pub(super) struct Thread {
    handles: Vec<thread::JoinHandle<()>>,
    keeper: Keeper,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.keeper.ask(Request::End);
        for handle in self.handles.drain(..) {
            if handle.join().is_err() {
                tracing::error!("a thread that writes the scheduler's state failed");
            }
        }
    }
}

impl Keeper {
    /// Takes the database over.
    ///
    /// # Errors
    ///
    /// It cannot be opened for both threads.
    pub(super) fn start(state: State) -> Result<(Self, Thread), StateError> {
        let flusher = state.flusher()?;
        let (sender, requests) = mpsc::unbounded_channel();
        let (to_flush, flushes) = channel();
        let keeper = Self { requests: sender, is_shared: state.is_shared() };
        let handles = vec![
            thread::spawn(move || serve(state, requests, &to_flush)),
            thread::spawn(move || flush(flusher, &flushes)),
        ];
        Ok((keeper.clone(), Thread { handles, keeper }))
    }

    /// Remembers what a pool wants kept, soon. What cannot be written is lost, and logged: it makes the pool no less right now.
    pub(super) fn save(&self, pool: BString, effects: Vec<Effect>) {
        for effect in effects {
            let change = Change::Pool { pool: pool.clone(), effect };
            self.ask(Request::Write(Write { change, through: false, reply: None }));
        }
    }

    /// Makes a change, and tells when it survives this process, or, `through`, this machine; and whether there was something to
    /// change. It is asked for when this is called, not when the future is polled, and made in the order in which it is asked
    /// for.
    pub(super) fn write(
        &self,
        change: Change,
        through: bool,
    ) -> impl Future<Output = Result<bool, StateError>> + use<> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Write(Write { change, through, reply: Some(reply) }));
        received(answer)
    }

    /// Waits until everything that was to be remembered survives this machine. It is asked for when this is called, not when
    /// the future is polled.
    pub(super) fn settled(&self) -> impl Future<Output = Result<(), StateError>> + use<> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Settle { reply });
        received(answer)
    }

    pub(super) async fn add_client(&self, name: BString, id: ServiceId) -> Result<(), StateError> {
        self.write(Change::AddClient { name, id: id.0 }, true).await.map(drop)
    }

    pub(super) async fn remove_client(&self, name: BString) -> Result<bool, StateError> {
        self.write(Change::RemoveClient { name }, true).await
    }

    pub(super) async fn find_client(&self, id: ServiceId) -> Result<Option<BString>, StateError> {
        self.look(move |state| state.find_client(&id.0)).await
    }

    pub(super) async fn find_job(&self, key: JobKey) -> Result<Option<KeptJob>, StateError> {
        self.look(move |state| state.find_job(key)).await
    }

    /// Returns those of these jobs that there are not.
    pub(super) async fn unknown_jobs(&self, keys: Vec<JobKey>) -> Result<Vec<JobKey>, StateError> {
        self.look(move |state| state.unknown_jobs(&keys)).await
    }

    pub(super) async fn jobs_of(&self, client: BString, most: u32) -> Result<Vec<KeptJob>, StateError> {
        self.look(move |state| state.jobs_of(client.as_ref(), most)).await
    }

    /// Returns jobs that ended before a time in seconds since 1970, the longest ago first.
    pub(super) async fn ended_before(&self, time: i64, most: u32) -> Result<Vec<JobKey>, StateError> {
        self.look(move |state| state.ended_before(time, most)).await
    }

    /// Returns how long all logs in the database are together, in bytes.
    pub(super) async fn logs_size(&self) -> Result<u64, StateError> {
        self.look(State::logs_size).await
    }

    /// Returns if this scheduler is the one that serves, of those that share a database.
    pub(super) async fn still_serves(&self) -> Result<(), StateError> {
        match self.is_shared {
            true => self.look(|state| state.apply(&[], false).map(drop)).await,
            false => Ok(()),
        }
    }

    /// Returns the parts of a log from `start` on, in order; none at its end. Not all of them.
    pub(super) async fn log_parts(&self, job: JobKey, start: u64) -> Result<Vec<Vec<u8>>, StateError> {
        self.look(move |state| state.log_parts(job, start)).await
    }

    /// Returns whether other schedulers go on with what is in the database, and with nothing else.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Looks something up, after all changes that were asked for before.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut State) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Look(Box::new(move |state| {
            // Whoever asked may have gone.
            let _ = reply.send(look(state));
        })));
        received(answer).await
    }

    fn ask(&self, request: Request) {
        // After its end, whoever waits for an answer sees that there is none.
        let _ = self.requests.send(request);
    }
}

async fn received<T>(answer: oneshot::Receiver<Result<T, StateError>>) -> Result<T, StateError> {
    answer.await.unwrap_or(Err(StateError::Closed))
}

/// Does what it is asked for, until the end. Whoever asked may have gone, which is why nobody minds an answer that is not taken.
fn serve(mut state: State, mut requests: mpsc::UnboundedReceiver<Request>, to_flush: &Sender<ToFlush>) {
    let mut next = None;
    let mut settled = Ok(());
    while let Some(request) = next.take().or_else(|| requests.blocking_recv()) {
        match request {
            Request::Write(first) => {
                // Each commit takes its time, so one is made of what has come meanwhile.
                let mut batch = vec![first];
                while next.is_none() && batch.len() < AT_ONCE {
                    match requests.try_recv() {
                        Ok(Request::Write(write)) => batch.push(write),
                        Ok(other) => next = Some(other),
                        Err(_) => break,
                    }
                }
                write(&mut state, batch, &mut settled);
                // The other thread ends after this one.
                let _ = to_flush.send(ToFlush::Written);
            }
            Request::Look(look) => look(&mut state),
            Request::Settle { reply } => match std::mem::replace(&mut settled, Ok(())) {
                Ok(()) => _ = to_flush.send(ToFlush::Settle(reply)),
                error => _ = reply.send(error),
            },
            Request::End => return,
        }
    }
}

/// Waits for the disk for whoever asks, so that nobody else has to, and tidies up, until there is nobody who writes.
fn flush(mut flusher: Flusher, requests: &Receiver<ToFlush>) {
    let mut tidy_at: Option<Instant> = None;
    loop {
        let next = match tidy_at {
            None => requests.recv().map_err(RecvTimeoutError::from),
            Some(at) => requests.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match next {
            Ok(ToFlush::Written) => _ = tidy_at.get_or_insert_with(|| Instant::now() + TIDY),
            Ok(ToFlush::Settle(first)) => {
                // Those that have come meanwhile are served by the same flush: what they mean was written before.
                let mut replies = vec![first];
                for other in requests.try_iter() {
                    match other {
                        ToFlush::Settle(reply) => replies.push(reply),
                        ToFlush::Written => _ = tidy_at.get_or_insert_with(|| Instant::now() + TIDY),
                    }
                }
                let mut is_done = false;
                for reply in replies {
                    let result = if is_done { Ok(()) } else { flusher.flush() };
                    is_done = result.is_ok();
                    let _ = reply.send(result);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                tidy_at = None;
                if let Err(error) = flusher.tidy() {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot tidy the scheduler's state up");
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Makes changes together; if that fails, one by one, so that each has its own answer.
fn write(state: &mut State, batch: Vec<Write>, settled: &mut Result<(), StateError>) {
    let through = batch.iter().any(|write| write.through);
    let (changes, replies): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|write| (write.change, (write.through, write.reply))).unzip();
    let results: Vec<_> = match state.apply(&changes, through) {
        Ok(applied) => applied.into_iter().map(Ok).collect(),
        Err(error) if changes.len() == 1 => vec![Err(error)],
        Err(_) => {
            let alone = |(change, (through, _)): (&Change, &(bool, _))| {
                state.apply(std::slice::from_ref(change), *through).map(|applied| applied.contains(&true))
            };
            changes.iter().zip(&replies).map(alone).collect()
        }
    };
    for ((_, reply), result) in replies.into_iter().zip(results) {
        match (reply, result) {
            (Some(reply), result) => _ = reply.send(result),
            (None, Ok(_)) => {}
            (None, Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot keep what a pool knows");
                *settled = Err(error);
            }
        }
    }
}
