//! What a peer can make us keep or wait for.

use std::time::Duration;

/// The longest message, in bytes, of a peer that has not named a service. Naming one takes 100.
pub(super) const STRANGER_MESSAGE: usize = 64 << 10;

/// How many questions such a peer may leave unfinished.
pub(super) const STRANGER_CALLS: usize = 16;

/// How long a peer may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// How long until it is asked whether it is there.
    pub quiet: Duration,
    /// How long it may then take to say anything, if it is a vat of Kiln's.
    pub kiln: Duration,
    /// How long any other may: OCaml's schedulers cancel the jobs of a connection that ends.
    pub other: Duration,
}

/// How many promises of a peer may turn out to be objects of ours, before it says that our calls have passed it. No program of a cluster
/// hands anybody's objects back.
pub(super) const EMBARGOES: usize = 64;

/// Limits on what one peer, or all of them, can take. The values of `default` are for schedulers.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest message, in bytes, and as much as may be looked at while it is read: pointers of a message can name the same
    /// bytes again and again.
    pub message: usize,
    /// How deep structures of a message may be nested.
    pub nesting: i32,
    /// Calls of one peer that are not finished. A client has about four for each of its jobs. Those that it gave up count for as long as
    /// it is connected.
    pub calls: usize,
    /// Objects of ours that one peer refers to, and objects of its own that it has us refer to: so many of each, and each takes about a
    /// kilobyte. A client has three of ours for each of its jobs, a worker has us refer to two. Calls of ours that a peer does not answer
    /// have the limit of `calls`.
    pub references: usize,
    /// Bytes of one peer's calls that wait for their answer.
    pub held: usize,
    /// Bytes that wait to be sent to one peer before nothing more is read from it. At four times that it is disconnected.
    pub unsent: usize,
    /// How long a handshake may take, and then, from its end, until a service is named that there is.
    pub handshake: Duration,
    /// How long a message may take from its first byte to its last, in either direction.
    pub stall: Duration,
    /// How long a vat that we connected to may be silent. One that connected to us may until [`Link::watch`](super::Link::watch).
    pub silence: Silence,
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address, or from one network of IPv6 (64 bits), which one host may have all addresses of.
    pub connections_of_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: 16 << 20,
            nesting: 64,
            calls: 200_000,
            references: 200_000,
            held: 64 << 20,
            unsent: 16 << 20,
            handshake: Duration::from_secs(20),
            stall: Duration::from_secs(60),
            silence: Silence {
                quiet: Duration::from_secs(3),
                kiln: Duration::from_secs(4),
                other: Duration::from_secs(60),
            },
            connections: 20_000,
            connections_of_address: 5_000,
        }
    }
}
