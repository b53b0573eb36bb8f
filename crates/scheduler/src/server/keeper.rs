//! The database, behind a thread of its own.

use std::thread;

use bstr::BString;
use kiln_api::ServiceId;
use tokio::sync::{mpsc, oneshot};

use crate::pool::Effect;
use crate::state::{State, StateError};

/// Who may be asked to remember things. Clones ask the same database.
#[derive(Clone)]
pub(super) struct Keeper(mpsc::UnboundedSender<Request>);

type Reply<T> = oneshot::Sender<Result<T, StateError>>;

enum Request {
    Save { pool: BString, effects: Vec<Effect> },
    Settle { reply: Reply<()> },
    AddClient { name: BString, id: ServiceId, reply: Reply<()> },
    RemoveClient { name: BString, reply: Reply<bool> },
    FindClient { id: ServiceId, reply: Reply<Option<BString>> },
    End,
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
        let keeper = Self(sender);
        let handle = thread::spawn(move || serve(state, requests));
        (keeper.clone(), Thread { handle: Some(handle), keeper })
    }

    /// Remembers what a pool wants kept, soon. What cannot be written is lost, and logged: it makes the pool no less right now.
    pub(super) fn save(&self, pool: BString, effects: Vec<Effect>) {
        self.ask(Request::Save { pool, effects });
    }

    /// Waits until what was [saved](Self::save) is on disk. It is asked for when this is called, not when the future is polled.
    pub(super) fn settled(&self) -> impl Future<Output = Result<(), StateError>> + 'static {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Settle { reply });
        received(answer)
    }

    pub(super) async fn add_client(&self, name: BString, id: ServiceId) -> Result<(), StateError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::AddClient { name, id, reply });
        received(answer).await
    }

    pub(super) async fn remove_client(&self, name: BString) -> Result<bool, StateError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::RemoveClient { name, reply });
        received(answer).await
    }

    pub(super) async fn find_client(&self, id: ServiceId) -> Result<Option<BString>, StateError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::FindClient { id, reply });
        received(answer).await
    }

    fn ask(&self, request: Request) {
        // After its end, whoever waits for an answer sees that there is none.
        let _ = self.0.send(request);
    }
}

async fn received<T>(answer: oneshot::Receiver<Result<T, StateError>>) -> Result<T, StateError> {
    answer.await.unwrap_or(Err(StateError::Closed))
}

/// Does what it is asked for, until the end. Whoever asked may have gone, which is why nobody minds an answer that is not taken.
fn serve(mut state: State, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut next = None;
    let mut saved = Ok(());
    while let Some(request) = next.take().or_else(|| requests.blocking_recv()) {
        match request {
            Request::Save { pool, mut effects } => {
                // Each write waits for the disk, so one is made of what has come meanwhile.
                while next.is_none() {
                    match requests.try_recv() {
                        Ok(Request::Save { pool: same, effects: more }) if same == pool => effects.extend(more),
                        Ok(other) => next = Some(other),
                        Err(_) => break,
                    }
                }
                saved = state.save(pool.as_ref(), &effects);
                if let Err(error) = &saved {
                    tracing::error!(%pool, error = error as &dyn std::error::Error, "cannot keep what a pool knows");
                }
            }
            Request::Settle { reply } => {
                let _ = reply.send(std::mem::replace(&mut saved, Ok(())));
            }
            Request::AddClient { name, id, reply } => {
                let _ = reply.send(state.add_client(name.as_ref(), &id.0));
            }
            Request::RemoveClient { name, reply } => {
                let _ = reply.send(state.remove_client(name.as_ref()));
            }
            Request::FindClient { id, reply } => {
                let _ = reply.send(state.find_client(&id.0));
            }
            Request::End => return,
        }
    }
}
