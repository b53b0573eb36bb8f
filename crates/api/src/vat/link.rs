//! How it is with a connection, for those who were reached through it.

use std::cell::Cell;
use std::rc::Rc;

use tokio_util::sync::CancellationToken;

/// A connection from another vat. Clones are of the same one.
#[derive(Clone, Debug, Default)]
pub struct Link {
    ended: CancellationToken,
    leave: CancellationToken,
    silent: Rc<Cell<bool>>,
    heard: Rc<Cell<u64>>,
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

    pub(super) fn set_silent(&self) {
        self.silent.set(true);
    }

    /// Returns a number that changes whenever something comes from the peer. What comes while nobody reads is not noticed.
    pub fn heard(&self) -> u64 {
        self.heard.get()
    }

    pub(super) fn hears(&self) {
        self.heard.set(self.heard.get().wrapping_add(1));
    }

    /// Ends the connection: the peer does not answer any more, though its host may say that it is there.
    pub fn give_up(&self) {
        self.set_silent();
        self.leave.cancel();
    }

    /// Returns a connection that is to end by `stop` too.
    pub(super) fn until(stop: &CancellationToken) -> Self {
        Self { leave: stop.child_token(), ..Self::default() }
    }

    /// Returns what is cancelled when it is to end.
    pub(super) fn leave(&self) -> &CancellationToken {
        &self.leave
    }
}
