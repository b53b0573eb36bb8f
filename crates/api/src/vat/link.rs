//! How it is with a connection, for those who were reached through it.

use std::cell::Cell;
use std::rc::Rc;

use tokio_util::sync::CancellationToken;

/// A connection from another vat. Clones are of the same one.
#[derive(Clone, Debug, Default)]
pub struct Link {
    ended: CancellationToken,
    silent: Rc<Cell<bool>>,
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
}
