//! A vat: a process that has services, and connections to other vats.
//!
//! capnp-rpc speaks the protocol, but hands out one service for each connection; OCluster's vats have many, known by secret ids. So
//! its messages pass [`network`], which turns an incoming `Bootstrap` for an id into a call on a service of our own that looks ids
//! up, and gives an outgoing one the id it is for. What a peer may say, and make us keep, is in [`peer`] and [`references`]:
//! everything before an id is known can be said by anybody who reaches the port. Whether it is there at all is asked in [`silence`].
//!
//! Everything here belongs to the thread it was made on, and needs a `LocalSet`.

mod connection;
mod limits;
mod link;
mod listen;
mod network;
mod peer;
mod reach;
mod references;
mod silence;
mod stream;

pub use connection::{ConnectError, Connection};
pub use limits::{Limits, Silence};
pub use link::Link;
#[doc(hidden)]
pub use listen::converse_over;
pub use listen::{ListenError, Listener, Security, Services};
