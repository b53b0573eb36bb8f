//! The database, behind a thread of its own.

use std::thread;

use bstr::BString;
use kiln_api::{JobKey, ServiceId};
use tokio::sync::{mpsc, oneshot};

use crate::pool::Effect;
use crate::state::{Change, KeptJob, State, StateError};

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

/// The thread of a [`Keeper`]. Dropping it waits until everything that was asked for is written and the database is closed; nothing can
/// be asked for from then on.
pub(super) struct Thread {
    handle: Option<thread::JoinHandle<()>>,
    keeper: Keeper,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.keeper.ask(Request::End);
        if self.handle.take().is_some_and(|handle| handle.join().is_err()) {
            tracing::error!("the thread that writes the scheduler's state failed");
        }
    }
}

impl Keeper {
    /// Takes the database over.
    pub(super) fn start(state: State) -> (Self, Thread) {
        let (sender, requests) = mpsc::unbounded_channel();
        let keeper = Self { requests: sender, is_shared: state.is_shared() };
        let handle = thread::spawn(move || serve(state, requests));
        (keeper.clone(), Thread { handle: Some(handle), keeper })
    }

    /// Remembers what a pool wants kept, soon. What cannot be written is lost, and logged: it makes the pool no less right now.
    pub(super) fn save(&self, pool: BString, effects: Vec<Effect>) {
        for effect in effects {
            let change = Change::Pool { pool: pool.clone(), effect };
            self.ask(Request::Write(Write { change, through: false, reply: None }));
        }
    }

    /// Makes a change, and tells when it survives this process, or, `through`, this machine; and whether there was something to change. It
    /// is asked for when this is called, not when the future is polled, and made in the order in which it is asked for.
    pub(super) fn write(
        &self,
        change: Change,
        through: bool,
    ) -> impl Future<Output = Result<bool, StateError>> + use<> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Write(Write { change, through, reply: Some(reply) }));
        received(answer)
    }

    /// Waits until everything that was to be remembered survives this machine. It is asked for when this is called, not when the future is
    /// polled.
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

    pub(super) async fn jobs_of(&self, client: BString, most: u32) -> Result<Vec<KeptJob>, StateError> {
        self.look(move |state| state.jobs_of(client.as_ref(), most)).await
    }

    /// Returns jobs that ended before a time in seconds since 1970, the longest ago first.
    pub(super) async fn ended_before(&self, time: i64, most: u32) -> Result<Vec<JobKey>, StateError> {
        self.look(move |state| state.ended_before(time, most)).await
    }

    /// Returns the part of a log that begins at `start`; nothing at its end.
    pub(super) async fn log_part(&self, job: JobKey, start: u64) -> Result<Vec<u8>, StateError> {
        self.look(move |state| state.log_part(job, start)).await
    }

    /// Returns how long all logs in the database are together, in bytes.
    pub(super) async fn logs_size(&self) -> Result<u64, StateError> {
        self.look(State::logs_size).await
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
fn serve(mut state: State, mut requests: mpsc::UnboundedReceiver<Request>) {
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
            }
            Request::Look(look) => look(&mut state),
            Request::Settle { reply } => {
                let result = std::mem::replace(&mut settled, Ok(())).and_then(|()| state.settle());
                let _ = reply.send(result);
            }
            Request::End => return,
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
