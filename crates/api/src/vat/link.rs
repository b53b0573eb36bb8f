//! How it is with a connection, for those who were reached through it.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::limits::Silence;

/// A connection from another vat. Clones are of the same one.
#[derive(Clone, Debug, Default)]
pub struct Link {
    ended: CancellationToken,
    silent: Rc<Cell<bool>>,
    watched: Rc<watch::Sender<Option<Silence>>>,
}

impl Link {
    /// Returns what is cancelled when the connection is over and everything that came through it has been dropped.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Returns whether the peer was given up since it did not answer any more. It has not closed the connection, and may be back. To be asked
    /// when something is dropped that the peer held.
    pub fn is_silent(&self) -> bool {
        self.silent.get()
    }

    /// Has the peer given up if it is silent for that long, as if it were cut off. What it holds is dropped then.
    pub fn watch(&self, silence: Silence) {
        self.watched.send_replace(Some(silence));
    }

    /// Waits until the peer is to be watched. What is said later makes no difference.
    pub(super) async fn watched(&self) -> Silence {
        let mut watched = self.watched.subscribe();
        match watched.wait_for(Option::is_some).await.map(|silence| *silence) {
            Ok(Some(silence)) => silence,
            _ => std::future::pending().await,
        }
    }

    pub(super) fn set_silent(&self) {
        self.silent.set(true);
    }
}
