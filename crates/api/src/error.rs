//! What goes wrong in a call, as both sides see it.

use std::fmt;

/// What a caller can do about an error. These are Cap'n Proto's kinds of exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The other side says no; asking again will not help.
    Failed,
    /// The other side has too much to do.
    Overloaded,
    /// The connection to where the object is was lost; it may work again when connected anew.
    Disconnected,
    /// The object has no such method.
    Unimplemented,
}

/// Why a call failed. `Display` is the text alone: OCluster's programs compare and print it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What the other side says.
    pub message: String,
}

impl Error {
    /// Returns an error that tells the peer `message`.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Failed, message: message.into() }
    }

    /// Returns the error of an object that has no such method.
    pub fn unimplemented() -> Self {
        Self { kind: ErrorKind::Unimplemented, message: "this object has no such method".to_owned() }
    }

    /// Returns an error for a peer that asks for too much at once.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Overloaded, message: message.into() }
    }

    /// Returns an error for what needs a connection that is lost.
    pub fn disconnected(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Disconnected, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// What capnp-rpc puts before everything that a peer says, and sends on to the next.
pub(crate) const REMOTE: &str = "remote exception: ";

/// Returns `text` as the first to say it said it.
pub(crate) fn as_said(text: &str) -> &str {
    let mut text = text;
    while let Some(rest) = text.strip_prefix(REMOTE) {
        text = rest;
    }
    text
}

impl From<capnp::Error> for Error {
    fn from(error: capnp::Error) -> Self {
        let kind = match error.kind {
            capnp::ErrorKind::Overloaded => ErrorKind::Overloaded,
            capnp::ErrorKind::Disconnected => ErrorKind::Disconnected,
            capnp::ErrorKind::Unimplemented => ErrorKind::Unimplemented,
            _ => ErrorKind::Failed,
        };
        let message = if error.extra.is_empty() { error.to_string() } else { as_said(&error.extra).to_owned() };
        Self { kind, message }
    }
}

impl From<Error> for capnp::Error {
    fn from(error: Error) -> Self {
        match error.kind {
            ErrorKind::Failed => capnp::Error::failed(error.message),
            ErrorKind::Overloaded => capnp::Error::overloaded(error.message),
            ErrorKind::Disconnected => capnp::Error::disconnected(error.message),
            ErrorKind::Unimplemented => capnp::Error::unimplemented(error.message),
        }
    }
}
